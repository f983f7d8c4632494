"""Chords and bass lines against music whose chords are known."""

import numpy as np
import pytest

from midigen_jax.music import harmony
from midigen_jax.music.song import Song, make_song
from midigen_jax.vocab import DRUMS, Scheme

BEAT = 8
METER = np.array([[0, 4, 4]], np.int32)
TEMPO = np.array([[0, 500_000]], np.int32)


def song_of(notes: list[tuple[int, int, int]], *, part: int = 0, scheme: Scheme = Scheme()) -> Song:  # noqa: B008
    """A song of (beat, beats, pitch)."""
    rows = [(int(BEAT * onset), int(BEAT * length), pitch, part, 80) for onset, length, pitch in notes]
    return make_song(np.array(sorted(rows), np.int32).reshape(-1, 5), METER, TEMPO, scheme)


def block(bar: int, bass: int, pitches: tuple[int, ...], beats: int = 4, beat: int = 0) -> list[tuple[int, int, int]]:
    return [(4 * bar + beat, beats, pitch) for pitch in (bass, *pitches)]


def name(chord: int) -> str:
    return ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")[chord // 2] + "m" * (chord % 2)


@pytest.mark.parametrize(
    ("bass", "pitches", "expected"),
    [
        (48, (60, 64, 67), "C"),
        (52, (60, 64, 67), "C"),  # first inversion
        (45, (60, 64, 69), "Am"),
        (48, (64, 67, 69), "C"),  # C6 ...
        (45, (60, 64, 67), "Am"),  # ... and Am7, the same notes
        (43, (59, 62, 65), "G"),  # G7
        (42, (61, 66, 69), "F#m"),
    ],
)
def test_block_chords(bass: int, pitches: tuple[int, ...], expected: str) -> None:
    song = song_of(block(0, bass, pitches))
    assert [name(chord) for chord in harmony.chords(song, harmony.bar_lines(song))] == [expected]


def test_broken_chords_with_passing_notes() -> None:
    """An Alberti bass below a scale: C, F, G, C, a bar each."""
    roots, scale = (48, 53, 55, 48), (72, 74, 76, 77, 79, 81, 83, 84)
    notes = [
        (4 * bar + i / 2, 0.5, root + interval)
        for bar, root in enumerate(roots)
        for i, interval in enumerate((0, 7, 4, 7, 0, 7, 4, 7))
    ]
    notes += [(4 * bar + i / 2, 0.5, scale[(i + bar) % 8]) for bar in range(4) for i in range(8)]
    song = song_of(notes)
    assert [name(chord) for chord in harmony.chords(song, harmony.bar_lines(song))] == ["C", "F", "G", "C"]
    assert harmony.chords_per_bar(song) == pytest.approx(2 * 3 / 7)
    assert harmony.kept_chords(song) == 0


def test_harmonic_rhythm() -> None:
    c, g = (48, (60, 64, 67)), (43, (59, 62, 67))
    twice = song_of([x for bar in range(4) for x in block(bar, *c, beats=2) + block(bar, *g, beats=2, beat=2)])
    assert harmony.chords_per_bar(twice) == 2
    static = song_of([x for bar in range(9) for x in block(bar, *c)] + block(9, *g))
    assert harmony.longest_chord(static) == 9
    assert harmony.kept_chords(static) == pytest.approx(8 / 9)
    assert harmony.bass_movement(static) == pytest.approx(1 / 39)


def test_held_notes_count_where_they_sound() -> None:
    song = song_of([(0, 8, 48), (0, 8, 64), (0, 8, 67), (4, 1, 72)])
    assert harmony.sounding(song, np.array([0, 4, 32, 64]))[:, 48].tolist() == [4, 28, 32]
    assert [name(chord) for chord in harmony.chords(song, harmony.bar_lines(song))] == ["C", "C"]


def test_silence_and_drums_have_no_chord() -> None:
    scheme = Scheme(multi=True)
    drums = song_of(block(0, 36, (38, 42)), part=DRUMS, scheme=scheme)
    assert harmony.chords(drums, harmony.bar_lines(drums)).tolist() == [harmony.NO_CHORD]
    assert harmony.longest_chord(drums) == 0
    assert np.isnan(harmony.chords_per_bar(drums))
    assert np.isnan(harmony.bass_movement(drums))
    empty = song_of([])
    assert harmony.longest_chord(empty) == 0
    assert np.isnan(harmony.kept_chords(empty))
    gap = song_of(block(0, 48, (60, 64, 67)) + block(2, 48, (60, 64, 67)))
    assert np.isnan(harmony.kept_chords(gap))
