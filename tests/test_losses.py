import math
from itertools import pairwise

import numpy as np
import pytest

from midigen_jax import vocab
from midigen_jax.data.corpus import EncodedSong, open_corpus, write_corpus
from midigen_jax.training import losses


@pytest.fixture
def tiny(tmp_path):
    """Two songs, a a a b and a b between sos and eos, of 2 notes and 1, each 2 beats long."""

    def song(name, *content):
        tokens = np.array([vocab.SOS, *content, vocab.EOS], np.uint16)
        zeros, table = np.zeros(len(tokens), np.uint16), np.empty((0, 3), np.int32)
        return EncodedSong(
            name, tokens, zeros, zeros, table, table[:, 1:], (len(tokens) - 2) // 2, 2.0, 1.0, 0, name, name
        )

    a, b = vocab.NOTE_0, vocab.DURATION_0 + 1
    write_corpus(tmp_path / "c", [song("x", a, a, a, b), song("y", a, b)], [], vocab.Vocabulary())
    return open_corpus(tmp_path / "c")


def test_figures_divide_by_tokens_notes_and_beats(tiny):
    result = losses.figures(8 * math.log(2), tiny, np.array([0, 1]))
    assert result.tokens == 8  # all but sos
    assert result.nats_per_token == pytest.approx(math.log(2))
    assert result.bits_per_note == pytest.approx(8 / 3)
    assert result.bits_per_beat == pytest.approx(8 / 4)


def test_the_bigram_is_the_counted_one(tiny):
    songs = np.array([0, 1])
    bigram = losses.fit_bigram(tiny, songs)
    probabilities = np.exp(bigram.logarithm)
    assert probabilities.sum(1)[[vocab.SOS, vocab.NOTE_0, vocab.DURATION_0 + 1]] == pytest.approx(1)
    # a is followed by a twice and by b twice; a is 4 of the 8 tokens after sos, each count raised by one.
    w, n = bigram.weight, 8 + vocab.Vocabulary().size
    assert probabilities[vocab.NOTE_0, vocab.NOTE_0] == pytest.approx(w * 2 / 4 + (1 - w) * 5 / n)
    assert probabilities[vocab.SOS, vocab.EOS] == pytest.approx((1 - w) * 3 / n)


def test_the_weight_has_the_highest_leave_one_out_likelihood(corpus):
    songs = corpus.songs_of("train")
    bigram = losses.fit_bigram(corpus, songs)
    pairs: dict[int, dict[int, int]] = {}
    unigram: dict[int, int] = {}
    for song in songs:
        tokens = corpus.tokens[corpus.offsets[song] : corpus.offsets[song + 1]].tolist()
        for a, b in pairwise(tokens):
            pairs.setdefault(a, {}).setdefault(b, 0)
            pairs[a][b] += 1
            unigram[b] = unigram.get(b, 0) + 1
    total = sum(unigram.values()) + vocab.Vocabulary().size

    def likelihood(w):
        return sum(
            n * math.log(w * (n - 1) / max(sum(row.values()) - 1, 1) + (1 - w) * unigram[b] / (total - 1))
            for row in pairs.values()
            for b, n in row.items()
        )

    near = [likelihood(bigram.weight + change) for change in (-0.01, 0, 0.01)]
    assert near[1] == max(near)


def test_the_bigram_baseline_is_finite_on_unseen_songs(corpus):
    training, other = corpus.songs_of("train"), corpus.songs_of("validation")
    bigram, baseline = losses.bigram_baseline(corpus, training, other)
    assert 0 < bigram.weight < 1
    assert 0 < baseline.nats_per_token < math.log(vocab.Vocabulary().size)
