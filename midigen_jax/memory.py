"""The two memories as tuples of arrays that go in and come out of a step.

XL memory (Dai et al. 2019, "Transformer-XL") keeps the keys and values of the last tokens in every layer. What leaves
it goes to the kNN memory (Wu et al. 2022, "Memorizing Transformers"): one layer's keys and values of everything
heard before, in a ring a lane, of which a query attends to its nearest neighbours. Both know the song of every
slot, and no token ever attends to another song's. Letters of shapes are those of `shapes`.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.buffer_callback import buffer_callback

from . import config as cfg
from .cli import InputError
from .shapes import Array, Float, Int

NO_SONG = -1  # of an empty slot


class XLMemory(NamedTuple):
    """A window of the tape's last tokens, oldest first."""

    keys: tuple[Float[Array, "B H W Dh"], ...]  # one a layer
    values: tuple[Float[Array, "B H W Dh"], ...]
    song: Int[Array, "B W"]


class KNNMemory(NamedTuple):
    """A ring a lane; the newest entry is the one before `write`."""

    keys: Float[Array, "B H M Dh"]  # normalised
    values: Float[Array, "B H M Dh"]
    song: Int[Array, "B M"]
    write: Int[Array, " B"]  # the next slot to write


class Memory(NamedTuple):
    xl: XLMemory
    knn: KNNMemory | None


class Hits(NamedTuple):
    """What a search found; a slot of -1 is no hit."""

    keys: Float[Array, "B H T k Dh"]
    values: Float[Array, "B H T k Dh"]
    slots: Int[Array, "B H T k"]


def init_memory(config: cfg.Config, lanes: int) -> Memory:
    """Empty memories. Kept in the computation's dtype."""
    heads, head_width = config.model.heads, config.model.width // config.model.heads
    dtype = jnp.dtype(config.model.dtype)

    def empty(slots: int) -> Array:
        return jnp.zeros((lanes, heads, slots, head_width), dtype)

    def no_songs(slots: int) -> Array:
        return jnp.full((lanes, slots), NO_SONG, jnp.int32)

    layers, xl, ring = range(config.model.layers), config.memory.xl, config.memory.knn
    knn = KNNMemory(empty(ring), empty(ring), no_songs(ring), jnp.zeros(lanes, jnp.int32)) if ring else None
    return Memory(XLMemory(tuple(empty(xl) for _ in layers), tuple(empty(xl) for _ in layers), no_songs(xl)), knn)


def extend(xl: XLMemory, layer: int, keys: Array, values: Array, at: Array | None) -> tuple[Array, Array]:
    """A layer's window with new keys and values [B H Q Dh]: appended, or written at the slots `at` [B]."""
    if at is None:
        return jnp.concatenate([xl.keys[layer], keys], 2), jnp.concatenate([xl.values[layer], values], 2)
    put = jax.vmap(lambda window, new, slot: jax.lax.dynamic_update_slice_in_dim(window, new, slot, 1))
    return put(xl.keys[layer], keys, at), put(xl.values[layer], values, at)


def extend_songs(xl: XLMemory, song: Int[Array, "B Q"], at: Array | None) -> Int[Array, "B W"]:
    if at is None:
        return jnp.concatenate([xl.song, song], 1)
    put = jax.vmap(lambda window, new, slot: jax.lax.dynamic_update_slice_in_dim(window, new, slot, 0))
    return put(xl.song, song, at)


def roll(window: XLMemory, knn: KNNMemory | None, segment: int, knn_layer: int) -> Memory:
    """The memories after a segment's end.

    Args:
        window: XL memory and the segment's T tokens behind it. Its oldest T slots leave for the ring in tape order, the
            others stay, so that the two memories never overlap.
        knn_layer: index of the layer whose keys and values the ring keeps, from 0.
    """
    stay = XLMemory(
        tuple(keys[:, :, segment:] for keys in window.keys),
        tuple(values[:, :, segment:] for values in window.values),
        window.song[:, segment:],
    )
    if knn is None:
        return Memory(stay, None)
    ring = knn.song.shape[1]

    def write(buffer: Array, leaving: Array, axis: int) -> Array:
        # The ring is a multiple of the segment, so a segment never wraps around its end.
        put = jax.vmap(lambda lane, new, slot: jax.lax.dynamic_update_slice_in_dim(lane, new, slot, axis))
        return put(buffer, jax.lax.stop_gradient(leaving), knn.write)

    return Memory(
        stay,
        KNNMemory(
            write(knn.keys, window.keys[knn_layer][:, :, :segment], 1),
            write(knn.values, window.values[knn_layer][:, :, :segment], 1),
            write(knn.song, window.song[:, :segment], 0),
            (knn.write + segment) % ring,
        ),
    )


def after_reading(knn: KNNMemory, result: Array) -> KNNMemory:
    """The same ring, for writing: the write index is made to depend on a float result of what was read.

    XLA writes an array in place only if it knows that all reads are over, else it copies it first, here the whole
    ring; on the CPU nothing but a dependency of data tells it. No finite result is as large, so nothing is added.
    """
    nothing = (jax.lax.stop_gradient(result.ravel()[0]) > 3e38).astype(knn.write.dtype)
    return knn._replace(write=knn.write + nothing)


def song_range(knn: KNNMemory, song: Int[Array, " B"]) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
    """First slot and count of the slots that hold the given song of each lane; they are the ring's newest."""
    count = jnp.sum((knn.song == song[:, None]) & (song[:, None] != NO_SONG), 1, dtype=jnp.int32)
    return (knn.write - count) % knn.song.shape[1], count


