"""Standard MIDI File bytes to notes, meters and tempos.

Source: "Standard MIDI Files 1.0" (MIDI Manufacturers Association, RP-001) and, for files wrapped in RIFF, RP-029.
What can be read of a damaged track is kept; the track ends where it stops making sense.
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
DRUMS = 9

_MTHD, _MTRK, _RIFF, _DATA = 0x4D546864, 0x4D54726B, 0x52494646, 0x64617461
_CHANNEL_BYTES = np.array([2, 2, 2, 2, 1, 1, 2], np.int64)  # data bytes of the messages 0x8n to 0xEn


@kernel
def _big_endian(data, at, size):
    value = 0
    for i in range(at, at + size):
        value = value << 8 | np.int64(data[i])
    return value


@kernel
def _variable_length(data, at, end):
    """Value and the position after it; -1 where the bytes run out or a fifth byte follows."""
    value = 0
    for i in range(at, min(at + 4, end)):
        value = value << 7 | np.int64(data[i] & 0x7F)
        if data[i] < 0x80:
            return value, i + 1
    return -1, end


@kernel
def _grow(rows):
    wider = np.empty((2 * len(rows), rows.shape[1]), np.int64)
    wider[: len(rows)] = rows
    return wider


@kernel
def _read_track(data, at, end, track, program, notes, n_notes, meters, n_meters, tempos, n_tempos):
    """Reads the events in data[at:end]; returns the arrays (which may have grown) and their fill counts."""
    # A note-off ends the oldest sounding note of its channel and pitch, so that a legato repeat, whose second
    # note begins before the first ends, keeps both lengths. The sounding notes of a key are a linked queue.
    first = np.full(16 * 128, -1, np.int64)
    last = np.full(16 * 128, -1, np.int64)
    following = np.full((end - at) // 3 + 1, -1, np.int64)  # a note-on takes at least three bytes
    base = n_notes
    tick = 0
    status = 0
    while at < end:
        delta, at = _variable_length(data, at, end)
        if delta < 0 or at >= end:
            break
        tick += delta
        # Meta and system exclusive events leave running status as it was: the specification has them cancel it, but
        # files that go on with it exist, and then nothing else can be meant.
        event = status
        if data[at] >= 0x80:
            event = np.int64(data[at])
            at += 1
        if event < 0x80:
            break  # a data byte with no running status
        if event >= 0xF0:
            kind = -1
            if event == 0xFF:
                if at >= end:
                    break
                kind = np.int64(data[at])
                at += 1
            elif event != 0xF0 and event != 0xF7:
                break  # system common and real-time messages do not occur in files
            size, at = _variable_length(data, at, end)
            if size < 0 or at + size > end or kind == 0x2F:
                break
            if kind == 0x51 and size == 3 and _big_endian(data, at, 3) > 0:
                if n_tempos == len(tempos):
                    tempos = _grow(tempos)
                tempos[n_tempos, 0] = tick
                tempos[n_tempos, 1] = _big_endian(data, at, 3)
                n_tempos += 1
            elif kind == 0x58 and size >= 2 and data[at] > 0 and data[at + 1] < 8:
                if n_meters == len(meters):
                    meters = _grow(meters)
                meters[n_meters, 0] = tick
                meters[n_meters, 1] = data[at]
                meters[n_meters, 2] = 1 << np.int64(data[at + 1])
                n_meters += 1
            at += size
            continue
        status = event
        size = _CHANNEL_BYTES[(status >> 4) - 8]
        if at + size > end:
            break
        key = np.int64(data[at])
        value = np.int64(data[at + 1]) if size == 2 else 0
        at += size
        if key >= 0x80 or value >= 0x80:
            break  # a status byte where data is due
        channel = status & 0x0F
        message = status >> 4
        if message == 0xC:
            program[channel] = key
        elif message == 0x9 and value > 0:
            if n_notes == len(notes):
                notes = _grow(notes)
            notes[n_notes, ONSET] = tick
            notes[n_notes, DURATION] = -1
            notes[n_notes, PITCH] = key
            notes[n_notes, VELOCITY] = value
            notes[n_notes, TRACK] = track
            notes[n_notes, CHANNEL] = channel
            notes[n_notes, PROGRAM] = program[channel]
            queue = channel * 128 + key
            if first[queue] < 0:
                first[queue] = n_notes
            else:
                following[last[queue] - base] = n_notes
            last[queue] = n_notes
            n_notes += 1
        elif message == 0x8 or message == 0x9:
            queue = channel * 128 + key
            note = first[queue]
            if note >= 0:
                notes[note, DURATION] = tick - notes[note, ONSET]
                first[queue] = following[note - base]
    for note in range(base, n_notes):  # a note that is never ended lasts to the end of its track
        if notes[note, DURATION] < 0:
            notes[note, DURATION] = tick - notes[note, ONSET]
    return notes, n_notes, meters, n_meters, tempos, n_tempos


@kernel
def read_smf(data):
    """Notes, meters and tempos of a MIDI file's bytes.

    Args:
        data: uint8 [bytes], the whole file.

    Returns:
        error: OK or a key of `ERRORS`; the arrays are then empty.
        division: ticks per quarter note. SMPTE time counts as 120 quarter notes a minute.
        notes: int64 [N, 7], columns ONSET to PROGRAM, in file order.
        meters: int64 [n, 3]: tick, numerator, denominator, in time order.
        tempos: int64 [n, 2]: tick, microseconds per quarter note, in time order.
    """
    n_bytes = len(data)
    notes = np.empty((n_bytes // 6 + 16, 7), np.int64)
    meters = np.empty((8, 3), np.int64)
    tempos = np.empty((8, 2), np.int64)
    n_notes = n_meters = n_tempos = 0
    at = 0
    if n_bytes >= 20 and _big_endian(data, 0, 4) == _RIFF:
        at = 12
        while at + 8 < n_bytes and _big_endian(data, at, 4) != _DATA:
            size = np.int64(data[at + 4]) | np.int64(data[at + 5]) << 8 | np.int64(data[at + 6]) << 16
            at += 8 + size + size % 2
        at += 8
    if at + 14 > n_bytes or _big_endian(data, at, 4) != _MTHD:
        return NOT_MIDI, 0, notes[:0], meters[:0], tempos[:0]
    division = _big_endian(data, at + 12, 2)
    smpte = division >= 0x8000
    if smpte:
        division = (256 - (division >> 8)) * (division & 0xFF) // 2
    if division == 0:
        return NO_DIVISION, 0, notes[:0], meters[:0], tempos[:0]
    at += 8 + _big_endian(data, at + 4, 4)
    program = np.zeros(16, np.int64)
    track = 0
    while at + 8 <= n_bytes:
        name = _big_endian(data, at, 4)
        end = min(at + 8 + _big_endian(data, at + 4, 4), n_bytes)
        if name == _MTRK:
            notes, n_notes, meters, n_meters, tempos, n_tempos = _read_track(
                data, at + 8, end, track, program, notes, n_notes, meters, n_meters, tempos, n_tempos
            )
            track += 1
        at = end
    if track == 0:
        return NO_TRACKS, 0, notes[:0], meters[:0], tempos[:0]
    if smpte:
        n_tempos = 0
    meters = meters[:n_meters]
    tempos = tempos[:n_tempos]
    # Mergesort is stable: of two events on one tick the later in the file stays later.
    meters = meters[np.argsort(meters[:, 0], kind="mergesort")]
    tempos = tempos[np.argsort(tempos[:, 0], kind="mergesort")]
    return OK, division, notes[:n_notes], meters, tempos
