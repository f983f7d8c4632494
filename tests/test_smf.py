"""The reader against mido and plain Python, or against values made by hand where mido reads files otherwise."""

import io
from itertools import chain

import mido
import numpy as np
import pytest
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from smf_files import END, chunk, events, exclusive, file_of, header, meta, real_files, variable_length

from midigen_jax.kernels import smf
from midigen_jax.kernels.smf import CHANNEL, DURATION, MAX_TICK, ONSET, PITCH, PROGRAM, TRACK


def read(data: bytes) -> tuple[int, int, list, list, list]:
    error, division, *arrays = smf.read_smf(np.frombuffer(data, np.uint8))
    return error, division, *(array.tolist() for array in arrays)


def reference(data: bytes) -> tuple[int, int, list, list, list]:
    """What `read` must return for a file that mido reads correctly."""
    file = mido.MidiFile(file=io.BytesIO(data), clip=False)
    division, ticks = file.ticks_per_beat, 1
    if division < 0:  # SMPTE: this many ticks per second, which is two quarter notes
        frames = -(division >> 8)
        division, ticks = (30 if frames == 29 else frames) * (division & 0xFF), 2
    notes, meters, tempos = [], [], []
    programs = [0] * 16
    now = 0
    for number, track in enumerate(file.tracks):
        now = now if file.type == 2 else 0
        sounding = {}
        for message in track:
            now += message.time
            tick = min(now, MAX_TICK) * ticks
            if message.type == "note_on" and message.velocity:
                program = programs[message.channel]
                note = [tick, None, message.note, message.velocity, number, message.channel, program]
                notes.append(note)
                sounding.setdefault((message.channel, message.note), []).append(note)
            elif message.type in ("note_on", "note_off"):
                if queue := sounding.get((message.channel, message.note)):
                    first = queue.pop(0)
                    first[DURATION] = tick - first[ONSET]
            elif message.type == "program_change":
                programs[message.channel] = message.program
            elif message.type == "time_signature" and message.numerator and message.denominator < 1 << 8:
                meters.append([tick, message.numerator, message.denominator])
            elif message.type == "set_tempo" and message.tempo and ticks == 1:
                tempos.append([tick, message.tempo])
        for note in chain.from_iterable(sounding.values()):
            note[DURATION] = min(now, MAX_TICK) * ticks - note[ONSET]
    return smf.OK, division, notes, sorted(meters, key=lambda m: m[0]), sorted(tempos, key=lambda t: t[0])


# Few keys and channels, so that notes overlap, end twice or never.
KEYS, VALUES, CHANNELS = st.integers(60, 62), st.sampled_from((0, 0, 1, 127)), st.sampled_from((0, 1, 9))
DELTAS = st.sampled_from((0, 0, 0, 1, 7, 127, 128, 16_383, 16_384, (1 << 28) - 1))
TEXT = st.binary(max_size=150)
NOTES = st.builds(
    lambda kind, channel, *data: bytes([kind | channel, *data]), st.sampled_from((0x80, 0x90)), CHANNELS, KEYS, VALUES
)
MESSAGES = st.one_of(
    NOTES,
    NOTES,
    NOTES,
    st.builds(lambda kind, *data: bytes([kind, *data]), st.sampled_from((0xA1, 0xB9, 0xE0)), KEYS, VALUES),
    st.builds(
        lambda kind, channel, value: bytes([kind | channel, value]), st.just(0xC0), CHANNELS, st.integers(0, 127)
    ),
    st.builds(lambda value: bytes([0xD1, value]), VALUES),
    st.builds(lambda tempo: meta(0x51, tempo.to_bytes(3, "big")), st.sampled_from((0, 1, 500_000, 0xFFFFFF))),
    st.builds(
        lambda *values: meta(0x58, bytes([*values, 24, 8])),
        st.sampled_from((0, 1, 3, 255)),
        st.sampled_from((0, 3, 7, 8)),
    ),
    st.builds(meta, st.sampled_from((*range(1, 8), 9, 0x7F)), TEXT),
    st.sampled_from(
        [meta(0, b"\0\7"), meta(0x20, b"\3"), meta(0x21, b"\1"), meta(0x54, bytes(5)), meta(0x59, b"\2\1")]
    ),
    st.builds(
        lambda status, data: exclusive(bytes(data) + b"\xf7", status),
        st.sampled_from((0xF0, 0xF7)),
        st.lists(st.integers(0, 127), max_size=150),
    ),
)
TRACKS = st.builds(events, st.lists(st.tuples(DELTAS, MESSAGES, st.booleans()), max_size=40))
DIVISIONS = st.sampled_from((1, 96, 480, 0x7FFF, 0xE804, 0xE728, 0xE350, 0xE201))  # 24, 25, 29.97 and 30 frames


