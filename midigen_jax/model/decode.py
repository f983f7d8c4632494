"""The decoder's second path: one token per row, with a cache in which nothing moves.

The same parameters and the same function as `decoder`, a test holds both to the same logits; written apart because a
program for one token is bound by the bytes it reads. Letters of shapes are those of `shapes`; B are rows, W = XL + T.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..shapes import Array, Bool, Float, Int
from . import alignment
from . import cache as caches
from . import memory as mem
from .attention import attend_one, normalize
from .cache import Cache
from .context_keys import LENGTH
from .decoder import Attention, Block, Decoder
from .pointer import Copies
from .positions import Rotation, rotate, t5_bucket, token_rotation
from .retrieval import retrieve_one, sum_by_token, weighted_sum

SONG = 0  # the number of every row's song

Weights = tuple[Float[Array, "D qkv"], Float[Array, "heads D"]]  # a layer's projections as matrices


class DecodeInputs(NamedTuple):
    """What all layers share while they read one token per row."""

    token: Int[Array, " B"]
    active: Bool[Array, " B"]
    distance: Int[Array, " W"]  # of the window's slots, in tokens
    mask: Bool[Array, "B W"]
    bias: Float[Array, "H W"] | None
    knn_layer_bias: Float[Array, "H W"] | None
    rotation: Rotation | None  # of queries and keys, by musical positions
    context: Float[Array, "B H Dh"] | None
    output: Float[Array, "V D"]
    copy: Float[Array, ""]


def attention_weights(decoder: Decoder) -> list[Weights]:
    """Every layer's projections as `decode_token` needs them; made before a loop over tokens, not in it."""

    def matrices(attention: Attention) -> Weights:
        qkv, out = attention.qkv[...], attention.out[...]
        dtype, width = attention.config.model.dtype, attention.config.model.width
        return jnp.moveaxis(qkv, 2, 0).reshape(width, -1).astype(dtype), out.reshape(-1, width).astype(dtype)

    return [matrices(block.attention) for block in decoder.blocks]


def decode_token(
    decoder: Decoder,
    token: Int[Array, " B"],
    bar: Int[Array, " B"],
    position: Int[Array, " B"],
    weights: list[Weights],
    cache: Cache,
    active: Bool[Array, " B"],
    copy: Float[Array, ""] | float = 0.0,
) -> tuple[Float[Array, "B V"], Copies | None, Cache]:
    """Logits of the token after this one, what a memory by alignment adds to them, and the cache with the token.

    Nothing is written in rows that are not active; before they are active again they need `cache.align`.

    Args:
        cache: between `cache.begin_tokens` and `cache.end_tokens`.
        weights: of `attention_weights`.
        copy: added to the log-odds with which the kNN memory is used; at `pointer.NONE` it is not.
    """
    index, xl = cache.cache_index, decoder.config.memory.xl
    distance = caches.distances(index, cache.keys[0].shape[1])
    visible = caches.visible_tokens(index, xl)
    bias = knn_layer_bias = None
    if decoder.config.model.positions != "rotary":
        bias, knn_layer_bias = (table[t5_bucket(distance)].T for table in decoder.bias[...])
    context = None
    if decoder.config.memory.has_context_keys:
        context = _context(decoder, token, position, cache, visible)
    mask = distance <= visible[:, None]
    shared = decoder.output_weights(), jnp.asarray(copy)
    rotation = decoder.rotation(token[:, None], bar[:, None], position[:, None])
    inputs = DecodeInputs(token, active, distance, mask, bias, knn_layer_bias, rotation, context, *shared)
    x = decoder.embed(token, bar, position)
    for i in range(decoder.config.model.previous_tokens):
        x = x + decoder.embed_previous(i + 1, cache.previous[:, i], visible > i).astype(x.dtype)
    if cache.alignment is not None:
        song = jnp.where(active, SONG, mem.NO_SONG)
        arguments = token, bar, position, song, decoder.vocabulary, decoder.config.memory.top_k
        assert isinstance(cache.alignment, alignment.Reading)
        after, candidates = alignment.read_token(cache.alignment, *arguments)
        cache = cache._replace(alignment=after)
    for block, block_weights in zip(decoder.blocks, weights, strict=True):
        x, cache = _block(block, x, block_weights, cache, inputs)
    hidden = decoder.norm(x)
    logits, copies = decoder.logits(hidden), None
    if cache.alignment is not None:
        copies = decoder.pointer(candidates, hidden, logits)
        copies = copies._replace(log_odds=copies.log_odds + copy)
    return logits, copies, caches.advance(cache, token, active, decoder.config)


