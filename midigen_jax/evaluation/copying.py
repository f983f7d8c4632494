"""What plain copying from the song so far adds to a model: a floor for every memory.

A copier predicts what followed the longest earlier occurrence of the last tokens; it is mixed with the model by a
probability that depends only on the length of that match. N-grams count what followed matches of several lengths, and
are interpolated from short to long, with a weight for each count (Jelinek and Mercer 1980); as they count the song so
far, they are a cache (Kuhn and De Mori 1990, "A cache-based natural language model for speech recognition") and know
its scale and its usual turns too, not only what it repeats. The weights are fitted to half of the songs and applied to
the other half.

N are a song's tokens. A loss that a copier lowers by much belongs to a model whose memory has missed exact repeats.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..kernels.matches import count_matches
from ..music.song import PITCHES, pitched
from ..vocab import Vocabulary

COPIER, INTERVALS, NGRAMS = "copier", "copier of tokens and intervals", "n-grams of the song"
LENGTHS = np.array([1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64])  # the first of each bucket of match lengths
COUNTS = np.array([1, 2, 3, 5, 10])  # the first of each bucket of how often an n-gram was found
ITERATIONS = 60

_MIDDLE = 60  # the reference of a song's first pitch


class Level(NamedTuple):
    """Predictions that replace what the levels below predict, with a weight that is fitted for each bucket."""

    probability: np.ndarray  # float32 [n], of the token that followed
    bucket: np.ndarray  # int8 [n]; below 0 where there is no prediction
    n_buckets: int


def intervals(tokens: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """The song with each pitch as its distance from the pitch before it, drums aside: int64 [N].

    After the first pitch it is the same in every key.
    """
    is_pitch = pitched(tokens, vocabulary)
    found = np.asarray(tokens, np.int64).copy()
    # Below every token, so that no interval is mistaken for one.
    found[is_pitch] = np.diff(found[is_pitch], prepend=vocabulary.note_0 + _MIDDLE) - 2 * PITCHES
    return found


def _copier(length: np.ndarray, following: np.ndarray, sequence: np.ndarray) -> Level:
    bucket = np.searchsorted(LENGTHS, length, side="right") - 1
    return Level((following == sequence[1:]).astype(np.float32), bucket.astype(np.int8), len(LENGTHS))


def ngrams(found: np.ndarray, right: np.ndarray) -> list[Level]:
    """From short to long."""
    levels = []
    for length in LENGTHS:
        n = found[:, length]
        bucket = np.searchsorted(COUNTS, n, side="right") - 1
        probability = (right[:, length] / np.maximum(n, 1)).astype(np.float32)
        levels.append(Level(probability, bucket.astype(np.int8), len(COUNTS)))
    return levels


def copiers(tokens: np.ndarray, vocabulary: Vocabulary) -> dict[str, list[Level]]:
    """The levels of each copier for a song, by name. A merged token has no single pitch, and so no interval."""
    sequence = np.asarray(tokens, np.int64)
    found, right, length, following = count_matches(sequence, int(LENGTHS[-1]))
    by_tokens = _copier(length, following, sequence)
    levels = {COPIER: [by_tokens]}
    if not vocabulary.merges:
        relative = intervals(tokens, vocabulary)
        _, _, length, following = count_matches(relative, int(LENGTHS[-1]))
        levels[INTERVALS] = [_copier(length, following, relative), by_tokens]
    return levels | {NGRAMS: ngrams(found, right)}


def copied_name(model: str, name: str) -> str:
    """The name of a model's losses with a copier mixed in."""
    return f"{model} + {name}"


def mix(model: np.ndarray, levels: Sequence[Level], weights: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Probabilities of the token that followed, float [n]: the model's, then with each level over it."""
    mixed = [model]
    for level, weight in zip(levels, weights, strict=True):
        here = np.where(level.bucket >= 0, weight[level.bucket], 0)
        mixed.append(here * level.probability + (1 - here) * mixed[-1])
    return mixed


def fit(model: np.ndarray, levels: Sequence[Level]) -> list[np.ndarray]:
    """The weight of each level's buckets that makes the tokens likeliest, by expectation maximization.

    A token comes from the highest level with the weight of its bucket there, else from the levels below. Each bucket
    starts with one token from it and one from below, so that no token becomes impossible.
    """
    weights = [np.full(level.n_buckets, 0.5) for level in levels]
    for _ in range(ITERATIONS):
        mixed = mix(model, levels, weights)
        reached = np.ones(len(model))  # the probability that the token is from this level or below
        for i in reversed(range(len(levels))):
            level, there = levels[i], levels[i].bucket >= 0
            from_here = np.where(there, weights[i][level.bucket] * level.probability / mixed[i + 1], 0) * reached
            here, all_ = (
                np.bincount(level.bucket[there], x[there], minlength=level.n_buckets) for x in (from_here, reached)
            )
            weights[i] = (here + 1) / (all_ + 2)
            reached = reached - from_here
    return weights


def join(songs: Sequence[Level], n_buckets: int) -> Level:
    probability = np.concatenate([np.zeros(0, np.float32), *(x.probability for x in songs)])
    return Level(probability, np.concatenate([np.zeros(0, np.int8), *(x.bucket for x in songs)]), n_buckets)


def with_copying(nats: Sequence[np.ndarray], levels: Sequence[Sequence[Level]]) -> list[np.ndarray]:
    """The model's losses with copying mixed in, float [N - 1] for each song.

    Songs with an even and an odd index are the two halves. For a single song there is nothing to fit to, and the
    weights are those of one right and one wrong prediction.

    Args:
        nats: the model's own losses.
        levels: for each song.
    """
    mixed: list[np.ndarray] = [np.zeros(0)] * len(nats)
    models = [np.exp(-np.asarray(x, float)) for x in nats]
    for half in (0, 1):
        fitted = range(1 - half, len(nats), 2)
        joined = [join([levels[i][j] for i in fitted], level.n_buckets) for j, level in enumerate(levels[0])]
        weights = fit(np.concatenate([np.zeros(0), *(models[i] for i in fitted)]), joined)
        for i in range(half, len(nats), 2):
            mixed[i] = -np.log(mix(models[i], levels[i], weights)[-1])
    return mixed