@settings(derandomize=True, deadline=None, database=None, max_examples=examples(100))
@given(tracks=st.lists(TRACKS, min_size=1, max_size=4), kind=st.integers(0, 2), division=DIVISIONS)
def test_valid_files_are_read_as_by_mido_and_plain_python(tracks, kind, division):
    data = file_of(*tracks, kind=kind, division=division)
    assert read(data) == reference(data)


@pytest.mark.skipif(not real_files(), reason="MIDIGEN_MIDI names no folder with MIDI files")
def test_real_files_are_read_as_by_mido_and_plain_python():
    n_notes = n_meters = n_tempos = 0
    refused = []
    for path in real_files():
        data = path.read_bytes()
        try:
            expected = reference(data)
        except (OSError, EOFError, ValueError, IndexError) as error:  # how mido refuses files
            refused.append(f"{path}: {error!r}")
            continue
        assert read(data) == expected, path
        n_notes += len(expected[2])
        n_meters += len(expected[3])
        n_tempos += len(expected[4])
    agreed = len(real_files()) - len(refused)
    print(
        f"\n{agreed} files agree in {n_notes:,} notes, {n_meters:,} meters, {n_tempos:,} tempos; mido refused {refused}"
    )
    assert agreed


# What mido does not read, or reads otherwise: the expected values are made by hand.


def columns(data: bytes, *wanted: int) -> list[list[int]]:
    error, _, notes, _, _ = read(data)
    assert error == smf.OK
    return [[note[column] for column in wanted] for note in notes]


def test_running_status_goes_on_after_system_exclusive_events():
    track = bytes([0, 0x90, 60, 64, 5, 0xF0, 2, 1, 0xF7, 1, 62, 64, 5, 0xF7, 1, 0xF8, 1, 60, 0, 0, 62, 0])
    assert columns(file_of(track), ONSET, DURATION, PITCH) == [[0, 12, 60], [6, 6, 62]]


def test_overlapping_notes_end_first_in_first_out():
    track = bytes([0, 0x90, 60, 1, 10, 60, 2, 10, 0x80, 60, 0, 30, 60, 0])
    assert columns(file_of(track), DURATION) == [[20], [40]]


def test_note_that_never_ends_lasts_to_the_end_of_its_own_track():
    first, second = bytes([0, 0x90, 60, 1, 50, 64, 1, 10, 64, 0]), bytes([90, 0x80, 60, 0])
    assert columns(file_of(first, second), DURATION) == [[60], [10]]


def test_program_is_that_of_the_last_change_in_the_file_before_the_note():
    first, second = bytes([50, 0xC2, 40]), bytes([0, 0x92, 60, 9, 8, 60, 0, 0, 0xC2, 7, 0, 0x92, 60, 9, 0, 0x99, 35, 9])
    assert columns(file_of(first, second), TRACK, CHANNEL, PROGRAM) == [[1, 2, 40], [1, 2, 7], [1, smf.DRUM_CHANNEL, 0]]


@pytest.mark.parametrize("kind", [0x0A, 0x2E, 0x30, 0x60, 0x7E])
def test_time_of_unknown_meta_events_counts(kind):  # mido drops it
    track = bytes([5]) + meta(kind, b"what") + bytes([2, 0x90, 60, 1, 4, 60, 0])
    assert columns(file_of(track), ONSET, DURATION) == [[7, 4]]


def test_meters_and_tempos_of_wrong_lengths():
    meters = b"".join(b"\1" + meta(0x58, bytes(payload)) for payload in ([], [3], [3, 2], [5, 3, 24], [7, 4, 24, 8, 9]))
    tempos = b"".join(b"\1" + meta(0x51, bytes(payload)) for payload in ([], [1, 2], [1, 2, 3], [1, 2, 3, 4]))
    _, _, _, read_meters, read_tempos = read(file_of(meters + tempos))
    assert read_meters == [[3, 3, 4], [4, 5, 8], [5, 7, 16]]
    assert read_tempos == [[8, 0x010203]]


