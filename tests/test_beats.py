"""Beats and bars found in files whose own bar lines are wrong, and all other files left alone."""

from pathlib import Path

import numpy as np
import pytest
from conftest import write_midi

from midigen_jax.kernels import beats, smf
from midigen_jax.music import midi
from midigen_jax.music.song import notes_of, tokens_of
from midigen_jax.vocab import Scheme, Vocabulary

DIVISION = 480
CHORDS = ((60, 64, 67), (57, 60, 64), (53, 57, 60), (55, 59, 62))


def song_ticks(beats_per_bar: int = 4) -> np.ndarray:
    """A tune over a chord a bar, 16 bars, as notes of `read_smf`; the tune begins with an upbeat before bar 1."""
    random = np.random.default_rng(0)
    rows = []
    for bar in range(1, 17):
        chord, start = CHORDS[bar % 4], beats_per_bar * bar
        rows += [(start, beats_per_bar, pitch - 12) for pitch in chord]
        times = sorted({0, *random.choice(4 * beats_per_bar, 5, replace=False).tolist()})
        for time, end in zip(times, [*times[1:], 4 * beats_per_bar], strict=True):
            rows.append((start + time / 4, (end - time) / 4, int(random.choice(chord)) + 12))
    rows += [(beats_per_bar - 0.5, 0.25, 74), (beats_per_bar - 0.25, 0.25, 76)]
    ticks = [(int(DIVISION * onset), int(DIVISION * length), pitch) for onset, length, pitch in rows]
    return np.array([(onset, length, pitch, 80, 0, 0, 0) for onset, length, pitch in ticks], np.int32)


def aligned(notes: np.ndarray, meters, tempos=()) -> tuple[np.ndarray, list, np.ndarray]:
    """Notes, meters and tempos after `align`."""
    notes, tempos = notes.copy(), np.array(tempos, np.int32).reshape(-1, 2)
    rows = np.zeros((len(meters) + 1, 3), np.int32)
    rows[: len(meters)] = np.array(meters, np.int32).reshape(-1, 3)
    n, moved = beats.align(notes, rows, len(meters), tempos, DIVISION)
    assert moved or n == len(meters)
    return notes, rows[:n].tolist(), tempos


@pytest.mark.parametrize("offset", [37, 240, 333, 480, 1000, 1900])
@pytest.mark.parametrize("meter", [(1, 4), (4, 4), (2, 4), None])
def test_a_shifted_song_gets_its_bars_back(offset, meter):
    notes = song_ticks()
    shifted = notes.copy()
    shifted[:, smf.ONSET] += offset
    meters = [(0, *meter)] if meter else []
    moved, found, _ = aligned(shifted, meters)
    if offset % 120 == 0 and meter != (1, 4):  # on the file's own grid: its bar lines are believed
        assert moved.tolist() == shifted.tolist()
        assert found == [list(row) for row in meters]
        return
    by = moved[:, smf.ONSET] - notes[:, smf.ONSET]
    assert (by == by[0]).all()
    assert by[0] % (4 * DIVISION) == 0
    assert found == [[0, 4, 4]]


def test_a_meter_of_three_beats_stays():
    notes = song_ticks(3)
    shifted = notes.copy()
    shifted[:, smf.ONSET] += 77
    moved, meters, _ = aligned(shifted, [(0, 3, 4)])
    assert ((moved - notes)[:, smf.ONSET] % (3 * DIVISION) == 0).all()
    assert meters == [[0, 3, 4]]


def test_human_timing_around_the_grid_is_kept():
    """Each note keeps its distance from the grid."""
    notes = song_ticks()
    jitter = np.random.default_rng(1).integers(-6, 7, len(notes))
    notes[:, smf.ONSET] += jitter
    shifted = notes.copy()
    shifted[:, smf.ONSET] += 160
    moved, _, _ = aligned(shifted, [(0, 1, 4)])
    off = (moved[:, smf.ONSET] - notes[:, smf.ONSET] + 2 * DIVISION) % (4 * DIVISION) - 2 * DIVISION
    assert (off == off[0]).all()
    assert abs(off[0]) <= 3


def test_files_with_right_bar_lines_are_left_alone():
    notes = song_ticks()
    pickup = notes[notes[:, smf.ONSET] >= 3 * DIVISION].copy()
    pickup[:, smf.ONSET] -= 3 * DIVISION
    for unchanged, meters in (
        (notes, [(0, 4, 4)]),
        (notes, []),
        (pickup, [(0, 1, 4), (DIVISION, 4, 4)]),
        (pickup, [(0, 1, 4), (DIVISION, 4, 4), (60 * DIVISION, 1, 4)]),  # the last bar lacks what the pickup has
    ):
        moved, found, _ = aligned(unchanged, meters)
        assert moved.tolist() == unchanged.tolist()
        assert found == [list(row) for row in meters]


def test_performances_are_left_alone():
    notes = song_ticks()
    notes[:, smf.ONSET] = np.random.default_rng(2).integers(0, 16 * 4 * DIVISION, len(notes))
    moved, found, _ = aligned(notes, [(0, 1, 4)])
    assert moved.tolist() == notes.tolist()
    assert found == [[0, 1, 4]]
    nothing, found, _ = aligned(notes[:0], [(0, 1, 4)])
    assert len(nothing) == 0
    assert found == [[0, 1, 4]]


def test_tempos_and_drums_move_with_the_notes():
    notes = song_ticks()
    drums = notes.copy()
    drums[:, [smf.DURATION, smf.PITCH, smf.CHANNEL]] = 10, 38, smf.DRUM_CHANNEL
    drums[:, smf.ONSET] += 61  # drums do not count: these would be another grid
    both = np.concatenate([notes, drums])
    both[:, smf.ONSET] += 100
    moved, _, tempos = aligned(both, [], [(0, 500_000), (5 * DIVISION + 100, 400_000)])
    by = moved[0, smf.ONSET] - both[0, smf.ONSET]
    assert ((moved - both)[:, smf.ONSET] == by).all()
    assert tempos.tolist() == [[0, 500_000], [5 * DIVISION + 100 + by, 400_000]]


def test_songs_start_neither_before_time_0_nor_with_needless_silence():
    notes = song_ticks()
    for offset in (40, 1900):
        shifted = notes.copy()
        shifted[:, smf.ONSET] += offset - notes[:, smf.ONSET].min()
        moved, _, _ = aligned(shifted, [(0, 1, 4)])
        assert 0 <= moved[:, smf.ONSET].min() < 4 * DIVISION


@pytest.mark.parametrize("steps_per_beat", [8, 12])
def test_what_is_written_reads_the_same(tmp_path: Path, steps_per_beat):
    """Also with triplets, which a grid of 8 bends."""
    notes = [(2 + 0.29 + i * 4 + x / 3, 1 / 3, 60 + (7 * i + x) % 12) for i in range(16) for x in range(12)]
    path = write_midi(tmp_path / "song.mid", [notes], meter=(1, 4))
    scheme = Scheme(steps_per_beat)
    song, words = midi.read_song(path, scheme), Vocabulary(scheme)
    assert song.meters.tolist() == [[0, 4, 4]]
    again = song._replace(notes=notes_of(tokens_of(song, words)[0], words))
    midi.write_song(tmp_path / "again.mid", again)
    assert midi.read_song(tmp_path / "again.mid", scheme).notes[:, :3].tolist() == song.notes[:, :3].tolist()
    unaligned = midi.read_song(path, scheme._replace(align_beats=False))
    assert unaligned.meters.tolist() == [[0, 1, 4]]
