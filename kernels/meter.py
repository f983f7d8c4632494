"""Where steps lie in bars, and when they sound: a song's meters and tempos.

A meter map is int64 [n, 3]: the first step of each meter, its steps a bar, and the number of its first bar, from 0.
"""

import numpy as np

from . import kernel

BEATS_PER_BAR = 4  # of a bar whose meter says nothing
DEFAULT_TEMPO = 500_000  # microseconds per quarter note, before the first tempo
MAX_STEP = (1 << 20) - 1  # 18 hours at 8 steps a beat and 120 beats a minute; no song is longer


@kernel
def to_step(tick, division, steps_per_beat):
    """The step nearest to a tick; halves go to the even one, as Python rounds.

    The quotient is exact enough: no tick below 2^31 comes so near to a half without being one that the division of
    doubles would make it one.
    """
    return np.int64(np.rint(tick * steps_per_beat / division))


@kernel
def on_grid(changes, division, steps_per_beat):
    """Turns the ticks of meters or tempos, in their first column, to steps, in place.

    Returns how many rows remain at the front: of several on one step the last holds, and what changes nothing goes.
    What comes after MAX_STEP counts as that late.
    """
    n = 0
    for i in range(len(changes)):
        step = min(to_step(changes[i, 0], division, steps_per_beat), MAX_STEP)
        if n and changes[n - 1, 0] == step:
            n -= 1
        same = n > 0
        for column in range(1, changes.shape[1]):
            same = same and changes[n - 1, column] == changes[i, column]
        if not same:
            changes[n] = changes[i]
            changes[n, 0] = step
            n += 1
    return n


@kernel
def meter_map(meters, steps_per_beat):
    """The meter map of meters on the grid.

    A change of meter starts a new bar. A meter of a single beat tells nothing of bars and counts as 4/4, and so does
    a song before its first meter.

    Args:
        meters: int [n, 3] of `on_grid`: step, numerator, denominator.
    """
    bars = np.empty((len(meters) + 1, 3), np.int64)
    bars[0, 0] = 0
    bars[0, 1] = BEATS_PER_BAR * steps_per_beat
    bars[0, 2] = 0
    n = 1
    for i in range(len(meters)):
        step, numerator, denominator = np.int64(meters[i, 0]), np.int64(meters[i, 1]), np.int64(meters[i, 2])
        if numerator == 1:
            length = BEATS_PER_BAR * steps_per_beat
        else:
            length = max((4 * steps_per_beat * numerator + denominator - 1) // denominator, 1)
        if step == bars[n - 1, 0]:
            bars[n - 1, 1] = length
            continue
        passed = (step - bars[n - 1, 0] + bars[n - 1, 1] - 1) // bars[n - 1, 1]
        bars[n, 0] = step
        bars[n, 1] = length
        bars[n, 2] = bars[n - 1, 2] + passed
        n += 1
    return bars[:n]


@kernel
def bar_positions(steps, bars):
    """Bar number and step within the bar, int32 [n] each, of ascending steps under a meter map."""
    bar = np.empty(len(steps), np.int32)
    in_bar = np.empty(len(steps), np.int32)
    m = 0
    for i in range(len(steps)):
        while m + 1 < len(bars) and bars[m + 1, 0] <= steps[i]:
            m += 1
        since = steps[i] - bars[m, 0]
        bar[i] = bars[m, 2] + since // bars[m, 1]
        in_bar[i] = since % bars[m, 1]
    return bar, in_bar


@kernel
def seconds_at(step, tempos, steps_per_beat):
    """Time of a step under tempos on the grid, int [n, 2]: step, microseconds per quarter note."""
    seconds = 0.0
    since = 0
    per_quarter = DEFAULT_TEMPO
    for i in range(len(tempos)):
        if tempos[i, 0] >= step:
            break
        seconds += (tempos[i, 0] - since) * (per_quarter / steps_per_beat / 1e6)
        since = np.int64(tempos[i, 0])
        per_quarter = np.int64(tempos[i, 1])
    return seconds + (step - since) * (per_quarter / steps_per_beat / 1e6)
