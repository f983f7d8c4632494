"""What sampling keeps of each row's song: both memories of training, in buffers in which nothing moves.

A token's keys and values go to the next slot of a circular window of XL + T slots, the same slot for all rows. Those of
the kNN layer also go to a ring of M more slots; or its context key does, and the token itself beside the key before it,
which it followed. Which slots are a row's current segment, XL memory and kNN memory depends on how many tokens the row
has read in and before the current segment, so the end of a segment costs nothing and every row has its own. Letters of
shapes are those of `shapes`; here B are rows, W = XL + T, and BH the heads of all rows in one dimension: XLA on the CPU
copies a buffer whole if it is written in one shape and read in another. A memory by alignment is the same as in
training between two chunks of tokens, and within one has room for them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .. import config as cfg
from ..shapes import Array, Bool, Float, Int
from . import context_keys
from . import memory as mem
from .alignment import AlignmentMemory, Reading, begin_reading, end_reading

PIECES = 4  # of a ring's keys


class CacheIndex(NamedTuple):
    """Where the next token goes, and what each row has read."""

    slot: Int[Array, ""]  # of the window
    ring_slot: Int[Array, ""]
    in_segment: Int[Array, " B"]  # tokens read of the current segment
    before_segment: Int[Array, " B"]  # tokens read before it, at most XL + M
    lag: Int[Array, " B"]  # tokens that other rows have read since this row stopped


class Ring(NamedTuple):
    """R = M + W slots."""

    keys: tuple[Float[Array, "BH piece Dh"], ...]  # in pieces, so that empty pieces are not read
    values: Float[Array, "BH R Dh"] | Int[Array, "B R"]  # those of the kNN layer; or the tokens that followed


class Cache(NamedTuple):
    keys: tuple[Float[Array, "BH W Dh"], ...]  # one array per layer, as are the values
    values: tuple[Float[Array, "BH W Dh"], ...]
    ring: Ring | None
    alignment: AlignmentMemory | Reading | None
    previous: Int[Array, "B n"]  # the tokens before the next one, newest first
    cache_index: CacheIndex


def visible_tokens(index: CacheIndex, xl: int) -> Int[Array, " B"]:
    """How many tokens before it the next one attends to in the window."""
    return index.in_segment + jnp.minimum(index.before_segment, xl)


def distances(index: CacheIndex, slots: int) -> Int[Array, " W"]:
    """How many tokens before the next one each slot of the window was written."""
    return (index.slot - jnp.arange(slots)) % slots


def valid_slots(index: CacheIndex, ring: Ring, xl: int) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
    """First slot and number of the tokens that have left XL memory; the slots wrap around the ring's end."""
    count = jnp.maximum(index.before_segment - xl, 0)
    return (index.ring_slot - visible_tokens(index, xl) - count) % ring.values.shape[1], count


def write(
    cache: Cache, layer: int, k: Float[Array, "B H Dh"], v: Float[Array, "B H Dh"], active: Bool[Array, " B"]
) -> Cache:
    """Writes the keys and values of the next token in a layer, in active rows."""
    keys, values, slot = list(cache.keys), list(cache.values), cache.cache_index.slot
    keys[layer], values[layer] = _put(keys[layer], slot, k, active), _put(values[layer], slot, v, active)
    return cache._replace(keys=tuple(keys), values=tuple(values))


def write_ring(
    ring: Ring,
    index: CacheIndex,
    key: Float[Array, "B H Dh"],
    value: Float[Array, "B H Dh"] | Int[Array, " B"],
    active: Bool[Array, " B"],
) -> Ring:
    """Writes the key and value of the next token in active rows; a token as value is written beside the key before."""
    pieces, first = [], 0
    for piece in ring.keys:
        slot = index.ring_slot - first
        here = (slot >= 0) & (slot < piece.shape[1])
        pieces.append(_put(piece, slot, key, active & here))
        first += piece.shape[1]
    if value.ndim == 3:
        return Ring(tuple(pieces), _put(ring.values, index.ring_slot, value, active))
    before = (index.ring_slot - 1) % ring.values.shape[1]
    followed = jnp.where(active, value, ring.values[:, before])
    return Ring(tuple(pieces), ring.values.at[:, before].set(followed))


def _put(buffer: Array, slot: Array, new: Float[Array, "B H Dh"], active: Bool[Array, " B"]) -> Array:
    old = jax.lax.dynamic_slice_in_dim(buffer, slot, 1, 1)
    new = jnp.where(active[:, None, None], new.astype(buffer.dtype), old.reshape(new.shape))
    return jax.lax.dynamic_update_slice_in_dim(buffer, new.reshape(old.shape), slot, 1)


