"""What the kNN memory answers: the layer's values of the entries found, or the tokens that followed similar contexts.

Letters of shapes are those of `shapes`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .. import config as cfg
from ..shapes import Array, Bool, Float, Int
from . import memory as mem
from .attention import NORMALIZED_SCALE, softmax
from .cache import Ring
from .memory import ValidSlots
from .search import Hits, in_range, resolve_backend, top_k

LOGIT_SCALE = 2.0  # at the start: how strongly each head adds the tokens that its memory found


class RetrievalStatistics(NamedTuple):
    """What the kNN memory did in a segment; zeros without one."""

    hit_rate: Float[Array, " H"]  # share of the queries for which each head found anything
    hits: Array  # number of entries found
    ages: Array  # the sum of their ages: tokens between an entry and its query; 0 without a search
    attention_share: Float[Array, " H"]  # the memory's share of each head's attention, mean over all queries
    valid_slots: Array  # slots of the current song, mean over lanes


def no_statistics(heads: int) -> RetrievalStatistics:
    zero = jnp.zeros(())
    return RetrievalStatistics(jnp.zeros(heads), zero, zero, jnp.zeros(heads), zero)


class Retrieval(NamedTuple):
    """What the kNN memory did for each token; only the statistics without a search."""

    statistics: RetrievalStatistics
    ages: Int[Array, "B H Q k"] | None = None  # tokens between a hit and its query; 0: nothing was found
    weights: Float[Array, "B H Q k"] | None = None  # the share of each hit in a head's attention


def joined(keys: Retrieval, alignment: Retrieval) -> Retrieval:
    """What two kinds of memory did, as if that by alignment were one more head; slots are those of the keys."""
    one, other = keys.statistics, alignment.statistics
    statistics = RetrievalStatistics(
        jnp.concatenate([one.hit_rate, other.hit_rate]),
        one.hits + other.hits,
        one.ages + other.ages,
        jnp.concatenate([one.attention_share, other.attention_share]),
        one.valid_slots,
    )
    if keys.ages is None or keys.weights is None:
        return Retrieval(statistics)
    assert alignment.ages is not None
    assert alignment.weights is not None
    # Alignment has candidates by place beside its top_k.
    missing = alignment.ages.shape[-1] - keys.ages.shape[-1]
    ages, weights = (jnp.pad(x, [(0, 0)] * 3 + [(0, missing)]) for x in (keys.ages, keys.weights))
    return Retrieval(
        statistics, jnp.concatenate([ages, alignment.ages], 1), jnp.concatenate([weights, alignment.weights], 1)
    )


class Found(NamedTuple):
    """The memory's contribution before it is mixed with the window."""

    # Sum of the weighted values, or in the dense memory the weight of each token. None for tokens found by a search:
    # they are summed over heads at once.
    total: Float[Array, "B H Q Dh"] | Float[Array, "B H Q V"] | None
    hit_weights: Float[Array, "B H Q k"] | None  # by hit; of a search
    hits: Hits | None
    lse: Float[Array, "B H Q 1"]  # logarithm of the softmax divisor; undefined where nothing was found
    any: Bool[Array, "#B 1 Q"] | Bool[Array, "B H Q"]  # whether anything was found


