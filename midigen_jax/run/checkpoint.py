"""Orbax checkpoints: what a run needs to resume, or to be sampled from.

A checkpoint has five items: `params`, `optimizer`, `memory` (both memories), `rest` (step and random key), and `meta`:
JSON with the config, the vocabulary, the corpus's fingerprint, the validation loss, a checksum of every array, and a
digest of all this. The loader's position is the step. Nothing in a checkpoint is code.
"""

import contextlib
import gc
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import PreservationPolicy
from orbax.checkpoint.utils import TMP_DIR_SUFFIX

from .. import config as cfg
from ..data.corpus import Corpus
from ..errors import InputError
from ..shapes import Array
from . import hosts
from .folder import CHECKPOINTS, check_run
from .tensors import by_path

FORMAT_VERSION = 15
ITEMS = ("params", "optimizer", "memory", "rest", "meta")


def meta_of(config: cfg.Config, corpus: Corpus) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "config": cfg.flatten(config),
        "corpus": corpus.fingerprint,
        "vocabulary": corpus.vocabulary.to_json(),
        "densest_bar": corpus.densest_bar(),
    }


@jax.jit
def _checksums(tree: Any) -> Any:
    """A number for every array, the same however the array is sharded.

    The sum of all values' bits, each multiplied by an odd number of its own, modulo 2^32: a change of any one value
    changes the sum.
    """

    def checksum(x: Array) -> Array:
        if x.dtype == bool:
            x = x.astype(jnp.uint8)
        bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)
        return jnp.sum(bits.ravel() * (2 * jnp.arange(x.size, dtype=jnp.uint32) + 1), dtype=jnp.uint32)

    return jax.tree.map(checksum, tree)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def nonempty(tree: Any) -> dict[str, Any]:
    """The arrays of a tree by their paths; Orbax saves none that are empty."""
    return {path: x for path, x in by_path(tree).items() if x.size}


def checksums(tree: Any) -> dict[str, int]:
    """A checksum of every array, by its path."""
    return jax.tree.map(int, jax.device_get(_checksums(nonempty(tree))))


def _filled(tree: Any, arrays: dict[str, Array]) -> Any:
    """The abstract tree filled with the arrays; empty ones were not saved."""
    paths = iter(nonempty(tree))
    return jax.tree.map(
        lambda x: arrays[next(paths)] if x.size else jnp.zeros(x.shape, x.dtype, device=x.sharding), tree
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _damage(error: BaseException, checkpoint: Path) -> str:
    """What part of a checkpoint can't be read and why, in one line; files and arrays by their paths in it."""
    text = " ".join(str(error).split()).partition(" [tensorstore_spec")[0]
    # TensorStore names what it failed at from the outside in: an array, its item, a file.
    if named := list(re.finditer(rf'{re.escape(str(checkpoint))}/([^"]*?)("| not found)', text)):
        what, reason = named[-1][1], text[named[-1].end() :].strip(":. ")
        if what.endswith("/") and (array := re.search(r'"([^"]+)/[^"/]+" in OCDBT', text)):
            what += array[1]
        if reason in ("", "does not exist"):
            return f"{what} is missing"
    else:
        what = next(_broken_json(checkpoint), "its metadata")
        reason = text if isinstance(error, ValueError) else f"{type(error).__name__} {text}"
    return f"{what} can't be read: {reason[:120]}"


def _broken_json(checkpoint: Path) -> Iterator[str]:
    """The JSON files that can't be read; Orbax does not name them."""
    for path in sorted(checkpoint.rglob("*")):
        if path.name in ("metadata", "_METADATA") or path.parent.name == "array_metadatas":
            try:
                json.loads(path.read_bytes())
            except (OSError, ValueError):
                yield str(path.relative_to(checkpoint))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what Orbax and asyncio report of failures that Orbax raises too.

    Orbax logs a traceback before it raises, and when one file fails it abandons its coroutines for the others, each of
    which Python reports when it is collected. The process's settings are restored at the end.
    """
    never_awaited = "coroutine '.*' was never awaited"
    abandoned = re.compile(f"Event loop is closed|Encountered error while reading array|{never_awaited}")
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels, report = [logger.level for logger in loggers], sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not abandoned.match(str(unraisable.exc_value)):
            report(unraisable)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", never_awaited, RuntimeWarning)
        sys.unraisablehook = hook
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            sys.unraisablehook = report
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


class Damaged(Exception):
    """A checkpoint that can't be read; the message says why."""


class SaveFailed(Exception):
    """A checkpoint could not be written; earlier ones are intact. The message says why."""


class Checkpoint(NamedTuple):
    """A checkpoint that was read."""

    step: int
    meta: dict[str, Any]
    items: dict[str, Any]  # the requested ones


@dataclass
class _NewestAndBest(PreservationPolicy):
    """Keeps the newest checkpoints, the one with the lowest loss on the songs that were last validated on, and those
    at every so many steps."""

    keep: int
    keep_every: int  # steps, at whose multiples all are kept; 0: none
    losses: dict[int, tuple[int, float]]  # by step: number of validation songs, loss

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self.keep :], self.best(steps)}
        return [step in kept or (self.keep_every > 0 and step % self.keep_every == 0) for step in steps]

    def best(self, steps: list[int]) -> int | None:
        losses = {step: self.losses[step] for step in steps if step in self.losses}
        songs = losses[max(losses)][0] if losses else 0
        return min((step for step in losses if losses[step][0] == songs), key=losses.__getitem__, default=None)