def retrieve(
    knn: KNNMemory, queries: Float[Array, "B H T Dh"], song: Int[Array, "B T"], top_k: int, backend: str
) -> Hits:
    """The nearest neighbours of every query among its song's slots. No gradient goes into the memory.

    Only the song that was running at the segment's start, the first token's, can be in the ring.
    """
    queries = jax.lax.stop_gradient(queries)
    start, count = song_range(knn, song[:, 0])
    slots = search(queries, knn.keys, start, count, top_k, backend)
    slots = jnp.where((song == song[:, :1])[:, None, :, None], slots, -1)

    def gather(buffer: Array) -> Array:
        rows = jax.vmap(jax.vmap(lambda entries, ids: entries.at[ids].get(mode="clip")))(buffer, slots)
        return jax.lax.stop_gradient(rows)

    return Hits(gather(knn.keys), gather(knn.values), slots)


def ages(knn: KNNMemory, slots: Int[Array, "B H T k"], xl: int) -> Int[Array, "B H T k"]:
    """How many tokens before its query each hit stood on the tape (of no use where the slot is -1)."""
    within_ring = (knn.write[:, None, None, None] - 1 - slots) % knn.song.shape[1]
    return within_ring + xl + 1 + jnp.arange(slots.shape[2])[:, None]


def search(
    queries: Float[Array, "B H T Dh"],
    keys: Float[Array, "B H M Dh"],
    start: Int[Array, " B"],
    count: Int[Array, " B"],
    top_k: int,
    backend: str,
) -> Int[Array, "B H T k"]:
    """Slots of the `top_k` keys with the largest inner product, best first, -1 where there are fewer.

    A pure function of its arguments: lane b is searched in the `count[b]` slots from `start[b]` on, around the end.

    Args:
        backend: `faiss` (exact search on the host, through a callback), `xla` (exact, on the device) or `auto`.
    """
    return {"faiss": _search_faiss, "xla": _search_xla}[resolve_backend(backend)](queries, keys, start, count, top_k)


@lru_cache
def resolve_backend(backend: str) -> str:
    """What `auto` stands for here: Faiss on the CPU where it is installed, else XLA."""
    if backend == "faiss" and jax.default_backend() != "cpu":
        raise InputError("memory.backend=faiss searches on the CPU only as yet; use memory.backend=xla")
    if backend != "auto":
        return backend
    return "faiss" if jax.default_backend() == "cpu" and _faiss() is not None else "xla"


@lru_cache
def _faiss() -> ModuleType | None:
    try:
        import faiss
    except ImportError:
        return None
    return faiss


@lru_cache
def _search_threads() -> ThreadPoolExecutor:
    """Threads that search a lane's heads side by side, each by itself.

    Faiss's own threads wait for each other at a barrier after every call, while XLA's keep the cores busy: that
    took longer than the search.
    """
    faiss = _faiss()
    assert faiss is not None
    return ThreadPoolExecutor(os.cpu_count(), "faiss", initializer=faiss.omp_set_num_threads, initargs=(1,))


def _search_faiss(queries: Array, keys: Array, start: Array, count: Array, top_k: int) -> Array:
    faiss = _faiss()
    if faiss is None:
        raise InputError('memory.backend=faiss needs Faiss: pip install "midigen_jax[cpu]", or [cuda12] for a GPU')

    # The callback works on the device's own buffers and must not call JAX.
    def on_host(_, out, queries, keys, start, count):  # type: ignore[no-untyped-def]
        slots, queries, keys = np.asarray(out), np.asarray(queries), np.asarray(keys)
        start, count = np.asarray(start).tolist(), np.asarray(count).tolist()
        _, heads, ring, _ = keys.shape

        def search_head(lane: int, head: int) -> None:
            first, n = start[lane], count[lane]
            entries = keys[lane, head, first : first + n]
            if first + n > ring:
                entries = np.concatenate([entries, keys[lane, head, : first + n - ring]])
            _, found = faiss.knn(
                np.asarray(queries[lane, head], np.float32),
                np.asarray(entries, np.float32),
                top_k,
                metric=faiss.METRIC_INNER_PRODUCT,
            )
            slots[lane, head] = np.where(found < 0, -1, (found + first) % ring)

        filled = [lane for lane, n in enumerate(count) if n]
        slots[[lane for lane, n in enumerate(count) if not n]] = -1
        tasks = [(lane, head) for lane in filled for head in range(heads)]
        list(_search_threads().map(lambda task: search_head(*task), tasks))

    shape = jax.ShapeDtypeStruct((*queries.shape[:3], top_k), jnp.int32)
    return buffer_callback(on_host, shape)(queries, keys, start, count)


def _search_xla(queries: Array, keys: Array, start: Array, count: Array, top_k: int) -> Array:
    ring = keys.shape[2]

    def one_lane(lane: tuple[Array, Array, Array, Array]) -> Array:
        queries, keys, start, count = lane
        scores = jnp.einsum("htd,hmd->htm", queries, keys, precision="highest", preferred_element_type=jnp.float32)
        valid = (jnp.arange(ring) - start) % ring < count
        best, slots = jax.lax.top_k(jnp.where(valid, scores, -jnp.inf), min(top_k, ring))
        slots = jnp.where(jnp.isneginf(best), -1, slots)
        return jnp.pad(slots, ((0, 0), (0, 0), (0, top_k - slots.shape[2])), constant_values=-1)

    # One lane after the other: the scores of all at once would be B H T M floats.
    return jax.lax.map(one_lane, (queries, keys, start, count))
