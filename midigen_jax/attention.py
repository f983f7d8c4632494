"""Attention to the window of the last tokens, and in one layer to what the kNN memory holds.

Functions of arrays first, then the module with their parameters. Letters of shapes are those of `shapes`.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from . import cache as caches
from . import config as cfg
from . import memory as mem
from .cache import Cache
from .context import normalize
from .memory import Heard, XLMemory
from .recall import Recall, Statistics, add_up, attend_all, attend_hits, no_statistics, recall_one, softmax
from .search import resolve_backend
from .shapes import Array, Bool, Float, Int

BUCKETS, MAX_DISTANCE = 32, 128  # of the T5 relative position bias
ROTARY_BASE = 10_000
VOTE = 2.0  # at the start: how loud each head says what its memory found
NORMALIZED_SCALE = 16.0  # at the start: attention of unit vectors at scale 1 is close to uniform

# Variance 1 / fan-in, as that of nnx.Linear, for the shapes of the attention's weights.
_qkv = nnx.initializers.variance_scaling(1, "fan_in", "normal", in_axis=2, out_axis=3, batch_axis=(0, 1))
_out = nnx.initializers.variance_scaling(1, "fan_in", "normal", in_axis=(0, 1), out_axis=2)


def t5_bucket(distance: Int[Array, "*shape"]) -> Int[Array, "*shape"]:
    """Bucket of a distance back in time (Raffel et al. 2020): exact up to 15, logarithmic up to 128 and beyond."""
    exact = BUCKETS // 2
    logarithm = jnp.log(jnp.maximum(distance, 1) / exact) / jnp.log(MAX_DISTANCE / exact)
    coarse = exact + (logarithm * (BUCKETS - exact)).astype(jnp.int32)
    return jnp.where(distance < exact, jnp.maximum(distance, 0), jnp.minimum(coarse, BUCKETS - 1))


def initial_bias(heads: int) -> Float[Array, "buckets H"]:
    """The table before training: a slope a head that falls with distance (Press et al. 2022, "ALiBi").

    From a table of zeros heads must first learn to tell near from far, one bucket at a time. On the demo's music, after
    256,000 tokens, zeros reached 2.13 nats a token on validation songs and slopes 1.72, all else equal.
    """
    exact = BUCKETS // 2
    beyond = exact * (MAX_DISTANCE / exact) ** (jnp.arange(exact) / exact)
    distances = jnp.concatenate([jnp.arange(exact), beyond])
    slopes = 2.0 ** (-8 * jnp.arange(1, heads + 1) / heads)
    return -distances[:, None] * slopes


def position_bias(
    table: Float[Array, "buckets H"], first: int, queries: int, slots: int
) -> Float[Array, "1 H {queries} {slots}"]:
    """What each head adds to a score for the distance between query and slot.

    Args:
        first: the window's slot of the first query; a query at slot w has distance 0 to slot w.
    """
    # Row t is the row before moved on by one slot. A gather of them all would have a scatter as its gradient, which
    # takes longer than the attention itself; here all rows are cut from one row repeated, which is one slot longer.
    period = slots + queries
    row_distance = jnp.concatenate([first - jnp.arange(slots), first + jnp.arange(queries, 0, -1)])
    row = table[t5_bucket(row_distance)].T
    rows = jnp.tile(row, queries)[:, : queries * (period - 1)].reshape(-1, queries, period - 1)
    return rows[None, :, :, :slots]


def rotate(x: Float[Array, "B H Q Dh"], position: Int[Array, "#B Q"]) -> Array:
    """Rotary positions (Su et al. 2021): the inner product of two rotated vectors depends on their distance."""
    half = x.shape[-1] // 2
    angle = position[:, None, :, None] * ROTARY_BASE ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


@jax.custom_vjp
def attend(
    q: Float[Array, "B H Q Dh"],
    k: Float[Array, "B H W Dh"],
    v: Float[Array, "B H W Dh"],
    bias: Float[Array, "#B H Q W"] | None,
    mask: Bool[Array, "B 1 Q W"],
) -> tuple[Float[Array, "B H Q Dh"], Float[Array, "B H Q 1"]]:
    """Softmax attention and the logarithm of its divisor (lse); q is scaled, and every query has a slot to attend to.

    Its gradient is written out so that as few arrays of B H Q W numbers as possible are made and read: on a CPU they,
    not the products, are what attention costs. The weights are kept without their divisor, which goes to the output.
    """
    return _attend_forward(q, k, v, bias, mask)[0]


def _attend_forward(q: Array, k: Array, v: Array, bias: Array | None, mask: Array) -> tuple[tuple[Array, Array], tuple]:
    scores = jnp.einsum("bhtk,bhwk->bhtw", q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + bias
    scores = jnp.where(mask, scores, -jnp.inf)
    highest = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - highest)
    total = weights.sum(-1, keepdims=True)
    weights = weights.astype(v.dtype)
    y = jnp.einsum("bhtw,bhwk->bhtk", weights, v, preferred_element_type=jnp.float32) / total
    residuals = (q, k, v, bias is not None and bias.shape[0], weights, total, y)
    return (y.astype(v.dtype), highest + jnp.log(total)), residuals


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
        # A product with ones: XLA on the CPU sums over lanes more slowly than all of the rest takes.
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
    """The same for one query a row."""
    scores = jnp.einsum("bk,bwk->bw", q, k, preferred_element_type=jnp.float32)
    by_row = scores.reshape(len(mask), -1, k.shape[1])
    if bias is not None:
        by_row = by_row + bias
    scores = jnp.where(mask[:, None], by_row, -jnp.inf).reshape(scores.shape)
    weights, lse = softmax(scores)
    return jnp.einsum("bw,bwk->bk", weights.astype(v.dtype), v), lse


class Reading(NamedTuple):
    """What all layers share while segments are read."""

    window: XLMemory  # before the new tokens
    heard: Heard | None
    running: Bool[Array, "B Q"]  # the tokens of the song that was running when the segment began
    mask: Bool[Array, "B 1 Q W"]
    bias: Float[Array, "1 H Q W"] | None  # of the plain layers
    knn_bias: Float[Array, "1 H Q W"] | None
    context: Float[Array, "B H Q Dh"] | None  # what the kNN memory is asked for
    output: Float[Array, "V D"]  # the output layer's weights


class Decoding(NamedTuple):
    """What all layers share while one token a row is read."""

    token: Int[Array, " B"]
    active: Bool[Array, " B"]
    distance: Int[Array, " W"]  # of the window's slots, in tokens
    mask: Bool[Array, "B W"]
    bias: Float[Array, "H W"] | None
    knn_bias: Float[Array, "H W"] | None
    context: Float[Array, "B H Dh"] | None
    output: Float[Array, "V D"]


class Attention(nnx.Module):
    """Multi-head attention to the window, and in the kNN layer to that memory as well.

    What the memory answers are tokens. They go into the stream as the output layer's weights, so that the layers above
    find there what the output would need to say them.
    """

    def __init__(self, config: cfg.Config, layer: int, *, rngs: nnx.Rngs):
        model = config.model
        heads, head_width = model.heads, model.width // model.heads
        self.config, self.layer = config, layer
        self.has_knn = bool(config.memory.knn) and layer == config.memory.knn_layer - 1
        self.qkv = nnx.Param(_qkv(rngs.params(), (3, heads, model.width, head_width)))
        self.out = nnx.Param(_out(rngs.params(), (heads, head_width, model.width)) / (2 * model.layers) ** 0.5)
        self.out_bias = nnx.Param(jnp.zeros(model.width)) if model.biases else None
        self.normalized = self.has_knn or model.qk_norm
        if self.normalized:
            self.scale = nnx.Param(jnp.full(heads, NORMALIZED_SCALE, jnp.float32))
        if self.has_knn:
            self.context_scale = nnx.Param(jnp.full(heads, NORMALIZED_SCALE, jnp.float32))
            self.gate = nnx.Param(jnp.zeros(heads))
            self.vote = nnx.Param(jnp.full(heads, VOTE, jnp.float32))

    def __call__(self, x: Float[Array, "B Q D"], reading: Reading) -> tuple[Array, tuple[Array, Array], Recall]:
        """Returns the output, the layer's window with the new keys and values, and what the kNN memory did."""
        k, v, scaled_q = self._project(x)
        keys, values = mem.extend(reading.window, self.layer, k, v)
        y, lse = self._attend_window(scaled_q, keys, values, reading)
        recall, answer = Recall(no_statistics(self.config.model.heads)), None
        if reading.heard is not None and reading.context is not None and self.has_knn:
            with jax.named_scope("knn"):
                y, answer, recall = self._recall(reading.context, (y, lse), reading)
        y = self._merge_heads(y)
        if answer is not None:
            y = y + answer.astype(y.dtype) @ reading.output
        return y, (keys, values), recall

    def weights_for_decoding(self) -> tuple[Float[Array, "D qkv"], Float[Array, "heads D"]]:
        """The projections as matrices."""
        qkv, out = self.qkv[...], self.out[...]
        dtype, width = self.config.model.dtype, self.config.model.width
        return jnp.moveaxis(qkv, 2, 0).reshape(width, -1).astype(dtype), out.reshape(-1, width).astype(dtype)

    def decode(
        self, x: Float[Array, "B D"], weights: tuple[Array, Array], cache: Cache, decoding: Decoding
    ) -> tuple[Array, Cache]:
        """The same for one token a row, and the cache with it."""
        in_weights, out_weights = weights
        rows, heads = len(x), self.config.model.heads
        q, k, v = jnp.moveaxis((x @ in_weights).reshape(rows, 3, heads, -1), 1, 0)
        scale = jnp.full(heads, q.shape[-1] ** -0.5)
        if self.normalized:
            q, k, scale = normalize(q), normalize(k), self.scale[...]
        cache = caches.write(cache, self.layer, k, v, decoding.active)
        keys, values = cache.keys[self.layer], cache.values[self.layer]
        bias = decoding.knn_bias if self.has_knn else decoding.bias
        if bias is None:
            keys = rotate(keys[:, None], -decoding.distance[None])[:, 0]
        scaled_q = (q * scale[:, None].astype(x.dtype)).reshape(-1, q.shape[-1])
        y, lse = attend_one(scaled_q, keys, values, bias, decoding.mask)
        answer = None
        if cache.ring is not None and decoding.context is not None and self.has_knn:
            ring = caches.write_ring(cache.ring, cache.place, decoding.context, decoding.token, decoding.active)
            where = caches.heard(cache.place, ring, self.config.memory.xl)
            found = where[1] > 0
            recall = partial(recall_one, memory=self.config.memory)
            asked = (decoding.context.reshape(scaled_q.shape), self.context_scale[...], ring, *where)
            nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(recall, *asked))
            hit_weights, token, lse_found = jax.lax.cond(found.any(), recall, lambda *_: nothing, *asked)
            share = self._share(lse.reshape(rows, heads, 1), lse_found.reshape(rows, heads, 1), found[:, None, None])
            y = (y.reshape(rows, heads, -1) * (1 - share)).astype(y.dtype)
            answer = add_up(hit_weights * share * self.vote[...][:, None], token, len(decoding.output))
            cache = cache._replace(ring=ring)
        y = y.reshape(rows, -1) @ out_weights
        if answer is not None:
            y = y + answer.astype(y.dtype) @ decoding.output
        return y if self.out_bias is None else y + self.out_bias[...].astype(y.dtype), cache

    def _project(self, x: Array) -> tuple[Array, Array, Array]:
        """Keys and values [B H Q Dh], and queries as scores need them."""
        q, k, v = jnp.einsum("btd,shdk->sbhtk", x, self.qkv[...].astype(x.dtype))
        if not self.normalized:
            return k, v, q * q.shape[-1] ** -0.5
        q, k = normalize(q), normalize(k)
        return k, v, q * self.scale[...][:, None, None].astype(x.dtype)

    def _merge_heads(self, y: Float[Array, "B H Q Dh"]) -> Float[Array, "B Q D"]:
        y = jnp.einsum("bhtk,hkd->btd", y, self.out[...].astype(y.dtype))
        return y if self.out_bias is None else y + self.out_bias[...].astype(y.dtype)

    def _attend_window(self, q: Array, keys: Array, values: Array, reading: Reading) -> tuple[Array, Array]:
        bias = reading.knn_bias if self.has_knn else reading.bias
        if bias is not None:
            return attend(q, keys, values, bias, reading.mask)
        position = jnp.arange(keys.shape[2])[None]
        return attend(rotate(q, position[:, -q.shape[2] :]), rotate(keys, position), values, None, reading.mask)

    def _recall(
        self, context: Array, local: tuple[Array, Array], reading: Reading
    ) -> tuple[Array, Float[Array, "B Q V"], Recall]:
        """What remains of the local output beside the memory, and what the tokens that the memory found weigh; nothing
        where it is empty."""
        heard, running, memory = reading.heard, reading.running, self.config.memory
        assert heard is not None
        (y, lse), size, ages = local, len(reading.output), None
        vote = self.vote[...][:, None, None]
        scaled = context * self.context_scale[...][:, None, None].astype(context.dtype)
        if resolve_backend(memory.backend) == "dense":
            said, lse_found = attend_all(scaled, heard, size)
            found = (running & (heard.length > 0)[:, None])[:, None]
            share = self._share(lse, lse_found, found[..., None])
            answer, weights = jnp.sum(said * share * vote, 1), None
            n_hits = jnp.sum(found * heard.length[:, None, None], dtype=jnp.float32) * context.shape[1]
            sum_of_ages = jnp.zeros(())
        else:
            hits = mem.retrieve(heard, context, running, memory.top_k, memory.backend)
            weights, lse_found = attend_hits(scaled, hits)
            found = hits.found.any(-1)
            share = self._share(lse, lse_found, found[..., None])
            weights *= share
            answer = add_up(weights * vote, hits.token, size)
            n_hits = jnp.sum(hits.found, dtype=jnp.float32)
            ages = jnp.where(hits.found, mem.ages(heard, hits.slots, memory.xl), 0)
            sum_of_ages = jnp.sum(ages, dtype=jnp.float32)
        statistics = Statistics(found.mean(), n_hits, sum_of_ages, share.mean((0, 2, 3)), heard.length.mean())
        remains = (y.astype(jnp.float32) * (1 - share)).astype(y.dtype)
        return remains, answer, jax.lax.stop_gradient(Recall(statistics, ages, weights))

    def _share(self, lse: Float[Array, "B H *Q 1"], lse_found: Array, found: Array) -> Float[Array, "B H *Q 1"]:
        """The memory's share of one softmax over the window and what was found, whose scores are raised by the gate.

        The memory counts for as much as it fits the query. With a share that does not know the query, as in Memorizing
        Transformers, it has to be right on the average before it is listened to at all.
        """
        gate = self.gate[...].reshape(-1, *[1] * (lse.ndim - 2))
        return jnp.where(found, nnx.sigmoid(lse_found + gate - lse), 0)
