"""What the kNN memory answers: the tokens that followed what is like the present, and how much each of them weighs.

Letters of shapes are those of `shapes`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import cache as caches
from . import config as cfg
from .memory import Heard
from .search import Hits, in_range, resolve_backend, top_k
from .shapes import Array, Float, Int


class Statistics(NamedTuple):
    """What the kNN memory did; zeros where there is none."""

    hit_rate: Array  # share of queries that found something
    hits: Array  # how many entries were found in a segment
    ages: Array  # the sum of their ages: tokens between an entry and its query; 0 without a search
    mass: Float[Array, " H"]  # share of the memory in the attention of all queries, by head
    slots: Array  # filled slots of the running song, a lane


def no_statistics(heads: int) -> Statistics:
    zero = jnp.zeros(())
    return Statistics(zero, zero, zero, jnp.zeros(heads), zero)


class Recall(NamedTuple):
    """What the kNN memory did for each token; only the statistics without a search."""

    statistics: Statistics
    ages: Int[Array, "B H Q k"] | None = None  # tokens between a hit and its query; 0: nothing was found
    weights: Float[Array, "B H Q k"] | None = None  # the share of each hit in a head's attention


def softmax(scores: Float[Array, "*B W"]) -> tuple[Float[Array, "*B W"], Float[Array, "*B 1"]]:
    """Softmax and the logarithm of its divisor."""
    lse = jax.nn.logsumexp(scores, -1, keepdims=True)
    return jnp.exp(scores - lse), lse


def attend_hits(q: Float[Array, "B H Q Dh"], hits: Hits) -> tuple[Float[Array, "B H Q k"], Float[Array, "B H Q 1"]]:
    """Weights of what a search found and their lse; q is scaled already. Of no use where nothing was found."""
    scores = jnp.einsum("bhtd,bhtkd->bhtk", q, hits.keys.astype(q.dtype), preferred_element_type=jnp.float32)
    found = hits.found
    # Where nothing was found the softmax of equal scores stands in, so that no gradient is NaN.
    return softmax(jnp.where(found, scores, jnp.where(found.any(-1, keepdims=True), -jnp.inf, 0.0)))


def attend_all(
    q: Float[Array, "B H Q Dh"], heard: Heard, vocabulary: int
) -> tuple[Float[Array, "B H Q V"], Float[Array, "B H Q 1"]]:
    """Weights of all tokens that followed anything heard of the running song, without a search, and their lse. Of no
    use where there is nothing.

    To measure searches against; a step of several segments keeps a copy of the ring for each.
    """

    @jax.checkpoint
    def one_lane(lane: tuple[Array, Heard]) -> tuple[Array, Array]:
        q, heard = lane
        scores = jnp.einsum("htd,hmd->htm", q, heard.keys.astype(q.dtype), preferred_element_type=jnp.float32)
        valid = in_range(heard.keys.shape[1], heard.start, heard.length)
        scores = jnp.where(valid, scores, jnp.finfo(jnp.float32).min)
        weights, lse = softmax(scores)
        return weights @ jax.nn.one_hot(heard.token, vocabulary), lse

    # One lane after the other: the scores of all at once would be B H Q M numbers.
    return jax.lax.map(one_lane, (q, jax.lax.stop_gradient(heard)))


def recall_one(
    q: Float[Array, "BH Dh"],
    scale: Float[Array, " H"],
    ring: caches.Ring,
    start: Int[Array, " B"],
    length: Int[Array, " B"],
    memory: cfg.Memory,
) -> tuple[Float[Array, "B H k"], Int[Array, "B H k"], Float[Array, "BH 1"]]:
    """For one query a row, weights of the nearest of the ring's slots, or in the dense memory of all, the tokens beside
    them, and the weights' lse. Of no use where there are none.

    The search is always XLA's: one more call of the host for every token takes longer than the scores.
    """
    heads = len(scale)
    valid = jnp.repeat(in_range(ring.token.shape[1], start, length), heads, 0)
    scores, first = [], 0
    for piece in ring.keys:
        here = valid[:, first : first + piece.shape[1]]

        def score(piece: Array, here: Array) -> Array:
            scores = jnp.einsum("bk,bmk->bm", q, piece, precision="highest", preferred_element_type=jnp.float32)
            return jnp.where(here, scores, -jnp.inf)

        def nothing(piece: Array, here: Array) -> Array:
            return jnp.full(here.shape, -jnp.inf)

        scores.append(jax.lax.cond(here.any(), score, nothing, piece, here))
        first += piece.shape[1]
    best, token = jnp.concatenate(scores, 1), jnp.repeat(ring.token[:, None], heads, 1)
    if resolve_backend(memory.backend) != "dense":
        best, slots = top_k(best, min(memory.top_k, best.shape[1]))
        token = jnp.take_along_axis(ring.token, slots.reshape(len(length), -1), 1).reshape(len(length), heads, -1)
    found = jnp.repeat(length > 0, heads)[:, None]
    weights, lse = softmax(jnp.where(found, best * jnp.tile(scale, len(length))[:, None], 0.0))
    return weights.reshape(token.shape), token, lse


def add_up(weights: Float[Array, "B H *Q k"], token: Int[Array, "B H *Q k"], vocabulary: int) -> Float[Array, "B *Q V"]:
    """What each token of the vocabulary weighs in all heads together."""
    weights, token = jnp.moveaxis(weights, 1, -2), jnp.moveaxis(token, 1, -2)
    shape = weights.shape[:-2]
    queries = int(np.prod(shape))
    add = jax.vmap(lambda weights, token: jnp.zeros(vocabulary).at[token].add(weights))
    return add(weights.reshape(queries, -1), token.reshape(queries, -1)).reshape(*shape, vocabulary)
