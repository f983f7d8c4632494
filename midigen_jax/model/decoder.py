"""The decoder: a transformer with relative positions, XL memory in every layer and kNN memory in one.

Modules hold parameters and nothing else: memories, dropout keys and caches go in and come out. This file reads whole
segments, from `Decoder.__call__` down; `decode` reads one token at a time with the same parameters. Letters of shapes
are those of `shapes`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from .. import config as cfg
from ..shapes import Array, Bool, Float, Int
from ..vocab import Vocabulary
from . import memory as mem
from . import retrieval
from .attention import NORMALIZED_SCALE, attend, normalize
from .context_keys import ContextKeys
from .layers import OCTAVES, PITCH_CLASSES, FeedForward, dropout, fold_in, make_norm, pitch_features
from .memory import ValidSlots, XLMemory
from .pointer import Pointer
from .positions import (
    Rotation,
    initial_bias,
    musical_rotation,
    position_bias,
    rotate,
    token_rotation,
)
from .retrieval import KNNAttention, Retrieval

BARS = 1024  # bar numbers are taken modulo this
BEATS = 12  # positions in the bar are taken modulo this many beats

_small = nnx.initializers.normal(0.02)
# Variance 1 / fan-in, like nnx.Linear, for the shapes of the attention weights.
_qkv = nnx.initializers.variance_scaling(1, "fan_in", "normal", in_axis=2, out_axis=3, batch_axis=(0, 1))
_out = nnx.initializers.variance_scaling(1, "fan_in", "normal", in_axis=(0, 1), out_axis=2)


class SegmentInputs(NamedTuple):
    """What all layers share while they read a segment."""

    xl: XLMemory
    slots: ValidSlots | None  # of the kNN memory
    may_search: Bool[Array, "B Q"]  # the tokens of the song that was playing when the segment began
    mask: Bool[Array, "B 1 Q W"]
    bias: Float[Array, "1 H Q W"] | None  # position bias of the plain layers
    knn_layer_bias: Float[Array, "1 H Q W"] | None
    rotation: Rotation | None  # of queries and keys, by musical positions
    context: Float[Array, "B H Q Dh"] | None  # context keys: the queries of a kNN memory that holds such keys
    output: Float[Array, "V D"]  # the output layer's weights


class Output(NamedTuple):
    logits: Float[Array, "B Q V"]
    hidden: Float[Array, "B Q D"]  # the last layer's output, normalised
    window: XLMemory  # the XL memory with the new tokens appended
    retrieval: Retrieval


class Attention(nnx.Module):
    """Multi-head attention to the window, and in the kNN layer to that memory too.

    A memory of context keys answers with tokens. They enter the residual stream as rows of the output layer's weights,
    so that the layers above find there what the output needs to predict them.
    """

    def __init__(self, config: cfg.Config, layer: int, *, rngs: nnx.Rngs):
        model = config.model
        heads, head_width = model.heads, model.width // model.heads
        self.config, self.layer = config, layer
        self.has_knn = config.memory.has_keys and layer == config.memory.knn_layer - 1
        self.qkv = nnx.Param(_qkv(rngs.params(), (3, heads, model.width, head_width)))
        self.out = nnx.Param(_out(rngs.params(), (heads, head_width, model.width)) / (2 * model.layers) ** 0.5)
        self.out_bias = nnx.Param(jnp.zeros(model.width)) if model.biases else None
        self.normalized = self.has_knn or model.qk_norm
        if self.normalized:
            self.scale = nnx.Param(jnp.full(heads, NORMALIZED_SCALE, jnp.float32))
        if self.has_knn:
            self.knn = KNNAttention(config)

    def __call__(self, x: Float[Array, "B Q D"], inputs: SegmentInputs) -> tuple[Array, tuple[Array, Array], Retrieval]:
        """Returns the output, the layer's keys and values with the new ones appended, and what the kNN memory did."""
        # Transposed only after the product: for "sbhtk", XLA's CPU compiler has the product itself put the features
        # first, and all that reads it goes through memory in large strides.
        qkv = jnp.einsum("btd,shdk->btshk", x, self.qkv[...].astype(x.dtype))
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        if self.normalized:
            q, k = normalize(q), normalize(k)
        if inputs.rotation is not None:
            q, k = rotate(q, inputs.rotation), rotate(k, inputs.rotation)
        scaled = q * (self.scale[...][:, None, None].astype(x.dtype) if self.normalized else q.shape[-1] ** -0.5)
        keys, values = mem.extend(inputs.xl, self.layer, k, v)
        bias = inputs.knn_layer_bias if self.has_knn else inputs.bias
        if bias is not None:
            y, lse = attend(scaled, keys, values, bias, inputs.mask)
        else:
            turned = token_rotation(jnp.arange(keys.shape[2])[None], keys.shape[-1])
            of_queries = Rotation(*(x[:, -q.shape[2] :] for x in turned))
            rotated = rotate(scaled, of_queries), rotate(keys, turned)
            y, lse = attend(*rotated, values, None, inputs.mask)
        found, answer = Retrieval(retrieval.no_statistics(self.config.model.heads)), None
        if self.has_knn and inputs.slots is not None:
            if inputs.context is not None:
                q = inputs.context
                scaled = q * self.knn.scale[...][:, None, None].astype(q.dtype)
            # Keys in the ring have no positions in tokens: neither have these queries.
            y, answer, found = self.knn(y, lse, q, scaled, inputs.slots, inputs.may_search, len(inputs.output))
        y = jnp.einsum("bhtk,hkd->btd", y, self.out[...].astype(y.dtype))
        if self.out_bias is not None:
            y = y + self.out_bias[...].astype(y.dtype)
        if answer is not None:
            y = y + answer.astype(y.dtype) @ inputs.output
        return y, (keys, values), found


