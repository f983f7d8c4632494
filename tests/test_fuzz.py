"""Damaged and malicious files: whatever the bytes, the reader and the encoder return, and in little memory.

Damaged files are read in a separate process, so that a crash is a failed test and the memory limit affects nothing
else: `python tests/test_fuzz.py 100000` is that process, and `pytest --mutations 100000 -s` shows its report. The files
are generated; those of the folder that MIDIGEN_MIDI names are used as well. benchmarks/damaged.py measures the time.
"""

import ctypes
import faulthandler
import os
import random
import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from damaged_files import MALICIOUS, TUNE, damage, tracks
from smf_files import meta, random_file, real_files

from midigen_jax.kernels import encode, score, smf
from midigen_jax.vocab import FAITHFUL, Scheme

TIMEOUT = 300  # seconds after which it counts as a hang
MEMORY = 64 << 20  # bytes beyond those of the files
BATCH = 16
SCHEMES = (Scheme(), Scheme(24, True, True), Scheme(4, True), Scheme(12, velocities=True), FAITHFUL)


def as_array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def encode_files(files: list[bytes], scheme: Scheme) -> encode.Songs:
    bounds = np.cumsum([0, *map(len, files)], dtype=np.int64)
    return encode.encode_files(as_array(b"".join(files)), bounds, scheme, encode.make_workspace(max(map(len, files))))


def check_read(error, division, notes, meters, tempos) -> None:
    assert error in (smf.OK, *smf.ERRORS)
    if error:
        assert smf.ERRORS[error]
        assert (division, len(notes), len(meters), len(tempos)) == (0, 0, 0, 0)
        return
    assert division > 0
    lowest = [0, 0, 0, 1, 0, 0, 0]
    highest = [2 * smf.MAX_TICK, 2 * smf.MAX_TICK, 127, 127, 1 << 30, 15, 127]
    assert ((notes >= lowest) & (notes <= highest)).all()
    assert (notes[:, smf.ONSET].astype(np.int64) + notes[:, smf.DURATION] <= 2 * smf.MAX_TICK).all()
    assert ((meters >= [0, 1, 1]) & (meters <= [2 * smf.MAX_TICK, 255, 128])).all()
    assert ((tempos >= [0, 1]) & (tempos <= [2 * smf.MAX_TICK, 0xFFFFFF])).all()
    assert (np.diff(meters[:, 0]) >= 0).all()
    assert (np.diff(tempos[:, 0]) >= 0).all()


def check_songs(songs: encode.Songs, scheme: Scheme) -> None:
    lengths = np.diff(songs.offsets)
    assert songs.offsets[0] == 0
    assert songs.offsets[-1] == len(songs.tokens) == len(songs.bar) == len(songs.position)
    assert ((lengths > 0) == (songs.errors == smf.OK)).all()
    assert (songs.tokens < scheme.size).all()
    assert np.isfinite(songs.seconds).all()
    assert (songs.seconds >= 0).all()
    for rows in (songs.meters, songs.tempos):
        assert (rows >= 0).all()
        assert (rows[:, 2:] > 0).all()
        order = np.lexsort((rows[:, 1], rows[:, 0]))
        assert (order == np.arange(len(rows))).all()
    for i, error in enumerate(songs.errors.tolist()):
        assert error == smf.OK or encode.REASONS[error]
        notes = score.notes_from_tokens(songs.tokens[songs.offsets[i] : songs.offsets[i + 1]], scheme)
        assert len(notes) == songs.notes[i]
        if error == smf.OK and not scheme.faithful:  # which loses time in long rests
            assert (notes[:, score.ONSET] + notes[:, score.DURATION]).max() == songs.ends[i]


def check_batch(songs: encode.Songs, alone: list[encode.Songs]) -> None:
    """Files encoded together give what each gives alone."""
    for name in ("tokens", "bar", "position", "errors", "notes", "ends", "seconds", "hashes", "signatures"):
        np.testing.assert_array_equal(getattr(songs, name), np.concatenate([getattr(song, name) for song in alone]))
    for name in ("meters", "tempos"):
        together = np.concatenate([getattr(song, name)[:, 1:] for song in alone])
        np.testing.assert_array_equal(getattr(songs, name)[:, 1:], together)


