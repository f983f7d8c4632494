"""The decoder: a transformer with T5 relative positions, XL memory in every layer and kNN memory in one.

Modules hold parameters and nothing else: memory, dropout keys and caches go in and come out. Letters of shapes are
those of `shapes`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from . import config as cfg
from . import memory as mem
from .memory import Hits, KNNMemory, XLMemory
from .shapes import Array, Float, Int
from .vocab import Vocabulary

BARS = 1024  # bar numbers are taken modulo this
BEATS = 12  # steps in the bar are taken modulo so many beats
BUCKETS, MAX_DISTANCE = 32, 128  # of the T5 relative position bias
KNN_SCALE = 16.0  # at the start: normalised attention at scale 1 is close to uniform

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),  # as MIDIGen has it
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}
_small = nnx.initializers.normal(0.02)
# Variance 1 / fan-in, as that of nnx.Linear, for the shapes of the attention's weights.
_qkv = nnx.initializers.variance_scaling(1, "fan_in", "normal", in_axis=2, out_axis=3, batch_axis=(0, 1))
_out = nnx.initializers.variance_scaling(1, "fan_in", "normal", in_axis=(0, 1), out_axis=2)

nnx.set_graph_mode(False)
nnx.set_graph_updates(False)


class Statistics(NamedTuple):
    """What the kNN memory did; zeros where there is none."""

    hit_rate: Array  # share of queries that found something
    hits: Array  # how many entries were found
    ages: Array  # the sum of their ages: tokens between an entry and its query
    gate: Array  # share of the memory in the output, where something was found
    slots: Array  # filled slots of the running song, a lane


class Output(NamedTuple):
    logits: Float[Array, "B Q V"]
    window: XLMemory  # what was given, and the new tokens
    knn: KNNMemory | None  # as it was given
    statistics: Statistics


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Inverted dropout, the rate rounded to 1/256: a byte a value costs a quarter of a float's random bits."""
    kept = max(round(256 * (1 - rate)), 1)
    if key is None or kept == 256:
        return x
    return jnp.where(jax.random.bits(key, x.shape, jnp.uint8) < kept, x * (256 / kept), 0).astype(x.dtype)


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


@jax.custom_vjp
def add_position_bias(
    scores: Float[Array, "B H Q W"], table: Float[Array, "buckets H"], distance: Int[Array, "#B Q W"]
) -> Float[Array, "B H Q W"]:
    """Adds each head's bias for the distance back in time.

    The gradient of a gather is a scatter, which would take longer than the attention itself; here it is a matrix
    product with the one-hot buckets.
    """
    return scores + jnp.moveaxis(table.T[:, t5_bucket(distance)], 0, 1)


def _add_position_bias_forward(scores: Array, table: Array, distance: Array) -> tuple[Array, Array]:
    return add_position_bias(scores, table, distance), distance


def _add_position_bias_backward(distance: Array, gradient: Array) -> tuple[Array, Array, None]:
    lanes, heads = gradient.shape[:2]
    buckets = jax.nn.one_hot(t5_bucket(distance[0]).ravel(), BUCKETS, dtype=gradient.dtype)
    by_bucket = jnp.dot(gradient.reshape(lanes * heads, -1), buckets)
    return gradient, by_bucket.reshape(lanes, heads, BUCKETS).sum(0).T, None


add_position_bias.defvjp(_add_position_bias_forward, _add_position_bias_backward)


