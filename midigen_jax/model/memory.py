"""The decoder's memories: tuples of arrays that go into a step and come out of it.

XL memory (Dai et al. 2019, "Transformer-XL") keeps the keys and values of the last tokens in every layer. Tokens that
leave it go to the kNN memory (Wu et al. 2022, "Memorizing Transformers"): one ring buffer per lane, whose nearest
neighbours one layer retrieves. A slot of the ring holds the key and value of a token in that layer; or its context key
and, as the value, the token that followed it, so that the memory predicts how the music continues (Khandelwal et al.
2020, "Generalization through Memorization"). The memory by alignment (`alignment`) keeps the tokens themselves. All
know whose song they hold, and no token ever attends to another song's. Letters of shapes are those of `shapes`.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from .. import config as cfg
from ..shapes import Array, Bool, Float, Int
from ..vocab import NO_SONG
from .alignment import AlignmentMemory, init_alignment
from .search import Hits, search

HITS = "hits"  # the name of the search results, for `jax.checkpoint`


class XLMemory(NamedTuple):
    """A window of a lane's last tokens, oldest first; keys and values are one array per layer."""

    keys: tuple[Float[Array, "B H W Dh"], ...]
    values: tuple[Float[Array, "B H W Dh"], ...]
    song: Int[Array, "B W"]
    token: Int[Array, "B W"]  # undefined where the song is NO_SONG
    context: Float[Array, "B H W Dh"] | None  # context keys, on their way to the kNN memory; None if it has none


class KNNMemory(NamedTuple):
    """A ring buffer per lane; the newest entry is the one before `write`."""

    keys: Float[Array, "B H M Dh"]  # those of the layer, of length 1; or context keys (`context_keys.ContextKeys`)
    values: Float[Array, "B H M Dh"] | Int[Array, "B M"]  # those of the layer; or the token that followed
    song: Int[Array, "B M"]
    write: Int[Array, " B"]  # the next slot to write


class Memory(NamedTuple):
    xl: XLMemory
    knn: KNNMemory | None
    alignment: AlignmentMemory | None


def init_memory(config: cfg.Config, lanes: int) -> Memory:
    """Empty memories: the XL memory in the computation's dtype, the ring in its own."""
    heads, head_width = config.model.heads, config.model.width // config.model.heads

    def empty(slots: int, dtype: str) -> Array:
        return jnp.zeros((lanes, heads, slots, head_width), jnp.dtype(dtype))

    def no_songs(slots: int) -> Array:
        return jnp.full((lanes, slots), NO_SONG, jnp.int32)

    layers, xl, ring = range(config.model.layers), config.memory.xl, config.memory.knn
    xl_keys, xl_values = (tuple(empty(xl, config.model.dtype) for _ in layers) for _ in range(2))
    knn = context = None
    if config.memory.has_keys:
        keys, values = (empty(ring, config.memory.dtype) for _ in range(2))
        if config.memory.has_context_keys:
            context, values = empty(xl, config.model.dtype), jnp.zeros((lanes, ring), jnp.int32)
        knn = KNNMemory(keys, values, no_songs(ring), jnp.zeros(lanes, jnp.int32))
    xl_memory = XLMemory(xl_keys, xl_values, no_songs(xl), jnp.zeros((lanes, xl), jnp.int32), context)
    return Memory(xl_memory, knn, init_alignment(lanes, ring) if config.memory.aligns else None)


def extend(xl: XLMemory, layer: int, keys: Array, values: Array) -> tuple[Array, Array]:
    """A layer's window with new keys and values [B H Q Dh] appended."""
    return jnp.concatenate([xl.keys[layer], keys], 2), jnp.concatenate([xl.values[layer], values], 2)


def entries(window: XLMemory, knn_layer: int) -> tuple[Array, Array]:
    """What the kNN memory stores of each slot of the window: its keys and values.

    Which token follows the last slot is not known yet: the first one stands in.
    """
    if window.context is None:
        return window.keys[knn_layer - 1], window.values[knn_layer - 1]
    return window.context, jnp.roll(window.token, -1, 1)


