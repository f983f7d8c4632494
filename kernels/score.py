"""Notes to sparse score, position score and tokens, and back.

The three stages are those of the MIDIGen blog: a sparse score has a duration for every (time, part, pitch); a position
score is a list of notes and rests; the index score writes each of them as two or more tokens. Times are in steps of a
fixed grid. A `Scheme` says what is kept of a song, and by which rules.
"""

import numpy as np

from .. import vocab
from ..vocab import DURATION_0, MAX_DURATION, NOTE_0, SEP, SOS
from . import kernel, smf
from .meter import MAX_TIME, to_grid

# Columns of the grid. A part is an instrument (a program, or vocab.DRUMS) if instruments are kept apart, else
# 16 * track + channel, or the track in faithful mode.
ONSET, DURATION, PITCH, PART, VELOCITY = range(5)
COLUMNS = 5

TOKENS_PER_NOTE = 4  # at most: an instrument, the pitch, a velocity and the duration

REST = -1  # the pitch of a rest event
DEFAULT_VELOCITY = 80  # if velocities are not kept

# A note is packed into one integer, so that sorting integers sorts notes: 20 bits of onset, 27 bits of pitch and part
# in the order of the tokens, 9 bits of duration, 7 bits of velocity.
_PART_BITS, _PITCH_BITS, _ORDER_BITS, _DURATION_BITS, _VELOCITY_BITS = 20, 7, 27, 9, 7
_ONSET_SHIFT = _ORDER_BITS + _DURATION_BITS + _VELOCITY_BITS

velocity_0 = kernel(vocab.velocity_0)


@kernel
def make_workspace(n_notes):
    """Arrays to quantize up to n_notes notes in: the grid, two arrays of packed notes, and counts by time."""
    grid = np.empty((n_notes, COLUMNS), np.int32)
    keys = np.empty((2, n_notes), np.int64)
    counts = np.empty(MAX_TIME + 2, np.int32)
    return grid, keys, counts


@kernel
def _pack(notes, division, scheme, keys):
    """Packs notes into keys; returns their number, and the number of notes beyond MAX_TIME."""
    n = n_beyond = 0
    for i in range(len(notes)):
        drums = notes[i, smf.CHANNEL] == smf.DRUM_CHANNEL
        pitch = np.int64(notes[i, smf.PITCH])
        if (drums and not scheme.multi) or (scheme.faithful and pitch == 127):
            continue
        onset = to_grid(notes[i, smf.ONSET], division, scheme.steps_per_beat)
        duration = min(to_grid(notes[i, smf.DURATION], division, scheme.steps_per_beat), MAX_DURATION)
        if duration == 0:
            if scheme.faithful:
                continue
            duration = 1
        if onset > MAX_TIME:
            n_beyond += 1
            continue
        if scheme.multi:  # by instrument, so that one token serves all its notes at one time
            part = vocab.DRUMS if drums else np.int64(notes[i, smf.PROGRAM])
            order = part << _PITCH_BITS | (127 - pitch)
        else:
            part = np.int64(notes[i, smf.TRACK])
            if not scheme.faithful:
                part = part << 4 | notes[i, smf.CHANNEL]
            order = (127 - pitch) << _PART_BITS | min(part, (1 << _PART_BITS) - 1)
        key = (onset << _ORDER_BITS | order) << _DURATION_BITS | duration
        keys[n] = key << _VELOCITY_BITS | notes[i, smf.VELOCITY]
        n += 1
    return n, n_beyond


@kernel
def _radix_sort(keys, n, spare, counts):
    """Sorts keys[:n], of 63 bits, in place: 6 passes of 11 bits each, back and forth."""
    source, target = keys, spare
    for shift in range(0, 66, 11):
        counts[: 1 << 11] = 0
        for i in range(n):
            counts[source[i] >> shift & 0x7FF] += 1
        end = 0
        for digit in range(1 << 11):
            end += counts[digit]
            counts[digit] = end - counts[digit]
        for i in range(n):
            digit = source[i] >> shift & 0x7FF
            target[counts[digit]] = source[i]
            counts[digit] += 1
        source, target = target, source


@kernel
def _sort(keys, n, target, counts):
    """Sorts keys[:n] into target[:n]: a counting sort by onset, then an insertion sort of the notes at each time."""
    last = 0
    for i in range(n):
        last = max(last, keys[i] >> _ONSET_SHIFT)
    counts[: last + 2] = 0
    for i in range(n):
        counts[(keys[i] >> _ONSET_SHIFT) + 1] += 1
    for time in range(last):
        counts[time + 1] += counts[time]
    for i in range(n):
        time = keys[i] >> _ONSET_SHIFT
        target[counts[time]] = keys[i]
        counts[time] += 1
    moves = 0
    for i in range(1, n):
        key = target[i]
        j = i
        while j > 0 and target[j - 1] > key:
            target[j] = target[j - 1]
            j -= 1
        target[j] = key
        moves += i - j
        if moves > 32 * n:  # many notes at one time; Numba's own sort is quadratic on crafted files
            _radix_sort(target, n, keys, counts)
            break


