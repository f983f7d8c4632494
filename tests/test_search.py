import jax
import jax.numpy as jnp
import numpy as np
import pytest

from midigen_jax.search import resolve_backend, search

BACKENDS = ["faiss", "xla"]


def reference_search(queries, keys, start, count, top_k):
    """Plain NumPy: slots by falling inner product among the valid ones, -1 where there are fewer."""
    lanes, heads, ring, _ = keys.shape
    slots = np.full((*queries.shape[:3], top_k), -1)
    for b in range(lanes):
        valid = (start[b] + np.arange(count[b])) % ring
        for h in range(heads):
            scores = queries[b, h] @ keys[b, h, valid].T
            best = np.argsort(-scores, -1)[:, :top_k]
            slots[b, h, :, : best.shape[1]] = valid[best]
    return slots


@pytest.mark.parametrize("backend", BACKENDS)
def test_search_agrees_with_numpy(backend):
    random = np.random.default_rng(0)
    queries = random.normal(size=(4, 2, 5, 8)).astype(np.float32)
    keys = random.normal(size=(4, 2, 32, 8)).astype(np.float32)
    start, count = np.array([3, 30, 0, 9], np.int32), np.array([10, 20, 0, 3], np.int32)
    expected = reference_search(queries, keys, start, count, 6)
    hits = jax.jit(search, static_argnums=(5, 6))(queries, keys, -keys, start, count, 6, backend)
    assert (hits.slots == expected).all()
    found = expected >= 0
    rows = np.take_along_axis(keys[:, :, None], np.maximum(expected, 0)[..., None], 3)
    assert (hits.keys[found] == rows[found]).all()
    assert (hits.values[found] == -rows[found]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_search_under_scan_and_in_bfloat16(backend):
    random = np.random.default_rng(1)
    keys = jnp.asarray(random.normal(size=(1, 1, 16, 4)), jnp.bfloat16)
    queries = jnp.asarray(random.normal(size=(3, 1, 1, 2, 4)), jnp.bfloat16)
    start, count = jnp.array([0]), jnp.array([16])

    def one(_, q):
        return None, search(q, keys, keys, start, count, 1, backend).slots

    _, slots = jax.jit(lambda: jax.lax.scan(one, None, queries))()
    scores = jnp.einsum("sbhtk,bhmk->sbhtm", queries.astype(jnp.float32), keys.astype(jnp.float32))
    assert (slots[..., 0] == scores.argmax(-1)).all()


def test_auto_is_faiss_on_the_cpu():
    assert resolve_backend("auto") == ("faiss" if jax.default_backend() == "cpu" else "xla")
