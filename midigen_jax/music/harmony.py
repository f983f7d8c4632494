"""Chords and bass lines, as far as a simple estimate tells them.

A chord is the major or minor triad that fits best what sounds (Fujishima 1999, "Realtime chord recognition of musical
sound"; Harte and Sandler 2005, for the templates). It names no sevenths, and passing notes may mislead it, in real
music as much as in written; so it compares pieces, and does not analyse one. Drums are left out.
"""

import numpy as np

from .. import vocab
from .song import Song

NO_CHORD = -1
MAJOR, MINOR = (0, 4, 7), (0, 3, 7)  # semitones above the root
BASS_WEIGHT = 0.2  # of a root in the bass, beside a fit of 1 for a plain triad: tells C6 from Am7

# By chord: twice the root's pitch class, plus 1 if it is minor.
_TEMPLATES = np.array(
    [np.isin(np.arange(12), (np.array(triad) + root) % 12) for root in range(12) for triad in (MAJOR, MINOR)], float
) / np.sqrt(3)


def pitched(song: Song) -> np.ndarray:
    """The notes without drums, int32 [n, 5]."""
    return song.notes[song.notes[:, 3] != vocab.DRUMS] if song.scheme.multi else song.notes


def sounding(song: Song, lines: np.ndarray) -> np.ndarray:
    """For how many grid steps each pitch sounds between successive times: int64 [n, 128].

    Args:
        lines: int [n + 1], ascending.
    """
    notes = pitched(song)
    begin, end, pitch = notes[:, 0].astype(np.int64), (notes[:, 0] + notes[:, 1]).astype(np.int64), notes[:, 2]
    first, last = np.searchsorted(lines, begin, "right") - 1, np.searchsorted(lines, end, "left")
    spans = np.maximum(last - first, 0)
    note = np.repeat(np.arange(len(notes)), spans)
    interval = np.arange(spans.sum()) - np.repeat(np.cumsum(spans) - spans, spans) + first[note]
    inside = (interval >= 0) & (interval < len(lines) - 1)
    note, interval = note[inside], interval[inside]
    steps = np.minimum(end[note], lines[interval + 1]) - np.maximum(begin[note], lines[interval])
    found = np.zeros((len(lines) - 1, 128), np.int64)
    np.add.at(found, (interval, pitch[note]), steps)
    return found


def chords(song: Song, lines: np.ndarray) -> np.ndarray:
    """The chord between successive times, int [n]: twice its root's pitch class, plus 1 if it is minor; or NO_CHORD.

    Args:
        lines: int [n + 1], ascending.
    """
    by_pitch = sounding(song, lines).astype(float)
    classes = np.stack([by_pitch[:, i::12].sum(1) for i in range(12)], 1)
    silent = classes.sum(1) == 0
    fit = classes @ _TEMPLATES.T / np.maximum(np.linalg.norm(classes, axis=1), 1)[:, None]
    bass = (by_pitch > 0).argmax(1) % 12
    fit += BASS_WEIGHT * (np.arange(24) // 2 == bass[:, None])
    return np.where(silent, NO_CHORD, fit.argmax(1))


def bar_lines(song: Song, per_bar: int = 1) -> np.ndarray:
    """The times at which bars begin, up to the end of the last note's bar, each divided into equal parts."""
    if len(song.notes) == 0:
        return np.zeros(1, np.int64)
    last = song.bar_of(int(song.notes[-1, 0]))
    lines = np.array([song.bar_start(bar) for bar in range(last + 2)], np.int64)
    parts = lines[:-1, None] + np.diff(lines)[:, None] * np.arange(per_bar) // per_bar
    return np.append(parts.ravel(), lines[-1])


def _changes(values: np.ndarray, none: int) -> np.ndarray:
    """Whether each value differs from the one before it, where neither is `none`: float, nan where one is."""
    before, after = values[:-1], values[1:]
    return np.where((before == none) | (after == none), np.nan, before != after)


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else np.nan


def chords_per_bar(song: Song) -> float:
    """How many chords a bar has, from one in each half: the harmonic rhythm; nan for a single half bar."""
    return 2 * _mean(_changes(chords(song, bar_lines(song, 2)), NO_CHORD))


def kept_chords(song: Song) -> float:
    """The share of bars that keep the chord of the bar before; nan for a single bar."""
    return 1 - _mean(_changes(chords(song, bar_lines(song)), NO_CHORD))


def longest_chord(song: Song) -> int:
    """The most bars in a row with the same chord."""
    found = chords(song, bar_lines(song))
    longest = run = 0
    for i, chord in enumerate(found.tolist()):
        run = run + 1 if i and chord == found[i - 1] else 1
        longest = max(longest, run if chord != NO_CHORD else 0)
    return longest


def bass_line(song: Song) -> np.ndarray:
    """The lowest pitch that sounds in each quarter note up to the song's end, int [n]; -1 in silence."""
    beat = song.scheme.steps_per_beat
    by_pitch = sounding(song, np.arange(0, song.end + beat, beat))
    return np.where(by_pitch.any(1), (by_pitch > 0).argmax(1), -1)


def bass_movement(song: Song) -> float:
    """The share of quarter notes whose lowest pitch is another than that of the quarter note before."""
    return _mean(_changes(bass_line(song), -1))
