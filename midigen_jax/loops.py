"""Where music is stuck: bars that repeat themselves again and again, or silence."""

from typing import NamedTuple

import numpy as np

from .song import Song

MOST_BARS, LONGEST_PERIOD = 8, 4


class Loop(NamedTuple):
    """Bars that repeat those `period` bars before."""

    bar: int  # the first, counted from 0
    bars: int
    period: int


def bar_contents(song: Song) -> list[tuple]:
    """What each bar holds up to the last note's: its length and the set of (onset within it, pitch)."""
    if len(song.notes) == 0:
        return []
    # As far as the last meter, so that every bar's end is known: a later meter may cut the last note's bar short.
    lines = song.bar_lines(max(song.n_steps, int(song.bars[-1, 0])))
    lengths = np.diff([*lines, lines[-1] + song.bars[-1, 1]]).tolist()
    lines = lines[lines <= song.notes[-1, 0]]
    which = np.searchsorted(lines, song.notes[:, 0], side="right") - 1
    bars: list[set] = [set() for _ in lines]
    for bar, onset, pitch in zip(which.tolist(), song.notes[:, 0].tolist(), song.notes[:, 2].tolist(), strict=True):
        bars[bar].add((onset - int(lines[bar]), pitch))
    return [(length, frozenset(bar)) for length, bar in zip(lengths[: len(lines)], bars, strict=True)]


def find_loops(song: Song, *, first_step: int = 0) -> list[Loop]:
    """Passages of more than 8 bars, each the same as the one before or as 2, 3 or 4 bars before.

    The shortest period counts. Where one loop turns into another, the few bars that fit both belong to both.

    Args:
        first_step: bars that begin before are left out.
    """
    bars = bar_contents(song)
    first = int(np.searchsorted(song.bar_lines(song.n_steps), first_step))
    loops: list[Loop] = []
    for period in range(1, LONGEST_PERIOD + 1):
        begins = first
        for bar in range(first + period, len(bars) + 1):
            if bar < len(bars) and bars[bar] == bars[bar - period]:
                continue
            length = bar - begins
            if length > max(MOST_BARS, period):
                loop = Loop(begins, length, period)
                if not any(other.bar <= begins and bar <= other.bar + other.bars for other in loops):
                    loops.append(loop)
            begins = bar + 1 - period
    return sorted(loops)
