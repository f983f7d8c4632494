import itertools

import numpy as np
import pytest
from conftest import write_midi

from midigen_jax.data import duplicates
from midigen_jax.data.duplicates import MIN_MATCHES, nearest_apart
from midigen_jax.kernels.fingerprint import BINS, EMPTY, INTERVALS, MAX_GAP, signature
from midigen_jax.music import midi
from midigen_jax.vocab import Scheme

Notes = list[tuple[float, float, int]]  # onset and duration in beats, pitch


def groups(signatures):
    """The groups of songs, no two of which are equal."""
    return duplicates.groups(signatures, np.arange(len(signatures)))


def melody(random: np.random.Generator, n: int = 400) -> Notes:
    """A random walk over a scale, in quavers and crotchets."""
    scale = np.array([octave + step for octave in range(0, 128, 12) for step in (0, 2, 4, 5, 7, 9, 11)])
    degrees = 45 + np.clip(np.cumsum(random.integers(-3, 4, n)), -12, 12)
    onsets = np.cumsum(random.choice([0.5, 0.5, 1], n))
    return [(onset, 0.5, int(pitch)) for onset, pitch in zip(onsets, scale[degrees], strict=True)]


def chords(notes: Notes) -> Notes:
    """An accompaniment: two lower notes under every fourth one."""
    return [(onset, 1.5, pitch - below) for onset, _, pitch in notes[::4] for below in (12, 19)]


def signature_of(notes: Notes, steps_per_beat: int = 8) -> np.ndarray:
    grid = sorted((round(onset * steps_per_beat), pitch) for onset, _, pitch in notes)
    onsets, pitches = np.array(grid, np.int32).reshape(-1, 2).T.copy()
    return signature(onsets, pitches)


def matches(a: np.ndarray, b: np.ndarray) -> int:
    return int(((a == b) & (a != EMPTY)).sum())


