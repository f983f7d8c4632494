"""The blog's stages from a grid of notes to tokens, one by one: what the encoder, which has one pass, is held to."""

import numpy as np

from midigen_jax import vocab
from midigen_jax.kernels import kernel
from midigen_jax.kernels.score import (
    COLUMNS,
    DEFAULT_VELOCITY,
    DURATION,
    ONSET,
    PART,
    PITCH,
    REST,
    TOKENS_PER_NOTE,
    VELOCITY,
    velocity_0,
)
from midigen_jax.vocab import DURATION_0, EOS, MAX_DURATION, NOTE_0, SEP, SOS


@kernel
def sparse_score(grid, part_index):
    """The blog's first stage: int16 [times, parts, 128], a note's duration at its onset, else 0.

    Args:
        grid: int32 [n, 5] of `quantize`.
        part_index: int32 [n], the index of each note's part, 0 to parts - 1.
    """
    n_times = grid[-1, ONSET] + 1 if len(grid) else 0
    n_parts = part_index.max() + 1 if len(grid) else 0
    score = np.zeros((n_times, n_parts, 128), np.int16)
    for i in range(len(grid)):
        score[grid[i, ONSET], part_index[i], grid[i, PITCH]] = grid[i, DURATION]
    return score


@kernel
def grid_from_sparse(score):
    """The notes of a sparse score: int32 [n, 5] in the order of `quantize`; parts are its indices."""
    grid = np.empty((np.count_nonzero(score), COLUMNS), np.int32)
    n = 0
    for time in range(score.shape[0]):
        for pitch in range(127, -1, -1):
            for part in range(score.shape[1]):
                if score[time, part, pitch] > 0:
                    grid[n, ONSET] = time
                    grid[n, DURATION] = score[time, part, pitch]
                    grid[n, PITCH] = pitch
                    grid[n, PART] = part
                    grid[n, VELOCITY] = DEFAULT_VELOCITY
                    n += 1
    return grid


@kernel
def position_score(grid, scheme):
    """The blog's second stage: events as int32 [E, 5], with the columns of the grid.

    A rest (pitch REST) is the time to the next onset. If it is longer than MAX_DURATION it becomes several rests, each
    at its own onset; in faithful mode one, which ends at the next onset and drops the rest of the time. No rest follows
    the last notes.
    """
    n_rests = 0
    now = 0
    for i in range(len(grid)):
        n_rests += (grid[i, ONSET] - now + MAX_DURATION - 1) // MAX_DURATION
        now = grid[i, ONSET]
    events = np.zeros((len(grid) + n_rests, COLUMNS), np.int32)
    now = 0
    e = 0
    for i in range(len(grid)):
        if scheme.faithful:
            now = max(now, grid[i, ONSET] - MAX_DURATION)
        while now < grid[i, ONSET]:
            events[e, ONSET] = now
            events[e, DURATION] = min(grid[i, ONSET] - now, MAX_DURATION)
            events[e, PITCH] = REST
            now += events[e, DURATION]
            e += 1
        events[e] = grid[i]
        e += 1
    return events[:e]


@kernel
def index_score(events, scheme):
    """The blog's third stage: tokens uint16 [n] from sos to eos, and the time of each, int32 [n].

    All tokens of an event have its onset; sos has that of the first event, eos that of the last.
    """
    tokens = np.empty(TOKENS_PER_NOTE * len(events) + 2, np.uint16)
    times = np.empty(len(tokens), np.int32)
    tokens[0] = SOS
    n = 1
    instrument = -1
    for e in range(len(events)):
        begin = n
        if events[e, PITCH] == REST:
            tokens[n] = SEP
            n += 1
        else:
            if scheme.multi and events[e, PART] != instrument:
                instrument = events[e, PART]
                tokens[n] = vocab.INSTRUMENT_0 + instrument
                n += 1
            tokens[n] = NOTE_0 + events[e, PITCH]
            n += 1
            if scheme.velocities:
                tokens[n] = velocity_0(scheme) + events[e, VELOCITY] // vocab.VELOCITIES_PER_BIN
                n += 1
        tokens[n] = DURATION_0 + events[e, DURATION]
        n += 1
        times[begin:n] = events[e, ONSET]
    tokens[n] = EOS
    times[0] = events[0, ONSET] if len(events) else 0
    times[n] = events[-1, ONSET] if len(events) else 0
    return tokens[: n + 1], times[: n + 1]
