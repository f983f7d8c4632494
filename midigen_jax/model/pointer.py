"""How the candidates of the alignment memory and the decoder share the prediction of the next token.

One softmax over the decoder and all candidates, as in Merity et al. 2017, "Pointer sentinel mixture models": a
candidate has log-odds against the decoder's own distribution. They follow from how well and how long the passages
agree, how far apart they are, how often in a row they were played, from what the decoder knows of the music, and from
how likely the decoder itself holds the candidate. Letters of shapes are those of `shapes`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from .. import config as cfg
from ..shapes import Array, Bool, Float, Int
from . import places
from .alignment import AlignmentMemory, Candidates
from .places import EMPTY, ONE
from .retrieval import Retrieval, RetrievalStatistics, sum_by_token

FEATURES = 15  # of a candidate
HIDDEN = 32  # of the network that gives a candidate's log-odds
N_DISTANCES = 33  # 0 to 31 bars, and all that is further
N_PLACES = len(places.DISTANCES)  # the last candidates are those at the same place so many bars before
PRIOR = -3.0  # log-odds of a candidate at the start, whose score is 0 ...
PRIOR_SLOPE = 1.0  # ... and how much they rise each time that the score doubles
# How much the log-odds have fallen, at the start, when a passage was played twice in a row; they fall with the square
# of the repetitions. Songs hardly ever go on from there, so that they alone don't teach when to stop.
REPETITION_PENALTY, MOST_REPETITIONS = 4.0, 4.0
NONE = -1e9  # log-odds where there is no candidate


class Copies(NamedTuple):
    """Candidates for the next token."""

    token: Int[Array, "*B k"]  # below 0 where there is no candidate
    log_odds: Float[Array, "*B k"]  # against the decoder's own distribution
    bars: Int[Array, "*B k"]  # from the passage that it continues to the last token


def _all_shares(log_odds: Float[Array, "*B k"]) -> Float[Array, "*B all"]:
    """The probability that the prediction is the decoder's, and that it is each candidate's."""
    return jax.nn.softmax(jnp.pad(log_odds, [(0, 0)] * (log_odds.ndim - 1) + [(1, 0)]))


def shares(log_odds: Float[Array, "*B k"]) -> Float[Array, "*B k"]:
    """The probability that the prediction is each candidate's; what they leave is the decoder's."""
    return _all_shares(log_odds)[..., 1:]


def nats(logits: Float[Array, "*B V"], copies: Copies | None, targets: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """Minus the logarithm of the probability of each target under the mixture."""
    own = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0] - jax.nn.logsumexp(logits, -1)
    if copies is None:
        return -own
    named = jnp.where(copies.token == targets[..., None], copies.log_odds, NONE)
    total = jnp.logaddexp(jax.nn.logsumexp(copies.log_odds, -1), 0)
    return total - jnp.logaddexp(own, jax.nn.logsumexp(named, -1))


def mixture(own: Float[Array, "*B V"], copies: Copies) -> Float[Array, "*B V"]:
    """The probability of each token.

    Args:
        own: the decoder's own probabilities.
    """
    weights = _all_shares(copies.log_odds)
    copied = sum_by_token(weights[..., 1:][:, None], copies.token[:, None], own.shape[-1])
    return own * weights[..., :1] + copied  # not 1 minus the candidates' shares, which may round to less than 0


def retrieved(candidates: Candidates, copies: Copies, memory: AlignmentMemory) -> Retrieval:
    """What the memory did for each token, as if by one head; `memory` is that before the segment."""
    weights, found = shares(copies.log_odds), candidates.token >= 0
    ages = jnp.where(found, candidates.lag, 0)
    statistics = RetrievalStatistics(
        found.any(-1).mean()[None],
        jnp.sum(found, dtype=jnp.float32),
        jnp.sum(ages, dtype=jnp.float32),
        weights.sum(-1).mean()[None],
        jnp.sum(memory.past.token_class != EMPTY, -1).mean(),
    )
    return jax.lax.stop_gradient(Retrieval(statistics, ages[:, None], weights[:, None]))


class Pointer(nnx.Module):
    def __init__(self, config: cfg.Config, *, rngs: nnx.Rngs):
        self.input = nnx.Linear(FEATURES, HIDDEN, rngs=rngs)
        self.output = nnx.Linear(HIDDEN, 1, use_bias=False, kernel_init=nnx.initializers.zeros, rngs=rngs)
        # By the bars since the match: what agrees 4 or 8 bars later goes on more often than at other distances.
        self.bias = nnx.Param(jnp.full(N_DISTANCES + N_PLACES, PRIOR))
        self.slope = nnx.Param(jnp.full(N_DISTANCES + N_PLACES, PRIOR_SLOPE))
        self.gate = nnx.Param(jnp.zeros((config.model.width, 1 + FEATURES)))
        self.place_gate = nnx.Param(jnp.zeros((config.model.width, N_PLACES)))  # as where a phrase begins
        # How much it counts how likely the decoder itself holds a candidate, and how that depends on its features.
        self.agreement = nnx.Param(jnp.zeros(1 + FEATURES))
        self.repetition_penalty = nnx.Param(jnp.asarray(REPETITION_PENALTY))

    def __call__(self, candidates: Candidates, hidden: Float[Array, "*B D"], logits: Float[Array, "*B V"]) -> Copies:
        """The candidates' log-odds against the decoder's own distribution.

        Args:
            hidden: the last layer's output, normalised.
            logits: the decoder's own.
        """
        token = candidates.token
        same = (token[..., None, :] == token[..., :, None]) & (token >= 0)[..., None, :]
        of_place = jnp.arange(token.shape[-1]) - (token.shape[-1] - N_PLACES)  # which one; below 0: a match
        features = _features(candidates, same, of_place >= 0)
        own = jnp.take_along_axis(logits, jnp.maximum(token, 0), -1) - jax.nn.logsumexp(logits, -1, keepdims=True)
        gates = hidden.astype(jnp.float32) @ jnp.concatenate([self.gate[...], self.place_gate[...]], 1)
        gate, gates_of_features, place_gate = jnp.split(gates, [1, 1 + FEATURES], -1)
        distance = jnp.clip(candidates.bars, 0, N_DISTANCES - 1)
        distance = jnp.where(of_place < 0, distance, N_DISTANCES + of_place)
        log_odds = self.bias[...][distance] + self.slope[...][distance] * features[0]
        of_features, agreement = self._network(features)
        log_odds += of_features
        log_odds = log_odds.at[..., -N_PLACES:].add(place_gate)
        log_odds += gate + jnp.sum(jnp.moveaxis(gates_of_features, -1, 0)[..., None] * features, 0)
        log_odds += agreement * own - self.repetition_penalty[...] * jnp.square(_repetitions(candidates, same))
        return Copies(token, jnp.where(token >= 0, log_odds, NONE), candidates.bars)

    def _network(self, features: Float[Array, "features *B k"]) -> tuple[Float[Array, "*B k"], Float[Array, "*B k"]]:
        """What the features add to a candidate's log-odds, and how much the decoder's own opinion of it counts."""
        bias = self.input.bias
        assert bias is not None
        # One product of two matrices: of more axes, XLA's gradient takes twice as long on a CPU, and while one token is
        # read at a time, each product takes as long as starting it does.
        weights = jnp.concatenate([self.input.kernel[...], self.agreement[1:][:, None]], 1)
        products = weights.T @ features.reshape(FEATURES, -1)
        inner = jax.nn.relu(products[:HIDDEN] + bias[...][:, None])
        outputs = jnp.sum(self.output.kernel[...] * inner, 0), self.agreement[0] + products[HIDDEN]
        log_odds, agreement = (x.reshape(features.shape[1:]) for x in outputs)
        return log_odds, agreement


def _features(
    candidates: Candidates, same: Bool[Array, "*B k k"], is_place: Bool[Array, " k"]
) -> Float[Array, "features *B k"]:
    """What is known of a candidate, in numbers of about one size.

    Args:
        same: which candidates name the same token.
        is_place: which are those at the same place some bars before.
    """
    bars, length = jnp.maximum(candidates.bars, 0), jnp.maximum(candidates.length, 0)
    return jnp.stack(
        [
            jnp.log2(1 + candidates.score / ONE),
            jnp.log2(1 + candidates.pitch_score / ONE),
            jnp.log2(candidates.lag) / 4,
            jnp.log2(jnp.maximum(same.sum(-1), 1)),
            (candidates.shift != 0).astype(jnp.float32),
            candidates.same_position.astype(jnp.float32),
            jnp.log2(1 + bars),
            *((bars % period == 0).astype(jnp.float32) for period in (2, 4, 8, 16)),  # phrases return then, ...
            jnp.log2(1 + length),
            *((length % period == 0).astype(jnp.float32) for period in (4, 8)),  # ... and end after so many bars
            jnp.broadcast_to(is_place, length.shape).astype(jnp.float32),
        ]
    )


def _repetitions(candidates: Candidates, same: Bool[Array, "*B k k"]) -> Float[Array, "*B k"]:
    """How often in a row a passage was played again before a candidate's token: 1 where its first return has just
    ended; the most of all candidates that name the token."""
    repetitions = jnp.clip(candidates.length / jnp.maximum(candidates.bars, 1), 0, MOST_REPETITIONS)
    return jnp.where(same, repetitions[..., None, :], 0).max(-1)
