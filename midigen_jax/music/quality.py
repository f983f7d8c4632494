"""What is wrong with a piece of music at first sight: faults that a listener would not forgive, in words.

Each fault is measured against the music that was continued, so that what is meant to be dense or static may be so.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .harmony import longest_chord
from .loops import ALIKE, bar_contents, find_loops
from .metrics import scale_consistency, stutter
from .song import Song

LONGEST_CHORD = 8  # bars
LEAST_BARS = 4  # of what was continued, if it is to be compared with


class Kind(NamedTuple):
    """A kind of fault."""

    name: str
    measure: Callable[[Song], float]
    limit: float  # above it is a fault,
    factor: float  # unless it is at most so many times what it is in the music that was continued
    text: str  # of the value


def _bars(song: Song) -> list[int]:
    return [len(notes) for _, notes in bar_contents(song)]


def _silent(song: Song) -> float:
    """The share of bars without a note."""
    return float(np.mean([n == 0 for n in _bars(song)])) if len(song.notes) else 1.0


def _notes_per_bar(song: Song) -> float:
    """In bars with notes."""
    counts = [n for n in _bars(song) if n]
    return float(np.mean(counts)) if counts else 0.0


def _longest_loop(song: Song) -> float:
    """In bars."""
    return max((loop.bars for loop in find_loops(song, similarity=ALIKE)), default=0)


def _outside_of_scale(song: Song) -> float:
    return 1 - scale_consistency(song)


KINDS = (
    Kind("silence", _silent, 0.25, 1.5, "{:.0%} of the bars are silent"),
    Kind("density", _notes_per_bar, 48, 2, "{:.0f} notes a bar"),
    Kind("stutter", stutter, 0.1, 2, "{:.0%} of the notes stutter"),
    Kind("one chord", longest_chord, LONGEST_CHORD, 1, "one chord for {:.0f} bars"),
    Kind("loop", _longest_loop, 0, 1, "a loop of {:.0f} bars"),
    Kind("out of key", _outside_of_scale, 0.25, 1.5, "{:.0%} of the notes are in no scale"),
)


class Fault(NamedTuple):
    kind: str  # its name
    text: str
    excess: float  # how many times the limit


def find_faults(song: Song, continued: Song | None = None) -> list[Fault]:
    """The faults of an excerpt.

    Args:
        song: begins at time 0.
        continued: the music before it, if there is any.
    """
    compared = continued if continued is not None and len(_bars(continued)) >= LEAST_BARS else None
    found = []
    for kind in KINDS:
        value, limit = kind.measure(song), kind.limit
        if compared is not None:
            limit = max(limit, kind.factor * np.nan_to_num(kind.measure(compared)))
        if value > limit:  # nan, where nothing can be measured, is none
            found.append(Fault(kind.name, kind.text.format(value), float(value / max(limit, 1e-2))))
    return found
