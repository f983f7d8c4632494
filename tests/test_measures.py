import numpy as np
import pytest

from midigen_jax import measures, vocab
from midigen_jax.song import new_song
from midigen_jax.vocab import Scheme


def song_of(notes, **scheme):
    """Of (onset in beats, duration in beats, pitch), and a part where these are kept apart."""
    rows = [[int(8 * on), int(8 * long), pitch, *(rest or [0]), 80] for on, long, pitch, *rest in notes]
    return new_song(Scheme(8, **scheme))._replace(notes=np.array(rows, np.int32).reshape(-1, 5))


def test_entropy_counts_pitch_classes_and_no_drums():
    assert measures.pitch_class_entropy(song_of([(i, 1, 60 + 3 * i) for i in range(8)])) == pytest.approx(2)
    assert measures.pitch_class_entropy(song_of([(i, 1, 36 + 12 * i) for i in range(4)])) == 0
    drums = [(i, 1, 35 + i, vocab.DRUMS) for i in range(4)]
    assert measures.pitch_class_entropy(song_of([(0, 1, 60, 0), (1, 1, 61, 40), *drums], multi=True)) == pytest.approx(
        1
    )


def test_scale_consistency_is_that_of_the_best_scale():
    d_major = [62, 64, 66, 67, 69, 71, 73, 74]
    assert measures.scale_consistency(song_of([(i, 1, pitch) for i, pitch in enumerate(d_major)])) == 1
    assert measures.scale_consistency(song_of([(i, 1, 60 + i) for i in range(12)])) == pytest.approx(7 / 12)


def test_polyphony_is_an_average_over_what_sounds():
    """A note of two beats, with another on the first of them, and silence."""
    assert measures.polyphony(song_of([(0, 2, 60), (0, 1, 64), (7, 2, 60)])) == pytest.approx((2 + 1 + 1 + 1) / 4)


def test_notes_per_beat_count_whole_bars():
    assert measures.notes_per_beat(song_of([(0, 1, 60), (4, 1, 60), (5, 1, 62)])) == 3 / 8
    assert measures.notes_per_beat(song_of([])) == 0


def test_groove_of_identical_bars_is_1():
    bars = [(4 * bar + beat, 1, 60 + bar) for bar in range(30) for beat in range(4)]
    assert measures.groove_similarity(song_of(bars)) == 1
    # The second bar has an onset less, and one elsewhere.
    assert measures.groove_similarity(song_of([(0, 1, 60), (1, 1, 60), (4.5, 1, 60)])) == pytest.approx(1 - 3 / 32)
    assert np.isnan(measures.groove_similarity(song_of([(0, 1, 60)])))


def test_self_similarity_by_lag():
    a, b = [(0, 60), (1, 64)], [(0, 60), (2, 65)]
    notes = [(4 * bar + on, 1, pitch) for bar, content in enumerate([a, b, a, b, a]) for on, pitch in content]
    curve = measures.self_similarity(song_of(notes))
    np.testing.assert_allclose(curve[:4], [1 / 3, 1, 1 / 3, 1])
    assert np.isnan(curve[4:]).all()
