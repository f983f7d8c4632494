"""What plain copying from the song so far adds to a model: a floor for every memory.

A copier predicts what followed the longest earlier occurrence of the last tokens; it is mixed with the model by a
probability that depends only on the length of that match. An infini-gram model (Liu et al. 2024, "Infini-gram: Scaling
unbounded n-gram language models to a trillion tokens") counts what followed matches of every length, and backs off from
long to short ones. The probabilities are fitted to half of the songs and applied to the other half.

N are a song's tokens. A loss that copying lowers by much belongs to a model whose memory has missed exact repeats.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from .. import vocab
from ..kernels.matches import count_matches
from ..vocab import Vocabulary

COPIER, INTERVALS, INFINI_GRAM = "copier", "copier of pitches and intervals", "infini-gram"
LENGTHS = np.array([1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64])  # matches are told apart by these lengths
COUNTS = np.array([1, 2, 3, 5, 10])  # and those of the infini-gram model by how often they were found
ITERATIONS = 60

_MIDDLE = 60  # the reference of a song's first pitch


class Level(NamedTuple):
    """Predictions that replace what the levels below predict with a probability that is fitted for each class."""

    probability: np.ndarray  # float32 [N - 1], of the token that followed
    kind: np.ndarray  # int8 [N - 1], the class of the prediction; below 0 where there is none
    kinds: int


def intervals(tokens: np.ndarray) -> np.ndarray:
    """The song with each pitch as its distance from the pitch before it: the same in every key. int64 [N]"""
    pitch = (tokens >= vocab.NOTE_0) & (tokens < vocab.DURATION_0)
    found = np.asarray(tokens, np.int64).copy()
    pitches = found[pitch] - vocab.NOTE_0
    # Below every token, so that no interval is mistaken for one.
    found[pitch] = np.diff(pitches, prepend=_MIDDLE) - 2 * (vocab.DURATION_0 - vocab.NOTE_0)
    return found


def copier(sequence: np.ndarray) -> Level:
    """The most recent of the longest matches: one prediction, told apart by the length of the match."""
    _, _, length, following = count_matches(np.asarray(sequence, np.int64), int(LENGTHS[-1]))
    kind = np.searchsorted(LENGTHS, length, side="right") - 1
    return Level((following == sequence[1:]).astype(np.float32), kind.astype(np.int8), len(LENGTHS))


def infini_gram(sequence: np.ndarray) -> list[Level]:
    """Counts of what followed matches of each length, from short to long, told apart by how many there are."""
    found, right, _, _ = count_matches(np.asarray(sequence, np.int64), int(LENGTHS[-1]))
    levels = []
    for length in LENGTHS:
        n = found[:, length]
        kind = np.searchsorted(COUNTS, n, side="right") - 1
        levels.append(
            Level((right[:, length] / np.maximum(n, 1)).astype(np.float32), kind.astype(np.int8), len(COUNTS))
        )
    return levels


def copiers(vocabulary: Vocabulary) -> dict[str, Callable[[np.ndarray], list[Level]]]:
    """By name, the levels for a song's tokens. A merged token has no single pitch, and so no interval."""
    found: dict[str, Callable[[np.ndarray], list[Level]]] = {COPIER: lambda tokens: [copier(tokens)]}
    if not vocabulary.merges:
        found[INTERVALS] = lambda tokens: [copier(intervals(tokens)), copier(tokens)]
    found[INFINI_GRAM] = infini_gram
    return found


def copied_name(model: str, name: str) -> str:
    """The name of a model's losses with a copier mixed in."""
    return f"{model} + {name}"


def mix(model: np.ndarray, levels: Sequence[Level], shares: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Probabilities of the token that followed, float [N - 1]: the model's, then with each level over it."""
    mixed = [model]
    for level, share in zip(levels, shares, strict=True):
        weight = np.where(level.kind >= 0, share[level.kind], 0)
        mixed.append(weight * level.probability + (1 - weight) * mixed[-1])
    return mixed


def fit(model: np.ndarray, levels: Sequence[Level]) -> list[np.ndarray]:
    """The probability of each level's classes that makes the tokens likeliest, by expectation maximization.

    A token comes from the highest level with the probability of its class there, else from the levels below. Each class
    starts with one token from it and one from below, so that no token becomes impossible.
    """
    shares = [np.full(level.kinds, 0.5) for level in levels]
    for _ in range(ITERATIONS):
        mixed = mix(model, levels, shares)
        reached = np.ones(len(model))  # the probability that the token is from this level or below
        for i in reversed(range(len(levels))):
            level, there = levels[i], levels[i].kind >= 0
            from_here = np.where(there, shares[i][level.kind] * level.probability / mixed[i + 1], 0) * reached
            here, all_ = (np.bincount(level.kind[there], x[there], minlength=level.kinds) for x in (from_here, reached))
            shares[i] = (here + 1) / (all_ + 2)
            reached = reached - from_here
    return shares


def _join(songs: Sequence[Level], kinds: int) -> Level:
    probability = np.concatenate([np.zeros(0), *(x.probability for x in songs)])
    return Level(probability, np.concatenate([np.zeros(0, int), *(x.kind for x in songs)]), kinds)


def with_copying(nats: Sequence[np.ndarray], levels: Sequence[Sequence[Level]]) -> list[np.ndarray]:
    """The model's losses with copying mixed in, float [N - 1] for each song.

    Songs with an even and an odd index are the two halves. For a single song there is nothing to fit to, and the
    probabilities are those of one right and one wrong prediction.

    Args:
        nats: the model's own losses.
        levels: for each song.
    """
    mixed: list[np.ndarray] = [np.zeros(0)] * len(nats)
    models = [np.exp(-np.asarray(x, float)) for x in nats]
    for half in (0, 1):
        fitted = range(1 - half, len(nats), 2)
        joined = [_join([levels[i][j] for i in fitted], levels[0][j].kinds) for j in range(len(levels[0]))]
        shares = fit(np.concatenate([np.zeros(0), *(models[i] for i in fitted)]), joined)
        for i in range(half, len(nats), 2):
            mixed[i] = -np.log(mix(models[i], levels[i], shares)[-1])
    return mixed
