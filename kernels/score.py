"""Notes to sparse score, position score and tokens, and back.

The three stages are those of the MIDIGen blog: a sparse score holds a duration for every (step, part, pitch), a
position score is a list of (pitch, duration) and (rest, duration) events, and its flattened pairs are the tokens.
Times are steps of a fixed grid, `steps_per_beat` to the quarter note.
"""

import numpy as np

from ..vocab import DURATION_0, EOS, MAX_DURATION, NOTE_0, SEP, SOS
from . import kernel
from .smf import CHANNEL, DRUMS, DURATION, ONSET, PITCH, TRACK

REST = -1  # the pitch of a rest event
MAX_ONSET = 1 << 26  # steps; what lies beyond (97 days at 120 beats a minute, 8 steps a beat) is left out
BEATS_PER_BAR = 4  # of a bar whose meter says nothing


@kernel
def _to_steps(ticks, division, steps_per_beat):
    """Rounds half to even, as Python does."""
    scaled = ticks * steps_per_beat
    steps = scaled // division
    twice_rest = 2 * (scaled - steps * division)
    if twice_rest > division or (twice_rest == division and steps % 2 == 1):
        steps += 1
    return steps


@kernel
def quantize(notes, division, steps_per_beat):
    """Notes on the grid, without drums.

    Args:
        notes: int64 [N, 7] of `read_smf`.

    Returns:
        int32 [n, 4]: onset, duration, pitch and part (16 * track + channel), in the order of the position score:
        by onset, highest pitch first, then by part. A duration is 1 to MAX_DURATION steps, so that no note is lost to
        rounding. Of several notes of one part that share onset and pitch the longest stays.
    """
    # A note packs into one integer, so that one plain sort orders all: onset 26 bits, pitch 7, part 20, duration 9.
    packed = np.empty(len(notes), np.int64)
    n = 0
    for i in range(len(notes)):
        if notes[i, CHANNEL] == DRUMS:
            continue
        onset = _to_steps(notes[i, ONSET], division, steps_per_beat)
        if onset >= MAX_ONSET:
            continue
        duration = min(max(_to_steps(notes[i, DURATION], division, steps_per_beat), 1), MAX_DURATION)
        part = min(16 * notes[i, TRACK] + notes[i, CHANNEL], (1 << 20) - 1)
        packed[n] = ((onset << 7 | (127 - notes[i, PITCH])) << 20 | part) << 9 | duration
        n += 1
    packed = np.sort(packed[:n])
    grid = np.empty((n, 4), np.int32)
    kept = 0
    for i in range(n):
        if i + 1 < n and packed[i] >> 9 == packed[i + 1] >> 9:
            continue
        grid[kept, 0] = packed[i] >> 36
        grid[kept, 1] = packed[i] & 0x1FF
        grid[kept, 2] = 127 - (packed[i] >> 29 & 0x7F)
        grid[kept, 3] = packed[i] >> 9 & 0xFFFFF
        kept += 1
    return grid[:kept]


@kernel
def sparse_score(grid, part_index):
    """The blog's first stage: int16 [steps, parts, 128], a note's duration at its onset, else 0.

    Args:
        grid: int32 [n, 4] of `quantize`.
        part_index: int32 [n], the row of each note's part, 0 to parts - 1.
    """
    n_steps = grid[-1, 0] + 1 if len(grid) else 0
    n_parts = part_index.max() + 1 if len(grid) else 0
    score = np.zeros((n_steps, n_parts, 128), np.int16)
    for i in range(len(grid)):
        score[grid[i, 0], part_index[i], grid[i, 2]] = grid[i, 1]
    return score


@kernel
def grid_from_sparse(score):
    """The notes of a sparse score: int32 [n, 4] as `quantize` gives them, parts numbered by row."""
    grid = np.empty((np.count_nonzero(score), 4), np.int32)
    n = 0
    for step in range(score.shape[0]):
        for pitch in range(127, -1, -1):
            for part in range(score.shape[1]):
                if score[step, part, pitch] > 0:
                    grid[n, 0] = step
                    grid[n, 1] = score[step, part, pitch]
                    grid[n, 2] = pitch
                    grid[n, 3] = part
                    n += 1
    return grid


@kernel
def position_score(grid):
    """The blog's second stage: events (pitch or REST, duration) as int32 [E, 2], and their steps, int32 [E].

    A rest says how many steps pass to the next onset; over MAX_DURATION steps are several rests, each at its own
    start. No rest follows the last notes.
    """
    n_rests = 0
    now = 0
    for i in range(len(grid)):
        n_rests += (grid[i, 0] - now + MAX_DURATION - 1) // MAX_DURATION
        now = grid[i, 0]
    events = np.empty((len(grid) + n_rests, 2), np.int32)
    steps = np.empty(len(events), np.int32)
    now = 0
    e = 0
    for i in range(len(grid)):
        while now < grid[i, 0]:
            rest = min(grid[i, 0] - now, MAX_DURATION)
            events[e, 0] = REST
            events[e, 1] = rest
            steps[e] = now
            now += rest
            e += 1
        events[e, 0] = grid[i, 2]
        events[e, 1] = grid[i, 1]
        steps[e] = now
        e += 1
    return events, steps


