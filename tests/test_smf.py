import mido
import numpy as np
import pytest
from conftest import random_notes, write_midi

from midigen_jax.kernels import smf


def read(data: bytes):
    return smf.read_smf(np.frombuffer(data, np.uint8))


def file_of(*tracks: bytes, division: int = 96, declared: int | None = None) -> bytes:
    """A file of format 1 with these track bytes, the end of each track added."""
    header = b"MThd\0\0\0\6\0\1" + (declared or len(tracks)).to_bytes(2, "big") + division.to_bytes(2, "big")
    chunks = [track + b"\0\xff\x2f\0" for track in tracks]
    return header + b"".join(b"MTrk" + len(chunk).to_bytes(4, "big") + chunk for chunk in chunks)


def reference_notes(path) -> list[tuple[int, ...]]:
    """Onset, duration, pitch, velocity, track, channel by mido and plain Python; first in, first out."""
    notes = []
    for number, track in enumerate(mido.MidiFile(path).tracks):
        now, sounding = 0, {}
        for message in track:
            now += message.time
            if message.type not in ("note_on", "note_off"):
                continue
            key = (message.channel, message.note)
            if message.type == "note_on" and message.velocity:
                notes.append([now, None, message.note, message.velocity, number, message.channel])
                sounding.setdefault(key, []).append(notes[-1])
            elif sounding.get(key):
                note = sounding[key].pop(0)
                note[1] = now - note[0]
    return [tuple(note) for note in notes]


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_mido(tmp_path, seed):
    random = np.random.default_rng(seed)
    path = write_midi(tmp_path / "a.mid", [random_notes(random, 200) for _ in range(3)], ticks_per_beat=480)
    error, division, notes, meters, tempos = read(path.read_bytes())
    assert (error, division) == (smf.OK, 480)
    assert [tuple(row) for row in notes[:, :6].tolist()] == reference_notes(path)
    assert meters.tolist() == [[0, 4, 4]]
    assert tempos.tolist() == [[0, 500_000]]


def test_running_status_and_velocity_zero():
    error, _, notes, _, _ = read(file_of(bytes([0, 0x93, 60, 70, 10, 64, 71, 20, 60, 0, 5, 64, 0])))
    assert error == smf.OK
    assert notes.tolist() == [[0, 30, 60, 70, 0, 3, 0], [10, 25, 64, 71, 0, 3, 0]]


def test_running_status_goes_on_after_a_meta_event():
    _, _, notes, _, _ = read(file_of(bytes([0, 0x90, 60, 64, 5, 0xFF, 5, 1, 65, 0, 62, 64, 5, 60, 0, 0, 62, 0])))
    assert notes[:, [smf.ONSET, smf.DURATION, smf.PITCH]].tolist() == [[0, 10, 60], [5, 5, 62]]


def test_overlapping_notes_end_first_in_first_out():
    _, _, notes, _, _ = read(file_of(bytes([0, 0x90, 60, 1, 10, 60, 2, 10, 0x80, 60, 0, 30, 60, 0])))
    assert notes[:, smf.DURATION].tolist() == [20, 40]


def test_note_never_ended_lasts_to_the_end_of_its_track():
    _, _, notes, _, _ = read(file_of(bytes([0, 0x90, 60, 1, 50, 64, 1, 10, 64, 0])))
    assert notes[:, smf.DURATION].tolist() == [60, 10]


def test_system_exclusive_program_and_drums():
    track = bytes([0, 0xF0, 3, 1, 2, 0xF7, 0, 0xC2, 40, 0, 0x92, 60, 9, 8, 60, 0, 0, 0x99, 35, 9, 8, 35, 0])
    _, _, notes, _, _ = read(file_of(track))
    assert notes[:, smf.CHANNEL].tolist() == [2, smf.DRUMS]
    assert notes[:, smf.PROGRAM].tolist() == [40, 0]


def test_meters_and_tempos_come_in_time_order_from_all_tracks():
    meter = bytes([96, 0xFF, 0x58, 4, 3, 3, 24, 8])
    tempo = bytes([48, 0xFF, 0x51, 3, 7, 0xA1, 0x20])
    _, _, _, meters, tempos = read(file_of(meter + tempo, tempo))
    assert meters.tolist() == [[96, 3, 8]]
    assert tempos.tolist() == [[48, 500_000], [144, 500_000]]


def test_wrong_track_count_riff_wrapping_and_smpte():
    track = bytes([0, 0x90, 60, 1, 10, 60, 0])
    plain = file_of(track)
    wrapped = b"RIFF" + bytes(4) + b"RMIDdata" + len(plain).to_bytes(4, "little") + plain
    assert read(wrapped)[2].tolist() == read(file_of(track, declared=7))[2].tolist() == read(plain)[2].tolist()
    # 25 frames of 40 ticks are 1,000 ticks a second: 500 to the quarter note at 120 a minute.
    assert read(file_of(track, division=(256 - 25) << 8 | 40))[1] == 500


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", smf.NOT_MIDI),
        (b"not a midi file, but long enough", smf.NOT_MIDI),
        (file_of(b"")[:14], smf.NO_TRACKS),
        (file_of(b"", division=0), smf.NO_DIVISION),
    ],
)
def test_errors(data, error):
    assert read(data)[0] == error


def test_damaged_files_keep_what_came_before_the_damage(tmp_path):
    whole = file_of(bytes([0, 0x90, 60, 1, 10, 60, 0, 0, 62, 1, 10, 62, 0]))
    assert len(read(whole[:-6])[2]) == 2
    random = np.random.default_rng(0)
    data = write_midi(tmp_path / "a.mid", [random_notes(random, 100)]).read_bytes()
    for _ in range(300):
        broken = np.frombuffer(data, np.uint8).copy()
        where = random.integers(0, len(broken), 5)
        broken[where] = random.integers(0, 256, 5)
        error, _, notes, _, _ = smf.read_smf(broken[: random.integers(0, len(broken))])
        assert error in (smf.OK, *smf.ERRORS)
        assert (notes[:, smf.DURATION] >= 0).all()
        assert ((notes[:, smf.PITCH] >= 0) & (notes[:, smf.PITCH] < 128)).all()
