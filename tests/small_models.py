"""Models, batches and memories that several tests share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow
from flax import nnx

from midigen_jax import config as cfg
from midigen_jax.model import memory as mem
from midigen_jax.model import pointer
from midigen_jax.model.decoder import abstract_decoder, init_params
from midigen_jax.model.reader import read_segment
from midigen_jax.vocab import Vocabulary


def changed(config: cfg.Config, **changes) -> cfg.Config:
    """A config with `section__name=value` changes."""
    return cfg.from_flat(cfg.flatten(config) | {k.replace("__", "."): v for k, v in changes.items()}, "test")


def build(config: cfg.Config, *, seed=0):
    """The decoder's structure and parameters, large enough that all parts matter."""
    shapes = jax.eval_shape(lambda: init_params(config, Vocabulary(), seed=seed)[1])
    random = np.random.default_rng(seed)
    mean = {
        "attention": 16.0,
        "knn": 16.0,
        "norm": 1.0,
        "norm1": 1.0,
        "norm2": 1.0,
    }  # of the parameters named scale, by their module

    def parameter(path, shape):
        at = mean[path[-2].key] if path[-1].key == "scale" else 0.0
        return jnp.asarray(at + 0.2 * random.normal(size=shape.shape), shape.dtype)

    return abstract_decoder(config, Vocabulary()), jax.tree.map_with_path(parameter, shapes)


def batch_of(config: cfg.Config, n_segments: int, songs: list[list[int]], *, seed=0) -> dict:
    """Random tokens, with each lane's songs of the given lengths (the last goes on to the end)."""
    random = np.random.default_rng(seed)
    shape = (len(songs), n_segments * config.data.segment)
    song = np.array([np.repeat(np.arange(len(row)), [*row[:-1], shape[1] - sum(row[:-1])]) for row in songs])
    tokens = random.integers(0, 389, shape)
    targets = np.where(np.diff(song, axis=1, append=-1) == 0, np.roll(tokens, -1, 1), -1)
    arrays = {
        "tokens": tokens,
        "targets": targets,
        "bar": random.integers(0, 2000, shape),
        "position": random.integers(0, 200, shape),
        "song": song,
    }
    return {name: jnp.asarray(x, jnp.int32) for name, x in arrays.items()}


def prediction(output):
    """Logits, or log-probabilities where a memory by alignment has its share in them."""
    if output.copies is None:
        return output.logits
    return jnp.log(pointer.mixture(jax.nn.softmax(output.logits), output.copies))


def read_tape(graphdef, params, config, batch, *, segment=None):
    """A tape read segment by segment: logits [B, n], the memory at its end, and [B, n / T] how many slots of the ring
    the song had that was running at each segment's start."""
    segment = segment or config.data.segment

    @jax.jit
    def read(params, memory, part):
        output = read_segment(nnx.merge(graphdef, params), memory, part)
        in_ring = part["song"][:, 0]
        if memory.knn is not None:
            in_ring = mem.valid_slots(memory.knn, in_ring).length
        return output.memory, prediction(output), in_ring

    memory, parts, in_ring = mem.init_memory(config, len(batch["tokens"])), [], []
    for begin in range(0, batch["tokens"].shape[1], segment):
        part = {name: x[:, begin : begin + segment] for name, x in batch.items()}
        memory, logits, count = read(params, memory, part)
        parts.append(logits)
        in_ring.append(count)
    return jnp.concatenate(parts, 1), memory, np.stack(in_ring, 1)


def logits_in_segments(graphdef, params, config, batch, *, segment=None):
    return read_tape(graphdef, params, config, batch, segment=segment)[:2]


OPTIONS: dict[str, dict[str, Any]] = {
    "t5": {"positions": "t5"},
    "musical": {"positions": "musical"},
    "rotary": {"positions": "rotary"},
    "all options": {
        "positions": "rotary",
        "norm": "rms",
        "qk_norm": True,
        "activation": "swiglu",
        "tied": True,
        "pitches": True,
        "biases": False,
    },
}
BACKENDS = {name: {"memory__backend": name} for name in ("faiss", "xla", "dense")}
ATTENTION = {"memory__retrieval": "attention"}
BOTH = {"memory__retrieval": "context+alignment"}
GATE = ATTENTION | {"memory__mixing": "gate"}
MEMORIES = BACKENDS | {
    "alignment": {"memory__retrieval": "alignment"},
    "context+alignment": BOTH,
    "attention+alignment": {"memory__retrieval": "attention+alignment"},
    "attention, faiss": ATTENTION | BACKENDS["faiss"],
    "attention, xla, gate": GATE | BACKENDS["xla"],
    "attention, dense": ATTENTION | BACKENDS["dense"],
}
KINDS = {"context": {}, "attention": ATTENTION, "attention, gate": GATE}  # of a kNN memory that has keys
KINDS_AND_BOTH = KINDS | {"context+alignment": BOTH}
# Those that reach all code.
SOME_MEMORIES = "faiss", "context+alignment", "attention, faiss", "attention, xla, gate"


def some(cases: dict[str, Any], *always: str) -> list[Any]:
    """Parameters of a test: those of these names, and with --thorough all."""
    return [pytest.param(case, id=name) if name in always else slow(case, id=name) for name, case in cases.items()]
