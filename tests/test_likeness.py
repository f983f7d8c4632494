from types import SimpleNamespace

import numpy as np
import pytest

from midigen_jax import likeness
from midigen_jax.cli import InputError
from midigen_jax.likeness import Pair
from midigen_jax.song import stretch


@pytest.fixture(scope="module")
def begun(corpus):
    return likeness.begin_songs(corpus, corpus.songs_of("train"), 4, prompt_bars=2, bars=8)


def test_songs_that_go_on_are_begun(corpus, begun):
    for one in begun:
        song = corpus.song(one.song)
        assert len(one.prompt.song.notes) > 0
        assert (one.real.notes == stretch(song, song.bar_of(one.prompt.end), 8).notes).all()
        assert one.ends == (song.n_steps <= one.prompt.end + 8 * 32)
    with pytest.raises(InputError, match="no song goes on after its first 1000 bars"):
        likeness.begin_songs(corpus, corpus.songs_of("train"), 4, prompt_bars=1000, bars=8)


def test_songs_that_go_on_as_they_did_are_like_themselves(corpus, begun):
    ends = {True: "ended by itself", False: "at the bar line"}
    takes = [SimpleNamespace(stopped=ends[one.ends]) for one in begun]
    same = [Pair(one, take, one.real) for one, take in zip(begun, takes, strict=True)]
    again = begun[0].real._replace(notes=np.array([[32 * i, 8, 60, 0, 80] for i in range(8)], np.int32))
    others = [Pair(one, takes[0], again) for one in begun]
    found = likeness.likeness(begun, {"same": same, "others": others}, corpus)
    real, written = found["real"], found["written"]
    assert written["same"] == real | {"similarity error": 0}
    assert real["longest copies"] == [len(one.real.notes) for one in begun]  # they are training songs
    assert real["measures"]["share that ends"].value == np.mean([one.ends for one in begun])
    assert written["others"]["similarity error"] > 0.9
    assert max(written["others"]["longest copies"]) < 8
    assert written["others"]["measures"]["groove similarity"].value == 1


def test_silence_counts_for_the_shares_alone(corpus, begun):
    silent = begun[0].real._replace(notes=begun[0].real.notes[:0])
    found = likeness.describe([silent, begun[0].real], [True, False], [])
    assert found["stretches with notes"] == 1
    assert found["measures"]["share that ends"].value == 0.5
    assert found["measures"]["polyphony"].value == likeness.MEASURES["polyphony"](begun[0].real)
    assert likeness.describe([silent], [True], [])["self-similarity"] == []
