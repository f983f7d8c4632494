import jax
import jax.numpy as jnp
import numpy as np
import pytest

from midigen_jax import attention


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
