"""The search of the kNN memory: a pure function of queries, keys and ranges of slots, with two backends.

`faiss` is a brute-force search that the compiled program calls: on the CPU through a host callback; on a GPU on the
program's stream, in a float32 copy of the keys. `xla` is part of the program. Both are exact, except `xla` on a TPU,
which finds 95 % of the neighbours in a fraction of the time. Letters of shapes are those of `shapes`.
"""

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.buffer_callback import buffer_callback

from ..errors import InputError
from ..shapes import Array, Bool, Float, Int

EXCLUDED = 1e6  # subtracted from the score of a slot that is not searched
BLOCK = 32  # slots per block: `top_k` looks only at the best of each at first
SCORES = 2**25  # float32 scores in memory at once, unless those of one head are more


class Hits(NamedTuple):
    """The results of a search, best first. A slot of -1 is no hit; its key and value are undefined."""

    keys: Float[Array, "B H Q k Dh"]
    values: Float[Array, "B H Q k Dh"] | Int[Array, "B H Q k"]  # those of a layer, or tokens
    slots: Int[Array, "B H Q k"]

    @property
    def found(self) -> Bool[Array, "B H Q k"]:
        return self.slots >= 0


def search(
    queries: Float[Array, "B H Q Dh"],
    keys: Float[Array, "B H M Dh"],
    values: Float[Array, "B H M Dh"] | Int[Array, "B M"],
    start: Int[Array, " B"],
    count: Int[Array, " B"],
    top_k: int,
    backend: str,
) -> Hits:
    """The `top_k` keys with the largest inner products, and their values.

    A pure function of its arguments: lane b is searched in the `count[b]` slots from `start[b]` on, wrapping around.
    """
    if resolve_backend(backend) == "xla":
        return _fetch(keys, values, _search_xla(queries, keys, start, count, top_k))
    if _faiss() is None:
        raise InputError('memory.backend=faiss needs Faiss: pip install "midigen_jax[cpu]", or [cuda12] for a GPU')
    if jax.default_backend() == "cpu":
        return _search_faiss_cpu(queries, keys, values, start, count, top_k)
    return _fetch(keys, values, _search_faiss_gpu(queries, keys, start, count, top_k))


@lru_cache
def resolve_backend(backend: str) -> str:
    """The backend that `auto` means here: Faiss on the CPU where it is installed, else XLA."""
    if backend == "faiss" and jax.default_backend() == "tpu":
        raise InputError("memory.backend=faiss: Faiss knows no TPU; use memory.backend=xla")
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


@contextlib.contextmanager
def _matrix_products() -> Iterator[None]:
    """Lets Faiss search by matrix products, as it does by default only for 128,000 queries or more.

    For a segment's few hundred queries that is three times as fast too.
    """
    settings: Any = _faiss().cvar  # type: ignore[union-attr]
    before = settings.distance_compute_blas_threshold
    settings.distance_compute_blas_threshold = 1
    try:
        yield
    finally:
        settings.distance_compute_blas_threshold = before


def _fetch(keys: Array, values: Array, slots: Array) -> Hits:
    gather = jax.vmap(lambda entries, ids: entries.at[ids].get(mode="clip"))
    by_head = jax.vmap(gather)
    return Hits(by_head(keys, slots), (by_head if values.ndim == 4 else gather)(values, slots), slots)


@lru_cache
def _search_threads() -> ThreadPoolExecutor:
    """Threads that each search one head at a time.

    Faiss's own threads wait at a barrier after every call while XLA's threads keep the cores busy, which took longer
    than the search.
    """
    faiss = _faiss()
    assert faiss is not None
    return ThreadPoolExecutor(os.cpu_count(), "faiss", initializer=faiss.omp_set_num_threads, initargs=(1,))


def _search_faiss_cpu(queries: Array, keys: Array, values: Array, start: Array, count: Array, top_k: int) -> Hits:
    faiss: Any = _faiss()

    # The callback works on XLA's own buffers and must not call JAX. It also copies the hits, since NumPy copies rows
    # several times faster than XLA gathers them on the CPU.
    def on_host(_, out, *arrays):  # type: ignore[no-untyped-def]
        found_keys, found_values, slots = (np.asarray(x) for x in out)
        queries, keys, values, start, count = (np.asarray(x) for x in arrays)
        if values.ndim == 2:
            values = np.broadcast_to(values[:, None], keys.shape[:3])
        start, count = start.tolist(), count.tolist()
        ring = keys.shape[2]

        def search_head(lane: int, head: int) -> None:
            first, n = start[lane], count[lane]
            if n == 0:
                slots[lane, head] = -1
                found_keys[lane, head] = found_values[lane, head] = 0
                return
            entries = keys[lane, head, first : first + n]
            if first + n > ring:
                entries = np.concatenate([entries, keys[lane, head, : first + n - ring]])
            _, found = faiss.knn(
                np.asarray(queries[lane, head], np.float32),
                np.asarray(entries, np.float32),
                top_k,
                metric=faiss.METRIC_INNER_PRODUCT,
            )
            slots[lane, head] = found = np.where(found < 0, -1, (found + first) % ring)
            np.take(keys[lane, head], found, axis=0, out=found_keys[lane, head], mode="clip")
            np.take(values[lane, head], found, axis=0, out=found_values[lane, head], mode="clip")

        tasks = [(lane, head) for lane in range(len(count)) for head in range(keys.shape[1])]
        with _matrix_products():
            list(_search_threads().map(lambda task: search_head(*task), tasks))

    shape = (*queries.shape[:3], top_k)
    found_keys = jax.ShapeDtypeStruct((*shape, keys.shape[3]), keys.dtype)
    found_values = jax.ShapeDtypeStruct((*shape, *values.shape[3:]), values.dtype)
    out = found_keys, found_values, jax.ShapeDtypeStruct(shape, jnp.int32)
    return Hits(*buffer_callback(on_host, out)(queries, keys, values, start, count))


