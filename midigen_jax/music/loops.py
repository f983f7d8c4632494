"""Finds loops: bars that repeat again and again, silence included."""

from typing import NamedTuple

import numpy as np

from .song import Song

MAX_BARS = 8  # repetition this long is no loop yet
MAX_PERIOD = 4  # bars
ALIKE = 0.8  # of the notes that either of two bars has are in both: one varies the other by a note or so


class Loop(NamedTuple):
    """Bars that repeat with a period."""

    bar: int  # the first, counted from 0
    bars: int
    period: int  # in bars


def bar_contents(song: Song) -> list[tuple]:
    """The content of each bar up to that of the last note: its length and the set of (position, pitch)."""
    if len(song.notes) == 0:
        return []
    # Up to the last meter, so that the end of every bar is known: a later meter may shorten the last note's bar.
    lines = song.bar_lines(max(song.end, int(song.bars[-1, 0])))
    lengths = np.diff([*lines, lines[-1] + song.bars[-1, 1]]).tolist()
    lines = lines[lines <= song.notes[-1, 0]]
    which = np.searchsorted(lines, song.notes[:, 0], side="right") - 1
    bars: list[set] = [set() for _ in lines]
    for bar, onset, pitch in zip(which.tolist(), song.notes[:, 0].tolist(), song.notes[:, 2].tolist(), strict=True):
        bars[bar].add((onset - int(lines[bar]), pitch))
    return [(length, frozenset(bar)) for length, bar in zip(lengths[: len(lines)], bars, strict=True)]


def is_similar(bar: tuple, other: tuple, similarity: float) -> bool:
    """Whether two bars are of one length, and so great a share of the notes that either has (position, pitch) is in
    both."""
    (length, notes), (other_length, other_notes) = bar, other
    return length == other_length and len(notes & other_notes) >= similarity * len(notes | other_notes)


def find_loops(song: Song, *, start: int = 0, similarity: float = 1.0) -> list[Loop]:
    """Passages of more than MAX_BARS bars, each equal, or similar, to the bar 1, 2, 3 or 4 bars before.

    The shortest period counts. Where one loop changes into another, bars that fit both belong to both.

    Args:
        start: bars that begin before this time are ignored.
        similarity: the least share of the notes in either of two bars that is in both; below 1, loops are found whose
            notes change from one time to the next.
    """
    bars = bar_contents(song)
    first = int(np.searchsorted(song.bar_lines(song.end), start))
    loops: list[Loop] = []
    for period in range(1, MAX_PERIOD + 1):
        begins = first
        for bar in range(first + period, len(bars) + 1):
            if bar < len(bars) and is_similar(bars[bar], bars[bar - period], similarity):
                continue
            length = bar - begins
            if length > max(MAX_BARS, period):
                loop = Loop(begins, length, period)
                if not any(other.bar <= begins and bar <= other.bar + other.bars for other in loops):
                    loops.append(loop)
            begins = bar + 1 - period
    return sorted(loops)
