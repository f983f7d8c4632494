"""What plain copying from the song so far adds to a model."""

import numpy as np
import pytest

from midigen_jax import vocab
from midigen_jax.evaluation import copying
from midigen_jax.evaluation.copying import COPIER, INTERVALS, LENGTHS, NGRAMS, Level, intervals
from midigen_jax.kernels import score
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
            while equal < j and sequence[i - 1 - equal] == sequence[j - 1 - equal]:
                equal += 1
            found[i - 1, 1 : equal + 1] += 1
            right[i - 1, 1 : equal + 1] += sequence[i] == sequence[j]
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


def test_the_longest_match_counts_however_long():
    """A match of 70 items, and a more recent one of 64 after which something else followed."""
    theme = np.arange(100, 170)
    sequence = np.r_[theme, 1, 7, theme[6:], 2, 8, theme, 1]
    _, _, length, following = count_matches(sequence, 64)
    assert (length[-1], following[-1]) == (70, 1)


@pytest.mark.parametrize("shift", [-7, 1, 12])
def test_intervals_are_the_same_in_every_key(shift):
    rng = np.random.default_rng(0)
    tokens = np.empty(41, int)
    tokens[0], tokens[1::2] = vocab.SOS, vocab.NOTE_0 + rng.integers(40, 80, 20)
    tokens[2::2] = vocab.DURATION_0 + rng.integers(1, 9, 20)
    transposed = tokens.copy()
    transposed[1::2] += shift
    relative = intervals(tokens, Vocabulary())
    np.testing.assert_array_equal(relative[2:], intervals(transposed, Vocabulary())[2:])
    assert (relative[1::2] < 0).all()  # never mistaken for a token
    np.testing.assert_array_equal(relative[2::2], tokens[2::2])


def test_drums_have_no_intervals():
    scheme = Scheme(multi=True)
    piano, drums = vocab.INSTRUMENT_0, vocab.INSTRUMENT_0 + vocab.DRUMS
    beat = [drums, vocab.NOTE_0 + 36, vocab.DURATION_0 + 1, piano]
    melody = np.random.default_rng(0).integers(40, 80, 20) + vocab.NOTE_0
    tokens = np.r_[vocab.SOS, piano, *([pitch, vocab.DURATION_0 + 2, *beat] for pitch in melody), vocab.EOS]
    relative = intervals(tokens, Vocabulary(scheme))
    kicks = np.flatnonzero(tokens == drums) + 1
    np.testing.assert_array_equal(relative[kicks], tokens[kicks])
    transposed = score.transpose(tokens.astype(np.uint16), 1, scheme)
    assert (transposed != tokens).sum() == len(melody)
    np.testing.assert_array_equal(relative[3:], intervals(transposed, Vocabulary(scheme))[3:])


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
        levels = [copying.copiers(song, vocabulary) for song in songs]
        for name in levels[0]:
            mixed = copying.with_copying(nats, [of_song[name] for of_song in levels])
            found[name, shift] = np.mean([x[170:200] for x in mixed])
    return found


@pytest.mark.parametrize("name", [COPIER, INTERVALS, NGRAMS])
def test_an_exact_return_is_copied(losses, name):
    assert losses[name, 0] < 0.6


def test_a_transposed_return_is_copied_by_intervals_only(losses):
    assert losses[INTERVALS, 5] < 0.6
    assert losses[COPIER, 5] > 2
    assert losses[NGRAMS, 5] > 2


@pytest.mark.parametrize("name", [COPIER, INTERVALS, NGRAMS])
def test_without_repeats_copying_costs_next_to_nothing(vocabulary, name):
    rng = np.random.default_rng(1)
    songs = [np.r_[vocab.SOS, rng.permutation(PITCHES)[:100] + vocab.NOTE_0] for _ in range(8)]
    nats = [np.full(100, 2.0) for _ in songs]
    mixed = copying.with_copying(nats, [copying.copiers(song, vocabulary)[name] for song in songs])
    assert np.mean(mixed) == pytest.approx(2, abs=0.02)


def test_merged_tokens_have_no_intervals():
    merged = Vocabulary(Scheme(), merges=((vocab.NOTE_0, vocab.DURATION_0 + 1),))
    assert list(copying.copiers(np.array([vocab.SOS, vocab.NOTE_0, vocab.EOS]), merged)) == [COPIER, NGRAMS]


def test_weights_are_the_likeliest():
    """Of two levels, the lower with two buckets: no weights on a grid make the tokens likelier."""
    rng = np.random.default_rng(0)
    n = 2000
    model, (low, high) = rng.uniform(0.01, 0.3, n), rng.uniform(0, 1, (2, n)) < [[0.6], [0.4]]
    levels = [
        Level(low.astype(np.float32), rng.integers(-1, 2, n).astype(np.int8), 2),
        Level(high.astype(np.float32), rng.integers(-1, 1, n).astype(np.int8), 1),
    ]

    def nats(weights):
        return -np.log(copying.mix(model, levels, weights)[-1]).sum()

    fitted = copying.fit(model, levels)
    grid = np.linspace(0.02, 0.98, 49)
    best = min(nats([np.array([a, b]), np.array([c])]) for a in grid for b in grid for c in grid[::4])
    assert nats(fitted) < best + 0.5


def test_each_half_is_fitted_to_the_other():
    """The level is always right in one half and always wrong in the other, so each half trusts it wrongly."""
    right, wrong = (Level(np.full(100, x, np.float32), np.zeros(100, np.int8), 1) for x in (1, 0))
    mixed = copying.with_copying([np.full(100, 1.0)] * 4, [[right], [wrong]] * 2)
    assert mixed[0].mean() > 0.97
    assert mixed[1].mean() > 4


def test_no_token_is_impossible():
    level = Level(np.ones(50), np.zeros(50, int), 1)
    (weight,) = copying.fit(np.full(50, 0.5), [level])
    assert 0.9 < weight[0] < 1


def test_a_single_song():
    level = Level(np.ones(4), np.zeros(4, int), 1)
    (mixed,) = copying.with_copying([np.full(4, 1.0)], [[level]])
    assert np.exp(-mixed) == pytest.approx(0.5 + 0.5 * np.exp(-1))


def test_the_lengths_are_told_apart():
    """In the return, each token has one more before it that is in the theme."""
    song = theme_and_return()
    (level,) = copying.copiers(song, Vocabulary())[COPIER]
    assert level.bucket[0] == -1
    for before in range(20, 40):  # shorter matches may begin by chance before the theme returns
        _, _, length, _ = count_matches(song.astype(np.int64), 64)
        i = 160 + before
        assert length[i] >= before
        assert LENGTHS[level.bucket[i]] <= length[i]
        assert length[i] < LENGTHS[level.bucket[i] + 1]