def test_changes_on_one_tick_stay_in_file_order():  # too many for an unstable sort to keep in order by chance
    tempos = [[[i // 20, 1 + 200 * track + i] for i in range(200)] for track in range(3)]
    track_bytes = [
        events(
            (i % 20 == 0 and i > 0, meta(0x51, tempo.to_bytes(3, "big")), True) for i, (_, tempo) in enumerate(track)
        )
        for track in tempos
    ]
    assert read(file_of(*track_bytes))[4] == sorted(chain.from_iterable(tempos), key=lambda tempo: tempo[0])


def test_tick_beyond_the_last_counts_as_the_last():
    far = variable_length((1 << 28) - 1)
    track = (far + meta(1)) * 5 + bytes([0, 0x90, 60, 1, 9, 60, 0])
    assert columns(file_of(track), ONSET, DURATION) == [[MAX_TICK, 0]]
    assert columns(file_of(track, division=0xE728), ONSET) == [[2 * MAX_TICK]]


@pytest.mark.parametrize(("frames", "expected"), [(24, 960), (25, 1000), (29, 1200), (30, 1200)])
def test_smpte_time_is_read_as_120_quarter_notes_a_minute(frames, expected):
    track = (
        bytes([25])
        + meta(0x51, b"\1\2\3")
        + bytes([0])
        + meta(0x58, b"\3\2\x18\x08")
        + bytes([0, 0x90, 60, 1, 10, 60, 0])
    )
    _, division, notes, meters, tempos = read(file_of(track, division=(256 - frames) << 8 | 40))
    assert division == expected  # half a second is `expected / 2` of the file's ticks, so twice as many of the reader's
    assert [notes[0][ONSET], notes[0][DURATION]] == [50, 20]
    assert (meters, tempos) == ([[50, 3, 4]], [])


# The same two tracks in various containers.
A = events(
    [(0, b"\xc0\x05", True), (3, b"\x90\x3c\x40", True), (200, meta(0x51, b"\1\2\3"), True), (5, b"\x90\x3c\0", True)]
)
B = events([(0, meta(3, b"left"), True), (9, b"\x91\x40\x50", True), (300, b"\x91\x40\0", True)])
PLAIN = file_of(A, B)
HEAD, TRACK_A, TRACK_B = header(1, 2, 96), chunk(b"MTrk", A + END), chunk(b"MTrk", B + END)
RIFF = [b"RIFF\xff\0\0\0RMID", b"data" + len(PLAIN).to_bytes(4, "little") + PLAIN]
ALIEN = chunk(b"XFIH", b"\x90\x3c\x40 all sorts of things")
CONTAINERS = {
    "no tracks declared": header(1, 0, 96) + TRACK_A + TRACK_B,
    "one track declared": header(1, 1, 96) + TRACK_A + TRACK_B,
    "many tracks declared": header(1, 0xFFFF, 96) + TRACK_A + TRACK_B,
    "unknown format": header(7, 2, 96) + TRACK_A + TRACK_B,
    "long header": header(1, 2, 96, more=b"more") + TRACK_A + TRACK_B,
    "header said to be empty": header(1, 2, 96, declared=0) + TRACK_A + TRACK_B,
    "header said to be longer": header(1, 2, 96, declared=9) + TRACK_A + TRACK_B,
    "header said to be endless": header(1, 2, 96, declared=0xFFFFFFFF) + TRACK_A + TRACK_B,
    "RIFF": b"".join(RIFF),
    "RIFF with chunks before": (b"LIST\5\0\0\0title\0" + b"DISP\2\0\0\0no").join(RIFF),
    "RIFF with chunks after": b"".join(RIFF) + b"LIST\4\0\0\0last",
    "alien chunk before the tracks": HEAD + ALIEN + TRACK_A + TRACK_B,
    "alien chunk between the tracks": HEAD + TRACK_A + ALIEN + TRACK_B,
    "alien chunk of a wrong length": HEAD + chunk(b"XFIH", b"", declared=0x7FFFFFFF) + TRACK_A + TRACK_B,
    "stray bytes between the tracks": HEAD + TRACK_A + bytes(3) + TRACK_B,
    "zeros after the end": PLAIN + bytes(512),
    "text after the end": PLAIN + b"downloaded from somewhere",
    "no ends of tracks": HEAD + chunk(b"MTrk", A) + chunk(b"MTrk", B),
    "events after the end of the track": HEAD + chunk(b"MTrk", A + END + b"\0\x90\x3c\x40\0\x3c\0") + TRACK_B,
    "an end that holds bytes": HEAD + chunk(b"MTrk", A + b"\0\xff\x2f\2no") + TRACK_B,
    "cut in the last end": PLAIN[:-2],
} | {
    f"{name} track said to be {kind}": HEAD
    + (chunk(b"MTrk", A + END, declared=length(len(A + END))) if name == "first" else TRACK_A)
    + (chunk(b"MTrk", B + END, declared=length(len(B + END))) if name == "second" else TRACK_B)
    for name in ("first", "second")
    for kind, length in {
        "shorter": lambda n: n - 5,
        "longer": lambda n: n + 3,
        "empty": lambda n: 0,
        "endless": lambda n: 0xFFFFFFFF,
        "negative": lambda n: 0x80000000,
    }.items()
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_music_is_the_same_in_a_damaged_container(name):
    assert read(CONTAINERS[name]) == read(PLAIN) == reference(PLAIN)


@pytest.mark.parametrize("empty", [b"", END])
def test_empty_tracks_keep_their_numbers(empty):
    data = header(1, 3, 96) + chunk(b"MTrk", empty) + TRACK_A + chunk(b"MTrk", empty) + TRACK_B
    assert columns(data, TRACK, PITCH) == [[1, 0x3C], [3, 0x40]]


NOTE = bytes([0, 0x90, 60, 1, 10, 60, 0])
BROKEN = {
    "status byte for a key": b"\0\x90\x90\x3c\x40",
    "status byte for a velocity": b"\0\x90\x3c\x90\x40",
    "real-time message": b"\0\xf8",
    "system common message": b"\0\xf2\1\2",
    "delta of five bytes": b"\x81\x82\x83\x84\5",
    "meta event of a length of five bytes": b"\0\xff\1\x81\x82\x83\x84\5",
    "meta event beyond the file": b"\0\xff\1\xff\x7f",
    "system exclusive event beyond the file": b"\0\xf0\xff\x7f",
}


@pytest.mark.parametrize("declared", [None, 0, 0xFFFFFFFF])
@pytest.mark.parametrize("name", BROKEN)
def test_broken_track_ends_where_it_breaks_and_the_next_one_is_read(name, declared):
    data = header(1, 2, 96) + chunk(b"MTrk", NOTE + BROKEN[name] + NOTE, declared=declared) + chunk(b"MTrk", NOTE + END)
    assert columns(data, ONSET, DURATION, PITCH, TRACK) == [[0, 10, 60, 0], [0, 10, 60, 1]]


def test_data_byte_without_a_status_ends_the_track():  # running status does not carry over from the track before
    assert columns(file_of(NOTE, NOTE[:1] + NOTE[2:], NOTE), TRACK) == [[0], [2]]


def test_file_cut_anywhere_keeps_what_came_before():
    for n in range(len(HEAD) + 8, len(PLAIN)):
        error, _, notes, _, tempos = read(PLAIN[:n])
        whole = read(PLAIN)
        assert error == smf.OK
        assert [note[PITCH] for note in notes] == [note[PITCH] for note in whole[2]][: len(notes)]
        assert tempos == whole[4][: len(tempos)]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", smf.NOT_MIDI),
        (PLAIN[:13], smf.NOT_MIDI),
        (b"not a midi file, but long enough", smf.NOT_MIDI),
        (b"RIFF\x20\0\0\0WAVEfmt \4\0\0\0abcddata\4\0\0\0abcd", smf.NOT_MIDI),
        (b"RIFF\x20\0\0\0RMIDLIST\xff\xff\xff\xff" + PLAIN, smf.NOT_MIDI),
        (file_of(NOTE, division=0), smf.NO_DIVISION),
        (file_of(NOTE, division=0xE700), smf.NO_DIVISION),
        (PLAIN[:14], smf.NO_TRACKS),
        (PLAIN[:20], smf.NO_TRACKS),
        (HEAD + ALIEN, smf.NO_TRACKS),
    ],
)
def test_errors_come_with_a_sentence_and_no_music(data, error):
    assert read(data) == (error, 0, [], [], [])
    assert smf.ERRORS[error]


def test_read_does_not_depend_on_the_file_before():
    """The workspace is used for many files: what a damaged one leaves in it must not matter."""
    data = [PLAIN, CONTAINERS["cut in the last end"], PLAIN[:60], file_of(NOTE * 9), PLAIN]
    joined = np.frombuffer(b"".join(data), np.uint8)
    workspace = smf.make_workspace(len(joined))
    begin = 0
    for file in data:
        error, division, *counts = smf.read_into(joined, begin, begin + len(file), workspace)
        arrays = (rows[:n].tolist() for rows, n in zip(workspace[:3], counts, strict=True))
        assert (error, division, *arrays) == read(file)
        begin += len(file)
