import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_model import changed

from midigen_jax import attention
from midigen_jax import memory as mem
from midigen_jax.attention import Attention, Reading
from midigen_jax.memory import NO_SONG, KNNMemory, XLMemory

RING, SEGMENT, XL, K = 32, 8, 12, 5


def plain_attention(q, k, v, bias, mask):
    scores = jnp.einsum("bhtk,bhwk->bhtw", q, k)
    scores = jnp.where(mask, scores if bias is None else scores + bias, -jnp.inf)
    return jnp.einsum("bhtw,bhwk->bhtk", jax.nn.softmax(scores), v)


@pytest.mark.parametrize("bias_lanes", [None, 1, 3])
def test_attention_and_its_gradient_are_the_plain_ones(bias_lanes):
    random = np.random.default_rng(0)
    q, k, v = (jnp.asarray(random.normal(size=(3, 2, n, 8)), jnp.float32) for n in (5, 9, 9))
    bias = bias_lanes and jnp.asarray(random.normal(size=(bias_lanes, 2, 5, 9)), jnp.float32)
    mask = (jnp.arange(9) <= 4 + jnp.arange(5)[:, None]) & (random.random((3, 1, 5, 9)) < 0.7)
    mask = mask.at[..., 0].set(True)
    results = []
    for function in (attention.attend, plain_attention):
        y, vjp = jax.vjp(lambda *x, f=function: f(*x, mask), q, k, v, bias)
        results.append((y, vjp(jnp.cos(y))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *results)


def test_position_bias_and_its_gradient_are_those_of_a_gather():
    table = jnp.asarray(np.random.default_rng(0).normal(size=(attention.BUCKETS, 3)), jnp.float32)
    for first, queries, slots in ((4, 5, 9), (0, 1, 1), (3, 1, 4), (0, 70, 70), (150, 50, 200)):

        def plain(table, first=first, queries=queries, slots=slots):
            distance = first + jnp.arange(queries)[:, None] - jnp.arange(slots)
            return jnp.moveaxis(table[attention.t5_bucket(distance)], -1, 0)[None]

        one, vjp_one = jax.vjp(lambda t, s=(first, queries, slots): attention.position_bias(t, *s), table)
        two, vjp_two = jax.vjp(plain, table)
        assert (one == two).all()
        np.testing.assert_allclose(vjp_one(jnp.cos(one))[0], vjp_two(jnp.cos(two))[0], rtol=1e-4, atol=1e-4)


def test_position_bias_of_one_query_a_lane_is_a_row_of_the_others():
    table = jnp.asarray(np.random.default_rng(0).normal(size=(attention.BUCKETS, 3)), jnp.float32)
    rows = attention.position_bias(table, 4, 5, 9)
    one_a_lane = attention.position_bias(table, jnp.array([4, 8]), 1, 9)
    assert (one_a_lane[:, :, 0] == rows[0, :, [0, 4]]).all()


def test_t5_buckets():
    distances = jnp.array([-3, 0, 1, 15, 16, 17, 31, 64, 127, 128, 5000])
    assert attention.t5_bucket(distances).tolist() == [0, 0, 1, 15, 16, 16, 21, 26, 31, 31, 31]


def test_rotated_products_depend_on_the_distance_alone():
    random = np.random.default_rng(0)
    q, k = (jnp.asarray(random.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))
    products = [
        jnp.vdot(attention.rotate(q, jnp.array([[a]])), attention.rotate(k, jnp.array([[b]])))
        for a, b in ((5, 2), (105, 102), (3, 0), (6, 2))
    ]
    np.testing.assert_allclose(products[:3], products[0], rtol=1e-4)
    assert abs(products[3] - products[0]) > 1e-3


@pytest.fixture(scope="module")
def knn_layer(small):
    """The layer that has the kNN memory, with random weights, in the middle of five songs.

    Its ring holds: of lane 0's song 20 slots around the end, of lane 1's all 32, of lane 2's three, fewer than k, of
    lane 3's none, for it begins in this segment, and of lane 4's 16 slots, but the song ends inside the segment.
    """
    config = changed(
        small,
        model__layers=1,
        model__width=16,
        memory__knn=RING,
        memory__knn_layer=1,
        memory__xl=XL,
        memory__top_k=K,
        data__segment=SEGMENT,
    )
    graphdef, state = nnx.split(Attention(config, 0, rngs=nnx.Rngs(0)), nnx.Param)
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape), nnx.to_pure_dict(state))
    random = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    lanes, heads, head_width = 5, 2, 8
    write = np.array([10, 16, 0, 8, 24])
    count = np.array([20, 32, 3, 0, 16])
    age = (write[:, None] - 1 - np.arange(RING)) % RING
    ring_song = np.where(age < count[:, None], 7, [[6], [6], [NO_SONG], [6], [6]])
    song = np.full((lanes, SEGMENT), 7)
    song[4, 5:] = 8
    window_song = np.concatenate([np.full((lanes, XL), 7), song], 1)
    window_song[3, :XL] = 6
    window_song[2, :4] = NO_SONG
    keys = attention.normalize(normal(lanes, heads, RING, head_width))
    knn = KNNMemory(keys, normal(*keys.shape), jnp.asarray(ring_song), jnp.asarray(write))
    xl_keys, xl_values = (normal(lanes, heads, XL, head_width) for _ in range(2))
    window = XLMemory((attention.normalize(xl_keys),), (xl_values,), jnp.asarray(window_song[:, :XL]))
    behind = np.arange(XL + SEGMENT) <= XL + np.arange(SEGMENT)[:, None]
    mask = jnp.asarray(behind & (song[:, :, None] == window_song[:, None]))[:, None]
    table = normal(attention.BUCKETS, heads)
    return config, graphdef, params, normal(lanes, SEGMENT, 16), table, window, knn, jnp.asarray(song), mask


