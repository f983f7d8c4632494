"""What sampling keeps of each row's song: both memories of training, in buffers in which nothing moves.

A token's keys and values go to the next slot of a circular window of XL + T slots, the same slot for all rows, and
its context to a longer one as well, of M slots more, and the token itself to the slot before, beside the context that
it followed. Which of them are a row's running segment, XL memory
and kNN memory follows from how many tokens of the running segment and before it the row has read, so that a segment's
end costs nothing and each row has its own. Letters of shapes are those of `shapes`; here B are rows, W = XL + T, and BH
are the heads of all rows: as one dimension, for XLA on the CPU copies a buffer whole if it is written in one shape and
read in another.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from . import config as cfg
from . import context
from . import memory as mem
from .shapes import Array, Bool, Float, Int

PIECES = 4  # of a ring's keys


class Place(NamedTuple):
    """Where the next token goes, and what each row has read."""

    slot: Int[Array, ""]  # of the window
    ring_slot: Int[Array, ""]
    running: Int[Array, " B"]  # tokens of the running segment that were read
    before: Int[Array, " B"]  # tokens before it, at most XL + M
    missed: Int[Array, " B"]  # tokens that others have read since the row stands still


class Ring(NamedTuple):
    """R = M + W slots."""

    keys: tuple[Float[Array, "BH piece Dh"], ...]  # contexts; in pieces, since those that hold nothing are not read
    token: Int[Array, "B R"]  # that followed each


class Cache(NamedTuple):
    keys: tuple[Float[Array, "BH W Dh"], ...]  # one array a layer, as are the values
    values: tuple[Float[Array, "BH W Dh"], ...]
    ring: Ring | None
    previous: Int[Array, "B n"]  # the tokens before the next one, the newest first
    place: Place


def reach(place: Place, xl: int) -> Int[Array, " B"]:
    """To how many tokens before it the next one attends in the window."""
    return place.running + jnp.minimum(place.before, xl)


def distances(place: Place, slots: int) -> Int[Array, " W"]:
    """How many tokens before the next one each slot of the window was written."""
    return (place.slot - jnp.arange(slots)) % slots


def heard(place: Place, ring: Ring, xl: int) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
    """First slot and count of the tokens that have left XL memory, around the ring's end."""
    length = jnp.maximum(place.before - xl, 0)
    return (place.ring_slot - reach(place, xl) - length) % ring.token.shape[1], length


def write(
    cache: Cache, layer: int, k: Float[Array, "B H Dh"], v: Float[Array, "B H Dh"], active: Bool[Array, " B"]
) -> Cache:
    """With the keys and values of the next token in a layer, where a row is active."""
    keys, values, slot = list(cache.keys), list(cache.values), cache.place.slot
    keys[layer], values[layer] = _put(keys[layer], slot, k, active), _put(values[layer], slot, v, active)
    return cache._replace(keys=tuple(keys), values=tuple(values))


def write_ring(
    ring: Ring, place: Place, context: Float[Array, "B H Dh"], token: Int[Array, " B"], active: Array
) -> Ring:
    """The same for the ring: the token's context, and the token beside the context before."""
    pieces, first = [], 0
    for piece in ring.keys:
        slot = place.ring_slot - first
        here = (slot >= 0) & (slot < piece.shape[1])
        pieces.append(_put(piece, slot, context, active & here))
        first += piece.shape[1]
    before = (place.ring_slot - 1) % ring.token.shape[1]
    return Ring(tuple(pieces), ring.token.at[:, before].set(jnp.where(active, token, ring.token[:, before])))


def _put(buffer: Array, slot: Array, new: Float[Array, "B H Dh"], active: Bool[Array, " B"]) -> Array:
    old = jax.lax.dynamic_slice_in_dim(buffer, slot, 1, 1)
    new = jnp.where(active[:, None, None], new.astype(buffer.dtype), old.reshape(new.shape))
    return jax.lax.dynamic_update_slice_in_dim(buffer, new.reshape(old.shape), slot, 1)


