"""Faults of music: each in music that has it, none in music that has not, and none where the prompt had it too."""

import numpy as np
import pytest

from midigen_jax.music.quality import KINDS, find_faults
from midigen_jax.music.song import Song, new_song
from midigen_jax.vocab import Scheme

CHORDS = ((48, 64, 67, 72), (45, 60, 64, 69), (53, 60, 65, 69), (55, 62, 65, 71))
BARS = 16


def song_of(rows: list[tuple[int, int, int]]) -> Song:
    """Of (onset, duration, pitch) in grid steps, 8 a beat."""
    notes = np.array([[*row, 0, 80] for row in sorted(rows)], np.int32).reshape(-1, 5)
    return new_song(Scheme())._replace(notes=notes)


def tune(bars: int = BARS) -> list[tuple[int, int, int]]:
    """A random tune in C major over a chord a bar."""
    random, scale = np.random.default_rng(0), (60, 62, 64, 65, 67, 69, 71, 72)
    rows = [(32 * bar, 32, pitch - 12) for bar in range(bars) for pitch in CHORDS[bar % 4]]
    return rows + [(4 * i, 4, int(random.choice(scale)) + 12) for i in range(8 * bars)]


FAULTY = {
    "silence": [row for row in tune() if row[0] // 32 % 2],
    "density": tune() + [(i, 1, pitch) for i in range(32 * BARS) for pitch in (60, 76)],
    "stutter": tune() + [(64 + i, 1, 79) for i in range(64)],
    "one chord": [row for row in tune() if row[0] % 32] + [(32 * b, 32, p) for b in range(BARS) for p in (36, 40, 43)],
    "loop": [(onset + 32 * bar, long, pitch) for bar in range(BARS) for onset, long, pitch in tune(1)],
    "out of key": tune() + [(4 * i + 2, 2, (61, 66, 68, 70)[i % 4]) for i in range(6 * BARS)],
}


def test_every_kind_is_tried():
    assert FAULTY.keys() == {kind.name for kind in KINDS}


@pytest.mark.parametrize("name", FAULTY)
def test_faults_are_found_unless_the_music_before_had_them(name):
    song, kind = song_of(FAULTY[name]), next(kind for kind in KINDS if kind.name == name)
    found = {fault.kind: fault.text for fault in find_faults(song, song_of(tune()))}
    assert found[name] == kind.text.format(kind.measure(song))
    assert find_faults(song, song) == []
    assert all(fault.excess > 1 for fault in find_faults(song))


def test_music_without_faults():
    assert find_faults(song_of(tune())) == []
    assert find_faults(song_of(tune()), song_of(tune())) == []


def test_nothing_is_silence():
    assert [fault.text for fault in find_faults(song_of([]))] == ["100% of the bars are silent"]