class Block(nnx.Module):
    def __init__(self, config: cfg.Config, layer: int, *, rngs: nnx.Rngs):
        self.rate = config.model.dropout
        self.norm1 = make_norm(config.model, rngs)
        self.attention = Attention(config, layer, rngs=rngs)
        self.norm2 = make_norm(config.model, rngs)
        self.ff = FeedForward(config.model, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B Q D"], inputs: SegmentInputs, keys: Array | None
    ) -> tuple[Array, tuple[Array, Array], Retrieval]:
        with jax.named_scope("attention"):
            y, extended, found = self.attention(self.norm1(x), inputs)
            x = x + dropout(y, self.rate, fold_in(keys, 0))
        with jax.named_scope("ff"):
            return x + self.ff(self.norm2(x), fold_in(keys, 1)), extended, found


class Decoder(nnx.Module):
    def __init__(self, config: cfg.Config, vocabulary: Vocabulary, *, rngs: nnx.Rngs):
        model = config.model

        def embedding(*shape: int) -> nnx.Param:
            return nnx.Param(_small(rngs.params(), (*shape, model.width)))

        self.config, self.vocabulary = config, vocabulary
        self.token, self.bar = embedding(vocabulary.size), embedding(BARS)
        self.position = embedding(BEATS * vocabulary.scheme.steps_per_beat)
        if model.pitches:
            self.pitch = embedding(PITCH_CLASSES + OCTAVES)
        if model.previous_tokens:
            # To continue as after an earlier occurrence, a head looks for keys that know which tokens preceded them
            # (Olsson et al. 2022, "In-context learning and induction heads"). These embeddings say so from the start.
            self.previous = embedding(model.previous_tokens, vocabulary.size)
        if config.memory.aligns:
            self.pointer = Pointer(config, rngs=rngs)
        if config.memory.has_context_keys:
            self.context_keys = ContextKeys(config, vocabulary, len(self.position[...]), rngs=rngs)
        if model.positions != "rotary":
            # One table for the plain layers, one for the kNN layer.
            self.bias = nnx.Param(jnp.stack([initial_bias(model.heads)] * 2))
        self.blocks = nnx.List([Block(config, layer, rngs=rngs) for layer in range(model.layers)])
        self.norm = make_norm(model, rngs)
        if not model.tied:
            self.output = embedding(vocabulary.size)
        if model.biases:
            self.output_bias = nnx.Param(jnp.zeros(vocabulary.size))

    def __call__(
        self,
        tokens: Int[Array, "B Q"],
        bar: Int[Array, "B Q"],
        position: Int[Array, "B Q"],
        song: Int[Array, "B Q"],
        memory: mem.Memory,
        *,
        keys: Array | None = None,
    ) -> Output:
        """Logits of the next tokens.

        Args:
            position: in the bar, in grid steps.
            memory: its XL window ends where these tokens begin.
            keys: dropout keys, one per lane; None without dropout.
        """
        window_song = jnp.concatenate([memory.xl.song, song], 1)
        window_token = jnp.concatenate([memory.xl.token, tokens], 1)
        context = window_context = None
        if memory.xl.context is not None:
            context = self.context_keys.of_segment(tokens, song, position, memory.xl).astype(self.config.model.dtype)
            window_context = jnp.concatenate([memory.xl.context, context], 2)
        rotation = self.rotation(tokens, bar, position)
        inputs = self._segment_inputs(song, window_song, memory, rotation, context)
        with jax.named_scope("embed"):
            x = self.embed(tokens, bar, position)
            here = slice(memory.xl.song.shape[1], window_song.shape[1])
            for distance in range(1, self.config.model.previous_tokens + 1):
                # Pad first, so that every token has a slot at this distance.
                previous_song, previous_token = (
                    jnp.pad(slots, ((0, 0), (distance, 0)), constant_values=mem.NO_SONG)[:, here]
                    for slots in (window_song, window_token)
                )
                x = x + self.embed_previous(distance, previous_token, previous_song == song).astype(x.dtype)
        extended, found = [], Retrieval(retrieval.no_statistics(self.config.model.heads))
        for i, block in enumerate(self.blocks):
            with jax.named_scope(f"block{i}"):
                x, keys_and_values, block_found = block(x, inputs, fold_in(keys, i))
            extended.append(keys_and_values)
            if block.attention.has_knn:
                found = block_found
        hidden = self.norm(x)
        xl_keys, xl_values = zip(*extended, strict=True)
        window = XLMemory(xl_keys, xl_values, window_song, window_token, window_context)
        return Output(self.logits(hidden), hidden, window, found)

    def embed(self, tokens: Int[Array, "*B"], bar: Array, position: Array) -> Float[Array, "*B D"]:
        """Bars below 0, those of a context song, have the embedding of bar 0."""
        table = self.embeddings()
        place = self.bar[...][jnp.maximum(bar, 0) % BARS] + self.position[...][position % len(self.position[...])]
        return table[tokens] + place.astype(table.dtype)

    def rotation(self, tokens: Int[Array, "B Q"], bar: Array, position: Array) -> Rotation | None:
        """Of these tokens' queries and keys, if they have musical positions."""
        model, vocabulary = self.config.model, self.vocabulary
        if model.positions != "musical":
            return None
        pitch = jnp.asarray(vocabulary.first_pitch)[tokens]
        return musical_rotation(bar, position, pitch, vocabulary.scheme.steps_per_beat, model.width // model.heads)

    def embeddings(self) -> Float[Array, "V D"]:
        """Of all tokens, in the computation's dtype."""
        table = self.token[...]
        if self.config.model.pitches:
            table = table + pitch_features(self.vocabulary) @ self.pitch[...]
        return table.astype(self.config.model.dtype)

    def embed_previous(self, distance: int, tokens: Int[Array, "*B"], valid: Bool[Array, "*B"]) -> Float[Array, "*B D"]:
        """Embeddings of the tokens at a distance before each token; zeros where these are not valid."""
        return jnp.where(valid[..., None], self.previous[...][distance - 1][tokens], 0)

    def output_weights(self) -> Float[Array, "V D"]:
        """The output layer's weights, in the computation's dtype."""
        return self.embeddings() if self.config.model.tied else self.output[...].astype(self.config.model.dtype)

    @jax.named_scope("logits")
    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        weights = self.output_weights()
        logits = jnp.einsum("...d,vd->...v", hidden, weights, preferred_element_type=jnp.float32)
        return logits + self.output_bias[...] if self.config.model.biases else logits

    def _segment_inputs(
        self,
        song: Int[Array, "B Q"],
        window_song: Int[Array, "B W"],
        memory: mem.Memory,
        rotation: Rotation | None,
        context: Array | None,
    ) -> SegmentInputs:
        queries, slots = song.shape[1], window_song.shape[1]
        first = slots - queries
        distance = first + jnp.arange(queries)[:, None] - jnp.arange(slots)
        mask = ((distance >= 0) & (song[:, :, None] == window_song[:, None, :]))[:, None]
        bias = knn_layer_bias = None
        if self.config.model.positions != "rotary":
            bias, knn_layer_bias = (position_bias(table, first, queries, slots) for table in self.bias[...])
        valid = mem.valid_slots(memory.knn, song[:, 0]) if memory.knn is not None else None
        weights = self.output_weights()
        may_search = song == song[:, :1]
        return SegmentInputs(memory.xl, valid, may_search, mask, bias, knn_layer_bias, rotation, context, weights)


def init_params(config: cfg.Config, vocabulary: Vocabulary, *, seed: int) -> tuple[nnx.GraphDef, dict]:
    """The decoder's structure and its parameters as a plain dict."""
    graphdef, state = nnx.split(Decoder(config, vocabulary, rngs=nnx.Rngs(seed)), nnx.Param)
    return graphdef, nnx.to_pure_dict(state)


def abstract_decoder(config: cfg.Config, vocabulary: Vocabulary) -> nnx.GraphDef:
    """The decoder's structure alone; nothing is computed."""
    decoder = nnx.eval_shape(lambda: Decoder(config, vocabulary, rngs=nnx.Rngs(0)))
    return nnx.split(decoder, nnx.Param)[0]