def _context(
    decoder: Decoder, token: Int[Array, " B"], position: Int[Array, " B"], cache: Cache, visible: Int[Array, " B"]
) -> Float[Array, "B H Dh"]:
    distance = jnp.arange(LENGTH - 1, -1, -1)
    tokens = jnp.concatenate([cache.previous[:, LENGTH - 2 :: -1], token[:, None]], 1)
    song = jnp.where(distance <= visible[:, None], 0, mem.NO_SONG)
    return decoder.context_keys(tokens, song, position[:, None])[:, 0].astype(decoder.config.model.dtype)


def _block(
    block: Block, x: Float[Array, "B D"], weights: Weights, cache: Cache, inputs: DecodeInputs
) -> tuple[Array, Cache]:
    y, cache = _attention(block.attention, block.norm1(x), weights, cache, inputs)
    x = x + y
    return x + block.ff(block.norm2(x), None), cache


def _attention(
    attention: Attention, x: Float[Array, "B D"], weights: Weights, cache: Cache, inputs: DecodeInputs
) -> tuple[Array, Cache]:
    in_weights, out_weights = weights
    config, rows, heads = attention.config, len(x), attention.config.model.heads
    q, k, v = jnp.moveaxis((x @ in_weights).reshape(rows, 3, heads, -1), 1, 0)
    scale = jnp.full(heads, q.shape[-1] ** -0.5)
    if attention.normalized:
        q, k, scale = normalize(q), normalize(k), attention.scale[...]
    if inputs.rotation is not None:
        q, k = (rotate(x[:, :, None], inputs.rotation)[:, :, 0] for x in (q, k))
    cache = caches.write(cache, attention.layer, k, v, inputs.active)
    keys, values = cache.keys[attention.layer], cache.values[attention.layer]
    bias = inputs.knn_layer_bias if attention.has_knn else inputs.bias
    if bias is None:
        keys = rotate(keys[:, None], token_rotation(-inputs.distance[None], keys.shape[-1]))[:, 0]
    scaled_q = (q * scale[:, None].astype(x.dtype)).reshape(-1, q.shape[-1])
    y, lse = attend_one(scaled_q, keys, values, bias, inputs.mask)
    answer = None
    if cache.ring is not None and attention.has_knn:
        value = v
        if inputs.context is not None:
            q, k, value, scale = inputs.context, inputs.context, inputs.token, attention.knn.scale[...]
        ring = caches.write_ring(cache.ring, cache.cache_index, k, value, inputs.active)
        slots = caches.valid_slots(cache.cache_index, ring, config.memory.xl)
        found = slots[1] > 0
        retrieve = partial(retrieve_one, memory=config.memory)
        arguments = (q.reshape(scaled_q.shape), scale, ring, *slots)
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(retrieve, *arguments))
        hit_weights, found_values, lse_found = jax.lax.cond(found.any(), retrieve, lambda *_: nothing, *arguments)
        lse, lse_found = (x.reshape(rows, heads, 1) for x in (lse, lse_found))
        share = attention.knn.share(lse, lse_found, found[:, None, None], inputs.copy)
        mixed = y.reshape(rows, heads, -1) * (1 - share)
        if inputs.context is None:
            mixed = mixed + share * weighted_sum(hit_weights, found_values)
        else:
            logit_scale = attention.knn.logit_scale[...][:, None]
            answer = sum_by_token(hit_weights * share * logit_scale, found_values, len(inputs.output))
        y, cache = mixed.astype(y.dtype), cache._replace(ring=ring)
    y = y.reshape(rows, -1) @ out_weights
    if answer is not None:
        y = y + answer.astype(y.dtype) @ inputs.output
    return y if attention.out_bias is None else y + attention.out_bias[...].astype(y.dtype), cache
