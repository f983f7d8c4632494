"""What plain copying from the song so far adds to a model."""

import numpy as np
import pytest

from midigen_jax import vocab
from midigen_jax.evaluation import copying
from midigen_jax.evaluation.copying import COPIER, INFINI_GRAM, INTERVALS, LENGTHS, Level, intervals
from midigen_jax.kernels.matches import NONE, count_matches
from midigen_jax.vocab import Scheme, Vocabulary

PITCHES = vocab.DURATION_0 - vocab.NOTE_0


def count_slowly(sequence, longest):
    """The definition of `count_matches`, position by position."""
    n = len(sequence)
    found, right = np.zeros((2, n - 1, longest + 1), int)
    length, following = np.zeros(n - 1, int), np.full(n - 1, NONE)
    for i in range(1, n):
        for j in range(i):
            equal = 0
            while equal < min(j, longest) and sequence[i - 1 - equal] == sequence[j - 1 - equal]:
                equal += 1
            found[i - 1, : equal + 1] += 1
            right[i - 1, : equal + 1] += sequence[i] == sequence[j]
            if equal >= max(length[i - 1], 1):
                length[i - 1], following[i - 1] = equal, sequence[j]
    return found, right, length, following


@pytest.mark.parametrize("seed", range(6))
def test_matches_are_counted_as_defined(seed):
    rng = np.random.default_rng(seed)
    sequence = rng.integers(0, 3, 60)
    sequence[40:55] = sequence[5:20]
    for found, expected in zip(count_matches(sequence, 8), count_slowly(sequence, 8), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shift", [-7, 1, 12])
def test_intervals_are_the_same_in_every_key(shift):
    rng = np.random.default_rng(0)
    tokens = np.empty(41, int)
    tokens[0], tokens[1::2] = vocab.SOS, vocab.NOTE_0 + rng.integers(40, 80, 20)
    tokens[2::2] = vocab.DURATION_0 + rng.integers(1, 9, 20)
    transposed = tokens.copy()
    transposed[1::2] += shift
    np.testing.assert_array_equal(intervals(tokens)[2:], intervals(transposed)[2:])
    assert (intervals(tokens)[1::2] < 0).all()  # never mistaken for a token
    np.testing.assert_array_equal(intervals(tokens)[2::2], tokens[2::2])


def theme_and_return(shift=0, seed=0):
    """A random theme of 20 notes, 60 other notes, and the theme again, transposed."""
    rng = np.random.default_rng(seed)
    pitches, durations = rng.integers(40, 80, 100), rng.integers(1, 9, 100)
    pitches[80:], durations[80:] = pitches[:20] + shift, durations[:20]
    tokens = np.full(202, vocab.EOS)
    tokens[0], tokens[1:-1:2], tokens[2:-1:2] = vocab.SOS, vocab.NOTE_0 + pitches, vocab.DURATION_0 + durations
    return tokens


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary(Scheme())


@pytest.fixture(scope="module")
def losses(vocabulary):
    """Mean loss of the return, by name of the copier and shift: the model knows nothing but the tokens' number."""
    found = {}
    for shift in (0, 5):
        songs = [theme_and_return(shift, seed) for seed in range(8)]
        nats = [np.full(len(song) - 1, np.log(vocabulary.size)) for song in songs]
        for name, levels in copying.copiers(vocabulary).items():
            mixed = copying.with_copying(nats, [levels(song) for song in songs])
            found[name, shift] = np.mean([x[170:200] for x in mixed])
    return found


@pytest.mark.parametrize("name", [COPIER, INTERVALS, INFINI_GRAM])
def test_an_exact_return_is_copied(losses, name):
    assert losses[name, 0] < 0.6


def test_a_transposed_return_is_copied_by_intervals_only(losses):
    assert losses[INTERVALS, 5] < 0.6
    assert losses[COPIER, 5] > 2
    assert losses[INFINI_GRAM, 5] > 2


@pytest.mark.parametrize("name", [COPIER, INTERVALS, INFINI_GRAM])
def test_without_repeats_copying_costs_next_to_nothing(vocabulary, name):
    """Each fitted to half of the songs, so that it could not know those that it is applied to."""
    rng = np.random.default_rng(1)
    songs = [np.r_[vocab.SOS, rng.permutation(PITCHES)[:100] + vocab.NOTE_0] for _ in range(8)]
    nats = [np.full(100, 2.0) for _ in songs]
    levels = copying.copiers(vocabulary)[name]
    mixed = copying.with_copying(nats, [levels(song) for song in songs])
    assert np.mean(mixed) == pytest.approx(2, abs=0.02)


def test_merged_tokens_have_no_intervals():
    merged = Vocabulary(Scheme(), merges=((vocab.NOTE_0, vocab.DURATION_0 + 1),))
    assert list(copying.copiers(merged)) == [COPIER, INFINI_GRAM]


def test_shares_are_the_likeliest():
    """One level and one class: the share is that of the tokens that the level gets right, of those it can explain."""
    right = np.arange(1000) < 700
    level = Level(right.astype(float), np.zeros(1000, int), 1)
    (share,) = copying.fit(np.full(1000, 1e-9), [level])
    assert share[0] == pytest.approx(0.7, abs=0.01)


def test_no_token_is_impossible():
    level = Level(np.ones(50), np.zeros(50, int), 1)
    (share,) = copying.fit(np.full(50, 0.5), [level])
    assert 0.9 < share[0] < 1


def test_a_single_song():
    level = Level(np.ones(4), np.zeros(4, int), 1)
    (mixed,) = copying.with_copying([np.full(4, 1.0)], [[level]])
    assert np.exp(-mixed) == pytest.approx(0.5 + 0.5 * np.exp(-1))


def test_the_lengths_are_told_apart():
    song = theme_and_return()
    level = copying.copier(song)
    assert level.kind[0] == -1
    assert level.kind[-2] == np.searchsorted(LENGTHS, 38, side="right") - 1
