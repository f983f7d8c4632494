from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow
from flax import nnx

from midigen_jax import config as cfg
from midigen_jax.model import attention, positions
from midigen_jax.model import memory as mem
from midigen_jax.model.decoder import Attention, SegmentInputs
from midigen_jax.model.memory import NO_SONG, KNNMemory, XLMemory


def plain_attention(q, k, v, bias, mask):
    scores = jnp.einsum("bhtk,bhwk->bhtw", q, k)
    scores = jnp.where(mask, scores if bias is None else scores + bias, -jnp.inf)
    return jnp.einsum("bhtw,bhwk->bhtk", jax.nn.softmax(scores), v), jax.nn.logsumexp(scores, -1, keepdims=True)


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
        results.append((y, vjp(jax.tree.map(jnp.cos, y))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *results)


def test_position_bias_and_its_gradient_are_those_of_a_gather():
    table = jnp.asarray(np.random.default_rng(0).normal(size=(positions.BUCKETS, 3)), jnp.float32)

    @partial(jax.jit, static_argnums=0)
    def bias_and_gradient(function, table):
        bias, vjp = jax.vjp(function, table)
        return bias, vjp(jnp.cos(bias))[0]

    for first, queries, slots in ((4, 5, 9), (0, 1, 1), (3, 1, 4), (0, 70, 70), (150, 50, 200)):

        def plain(table, first=first, queries=queries, slots=slots):
            distance = first + jnp.arange(queries)[:, None] - jnp.arange(slots)
            return jnp.moveaxis(table[positions.t5_bucket(distance)], -1, 0)[None]

        ours = partial(positions.position_bias, first=first, queries=queries, slots=slots)
        (one, gradient_one), (two, gradient_two) = (bias_and_gradient(function, table) for function in (ours, plain))
        assert (one == two).all()
        np.testing.assert_allclose(gradient_one, gradient_two, rtol=1e-4, atol=1e-4)


def test_t5_buckets():
    distances = jnp.array([-3, 0, 1, 15, 16, 17, 31, 64, 127, 128, 5000])
    assert positions.t5_bucket(distances).tolist() == [0, 0, 1, 15, 16, 16, 21, 26, 31, 31, 31]


def test_rotated_products_depend_on_the_distance_alone():
    random = np.random.default_rng(0)
    q, k = (jnp.asarray(random.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))

    def rotated(x, position):
        return positions.rotate(x, positions.token_rotation(jnp.array([[position]]), 8))

    products = [jnp.vdot(rotated(q, a), rotated(k, b)) for a, b in ((5, 2), (105, 102), (3, 0), (6, 2))]
    np.testing.assert_allclose(products[:3], products[0], rtol=1e-4)
    assert abs(products[3] - products[0]) > 1e-3


def test_musical_positions_are_relative():
    """The same where both tokens are as many bars, grid steps and semitones further on, and no other place is alike."""
    random = np.random.default_rng(0)
    q, k = (jnp.asarray(random.normal(size=(1, 4, 1, 64)), jnp.float32) for _ in range(2))

    def products(here, there):
        def rotated(x, place):
            bar, position, pitch = (jnp.array([[i]]) for i in place)
            rotation = positions.musical_rotation(bar, position, pitch, 8, 64)
            return positions.rotate(x, rotation)

        return jnp.sum(rotated(q, here) * rotated(k, there), (0, 2, 3))  # of each head

    here, there = (9, 12, 67), (5, 20, 60)
    one = products(here, there)
    for further in ((100, 0, 0), (0, 12, 0), (0, 0, -24), (7, 4, 12)):
        np.testing.assert_allclose(products(*np.add((here, there), further).tolist()), one, rtol=1e-3, atol=1e-4)
    for other in ((8, 12, 67), (9, 13, 67), (9, 12, 68)):
        assert (jnp.abs(products(other, there) - one) > 1e-2).all()


def test_musical_rotation_is_the_formula():
    bar, position, pitch = np.arange(256)[None], np.arange(256)[None] % 32, np.arange(256)[None] % 128
    turned = positions.musical_rotation(jnp.asarray(bar), jnp.asarray(position), jnp.asarray(pitch), 8, 64)
    turns = (bar, 2, 128, 12), (position / 8, 0.25, 8, 10), (pitch, 2, 128, 10)
    angle = np.concatenate([x[..., None] * 2 * np.pi / np.geomspace(low, high, n) for x, low, high, n in turns], -1)
    # Angles of up to 800 have an error of 3e-5 in float32.
    np.testing.assert_allclose(turned.cos, np.cos(angle), atol=1e-4)
    np.testing.assert_allclose(turned.sin, np.sin(angle), atol=1e-4)


# The layer that has the kNN memory: its output against its formula.
LANES, HEADS, WIDTH, HEAD_WIDTH, SIZE = 5, 2, 32, 16, 12
RING, SEGMENT, XL, K = 32, 8, 12, 5


KINDS = [("context", "softmax"), ("context", "gate"), ("attention", "softmax"), ("attention", "gate")]


def knn_config(**memory) -> cfg.Config:
    return cfg.Config(
        model=cfg.Model(layers=1, width=WIDTH, heads=HEADS),
        memory=cfg.Memory(xl=XL, knn=RING, knn_layer=1, **memory),
        data=cfg.Data(segment=SEGMENT),
    )


@pytest.fixture(scope="module", params=KINDS, ids=" ".join)
def scene(request):
    """Random weights, input and memories, in the middle of five songs, by name.

    The ring holds: of lane 0's song 20 slots around the end, of lane 1's all 32, of lane 2's three, fewer than k, of
    lane 3's none, for it begins in this segment, and of lane 4's 16 slots, but the song ends inside the segment.
    """
    retrieval, mixing = request.param
    random = np.random.default_rng(0)

    def normal(*shape):
        return random.normal(size=shape).astype(np.float32)

    def unit(*shape):
        x = normal(*shape)
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    params = {
        "qkv": normal(3, HEADS, WIDTH, HEAD_WIDTH),
        "out": normal(HEADS, HEAD_WIDTH, WIDTH) / 4,
        "out_bias": normal(WIDTH),
        "scale": np.array([4.0, 9.0], np.float32),
        "knn": {"bias": np.array([0.8, -0.4], np.float32)},
    }
    if retrieval == "context":
        params["knn"]["scale"] = np.array([9.0, 4.0], np.float32)
        params["knn"]["logit_scale"] = np.array([0.7, 1.3], np.float32)
    write, count = np.array([10, 16, 0, 8, 24], np.int32), np.array([20, 32, 3, 0, 16])
    age = (write[:, None] - 1 - np.arange(RING)) % RING
    ring_song = np.where(age < count[:, None], 7, [[6], [6], [NO_SONG], [6], [6]]).astype(np.int32)
    song = np.full((LANES, SEGMENT), 7, np.int32)
    song[4, 5:] = 8
    window_song = np.full((LANES, XL), 7, np.int32)
    window_song[3] = 6
    window_song[2, :4] = NO_SONG
    tokens, values = random.integers(0, SIZE, (LANES, RING)), normal(LANES, HEADS, RING, HEAD_WIDTH)
    ring_values = tokens if retrieval == "context" else values
    ring = KNNMemory(unit(LANES, HEADS, RING, HEAD_WIDTH), ring_values, ring_song, write)
    xl_keys, xl_values = unit(LANES, HEADS, XL, HEAD_WIDTH), normal(LANES, HEADS, XL, HEAD_WIDTH)
    window = XLMemory((xl_keys,), (xl_values,), window_song, np.zeros_like(window_song), None)
    angle = np.random.default_rng(1).normal(size=(LANES, SEGMENT, HEAD_WIDTH // 2)).astype(np.float32)
    slot, query = np.arange(XL + SEGMENT), np.arange(SEGMENT)[:, None]
    mask = (slot <= XL + query) & (song[:, :, None] == np.concatenate([window_song, song], 1)[:, None])
    return {
        "params": params,
        "x": normal(LANES, SEGMENT, WIDTH),
        "table": normal(positions.BUCKETS, HEADS),
        "window": window,
        "ring": ring,
        "song": song,
        "mask": mask[:, None],
        "rotation": positions.Rotation(np.cos(angle), np.sin(angle)),
        "context": unit(LANES, HEADS, SEGMENT, HEAD_WIDTH) if retrieval == "context" else None,
        "output": normal(SIZE, WIDTH),
        "retrieval": retrieval,
        "mixing": mixing,
    }


@partial(jax.jit, static_argnames=("retrieval", "mixing", "backend", "top_k"))
def layer_output(params, x, table, window, ring, song, mask, rotation, context, output, **memory):
    """Output and statistics of `Attention`."""
    layer = nnx.eval_shape(lambda: Attention(knn_config(**memory), 0, rngs=nnx.Rngs(0)))
    bias = positions.position_bias(table, XL, SEGMENT, XL + SEGMENT)
    slots = ring and mem.valid_slots(ring, song[:, 0])
    may_search = song == song[:, :1]
    inputs = SegmentInputs(window, slots, may_search, mask, jnp.zeros_like(bias), bias, rotation, context, output)
    y, _, found = nnx.merge(nnx.split(layer)[0], params)(x, inputs)
    return y, found.statistics


def softmax(x):
    y = np.exp(x - x.max())
    return y / y.sum()


def formula(params, x, table, window, ring, song, mask, rotation, context, output, *, retrieval, mixing, top_k):
    """Plain NumPy, one query at a time.

    Returns:
        The output, the ring's slots that each query of each head attends to, -1 where there are fewer than k, and the
        share of these in its output.
    """
    q, k, v = np.einsum("btd,shdk->sbhtk", x, params["qkv"])
    q, k = (y / np.linalg.norm(y, axis=-1, keepdims=True) for y in (q, k))
    turn = (rotation.cos + 1j * rotation.sin)[:, None]
    q, k = (np.split(y, 2, -1) for y in (q, k))
    q, k = ((real + 1j * imaginary) * turn for real, imaginary in (q, k))
    q, k = (np.concatenate([y.real, y.imag], -1) for y in (q, k))
    k, v = np.concatenate([window.keys[0], k], 2), np.concatenate([window.values[0], v], 2)
    bucket = np.asarray(positions.t5_bucket(jnp.arange(XL + SEGMENT)))
    y, slots, share = np.zeros_like(q), np.full((*q.shape[:3], top_k), -1), np.zeros(q.shape[:3])
    answer = np.zeros_like(x)
    for b, h, t in np.ndindex(LANES, HEADS, SEGMENT):
        scale = params["scale"][h]
        seen = np.flatnonzero(mask[b, 0, t])
        scores = scale * (k[b, h, seen] @ q[b, h, t]) + table[bucket[XL + t - seen], h]
        # Only a token of the song that was running at the segment's start has anything in the ring.
        valid = np.flatnonzero(ring.song[b] == song[b, t]) if song[b, t] == song[b, 0] else np.array([], int)
        local, found = softmax(scores), np.array([])  # the weights
        if len(valid):
            query = q if retrieval == "attention" else context
            in_ring = ring.keys[b, h, valid] @ query[b, h, t]
            best = np.argsort(-in_ring)[:top_k]
            slots[b, h, t, : len(best)] = valid[best]
            knn_scores = in_ring[best] * (scale if retrieval == "attention" else params["knn"]["scale"][h])
            bias = params["knn"]["bias"][h]
            if mixing == "softmax":
                local, found = np.split(softmax(np.append(scores, knn_scores + bias)), [len(seen)])
            else:
                gate = 1 / (1 + np.exp(-bias))
                local, found = (1 - gate) * local, gate * softmax(knn_scores)
        y[b, h, t], share[b, h, t] = local @ v[b, h, seen], found.sum()
        for slot, weight in zip(slots[b, h, t], found, strict=False):
            if retrieval == "attention":
                y[b, h, t] += weight * ring.values[b, h, slot]
            else:
                answer[b, t] += params["knn"]["logit_scale"][h] * weight * output[ring.values[b, slot]]
    return np.einsum("bhtk,hkd->btd", y, params["out"]) + params["out_bias"] + answer, slots, share


@pytest.mark.parametrize(
    ("backend", "top_k"), [("faiss", K), ("xla", K), ("dense", K), slow("faiss", RING), slow("xla", RING)]
)
def test_the_knn_layer_is_its_formula(scene, backend, top_k):
    """Dense attention is that to all slots of the song, whatever k is, as is a search for as many."""
    y, statistics = layer_output(**scene, backend=backend, top_k=top_k)
    expected, slots, share = formula(**scene, top_k=RING if backend == "dense" else top_k)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=2e-5)

    found = slots >= 0
    with_hits = (3 * SEGMENT + 5) / (5 * SEGMENT)
    assert found.any(-1).mean() == with_hits
    assert statistics.hit_rate == pytest.approx(with_hits)
    assert statistics.valid_slots == pytest.approx((20 + 32 + 3 + 0 + 16) / 5)
    np.testing.assert_allclose(statistics.attention_share, share.mean((0, 2)), rtol=1e-5)
    if backend != "dense":
        age = (scene["ring"].write[:, None, None, None] - 1 - slots) % RING + XL + 1 + np.arange(SEGMENT)[:, None]
        assert (statistics.hits, statistics.ages) == (found.sum(), age[found].sum())


def close_in_bfloat16(x, expected):
    """The error's root mean square is a few times the rounding of one number, 0.2 %, of the whole's."""
    error, x, expected = np.float32(x) - np.float32(expected), np.float32(x), np.float32(expected)
    return np.square(error).mean() < (0.02**2) * np.square(expected).mean()


@pytest.mark.parametrize(
    ("backend", "ring_dtype"),
    [
        ("faiss", "bfloat16"),
        ("dense", "float32"),
        *(
            slow(*case)
            for case in (("faiss", "float32"), ("xla", "float32"), ("xla", "bfloat16"), ("dense", "bfloat16"))
        ),
    ],
)
def test_the_knn_layer_in_bfloat16_is_the_same_but_for_rounding(scene, backend, ring_dtype):
    """Its output goes on in bfloat16, whatever the ring holds. All is found: else rounding may choose another slot."""

    def rounded(tree, dtype):
        return jax.tree.map(lambda x: x.astype(dtype) if x.dtype == np.float32 else x, tree)

    small = scene | rounded({name: scene[name] for name in ("x", "window", "context", "output")}, jnp.bfloat16)
    small["ring"] = rounded(scene["ring"], ring_dtype)
    y, statistics = layer_output(**small, backend=backend, top_k=RING)
    assert y.dtype == jnp.bfloat16
    assert statistics.hit_rate.min() > 0.5
    assert close_in_bfloat16(y, formula(**scene, top_k=RING)[0])

    def gradient(scene):
        weights = jnp.cos(jnp.arange(scene["x"].size, dtype=jnp.float32)).reshape(scene["x"].shape)
        y = partial(layer_output, backend=backend, top_k=RING)
        return jax.grad(lambda x: jnp.sum(weights * y(**scene | {"x": x})[0]))(jnp.asarray(scene["x"]))

    got = gradient(small)
    assert got.dtype == jnp.bfloat16
    assert close_in_bfloat16(got, gradient(scene))


@pytest.mark.parametrize("backend", ["faiss", "xla", "dense"])
def test_gradients_reach_queries_and_weights_but_no_entry_of_the_ring(scene, backend):
    """They are the slopes of the formula along random directions; the ring's are zero, where the formula's are not."""
    top_k = RING if backend == "dense" else K
    random = np.random.default_rng(2)
    weights = random.normal(size=scene["x"].shape)
    ring = scene["ring"]
    names, in_ring = ["params", "x", "table"], ["keys"]
    if scene["retrieval"] == "attention":
        in_ring.append("values")
    else:
        names += ["context", "output"]
    at = {name: scene[name] for name in names} | {name: getattr(ring, name) for name in in_ring}

    def scene_at(x):
        changed_ring = ring._replace(**{name: x[name] for name in in_ring})
        return scene | {name: x[name] for name in names} | {"ring": changed_ring}

    def slope(direction):
        """Of the formula, in float64."""
        ahead, behind = (
            formula(**scene_at(jax.tree.map(lambda x, d, s=s: x + s * d, at, direction)), top_k=top_k)[0]
            for s in (1e-6, -1e-6)
        )
        return ((ahead - behind) * weights).sum() / 2e-6

    gradient = jax.grad(lambda x: (layer_output(**scene_at(x), backend=backend, top_k=top_k)[0] * weights).sum())(at)
    leaves, structure = jax.tree.flatten_with_path(at)
    for i, (path, derivative) in enumerate(jax.tree.leaves_with_path(gradient)):
        directions = [np.zeros(x.shape) for _, x in leaves]
        directions[i] = random.normal(size=derivative.shape)
        expected = slope(jax.tree.unflatten(structure, directions))
        assert abs(expected) > 0.1
        if path[0].key in in_ring:
            assert not derivative.any()
        else:
            assert np.vdot(derivative, directions[i]) == pytest.approx(expected, rel=1e-3, abs=1e-3), path


@pytest.mark.parametrize("backend", ["faiss", "xla", "dense"])
def test_where_the_ring_is_empty_the_output_is_the_local_one(scene, backend):
    empty = scene["ring"]._replace(song=np.full_like(scene["ring"].song, NO_SONG))
    y, statistics = layer_output(**scene | {"ring": empty}, backend=backend, top_k=K)
    alone, _ = layer_output(**scene | {"ring": None}, backend="xla", top_k=K)
    np.testing.assert_allclose(y, alone, rtol=1e-6, atol=1e-6)
    assert [float(x.sum()) for x in (statistics.hit_rate, statistics.hits, statistics.attention_share)] == [0, 0, 0]
