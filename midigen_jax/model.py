"""The decoder: a transformer with relative positions, XL memory in every layer and kNN memory in one.

Modules hold parameters and nothing else: memory, dropout keys and caches go in and come out. Letters of shapes are
those of `shapes`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from . import cache as caches
from . import config as cfg
from . import memory as mem
from . import vocab
from .attention import (
    Attention,
    Decoding,
    Reading,
    initial_bias,
    position_bias,
    t5_bucket,
)
from .cache import Cache
from .context import LENGTH, Context
from .memory import KNNMemory, XLMemory
from .recall import Recall, no_statistics
from .shapes import Array, Bool, Float, Int
from .vocab import Vocabulary

BARS = 1024  # bar numbers are taken modulo this
BEATS = 12  # steps in the bar are taken modulo so many beats
PITCH_CLASSES, OCTAVES = 12, 11
EPSILON = 1e-5  # of the norms, as PyTorch has it


def _swiglu(x: Array) -> Array:
    gate, x = jnp.split(x, 2, -1)
    return jax.nn.silu(gate) * x


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),  # So et al. 2021, "Primer"
    "swiglu": _swiglu,  # Shazeer 2020, "GLU variants improve transformer"
}

_small = nnx.initializers.normal(0.02)

nnx.set_graph_mode(False)
nnx.set_graph_updates(False)


class Output(NamedTuple):
    logits: Float[Array, "B Q V"]
    window: XLMemory  # what was given, and the new tokens
    knn: KNNMemory | None  # as it was given
    recall: Recall


def dropout(x: Float[Array, "*B F"], rate: float, keys: Array | None) -> Float[Array, "*B F"]:
    """Inverted dropout, with a key a lane, so that a lane's mask depends on no other lane and on no device.

    The rate is rounded to 1/256: a byte a value costs a quarter of a float's random bits.
    """
    kept = max(round(256 * (1 - rate)), 1)
    if keys is None or kept == 256:
        return x
    bits = jax.vmap(lambda key: jax.random.bits(key, x.shape[1:], jnp.uint8))(keys)
    return jnp.where(bits < kept, x * (256 / kept), 0).astype(x.dtype)


def pitch_features(vocabulary: Vocabulary) -> Float[Array, "V features"]:
    """How often a token sounds each pitch class and each octave; a merged token may sound several."""
    features = np.zeros((vocabulary.size, PITCH_CLASSES + OCTAVES), np.float32)
    for token, parts in enumerate(vocabulary.spelled):
        for part in parts:
            if vocab.NOTE_0 <= part < vocab.DURATION_0:
                octave, pitch_class = divmod(part - vocab.NOTE_0, PITCH_CLASSES)
                features[token, [pitch_class, PITCH_CLASSES + octave]] += 1
    return jnp.asarray(features)


def make_norm(model: cfg.Model, rngs: nnx.Rngs) -> nnx.LayerNorm | nnx.RMSNorm:
    dtype = jnp.dtype(model.dtype)
    if model.norm == "rms":
        return nnx.RMSNorm(model.width, epsilon=EPSILON, dtype=dtype, rngs=rngs)
    return nnx.LayerNorm(model.width, epsilon=EPSILON, use_bias=model.biases, dtype=dtype, rngs=rngs)


class FeedForward(nnx.Module):
    def __init__(self, model: cfg.Model, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(model.dtype)
        self.activation, self.rate = model.activation, model.dropout
        n_up = 2 if model.activation == "swiglu" else 1
        self.up = nnx.Linear(model.width, n_up * model.ff_width, use_bias=model.biases, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(model.ff_width, model.width, use_bias=model.biases, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*B D"], keys: Array | None) -> Float[Array, "*B D"]:
        return self.down(dropout(_ACTIVATIONS[self.activation](self.up(x)), self.rate, keys))


class Block(nnx.Module):
    def __init__(self, config: cfg.Config, layer: int, *, rngs: nnx.Rngs):
        self.rate = config.model.dropout
        self.norm1 = make_norm(config.model, rngs)
        self.attention = Attention(config, layer, rngs=rngs)
        self.norm2 = make_norm(config.model, rngs)
        self.ff = FeedForward(config.model, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B Q D"], reading: Reading, keys: Array | None
    ) -> tuple[Array, tuple[Array, Array], Recall]:
        """Returns the output, the layer's window with the new keys and values, and what the kNN memory did."""
        after_attention, in_ff = _fold_in(keys, 0), _fold_in(keys, 1)
        with jax.named_scope("attention"):
            y, extended, recall = self.attention(self.norm1(x), reading)
            x = x + dropout(y, self.rate, after_attention)
        with jax.named_scope("ff"):
            return x + self.ff(self.norm2(x), in_ff), extended, recall

    def decode(
        self, x: Float[Array, "B D"], weights: tuple[Array, Array], cache: Cache, decoding: Decoding
    ) -> tuple[Array, Cache]:
        """The same for one token a row, and the cache with it."""
        y, cache = self.attention.decode(self.norm1(x), weights, cache, decoding)
        x = x + y
        return x + self.ff(self.norm2(x), None), cache


