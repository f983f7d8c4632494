"""Damaged and malicious files: whatever their bytes, the reader and the encoder answer, soon and in little memory.

The damaged ones are read in a process of their own, so that a crash is a failed test and the limit of memory binds
nobody else: `python tests/test_fuzz.py 100000` is that process, and `pytest --mutations 100000 -s` shows its report.
Real files that MIDIGEN_MIDI names are damaged as well as made ones.
"""

import ctypes
import os
import random
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from smf_files import END, chunk, file_of, header, meta, random_file, real_files, variable_length

from midigen_jax.kernels import encode, score, smf
from midigen_jax.vocab import Scheme

SECONDS = 0.05  # for one call
MEMORY = 64 << 20  # bytes beyond those of the files
BATCH = 16
SCHEMES = (Scheme(), Scheme(24, True, True), Scheme(4, True), Scheme(12, velocities=True), Scheme(faithful=True))


def damage(data: bytes, others: list[bytes], dice: random.Random) -> bytes:
    """One to four accidents, each at a random place."""
    broken = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        n = len(broken)
        at, size = dice.randrange(n + 1), dice.choice((1, 1, 2, 4, 16, 64))
        match dice.randrange(8):
            case 0:
                for where in dice.choices(range(n), k=size) if n else ():
                    broken[where] ^= 1 << dice.randrange(8)
            case 1:
                broken[at : at + size] = dice.randbytes(size)
            case 2:
                del broken[at:]
            case 3:
                del broken[at : at + size]
            case 4:
                broken[at:at] = dice.choice((dice.randbytes(size), broken[at - size : at], bytes(size)))
            case 5:
                other = dice.choice(others)
                broken[at:] = other[dice.randrange(len(other)) :]
            case 6:  # the length in a chunk's header
                names = [i for name in (b"MThd", b"MTrk", b"RIFF") if (i := broken.find(name, at)) >= 0]
                if names and (name := dice.choice(names)) + 8 <= n:
                    true = int.from_bytes(broken[name + 4 : name + 8], "big")
                    wrong = dice.choice(
                        (0, 1, 3, 0xFFFFFFFF, 1 << 31, n, true + dice.randint(-9, 9), dice.getrandbits(32))
                    )
                    broken[name + 4 : name + 8] = (wrong & 0xFFFFFFFF).to_bytes(4, "big")
            case 7:  # a variable length, that of a meta event where one follows
                event = broken.find(0xFF, at)
                at = event + 2 if event >= 0 and dice.random() < 0.5 else at
                wrong = variable_length(dice.getrandbits(dice.choice((7, 14, 28, 35))))
                broken[at : at + dice.choice((1, len(wrong)))] = wrong
    return bytes(broken)


def as_array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def timed(call, *args, limit: float = SECONDS):
    """The result and the seconds; a slow call may have been interrupted, so that its best of five more counts."""
    seconds = []
    while not seconds or (min(seconds) > limit and len(seconds) < 6):
        begin = time.perf_counter()
        result = call(*args)
        seconds.append(time.perf_counter() - begin)
    return result, min(seconds)


def encode_files(files: list[bytes], scheme: Scheme) -> encode.Songs:
    bounds = np.cumsum([0, *map(len, files)], dtype=np.int64)
    return encode.encode_files(as_array(b"".join(files)), bounds, scheme, encode.room_for(max(map(len, files))))


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
    assert songs.offsets[-1] == len(songs.tokens) == len(songs.bar) == len(songs.step)
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
            assert (notes[:, score.ONSET] + notes[:, score.DURATION]).max() == songs.steps[i]


def check_batch(songs: encode.Songs, alone: list[encode.Songs]) -> None:
    """Files encoded together give what each gives alone."""
    for name in ("tokens", "bar", "step", "errors", "notes", "steps", "seconds", "hashes", "signatures"):
        np.testing.assert_array_equal(getattr(songs, name), np.concatenate([getattr(song, name) for song in alone]))
    for name in ("meters", "tempos"):
        together = np.concatenate([getattr(song, name)[:, 1:] for song in alone])
        np.testing.assert_array_equal(getattr(songs, name)[:, 1:], together)


