"""Orbax: what a run needs to go on, or to be sampled from.

A checkpoint has three items: `params`; `rest`, the optimizer, both memories, step and random key; and `meta`, JSON with
the config, vocabulary and corpus. The loader's position is the step. Nothing in a checkpoint is code.
"""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from . import config as cfg
from .cli import InputError
from .corpus import Corpus

FORMAT_VERSION = 3


def meta_of(config: cfg.Config, corpus: Corpus) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "config": cfg.flatten(config),
        "corpus": corpus.fingerprint,
        "vocabulary": corpus.vocabulary.to_json(),
    }


class Checkpoints:
    """The checkpoints of a run, in RUN/checkpoints."""

    def __init__(self, run: Path, *, keep: int | None = None, create: bool = True):
        self.run = run
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False, create=create)
        self.manager = ocp.CheckpointManager(
            (run / "checkpoints").resolve(), options=options, item_names=("params", "rest", "meta")
        )

    def latest(self) -> int | None:
        return self.manager.latest_step()

    def save(self, step: int, params: Any, rest: Any, meta: dict[str, Any]) -> None:
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params),
            rest=ocp.args.StandardSave(rest),
            meta=ocp.args.JsonSave(meta),
        )
        self.manager.save(step, args=items, force=True)

    def meta(self, step: int) -> dict[str, Any]:
        """Raises InputError for a checkpoint of another format."""
        meta = self.manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        if meta.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"{self.run}: checkpoint of format version {meta.get('format_version')}, this program reads "
                f"{FORMAT_VERSION}; use the program that wrote it or train again"
            )
        return meta

    def restore(self, step: int, **abstract: Any) -> dict[str, Any]:
        """The named items (`params`, `rest`), shaped and placed like the given abstract trees."""
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

        def on_device(x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or device)

        items = {name: ocp.args.StandardRestore(jax.tree.map(on_device, tree)) for name, tree in abstract.items()}
        restored = self.manager.restore(step, args=ocp.args.Composite(**items))
        return {name: restored[name] for name in abstract}

    def close(self) -> None:
        self.manager.close()


def open_run(run: Path) -> tuple[Checkpoints, int]:
    """The checkpoints of a finished or interrupted run, and the newest one's step.

    Raises:
        InputError: there is no such folder, or no checkpoint in it.
    """
    if not run.is_dir():
        raise InputError(f"{run}: no such run folder; train one with train.py CONFIG --data ... --workdir {run}")
    if not (run / "checkpoints").is_dir():
        raise InputError(f"{run}: holds no checkpoint; train first: train.py CONFIG --data ... --workdir {run}")
    checkpoints = Checkpoints(run, create=False)
    step = checkpoints.latest()
    if step is None:
        raise InputError(f"{run}: holds no checkpoint; train first: train.py CONFIG --data ... --workdir {run}")
    return checkpoints, step
