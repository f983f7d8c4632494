import numpy as np

from midigen_jax import repeats
from midigen_jax.repeats import FAR, NEAR, NEW, SPARSE, TRANSPOSED, kinds_of_bars
from midigen_jax.song import new_song, tokens_of
from midigen_jax.vocab import Scheme, Vocabulary

A, B, C = [60, 64, 67, 72], [57, 60, 64, 69], [50, 53, 57, 65]
UP = [pitch + 3 for pitch in A]


def kinds(bars, reach):
    """Of bars that hold these pitches, a beat each; each bar has 4 rests and 4 notes, of 2 tokens each."""
    notes = [[32 * i + 8 * j, 8, pitch, 0, 80] for i, bar in enumerate(bars) for j, pitch in enumerate(bar)]
    song = new_song(Scheme())._replace(notes=np.array(notes, np.int32))
    _, bar, _ = tokens_of(song, Vocabulary())
    return kinds_of_bars(song, np.asarray(bar), reach)


def test_bars_are_new_near_or_far():
    bars = [A, B, A, C, A, B, UP]
    assert kinds(bars, 10) == [NEW, NEW, FAR, NEW, FAR, FAR, TRANSPOSED]
    # A's last bar ends 16 tokens before it comes again, B's 48.
    assert kinds(bars, 20) == [NEW, NEW, NEAR, NEW, NEAR, FAR, NEAR]
    assert kinds(bars, 1000) == [NEW, NEW, NEAR, NEW, NEAR, NEAR, NEAR]


def test_a_near_bar_in_another_key_makes_it_near():
    assert kinds([A, B, C, UP, A], 10) == [NEW, NEW, NEW, TRANSPOSED, NEAR]


def test_few_notes_come_back_by_chance():
    assert kinds([[60, 62], A, [60, 62], [], A], 1) == [SPARSE, NEW, SPARSE, SPARSE, FAR]
    assert set(repeats.KINDS) == {NEW, NEAR, FAR, TRANSPOSED, SPARSE}