def layer_output(knn_layer, backend, top_k, params, x, table, knn):
    """What `Attention` makes of it."""
    config, graphdef, _, _, _, window, _, song, mask = knn_layer
    layer = nnx.merge(graphdef, params)
    layer.config = changed(config, memory__backend=backend, memory__top_k=top_k)
    bias = attention.position_bias(table, XL, SEGMENT, XL + SEGMENT)
    y, _, statistics = layer(x, Reading(window, knn, song, None, XL, mask, (None, bias)))
    return y, statistics


def reference_output(knn_layer, top_k, params, x, table, knn):
    """The same from the formula, one query at a time, in plain NumPy or, to be differentiated, jax.numpy.

    Returns:
        The output, and of every query of every head the slots found.
    """
    _, _, _, _, _, window, _, song, mask = knn_layer
    np_ = jnp if isinstance(x, jax.core.Tracer) else np
    to_array = (lambda x: x) if np_ is jnp else np.asarray
    params, x, table, knn, window = jax.tree.map(to_array, (params, x, table, knn, window))
    song, mask, ring_song = np.asarray(song), np.asarray(mask), np.asarray(knn_layer[6].song)
    q, k, v = np_.einsum("btd,shdk->sbhtk", x, params["qkv"])
    q, k = (y / np_.sqrt((y**2).sum(-1, keepdims=True)) for y in (q, k))
    k, v = (np_.concatenate(pair, 2) for pair in ((window.keys[0], k), (window.values[0], v)))
    bucket = np.asarray(attention.t5_bucket(jnp.arange(XL + SEGMENT)))
    gate = 1 / (1 + np_.exp(-params["gate"]))
    lanes, heads = q.shape[:2]
    output, slots = [], np.full((*q.shape[:3], top_k), -1)
    for b, h, t in np.ndindex(lanes, heads, SEGMENT):
        seen = np.flatnonzero(mask[b, 0, t])
        scores = k[b, h, seen] @ q[b, h, t] * params["scale"][h] + table[bucket[XL + t - seen], h]
        y = softmax(scores, np_) @ v[b, h, seen]
        # Only a token of the song that was running at the segment's start has anything in the ring.
        valid = np.flatnonzero(ring_song[b] == song[b, t]) if song[b, t] == song[b, 0] else []
        if len(valid):
            scores = knn.keys[b, h, valid] @ q[b, h, t]
            best = (np_.argsort(-scores)[:top_k],)
            found = knn.values[b, h, valid][best]
            y = gate[h] * softmax(scores[best] * params["scale"][h], np_) @ found + (1 - gate[h]) * y
            if np_ is np:
                slots[b, h, t, : len(found)] = valid[best]
        output.append(y)
    output = np_.stack(output).reshape(q.shape)
    return np_.einsum("bhtk,hkd->btd", output, params["out"]) + params["out_bias"], slots


