"""The hot path: from the bytes of MIDI files directly to tokens, without the separate stages of `score`."""

from typing import NamedTuple

import numpy as np

from .. import vocab
from ..vocab import DURATION_0, EOS, MAX_DURATION, NOTE_0, SEP, SOS
from . import beats, fingerprint, kernel, meter, score, smf

MAX_NOTES = 1 << 17
MAX_BEATS = 1 << 15  # 4.5 hours at 120 beats per minute

NO_NOTES, ONE_PITCH, TOO_LONG, TOO_MANY_NOTES = range(4, 8)
REASONS = smf.ERRORS | {
    NO_NOTES: "holds no notes (drums count only if instruments are kept apart)",
    ONE_PITCH: "not music: one note repeated",
    TOO_LONG: f"too long: over {MAX_BEATS:,} beats",
    TOO_MANY_NOTES: f"too long: over {MAX_NOTES:,} notes",
}


@kernel
def _bar_of(time, bars, m, start, number):
    """The bar at a time: its meter, start, number and end, given the first three of an earlier bar."""
    while m + 1 < len(bars) and bars[m + 1, 0] <= time:
        m += 1
        start = bars[m, 0]
        number = bars[m, 2]
    passed = (time - start) // bars[m, 1]
    start += passed * bars[m, 1]
    number += passed
    end = start + bars[m, 1]
    if m + 1 < len(bars):
        end = min(end, bars[m + 1, 0])
    return m, start, number, end


@kernel
def write_tokens(grid, bars, scheme, tokens, bar, position, at):
    """Writes the tokens of a grid, with their bars and positions in the bar, from index `at` on; returns the end.

    The tests hold it to the blog's stages, one by one, and to `bar_positions`. The arrays must have space for
    `_max_tokens` more.
    """
    begin = at
    at += 1
    instrument = -1
    first_velocity = score.velocity_0(scheme)
    now = 0
    m, start, number, end = _bar_of(0, bars, 0, 0, 0)
    this_bar, in_bar = np.uint16(0), np.uint16(0)  # those of `now`
    for i in range(len(grid)):
        onset = np.int64(grid[i, score.ONSET])
        if scheme.faithful:
            now = max(now, onset - MAX_DURATION)
        while True:
            if now >= end:
                m, start, number, end = _bar_of(now, bars, m, start, number)
                this_bar = np.uint16(min(number, 0xFFFF))
            in_bar = np.uint16(now - start)
            if now >= onset:
                break
            rest = min(onset - now, MAX_DURATION)
            tokens[at] = SEP
            tokens[at + 1] = DURATION_0 + rest
            bar[at] = bar[at + 1] = this_bar
            position[at] = position[at + 1] = in_bar
            at += 2
            now += rest
        if scheme.multi and grid[i, score.PART] != instrument:
            instrument = grid[i, score.PART]
            tokens[at] = vocab.INSTRUMENT_0 + instrument
            bar[at], position[at] = this_bar, in_bar
            at += 1
        tokens[at] = NOTE_0 + grid[i, score.PITCH]
        bar[at], position[at] = this_bar, in_bar
        at += 1
        if scheme.velocities:
            tokens[at] = first_velocity + grid[i, score.VELOCITY] // vocab.VELOCITIES_PER_BIN
            bar[at], position[at] = this_bar, in_bar
            at += 1
        tokens[at] = DURATION_0 + grid[i, score.DURATION]
        bar[at], position[at] = this_bar, in_bar
        at += 1
    tokens[begin] = SOS
    tokens[at] = EOS
    bar[at], position[at] = this_bar, in_bar
    bar[begin], position[begin] = bar[begin + 1], position[begin + 1]
    return at + 1


