"""Loss figures that compare across models and vocabularies, and the bigram baseline that a model has to beat."""

import math
from typing import NamedTuple

import numpy as np

from ..data.corpus import Corpus


class Figures(NamedTuple):
    """The loss on some songs: every token but sos counts once, eos included."""

    nats_per_token: float
    bits_per_note: float  # notes that the tokens decode to
    bits_per_beat: float  # quarter notes from time 0 to the last note's end
    tokens: int

    def __str__(self) -> str:
        return (
            f"{self.nats_per_token:.3f} nats per token, {self.bits_per_note:.2f} bits per note, "
            f"{self.bits_per_beat:.2f} bits per beat"
        )


def figures(nats: float, corpus: Corpus, songs: np.ndarray) -> Figures:
    """The figures of any model, given its total loss in nats over all tokens but sos of these songs."""
    tokens = int(np.diff(corpus.offsets)[songs].sum() - len(songs))
    bits = nats / math.log(2)
    return Figures(
        nats / tokens,
        bits / float(corpus.notes[songs].sum()),
        bits / float(corpus.beats[songs].sum()),
        tokens,
    )


class Bigram(NamedTuple):
    """A bigram model interpolated with a unigram model: p(b | a) = w c(a, b) / c(a) + (1 - w) c(b) / n."""

    weight: float
    logarithm: np.ndarray  # [V, V]: log p(b | a)


def _pair_counts(corpus: Corpus, songs: np.ndarray) -> np.ndarray:
    """How often token b follows token a within these songs: float [V, V]."""
    size = corpus.vocabulary.size
    counts = np.zeros(size * size)
    for begin in range(0, len(songs), 256):
        pairs = [corpus.tokens_of(song).astype(np.int64) for song in songs[begin : begin + 256].tolist()]
        keys = np.concatenate([tokens[:-1] * size + tokens[1:] for tokens in pairs])
        counts += np.bincount(keys, minlength=len(counts))
    return counts.reshape(size, size)


def fit_bigram(corpus: Corpus, songs: np.ndarray) -> Bigram:
    """Counts the pairs of tokens in the training songs and fits the weight to them.

    The weight maximises the likelihood of each training token under the counts without that token (deleted
    interpolation, Jelinek and Mercer 1980); under counts that include it the pure bigram would always win. The unigram
    counts start at one, so that no token is impossible.
    """
    pairs = _pair_counts(corpus, songs)
    n_a = pairs.sum(1, keepdims=True)
    n_b = pairs.sum(0) + 1
    total = n_b.sum()
    a, b = np.nonzero(pairs)
    seen = pairs[a, b]
    without_bigram = (seen - 1) / np.maximum(n_a[a, 0] - 1, 1)
    without_unigram = (n_b[b] - 1) / (total - 1)
    weights = np.linspace(0.01, 0.99, 99)
    gains = [seen @ np.log(w * without_bigram + (1 - w) * without_unigram) for w in weights]
    weight = float(weights[int(np.argmax(gains))])
    return Bigram(weight, np.log(weight * pairs / np.maximum(n_a, 1) + (1 - weight) * n_b / total))


def bigram_baseline(corpus: Corpus, training: np.ndarray, songs: np.ndarray) -> tuple[Bigram, Figures]:
    """The bigram model of the training songs, and its figures on other songs."""
    bigram = fit_bigram(corpus, training)
    return bigram, figures(-float((_pair_counts(corpus, songs) * bigram.logarithm).sum()), corpus, songs)