def memory(of: str) -> int:
    """Bytes of this process: VmSize, its address space; VmRSS, its memory; VmHWM, the peak of its memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(of + ":"))


def limit_memory(files: int) -> None:
    """From here on at most MEMORY plus `files` more bytes can be allocated, touched or not."""
    # Return free memory, and from now on take blocks of over 128 KB from the system and return them to it.
    libc, m_mmap_threshold = ctypes.CDLL(None), -3
    libc.malloc_trim(0)
    assert libc.mallopt(m_mmap_threshold, 1 << 17)
    limit = memory("VmSize") + MEMORY + files
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    with pytest.raises(MemoryError):
        np.empty(MEMORY + files, np.uint8)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM


def fuzz(mutations: int, seed: int = 0) -> None:
    """Reads damaged files, alone and in batches, and prints a report."""
    dice = random.Random(seed)
    seeds = [random_file(dice) for _ in range(20)] + [path.read_bytes() for path in real_files()]
    for scheme in SCHEMES:  # compiles the kernels
        check_songs(encode_files(seeds[:1], scheme), scheme)
    check_read(*smf.read_smf(as_array(seeds[0])))
    limit_memory(BATCH * (max(map(len, seeds)) + 4 * 64) * 2)  # of two spliced files each
    before = memory("VmRSS")
    reasons = Counter()
    done = 0
    while done < mutations:
        scheme = dice.choice(SCHEMES)
        files = [damage(dice.choice(seeds), seeds, dice) for _ in range(min(BATCH, mutations - done))]
        alone = []
        for file in files:
            check_read(*smf.read_smf(as_array(file)))
            songs = encode_files([file], scheme)
            check_songs(songs, scheme)
            alone.append(songs)
            reasons[encode.REASONS.get(int(songs.errors[0]), "encoded")] += 1
        check_batch(encode_files(files, scheme), alone)
        done += len(files)
    print(f"{done:,} damaged files, made from {len(seeds):,}:")
    for reason, count in reasons.most_common():
        print(f"  {count:,} {reason}")
    print(f"memory: {(memory('VmHWM') - before) / (1 << 20):.0f} MB more at most, this test's own included")


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory by means of Linux")
def test_damaged_files_are_read_or_refused_in_little_memory(request):
    mutations = str(request.config.getoption("--mutations"))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONFAULTHANDLER": "1"}
    result = subprocess.run(
        [sys.executable, __file__, mutations],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT + int(mutations) / 100,
    )
    print(f"\n{result.stdout}")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", MALICIOUS)
def test_malicious_files_are_read_or_refused(name):
    data = MALICIOUS[name]()
    faulthandler.dump_traceback_later(TIMEOUT, exit=True)  # nothing else interrupts a kernel
    check_read(*smf.read_smf(as_array(data)))
    for scheme in (Scheme(), Scheme(24, True, True)):
        check_songs(encode_files([data], scheme), scheme)
    faulthandler.cancel_dump_traceback_later()


def test_meters_and_tempos_at_the_last_tick_stay_late():
    late = (b"\xff\xff\xff\x7f" + meta(1)) * 5 + b"\0" + meta(0x58, b"\3\2") + b"\0" + meta(0x51, b"\1\2\3")
    for scheme in SCHEMES:
        songs = encode_files([tracks(TUNE, late, division=1)], scheme)
        check_songs(songs, scheme)
        assert (songs.meters[:, 1] > songs.ends[0]).all()
        assert (songs.tempos[:, 1] > songs.ends[0]).all()


def test_many_notes_of_many_parts_at_one_time_are_in_order():
    """More than an insertion sort is used for."""
    dice = random.Random(0)
    bodies = [
        b"".join(bytes([0, 0x90 | dice.randrange(8), dice.randrange(128), 1]) for _ in range(400)) + b"\x60" + meta(1)
        for _ in range(20)
    ]
    _, division, notes, _, _ = smf.read_smf(as_array(tracks(*bodies)))
    grid = score.quantize(notes, division, Scheme())
    cells = {(-note[smf.PITCH], 16 * note[smf.TRACK] + note[smf.CHANNEL]) for note in notes.tolist()}
    assert [(-pitch, part) for _, _, pitch, part, _ in grid.tolist()] == sorted(cells)
    assert len(cells) > 5000


if __name__ == "__main__":
    fuzz(int(sys.argv[1]))
