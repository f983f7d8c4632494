"""A trained model, from a run's checkpoint or from an exported file.

An exported file holds parameters, vocabulary and config, neither optimizer nor music, of which it has the fingerprint.
Nothing in it is code.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import config as cfg
from ..errors import InputError
from ..miditok_vocab import vocabulary_from_json
from ..model.decoder import init_params
from ..vocab import Vocabulary
from . import checkpoint
from .folder import check_model
from .tensors import by_path, digest, read_tensors, write_tensors

FORMAT_VERSION = 12
KIND = "midigen_jax model"
HALF = jnp.dtype(jnp.float16)


@dataclass(frozen=True)
class TrainedModel:
    config: cfg.Config
    params: dict
    vocabulary: Vocabulary
    run: Path | None = None  # the folder of its run, where there is one
    step: int = 0  # optimizer steps
    corpus: str = ""  # fingerprint of the corpus that it was trained on
    densest_bar: int = 0  # notes in the fullest bars of its training songs (`Corpus.densest_bar`); 0: unknown

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of the parameters."""
        return digest(by_path(self.params))


def load(path: Path, *, best: bool = False) -> TrainedModel:
    """Loads a model from a run's folder or from an exported file.

    Args:
        best: of a run, the checkpoint with the lowest validation loss; else the newest.

    Raises:
        InputError: it can't be used.
    """
    check_model(path, best=best)
    return read_export(path) if path.is_file() else load_run(path, best=best)


def load_run(run: Path, *, best: bool = False) -> TrainedModel:
    """Loads the newest checkpoint of a run, or the one with the lowest validation loss.

    Raises:
        InputError: there is none, or it can't be used.
    """
    with contextlib.closing(checkpoint.open_run(run)) as checkpoints:
        return _model(run, checkpoints.newest(partial(_shapes, run), best=best))


def load_older(run: Path, step: int, num: int) -> Iterator[TrainedModel]:
    """The models of up to `num` checkpoints from before a step, spread over the training, the oldest first.

    Prints a line for each that is damaged, which is left out.

    Raises:
        InputError: one can't be used.
    """
    with contextlib.closing(checkpoint.open_run(run)) as checkpoints:
        steps = sorted(x for x in checkpoints.steps() if x < step)
        chosen = {steps[round(i)] for i in np.linspace(0, len(steps) - 1, min(num, len(steps)))}
        for older in sorted(chosen):
            try:
                found = checkpoints.read(older, partial(_shapes, run))
            except checkpoint.Damaged as error:
                print(f"{run}: the checkpoint of step {older} is damaged ({error}) and left out")
                continue
            yield _model(run, found)


def _parts(run: Path, meta: dict[str, Any]) -> tuple[cfg.Config, Vocabulary]:
    return cfg.from_flat(meta["config"], str(run)), vocabulary_from_json(meta["vocabulary"])


def _shapes(run: Path, meta: dict[str, Any]) -> dict[str, Any]:
    return {"params": _abstract_params(*_parts(run, meta))}


def _model(run: Path, found: checkpoint.Checkpoint) -> TrainedModel:
    config, vocabulary = _parts(run, found.meta)
    # Orbax commits arrays to a device, and programs are compiled once more for arguments of which only some are.
    params = jax.tree.map(lambda x: jnp.asarray(jax.device_get(x)), found.items["params"])
    return TrainedModel(
        config, params, vocabulary, run, found.step, found.meta["corpus"], int(found.meta["densest_bar"])
    )


def export(path: Path, model: TrainedModel, *, half: bool = False) -> None:
    """Writes a model to one file.

    Args:
        half: parameters are rounded to float16, which makes the file half as large; they are computed with as float32.
    """
    params = jax.tree.map(lambda x: x.astype(HALF), model.params) if half else model.params
    metadata = {
        "format_version": FORMAT_VERSION,
        "config": cfg.flatten(model.config),
        "vocabulary": model.vocabulary.to_json(),
        "step": model.step,
        "corpus": model.corpus,
        "densest_bar": model.densest_bar,
    }
    write_tensors(path, by_path(params), KIND, metadata)


def read_export(path: Path) -> TrainedModel:
    """Reads what `export` wrote.

    Raises:
        InputError: it is no such file, or damaged.
    """
    arrays, metadata = read_tensors(path, KIND, FORMAT_VERSION)
    damaged = f"{path}: damaged model file; export it again with midigen export RUN {path}"
    try:
        config = cfg.from_flat(metadata["config"], str(path))
        vocabulary = vocabulary_from_json(metadata["vocabulary"])
        step, corpus = int(metadata["step"]), str(metadata["corpus"])
        densest_bar = int(metadata["densest_bar"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{damaged} ({error})") from None
    shapes = _abstract_params(config, vocabulary)
    params = {}
    for name, shape in by_path(shapes).items():
        if name not in arrays or arrays[name].shape != shape.shape or arrays[name].dtype not in (shape.dtype, HALF):
            raise InputError(f"{damaged} ({name} is missing or has another shape)")
        params[name] = arrays[name].astype(shape.dtype)
    params = jax.tree.unflatten(jax.tree.structure(shapes), list(params.values()))
    return TrainedModel(config, params, vocabulary, step=step, corpus=corpus, densest_bar=densest_bar)


def _abstract_params(config: cfg.Config, vocabulary: Vocabulary) -> Any:
    return jax.eval_shape(lambda: init_params(config, vocabulary, seed=0)[1])
