import zlib
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import stages
from conftest import examples, random_notes, write_midi
from hypothesis import given, settings
from hypothesis import strategies as st
from smf_files import real_files

from midigen_jax import vocab
from midigen_jax.data import file_batches
from midigen_jax.kernels import encode as hot
from midigen_jax.kernels import merges, meter, score, smf
from midigen_jax.music import midi
from midigen_jax.music.song import make_song, notes_of, tokens_of
from midigen_jax.vocab import Scheme, Vocabulary

FAITHFUL = vocab.FAITHFUL
SCHEMES = [Scheme(*options) for options in product((8, 12, 24), (False, True), (False, True))] + [FAITHFUL]

ticks = st.one_of(st.integers(0, 400), st.integers(0, 50_000))
raw_note = st.tuples(
    ticks,
    st.one_of(st.integers(0, 60), ticks),
    st.sampled_from([0, 40, 41, 60, 64, 126, 127]),
    st.integers(1, 127),
    st.integers(0, 3),
    st.sampled_from([0, 1, smf.DRUM_CHANNEL]),
    st.sampled_from([0, 40, 127]),
)
songs = st.lists(raw_note, min_size=1, max_size=60).map(lambda notes: np.array(notes, np.int32))
fixed = settings(derandomize=True, deadline=None, max_examples=examples(20))


def names(tokens, scheme=Scheme()) -> str:  # noqa: B008  (a tuple)
    words = Vocabulary(scheme).names
    return " ".join(words[token] for token in tokens)


def notes_at(*rows) -> np.ndarray:
    """Notes of `read_smf` from (onset, duration, pitch, track, channel) in ticks."""
    return np.array([[o, d, p, 64, t, c, 0] for o, d, p, t, c in rows], np.int32).reshape(-1, 7)