@lru_cache
def _gpu_resources(device: int) -> Any:
    faiss: Any = _faiss()
    if not hasattr(faiss, "StandardGpuResources"):
        raise InputError('memory.backend=faiss on a GPU needs its Faiss: pip install "midigen_jax[cuda12]"')
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(256 << 20)  # the default of 1.5 GB is not free: JAX has allocated it
    return resources


def _search_faiss_gpu(queries: Array, keys: Array, start: Array, count: Array, top_k: int) -> Array:
    faiss: Any = _faiss()
    # The host does not know the ranges, and asking would make it wait. An extra coordinate (four, for alignment) gives
    # all other slots a very low score.
    excluded = jnp.where(in_range(keys.shape[2], start, count), 0.0, -EXCLUDED)[:, None, :, None]
    keys = _with_coordinates(keys, jnp.broadcast_to(excluded, (*keys.shape[:3], 1)))
    queries = _with_coordinates(queries, jnp.ones((*queries.shape[:3], 1)))
    k = min(top_k, keys.shape[2])

    # Faiss searches the program's buffers on its stream, so nothing waits here.
    def on_device(context, out, queries, keys):  # type: ignore[no-untyped-def]
        lanes, heads, n_keys, width = keys.shape
        device = queries.__dlpack_device__()[1]
        resources = _gpu_resources(device)
        resources.setDefaultStream(device, faiss.cast_integer_to_cudastream_t(context.stream))
        addresses = [buffer.__cuda_array_interface__["data"][0] for buffer in (queries, keys, *out)]
        rows = (queries.shape[2] * width, n_keys * width, queries.shape[2] * k, queries.shape[2] * k)
        search = faiss.GpuDistanceParams()
        search.metric, search.k, search.dims, search.device = faiss.METRIC_INNER_PRODUCT, k, width, device
        search.numVectors, search.numQueries = n_keys, queries.shape[2]
        search.outIndicesType = faiss.IndicesDataType_I32
        for head in range(lanes * heads):
            at_queries, at_keys, at_scores, at_slots = (
                address + 4 * n * head for address, n in zip(addresses, rows, strict=True)
            )
            search.queries, search.vectors = map(faiss.cast_integer_to_float_ptr, (at_queries, at_keys))
            search.outDistances = faiss.cast_integer_to_float_ptr(at_scores)
            search.outIndices = faiss.cast_integer_to_int_ptr(at_slots)
            faiss.bfKnn(resources, search)

    shape = (*queries.shape[:3], k)
    out = (jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape, jnp.int32))
    scores, slots = buffer_callback(on_device, out)(queries, keys)
    return _padded(jnp.where(scores > -EXCLUDED / 2, slots, -1), top_k)


def _with_coordinates(x: Array, column: Array) -> Array:
    """In float32, with this coordinate and three zeros appended."""
    return jnp.pad(jnp.concatenate([x.astype(jnp.float32), column], -1), ((0, 0), (0, 0), (0, 0), (0, 3)))


def in_range(ring: int, start: Int[Array, "*B"], count: Int[Array, "*B"]) -> Bool[Array, "*B M"]:
    """Which slots are among the `count` from `start` on, wrapping around."""
    return (jnp.arange(ring) - start[..., None]) % ring < count[..., None]


def _padded(slots: Array, top_k: int) -> Array:
    """Adds columns of -1 where a ring has fewer than `top_k` slots."""
    widths = [(0, 0)] * (slots.ndim - 1) + [(0, top_k - slots.shape[-1])]
    return jnp.pad(slots, widths, constant_values=-1)


def _search_xla(queries: Array, keys: Array, start: Array, count: Array, top_k: int) -> Array:
    n_queries, ring = queries.shape[2], keys.shape[2]
    best_of = jax.lax.approx_max_k if jax.default_backend() == "tpu" else jax.lax.top_k

    def one_lane(lane: tuple[Array, Array, Array]) -> Array:
        queries, keys, valid = lane

        def one_head(head: tuple[Array, Array]) -> Array:
            # In the larger of two dtypes, as Faiss does: rounded queries would find other keys.
            scores = jnp.einsum("td,md->tm", *head, precision="highest", preferred_element_type=jnp.float32)
            best, slots = best_of(jnp.where(valid, scores, -jnp.inf), min(top_k, ring))
            return _padded(jnp.where(jnp.isneginf(best), -1, slots), top_k)

        return jax.lax.map(one_head, (queries, keys), batch_size=max(SCORES // (n_queries * ring), 1))

    # One lane after the other, and few heads at a time for a large ring: all scores at once are B H Q M floats.
    return jax.lax.map(one_lane, (queries, keys, in_range(ring, start, count)))


def top_k(scores: Float[Array, "BH M"], k: int) -> tuple[Float[Array, "BH k"], Int[Array, "BH k"]]:
    """The k best scores and their slots: all are in the k blocks with the largest maxima, so that few need sorting."""
    heads = len(scores)
    blocks = jnp.pad(scores, ((0, 0), (0, -scores.shape[1] % BLOCK)), constant_values=-jnp.inf)
    blocks = blocks.reshape(heads, -1, BLOCK)
    if blocks.shape[1] <= k:
        best, slots = jax.lax.top_k(scores, k)
        return best, slots
    _, which = jax.lax.top_k(blocks.max(-1), k)
    candidates = jnp.take_along_axis(blocks, which[..., None], 1).reshape(heads, -1)
    best, index = jax.lax.top_k(candidates, k)
    return best, jnp.take_along_axis(which, index // BLOCK, 1) * BLOCK + index % BLOCK
