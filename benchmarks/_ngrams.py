"""The classical floor: n-grams of all training songs and of the song so far, interpolated, without any training.

Each token is predicted from what followed the last 1, 2, ... 64 tokens wherever they occurred before: in the training
songs (Liu et al. 2024, "Infini-gram", without its limit to the longest match), and in the song itself. From short to
long, each prediction is mixed over those below it with a weight that depends on how often it was found (Jelinek and
Mercer 1980); those of the song come over those of the training songs. The weights, the only thing that is fitted, are
fitted to validation songs. Below all are the training songs' token frequencies.
"""

from collections.abc import Sequence

import numpy as np

from midigen_jax.data.corpus import Corpus
from midigen_jax.evaluation.copying import LENGTHS, Level, fit, join, mix, ngrams
from midigen_jax.kernels.matches import count_matches


class Counts:
    """How often each n-gram of LENGTHS tokens, and each followed by one more, is in some songs."""

    def __init__(self, corpus: Corpus, songs: np.ndarray):
        sequences = [corpus.tokens_of(song).astype(np.int64) for song in songs.tolist()]
        frequencies = np.bincount(np.concatenate(sequences), minlength=corpus.vocabulary.size) + 1
        self.unigram = frequencies / frequencies.sum()
        self.tables = []
        for length in LENGTHS.tolist():
            hashes = [_hashes(x, length) for x in sequences]
            self.tables.append([np.unique(np.concatenate(x), return_counts=True) for x in zip(*hashes, strict=True)])

    def levels(self, sequence: np.ndarray) -> list[Level]:
        """For a song of N tokens, each level's predictions of all tokens but the first."""
        found, right = np.zeros((2, len(sequence) - 1, int(LENGTHS[-1]) + 1), np.int64)
        for length, (contexts, continued) in zip(LENGTHS.tolist(), self.tables, strict=True):
            for counts, table, hashes in zip(
                (found, right), (contexts, continued), _hashes(sequence, length), strict=True
            ):
                counts[length - 1 :, length] = _look_up(table, hashes)
        of_song = count_matches(sequence, int(LENGTHS[-1]))
        return [*ngrams(found, right), *ngrams(*of_song[:2])]


def _hashes(sequence: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the `length` tokens before each token that has so many, and of these and the token itself: uint64 each."""
    mixed = _scrambled(sequence.astype(np.uint64))
    hashes = np.zeros(max(len(sequence) - length, 0), np.uint64)
    for i in range(length):
        hashes = _scrambled(hashes + mixed[i : i + len(hashes)])
    return hashes, _scrambled(hashes + mixed[length:])


def _scrambled(x: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele et al. 2014), by which numbers that are alike become unalike."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _look_up(table: tuple[np.ndarray, np.ndarray], hashes: np.ndarray) -> np.ndarray:
    """How often each was counted."""
    known, counts = table
    if len(known) == 0:
        return np.zeros(len(hashes), np.int64)
    at = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return np.where(known[at] == hashes, counts[at], 0)


def nats(corpus: Corpus, fitted_to: np.ndarray, songs: np.ndarray) -> list[np.ndarray]:
    """The loss of each token of each of these songs but sos, float [N - 1]; the weights are fitted to other songs."""
    counts = Counts(corpus, corpus.songs_of("train"))

    def read(numbers: np.ndarray) -> tuple[list[np.ndarray], list[Sequence[Level]]]:
        sequences = [corpus.tokens_of(song).astype(np.int64) for song in numbers.tolist()]
        return [counts.unigram[x[1:]] for x in sequences], [counts.levels(x) for x in sequences]

    unigrams, levels = read(fitted_to)
    together = [join([song[i] for song in levels], level.n_buckets) for i, level in enumerate(levels[0])]
    weights = fit(np.concatenate(unigrams), together)
    return [-np.log(mix(*pair, weights)[-1]) for pair in zip(*read(songs), strict=True)]