def softmax(x, np_):
    y = np_.exp(x - x.max())
    return y / y.sum()


@pytest.fixture(scope="module")
def expected(knn_layer):
    """The reference's output and hits by top_k."""
    _, _, params, x, table, _, knn, *_ = knn_layer
    return {top_k: reference_output(knn_layer, top_k, params, x, table, knn) for top_k in (K, RING)}


@pytest.mark.parametrize(("backend", "top_k"), [("faiss", K), ("xla", K), ("faiss", RING), ("xla", RING), ("dense", K)])
def test_the_knn_layer_is_its_formula(knn_layer, expected, backend, top_k):
    """Dense attention is that to all slots, whatever k is."""
    _, _, params, x, table, _, knn, song, _ = knn_layer
    y, statistics = jax.jit(lambda *given: layer_output(knn_layer, backend, top_k, *given))(params, x, table, knn)
    reference, slots = expected[RING if backend == "dense" else top_k]
    np.testing.assert_allclose(y, reference, rtol=1e-4, atol=2e-5)

    found, gate = slots >= 0, jax.nn.sigmoid(params["gate"])
    assert found[:2].all(-1).all() == (top_k == K or backend == "dense") or top_k == RING
    assert statistics.hit_rate == pytest.approx(found.any(-1).mean())
    assert statistics.hit_rate == pytest.approx((3 * 8 + 5) / (5 * 8))
    assert statistics.slots == pytest.approx((20 + 32 + 3 + 0 + 16) / 5)
    np.testing.assert_allclose(statistics.gate, gate, rtol=1e-6)
    assert statistics.mass == pytest.approx(float(gate.mean()) * (3 * 8 + 5) / (5 * 8))
    if backend != "dense":
        entry = np.array(knn.write)[:, None, None, None] - 1 - slots
        age = entry % RING + XL + 1 + np.arange(SEGMENT)[:, None]
        assert statistics.hits == found.sum()
        assert statistics.ages == age[found].sum()


@pytest.mark.parametrize("backend", ["faiss", "xla", "dense"])
def test_gradients_reach_queries_and_weights_but_no_entry_of_the_ring(knn_layer, backend):
    """All gradients are those of the formula; the ring's, which the formula has, are zero here."""
    _, _, params, x, table, _, knn, *_ = knn_layer
    top_k = RING if backend == "dense" else K
    weights = jnp.cos(jnp.arange(x.size)).reshape(x.shape)

    def gradient(output):
        def loss(params, x, table, keys, values):
            return (output(params, x, table, knn._replace(keys=keys, values=values))[0] * weights).sum()

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4)))(params, x, table, knn.keys, knn.values)

    one = gradient(lambda *given: layer_output(knn_layer, backend, top_k, *given))
    two = gradient(lambda *given: reference_output(knn_layer, top_k, *given))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), one[:3], two[:3])
    assert not one[3].any()
    assert not one[4].any()
    assert two[3].any()
    assert two[4].any()


def test_where_the_ring_is_empty_the_output_is_the_local_one(knn_layer):
    _, _, params, x, table, _, knn, *_ = knn_layer
    empty = knn._replace(song=jnp.full_like(knn.song, NO_SONG))
    for backend in ("faiss", "xla", "dense"):
        y, statistics = layer_output(knn_layer, backend, K, params, x, table, empty)
        alone, _ = layer_output(knn_layer, backend, K, params, x, table, None)
        assert (y == alone).all()
        assert [float(z) for z in (statistics.hit_rate, statistics.hits, statistics.mass)] == [0, 0, 0]