def _fold_in(keys: Array | None, number: int) -> Array | None:
    """A key for every lane from its key and a number."""
    return None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, number)


class Decoder(nnx.Module):
    def __init__(self, config: cfg.Config, vocabulary: Vocabulary, *, rngs: nnx.Rngs):
        model = config.model

        def embedding(size: int) -> nnx.Param:
            return nnx.Param(_small(rngs.params(), (size, model.width)))

        self.config = config
        self.token, self.bar = embedding(vocabulary.size), embedding(BARS)
        self.step = embedding(BEATS * vocabulary.scheme.steps_per_beat)
        if model.pitches:
            self.pitch = embedding(PITCH_CLASSES + OCTAVES)
            self.vocabulary = vocabulary
        if model.previous_tokens:
            # To go on as after an earlier turn of the melody, a head looks for keys that know which tokens came before
            # them (Olsson et al. 2022, "In-context learning and induction heads"). Given that, none has to learn it.
            self.previous = nnx.Param(_small(rngs.params(), (model.previous_tokens, vocabulary.size, model.width)))
        if config.memory.knn:
            self.context = Context(config, vocabulary, len(self.step[...]), rngs=rngs)
        if model.positions == "t5":
            # One table for the plain layers, one for the kNN layer.
            self.bias = nnx.Param(jnp.stack([initial_bias(model.heads)] * 2))
        self.blocks = nnx.List([Block(config, layer, rngs=rngs) for layer in range(model.layers)])
        self.norm = make_norm(model, rngs)
        if not model.tied:
            self.output = nnx.Param(_small(rngs.params(), (vocabulary.size, model.width)))
        if model.biases:
            self.output_bias = nnx.Param(jnp.zeros(vocabulary.size))

    def embeddings(self) -> Float[Array, "V D"]:
        """Of all tokens, in the computation's dtype."""
        table = self.token[...]
        if self.config.model.pitches:
            table = table + pitch_features(self.vocabulary) @ self.pitch[...]
        return table.astype(self.config.model.dtype)

    def __call__(
        self,
        tokens: Int[Array, "B Q"],
        bar: Int[Array, "B Q"],
        step: Int[Array, "B Q"],
        song: Int[Array, "B Q"],
        memory: mem.Memory,
        *,
        keys: Array | None = None,
    ) -> Output:
        """Logits of the next tokens.

        Args:
            memory: its XL window ends where these tokens begin.
            keys: of the dropout, one a lane; none without.
        """
        window_song = jnp.concatenate([memory.xl.song, song], 1)
        window_token = jnp.concatenate([memory.xl.token, tokens], 1)
        context = None if memory.knn is None else self._context(tokens, song, step, memory.xl)
        reading = self._begin(song, window_song, memory, context)
        with jax.named_scope("embed"):
            x = self._embed(tokens, bar, step)
            first, queries = memory.xl.song.shape[1], song.shape[1]
            for distance in range(1, self.config.model.previous_tokens + 1):
                # Padding first, so that there is a slot so far before each token.
                back = slice(first, first + queries)
                before_song, before_token = (
                    jnp.pad(slots, ((0, 0), (distance, 0)), constant_values=mem.NO_SONG)[:, back]
                    for slots in (window_song, window_token)
                )
                x = x + self._previous(distance, before_token, before_song == song).astype(x.dtype)
        extended, recall = [], Recall(no_statistics(self.config.model.heads))
        for i, block in enumerate(self.blocks):
            with jax.named_scope(f"block{i}"):
                x, keys_and_values, block_recall = block(x, reading, _fold_in(keys, i))
            extended.append(keys_and_values)
            if block.attention.has_knn:
                recall = block_recall
        logits = self._logits(x)
        xl_keys, xl_values = zip(*extended, strict=True)
        ring = memory.knn and mem.after_reading(memory.knn, logits)
        if context is not None and memory.xl.context is not None:
            context = jnp.concatenate([memory.xl.context, context], 2)
        window = XLMemory(xl_keys, xl_values, window_song, window_token, context)
        return Output(logits, window, ring, recall)

    def weights_for_decoding(self) -> list[tuple[Array, Array]]:
        """What `decode` needs of every layer; to be made before a loop over tokens, which would make it for each."""
        return [block.attention.weights_for_decoding() for block in self.blocks]

    def decode(
        self,
        token: Int[Array, " B"],
        bar: Int[Array, " B"],
        step: Int[Array, " B"],
        weights: list[tuple[Array, Array]],
        cache: Cache,
        active: Bool[Array, " B"],
    ) -> tuple[Float[Array, "B V"], Cache]:
        """Logits of the token after this one, and the cache with it.

        Nothing is written in rows that are not active; before they are again, they need `cache.catch_up`.
        """
        place, xl = cache.place, self.config.memory.xl
        distance = caches.distances(place, cache.keys[0].shape[1])
        reach = caches.reach(place, xl)
        bias = knn_bias = None
        if self.config.model.positions == "t5":
            bias, knn_bias = (table[t5_bucket(distance)].T for table in self.bias[...])
        context = None if cache.ring is None else self._context_of_one(token, step, cache, reach)
        mask = distance <= reach[:, None]
        decoding = Decoding(token, active, distance, mask, bias, knn_bias, context, self._output())
        x = self._embed(token, bar, step)
        for i in range(self.config.model.previous_tokens):
            x = x + self._previous(i + 1, cache.previous[:, i], reach > i).astype(x.dtype)
        for block, block_weights in zip(self.blocks, weights, strict=True):
            x, cache = block.decode(x, block_weights, cache, decoding)
        return self._logits(x), caches.advance(cache, token, active, self.config)

    def _embed(self, tokens: Int[Array, "*B"], bar: Array, step: Array) -> Float[Array, "*B D"]:
        table = self.embeddings()
        place = self.bar[...][bar % BARS] + self.step[...][step % len(self.step[...])]
        return table[tokens] + place.astype(table.dtype)

    def _previous(self, distance: int, tokens: Int[Array, "*B"], valid: Bool[Array, "*B"]) -> Float[Array, "*B D"]:
        """The embedding of the token so far before each token; zeros where that is not in the window or the song."""
        return jnp.where(valid[..., None], self.previous[...][distance - 1][tokens], 0)

    def _context(
        self, tokens: Int[Array, "B Q"], song: Int[Array, "B Q"], step: Int[Array, "B Q"], xl: XLMemory
    ) -> Float[Array, "B H Q Dh"]:
        def with_last(old: Array, new: Array) -> Array:
            padded = jnp.pad(old, ((0, 0), (LENGTH - 1, 0)), constant_values=mem.NO_SONG)
            return jnp.concatenate([padded[:, -(LENGTH - 1) :], new], 1)

        context = self.context(with_last(xl.token, tokens), with_last(xl.song, song), step)
        return jnp.swapaxes(context, 1, 2).astype(self.config.model.dtype)

    def _context_of_one(
        self, token: Int[Array, " B"], step: Int[Array, " B"], cache: Cache, reach: Int[Array, " B"]
    ) -> Float[Array, "B H Dh"]:
        distance = jnp.arange(LENGTH - 1, -1, -1)
        tokens = jnp.concatenate([cache.previous[:, LENGTH - 2 :: -1], token[:, None]], 1)
        song = jnp.where(distance <= reach[:, None], 0, mem.NO_SONG)
        return self.context(tokens, song, step[:, None])[:, 0].astype(self.config.model.dtype)

    def _output(self) -> Float[Array, "V D"]:
        """The output layer's weights, in the computation's dtype."""
        return self.embeddings() if self.config.model.tied else self.output[...].astype(self.config.model.dtype)

    def _logits(self, x: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        with jax.named_scope("logits"):
            logits = jnp.einsum("...d,vd->...v", self.norm(x), self._output(), preferred_element_type=jnp.float32)
            return logits + self.output_bias[...] if self.config.model.biases else logits

    def _begin(
        self, song: Int[Array, "B Q"], window_song: Int[Array, "B W"], memory: mem.Memory, context: Array | None
    ) -> Reading:
        queries, slots = song.shape[1], window_song.shape[1]
        first = slots - queries
        distance = first + jnp.arange(queries)[:, None] - jnp.arange(slots)
        mask = ((distance >= 0) & (song[:, :, None] == window_song[:, None, :]))[:, None]
        bias = knn_bias = None
        if self.config.model.positions == "t5":
            bias, knn_bias = (position_bias(table, first, queries, slots) for table in self.bias[...])
        heard = None if memory.knn is None else mem.heard(memory.knn, song[:, 0])
        return Reading(memory.xl, heard, song == song[:, :1], mask, bias, knn_bias, context, self._output())


def init_params(config: cfg.Config, vocabulary: Vocabulary, *, seed: int) -> tuple[nnx.GraphDef, dict]:
    """The decoder's structure and its parameters as a plain dict."""
    decoder = Decoder(config, vocabulary, rngs=nnx.Rngs(seed))
    graphdef, state = nnx.split(decoder, nnx.Param)
    return graphdef, nnx.to_pure_dict(state)


def abstract(config: cfg.Config, vocabulary: Vocabulary) -> nnx.GraphDef:
    """The decoder's structure alone; nothing is computed."""
    decoder = nnx.eval_shape(lambda: Decoder(config, vocabulary, rngs=nnx.Rngs(0)))
    return nnx.split(decoder, nnx.Param)[0]