class Attention(nnx.Module):
    """Multi-head attention to the window, and in one layer to what the kNN memory found as well."""

    def __init__(self, config: cfg.Config, *, knn: bool, rngs: nnx.Rngs):
        model = config.model
        heads, head_width = model.heads, model.width // model.heads
        self.config, self.knn = config, knn
        self.qkv = nnx.Param(_qkv(rngs.params(), (3, heads, model.width, head_width)))
        self.out = nnx.Param(_out(rngs.params(), (heads, head_width, model.width)) / (2 * model.layers) ** 0.5)
        self.out_bias = nnx.Param(jnp.zeros(model.width))
        if knn:
            self.scale = nnx.Param(jnp.full(heads, KNN_SCALE, jnp.float32))
            self.gate = nnx.Param(jnp.zeros(heads))

    def __call__(
        self,
        x: Array,
        layer: int,
        window: XLMemory,
        knn: KNNMemory | None,
        song: Array,
        table: Array,
        distance: Array,
        mask: Array,
        at: Array | None,
    ) -> tuple[Array, tuple[Array, Array], Statistics]:
        dtype = x.dtype
        q, k, v = jnp.einsum("btd,shdk->sbhtk", x, self.qkv[...].astype(dtype))
        scale: Any = q.shape[-1] ** -0.5
        if self.knn:
            q, k = (_normalize(y) for y in (q, k))
            scale = self.scale[...][:, None, None]
        keys, values = mem.extend(window, layer, k, v, at)
        scores = jnp.einsum("bhtk,bhwk->bhtw", q * scale, keys, preferred_element_type=jnp.float32)
        scores = add_position_bias(scores, table, distance)
        weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf)).astype(dtype)
        y = jnp.einsum("bhtw,bhwk->bhtk", weights, values)
        statistics = Statistics(*jnp.zeros(5))
        if self.knn and knn is not None:
            with jax.named_scope("knn"):
                hits = mem.retrieve(knn, q, song, self.config.memory.top_k, self.config.memory.backend)
                gate = nnx.sigmoid(self.gate[...])
                y = _mix(q * scale, y, hits, gate[:, None, None])
                statistics = _statistics(knn, hits, gate, song, self.config.memory.xl)
        y = jnp.einsum("bhtk,hkd->btd", y, self.out[...].astype(dtype)) + self.out_bias[...].astype(dtype)
        return y, (keys, values), statistics


def _normalize(x: Array) -> Array:
    """To length 1, per head, in float32."""
    y = x.astype(jnp.float32)
    return (y * jax.lax.rsqrt(jnp.sum(jnp.square(y), -1, keepdims=True) + 1e-6)).astype(x.dtype)


def _mix(q: Array, local: Array, hits: Hits, gate: Array) -> Array:
    """Attention to the hits, mixed with the local output; that alone where there are none."""
    scores = jnp.sum(q[..., None, :] * hits.keys, -1, dtype=jnp.float32)
    found = hits.slots >= 0
    any_found = found.any(-1, keepdims=True)
    # Where nothing was found the softmax of equal scores stands in, so that no gradient is NaN.
    weights = jax.nn.softmax(jnp.where(found, scores, jnp.where(any_found, -jnp.inf, 0.0)))
    remembered = jnp.sum(weights[..., None].astype(local.dtype) * hits.values, -2)
    gate = jnp.where(any_found, gate, 0).astype(local.dtype)
    return remembered * gate + local * (1 - gate)


def _statistics(knn: KNNMemory, hits: Hits, gate: Array, song: Array, xl: int) -> Statistics:
    found = hits.slots >= 0
    ages = jnp.sum(jnp.where(found, mem.ages(knn, hits.slots, xl), 0), dtype=jnp.float32)
    _, count = mem.song_range(knn, song[:, 0])
    return Statistics(found.any(-1).mean(), found.sum(dtype=jnp.float32), ages, gate.mean(), count.mean())