def reference_signature(onsets, pitches):
    gaps = np.diff(onsets)
    chord_gap = np.minimum(gaps, MAX_GAP).sum() // (3 * ((gaps > 0).sum() + 1))
    chords = np.split(pitches, np.flatnonzero(gaps > chord_gap) + 1)
    tops = [int(chord.max()) for chord in chords]
    line = [pitch for i, pitch in enumerate(tops) if i == 0 or pitch != tops[i - 1]]
    intervals = [after - before for before, after in itertools.pairwise(line)]
    bins = [int(EMPTY)] * BINS
    for i in range(len(intervals) - INTERVALS + 1):
        h = int.from_bytes(bytes(interval % 256 for interval in intervals[i : i + INTERVALS]), "big")
        h = (h ^ h >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        h = (h ^ h >> 27) * 0x94D049BB133111EB % 2**64
        h ^= h >> 31
        b = h * BINS >> 64
        bins[b] = min(bins[b], h % 2**32)
    return bins


@pytest.mark.parametrize("seed", range(6))
def test_the_kernel_agrees_with_plain_python(seed):
    random = np.random.default_rng(seed)
    n = [7, 30, 200, 200, 2000, 2000][seed]
    onsets = np.sort(random.integers(0, 4 * n, n)).astype(np.int32)
    onsets[n // 2 :] += 1000 * (seed % 2)
    pitches = random.choice([0, 50, 52, 55, 127], n).astype(np.int32)
    assert signature(onsets, pitches).tolist() == reference_signature(onsets, pitches)


def test_the_same_on_every_machine():
    found = signature_of([(i, 1, 60 + i * i % 11) for i in range(40)])
    assert found.dtype == np.uint32
    assert found[found != EMPTY].tolist() == [
        2478536991,
        1992197840,
        2770013177,
        2548499740,
        4020091057,
        1023829136,
        593192551,
    ]


@pytest.mark.parametrize(
    "notes", [[], [(0, 1, 60)], [(i, 1, 60 + i % 7) for i in range(INTERVALS)], [(i, 1, 60) for i in range(999)]]
)
def test_songs_without_a_melody_are_alone(notes):
    empty = signature_of(notes)
    assert (empty == EMPTY).all()
    assert groups(np.stack([empty] * 3)).tolist() == [0, 1, 2]
    assert nearest_apart(np.stack([empty] * 3), np.arange(3)) is None


def altered(random, notes: Notes) -> dict[str, Notes]:
    """The song as it may occur in other files."""
    return {
        "transposed": [(onset, length, pitch + 5) for onset, length, pitch in notes],
        "twice as slow": [(2 * onset, 2 * length, pitch) for onset, length, pitch in notes],
        "twice as fast": [(onset / 2, length / 2, pitch) for onset, length, pitch in notes],
        "five fourths": [(1.25 * onset, length, pitch) for onset, length, pitch in notes],
        "after silence": [(onset + 17.25, length, pitch) for onset, length, pitch in notes],
        "jitter": [(onset + random.uniform(-0.02, 0.02), length, pitch) for onset, length, pitch in notes],
        "wrong notes": [
            (o, length, pitch + int(random.choice([-2, 2])) * (random.random() < 0.03)) for o, length, pitch in notes
        ],
        "beginning cut off": [note for note in notes if note[0] >= 16],
        "end cut off": [note for note in notes if note[0] < 0.8 * notes[-1][0]],
    }


@pytest.mark.parametrize("steps_per_beat", [8, 12, 24])
def test_a_song_and_its_copies_are_one_group(steps_per_beat):
    random = np.random.default_rng(steps_per_beat)
    songs, copies = [], []
    for _ in range(5):
        line = melody(random)
        song = line + chords(line)
        songs.append(signature_of(song, steps_per_beat))
        copies.append({name: signature_of(copy, steps_per_beat) for name, copy in altered(random, song).items()})
    for name in ("transposed", "twice as slow", "after silence"):
        assert all((song == copy[name]).all() for song, copy in zip(songs, copies, strict=True)), name
    for name in copies[0]:
        assert groups(np.stack(songs + [copy[name] for copy in copies])).tolist() == 2 * list(range(5)), name


def test_files_saved_by_another_program(tmp_path):
    random = np.random.default_rng(0)
    line = melody(random)
    other = melody(random)
    low = chords(line)
    moved = [(onset + random.uniform(0, 0.02), length, pitch) for onset, length, pitch in line]
    files = [
        write_midi(tmp_path / "a.mid", [line, low]),
        write_midi(tmp_path / "merged.mid", [sorted(line + low)]),
        write_midi(tmp_path / "reordered.mid", [low, line], tempo=300_000),
        write_midi(tmp_path / "ticks.mid", [moved, low], ticks_per_beat=1024),
        write_midi(tmp_path / "other.mid", [other, chords(other)]),
    ]
    grids = [midi.read_song(path, Scheme()).notes for path in files]
    signatures = np.stack([signature(grid[:, 0], grid[:, 2]) for grid in grids])
    assert groups(signatures).tolist() == [0, 0, 0, 0, 4]


def test_songs_that_share_patterns_are_different():
    random = np.random.default_rng(1)
    patterns = [list(range(60, 84)), [60, 64, 67, 72, 67, 64] * 8, [60, 62] * 16, [60] * 50, [60, 59, 58, 57, 56] * 9]
    signatures = []
    for _ in range(60):
        song: list[int] = []
        for i in random.integers(0, len(patterns), 12):
            song += patterns[i] + [pitch for _, _, pitch in melody(random, 30)]
        signatures.append(signature_of([(i / 2, 0.5, pitch) for i, pitch in enumerate(song)]))
    signatures += [signature_of(melody(random)) for _ in range(60)]
    assert groups(np.stack(signatures)).tolist() == list(range(120))


def crowd(random, n: int) -> np.ndarray:
    """Signatures of songs and their copies, some with empty bins and with bins that many songs share."""
    signatures = random.integers(0, 2**32 - 1, (n, BINS), dtype=np.uint32)
    for i in range(n // 2, n):
        changed = random.random(BINS) < random.choice([0.1, 0.3, 0.5])
        signatures[i] = np.where(changed, signatures[i], signatures[random.integers(0, n // 4)])
    common = random.random((n, BINS)) < 0.05
    signatures[common] = np.arange(BINS, dtype=np.uint32)[np.nonzero(common)[1]]
    signatures[random.random((n, BINS)) < 0.05] = EMPTY
    return signatures[random.permutation(n)]


def groups_by_all_pairs(signatures: np.ndarray, min_matches: int) -> np.ndarray:
    group = np.arange(len(signatures))
    for i, song in enumerate(signatures):
        for j in np.flatnonzero(((song == signatures) & (song != EMPTY)).sum(1) >= min_matches):
            group[group == max(group[i], group[j])] = min(group[i], group[j])
    return group


@pytest.mark.parametrize("seed", range(3))
def test_groups_agree_with_all_pairs(seed):
    signatures = crowd(np.random.default_rng(seed), 1000)
    found = groups(signatures)
    expected = groups_by_all_pairs(signatures, MIN_MATCHES)
    assert 200 < len(np.unique(expected)) < 600
    # Bands may miss a pair near the threshold, but join nothing else ...
    assert (expected[found] == expected).all()
    assert (found != expected).mean() < 0.01
    # ... and of over half of the bins two are neighbours.
    sure = groups_by_all_pairs(signatures, BINS // 2 + 1)
    assert (found[sure] == found).all()


def test_a_crowd_of_equal_songs_is_one_group():
    signatures = np.repeat(signature_of(melody(np.random.default_rng(0)))[None], 3000, axis=0)
    assert not groups(signatures).any()


def test_the_nearest_pair_across_a_split():
    random = np.random.default_rng(2)
    signatures = random.integers(0, 2**32 - 1, (50, BINS), dtype=np.uint32)
    signatures[31, :20] = signatures[4, :20]
    signatures[40, :7] = signatures[9, :7]
    signatures[40, -4:] = signatures[9, -4:] = EMPTY
    labels = np.arange(50)
    assert nearest_apart(signatures, labels) == (4, 31, 20 / BINS)
    assert nearest_apart(signatures, groups(signatures)) == (9, 40, 7 / (BINS - 4))
    assert nearest_apart(signatures, np.zeros(50)) is None