@kernel
def _max_tokens(n_notes, last_onset):
    """The tokens of each note, 2 for a rest before it, 2 for every MAX_DURATION of time, sos and eos."""
    return (score.TOKENS_PER_NOTE + 2) * n_notes + 2 * (last_onset // MAX_DURATION) + 4


@kernel
def encode_grid(grid, bars, scheme):
    """The tokens of a grid from sos to eos, their bars and their positions in the bar, all uint16 [n].

    Args:
        grid: int32 [n, 5] of `quantize`.
        bars: int64 [n, 3] of `meter_map`.
    """
    size = _max_tokens(len(grid), np.int64(grid[-1, score.ONSET]) if len(grid) else 0)
    tokens, bar, position = np.empty(size, np.uint16), np.empty(size, np.uint16), np.empty(size, np.uint16)
    end = write_tokens(grid, bars, scheme, tokens, bar, position, 0)
    return tokens[:end].copy(), bar[:end].copy(), position[:end].copy()


@kernel
def _wider(array, size):
    wider = np.empty(size, array.dtype)
    wider[: len(array)] = array
    return wider


@kernel
def _verdict(grid, n_beyond, scheme):
    """OK, or the reason why these notes are not music to learn from."""
    if n_beyond > 0:
        return TOO_LONG
    if len(grid) == 0:
        return NO_NOTES
    if len(grid) > MAX_NOTES:
        return TOO_MANY_NOTES
    if grid[-1, score.ONSET] > MAX_BEATS * scheme.steps_per_beat:
        return TOO_LONG
    for i in range(1, len(grid)):
        if grid[i, score.PITCH] != grid[0, score.PITCH] or grid[i, score.PART] != grid[0, score.PART]:
            return smf.OK
    return ONE_PITCH


@kernel
def _append(rows, n, song, changes, n_changes):
    """Appends changes[:n_changes] to rows[:n], with the song's number in front; returns rows, enlarged if necessary."""
    while n + n_changes > len(rows):
        wider = np.empty((2 * len(rows), rows.shape[1]), np.int32)
        wider[: len(rows)] = rows
        rows = wider
    rows[n : n + n_changes, 0] = song
    rows[n : n + n_changes, 1:] = changes[:n_changes]
    return rows


class Songs(NamedTuple):
    """F encoded files; those that are not songs have an error and no tokens."""

    tokens: np.ndarray  # uint16 [n], each song from sos to eos
    bar: np.ndarray  # uint16 [n], bar number in the song, 65,535 at most
    position: np.ndarray  # uint16 [n], position in the bar, in grid steps
    offsets: np.ndarray  # int64 [F + 1], song i is tokens[offsets[i]:offsets[i + 1]]
    errors: np.ndarray  # int64 [F], smf.OK or a key of REASONS
    notes: np.ndarray  # int64 [F], the number of notes that the tokens represent
    ends: np.ndarray  # int64 [F], when the last note ends, in grid steps
    seconds: np.ndarray  # float64 [F], the same at the file's tempos
    hashes: np.ndarray  # uint64 [F], equal for equal notes (`fingerprint.note_hash`)
    signatures: np.ndarray  # uint32 [F, BINS], similar for the same music (`fingerprint.signature`)
    aligned: np.ndarray  # bool [F], whether beats and bars were found anew (`beats.align`)
    meters: np.ndarray  # int32 [m, 4]: file, time, numerator, denominator
    tempos: np.ndarray  # int32 [t, 3]: file, time, microseconds per quarter note


class Workspace(NamedTuple):
    """Arrays to encode files in, reused from call to call: fresh memory costs more than the writes to it."""

    file: tuple[np.ndarray, ...]  # of `smf.make_workspace`
    score: tuple[np.ndarray, ...]  # of `score.make_workspace`
    tokens: np.ndarray
    bar: np.ndarray
    position: np.ndarray


@kernel
def make_workspace(n_bytes):
    """A workspace for files of up to n_bytes each, and for the tokens that n_bytes of files usually have."""
    file_workspace = smf.make_workspace(n_bytes)
    size = n_bytes // 2 + 1024
    return Workspace(
        file_workspace,
        score.make_workspace(len(file_workspace[0])),
        np.empty(size, np.uint16),
        np.empty(size, np.uint16),
        np.empty(size, np.uint16),
    )


@kernel
def _without_drums(grid):
    kept = np.empty_like(grid)
    n = 0
    for i in range(len(grid)):
        if grid[i, score.PART] != vocab.DRUMS:
            kept[n] = grid[i]
            n += 1
    return kept[:n]


@kernel
def encode_files(data, bounds, scheme, workspace):
    """MIDI files to tokens.

    Args:
        data: uint8 [bytes], the concatenated files.
        bounds: int64 [F + 1], file i is data[bounds[i]:bounds[i + 1]].
        workspace: of `make_workspace` for at least the largest file. The songs' tokens are views of it, valid until it
            is used again.
    """
    n_files = len(bounds) - 1
    raw_notes, raw_meters, raw_tempos, _ = workspace.file
    tokens, bar, position = workspace.tokens, workspace.bar, workspace.position
    offsets = np.zeros(n_files + 1, np.int64)
    errors = np.zeros(n_files, np.int64)
    notes = np.zeros(n_files, np.int64)
    ends = np.zeros(n_files, np.int64)
    seconds = np.zeros(n_files, np.float64)
    hashes = np.zeros(n_files, np.uint64)
    signatures = np.full((n_files, fingerprint.BINS), fingerprint.EMPTY, np.uint32)
    aligned = np.zeros(n_files, np.bool_)
    meters = np.empty((n_files + 1, 4), np.int32)
    tempos = np.empty((n_files + 1, 3), np.int32)
    all_meters = all_tempos = 0
    at = 0
    for i in range(n_files):
        offsets[i + 1] = at
        error, division, n_notes, n_meters, n_tempos = smf.read_into(data, bounds[i], bounds[i + 1], workspace.file)
        if error == smf.OK:
            hashes[i] = fingerprint.note_hash(raw_notes[:n_notes], division)
            if scheme.align_beats:
                n_meters, aligned[i] = beats.align(
                    raw_notes[:n_notes], raw_meters, n_meters, raw_tempos[:n_tempos], division
                )
            n_notes, n_beyond = score.quantize_into(raw_notes[:n_notes], division, scheme, workspace.score)
            grid = workspace.score[0][:n_notes]
            error = _verdict(grid, n_beyond, scheme)
        errors[i] = error
        if error != smf.OK:
            continue
        n_meters = meter.on_grid(raw_meters[:n_meters], division, scheme.steps_per_beat)
        n_tempos = meter.on_grid(raw_tempos[:n_tempos], division, scheme.steps_per_beat)
        if scheme.faithful:
            n_meters = 0  # all bars have four beats
        size = at + _max_tokens(n_notes, np.int64(grid[-1, score.ONSET]))
        if size > len(tokens):
            size = max(size, 2 * len(tokens))
            tokens, bar, position = _wider(tokens, size), _wider(bar, size), _wider(position, size)
        bars = meter.meter_map(raw_meters[:n_meters], scheme.steps_per_beat)
        at = write_tokens(grid, bars, scheme, tokens, bar, position, at)
        offsets[i + 1] = at
        notes[i] = n_notes
        for j in range(n_notes):
            ends[i] = max(ends[i], np.int64(grid[j, score.ONSET]) + grid[j, score.DURATION])
        seconds[i] = meter.seconds_at(ends[i], raw_tempos[:n_tempos], scheme.steps_per_beat)
        melody = _without_drums(grid) if scheme.multi else grid
        signatures[i] = fingerprint.signature(melody[:, score.ONSET], melody[:, score.PITCH])
        meters = _append(meters, all_meters, i, raw_meters, n_meters)
        tempos = _append(tempos, all_tempos, i, raw_tempos, n_tempos)
        all_meters += n_meters
        all_tempos += n_tempos
    return Songs(
        tokens[:at],
        bar[:at],
        position[:at],
        offsets,
        errors,
        notes,
        ends,
        seconds,
        hashes,
        signatures,
        aligned,
        meters[:all_meters],
        tempos[:all_tempos],
    )
