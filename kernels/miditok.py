"""Reads the tokens of MidiTok's REMI and TSD, as MidiTok decodes them."""

import numpy as np

from ..vocab import Kind
from . import kernel, score

DEFAULT_VELOCITY = 100  # of notes without velocities, in MidiTok

_BAR, _POSITION, _SHIFT, _METER = int(Kind.BAR), int(Kind.POSITION), int(Kind.SHIFT), int(Kind.METER)
_NOTE, _DRUM, _VELOCITY, _DURATION = int(Kind.NOTE), int(Kind.DRUM), int(Kind.VELOCITY), int(Kind.DURATION)
_INSTRUMENT = int(Kind.INSTRUMENT)


@kernel
def read_tokens(tokens, reading):
    """The notes of base tokens, the time of each token, and the meters.

    Any sequence of tokens decodes: a note counts only if its velocity, where there are any, and its duration follow.

    Args:
        tokens: uint16 [n].
        reading: `miditok_vocab.Reading`.

    Returns:
        notes: int32 [N, 5] as `score.quantize` gives them, in the order of the tokens.
        times: int32 [n]; a bar and a position are at the time to which they lead.
        meters: int32 [m, 2]: a time, and the number of the meter from there on.
    """
    n = len(tokens)
    notes = np.empty((n, score.COLUMNS), np.int32)
    times = np.empty(n, np.int32)
    meters = np.empty((n, 2), np.int32)
    n_notes = n_meters = now = bar_start = instrument = 0
    begun = False  # the first bar
    meter = reading.common_time
    to_duration = 2 if reading.velocities else 1
    for i in range(n):
        token = np.int64(tokens[i])
        kind = np.int64(reading.kinds[token])
        value = np.int64(reading.values[token])
        steps = np.int64(reading.steps[meter, token])
        times[i] = now
        if kind == _BAR:
            if begun:
                bar_start += reading.bar_steps[meter]
                now = bar_start
            begun = True
            times[i] = now
        elif kind == _POSITION:
            begun = True
            now = bar_start + steps
            times[i] = now
        elif kind == _SHIFT:
            now += steps
        elif kind == _METER:
            if n_meters == 0 or value != meter:
                meters[n_meters, 0] = now
                meters[n_meters, 1] = value
                n_meters += 1
            meter = value
        elif kind == _INSTRUMENT:
            instrument = value
        elif kind in (_NOTE, _DRUM) and i + to_duration < n:
            loud = np.int64(tokens[i + 1])
            long = np.int64(tokens[i + to_duration])
            if reading.kinds[long] != _DURATION or (reading.velocities and reading.kinds[loud] != _VELOCITY):
                continue
            notes[n_notes, score.ONSET] = now
            notes[n_notes, score.DURATION] = reading.steps[meter, long]
            notes[n_notes, score.PITCH] = value
            notes[n_notes, score.PART] = instrument
            notes[n_notes, score.VELOCITY] = reading.values[loud] if reading.velocities else DEFAULT_VELOCITY
            n_notes += 1
    return notes[:n_notes].copy(), times, meters[:n_meters].copy()