def slot_axis(x: Array) -> int:
    """Of an array [B H slots Dh] or [B slots]."""
    return 2 if x.ndim == 4 else 1


def roll(window: XLMemory, knn: KNNMemory | None, segment: int, knn_layer: int) -> tuple[XLMemory, KNNMemory | None]:
    """XL memory and the ring after a segment.

    Args:
        window: XL memory with the segment's T tokens appended. Its oldest T slots move to the ring in order and the
            others stay, so that the two memories never overlap.
        knn_layer: counted from 1.
    """
    stay = XLMemory(
        tuple(keys[:, :, segment:] for keys in window.keys),
        tuple(values[:, :, segment:] for values in window.values),
        window.song[:, segment:],
        window.token[:, segment:],
        None if window.context is None else window.context[:, :, segment:],
    )
    if knn is None:
        return stay, None

    def write(buffer: Array, slots: Array) -> Array:
        # The ring is a multiple of the segment, so a segment never wraps around its end.
        axis = slot_axis(buffer)
        put = jax.vmap(lambda lane, new, slot: jax.lax.dynamic_update_slice_in_dim(lane, new, slot, axis - 1))
        leaving = jax.lax.stop_gradient(jax.lax.slice_in_dim(slots, 0, segment, axis=axis))
        return put(buffer, leaving.astype(buffer.dtype), knn.write)

    new = (*entries(window, knn_layer), window.song)
    keys, values, song = map(write, (knn.keys, knn.values, knn.song), new)
    return stay, KNNMemory(keys, values, song, (knn.write + segment) % knn.song.shape[1])


def write_after(knn: KNNMemory, result: Array) -> KNNMemory:
    """The same ring, to be written only after `result`, a float array computed from it.

    XLA updates an array in place only if it knows that all reads are done; otherwise it copies the whole ring first. On
    the CPU only a data dependency tells it so: the write index is made to depend on the result. Nothing is added to
    it, since no number is both NaN and above 0.
    """
    first = jax.lax.stop_gradient(result.ravel()[0])
    return knn._replace(write=knn.write + (jnp.isnan(first) & (first > 0)).astype(knn.write.dtype))


class ValidSlots(NamedTuple):
    """A lane's ring and which slots belong to the current song: `length` of them from `start`, wrapping around."""

    keys: Float[Array, "B H M Dh"]
    values: Float[Array, "B H M Dh"] | Int[Array, "B M"]
    start: Int[Array, " B"]
    length: Int[Array, " B"]


def valid_slots(knn: KNNMemory, song: Int[Array, " B"]) -> ValidSlots:
    """The slots of each lane's given song; they are the newest of the ring."""
    length = jnp.sum((knn.song == song[:, None]) & (song[:, None] != NO_SONG), 1, dtype=jnp.int32)
    return ValidSlots(knn.keys, knn.values, (knn.write - length) % knn.song.shape[1], length)


def retrieve(
    slots: ValidSlots, queries: Float[Array, "B H Q Dh"], may_search: Bool[Array, "B Q"], top_k: int, backend: str
) -> Hits:
    """The nearest neighbours of every query that may search. No gradient flows into the memory."""
    hits = search(*jax.lax.stop_gradient((queries, *slots)), top_k, backend)
    # Named so that a step that recomputes its activations keeps the hits: it needs neither the search nor the ring.
    hits = jax.tree.map(partial(checkpoint_name, name=HITS), hits)
    return hits._replace(slots=jnp.where(may_search[:, None, :, None], hits.slots, -1))


def ages(valid: ValidSlots, slots: Int[Array, "B H Q k"], xl: int) -> Int[Array, "B H Q k"]:
    """How many tokens before its query each hit was read; undefined where the slot is -1."""
    newest = (valid.start + valid.length - 1)[:, None, None, None]
    within_ring = (newest - slots) % valid.keys.shape[2]
    return within_ring + xl + 1 + jnp.arange(slots.shape[2])[:, None]