@kernel
def index_score(events, steps):
    """The blog's third stage: tokens uint16 [2 E + 2] from sos to eos, and the step of each, int32.

    A duration has the step of its note or rest, sos the first token's, eos the last one's.
    """
    tokens = np.empty(2 * len(events) + 2, np.uint16)
    token_steps = np.empty(len(tokens), np.int32)
    tokens[0] = SOS
    tokens[-1] = EOS
    token_steps[0] = 0
    token_steps[-1] = 0
    for e in range(len(events)):
        tokens[2 * e + 1] = SEP if events[e, 0] == REST else NOTE_0 + events[e, 0]
        tokens[2 * e + 2] = DURATION_0 + events[e, 1]
        token_steps[2 * e + 1] = steps[e]
        token_steps[2 * e + 2] = steps[e]
        token_steps[-1] = steps[e]
    return tokens, token_steps


@kernel
def notes_from_tokens(tokens):
    """Notes that base tokens stand for: int32 [n, 3], onset, duration, pitch.

    Only whole (note, duration) and (rest, duration) pairs count, so that any stream of tokens decodes.
    """
    notes = np.empty((len(tokens) // 2, 3), np.int32)
    n = 0
    now = 0
    for i in range(len(tokens) - 1):
        head = np.int64(tokens[i])
        duration = np.int64(tokens[i + 1]) - DURATION_0
        if duration < 1 or duration > MAX_DURATION or head < SEP or head >= DURATION_0:
            continue
        if head == SEP:
            now += duration
        else:
            notes[n, 0] = now
            notes[n, 1] = duration
            notes[n, 2] = head - NOTE_0
            n += 1
    return notes[:n]


@kernel
def meter_map(meters, division, steps_per_beat):
    """The meters on the grid: int64 [n, 3], first step, steps a bar, number of the first bar (from 0).

    A change of meter starts a new bar. A meter of a single beat tells nothing of bars and counts as 4/4, and so does
    a song before its first meter.

    Args:
        meters: int64 [n, 3] of `read_smf`: tick, numerator, denominator, in time order.
    """
    segments = np.empty((len(meters) + 1, 3), np.int64)
    segments[0, 0] = 0
    segments[0, 1] = BEATS_PER_BAR * steps_per_beat
    segments[0, 2] = 0
    n = 1
    numerator = denominator = 0
    for i in range(len(meters)):
        if meters[i, 1] == numerator and meters[i, 2] == denominator:
            continue
        numerator = meters[i, 1]
        denominator = meters[i, 2]
        step = _to_steps(meters[i, 0], division, steps_per_beat)
        if numerator == 1:
            length = BEATS_PER_BAR * steps_per_beat
        else:
            length = max((4 * steps_per_beat * numerator + denominator - 1) // denominator, 1)
        if step == segments[n - 1, 0]:  # of several meters on one step the last one holds
            segments[n - 1, 1] = length
            continue
        passed = (step - segments[n - 1, 0] + segments[n - 1, 1] - 1) // segments[n - 1, 1]
        segments[n, 0] = step
        segments[n, 1] = length
        segments[n, 2] = segments[n - 1, 2] + passed
        n += 1
    return segments[:n]


@kernel
def bar_positions(steps, segments):
    """Bar number and step within the bar, int32 [n] each, of ascending steps under a `meter_map`."""
    bar = np.empty(len(steps), np.int32)
    in_bar = np.empty(len(steps), np.int32)
    s = 0
    for i in range(len(steps)):
        while s + 1 < len(segments) and segments[s + 1, 0] <= steps[i]:
            s += 1
        since = steps[i] - segments[s, 0]
        bar[i] = segments[s, 2] + since // segments[s, 1]
        in_bar[i] = since % segments[s, 1]
    return bar, in_bar


@kernel
def seconds_at(tick, tempos, division):
    """Time of a tick under the tempo map (120 quarter notes a minute before the first tempo)."""
    seconds = 0.0
    since = 0.0
    per_quarter = 500_000
    for i in range(len(tempos)):
        if tempos[i, 0] >= tick:
            break
        seconds += (tempos[i, 0] - since) * per_quarter / division / 1e6
        since = tempos[i, 0]
        per_quarter = tempos[i, 1]
    return seconds + (tick - since) * per_quarter / division / 1e6


@kernel
def encode_song(division, notes, meters, tempos, steps_per_beat):
    """What `read_smf` read of a file to tokens and what goes with them, all stages in one call.

    Returns:
        tokens: uint16 [n], from sos to eos; empty if the file holds no notes (drums aside).
        bar, in_bar: int32 [n], each token's bar number and step within the bar.
        n_notes: notes that the tokens hold.
        n_steps: from step 0 to the last note's end.
        seconds: the same span at the file's tempo.
    """
    grid = quantize(notes, division, steps_per_beat)
    if len(grid) == 0:
        nothing = np.empty(0, np.int32)
        return np.empty(0, np.uint16), nothing, nothing, 0, 0, 0.0
    events, steps = position_score(grid)
    tokens, token_steps = index_score(events, steps)
    bar, in_bar = bar_positions(token_steps, meter_map(meters, division, steps_per_beat))
    n_steps = (grid[:, 0] + grid[:, 1]).max()
    seconds = seconds_at(n_steps * division / steps_per_beat, tempos, division)
    return tokens, bar, in_bar, len(grid), n_steps, seconds