def advance(cache: Cache, token: Int[Array, " B"], active: Bool[Array, " B"], config: cfg.Config) -> Cache:
    """The cache after a token that has been written in every layer."""
    segment, memory, index = config.data.segment, config.memory, cache.cache_index
    full = index.in_segment + 1 == segment
    in_segment = jnp.where(full, 0, index.in_segment + 1)
    before_segment = jnp.minimum(index.before_segment + segment * full, memory.xl + memory.knn)
    previous = jnp.concatenate([token[:, None], cache.previous], 1)[:, : cache.previous.shape[1]]
    return cache._replace(
        previous=jnp.where(active[:, None], previous, cache.previous),
        cache_index=CacheIndex(
            (index.slot + 1) % (memory.xl + segment),
            (index.ring_slot + 1) % (memory.knn + memory.xl + segment),
            jnp.where(active, in_segment, index.in_segment),
            jnp.where(active, before_segment, index.before_segment),
            index.lag + ~active,
        ),
    )


def begin_tokens(cache: Cache, most: int) -> Cache:
    """Makes room for so many tokens."""
    if cache.alignment is None:
        return cache
    assert isinstance(cache.alignment, AlignmentMemory)
    return cache._replace(alignment=begin_reading(cache.alignment, most))


def end_tokens(cache: Cache) -> Cache:
    """The same cache without the room that is left."""
    if cache.alignment is None:
        return cache
    assert isinstance(cache.alignment, Reading)
    return cache._replace(alignment=end_reading(cache.alignment))


def align(cache: Cache) -> Cache:
    """Moves each row's last token to just before the next slot, so that rows that stopped may continue."""
    index, ring = cache.cache_index, cache.ring
    if ring is not None:
        ring = _make_ring(*(_move(x, index.lag) for x in (jnp.concatenate(ring.keys, 1), ring.values)))
    keys, values = (tuple(_move(x, index.lag) for x in layers) for layers in (cache.keys, cache.values))
    index = index._replace(lag=jnp.zeros_like(index.lag))
    return Cache(keys, values, ring, cache.alignment, cache.previous, index)


def _move(buffer: Array, by: Int[Array, " B"]) -> Array:
    """Rolls each row of a buffer [BH slots Dh] or [B slots] by its number of slots."""
    heads = len(buffer) // len(by)
    return jax.vmap(lambda head, by: jnp.roll(head, by, 0))(buffer, jnp.repeat(by, heads))


def select_rows(cache: Cache, rows: Int[Array, " n"]) -> Cache:
    """The cache of these rows; a row may be selected several times."""
    n_rows = len(cache.previous)

    def selected(x: Array) -> Array:
        if x.ndim == 0:
            return x
        heads = len(x) // n_rows  # 1 where there are none
        return x.reshape(n_rows, heads, *x.shape[1:])[rows].reshape(len(rows) * heads, *x.shape[1:])

    return jax.tree.map(selected, cache)


def cached_tokens(config: cfg.Config) -> int:
    """How many tokens before the next one are needed."""
    return max(config.model.previous_tokens, config.memory.has_context_keys * (context_keys.LENGTH - 1))


def _make_ring(keys: Float[Array, "BH R Dh"], values: Float[Array, "BH R Dh"] | Int[Array, "B R"]) -> Ring:
    return Ring(tuple(jnp.array_split(keys, PIECES, 1)), values)


def from_segments(
    window: mem.XLMemory,
    knn: mem.KNNMemory | None,
    alignment: AlignmentMemory | None,
    in_segment: Array,
    config: cfg.Config,
) -> Cache:
    """The cache after segments that were read as in training.

    Args:
        window: XL memory with the last segment appended.
        in_segment: Int[B], tokens of the last segment that belong to the song, fewer than T; the rest is padding.
    """
    memory = config.memory
    before = jnp.sum(window.song[:, : memory.xl] != mem.NO_SONG, 1, dtype=jnp.int32)
    if knn is not None:
        before = before + jnp.sum(knn.song != mem.NO_SONG, 1, dtype=jnp.int32)

    def placed(slots: Array) -> Array:
        """A row's slots, [B H slots Dh] or [B slots], rolled so that the next token goes to slot 0."""
        return _move(
            slots.reshape(-1, *slots.shape[2:]) if slots.ndim == 4 else slots, config.data.segment - in_segment
        )

    ring = None
    if knn is not None:

        def in_order(old: Array, new: Array) -> Array:
            axis = mem.slot_axis(old)
            oldest_first = jax.vmap(lambda row, write: jnp.roll(row, -write, axis - 1))(old, knn.write)
            return placed(jnp.concatenate([oldest_first, new.astype(old.dtype)], axis))

        new_keys, new_values = mem.entries(window, memory.knn_layer)  # what follows the last token is written with it
        ring = _make_ring(in_order(knn.keys, new_keys), in_order(knn.values, new_values))
    back = memory.xl + in_segment[:, None] - 1 - jnp.arange(cached_tokens(config))
    previous = jnp.take_along_axis(window.token, jnp.maximum(back, 0), 1)
    slot, ring_slot = jnp.zeros((2,), jnp.int32)
    index = CacheIndex(slot, ring_slot, in_segment, before, jnp.zeros_like(in_segment))
    keys, values = (tuple(map(placed, layers)) for layers in (window.keys, window.values))
    return Cache(keys, values, ring, alignment, previous, index)