class FeedForward(nnx.Module):
    def __init__(self, config: cfg.Config, *, rngs: nnx.Rngs):
        model = config.model
        self.activation, self.rate, dtype = (
            _ACTIVATIONS[model.activation],
            model.dropout,
            jnp.dtype(model.dtype),
        )
        self.up = nnx.Linear(model.width, model.ff_width, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(model.ff_width, model.width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, key: Array | None) -> Array:
        return self.down(dropout(self.activation(self.up(x)), self.rate, key))


class Block(nnx.Module):
    def __init__(self, config: cfg.Config, *, knn: bool, rngs: nnx.Rngs):
        width, dtype = config.model.width, jnp.dtype(config.model.dtype)
        self.rate = config.model.dropout
        self.norm1 = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.attention = Attention(config, knn=knn, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.ff = FeedForward(config, rngs=rngs)


class Decoder(nnx.Module):
    def __init__(self, config: cfg.Config, vocabulary: Vocabulary, *, rngs: nnx.Rngs):
        model, dtype = config.model, jnp.dtype(config.model.dtype)
        self.config = config
        self.token = nnx.Embed(vocabulary.size, model.width, embedding_init=_small, dtype=dtype, rngs=rngs)
        self.bar = nnx.Embed(BARS, model.width, embedding_init=_small, dtype=dtype, rngs=rngs)
        self.step = nnx.Embed(
            BEATS * vocabulary.scheme.steps_per_beat, model.width, embedding_init=_small, dtype=dtype, rngs=rngs
        )
        # One table for the plain layers, one for the kNN layer.
        self.bias = nnx.Param(jnp.stack([initial_bias(model.heads)] * 2))
        self.blocks = nnx.List(
            [
                Block(config, knn=bool(config.memory.knn) and i == config.memory.knn_layer - 1, rngs=rngs)
                for i in range(model.layers)
            ]
        )
        self.norm = nnx.LayerNorm(model.width, dtype=dtype, rngs=rngs)
        self.logits = nnx.Linear(model.width, vocabulary.size, kernel_init=_small, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "B Q"],
        bar: Int[Array, "B Q"],
        step: Int[Array, "B Q"],
        song: Int[Array, "B Q"],
        memory: mem.Memory,
        *,
        at: Int[Array, " B"] | None = None,
        key: Array | None = None,
    ) -> Output:
        """Logits of the next tokens.

        Args:
            memory: XL memory whose window ends where these tokens begin, unless `at` is given.
            at: slots of the window to which one token a lane goes; what lies behind them is not attended.
            key: of the dropout; none without.
        """
        window = memory.xl
        window_song = mem.extend_songs(window, song, at)
        n_new, n_slots = tokens.shape[1], window_song.shape[1]
        first = jnp.array([n_slots - n_new]) if at is None else at
        distance = first[:, None, None] + jnp.arange(n_new)[:, None] - jnp.arange(n_slots)
        mask = ((distance >= 0) & (song[:, :, None] == window_song[:, None, :]))[:, None]
        with jax.named_scope("embed"):
            x = self.token(tokens) + self.bar(bar % BARS) + self.step(step % self.step.num_embeddings)
        rate = self.config.model.dropout
        keys, statistics = [], Statistics(*jnp.zeros(5))
        for i, block in enumerate(self.blocks):
            drop = (None, None) if key is None else tuple(jax.random.split(jax.random.fold_in(key, i)))
            with jax.named_scope(f"block{i}"):
                with jax.named_scope("attention"):
                    knn = block.attention.knn
                    y, extended, block_statistics = block.attention(
                        block.norm1(x), i, window, memory.knn, song, self.bias[int(knn)], distance, mask, at
                    )
                    x = x + dropout(y, rate, drop[0])
                with jax.named_scope("ff"):
                    x = x + block.ff(block.norm2(x), drop[1])
            keys.append(extended)
            if knn:
                statistics = block_statistics
        with jax.named_scope("logits"):
            logits = self.logits(self.norm(x)).astype(jnp.float32)
        extended_keys, extended_values = zip(*keys, strict=True)
        ring = memory.knn and mem.after_reading(memory.knn, logits)
        return Output(logits, XLMemory(extended_keys, extended_values, window_song), ring, statistics)


def init_params(config: cfg.Config, vocabulary: Vocabulary, *, seed: int) -> tuple[nnx.GraphDef, dict]:
    """The decoder's structure and its parameters as a plain dict."""
    decoder = Decoder(config, vocabulary, rngs=nnx.Rngs(seed))
    graphdef, state = nnx.split(decoder, nnx.Param)
    return graphdef, nnx.to_pure_dict(state)


def abstract(config: cfg.Config, vocabulary: Vocabulary) -> nnx.GraphDef:
    """The decoder's structure alone; nothing is computed."""
    decoder = nnx.eval_shape(lambda: Decoder(config, vocabulary, rngs=nnx.Rngs(0)))
    return nnx.split(decoder, nnx.Param)[0]