class Checkpoints:
    """The checkpoints of a run, in RUN/checkpoints."""

    def __init__(self, run: Path, *, keep: int | None = None, keep_every: int = 0):
        """
        Args:
            keep: number of newest checkpoints to keep, beside the best one saved with a loss. None: read only; nothing
                in the folder is changed.
            keep_every: steps; checkpoints at its multiples are kept too; 0: none.
        """
        self.run, self.path = run, (run / CHECKPOINTS).resolve()
        self.read_only = keep is None
        self._policy = _NewestAndBest(keep or 0, keep_every, {})
        self._abandoned = False  # whether Orbax has left coroutines behind
        self._quiet = contextlib.ExitStack()
        self._quiet.enter_context(_quiet())
        options: dict[str, Any] = {"read_only": True}
        if not self.read_only:
            options = {"preservation_policy": self._policy, "cleanup_tmp_directories": True}
        options = ocp.CheckpointManagerOptions(create=not self.read_only, enable_async_checkpointing=True, **options)
        self._manager = ocp.CheckpointManager(self.path, options=options, item_names=ITEMS)
        try:
            for step in self.steps():
                with contextlib.suppress(Damaged):
                    self._remember_loss(step, self._meta(step))
        except BaseException:
            self.close()
            raise

    def steps(self) -> list[int]:
        """The steps of all checkpoints, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def _remember_loss(self, step: int, meta: dict[str, Any]) -> None:
        if meta["loss"] is not None:
            self._policy.losses[step] = meta["config"].get("train.validation_songs", 0), meta["loss"]

    def save(self, step: int, items: dict[str, Any], meta: dict[str, Any], loss: float | None = None) -> None:
        """Starts to write the arrays as they are now; the previous save has been waited for.

        Raises:
            SaveFailed: there is no room for them.
        """
        needed, free = sum(x.nbytes for x in jax.tree.leaves(items)), shutil.disk_usage(self.path).free
        if hosts.any_host([free < needed])[0]:
            raise SaveFailed(f"it may need {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free")
        meta = meta | {"loss": loss, "checksums": {name: checksums(tree) for name, tree in items.items()}}
        text = json.dumps(meta, sort_keys=True)
        # Orbax takes no item without arrays, such as the memories of a model that has none.
        arguments = {name: ocp.args.StandardSave(x) for name, tree in items.items() if (x := nonempty(tree))}
        written = ocp.args.JsonSave({"meta": text, "digest": _digest(text)})
        self._remember_loss(step, meta)
        with self._failing():
            self._manager.save(step, args=ocp.args.Composite(**arguments, meta=written), force=True)

    def wait(self) -> None:
        """Waits until the last save is written.

        Raises:
            SaveFailed: it could not be.
        """
        with self._failing():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Removes what a failed save has written, whichever host it failed on."""
        failure = ""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            code = re.search(r"os_error_code='(\d+)'", str(error))
            failure = os.strerror(int(code[1])) if code else _one_line(error)
        if hosts.any_host([bool(failure)])[0]:
            for leftover in self.path.glob(f"*{TMP_DIR_SUFFIX}*"):
                shutil.rmtree(leftover, ignore_errors=True)
            self._manager.reload()  # it dropped the checkpoints that this one would have replaced
            raise SaveFailed(failure or "on another host")

    def read(self, step: int, shapes: Callable[[dict[str, Any]], dict[str, Any]]) -> Checkpoint:
        """Reads one checkpoint.

        Args:
            shapes: given its `meta`, the items to read as abstract trees whose shardings say where each array goes.

        Raises:
            Damaged: it can't be read, or its content has changed.
            InputError: it is of another format, or `shapes` says so.
        """
        meta = self._meta(step)
        if meta.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"{self.run}: checkpoint of format version {meta.get('format_version')}, this program reads "
                f"{FORMAT_VERSION}; use the program version that wrote it, or train again in another folder"
            )
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

        def placed(x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or device)

        trees = {name: jax.tree.map(placed, tree) for name, tree in shapes(meta).items()}
        arguments = {name: ocp.args.StandardRestore(x) for name, tree in trees.items() if (x := nonempty(tree))}
        items = {name: dict[str, Any]() for name in trees} | self._restore(step, **arguments)
        for name, arrays in items.items():
            for path, checksum in checksums(arrays).items():
                if checksum != meta["checksums"][name].get(path):
                    raise Damaged(f"{name}/{path} is not what was saved")
        return Checkpoint(step, meta, {name: _filled(tree, items[name]) for name, tree in trees.items()})

    def _meta(self, step: int) -> dict[str, Any]:
        written = self._restore(step, meta=ocp.args.JsonRestore())["meta"]
        if not isinstance(written, dict) or _digest(str(written.get("meta"))) != written.get("digest"):
            raise Damaged("meta is not what was saved")
        return json.loads(written["meta"])

    def _restore(self, step: int, **arguments: Any) -> dict[str, Any]:
        if not arguments:
            return {}
        items, failure = {}, ""
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**arguments))
            items = {name: restored[name] for name in arguments}
        except PermissionError as error:
            raise InputError(f"{self.path / str(step)}: {error.strerror}; let this user read it") from error
        except Exception as error:  # whatever Orbax, TensorStore or JSON make of damaged files
            failure = _damage(error.__cause__ or error, self.path / str(step))
            self._abandoned = True
        if hosts.any_host([bool(failure)])[0]:
            raise Damaged(failure or "on another host")
        return items

    def newest(self, shapes: Callable[[dict[str, Any]], dict[str, Any]], *, best: bool = False) -> Checkpoint:
        """The newest checkpoint that can be read; prints a line for each that can't.

        Unless read only, damaged ones are moved to RUN/damaged, since their steps will be saved again.

        Args:
            shapes: as `read` takes it.
            best: try the one with the lowest loss first.

        Raises:
            InputError: there is none, none can be read, or what `read` raises.
        """
        steps = self.steps()
        if best and (first := self._policy.best(steps)) is not None:
            steps = [first, *(step for step in steps if step != first)]
        damaged = {}
        for step in steps:
            try:
                found = self.read(step, shapes)
            except Damaged as error:
                damaged[step] = error
                continue
            for other, why in damaged.items():
                print(f"{self.path / str(other)}: damaged checkpoint ({why}); using that of step {step}")
            if damaged and not self.read_only:
                self._set_aside(list(damaged))
            return found
        newest = f" (the newest: {damaged[steps[0]]})" if steps else ""
        raise InputError(f"{self.run}: none of its checkpoints can be read{newest}; train again in another folder")

    def _set_aside(self, steps: list[int]) -> None:
        if hosts.is_main_process():
            aside = self.run / "damaged"
            aside.mkdir(exist_ok=True)
            for step in steps:
                names = (aside / (str(step) if not i else f"{step}-{i}") for i in itertools.count())
                os.rename(self.path / str(step), next(name for name in names if not name.exists()))
        hosts.any_host([False])  # the others wait until they are moved
        self._manager.reload()

    def close(self) -> None:
        """Waits for the last save; `wait` reports its failure. Hosts need not call it together: one may leave alone."""
        with self._quiet:
            with contextlib.suppress(OSError, ValueError, RuntimeError):
                self._manager.close()
            if self._abandoned:
                gc.collect()  # which makes Python report them now, while that is silenced


def open_run(run: Path) -> Checkpoints:
    """The checkpoints of a finished or interrupted run, read only.

    Raises:
        InputError: there is no such folder, or no checkpoint in it.
    """
    check_run(run)
    return Checkpoints(run)
