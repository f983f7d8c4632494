from itertools import pairwise

import numpy as np
import pytest

from midigen_jax import data, vocab
from midigen_jax.data import NO_SONG, NO_TARGET, Lanes


def read_all(lanes: Lanes, stop: int, size: int = 37) -> dict[str, np.ndarray]:
    parts = [lanes.read(start, min(start + size, stop)) for start in range(0, stop, size)]
    return {name: np.concatenate([part[name] for part in parts], 1) for name in data.STEP_ARRAYS}


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


def test_lanes_run_on_without_padding_and_differ_by_epoch_and_seed(corpus):
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


def test_songs_go_to_the_shortest_lane(corpus):
    lanes = Lanes(corpus, corpus.songs_of("train"), 4, seed=0)
    lanes.read(0, 10_000)
    longest = np.diff(corpus.offsets).max()
    ends = [starts[-1] for starts in lanes.starts]
    assert max(ends) - min(ends) <= longest


def test_targets_are_the_next_tokens_of_the_song(corpus):
    arrays = read_all(Lanes(corpus, corpus.songs_of("train"), 2, seed=0), 5000)
    tokens, targets = arrays["tokens"], arrays["targets"]
    after_eos = tokens == vocab.EOS
    assert after_eos.any()
    assert (targets[after_eos] == NO_TARGET).all()
    assert (targets[:, :-1] == tokens[:, 1:])[~after_eos[:, :-1]].all()


def test_any_step_can_be_read_by_itself(corpus):
    songs = corpus.songs_of("train")
    loader = data.training_steps(corpus, songs, n_lanes=3, tokens_per_step=64, n_steps=60, first=0, seed=3)
    straight = list(loader)
    assert len(straight) == 60
    late = data.training_steps(corpus, songs, n_lanes=3, tokens_per_step=64, n_steps=60, first=41, seed=3)
    for one, other in zip(straight[41:], late, strict=True):
        for name in data.STEP_ARRAYS:
            assert one[name].shape == (3, 64)
            assert (one[name] == other[name]).all()


def test_whole_songs_cover_every_token_once(corpus):
    songs = corpus.songs_of("validation")
    steps = list(data.whole_songs(corpus, songs, n_lanes=3, tokens_per_step=50))
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


@pytest.mark.parametrize("n_lanes", [1, 40])
def test_more_lanes_than_songs(corpus, n_lanes):
    songs = corpus.songs_of("validation")
    arrays = Lanes(corpus, songs, n_lanes, seed=0).read(0, 3000)
    assert (arrays["tokens"] != vocab.PAD).all()