def reference_grid(notes, division, scheme):
    """The quantised score in plain Python, by the rules of `score.quantize`."""
    cells = {}
    for onset, duration, pitch, velocity, track, channel, program in notes.tolist():
        time, length = (round(Fraction(ticks * scheme.steps_per_beat, division)) for ticks in (onset, duration))
        drums = channel == smf.DRUM_CHANNEL
        if scheme.multi:
            part = 128 if drums else program
            order = (part, -pitch)
        else:
            part = track if scheme.faithful else 16 * track + channel
            order = (-pitch, part)
        if time > meter.MAX_TIME or (drums and not scheme.multi) or (scheme.faithful and (pitch == 127 or length == 0)):
            continue
        best = cells.setdefault((time, order), [pitch, part, 0, 0])
        best[2:] = max(best[2:], [min(max(length, 1), 256), velocity])
    return [
        [time, length, pitch, part, velocity // 4 * 4 + 2 if scheme.velocities else 80]
        for (time, _), (pitch, part, length, velocity) in sorted(cells.items())
    ]


def reference_tokens(grid, scheme):
    """Tokens and their times in plain Python."""
    words, times, now, instrument = [], [], 0, None
    for onset, duration, pitch, part, velocity in grid:
        while now < onset:
            rest = min(256, onset - now)
            if scheme.faithful:
                now = onset - rest
            words += ["sep", f"d{rest}"]
            times += [now, now]
            now += rest
        if scheme.multi and part != instrument:
            instrument = part
            words += ["drums" if part == 128 else f"i{part}"]
        words += [f"n{pitch}"]
        words += [f"v{velocity // 4}"] if scheme.velocities else []
        words += [f"d{duration}"]
        times += [now] * (len(words) - len(times))
    return " ".join(["sos", *words, "eos"]), [*times[:1], *times, *times[-1:]]


def midigen_tokens(notes, division):
    """The baseline's own three stages in plain Python: a sparse score of all cells, pairs, tokens."""
    sparse = {}
    rounded = [
        (round(Fraction(8 * onset, division)), min(256, round(Fraction(8 * duration, division))), track, pitch)
        for onset, duration, pitch, _, track, channel, _ in notes.tolist()
        if channel != smf.DRUM_CHANNEL
    ]
    for onset, duration, track, pitch in sorted(rounded):
        sparse[onset, track, pitch] = duration
    pairs, last = [], 0
    for step in sorted({step for (step, _, pitch), duration in sparse.items() if duration and pitch < 127}):
        if step > last:
            pairs.append((-1, min(256, step - last)))
        last = step
        here = [(pitch, track, d) for (s, track, pitch), d in sparse.items() if s == step and d and pitch < 127]
        pairs += [(pitch, d) for pitch, track, d in sorted(here, key=lambda note: (-note[0], note[1]))]
    return "sos " + "".join(f"{'sep' if pitch < 0 else f'n{pitch}'} d{d} " for pitch, d in pairs) + "eos"


def check(notes, division, meters, scheme):
    """Everything that must hold for one song in one scheme."""
    grid = score.quantize(notes, division, scheme)
    assert grid.tolist() == reference_grid(notes, division, scheme)
    if len(grid) == 0:
        return
    tokens, times = stages.index_score(stages.position_score(grid, scheme), scheme)
    assert (names(tokens, scheme), times.tolist()) == reference_tokens(grid.tolist(), scheme)
    if scheme.faithful:
        assert names(tokens) == midigen_tokens(notes, division)
    meters = meters[: meter.on_grid(meters, division, scheme.steps_per_beat)]
    song = make_song(grid, meters, np.empty((0, 2), np.int32), scheme)
    # The hot path agrees with the stages.
    written, bar, position = hot.encode_grid(grid, song.bars, scheme)
    assert written.tolist() == tokens.tolist()
    for got, expected in zip((bar, position), meter.bar_positions(times, song.bars), strict=True):
        assert got.tolist() == expected.tolist()
    # The grammar allows them, and knows by how much they advance time.
    next_state, advance = Vocabulary(scheme).grammar
    state, now = vocab.START, 0
    for token in tokens[1:].tolist():
        now += advance[state, token]
        state = next_state[state, token]
        assert state != vocab.FORBIDDEN
    assert state == vocab.END
    # Decoding gives the quantised score back, except parts if merged, and times if the faithful mode cuts rests.
    kept = [0, 1, 2, 3, 4] if scheme.multi else [0, 1, 2, 4]
    notes_back = notes_of(tokens, Vocabulary(scheme))
    if scheme.faithful:
        kept = [1, 2, 4]
    else:
        assert now == grid[-1, score.ONSET]
    assert notes_back[:, kept].tolist() == grid[:, kept].tolist()
    return song, tokens


def check_file(path, scheme, tmp_path):
    """The same through MIDI files: a decoded and written song encodes to the same tokens."""
    error, division, notes, meters, _ = smf.read_smf(np.fromfile(path, np.uint8))
    if error != smf.OK or not check(notes, division, meters, scheme):
        return 0
    song = midi.read_song(path, scheme)
    words = Vocabulary(scheme)
    tokens, bar, position = tokens_of(song, words)
    again = song._replace(notes=notes_of(tokens, words))
    midi.write_song(tmp_path / "again.mid", again)
    reread = midi.read_song(tmp_path / "again.mid", scheme)
    assert tokens_of(reread, words)[0].tolist() == tokens.tolist()
    if not scheme.faithful:
        for name in ("bars", "meters", "tempos"):
            assert getattr(reread, name).tolist() == getattr(song, name).tolist()
        assert [x.tolist() for x in tokens_of(reread, words)[1:]] == [bar.tolist(), position.tolist()]
    encoded, reasons, _ = file_batches.encode_batch([path], Vocabulary(scheme))
    if not reasons[0]:
        assert encoded.tokens.tolist() == tokens.tolist()
        assert encoded.bar.tolist() == bar.tolist()
        assert encoded.position.tolist() == position.tolist()
    return len(song.notes)


def test_the_example_of_the_blog():
    grid = np.array([[0, 4, 1, 0, 80], [1, 2, 3, 0, 80], [6, 2, 3, 0, 80], [6, 2, 2, 0, 80]], np.int32)
    tokens, times = stages.index_score(stages.position_score(grid, Scheme()), Scheme())
    assert names(tokens) == "sos n1 d4 sep d1 n3 d2 sep d5 n3 d2 n2 d2 eos"
    assert times.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 6, 6, 6, 6, 6]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@fixed
@given(notes=songs, division=st.sampled_from([1, 24, 96, 220, 480, 1000]))
def test_kernels_agree_with_plain_python_and_lose_nothing(scheme, notes, division):
    check(notes, division, np.array([[0, 3, 4], [700, 7, 8], [700, 4, 4], [9000, 1, 4]], np.int32), scheme)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_files_survive_encoding_and_decoding(scheme, midi_folder, band_folder, tmp_path):
    paths = [*sorted(midi_folder.iterdir())[:4], *sorted(band_folder.iterdir())]
    assert all(check_file(path, scheme, tmp_path) for path in paths)


@pytest.mark.skipif(not real_files(), reason="MIDIGEN_MIDI names no folder with MIDI files")
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_collection_survives_encoding_and_decoding(scheme, tmp_path):
    notes = [check_file(path, scheme, tmp_path) for path in real_files()]
    print(f"{np.count_nonzero(notes)} of {len(notes)} files with notes, {sum(notes)} notes")
    assert any(notes)