def memory(of: str) -> int:
    """Bytes of this process: VmSize, the addresses it has; VmRSS, the memory; VmHWM, the most memory so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(of + ":"))


def limit_memory(files: int) -> None:
    """From here on no more than MEMORY and `files` bytes can be had, touched or not."""
    # What malloc has free goes back, and from now on blocks of over 128 KB come from the system and go back to it.
    libc, m_mmap_threshold = ctypes.CDLL(None), -3
    libc.malloc_trim(0)
    assert libc.mallopt(m_mmap_threshold, 1 << 17)
    most = memory("VmSize") + MEMORY + files
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    with pytest.raises(MemoryError):
        np.empty(MEMORY + files, np.uint8)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew


def fuzz(mutations: int, seed: int = 0) -> None:
    """Reads so many damaged files, alone and in batches, and prints a report."""
    dice = random.Random(seed)
    seeds = [random_file(dice) for _ in range(20)] + [path.read_bytes() for path in real_files()]
    for scheme in SCHEMES:  # compiles the kernels
        check_songs(encode_files(seeds[:1], scheme), scheme)
    check_read(*smf.read_smf(as_array(seeds[0])))
    limit_memory(BATCH * (max(map(len, seeds)) + 4 * 64) * 2)  # of two spliced files each
    before = memory("VmRSS")
    reasons = Counter()
    slowest = dict.fromkeys(("reading one file", "encoding one file", f"encoding {BATCH} files"), 0.0)
    done = 0
    while done < mutations:
        scheme = dice.choice(SCHEMES)
        files = [damage(dice.choice(seeds), seeds, dice) for _ in range(min(BATCH, mutations - done))]
        alone = []
        for file in files:
            result, read_time = timed(smf.read_smf, as_array(file))
            check_read(*result)
            songs, encode_time = timed(encode_files, [file], scheme)
            check_songs(songs, scheme)
            alone.append(songs)
            reasons[encode.REASONS.get(int(songs.errors[0]), "encoded")] += 1
            assert read_time <= SECONDS
            assert encode_time <= SECONDS
            slowest["reading one file"] = max(slowest["reading one file"], read_time)
            slowest["encoding one file"] = max(slowest["encoding one file"], encode_time)
        songs, batch_time = timed(encode_files, files, scheme)
        check_batch(songs, alone)
        assert batch_time <= SECONDS
        slowest[f"encoding {BATCH} files"] = max(slowest[f"encoding {BATCH} files"], batch_time)
        done += len(files)
    print(f"{done:,} damaged files, made from {len(seeds):,}:")
    for reason, count in reasons.most_common():
        print(f"  {count:,} {reason}")
    print("slowest: " + ", ".join(f"{what} {1e3 * seconds:.1f} ms" for what, seconds in slowest.items()))
    print(f"memory: {(memory('VmHWM') - before) / (1 << 20):.0f} MB more at most, this test's own included")


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory by way of Linux")
def test_damaged_files_are_read_or_refused_soon_and_in_little_memory(request):
    mutations = str(request.config.getoption("--mutations"))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONFAULTHANDLER": "1"}
    result = subprocess.run([sys.executable, __file__, mutations], env=environment, capture_output=True, text=True)
    print(f"\n{result.stdout}")
    assert result.returncode == 0, result.stderr


# Files of four megabytes, twice the most that is encoded, made to take long or much.
MEGABYTES = 4 << 20


def fill(unit: bytes) -> bytes:
    return unit * (MEGABYTES // len(unit))


def note_ons(keys: list[int], delta: int = 0) -> bytes:
    return b"\0\x90\0\0" + fill(b"".join(bytes([delta, key, 1 + key % 127]) for key in keys))


def changes(kind: int, payloads: list[bytes], delta: int = 1) -> bytes:
    return fill(b"".join(bytes([delta]) + meta(kind, payload) for payload in payloads))


def tracks(*bodies: bytes, division: int = 96) -> bytes:
    return header(1, 1, division) + b"".join(chunk(b"MTrk", body) for body in bodies)


def shuffled_keys() -> list[int]:
    return random.Random(0).choices(range(128), k=1 << 16)


METERS = [bytes([2 + n % 11, n % 8, 24, 8]) for n in range(60)]
TEMPOS = [bytes([1 + n, 2, 3]) for n in range(60)]
TUNE = b"".join(bytes([96, 0x90, key, 64, 96, key, 0]) for key in (60, 62, 64, 65))
MALICIOUS = {
    "notes of one key that never end": lambda: file_of(note_ons([60], 1)),
    "notes of one key that never end, all at once": lambda: file_of(note_ons([60])),
    "notes of one key that end last of all": lambda: file_of(
        b"\0\x90\0\0" + b"\0\x3c\1" * (MEGABYTES // 6) + b"\1\x3c\0" * (MEGABYTES // 6)
    ),
    "ascending notes all at once": lambda: file_of(note_ons(list(range(128)))),
    "descending notes all at once": lambda: file_of(note_ons(list(range(127, -1, -1)))),
    "organ pipes all at once": lambda: file_of(note_ons([*range(0, 128, 2), *range(127, 0, -2)])),
    "shuffled notes all at once": lambda: file_of(note_ons(shuffled_keys())),
    "ascending notes, a few thousand a step": lambda: file_of(
        b"\0\x90\0\0" + fill(b"".join(bytes([12 if i == 0 else 0, i % 128, 99]) for i in range(4000)))
    ),
    "notes as late as can be": lambda: file_of((b"\xff\xff\xff\x7f\xff\1\0") * 5 + note_ons([60, 61]), division=1),
    "one note as late as can be": lambda: file_of(
        (b"\xff\xff\xff\x7f\xff\1\0") * 5 + b"\0\x90\x3c\x40\1\x3c\0", division=1
    ),
    "tracks of one note each": lambda: header(1, 1, 96) + fill(chunk(b"MTrk", b"\0\x90\x3c\x40" + END)),
    "tracks said to be empty": lambda: header(1, 1, 96) + fill(chunk(b"MTrk", b"\0\x90\x3c\x40", declared=0)),
    "tracks said to be endless": lambda: header(1, 1, 96) + fill(chunk(b"MTrk", b"", declared=0xFFFFFFFF)),
    "broken tracks said to be endless": lambda: (
        header(1, 1, 96) + fill(chunk(b"MTrk", b"\0\x90\x3c\x40\0\xf8", declared=0xFFFFFFFF))
    ),
    "tracks that each reach to the last": lambda: (
        header(1, 1, 96)
        + b"".join(chunk(b"MTrk", b"\xf8", declared=max(9 * i - 8, 1)) for i in reversed(range(MEGABYTES // 9)))
    ),
    "events of a length beyond the file": lambda: header(1, 1, 96) + fill(chunk(b"MTrk", b"\0\xff\1\xff\xff\xff\x7f")),
    "no track at all": lambda: header(1, 1, 96) + fill(b"MTr"),
    "chunks of RIFF without data": lambda: b"RIFF\0\0\0\0RMID" + fill(b"LIST\0\0\0\0"),
    "tempos": lambda: tracks(changes(0x51, TEMPOS), TUNE),
    "tempos in descending order, track by track": lambda: tracks(
        *(variable_length(500_000 - i) + meta(0x51, TEMPOS[i % 60]) for i in range(MEGABYTES // 18)), TUNE
    ),
    "tempos all at once": lambda: tracks(changes(0x51, TEMPOS, 0), TUNE),
    "meters": lambda: tracks(changes(0x58, METERS), TUNE),
    "meters as short as can be, between notes": lambda: file_of(fill(b"\x60\xff\x58\2\2\2\0\x90\x3c\x40\1\x3e\x40")),
    "notes that fall silent at once": lambda: file_of(b"\0\x90\0\0" + fill(b"\0\x3c\1\0\x3c\0")),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_malicious_files_take_less_than_a_second(name):
    data = MALICIOUS[name]()
    check_read(*smf.read_smf(as_array(data[:200])))  # compiles the kernels
    seconds = {}
    for scheme in (Scheme(), Scheme(24, True, True)):
        encode_files([data[:200]], scheme)
        result, seconds["read"] = timed(smf.read_smf, as_array(data), limit=1)
        check_read(*result)
        songs, seconds[f"encode {tuple(scheme)}"] = timed(encode_files, [data], scheme, limit=1)
        check_songs(songs, scheme)
    print(f"\n{name}: { ({what: round(1e3 * taken) for what, taken in seconds.items()}) } ms, {songs.errors[0]}")
    assert max(seconds.values()) < 1


def test_changes_as_late_as_can_be_stay_late():
    late = (b"\xff\xff\xff\x7f" + meta(1)) * 5 + b"\0" + meta(0x58, b"\3\2") + b"\0" + meta(0x51, b"\1\2\3")
    for scheme in SCHEMES:
        songs = encode_files([tracks(TUNE, late, division=1)], scheme)
        check_songs(songs, scheme)
        assert (songs.meters[:, 1] > songs.steps[0]).all()
        assert (songs.tempos[:, 1] > songs.steps[0]).all()


def test_many_notes_of_many_parts_on_one_step_are_in_order():
    """More than are put in order one by one."""
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
