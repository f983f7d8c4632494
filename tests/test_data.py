import multiprocessing
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import changed

from midigen_jax import config as cfg
from midigen_jax import vocab
from midigen_jax.data import loader
from midigen_jax.data.corpus import Corpus, open_corpus
from midigen_jax.data.encode import encode_folder
from midigen_jax.data.loader import Lanes
from midigen_jax.errors import InputError
from midigen_jax.training.sharding import make_mesh, make_put
from midigen_jax.vocab import NO_SONG, NO_TARGET, Scheme, Vocabulary


def read_all(lanes: Lanes, stop: int, size: int = 37) -> dict[str, np.ndarray]:
    parts = [lanes.read(start, min(start + size, stop)) for start in range(0, stop, size)]
    return {name: np.concatenate([part[name] for part in parts], 1) for name in loader.BATCH_ARRAYS}


def corpus_of(lengths: list[int]) -> Corpus:
    """Songs of these lengths in memory; token i of the corpus is i."""
    offsets, indices = np.concatenate([[0], np.cumsum(lengths)]), np.arange(sum(lengths), dtype=np.uint16)
    nothing = np.zeros(len(lengths))
    arrays = [indices, indices // 7, indices % 7, offsets]
    return Corpus(*[Path(), Vocabulary(), *arrays, *[nothing] * 2, [], *[nothing] * 5, "fingerprint"])


def planned_by_hand(
    lengths: list[int], orders: list[np.ndarray], n_lanes: int
) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
    """The plan in plain Python: the corpus indices in each lane, and its songs (epoch, song)."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    indices, songs = [[[] for _ in range(n_lanes)] for _ in range(2)]
    for epoch, order in enumerate(orders):
        for song in order.tolist():
            lane = min(range(n_lanes), key=lambda lane: (len(indices[lane]), lane))
            indices[lane] += range(offsets[song], offsets[song + 1])
            songs[lane].append((epoch, song))
    return indices, songs


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    hosts=st.integers(1, 3),
    lanes_a_host=st.integers(1, 3),
    tokens_per_step=st.integers(1, 50),
    epochs=st.integers(1, 5),
    seed=st.integers(0, 3),
    backwards=st.booleans(),
)
@settings(max_examples=examples(60), deadline=None)
def test_each_epoch_has_every_token_once_in_song_order(
    lengths, hosts, lanes_a_host, tokens_per_step, epochs, seed, backwards
):
    """For any songs, lanes, steps and hosts, read in any order."""
    corpus, n_lanes = corpus_of(lengths), hosts * lanes_a_host
    whole = Lanes(corpus, np.arange(len(lengths)), n_lanes, seed=seed, epochs=epochs)
    n_steps = -(-whole.length() // tokens_per_step)
    orders = []
    for epoch in range(epochs):
        plan = whole.plan(epoch)
        assert sorted(plan.songs.tolist()) == list(range(len(lengths)))
        orders.append(np.random.default_rng([seed, epoch]).permutation(len(lengths)))
    indices, songs = planned_by_hand(lengths, orders, n_lanes)
    shares = [range(host * lanes_a_host, (host + 1) * lanes_a_host) for host in range(hosts)]
    arrays = []
    for rows in shares:
        lanes = Lanes(corpus, np.arange(len(lengths)), n_lanes, rows=rows, seed=seed, epochs=epochs)
        steps = loader.Steps(lanes, tokens_per_step, n_steps)
        read = {i: steps[i] for i in (reversed(range(n_steps)) if backwards else range(n_steps))}
        arrays.append(
            {name: np.concatenate([read[i][name] for i in range(n_steps)], 1) for name in loader.BATCH_ARRAYS}
        )
    got = {name: np.concatenate([host[name] for host in arrays]) for name in loader.BATCH_ARRAYS}
    for lane in range(n_lanes):
        n = len(indices[lane])
        assert got["tokens"][lane, :n].tolist() == indices[lane]
        assert (got["tokens"][lane, n:] == vocab.PAD).all()
        assert (got["song"][lane, n:] == NO_SONG).all()
        assert got["position"][lane, :n].tolist() == [index % 7 for index in indices[lane]]
        assert got["bar"][lane, :n].tolist() == [index // 7 for index in indices[lane]]
        numbers = np.repeat(np.arange(len(songs[lane])), [lengths[song] for _, song in songs[lane]])
        assert got["song"][lane, :n].tolist() == numbers.tolist()
        ends = np.append(numbers[1:] != numbers[:-1], True) if n else np.zeros(0, bool)
        assert (got["targets"][lane, :n] == np.where(ends, NO_TARGET, [*indices[lane][1:], 0][:n])).all()
        assert (got["targets"][lane, n:] == NO_TARGET).all()


def songs_on(lane_tokens) -> list[bytes]:
    """The whole songs of a lane: between one sos and the next."""
    starts = np.flatnonzero(lane_tokens == vocab.SOS)
    return [lane_tokens[a:b].astype(np.uint16).tobytes() for a, b in pairwise(starts)]


def test_an_epoch_holds_every_song_once(corpus):
    songs = corpus.songs_of("train")
    lanes = Lanes(corpus, songs, 3, seed=5, epochs=1)
    lanes.read(0, 0)
    arrays = read_all(lanes, lanes.length() + 1)
    seen = []
    for tokens in arrays["tokens"]:
        seen += songs_on(np.append(tokens[tokens != vocab.PAD], vocab.SOS))
    expected = [corpus.tokens[corpus.offsets[i] : corpus.offsets[i + 1]].tobytes() for i in songs]
    assert sorted(seen) == sorted(expected)


def test_a_mixture_repeats_songs_by_folder(corpus):
    """Whole numbers exactly, fractions on average; each reading of a song in a key of its own."""
    names = [f"{'abc'[i % 3]}/{name}" for i, name in enumerate(corpus.names)]
    mixed = corpus._replace(names=names)
    repeats = loader.repeats_of(mixed, cfg.Data(mixture="a=3 b/=0.5"))
    songs, epochs = corpus.songs_of("train"), 20
    lanes = Lanes(mixed, songs, 2, seed=4, epochs=epochs, repeats=repeats, transpose=5)
    lanes.length()
    read = np.zeros((epochs, len(names)), int)
    keys: dict[int, set[int]] = {}
    for number in range(epochs):
        plan = lanes.plan(number)
        np.add.at(read[number], plan.songs, 1)
        for song, semitones in zip(plan.songs.tolist(), plan.semitones.tolist(), strict=True):
            if number == 0:
                keys.setdefault(song, set()).add(semitones)
    of_folder = {letter: read[:, [i for i in songs if names[i][0] == letter]] for letter in "abc"}
    assert (of_folder["a"] == 3).all()
    assert (of_folder["c"] == 1).all()
    assert set(of_folder["b"].ravel()) == {0, 1}
    assert 0.3 < of_folder["b"].mean() < 0.7
    assert (of_folder["b"].mean(0) < 1).all()
    assert any(len(several) > 1 for several in keys.values())
    with pytest.raises(InputError, match="no training songs in a folder d"):
        loader.repeats_of(mixed, cfg.Data(mixture="d=2"))
    with pytest.raises(InputError, match="no song is read in every epoch"):
        loader.repeats_of(mixed, cfg.Data(mixture="a=0 b=0.5 c=0"))
    for wrong in ("a", "a=x", "=2", "a=-1", "a=1e9"):
        with pytest.raises(InputError, match=r"data\.mixture"):
            cfg.Config(data=cfg.Data(mixture=wrong))


def test_lanes_have_no_padding_and_differ_by_epoch_and_seed(corpus):
    songs = corpus.songs_of("train")
    arrays = read_all(Lanes(corpus, songs, 2, seed=1), 20_000)
    assert (arrays["tokens"] != vocab.PAD).all()
    assert (arrays["song"] >= 0).all()
    for lane in range(2):
        order = songs_on(arrays["tokens"][lane])
        assert order[: len(songs) // 2] != order[len(songs) // 2 : 2 * (len(songs) // 2)]
        # The song id counts the songs begun, and changes at every sos.
        assert (arrays["song"][lane] == np.cumsum(arrays["tokens"][lane] == vocab.SOS) - 1).all()
    other = read_all(Lanes(corpus, songs, 2, seed=2), 2000)
    assert (other["tokens"] != arrays["tokens"][:, :2000]).any()


def test_targets_are_the_next_tokens_of_the_song(corpus):
    arrays = read_all(Lanes(corpus, corpus.songs_of("train"), 2, seed=0), 5000)
    tokens, targets = arrays["tokens"], arrays["targets"]
    after_eos = tokens == vocab.EOS
    assert after_eos.any()
    assert (targets[after_eos] == NO_TARGET).all()
    assert (targets[:, :-1] == tokens[:, 1:])[~after_eos[:, :-1]].all()


def same(one, other) -> bool:
    return one.keys() == other.keys() and all((np.asarray(one[name]) == np.asarray(other[name])).all() for name in one)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_step_is_the_same_from_any_start_and_any_number_of_processes(small, corpus, workers):
    config = changed(small, train__steps=60, data__transpose=3)
    lanes = Lanes(corpus, corpus.songs_of("train"), 3, seed=0, transpose=3)
    steps = loader.Steps(lanes, 32, 60)
    batches = loader.training_steps(changed(config, data__workers=workers), corpus, first=41)
    late = list(batches)
    batches.close()
    assert len(late) == 19
    for i, step in enumerate(late, 41):
        assert all(x.shape == (3, 32) and x.dtype == np.int32 for x in step.values())
        assert same(step, steps[i])


@pytest.fixture(scope="module")
def loud_corpus(band_folder, tmp_path_factory) -> Corpus:
    out = tmp_path_factory.mktemp("loud") / "corpus"
    encode_folder(band_folder, out, scheme=Scheme(multi=True, velocities=True), fractions=(1, 0, 0))
    return open_corpus(out)


@pytest.mark.parametrize("changes", [{}, {"data__transpose": 30, "data__velocity_offset": 8}, {"data__modulate": 0.8}])
def test_all_locations_of_the_corpus_give_the_same_batches(small, corpus, loud_corpus, changes):
    for songs in (corpus, loud_corpus):
        steps = {}
        for location in ("disk", "host", "device"):
            config = changed(small, data__location=location, train__steps=30, **changes)
            put = make_put(config, songs, make_mesh(config))
            steps[location] = [jax.device_get(put(step)) for step in loader.training_steps(config, songs)]
        assert len(steps["disk"]) == 30
        for i, step in enumerate(steps["disk"]):
            assert same(step, steps["host"][i])
            assert same(step, steps["device"][i])


def test_loader_processes_end_with_the_main_process(small, corpus, tmp_path):
    """Even if it is killed and can't tell them."""
    code = f"""
import os, signal, multiprocessing
from pathlib import Path
from midigen_jax import config as cfg
from midigen_jax.data import loader
from midigen_jax.data.corpus import open_corpus
if __name__ == "__main__":
    config = cfg.override(cfg.Config(), ["data.workers=2"])
    batches = loader.training_steps(config, open_corpus(Path({str(corpus.path)!r})))
    next(batches)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    (tmp_path / "main.py").write_text(code)
    # The pipe ends when the last of them does.
    said = subprocess.run([sys.executable, "main.py"], cwd=tmp_path, stdout=subprocess.PIPE, timeout=60).stdout
    assert len(said.split()) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_if_a_loader_process_is_killed_threads_take_over(small, corpus, workers, capsys):
    """Half of its last batch is in the pipe, which holds 64 kB."""
    config = changed(small, data__lanes=16, data__segment=256, memory__knn=0, train__steps=24)
    expected = list(loader.training_steps(config, corpus, first=3))
    batches = loader.training_steps(changed(config, data__workers=workers), corpus, first=3)
    read = [next(batches) for _ in range(4)]
    assert read[0]["tokens"].nbytes * 5 > 1 << 16
    time.sleep(0.5)
    processes = multiprocessing.active_children()
    assert len(processes) == workers
    os.kill(processes[0].pid, signal.SIGKILL)
    read += batches
    assert len(read) == 21
    assert all(same(x, y) for x, y in zip(read, expected, strict=True))
    assert "the run continues with threads instead" in capsys.readouterr().out
    assert not multiprocessing.active_children()


def test_whole_songs_cover_every_token_once(corpus):
    songs = corpus.songs_of("validation")
    steps = list(loader.whole_songs(corpus, songs, n_lanes=3, tokens_per_step=50))
    counted = sum(int((step["targets"] != NO_TARGET).sum()) for step in steps)
    assert counted == np.diff(corpus.offsets)[songs].sum() - len(songs)
    assert (steps[-1]["song"] == NO_SONG).any()


def test_transposition_keeps_rhythm_and_stays_in_range(corpus):
    songs = corpus.songs_of("train")
    plain = read_all(Lanes(corpus, songs, 2, seed=0), 3000)
    shifted = read_all(Lanes(corpus, songs, 2, seed=0, transpose=30), 3000)
    # Another draw of the order would differ in rests and durations too.
    notes, also = ((x["tokens"] >= vocab.NOTE_0) & (x["tokens"] < vocab.DURATION_0) for x in (plain, shifted))
    assert (notes == also).all()
    assert (plain["tokens"] == shifted["tokens"])[~notes].all()
    by_song = {}
    difference = (shifted["tokens"] - plain["tokens"])[notes]
    lane = np.repeat([[0], [1]], 3000, 1)[notes]
    for key, value in zip(zip(lane, plain["song"][notes], strict=True), difference, strict=True):
        by_song.setdefault(key, set()).add(int(value))
    assert all(len(values) == 1 for values in by_song.values())
    assert len(set.union(*by_song.values())) > 3


def test_modulated_songs_change_their_key_once_at_a_bar_line(corpus):
    songs, n = corpus.songs_of("train"), 6000
    plain, modulated = (read_all(Lanes(corpus, songs, 2, seed=0, modulate=share), n) for share in (0.0, 0.7))
    assert all((plain[name] == modulated[name]).all() for name in ("bar", "position", "song"))
    notes = (plain["tokens"] >= vocab.NOTE_0) & (plain["tokens"] < vocab.DURATION_0)
    difference = modulated["tokens"] - plain["tokens"]
    assert (difference[~notes] == 0).all()
    shifts, whole = [], 0
    for lane in range(2):
        for song in range(int(plain["song"][lane].max())):  # not the last one, which goes on
            of_song = (plain["song"][lane] == song) & notes[lane]
            by_note, bar = difference[lane][of_song], plain["bar"][lane][of_song]
            whole += 1
            if by_note.any():
                change = int(np.argmax(by_note != 0))
                assert (by_note[:change] == 0).all()
                assert (by_note[change:] == by_note[-1]).all()
                assert bar[change] > bar[change - 1]
                assert 0.1 < bar[change] / bar[-1] < 0.9  # a bar without notes may lie between
                shifts.append(int(by_note[-1]))
    assert 0.4 < len(shifts) / whole < 0.95
    assert set(shifts) <= set(loader.MODULATIONS)
    assert len(set(shifts)) > 3


@pytest.mark.parametrize("n_lanes", [1, 40])
def test_more_lanes_than_songs(corpus, n_lanes):
    songs = corpus.songs_of("validation")
    arrays = Lanes(corpus, songs, n_lanes, seed=0).read(0, 3000)
    assert (arrays["tokens"] != vocab.PAD).all()


def test_velocities_stay_in_range_and_drums_keep_their_notes(loud_corpus):
    songs, n = loud_corpus.songs_of("train"), 4000
    plain = read_all(Lanes(loud_corpus, songs, 2, seed=0), n)["tokens"]
    loud = read_all(Lanes(loud_corpus, songs, 2, seed=0, transpose=5, velocity_offset=10), n)["tokens"]
    first = vocab.velocity_0(loud_corpus.vocabulary.scheme)
    velocities, notes = plain >= first, (plain >= vocab.NOTE_0) & (plain < vocab.DURATION_0)
    assert ((loud >= first) == velocities).all()
    assert loud.max() < first + vocab.N_VELOCITIES
    assert (loud != plain)[velocities].any()
    assert (loud == plain)[~velocities & ~notes].all()
    instrument = np.where((plain >= vocab.INSTRUMENT_0) & (plain < first), np.arange(n), 0)
    instrument = np.take_along_axis(plain, np.maximum.accumulate(instrument, 1), 1)
    drums = notes & (instrument == vocab.INSTRUMENT_0 + vocab.DRUMS)
    assert drums.any()
    assert (loud == plain)[drums].all()
    assert (loud != plain)[notes & ~drums].any()