class KNNAttention(nnx.Module):
    """How the kNN memory shares the attention of its layer with the window."""

    def __init__(self, config: cfg.Config):
        heads = config.model.heads
        self.memory = config.memory
        self.bias = nnx.Param(jnp.zeros(heads))
        if config.memory.has_context_keys:
            self.scale = nnx.Param(jnp.full(heads, NORMALIZED_SCALE, jnp.float32))
            self.logit_scale = nnx.Param(jnp.full(heads, LOGIT_SCALE, jnp.float32))

    @jax.named_scope("knn")
    def __call__(
        self,
        y: Float[Array, "B H Q Dh"],
        lse: Float[Array, "B H Q 1"],
        queries: Float[Array, "B H Q Dh"],
        scaled: Float[Array, "B H Q Dh"],
        slots: ValidSlots,
        may_search: Bool[Array, "B Q"],
        vocabulary: int,
    ) -> tuple[Float[Array, "B H Q Dh"], Float[Array, "B Q V"] | None, Retrieval]:
        """The layer's output, to which the window contributes its share, and the weights of the tokens found, if any.

        Args:
            y, lse: of the attention to the window.
            queries: of length 1; with context keys, those of the queries.
            scaled: the same times each head's scale.
            vocabulary: its size.
        """
        ages = weights = answer = None
        found = find(queries, scaled, slots, may_search, self.memory, vocabulary)
        share = self.share(lse, found.lse, found.any[..., None])
        if found.hits is None or found.hit_weights is None:  # the dense memory
            hits = jnp.sum(found.any * slots.length[:, None, None], dtype=jnp.float32) * queries.shape[1]
            sum_of_ages = jnp.zeros(())
        else:
            weights = found.hit_weights * share
            hits = jnp.sum(found.hits.found, dtype=jnp.float32)
            ages = jnp.where(found.hits.found, mem.ages(slots, found.hits.slots, self.memory.xl), 0)
            sum_of_ages = jnp.sum(ages, dtype=jnp.float32)
        mixed = y.astype(jnp.float32) * (1 - share)
        if found.total is None:
            assert found.hits is not None
            assert weights is not None
            answer = sum_by_token(weights * self.logit_scale[...][:, None, None], found.hits.values, vocabulary)
        elif self.memory.has_context_keys:
            answer = jnp.sum(found.total * share * self.logit_scale[...][:, None, None], 1)
        else:
            mixed = mixed + found.total * share
        hit_rate = jnp.broadcast_to(found.any, share.shape[:3]).mean((0, 2))
        statistics = RetrievalStatistics(hit_rate, hits, sum_of_ages, share.mean((0, 2, 3)), slots.length.mean())
        return mixed.astype(y.dtype), answer, jax.lax.stop_gradient(Retrieval(statistics, ages, weights))

    def share(
        self,
        lse: Float[Array, "B H *Q 1"],
        lse_found: Float[Array, "B H *Q 1"],
        found: Bool[Array, "..."],
        log_odds: Float[Array, ""] | float = 0.0,
    ) -> Float[Array, "B H *Q 1"]:
        """The memory's share of each head's output; 0 where nothing was found.

        In one softmax over the window and the hits, whose scores are raised by the bias, the memory counts as much as
        it matches the query. A gate that ignores the query, as in Memorizing Transformers (Wu et al. 2022), stays low
        until the memory is right on average.

        Args:
            log_odds: added to those of the share.
        """
        log_odds = log_odds + self.bias[...].reshape(-1, *[1] * (lse.ndim - 2))
        if self.memory.mixing == "softmax":
            log_odds = log_odds + lse_found - lse
        return jnp.where(found, nnx.sigmoid(log_odds), 0)


def find(
    queries: Float[Array, "B H Q Dh"],
    scaled: Float[Array, "B H Q Dh"],
    slots: ValidSlots,
    may_search: Bool[Array, "B Q"],
    memory: cfg.Memory,
    vocabulary: int,
) -> Found:
    """Softmax over the nearest neighbours, or in the dense memory over every valid slot.

    Args:
        queries: of length 1.
        scaled: the same times each head's scale.
    """
    total: Array | None = None
    if resolve_backend(memory.backend) == "dense":
        total, lse = attend_all(scaled, slots, vocabulary)
        return Found(total, None, None, lse, (may_search & (slots.length > 0)[:, None])[:, None])
    hits = mem.retrieve(slots, queries, may_search, memory.top_k, memory.backend)
    weights, lse = attend_hits(scaled, hits)
    if not memory.has_context_keys:
        total = weighted_sum(weights, hits.values)
    return Found(total, weights, hits, lse, hits.found.any(-1))


def attend_hits(q: Float[Array, "B H Q Dh"], hits: Hits) -> tuple[Float[Array, "B H Q k"], Float[Array, "B H Q 1"]]:
    """Weights of the hits of a search, and their lse; q is scaled. Both are undefined where nothing was found."""
    scores = jnp.einsum("bhtd,bhtkd->bhtk", q, hits.keys.astype(q.dtype), preferred_element_type=jnp.float32)
    found = hits.found
    # Where nothing was found, equal scores stand in, so that no gradient is NaN.
    return softmax(jnp.where(found, scores, jnp.where(found.any(-1, keepdims=True), -jnp.inf, 0.0)))


