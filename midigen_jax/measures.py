"""What music is like: numbers that the literature compares generated music by.

MusPy (Dong et al. 2020, "MusPy: A toolkit for symbolic music generation") takes those that it measures soundly. Its
groove consistency is not: it divides by one pair of bars too many, so that 30 identical bars come to 0.967, not 1.
"""

from collections.abc import Callable
from itertools import pairwise

import muspy
import numpy as np

from . import vocab
from .loops import bar_contents
from .song import Song

LAGS = np.arange(1, 17)  # bars


def _muspy(song: Song) -> muspy.Music:
    """The song for MusPy, which leaves drums aside where the parts are kept apart."""
    parts: dict[int, list[muspy.Note]] = {}
    for onset, duration, pitch, part, velocity in song.notes.tolist():
        part = part if song.scheme.multi else 0
        parts.setdefault(part, []).append(muspy.Note(onset, pitch, duration, velocity))
    tracks = [
        muspy.Track(part % vocab.DRUMS, is_drum=part == vocab.DRUMS, notes=notes) for part, notes in parts.items()
    ]
    return muspy.Music(resolution=song.scheme.steps_per_beat, tracks=tracks)


def notes_per_beat(song: Song) -> float:
    """Notes a quarter note, up to the end of the last note's bar."""
    if len(song.notes) == 0:
        return 0.0
    return len(song.notes) / (song.bar_start(song.bar_of(int(song.notes[-1, 0])) + 1) / song.scheme.steps_per_beat)


def polyphony(song: Song) -> float:
    """Pitches that sound together, on the average over the steps at which any does."""
    return float(muspy.polyphony(_muspy(song)))


def pitch_class_entropy(song: Song) -> float:
    """Entropy of how often each of the twelve pitch classes comes, in bits (Wu and Yang 2020): 0 for one alone."""
    return float(muspy.pitch_class_entropy(_muspy(song)))


def scale_consistency(song: Song) -> float:
    """Share of the notes that are in the major or natural minor scale which holds most of them (Mogren 2016)."""
    return float(muspy.scale_consistency(_muspy(song)))


def groove_similarity(song: Song) -> float:
    """How alike the rhythms of neighbouring bars are (Wu and Yang 2020, "The Jazz Transformer on the front line").

    One less the share of the steps on which notes begin in one bar and not in the other, on the average over all
    neighbours of equal length; nan without any.
    """
    onsets = [(length, {onset for onset, _ in notes}) for length, notes in bar_contents(song)]
    alike = [
        1 - len(one ^ other) / length
        for (length, one), (length_of_other, other) in pairwise(onsets)
        if length == length_of_other
    ]
    return float(np.mean(alike)) if alike else np.nan


def self_similarity(song: Song) -> np.ndarray:
    """How much of a bar comes back so many bars later, float [lags] of LAGS; nan where the song is too short.

    Of two bars: the notes (onset in the bar and pitch) that both have, as a share of those that either has; on the
    average over all pairs with notes (Yu et al. 2022, "Museformer", whose similarity counts durations as well).
    """
    bars = [notes for _, notes in bar_contents(song)]
    curve = np.full(len(LAGS), np.nan)
    for i, lag in enumerate(LAGS):
        pairs = [(one, other) for one, other in zip(bars, bars[lag:], strict=False) if one or other]
        if pairs:
            curve[i] = np.mean([len(one & other) / len(one | other) for one, other in pairs])
    return curve


MEASURES: dict[str, Callable[[Song], float]] = {
    "notes a beat": notes_per_beat,
    "polyphony": polyphony,
    "pitch-class entropy, bits": pitch_class_entropy,
    "scale consistency": scale_consistency,
    "groove similarity": groove_similarity,
}
