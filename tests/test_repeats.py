"""Which bars repeat earlier ones, and from how far back."""

import numpy as np

from midigen_jax import config as cfg
from midigen_jax.evaluation import repeats
from midigen_jax.evaluation.repeats import FAR, NEAR, NEW, SPARSE, TRANSPOSED, VARIED, kinds_of_bars
from midigen_jax.music.song import new_song, tokens_of
from midigen_jax.vocab import Scheme, Vocabulary

A, B, C = [60, 64, 67, 72], [57, 60, 64, 69], [50, 53, 57, 65]
UP = [pitch + 3 for pitch in A]


def kinds(bars, reach):
    """Of bars of these pitches, one per beat; each bar has 4 rests and 4 notes of 2 tokens each."""
    notes = [[32 * i + 8 * j, 8, pitch, 0, 80] for i, bar in enumerate(bars) for j, pitch in enumerate(bar)]
    song = new_song(Scheme())._replace(notes=np.array(notes, np.int32))
    _, bar, _ = tokens_of(song, Vocabulary())
    return kinds_of_bars(song, np.asarray(bar), reach)


def test_bars_are_new_near_or_far():
    bars = [A, B, A, C, A, B, UP]
    assert kinds(bars, 10) == [NEW, NEW, FAR, NEW, FAR, FAR, TRANSPOSED]
    # A ends 16 tokens before its repeat, B 48.
    assert kinds(bars, 20) == [NEW, NEW, NEAR, NEW, NEAR, FAR, NEAR]
    assert kinds(bars, 1000) == [NEW, NEW, NEAR, NEW, NEAR, NEAR, NEAR]


def test_a_near_bar_in_another_key_makes_a_repeat_near():
    assert kinds([A, B, C, UP, A], 10) == [NEW, NEW, NEW, TRANSPOSED, NEAR]


def test_bars_of_few_notes_are_sparse():
    assert kinds([[60, 62], A, [60, 62], [], A], 1) == [SPARSE, NEW, SPARSE, SPARSE, FAR]
    assert set(repeats.KINDS) == {NEW, VARIED, NEAR, FAR, TRANSPOSED, SPARSE}


def test_bars_that_share_half_of_their_notes_and_their_rhythm_are_varied():
    half = [*A[:2], 62, 69]
    assert kinds([A, half, [A[0], 62, 65, 69]], 10) == [NEW, VARIED, VARIED]  # the last shares half with the second
    assert kinds([A, B, half, A], 10) == [NEW, NEW, VARIED, FAR]  # an exact repeat counts first
    assert kinds([A, [A[0], 62, 65, 69]], 10) == [NEW, NEW]  # a quarter
    assert not repeats.is_varied(bar([0, 8, 16, 24]), bar([0, 8, 16, 26, 4, 12]))  # three of four and six onsets
    assert repeats.is_varied(bar([0, 8, 16, 24]), bar([0, 8, 16, 26]))
    assert not repeats.is_varied(bar([0, 8, 16, 24]), bar([0, 8, 16, 24], length=24))


def bar(onsets, length=32):
    return length, frozenset((onset, 60) for onset in onsets)


def test_the_reach_is_what_one_layer_attends_to():
    config = cfg.Config(memory=cfg.Memory(xl=256), data=cfg.Data(segment=128))
    assert repeats.reach_of(config) == 384