def weighted_sum(weights: Float[Array, "B H *Q k"], values: Float[Array, "B H *Q k Dh"]) -> Float[Array, "B H *Q Dh"]:
    return jnp.einsum("...k,...kd->...d", weights, values.astype(jnp.float32))


def attend_all(
    q: Float[Array, "B H Q Dh"], slots: ValidSlots, vocabulary: int
) -> tuple[Float[Array, "B H Q Dh"] | Float[Array, "B H Q V"], Float[Array, "B H Q 1"]]:
    """The weighted sum of all valid slots' values, or the weight of each token that followed them; and their lse.

    Without a search, for comparison; undefined where there are no valid slots. A step of several segments keeps a copy
    of the ring for each.
    """

    @jax.checkpoint
    def one_lane(lane: tuple[Array, ValidSlots]) -> tuple[Array, Array]:
        q, slots = lane
        scores = jnp.einsum("htd,hmd->htm", q, slots.keys.astype(q.dtype), preferred_element_type=jnp.float32)
        valid = in_range(slots.keys.shape[1], slots.start, slots.length)
        scores = jnp.where(valid, scores, jnp.finfo(jnp.float32).min)
        weights, lse = softmax(scores)
        values = jax.nn.one_hot(slots.values, vocabulary) if slots.values.ndim == 1 else slots.values
        return weights @ values.astype(weights.dtype), lse

    # One lane after the other: the scores of all at once would be B H Q M numbers.
    return jax.lax.map(one_lane, (q, jax.lax.stop_gradient(slots)))


def retrieve_one(
    q: Float[Array, "BH Dh"],
    scale: Float[Array, " H"],
    ring: Ring,
    start: Int[Array, " B"],
    count: Int[Array, " B"],
    memory: cfg.Memory,
) -> tuple[Float[Array, "B H k"], Float[Array, "B H k Dh"] | Int[Array, "B H k"], Float[Array, "BH 1"]]:
    """For one query per row: weights of the nearest slots of the ring (of all, in the dense memory), their values, and
    the lse of the weights. Undefined where there are no valid slots.

    The search is always XLA's: a host callback per token would take longer than the scores.
    """
    rows, heads = len(count), len(scale)
    valid = jnp.repeat(in_range(ring.values.shape[1], start, count), heads, 0)
    scores, first = [], 0
    for piece in ring.keys:
        here = valid[:, first : first + piece.shape[1]]

        def score(piece: Array, here: Array) -> Array:
            scores = jnp.einsum("bk,bmk->bm", q, piece, precision="highest", preferred_element_type=jnp.float32)
            return jnp.where(here, scores, -jnp.inf)

        def skip(piece: Array, here: Array) -> Array:
            return jnp.full(here.shape, -jnp.inf)

        scores.append(jax.lax.cond(here.any(), score, skip, piece, here))
        first += piece.shape[1]
    best = jnp.concatenate(scores, 1)
    slots = jnp.broadcast_to(jnp.arange(best.shape[1]), best.shape)
    if resolve_backend(memory.backend) != "dense":
        best, slots = top_k(best, min(memory.top_k, best.shape[1]))
    if ring.values.ndim == 3:
        values = jnp.take_along_axis(ring.values, slots[..., None], 1)
    else:
        values = jnp.take_along_axis(ring.values, slots.reshape(rows, -1), 1)
    found = jnp.repeat(count > 0, heads)[:, None]
    weights, lse = softmax(jnp.where(found, best * jnp.tile(scale, rows)[:, None], 0.0))
    return weights.reshape(rows, heads, -1), values.reshape(rows, heads, slots.shape[1], *values.shape[2:]), lse


def sum_by_token(
    weights: Float[Array, "B H *Q k"], token: Int[Array, "B H *Q k"], vocabulary: int
) -> Float[Array, "B *Q V"]:
    """The summed weight of each token of the vocabulary over hits and heads."""
    weights, token = jnp.moveaxis(weights, 1, -2), jnp.moveaxis(token, 1, -2)
    shape = weights.shape[:-2]
    queries = int(np.prod(shape))
    add = jax.vmap(lambda weights, token: jnp.zeros(vocabulary).at[token].add(weights))
    return add(weights.reshape(queries, -1), token.reshape(queries, -1)).reshape(*shape, vocabulary)
