"""Softmax attention as functions of arrays. Letters of shapes are those of `shapes`."""

import jax
import jax.numpy as jnp

from ..shapes import Array, Bool, Float

NORMALIZED_SCALE = 16.0  # at the start: attention of unit vectors at scale 1 would be close to uniform


def normalize(x: Array) -> Array:
    """To length 1 over the last axis, computed in float32."""
    y = x.astype(jnp.float32)
    return (y * jax.lax.rsqrt(jnp.sum(jnp.square(y), -1, keepdims=True) + 1e-6)).astype(x.dtype)


def softmax(scores: Float[Array, "*B W"]) -> tuple[Float[Array, "*B W"], Float[Array, "*B 1"]]:
    """Softmax and the logarithm of its divisor (lse)."""
    lse = jax.nn.logsumexp(scores, -1, keepdims=True)
    return jnp.exp(scores - lse), lse


def _exponentials(
    scores: Float[Array, "*B W"],
) -> tuple[Float[Array, "*B W"], Float[Array, "*B 1"], Float[Array, "*B 1"]]:
    """The softmax before its division, its divisor, and the lse."""
    highest = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - highest)
    total = weights.sum(-1, keepdims=True)
    return weights, total, highest + jnp.log(total)


@jax.custom_vjp
def attend(
    q: Float[Array, "B H Q Dh"],
    k: Float[Array, "B H W Dh"],
    v: Float[Array, "B H W Dh"],
    bias: Float[Array, "#B H Q W"] | None,
    mask: Bool[Array, "B 1 Q W"],
) -> tuple[Float[Array, "B H Q Dh"], Float[Array, "B H Q 1"]]:
    """Softmax attention and the logarithm of its divisor (lse); q is scaled, and every query has a slot to attend to.

    The gradient is written by hand so that as few arrays of B H Q W numbers as possible are written and read: on a CPU
    these arrays, not the products, are the cost of attention. The weights are kept unnormalised; the output is divided
    instead.
    """
    return _attend_forward(q, k, v, bias, mask)[0]


def _attend_forward(q: Array, k: Array, v: Array, bias: Array | None, mask: Array) -> tuple[tuple[Array, Array], tuple]:
    scores = jnp.einsum("bhtk,bhwk->bhtw", q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + bias
    scores = jnp.where(mask, scores, -jnp.inf)
    weights, total, lse = _exponentials(scores)
    weights = weights.astype(v.dtype)
    y = jnp.einsum("bhtw,bhwk->bhtk", weights, v, preferred_element_type=jnp.float32) / total
    residuals = (q, k, v, bias is not None and bias.shape[0], weights, total, y)
    return (y.astype(v.dtype), lse), residuals


def _attend_backward(residuals: tuple, gradients: tuple[Array, Array]) -> tuple:
    q, k, v, bias_lanes, weights, total, y = residuals
    dy, d_lse = gradients
    dy = dy.astype(jnp.float32) / total
    d_total = jnp.sum(dy * y, -1, keepdims=True) - d_lse / total
    dy = dy.astype(v.dtype)
    dv = jnp.einsum("bhtw,bhtk->bhwk", weights, dy)
    d_weights = jnp.einsum("bhtk,bhwk->bhtw", dy, v, preferred_element_type=jnp.float32)
    d_scores = weights * (d_weights - d_total)
    d_bias = None
    if bias_lanes == 1:
        # A product with ones: on the CPU, XLA's sum over lanes takes longer than everything else here.
        lanes = d_scores.shape[0]
        d_bias = (jnp.ones((1, lanes)) @ d_scores.reshape(lanes, -1)).reshape(1, *d_scores.shape[1:])
    elif bias_lanes:
        d_bias = d_scores
    d_scores = d_scores.astype(q.dtype)
    dq = jnp.einsum("bhtw,bhwk->bhtk", d_scores, k)
    dk = jnp.einsum("bhtw,bhtk->bhwk", d_scores, q)
    return dq, dk, dv, d_bias, None


attend.defvjp(_attend_forward, _attend_backward)


def attend_one(
    q: Float[Array, "BH Dh"],
    k: Float[Array, "BH W Dh"],
    v: Float[Array, "BH W Dh"],
    bias: Float[Array, "H W"] | None,
    mask: Bool[Array, "B W"],
) -> tuple[Float[Array, "BH Dh"], Float[Array, "BH 1"]]:
    """`attend` for one query per row."""
    scores = jnp.einsum("bk,bwk->bw", q, k, preferred_element_type=jnp.float32)
    by_row = scores.reshape(len(mask), -1, k.shape[1])
    if bias is not None:
        by_row = by_row + bias
    scores = jnp.where(mask[:, None], by_row, -jnp.inf).reshape(scores.shape)
    weights, total, lse = _exponentials(scores)
    y = jnp.einsum("bw,bwk->bk", weights.astype(v.dtype), v, preferred_element_type=jnp.float32) / total
    return y.astype(v.dtype), lse
