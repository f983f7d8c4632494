"""Statistics of music, on songs whose values are known."""

import numpy as np
import pytest

from midigen_jax import vocab
from midigen_jax.music import metrics
from midigen_jax.music.song import new_song
from midigen_jax.vocab import Scheme


def song_of(notes, **scheme):
    """Of notes (onset in beats, duration in beats, pitch), with a part if instruments are kept apart."""
    rows = [[int(8 * on), int(8 * long), pitch, *(rest or [0]), 80] for on, long, pitch, *rest in notes]
    return new_song(Scheme(8, **scheme))._replace(notes=np.array(rows, np.int32).reshape(-1, 5))


def test_entropy_counts_pitch_classes_and_no_drums():
    assert metrics.pitch_class_entropy(song_of([(i, 1, 60 + 3 * i) for i in range(8)])) == pytest.approx(2)
    assert metrics.pitch_class_entropy(song_of([(i, 1, 36 + 12 * i) for i in range(4)])) == 0
    drums = [(i, 1, 35 + i, vocab.DRUMS) for i in range(4)]
    two_instruments = song_of([(0, 1, 60, 0), (1, 1, 61, 40), *drums], multi=True)
    assert metrics.pitch_class_entropy(two_instruments) == pytest.approx(1)


def test_scale_consistency_is_that_of_the_best_scale():
    d_major = [62, 64, 66, 67, 69, 71, 73, 74]
    assert metrics.scale_consistency(song_of([(i, 1, pitch) for i, pitch in enumerate(d_major)])) == 1
    assert metrics.scale_consistency(song_of([(i, 1, 60 + i) for i in range(12)])) == pytest.approx(7 / 12)
    c_harmonic_minor = [60, 62, 63, 65, 67, 68, 71, 72]  # in C minor, all but B
    notes = [(i, 1, pitch) for i, pitch in enumerate(c_harmonic_minor)]
    assert metrics.scale_consistency(song_of(notes)) == 7 / 8


def test_polyphony_is_the_mean_over_the_grid_steps_that_sound():
    """Of a note of two beats with another on the first of them, a rest, and another note."""
    assert metrics.polyphony(song_of([(0, 2, 60), (0, 1, 64), (7, 2, 60)])) == pytest.approx((2 + 1 + 1 + 1) / 4)
    a_chord = [(0, 1, 60), (0, 1, 64), (0, 1, 67), (1, 3, 48)]
    assert metrics.polyphony(song_of(a_chord)) == (3 + 3 * 1) / 4


def test_polyphony_counts_pitches_and_no_drums():
    """A pitch that two instruments play, or that begins anew while it sounds, counts once."""
    drums = [(i, 1, 35, vocab.DRUMS) for i in range(8)]
    unison = [(0, 2, 60, 0), (0, 1, 60, 40), (1, 1, 60, 40)]
    assert metrics.polyphony(song_of([*unison, *drums], multi=True)) == 1
    assert metrics.polyphony(song_of([(0, 2, 60, 0), (0, 2, 64, 40), *drums], multi=True)) == 2


def test_entropy_of_unequal_shares():
    """A half, a quarter and two eighths."""
    pitches = [60] * 4 + [62] * 2 + [64, 65]
    assert metrics.pitch_class_entropy(song_of([(i, 1, pitch) for i, pitch in enumerate(pitches)])) == 1.75


@pytest.mark.parametrize("name", ["polyphony", "pitch_class_entropy", "scale_consistency"])
def test_without_pitched_notes_there_is_no_value(name):
    metric = getattr(metrics, name)
    assert np.isnan(metric(song_of([])))
    assert np.isnan(metric(song_of([(0, 1, 35, vocab.DRUMS)], multi=True)))


def test_notes_per_beat_count_whole_bars():
    assert metrics.notes_per_beat(song_of([(0, 1, 60), (4, 1, 60), (5, 1, 62)])) == 3 / 8
    assert metrics.notes_per_beat(song_of([])) == 0


def test_groove_of_identical_bars_is_1():
    bars = [(4 * bar + beat, 1, 60 + bar) for bar in range(30) for beat in range(4)]
    assert metrics.groove_similarity(song_of(bars)) == 1
    # The second bar has one onset fewer, and the other elsewhere.
    assert metrics.groove_similarity(song_of([(0, 1, 60), (1, 1, 60), (4.5, 1, 60)])) == pytest.approx(1 - 3 / 32)
    assert np.isnan(metrics.groove_similarity(song_of([(0, 1, 60)])))


def test_self_similarity_by_lag():
    a, b = [(0, 60), (1, 64)], [(0, 60), (2, 65)]
    notes = [(4 * bar + on, 1, pitch) for bar, content in enumerate([a, b, a, b, a]) for on, pitch in content]
    curve = metrics.self_similarity(song_of(notes))
    np.testing.assert_allclose(curve[:4], [1 / 3, 1, 1 / 3, 1])
    assert np.isnan(curve[4:]).all()


def test_stutter_counts_quick_repeats_of_a_part():
    repeats = [(0, 0.125, 60), (0.125, 0.125, 60), (0.25, 0.5, 60), (1, 1, 60)]
    assert metrics.stutter(song_of(repeats)) == 2 / 4
    sixteenths = [(i / 4, 0.25, 60) for i in range(8)]
    assert metrics.stutter(song_of(sixteenths)) == 0
    trill = [(i / 8, 0.125, 60 + i % 2) for i in range(8)]
    assert metrics.stutter(song_of(trill)) == 0
    two_parts = [(i / 8, 0.125, 60, i % 2) for i in range(8)]
    assert metrics.stutter(song_of(two_parts, multi=True)) == 0
    assert np.isnan(metrics.stutter(song_of([])))


def test_bars_come_back_also_varied_by_a_note():
    bar = [(i, 1, 60 + i) for i in range(4)]
    later = [(4 * n + on, long, pitch) for n in (2, 3) for on, long, pitch in bar]
    other = [(4 + i, 1, 72 - i) for i in range(4)]
    assert metrics.returning_bars(song_of(bar + other + later)) == pytest.approx(2 / 3)
    varied = [(4 * 2 + on, long, pitch) for on, long, pitch in [*bar, (3.5, 0.5, 50)]]  # 4 of 5 notes
    assert metrics.returning_bars(song_of(bar + other + varied)) == 1 / 2
    assert metrics.returning_bars(song_of(bar + other)) == 0
    assert np.isnan(metrics.returning_bars(song_of(bar)))


def test_distributions():
    song = song_of([(0, 1, 60), (0.5, 0.125, 62), (1.75, 4, 64), (2, 8, 65)])
    onsets, durations = metrics.onset_shares(song), metrics.duration_shares(song)
    assert {i: x for i, x in enumerate(onsets.tolist()) if x} == {0: 0.5, 12: 0.25, 18: 0.25}
    assert durations[[0, 5, 9, 10]].tolist() == [0.25] * 4
    assert metrics.total_variation(onsets, onsets) == 0
    assert metrics.total_variation(np.array([1, 0]), np.array([0, 1])) == 1
    assert metrics.total_variation(np.array([0.5, 0.5]), np.array([1, 0])) == 0.5
