"""Standard MIDI File bytes to notes, meters and tempos.

Source: "Standard MIDI Files 1.0" (MIDI Manufacturers Association, RP-001) and, for files wrapped in RIFF, RP-029.
As much as possible is read of a damaged file: a track ends where it becomes invalid, and the next one is searched for.

Where the specification is silent, or files deviate from it:

- A note-off ends the oldest sounding note of its track, channel and pitch (first in, first out), so that a legato
  repeat, whose second note begins before the first ends, keeps both durations. A note without a note-off lasts to the
  end of its track.
- Meta and system exclusive events keep running status. The specification has them cancel it, but some files rely on
  it, and a data byte there can mean nothing else.
- A note's program is that of the last program change on its channel before it in the file.
- The tracks of format 2 are patterns; each begins where the previous one ends.
- SMPTE time has no beats: it is read as 120 quarter notes per minute, and 29.97 frames per second as 30.
- If the end of a track and the length of its chunk disagree, the next track is taken to begin directly at that end, if
  one does; else at the declared length, if a track or the end of the file is there; else at the next "MTrk". The
  header is treated alike.
"""

import numpy as np

from . import kernel

OK, NOT_MIDI, NO_DIVISION, NO_TRACKS = range(4)
ERRORS = {
    NOT_MIDI: "not a MIDI file: it has no MThd header",
    NO_DIVISION: "damaged header: it gives no ticks per quarter note",
    NO_TRACKS: "damaged file: no track chunk follows the header",
}

# Columns of a note: times in ticks, channel 9 is the drum channel (10 as musicians count).
ONSET, DURATION, PITCH, VELOCITY, TRACK, CHANNEL, PROGRAM = range(7)
DRUM_CHANNEL = 9
MAX_TICK = (1 << 30) - 1  # later events are moved to it (13 days at 480 ticks per beat and 120 beats per minute)

# The minimum size of an event, delta time included, which bounds the number of events of a file.
_NOTE_BYTES, _TEMPO_BYTES, _METER_BYTES = 3, 7, 6
_KEYS = 16 * 128  # over all channels

_MTHD, _MTRK, _RIFF, _DATA = 0x4D546864, 0x4D54726B, 0x52494646, 0x64617461
_END_OF_TRACK, _SET_TEMPO, _TIME_SIGNATURE = 0x2F, 0x51, 0x58


@kernel
def _big_endian(data, at, size):
    value = 0
    for i in range(at, at + size):
        value = value << 8 | np.int64(data[i])
    return value


@kernel
def _variable_length(data, at, end):
    """The value and the offset after it; -1 and the offset `at` if it is cut off or longer than four bytes."""
    value = 0
    for i in range(at, min(at + 4, end)):
        value = value << 7 | np.int64(data[i] & 0x7F)
        if data[i] < 0x80:
            return value, i + 1
    return -1, at


