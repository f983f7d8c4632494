"""The two memories as tuples of arrays that go in and come out of a step.

XL memory (Dai et al. 2019, "Transformer-XL") keeps the keys and values of the last tokens in every layer. What leaves
it goes to the kNN memory (Wu et al. 2022, "Memorizing Transformers"): a ring a lane of everything heard before, of
which a token finds its nearest neighbours in one layer. Each slot holds the context of a token as its key, and beside
it the token that followed, so that the memory tells how the music went on (Khandelwal et al. 2020, "Generalization
through memorization"). Both memories know the song of every slot, and no token ever attends to another song's.
Letters of shapes are those of `shapes`.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from . import config as cfg
from .search import Hits, search
from .shapes import Array, Bool, Float, Int

NO_SONG = -1  # of an empty slot
HITS = "hits"  # the name of what a search found, for `jax.checkpoint`


class XLMemory(NamedTuple):
    """A window of the tape's last tokens, oldest first; keys and values are one array a layer."""

    keys: tuple[Float[Array, "B H W Dh"], ...]
    values: tuple[Float[Array, "B H W Dh"], ...]
    song: Int[Array, "B W"]
    token: Int[Array, "B W"]  # of no use where the song is NO_SONG
    context: Float[Array, "B H W Dh"] | None  # keys that leave for the kNN memory; none without one


class KNNMemory(NamedTuple):
    """A ring a lane; the newest entry is the one before `write`."""

    keys: Float[Array, "B H M Dh"]  # contexts (`context.Context`)
    token: Int[Array, "B M"]  # that followed each
    song: Int[Array, "B M"]
    write: Int[Array, " B"]  # the next slot to write


class Memory(NamedTuple):
    xl: XLMemory
    knn: KNNMemory | None


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
    if ring:
        context = empty(xl, config.model.dtype)
        keys, token = empty(ring, config.memory.dtype), jnp.zeros((lanes, ring), jnp.int32)
        knn = KNNMemory(keys, token, no_songs(ring), jnp.zeros(lanes, jnp.int32))
    return Memory(XLMemory(xl_keys, xl_values, no_songs(xl), jnp.zeros((lanes, xl), jnp.int32), context), knn)


def extend(xl: XLMemory, layer: int, keys: Array, values: Array) -> tuple[Array, Array]:
    """A layer's window with new keys and values [B H Q Dh] behind it."""
    return jnp.concatenate([xl.keys[layer], keys], 2), jnp.concatenate([xl.values[layer], values], 2)


def roll(window: XLMemory, knn: KNNMemory | None, segment: int) -> Memory:
    """The memories after a segment's end.

    Args:
        window: XL memory and the segment's T tokens behind it. Its oldest T slots leave for the ring in tape order, the
            others stay, so that the two memories never overlap.
    """
    stay = XLMemory(
        tuple(keys[:, :, segment:] for keys in window.keys),
        tuple(values[:, :, segment:] for values in window.values),
        window.song[:, segment:],
        window.token[:, segment:],
        None if window.context is None else window.context[:, :, segment:],
    )
    if knn is None:
        return Memory(stay, None)
    assert window.context is not None
    ring = knn.song.shape[1]

    def write(buffer: Array, leaving: Array, axis: int) -> Array:
        # The ring is a multiple of the segment, so a segment never wraps around its end.
        put = jax.vmap(lambda lane, new, slot: jax.lax.dynamic_update_slice_in_dim(lane, new, slot, axis))
        return put(buffer, jax.lax.stop_gradient(leaving).astype(buffer.dtype), knn.write)

    return Memory(
        stay,
        KNNMemory(
            write(knn.keys, window.context[:, :, :segment], 1),
            write(knn.token, window.token[:, 1 : segment + 1], 0),
            write(knn.song, window.song[:, :segment], 0),
            (knn.write + segment) % ring,
        ),
    )


def after_reading(knn: KNNMemory, result: Array) -> KNNMemory:
    """The same ring, for writing: the write index is made to depend on a float result of what was read.

    XLA writes an array in place only if it knows that all reads are over, else it copies it first, here the whole
    ring; on the CPU nothing but a dependency of data tells it. Nothing is added: no number is NaN and above 0.
    """
    first = jax.lax.stop_gradient(result.ravel()[0])
    return knn._replace(write=knn.write + (jnp.isnan(first) & (first > 0)).astype(knn.write.dtype))


class Heard(NamedTuple):
    """What a lane's ring holds of the song that runs: the `length` slots from `start` on, around the end."""

    keys: Float[Array, "B H M Dh"]
    token: Int[Array, "B M"]
    start: Int[Array, " B"]
    length: Int[Array, " B"]


def heard(knn: KNNMemory, song: Int[Array, " B"]) -> Heard:
    """The slots of the given song of each lane; they are the ring's newest."""
    length = jnp.sum((knn.song == song[:, None]) & (song[:, None] != NO_SONG), 1, dtype=jnp.int32)
    return Heard(knn.keys, knn.token, (knn.write - length) % knn.song.shape[1], length)


def retrieve(
    heard: Heard, queries: Float[Array, "B H Q Dh"], running: Bool[Array, "B Q"], top_k: int, backend: str
) -> Hits:
    """The nearest neighbours of every query that belongs to the running song. No gradient goes into the memory."""
    hits = search(*jax.lax.stop_gradient((queries, *heard)), top_k, backend)
    # The name lets a step that forgets its activations keep these: neither search nor ring is needed again.
    hits = jax.tree.map(partial(checkpoint_name, name=HITS), hits)
    return hits._replace(slots=jnp.where(running[:, None, :, None], hits.slots, -1))


def ages(heard: Heard, slots: Int[Array, "B H Q k"], xl: int) -> Int[Array, "B H Q k"]:
    """How many tokens before its query each hit stood on the tape (of no use where the slot is -1)."""
    newest = (heard.start + heard.length - 1)[:, None, None, None]
    within_ring = (newest - slots) % heard.keys.shape[2]
    return within_ring + xl + 1 + jnp.arange(slots.shape[2])[:, None]
