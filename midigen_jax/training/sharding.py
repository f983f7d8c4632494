"""Lanes shared out among devices and hosts.

Everything that belongs to a lane (its tokens, its memories, its dropout) stays on the lane's device; parameters and
optimizer are replicated, and only gradients travel.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from .. import config as cfg
from .. import vocab
from ..data import loader
from ..data.corpus import Corpus
from ..errors import InputError
from ..model.reader import Batch
from ..music.song import PITCHES, pitched
from ..shapes import Array
from .state import TrainState

LANES = P("lanes")  # one share of the lanes per device
REPLICATED = P()
_DRUM = 1 << 15  # added to drum notes in device memory, which are not transposed; such corpora have no merged tokens


def make_mesh(config: cfg.Config) -> Mesh:
    """All devices of all hosts along one axis; a host's devices are neighbours.

    Raises:
        InputError: the lanes can't be shared out evenly.
    """
    devices = len(jax.devices())
    if config.data.lanes % devices:
        raise InputError(
            f"data.lanes={config.data.lanes} can't be shared out evenly among {devices} devices; --set data.lanes="
            f"{-(-config.data.lanes // devices) * devices}"
        )
    return Mesh(np.array(jax.devices()), ("lanes",), axis_types=(AxisType.Auto,))


def state_sharding(mesh: Mesh) -> TrainState:
    """The sharding of each part of the state."""
    replicated: Any = NamedSharding(mesh, REPLICATED)
    lanes: Any = NamedSharding(mesh, LANES)
    return TrainState(replicated, replicated, lanes, replicated, replicated)


def host_rows(config: cfg.Config) -> range:
    """The lanes that this host reads: those of its devices."""
    n_rows = config.data.lanes // jax.process_count()
    return range(n_rows * jax.process_index(), n_rows * (jax.process_index() + 1))


def put_batch(rows: dict[str, np.ndarray], mesh: Mesh) -> Any:
    """Puts each device's rows on it; every host gives its own."""
    sharding = NamedSharding(mesh, LANES)
    return {name: jax.make_array_from_process_local_data(sharding, x) for name, x in rows.items()}


def make_put(config: cfg.Config, corpus: Corpus, mesh: Mesh) -> Callable[[dict[str, np.ndarray]], Batch]:
    """A function that puts what the training loader yields on the devices, as a batch.

    With `data.location=device` the loader yields indices into the corpus, which every device holds in its memory.

    Raises:
        InputError: the corpus is too long for that.
    """
    if config.data.location != "device":
        return partial(put_batch, mesh=mesh)
    if len(corpus.tokens) >= 2**31:
        raise InputError(
            f"{corpus.path}: {len(corpus.tokens):,} tokens are too many for data.location=device; --set "
            "data.location=host"
        )
    vocabulary = corpus.vocabulary
    note_0, velocities = vocabulary.note_0, vocabulary.velocity_tokens
    tokens = np.array(corpus.tokens)
    if config.data.transposes:
        notes = (tokens >= note_0) & (tokens < note_0 + PITCHES)
        tokens[notes & ~pitched(tokens, vocabulary)] |= _DRUM
    replicated = NamedSharding(mesh, REPLICATED)
    arrays = {"tokens": tokens, "bar": np.array(corpus.bar), "position": np.array(corpus.position)}
    tables = {name: jax.device_put(x, replicated) for name, x in arrays.items()}

    @jax.jit
    def fetch(tables: dict[str, Array], lookup: dict[str, Array]) -> Batch:
        here = lookup["index"] != loader.NO_TOKEN
        tokens, bar, position = (
            jnp.where(here, tables[name][lookup["index"]].astype(jnp.int32), fill)
            for name, fill in (("tokens", vocab.PAD), ("bar", 0), ("position", 0))
        )
        if config.data.transposes:
            is_pitched = (tokens >= note_0) & (tokens < note_0 + PITCHES)
            tokens = jnp.where(is_pitched, tokens + lookup["semitones"], tokens & ~_DRUM)
        if config.data.velocity_offset and velocities:
            first, end = velocities.start, velocities.stop
            is_velocity = (tokens >= first) & (tokens < end)
            tokens = jnp.where(is_velocity, jnp.clip(tokens + lookup["velocity_offset"], first, end - 1), tokens)
        batch: Any = {"tokens": tokens, "bar": bar, "position": position, "song": lookup["song"]}
        return loader.with_targets(batch)  # type: ignore[return-value]

    return lambda lookup: fetch(tables, put_batch(lookup, mesh))