@kernel
def make_workspace(n_bytes):
    """Arrays for the most that a file of n_bytes can hold: notes, meters, tempos and the sounding notes of each key."""
    notes = np.empty((n_bytes // _NOTE_BYTES + 1, 7), np.int32)
    meters = np.empty((n_bytes // _METER_BYTES + 1, 3), np.int32)
    tempos = np.empty((n_bytes // _TEMPO_BYTES + 1, 2), np.int32)
    sounding = np.full((_KEYS, 2), -1, np.int32)
    return notes, meters, tempos, sounding


@kernel
def _begins_chunk(data, at, end):
    """Whether a chunk begins here: four printable characters and a length that fits the file."""
    if at + 8 > end:
        return False
    for i in range(at, at + 4):
        if data[i] < 0x20 or data[i] > 0x7E:
            return False
    return _big_endian(data, at, 4) == _MTRK or at + 8 + _big_endian(data, at + 4, 4) <= end


@kernel
def _read_track(data, at, declared, end, now, track, program, workspace, counts):
    """Reads the events of a track from data[at] on.

    Args:
        declared: the end of the track's chunk by its declared length; read past only if no chunk begins there.
        end: the end of the file.
        now: the tick at which the track begins.
        counts: int64 [3], the numbers of notes, meters and tempos in `workspace` so far; updated in place.

    Returns:
        The offset after the last valid event, and its tick.
    """
    notes, meters, tempos, sounding = workspace
    # The sounding notes of a key form a queue. `sounding` has its oldest and its newest note; the next note of the
    # queue stands in place of a sounding note's duration, as -2 - next, or -1 if there is none.
    first = n = counts[0]
    n_sounding = 0
    status = 0
    stop = declared if _begins_chunk(data, declared, end) else end
    while at < stop:
        intact = at
        delta = np.int64(data[at])
        at += 1
        if delta >= 0x80:
            delta, at = _variable_length(data, at - 1, stop)
            if delta < 0:
                break
        now += delta
        if at >= stop:
            break
        event = np.int64(data[at])
        if event >= 0xF0:
            at += 1
            kind = -1
            if event == 0xFF:
                if at >= stop:
                    break
                kind = np.int64(data[at])
                at += 1
            elif event != 0xF0 and event != 0xF7:
                break  # system common and real-time messages are not allowed in files
            size, at = _variable_length(data, at, stop)
            if size < 0 or at + size > stop:
                break
            if kind == _END_OF_TRACK:
                intact = at + size
                break
            tick = min(now, MAX_TICK)
            if kind == _SET_TEMPO and size == 3 and _big_endian(data, at, 3) > 0:
                tempos[counts[2], 0] = tick
                tempos[counts[2], 1] = _big_endian(data, at, 3)
                counts[2] += 1
            elif kind == _TIME_SIGNATURE and size >= 2 and data[at] > 0 and data[at + 1] < 8:
                meters[counts[1], 0] = tick
                meters[counts[1], 1] = data[at]
                meters[counts[1], 2] = 1 << np.int64(data[at + 1])
                counts[1] += 1
            at += size
            continue
        if event >= 0x80:
            status = event
            at += 1
        if status == 0 or at >= stop:
            break  # a data byte without running status, or the end
        message = status >> 4
        key = np.int64(data[at])
        at += 1
        value = np.int64(0)
        if message != 0xC and message != 0xD:
            if at >= stop:
                break
            value = np.int64(data[at])
            at += 1
        if (key | value) >= 0x80:
            break  # a status byte in place of data
        if message <= 0x9:
            queue = (status & 0x0F) << 7 | key
            oldest = np.int64(sounding[queue, 0])
            tick = min(now, MAX_TICK)
            if message == 0x9 and value > 0:
                if oldest < 0:
                    sounding[queue, 0] = n
                else:
                    notes[sounding[queue, 1], DURATION] = -2 - n
                sounding[queue, 1] = n
                notes[n, ONSET] = tick
                notes[n, DURATION] = -1
                notes[n, PITCH] = key
                notes[n, VELOCITY] = value
                notes[n, TRACK] = track
                notes[n, CHANNEL] = status & 0x0F
                notes[n, PROGRAM] = program[status & 0x0F]
                n += 1
                n_sounding += 1
            elif oldest >= 0:
                sounding[queue, 0] = -2 - notes[oldest, DURATION] if notes[oldest, DURATION] < -1 else -1
                notes[oldest, DURATION] = tick - notes[oldest, ONSET]
                n_sounding -= 1
        elif message == 0xC:
            program[status & 0x0F] = key
    else:
        intact = at
    if n_sounding:
        tick = min(now, MAX_TICK)
        for note in range(first, n):
            if notes[note, DURATION] < 0:
                notes[note, DURATION] = tick - notes[note, ONSET]
                sounding[np.int64(notes[note, CHANNEL]) << 7 | notes[note, PITCH], 0] = -1
    counts[0] = n
    return intact, now


@kernel
def _next_track(data, at, declared, end):
    """The offset of the track after a chunk whose content ends at `at` and whose declared end is `declared`."""
    if at + 4 <= end and _big_endian(data, at, 4) == _MTRK:
        return at
    if at <= declared <= end and (declared + 4 > end or _big_endian(data, declared, 4) == _MTRK):
        return declared
    while at + 4 <= end and _big_endian(data, at, 4) != _MTRK:
        at += 1
    return at


@kernel
def _sort_by_tick(rows, n):
    """Sorts rows[:n] by tick, in place; rows of one tick keep their order."""
    for i in range(1, n):
        if rows[i, 0] < rows[i - 1, 0]:
            rows[:n] = rows[np.argsort(rows[:n, 0], kind="mergesort")]  # mergesort is stable
            break


@kernel
def read_into(data, begin, end, workspace):
    """Reads the file data[begin:end] into a workspace for at least its size.

    Returns:
        error, division: as `read_smf` returns them.
        The numbers of notes, meters and tempos in the workspace.
    """
    notes, meters, tempos, _ = workspace
    at = begin
    if end - at >= 20 and _big_endian(data, at, 4) == _RIFF:
        at += 12
        while at + 8 < end and _big_endian(data, at, 4) != _DATA:
            size = np.int64(data[at + 4]) | np.int64(data[at + 5]) << 8 | np.int64(data[at + 6]) << 16
            at += 8 + size + size % 2
        at += 8
    if at + 14 > end or _big_endian(data, at, 4) != _MTHD:
        return NOT_MIDI, 0, 0, 0, 0
    sequential = _big_endian(data, at + 8, 2) == 2
    division = _big_endian(data, at + 12, 2)
    smpte = division >= 0x8000
    if smpte:
        frames = 256 - (division >> 8)
        division = (30 if frames == 29 else frames) * (division & 0xFF)
    if division == 0:
        return NO_DIVISION, 0, 0, 0, 0
    at = _next_track(data, at + 14, at + 8 + _big_endian(data, at + 4, 4), end)
    program = np.zeros(16, np.int64)
    counts = np.zeros(3, np.int64)
    track = 0
    now = 0
    while at + 8 <= end:
        declared = at + 8 + _big_endian(data, at + 4, 4)
        start = now if sequential else 0
        at, now = _read_track(data, at + 8, declared, end, start, track, program, workspace, counts)
        at = _next_track(data, at, declared, end)
        track += 1
    if track == 0:
        return NO_TRACKS, 0, 0, 0, 0
    if smpte:
        # A second has `division` ticks and two quarter notes, so ticks are doubled.
        counts[2] = 0
        for i in range(counts[0]):
            notes[i, ONSET] *= 2
            notes[i, DURATION] *= 2
        for i in range(counts[1]):
            meters[i, 0] *= 2
    _sort_by_tick(meters, counts[1])
    _sort_by_tick(tempos, counts[2])
    return OK, division, counts[0], counts[1], counts[2]


@kernel
def read_smf(data):
    """The notes, meters and tempos of a MIDI file.

    Args:
        data: uint8 [bytes], the content of the file.

    Returns:
        error: OK, or a key of `ERRORS` with empty arrays.
        division: ticks per quarter note.
        notes: int32 [N, 7], columns ONSET to PROGRAM, in file order.
        meters: int32 [n, 3]: tick, numerator, denominator, in time order.
        tempos: int32 [n, 2]: tick, microseconds per quarter note, in time order.
    """
    workspace = make_workspace(len(data))
    error, division, n_notes, n_meters, n_tempos = read_into(data, 0, len(data), workspace)
    notes, meters, tempos, _ = workspace
    return error, division, notes[:n_notes].copy(), meters[:n_meters].copy(), tempos[:n_tempos].copy()
