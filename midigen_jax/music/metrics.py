"""Statistics of music that the literature compares generated music by.

Polyphony, pitch-class entropy and scale consistency are defined as in MusPy (Dong et al. 2020, "MusPy: A toolkit for
symbolic music generation"). Groove similarity is not: MusPy divides by one pair of bars too many, so that 30 identical
bars come to 0.967, not 1. Drums are left out wherever pitches matter, if the instruments are kept apart.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from .harmony import bass_movement, chords_per_bar, kept_chords, pitched
from .loops import ALIKE, bar_contents, is_similar
from .song import Song

LAGS = np.arange(1, 17)  # bars
DURATIONS = (1 / 8, 1 / 4, 1 / 3, 1 / 2, 3 / 4, 1, 1.5, 2, 3, 4)  # beats

_MAJOR, _MINOR = (0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10)  # pitch classes of the scales on C
_SCALES = np.array([np.isin((np.arange(12) - root) % 12, mode) for mode in (_MAJOR, _MINOR) for root in range(12)])


def _pitch_class_shares(song: Song) -> np.ndarray:
    """The share of each pitch class in the notes, float [12]; nan without notes."""
    notes = pitched(song)
    return np.bincount(notes[:, 2] % 12, minlength=12) / (len(notes) or np.nan)


def notes_per_beat(song: Song) -> float:
    """Notes per quarter note, up to the end of the last note's bar."""
    if len(song.notes) == 0:
        return 0.0
    return len(song.notes) / (song.bar_start(song.bar_of(int(song.notes[-1, 0])) + 1) / song.scheme.steps_per_beat)


def polyphony(song: Song) -> float:
    """Mean number of distinct pitches that sound at once, over the grid steps at which any does; nan without notes."""
    onset, duration, pitch = pitched(song)[:, :3].astype(np.int64).T
    # A grid step for each at which a note sounds, with its pitch.
    times = np.arange(duration.sum()) + np.repeat(onset - np.cumsum(duration) + duration, duration)
    sounding = np.unique(times * 128 + np.repeat(pitch, duration))
    return len(sounding) / (len(np.unique(sounding // 128)) or np.nan)


def pitch_class_entropy(song: Song) -> float:
    """Entropy of the pitch classes in bits (Wu and Yang 2020): 0 for a single one; nan without notes."""
    shares = _pitch_class_shares(song)
    return float(-np.sum(shares * np.log2(np.where(shares > 0, shares, 1))))


def scale_consistency(song: Song) -> float:
    """Largest share of the notes in any major or natural minor scale (Mogren 2016); nan without notes."""
    return float((_SCALES @ _pitch_class_shares(song)).max())


def groove_similarity(song: Song) -> float:
    """How alike the rhythms of neighbouring bars are (Wu and Yang 2020, "The Jazz Transformer on the front line").

    1 minus the share of grid steps at which notes begin in one bar and not in the other, averaged over all neighbours
    of equal length; nan without any.
    """
    onsets = [(length, {onset for onset, _ in notes}) for length, notes in bar_contents(song)]
    similarities = [
        1 - len(one ^ other) / length
        for (length, one), (length_of_other, other) in pairwise(onsets)
        if length == length_of_other
    ]
    return float(np.mean(similarities)) if similarities else np.nan


def self_similarity(song: Song) -> np.ndarray:
    """How much of a bar recurs a number of bars later, float [lags] of LAGS; nan where the song is too short.

    For two bars: the notes (onset in the bar and pitch) that both have, as a share of those that either has; averaged
    over all pairs with notes (Yu et al. 2022, "Museformer", whose similarity includes durations as well).
    """
    bars = [notes for _, notes in bar_contents(song)]
    curve = np.full(len(LAGS), np.nan)
    for i, lag in enumerate(LAGS):
        pairs = [(one, other) for one, other in zip(bars, bars[lag:], strict=False) if one or other]
        if pairs:
            curve[i] = np.mean([len(one & other) / len(one | other) for one, other in pairs])
    return curve


def returning_bars(song: Song) -> float:
    """The share of bars that share at least ALIKE of their notes with an earlier one; nan for a single bar.

    Two bars share the notes that both have (onset in the bar and pitch), as a part of those that either has.
    """
    bars = [bar for bar in bar_contents(song) if bar[1]]
    returns = [any(is_similar(bar, earlier, ALIKE) for earlier in bars[:i]) for i, bar in enumerate(bars)]
    return float(np.mean(returns[1:])) if len(bars) > 1 else np.nan


def stutter(song: Song) -> float:
    """The share of notes that begin less than a sixteenth after one of the same pitch and part; nan without notes."""
    notes = song.notes[np.lexsort((song.notes[:, 0], song.notes[:, 2], song.notes[:, 3]))].astype(np.int64)
    gap, pitch, part = np.diff(notes[:, [0, 2, 3]], axis=0).T
    stutters = (pitch == 0) & (part == 0) & (4 * gap < song.scheme.steps_per_beat)
    return np.count_nonzero(stutters) / (len(notes) or np.nan)


def onset_shares(song: Song) -> np.ndarray:
    """The share of notes that begin at each 24th of a beat, float [24]; nan without notes."""
    position = song.notes[:, 0] % song.scheme.steps_per_beat * 24 // song.scheme.steps_per_beat
    return np.bincount(position, minlength=24) / (len(position) or np.nan)


def duration_shares(song: Song) -> np.ndarray:
    """The share of notes that last up to each of DURATIONS, or longer than all, float; nan without notes."""
    beats = song.notes[:, 1] / song.scheme.steps_per_beat
    return np.bincount(np.searchsorted(DURATIONS, beats), minlength=len(DURATIONS) + 1) / (len(beats) or np.nan)


def total_variation(one: np.ndarray, other: np.ndarray) -> float:
    """How far two distributions are apart: 0 if they are the same, 1 if they share nothing."""
    return float(np.abs(one - other).sum() / 2)


METRICS: dict[str, Callable[[Song], float]] = {
    "notes per beat": notes_per_beat,
    "polyphony": polyphony,
    "pitch-class entropy, bits": pitch_class_entropy,
    "scale consistency": scale_consistency,
    "groove similarity": groove_similarity,
    "chords per bar": chords_per_bar,
    "bars that keep the chord before": kept_chords,
    "bass movement": bass_movement,
    "stutter": stutter,
    "bars that come back": returning_bars,
}
