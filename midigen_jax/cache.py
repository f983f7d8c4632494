"""What sampling keeps of each row's song: both memories of training, in buffers in which nothing moves.

A row writes each token to the next slot of a circular window of XL + T slots, and the kNN layer's keys and values to a
longer one as well, of M slots more. Which of them are the running segment, XL memory and kNN memory follows from how
many tokens of the running segment and before it have been read, so that the end of a segment costs nothing and each
row has its own. Keys are kept as columns: a CPU that scores them all against one query then multiplies along the slots,
at the speed of its memory. Letters of shapes are those of `shapes`; here B are rows, and W = XL + T.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from . import config as cfg
from . import memory as mem
from .shapes import Array, Bool, Float, Int

PIECES = 4  # of a ring's keys


class Place(NamedTuple):
    """Where a row's next token goes."""

    slot: Int[Array, " B"]  # of the window
    ring_slot: Int[Array, " B"]
    running: Int[Array, " B"]  # tokens of the running segment that were read
    before: Int[Array, " B"]  # tokens before it, at most XL + M


class Ring(NamedTuple):
    """R = M + W slots. A row's song begins at slot 0."""

    keys: tuple[Float[Array, "B H Dh piece"], ...]  # normalised; in pieces, since those that hold nothing are not read
    values: Float[Array, "B H R Dh"]


class Cache(NamedTuple):
    keys: tuple[Float[Array, "B H Dh W"], ...]  # one array a layer, as are the values
    values: tuple[Float[Array, "B H W Dh"], ...]
    ring: Ring | None
    previous: Int[Array, "B n"]  # the tokens before the next one, the newest first
    place: Place


def reach(place: Place, xl: int) -> Int[Array, " B"]:
    """To how many tokens before it the next one attends in the window."""
    return place.running + jnp.minimum(place.before, xl)


def distances(place: Place, slots: int) -> Int[Array, "B W"]:
    """How many tokens before the next one each slot of the window was written."""
    return (place.slot[:, None] - jnp.arange(slots)) % slots


def heard(place: Place, ring: Ring, xl: int) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
    """First slot and count of the tokens that have left XL memory, around the ring's end."""
    length = jnp.maximum(place.before - xl, 0)
    return (place.ring_slot - reach(place, xl) - length) % ring.values.shape[2], length


def write(
    cache: Cache, layer: int, k: Float[Array, "B H Dh"], v: Float[Array, "B H Dh"], active: Bool[Array, " B"]
) -> Cache:
    """With the keys and values of the next token in a layer, where a row is active."""
    keys, values, slot = list(cache.keys), list(cache.values), cache.place.slot
    keys[layer] = _put(keys[layer], 3, slot, k, active)
    values[layer] = _put(values[layer], 2, slot, v, active)
    return cache._replace(keys=tuple(keys), values=tuple(values))


def write_ring(ring: Ring, place: Place, k: Float[Array, "B H Dh"], v: Float[Array, "B H Dh"], active: Array) -> Ring:
    """The same for the ring."""
    pieces, first = [], 0
    for piece in ring.keys:
        pieces.append(_put(piece, 3, place.ring_slot - first, k, active))
        first += piece.shape[3]
    return Ring(tuple(pieces), _put(ring.values, 2, place.ring_slot, v, active))


def _put(buffer: Array, axis: int, slot: Array, new: Array, active: Array) -> Array:
    here = active & (slot >= 0)
    slot = jnp.where(here, slot, buffer.shape[axis])  # beyond the end, where nothing is written
    index: list[Any] = [jnp.arange(len(new)), *[slice(None)] * (buffer.ndim - 1)]
    index[axis] = slot
    return buffer.at[tuple(index)].set(new.astype(buffer.dtype), mode="drop")


def advance(cache: Cache, token: Int[Array, " B"], active: Bool[Array, " B"], config: cfg.Config) -> Cache:
    """The cache after a token that has been written in every layer."""
    segment, memory, place = config.data.segment, config.memory, cache.place
    full = place.running + 1 == segment
    after = Place(
        (place.slot + 1) % (memory.xl + segment),
        (place.ring_slot + 1) % (memory.knn + memory.xl + segment),
        jnp.where(full, 0, place.running + 1),
        jnp.minimum(place.before + segment * full, memory.xl + memory.knn),
    )
    place = Place(*(jnp.where(active, new, old) for new, old in zip(after, place, strict=True)))
    previous = jnp.concatenate([token[:, None], cache.previous], 1)[:, : cache.previous.shape[1]]
    return cache._replace(previous=jnp.where(active[:, None], previous, cache.previous), place=place)


def from_segments(window: mem.XLMemory, knn: mem.KNNMemory | None, running: Array, config: cfg.Config) -> Cache:
    """The cache after segments that were read as in training.

    Args:
        window: XL memory and the last segment behind it.
        running: Int[B], tokens of the last segment that belong to the song, less than T; those behind them are padding.
    """
    memory, xl, layer = config.memory, config.memory.xl, config.memory.knn_layer - 1
    before = jnp.sum(window.song[:, :xl] != mem.NO_SONG, 1, dtype=jnp.int32)
    slot, ring = xl + running, None
    if knn is not None:
        before = before + jnp.sum(knn.song != mem.NO_SONG, 1, dtype=jnp.int32)

        def in_order(oldest: Array, newest: Array) -> Array:
            """From slot 0 on, as the ring keeps it."""
            roll = jax.vmap(lambda x, back: jnp.roll(x, -back, 1))
            tape = jnp.concatenate([roll(oldest, knn.write), newest.astype(oldest.dtype)], 2)
            return roll(tape, memory.knn + xl - before)

        keys, values = in_order(knn.keys, window.keys[layer]), in_order(knn.values, window.values[layer])
        ring = Ring(tuple(jnp.array_split(_columns(keys), PIECES, 3)), values)
    back = slot[:, None] - 1 - jnp.arange(config.model.previous_tokens)
    previous = jnp.take_along_axis(window.token, jnp.maximum(back, 0), 1)
    place = Place(slot, before + running, running, before)
    return Cache(tuple(map(_columns, window.keys)), window.values, ring, previous, place)


def _columns(keys: Float[Array, "B H W Dh"]) -> Float[Array, "B H Dh W"]:
    return jnp.swapaxes(keys, 2, 3)
