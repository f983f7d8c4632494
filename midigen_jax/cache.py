"""What sampling keeps of each row's song: both memories of training, in buffers in which nothing moves.

A row writes each token to the next slot of a circular window of XL + T slots, and the kNN layer's keys and values to a
longer one as well, of M slots more. Which of them are the running segment, XL memory and kNN memory follows from how
many tokens of the running segment and before it have been read, so that the end of a segment costs nothing and each
row has its own. Letters of shapes are those of `shapes`; here B are rows, and W = XL + T.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from . import config as cfg
from . import memory as mem
from .shapes import Array, Bool, Float, Int


class Place(NamedTuple):
    """Where a row's next token goes."""

    slot: Int[Array, " B"]  # of the window
    ring_slot: Int[Array, " B"]
    running: Int[Array, " B"]  # tokens of the running segment that were read
    before: Int[Array, " B"]  # tokens before it, at most XL + M


class Ring(NamedTuple):
    keys: Float[Array, "B H R Dh"]  # R = M + W; normalised
    values: Float[Array, "B H R Dh"]


class Cache(NamedTuple):
    keys: tuple[Float[Array, "B H W Dh"], ...]  # one array a layer, as are the values
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


def heard(ring: Ring, place: Place, xl: int) -> mem.Heard:
    """The tokens that have left XL memory."""
    length = jnp.maximum(place.before - xl, 0)
    return mem.Heard(*ring, (place.ring_slot - reach(place, xl) - length) % ring.keys.shape[2], length)


def write(
    cache: Cache, layer: int, k: Float[Array, "B H Dh"], v: Float[Array, "B H Dh"], active: Bool[Array, " B"]
) -> Cache:
    """With the keys and values of the next token in a layer, where a row is active."""
    keys, values = list(cache.keys), list(cache.values)
    keys[layer], values[layer] = (
        _put(x[layer], new, cache.place.slot, active) for x, new in ((cache.keys, k), (cache.values, v))
    )
    return cache._replace(keys=tuple(keys), values=tuple(values))


def write_ring(ring: Ring, place: Place, k: Float[Array, "B H Dh"], v: Float[Array, "B H Dh"], active: Array) -> Ring:
    return Ring(*(_put(x, new, place.ring_slot, active) for x, new in zip(ring, (k, v), strict=True)))


def _put(buffer: Array, new: Array, slot: Array, active: Array) -> Array:
    slot = jnp.where(active, slot, buffer.shape[2])  # beyond the end, where nothing is written
    return buffer.at[jnp.arange(len(new)), :, slot].set(new.astype(buffer.dtype), mode="drop")


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
    xl, layer = config.memory.xl, config.memory.knn_layer - 1
    before = jnp.sum(window.song[:, :xl] != mem.NO_SONG, 1, dtype=jnp.int32)
    slot, ring, ring_slot = xl + running, None, jnp.zeros_like(running)
    if knn is not None:
        before = before + jnp.sum(knn.song != mem.NO_SONG, 1, dtype=jnp.int32)
        in_tape_order = jax.vmap(lambda x, write: jnp.roll(x, -write, 1))

        def whole(oldest: Array, newest: Array) -> Array:
            return jnp.concatenate([in_tape_order(oldest, knn.write), newest.astype(oldest.dtype)], 2)

        ring = Ring(whole(knn.keys, window.keys[layer]), whole(knn.values, window.values[layer]))
        ring_slot = config.memory.knn + slot
    back = slot[:, None] - 1 - jnp.arange(config.model.previous_tokens)
    previous = jnp.take_along_axis(window.token, jnp.maximum(back, 0), 1)
    return Cache(window.keys, window.values, ring, previous, Place(slot, ring_slot, running, before))