@kernel
def quantize_into(notes, division, scheme, workspace):
    """`quantize` in a workspace; returns the number of notes in its grid, and the number beyond MAX_TIME."""
    grid, keys, counts = workspace
    n, n_beyond = _pack(notes, division, scheme, keys[0])
    _sort(keys[0], n, keys[1], counts)
    ordered = keys[1]
    kept = 0
    for i in range(n):
        key = ordered[i]
        # Of several notes in one cell of the score the longest is kept, and of these the loudest.
        if i + 1 < n and key >> (_DURATION_BITS + _VELOCITY_BITS) == ordered[i + 1] >> (
            _DURATION_BITS + _VELOCITY_BITS
        ):
            continue
        velocity = key & ((1 << _VELOCITY_BITS) - 1)
        order = key >> (_DURATION_BITS + _VELOCITY_BITS) & ((1 << _ORDER_BITS) - 1)
        grid[kept, ONSET] = key >> _ONSET_SHIFT
        grid[kept, DURATION] = key >> _VELOCITY_BITS & ((1 << _DURATION_BITS) - 1)
        if scheme.multi:
            grid[kept, PITCH] = 127 - (order & ((1 << _PITCH_BITS) - 1))
            grid[kept, PART] = order >> _PITCH_BITS
        else:
            grid[kept, PITCH] = 127 - (order >> _PART_BITS)
            grid[kept, PART] = order & ((1 << _PART_BITS) - 1)
        grid[kept, VELOCITY] = _binned(velocity) if scheme.velocities else DEFAULT_VELOCITY
        kept += 1
    return kept, n_beyond


@kernel
def _binned(velocity):
    """The velocity in the middle of its bin."""
    return velocity - velocity % vocab.VELOCITIES_PER_BIN + vocab.VELOCITIES_PER_BIN // 2


@kernel
def quantize(notes, division, scheme):
    """The quantised score: the notes on the grid, as far as the scheme's tokens can represent them.

    Args:
        notes: int32 [N, 7] of `read_smf`.

    Returns:
        int32 [n, 5]: onset, duration, pitch, part and velocity, in the order of the tokens: by onset, then from the
        highest pitch down, then by part; if instruments are kept apart by onset, then instrument, then from the
        highest pitch down. A duration is 1 to MAX_DURATION grid steps, so no note is lost to rounding, except in
        faithful mode. Of several notes of one part with the same onset and pitch the longest is kept. Notes beyond
        MAX_TIME are left out.
    """
    workspace = make_workspace(len(notes))
    n, _ = quantize_into(notes, division, scheme, workspace)
    return workspace[0][:n].copy()


@kernel
def notes_from_tokens(tokens, scheme):
    """The notes of base tokens, int32 [n, 5] as `quantize` gives them; parts are 0 unless instruments are kept apart.

    Any sequence of tokens decodes: tokens that belong to no complete event are ignored.
    """
    notes = np.empty((len(tokens) // 2, COLUMNS), np.int32)
    first_velocity = velocity_0(scheme)
    n = 0
    now = 0
    instrument = 0
    velocity = DEFAULT_VELOCITY
    pending = -2  # the pitch whose duration is to come, or REST
    for i in range(len(tokens)):
        token = np.int64(tokens[i])
        if token == SEP:
            pending = REST
        elif token < NOTE_0:
            pending = -2
        elif token < DURATION_0:
            pending = token - NOTE_0
            velocity = DEFAULT_VELOCITY
        elif token < vocab.INSTRUMENT_0:
            duration = token - DURATION_0
            if pending == REST:
                now += duration
            elif pending >= 0 and duration > 0:
                notes[n, ONSET] = now
                notes[n, DURATION] = duration
                notes[n, PITCH] = pending
                notes[n, PART] = instrument
                notes[n, VELOCITY] = velocity
                n += 1
            pending = -2
        elif token < first_velocity:
            instrument = token - vocab.INSTRUMENT_0
            pending = -2
        else:
            velocity = _binned((token - first_velocity) * vocab.VELOCITIES_PER_BIN)
    return notes[:n]


@kernel
def pitched(tokens, scheme):
    """Which base tokens, of one song or several, are pitched notes, that is, not of drums: bool [n]."""
    which = np.zeros(len(tokens), np.bool_)
    drums = False
    for i in range(len(tokens)):
        token = np.int64(tokens[i])
        if NOTE_0 <= token < DURATION_0:
            which[i] = not drums
        elif token == SOS:
            drums = False
        elif scheme.multi and vocab.INSTRUMENT_0 <= token < velocity_0(scheme):
            drums = token == vocab.INSTRUMENT_0 + vocab.DRUMS
    return which


@kernel
def transpose(tokens, semitones, scheme):
    """A song's base tokens this many semitones higher, drums unchanged; empty if a note would leave the 128 pitches."""
    shifted = tokens.copy()
    which = pitched(tokens, scheme)
    for i in range(len(tokens)):
        if which[i]:
            token = np.int64(tokens[i]) + semitones
            if not NOTE_0 <= token < DURATION_0:
                return shifted[:0]
            shifted[i] = token
    return shifted