def test_sparse_score_agrees_with_the_hot_path():
    random = np.random.default_rng(1)
    notes = notes_at(*((*random.integers(1, 900, 2), random.integers(0, 128), t, 0) for t in (0, 1, 2) * 30))
    grid = score.quantize(notes, 96, Scheme())
    parts, index = np.unique(grid[:, score.PART], return_inverse=True)
    sparse = stages.sparse_score(grid, index)
    assert sparse.shape == (grid[-1, 0] + 1, len(parts), 128)
    assert np.count_nonzero(sparse) == len(grid)
    again = stages.grid_from_sparse(sparse)
    assert again[:, [0, 1, 2, 4]].tolist() == grid[:, [0, 1, 2, 4]].tolist()
    assert parts[again[:, 3]].tolist() == grid[:, 3].tolist()


def test_many_notes_at_one_time_are_sorted_too():
    notes = notes_at(*((0, 9, pitch, track, 0) for track in range(300) for pitch in range(128)))
    grid = score.quantize(notes, 96, Scheme())
    assert grid[:, score.PITCH].tolist() == sorted(list(range(128)) * 300, reverse=True)


def test_the_longest_note_of_a_cell_is_kept_and_drums_are_dropped():
    notes = notes_at((0, 96, 60, 0, 0), (1, 300, 60, 0, 0), (0, 9, 40, 1, smf.DRUM_CHANNEL))
    assert score.quantize(notes, 96, Scheme()).tolist() == [[0, 25, 60, 0, 80]]


def test_long_rests_and_all_pitches_are_kept():
    notes = notes_at((0, 12, 127, 0, 0), (7200, 3072, 0, 0, 0))
    tokens, times = stages.index_score(stages.position_score(score.quantize(notes, 96, Scheme()), Scheme()), Scheme())
    assert names(tokens) == "sos n127 d1 sep d256 sep d256 sep d88 n0 d256 eos"
    assert times.tolist() == [0, 0, 0, 0, 0, 256, 256, 512, 512, 600, 600, 600]


def test_the_faithful_mode_has_the_losses_of_midigen():
    notes = notes_at((0, 12, 127, 0, 0), (0, 5, 60, 0, 0), (7200, 3072, 0, 0, 0))
    tokens, times = stages.index_score(stages.position_score(score.quantize(notes, 96, FAITHFUL), FAITHFUL), FAITHFUL)
    assert names(tokens) == "sos sep d256 n0 d256 eos"
    assert times.tolist() == [344, 344, 344, 600, 600, 600]


def test_instruments_and_velocities_are_written_where_they_change():
    rows = [(0, 96, 60, 3, 0, 0, 40), (0, 96, 64, 127, 0, 0, 40), (0, 48, 38, 100, 0, 9, 5), (96, 96, 62, 64, 1, 1, 40)]
    scheme = Scheme(multi=True, velocities=True)
    grid = score.quantize(np.array(rows, np.int32), 96, scheme)
    tokens, _, _ = hot.encode_grid(grid, meter.meter_map(np.empty((0, 3), np.int32), 8), scheme)
    assert names(tokens, scheme) == "sos i40 n64 v31 d8 n60 v0 d8 drums n38 v25 d4 sep d8 i40 n62 v16 d8 eos"


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_any_stream_of_tokens_decodes(scheme):
    words = Vocabulary(scheme, ((vocab.NOTE_0, vocab.DURATION_0 + 1), (vocab.SEP, vocab.DURATION_0 + 7)))
    notes = notes_of(np.random.default_rng(0).integers(0, words.size, 3000).astype(np.uint16), words)
    assert len(notes) > 0
    assert (notes[:, score.DURATION] > 0).all()
    assert (np.diff(notes[:, score.ONSET]) >= 0).all()


@pytest.mark.parametrize("scheme", [Scheme(), Scheme(multi=True, velocities=True)], ids=str)
def test_merges_are_reversible_and_keep_their_times(scheme, band_folder):
    """On whole songs: fewer tokens, the same notes, the position of each token, time as in the grammar."""
    plain = Vocabulary(scheme)
    all_songs = [midi.read_song(path, scheme) for path in sorted(band_folder.iterdir())]
    base = np.concatenate([tokens_of(song, plain)[0] for song in all_songs])
    flat, offsets = merges.learn(base, scheme.size, 100)
    words = vocab.from_expansions(scheme, flat, offsets)
    next_state, advance = words.grammar
    for song in all_songs:
        tokens, bar, position = tokens_of(song, words)
        assert len(tokens) < 0.95 * len(tokens_of(song, plain)[0])
        assert notes_of(tokens, words).tolist() == notes_of(tokens_of(song, plain)[0], plain).tolist()
        state, now, starts = vocab.START, 0, []
        for token in tokens[1:-1].tolist():
            in_event = state in (vocab.REST, vocab.START_REST, vocab.INSTRUMENT, vocab.NOTE, vocab.VELOCITY)
            starts.append(starts[-1] if in_event else now)
            now += advance[state, token]
            state = next_state[state, token]
            assert state >= 0
        expected = meter.bar_positions(np.array(starts), song.bars)
        assert [bar[1:-1].tolist(), position[1:-1].tolist()] == [x.tolist() for x in expected]
    again = Vocabulary.from_json(words.to_json())
    assert again == words
    assert again.names[-1] == "+".join(words.names[token] for token in words.merges[-1])