def advance(cache: Cache, token: Int[Array, " B"], active: Bool[Array, " B"], config: cfg.Config) -> Cache:
    """The cache after a token that has been written in every layer."""
    segment, memory, place = config.data.segment, config.memory, cache.place
    full = place.running + 1 == segment
    running = jnp.where(full, 0, place.running + 1)
    before = jnp.minimum(place.before + segment * full, memory.xl + memory.knn)
    previous = jnp.concatenate([token[:, None], cache.previous], 1)[:, : cache.previous.shape[1]]
    return cache._replace(
        previous=jnp.where(active[:, None], previous, cache.previous),
        place=Place(
            (place.slot + 1) % (memory.xl + segment),
            (place.ring_slot + 1) % (memory.knn + memory.xl + segment),
            jnp.where(active, running, place.running),
            jnp.where(active, before, place.before),
            place.missed + ~active,
        ),
    )


def catch_up(cache: Cache) -> Cache:
    """The same with each row's last token just before the next slot, so that rows that stood still may go on."""
    place, ring = cache.place, cache.ring
    if ring is not None:
        ring = _make_ring(*(_move(x, place.missed) for x in (jnp.concatenate(ring.keys, 1), ring.token)))
    keys, values = (tuple(_move(x, place.missed) for x in layers) for layers in (cache.keys, cache.values))
    return Cache(keys, values, ring, cache.previous, place._replace(missed=jnp.zeros_like(place.missed)))


def _move(buffer: Array, by: Int[Array, " B"]) -> Array:
    """Each row of a buffer [BH slots Dh] or [B slots] by so many slots, around the end."""
    heads = len(buffer) // len(by)
    return jax.vmap(lambda head, by: jnp.roll(head, by, 0))(buffer, jnp.repeat(by, heads))


def take(cache: Cache, rows: Int[Array, " n"]) -> Cache:
    """The cache of these rows; a row may be taken several times."""
    n_rows = len(cache.previous)

    def taken(x: Array) -> Array:
        if x.ndim == 0:
            return x
        heads = len(x) // n_rows  # 1 where there are none
        return x.reshape(n_rows, heads, *x.shape[1:])[rows].reshape(len(rows) * heads, *x.shape[1:])

    return jax.tree.map(taken, cache)


def cached_tokens(config: cfg.Config) -> int:
    """How many tokens before the next one are needed."""
    return max(config.model.previous_tokens, bool(config.memory.knn) * (context.LENGTH - 1))


def _make_ring(keys: Float[Array, "BH R Dh"], token: Int[Array, "B R"]) -> Ring:
    return Ring(tuple(jnp.array_split(keys, PIECES, 1)), token)


def from_segments(window: mem.XLMemory, knn: mem.KNNMemory | None, running: Array, config: cfg.Config) -> Cache:
    """The cache after segments that were read as in training.

    Args:
        window: XL memory and the last segment behind it.
        running: Int[B], tokens of the last segment that belong to the song, less than T; those behind them are padding.
    """
    memory = config.memory
    before = jnp.sum(window.song[:, : memory.xl] != mem.NO_SONG, 1, dtype=jnp.int32)
    if knn is not None:
        before = before + jnp.sum(knn.song != mem.NO_SONG, 1, dtype=jnp.int32)

    def placed(tape: Array) -> Array:
        """A row's slots, [B H slots Dh] or [B slots], moved around so that the next token goes to slot 0."""
        return _move(tape.reshape(-1, *tape.shape[2:]) if tape.ndim == 4 else tape, config.data.segment - running)

    ring = None
    if knn is not None:

        def tape(old: Array, new: Array, axis: int) -> Array:
            oldest_first = jax.vmap(lambda row, write: jnp.roll(row, -write, axis - 1))(old, knn.write)
            return placed(jnp.concatenate([oldest_first, new.astype(old.dtype)], axis))

        assert window.context is not None
        followed = jnp.roll(window.token, -1, 1)  # what follows the last token will be written with it
        ring = _make_ring(tape(knn.keys, window.context, 2), tape(knn.token, followed, 1))
    back = memory.xl + running[:, None] - 1 - jnp.arange(cached_tokens(config))
    previous = jnp.take_along_axis(window.token, jnp.maximum(back, 0), 1)
    slot, ring_slot = jnp.zeros((2,), jnp.int32)
    place = Place(slot, ring_slot, running, before, jnp.zeros_like(running))
    return Cache(tuple(map(placed, window.keys)), tuple(map(placed, window.values)), ring, previous, place)
