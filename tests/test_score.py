import numpy as np
import pytest
from conftest import random_notes, write_midi

from midigen_jax import midi, vocab
from midigen_jax.kernels import score, smf


def notes_of(*rows) -> np.ndarray:
    """Notes of `read_smf` from (onset, duration, pitch, track, channel) in ticks."""
    return np.array([[o, d, p, 64, t, c, 0] for o, d, p, t, c in rows], np.int64).reshape(-1, 7)


def names(tokens) -> str:
    return " ".join(vocab.NAMES[token] for token in tokens)


def reference_grid(notes, division, steps_per_beat):
    cells = {}
    for onset, duration, pitch, _, track, channel, _ in notes.tolist():
        if channel != smf.DRUMS:
            key = (round(onset * steps_per_beat / division), -pitch, 16 * track + channel)
            steps = min(max(round(duration * steps_per_beat / division), 1), 256)
            cells[key] = max(cells.get(key, 0), steps)
    return [[onset, steps, -pitch, part] for (onset, pitch, part), steps in sorted(cells.items())]


def reference_tokens(grid):
    words, steps, now = ["sos"], [0], 0
    for onset, duration, pitch, _ in grid:
        while now < onset:
            rest = min(256, onset - now)
            words += ["sep", f"d{rest}"]
            steps += [now, now]
            now += rest
        words += [f"n{pitch}", f"d{duration}"]
        steps += [now, now]
    return " ".join([*words, "eos"]), [*steps, steps[-1]]


def test_the_example_of_the_blog():
    grid = np.array([[0, 4, 1, 0], [1, 2, 3, 0], [6, 2, 3, 0], [6, 2, 2, 0]], np.int32)
    tokens, steps = score.index_score(*score.position_score(grid))
    assert names(tokens) == "sos n1 d4 sep d1 n3 d2 sep d5 n3 d2 n2 d2 eos"
    assert steps.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 6, 6, 6, 6, 6]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("steps_per_beat", [8, 12])
def test_kernels_agree_with_plain_python(seed, steps_per_beat):
    random = np.random.default_rng(seed)
    n = 300
    rows = zip(
        random.integers(0, 40_000, n) * random.integers(0, 2, n),
        random.integers(0, 3000, n),
        random.choice([0, 60, 64, 127], n),
        random.integers(0, 3, n),
        random.choice([0, 1, smf.DRUMS], n),
        strict=True,
    )
    notes = notes_of(*rows)
    grid = score.quantize(notes, 96, steps_per_beat)
    assert grid.tolist() == reference_grid(notes, 96, steps_per_beat)
    tokens, steps = score.index_score(*score.position_score(grid))
    assert (names(tokens), steps.tolist()) == reference_tokens(grid.tolist())
    # Back: the same notes, whatever their parts.
    assert score.notes_from_tokens(tokens).tolist() == grid[:, :3].tolist()


def test_sparse_score_agrees_with_the_hot_path():
    random = np.random.default_rng(1)
    notes = notes_of(*((*random.integers(1, 900, 2), random.integers(0, 128), t, 0) for t in (0, 1, 2) * 30))
    grid = score.quantize(notes, 96, 8)
    parts, index = np.unique(grid[:, 3], return_inverse=True)
    sparse = score.sparse_score(grid, index)
    assert sparse.shape == (grid[-1, 0] + 1, len(parts), 128)
    assert np.count_nonzero(sparse) == len(grid)
    again = score.grid_from_sparse(sparse)
    assert again[:, :3].tolist() == grid[:, :3].tolist()
    assert parts[again[:, 3]].tolist() == grid[:, 3].tolist()


def test_longest_of_equal_cells_stays_and_drums_go():
    grid = score.quantize(notes_of((0, 96, 60, 0, 0), (1, 300, 60, 0, 0), (0, 9, 40, 1, smf.DRUMS)), 96, 8)
    assert grid.tolist() == [[0, 25, 60, 0]]


def test_long_rests_keep_their_time_and_every_pitch_counts():
    grid = np.array([[0, 1, 127, 0], [600, 256, 0, 0]], np.int32)
    tokens, steps = score.index_score(*score.position_score(grid))
    assert names(tokens) == "sos n127 d1 sep d256 sep d256 sep d88 n0 d256 eos"
    assert steps.tolist() == [0, 0, 0, 0, 0, 256, 256, 512, 512, 600, 600, 600]


def test_any_stream_of_tokens_decodes():
    tokens = np.random.default_rng(0).integers(0, vocab.SIZE, 1000).astype(np.uint16)
    notes = score.notes_from_tokens(tokens)
    assert len(notes) > 0
    assert (notes[:, 1] > 0).all()


def test_bars_follow_the_meters():
    # 3/4 from the start, 4/4 from the third beat of the second bar: a change starts a new bar.
    meters = np.array([[0, 3, 4], [5 * 96, 4, 4]], np.int64)
    segments = score.meter_map(meters, 96, 8)
    assert segments.tolist() == [[0, 24, 0], [40, 32, 2]]
    bar, in_bar = score.bar_positions(np.array([0, 23, 24, 39, 40, 71, 72], np.int32), segments)
    assert bar.tolist() == [0, 0, 1, 1, 2, 2, 3]
    assert in_bar.tolist() == [0, 23, 0, 15, 0, 31, 0]


def test_meters_that_tell_nothing():
    assert score.meter_map(np.empty((0, 3), np.int64), 96, 8).tolist() == [[0, 32, 0]]
    assert score.meter_map(np.array([[0, 1, 4]]), 96, 8).tolist() == [[0, 32, 0]]
    assert score.meter_map(np.array([[0, 4, 4], [0, 6, 8], [960, 6, 8]]), 96, 8).tolist() == [[0, 24, 0]]


def test_encode_song_counts_and_seconds(tmp_path):
    path = write_midi(tmp_path / "a.mid", [[(0, 1, 60), (3, 2, 64)]], tempo=1_000_000)
    _, *contents = smf.read_smf(np.fromfile(path, np.uint8))
    tokens, bar, in_bar, n_notes, n_steps, seconds = score.encode_song(*contents, 8)
    assert names(tokens) == "sos n60 d8 sep d24 n64 d16 eos"
    assert (n_notes, n_steps, seconds) == (2, 40, 5.0)
    assert bar.tolist() == [0] * 8
    assert in_bar.tolist() == [0, 0, 0, 0, 0, 24, 24, 24]


@pytest.mark.parametrize("seed", range(3))
def test_a_written_song_reads_back_as_it_was(tmp_path, seed):
    random = np.random.default_rng(seed)
    path = write_midi(tmp_path / "a.mid", [random_notes(random, 80) for _ in range(2)], meter=(3, 4), tempo=400_000)
    song = midi.read_song(path, 8)
    midi.write_song(tmp_path / "b.mid", song)
    again = midi.read_song(tmp_path / "b.mid", 8)
    assert again.notes[:, :3].tolist() == song.notes[:, :3].tolist()
    for name in ("bars", "meters", "tempos"):
        assert getattr(again, name).tolist() == getattr(song, name).tolist()
    assert song.bar_start(2) == 48
    assert song.bar_lines(48).tolist() == [0, 24, 48]