def test_transposing_keeps_drums_and_the_range_of_pitches():
    scheme = Scheme(multi=True)
    rows = [(0, 96, 60, 64, 0, 0, 40), (0, 48, 38, 64, 0, 9, 0), (96, 96, 120, 64, 0, 0, 40)]
    tokens, _ = stages.index_score(
        stages.position_score(score.quantize(np.array(rows, np.int32), 96, scheme), scheme), scheme
    )
    assert names(score.transpose(tokens, 2, scheme), scheme) == names(tokens, scheme).replace("n60", "n62").replace(
        "n120", "n122"
    )
    assert len(score.transpose(tokens, 8, scheme)) == 0


def bars_of(meters, steps_per_beat=8):
    meters = np.array(meters, np.int32).reshape(-1, 3)
    return meter.meter_map(meters[: meter.on_grid(meters, 96, steps_per_beat)], steps_per_beat).tolist()


def test_bars_follow_the_meters():
    # 3/4 from the start, 4/4 from the third beat of the second bar: a change starts a new bar.
    bars = bars_of([[0, 3, 4], [5 * 96, 4, 4]])
    assert bars == [[0, 24, 0], [40, 32, 2]]
    bar, position = meter.bar_positions(np.array([0, 23, 24, 39, 40, 71, 72], np.int32), np.array(bars))
    assert bar.tolist() == [0, 0, 1, 1, 2, 2, 3]
    assert position.tolist() == [0, 23, 0, 15, 0, 31, 0]


def test_meters_that_say_nothing_about_bars():
    assert bars_of([]) == [[0, 32, 0]]
    assert bars_of([[0, 1, 4]]) == [[0, 32, 0]]
    assert bars_of([[0, 4, 4], [0, 6, 8], [960, 6, 8]]) == [[0, 24, 0]]


def test_counts_and_seconds_of_a_file(tmp_path):
    path = write_midi(tmp_path / "a.mid", [[(0, 1, 60), (3, 2, 64)]], tempo=1_000_000)
    songs, reasons, stamps = file_batches.encode_batch([path], Vocabulary())
    content = path.read_bytes()
    assert reasons == [""]
    assert stamps == [(len(content), path.stat().st_mtime_ns, zlib.crc32(content))]
    assert names(songs.tokens) == "sos n60 d8 sep d24 n64 d16 eos"
    assert (songs.notes.tolist(), songs.ends.tolist(), songs.seconds.tolist()) == ([2], [40], [5.0])
    assert songs.bar.tolist() == [0] * 8
    assert songs.position.tolist() == [0, 0, 0, 0, 0, 24, 24, 24]
    assert (songs.meters.tolist(), songs.tempos.tolist()) == ([[0, 0, 4, 4]], [[0, 0, 1_000_000]])


@pytest.mark.parametrize("seed", range(3))
def test_a_written_song_reads_back_as_it_was(tmp_path, seed):
    random = np.random.default_rng(seed)
    path = write_midi(tmp_path / "a.mid", [random_notes(random, 80) for _ in range(2)], meter=(3, 4), tempo=400_000)
    song = midi.read_song(path, Scheme())
    midi.write_song(tmp_path / "b.mid", song)
    again = midi.read_song(tmp_path / "b.mid", Scheme())
    assert again.notes[:, [0, 1, 2, 4]].tolist() == song.notes[:, [0, 1, 2, 4]].tolist()
    for name in ("bars", "meters", "tempos"):
        assert getattr(again, name).tolist() == getattr(song, name).tolist()
    assert song.bar_start(2) == 48
    assert song.bar_lines(48).tolist() == [0, 24, 48]


def test_bar_lines_end_where_they_are_told_to():
    """Also before a change of meter, and before the song."""
    song = make_song(
        np.empty((0, 5), np.int32), np.array([[0, 3, 4], [100, 4, 4]], np.int32), np.empty((0, 2), np.int32), Scheme()
    )
    every = [0, 24, 48, 72, 96, 100, 132, 164]
    for until in range(-1, 170):
        assert song.bar_lines(until).tolist() == [line for line in every if line <= until]
