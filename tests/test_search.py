import jax
import jax.numpy as jnp
import numpy as np
import pytest

from midigen_jax.model.search import resolve_backend, search

BACKENDS = ["faiss", "xla"]
RING = 32
TIE = 1e-5  # scores that differ by less may come in either order

# First slot and count of each lane's range: nothing, one slot, fewer than k, exactly k, a range in the middle, one that
# wraps around the end, and the whole ring from its first slot, from another and from its last.
RANGES = [(0, 0), (7, 0), (9, 1), (31, 1), (9, 3), (30, 6), (3, 10), (30, 20), (0, 32), (5, 32), (31, 32)]
K = 6


def reference_scores(queries, keys):
    """In float64: all inner products."""
    return np.einsum("bhtd,bhmd->bhtm", *(np.asarray(x, np.float32).astype(np.float64) for x in (queries, keys)))


def reference_search(scores, start, count, top_k):
    """Plain NumPy: slots by falling inner product among the valid ones, -1 where there are fewer."""
    slots, start, count = np.full((*scores.shape[:3], top_k), -1), np.asarray(start), np.asarray(count)
    for b in range(len(scores)):
        valid = (start[b] + np.arange(count[b])) % scores.shape[3]
        best = np.argsort(-scores[b][..., valid], -1)[..., :top_k]
        slots[b, ..., : best.shape[-1]] = valid[best]
    return slots


def assert_same_but_for_ties(slots, expected, scores):
    """The same number of hits, all different, in range and each as good as the expected one."""
    slots = np.asarray(slots)
    found = expected >= 0
    assert ((slots >= 0) == found).all()
    row = np.sort(np.where(found, slots, -1 - np.arange(slots.shape[-1])), -1)
    assert (np.diff(row) > 0).all()
    got, wanted = (np.take_along_axis(scores, np.maximum(x, 0), 3) for x in (slots, expected))
    differ = found & (slots != expected)
    assert (np.abs(got - wanted)[differ] < TIE).all()


def case(top_k, dtype, *, seed=0):
    """Queries, keys and ranges of all RANGES, and what a search has to find."""
    random = np.random.default_rng(seed)
    queries = jnp.asarray(random.normal(size=(len(RANGES), 2, 5, 8)), jnp.float32)
    keys = jnp.asarray(random.normal(size=(len(RANGES), 2, RING, 8)), dtype)
    start, count = jnp.array(RANGES, jnp.int32).T
    scores = reference_scores(queries, keys)
    return queries, keys, start, count, scores, reference_search(scores, start, count, top_k)


@pytest.mark.parametrize("by_head", [False, True])
@pytest.mark.parametrize("top_k", [K, RING, RING + 8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_search_agrees_with_numpy(backend, dtype, top_k, by_head):
    """Values are a token per slot, or a vector per slot and head."""
    queries, keys, start, count, scores, expected = case(top_k, dtype)
    token = 100 * jnp.arange(len(RANGES), dtype=jnp.int32)[:, None] + jnp.arange(RING, dtype=jnp.int32)
    values = -keys if by_head else token
    hits = jax.jit(search, static_argnums=(5, 6))(queries, keys, values, start, count, top_k, backend)
    assert_same_but_for_ties(hits.slots, expected, scores)
    for lane, (first, n) in enumerate(RANGES):
        valid = {-1, *((first + np.arange(n)) % RING).tolist()}
        assert set(np.unique(hits.slots[lane]).tolist()) <= valid
    found = np.asarray(hits.slots) >= 0
    assert hits.keys.dtype == keys.dtype
    rows = np.take_along_axis(np.asarray(keys)[:, :, None], np.maximum(hits.slots, 0)[..., None], 3)
    assert (np.asarray(hits.keys)[found] == rows[found]).all()
    tokens = np.asarray(hits.slots) + 100 * np.arange(len(RANGES))[:, None, None, None]
    assert (np.asarray(hits.values)[found] == (-rows if by_head else tokens)[found]).all()
    assert hits.values.dtype == values.dtype


def test_equal_keys_are_found_in_some_order():
    """Every key stands in the ring four times; all backends find the same keys, whichever copies."""
    queries, keys, start, count, *_ = case(K, "float32")
    keys = jnp.tile(keys[:, :, :8], (1, 1, 4, 1))
    scores = reference_scores(queries, keys)
    expected = reference_search(scores, start, count, K)
    token = jnp.zeros(keys.shape[::2], jnp.int32)
    for backend in BACKENDS:
        assert_same_but_for_ties(search(queries, keys, token, start, count, K, backend).slots, expected, scores)


@pytest.mark.parametrize("backend", BACKENDS)
def test_search_under_scan_and_in_bfloat16(backend):
    random = np.random.default_rng(1)
    keys = jnp.asarray(random.normal(size=(1, 1, 16, 4)), jnp.bfloat16)
    queries = jnp.asarray(random.normal(size=(3, 1, 1, 2, 4)), jnp.bfloat16)
    start, count = jnp.array([0]), jnp.array([16])

    def one(_, q):
        return None, search(q, keys, jnp.zeros((1, 16), jnp.int32), start, count, 1, backend).slots

    _, slots = jax.jit(lambda: jax.lax.scan(one, None, queries))()
    scores = jnp.einsum("sbhtk,bhmk->sbhtm", queries.astype(jnp.float32), keys.astype(jnp.float32))
    assert (slots[..., 0] == scores.argmax(-1)).all()


def test_auto_is_faiss_on_the_cpu():
    assert resolve_backend("auto") == ("faiss" if jax.default_backend() == "cpu" else "xla")
