"""Meters and tempos: in which bar a time lies, and at which second it sounds.

Times and lengths are in grid steps. A meter map is int64 [n, 3]: the time at which a meter begins, the length of its
bars, and the number of its first bar, counted from 0.
"""

import numpy as np

from . import kernel

BEATS_PER_BAR = 4  # where the file gives no usable meter
DEFAULT_TEMPO = 500_000  # microseconds per quarter note, before the first tempo
MAX_TIME = (1 << 20) - 1  # 18 hours at 8 grid steps per beat and 120 beats per minute; no song is longer


@kernel
def to_grid(tick, division, steps_per_beat):
    """The time on the grid that is nearest to a tick; halves are rounded to even, as in Python.

    Double precision is enough: for ticks below 2^31 no quotient that is not a half is rounded to one.
    """
    return np.int64(np.rint(tick * steps_per_beat / division))


@kernel
def on_grid(changes, division, steps_per_beat):
    """Converts the ticks of meters or tempos, in their first column, to times on the grid, in place.

    Returns the number of rows that remain, at the front: of several at one time the last one is kept, and rows that
    change nothing are dropped. Times after MAX_TIME become MAX_TIME.
    """
    n = 0
    for i in range(len(changes)):
        time = min(to_grid(changes[i, 0], division, steps_per_beat), MAX_TIME)
        if n and changes[n - 1, 0] == time:
            n -= 1
        same = n > 0
        for column in range(1, changes.shape[1]):
            same = same and changes[n - 1, column] == changes[i, column]
        if not same:
            changes[n] = changes[i]
            changes[n, 0] = time
            n += 1
    return n


@kernel
def meter_map(meters, steps_per_beat):
    """The meter map of meters on the grid.

    A change of meter starts a new bar. A meter of a single beat says nothing about bars and is read as 4/4, as is the
    time before the first meter.

    Args:
        meters: int [n, 3] of `on_grid`: time, numerator, denominator.
    """
    bars = np.empty((len(meters) + 1, 3), np.int64)
    bars[0, 0] = 0
    bars[0, 1] = BEATS_PER_BAR * steps_per_beat
    bars[0, 2] = 0
    n = 1
    for i in range(len(meters)):
        time, numerator, denominator = np.int64(meters[i, 0]), np.int64(meters[i, 1]), np.int64(meters[i, 2])
        if numerator == 1:
            length = BEATS_PER_BAR * steps_per_beat
        else:
            length = max((4 * steps_per_beat * numerator + denominator - 1) // denominator, 1)
        if time == bars[n - 1, 0]:
            bars[n - 1, 1] = length
            continue
        passed = (time - bars[n - 1, 0] + bars[n - 1, 1] - 1) // bars[n - 1, 1]
        bars[n, 0] = time
        bars[n, 1] = length
        bars[n, 2] = bars[n - 1, 2] + passed
        n += 1
    return bars[:n]


@kernel
def bar_positions(times, bars):
    """The bar number and the position in the bar, both int32 [n], of ascending times under a meter map."""
    bar = np.empty(len(times), np.int32)
    position = np.empty(len(times), np.int32)
    m = 0
    for i in range(len(times)):
        while m + 1 < len(bars) and bars[m + 1, 0] <= times[i]:
            m += 1
        since = times[i] - bars[m, 0]
        bar[i] = bars[m, 2] + since // bars[m, 1]
        position[i] = since % bars[m, 1]
    return bar, position


@kernel
def seconds_at(time, tempos, steps_per_beat):
    """The second at which a time on the grid sounds.

    Args:
        tempos: int [n, 2] of `on_grid`: time, microseconds per quarter note.
    """
    seconds = 0.0
    since = 0
    per_quarter = DEFAULT_TEMPO
    for i in range(len(tempos)):
        if tempos[i, 0] >= time:
            break
        seconds += (tempos[i, 0] - since) * (per_quarter / steps_per_beat / 1e6)
        since = np.int64(tempos[i, 0])
        per_quarter = np.int64(tempos[i, 1])
    return seconds + (time - since) * (per_quarter / steps_per_beat / 1e6)
