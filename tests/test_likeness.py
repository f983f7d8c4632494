from types import SimpleNamespace

import numpy as np

from midigen_jax import likeness
from midigen_jax.likeness import Pair
from midigen_jax.song import cut, stretch


def pair_of(corpus, song, source, bars, stopped="at the bar line"):
    """As if the model had gone on with another song's bars."""
    whole, other = corpus.song(song), corpus.song(source)
    prompt = cut(whole, 4)
    take = SimpleNamespace(song=whole, begins=prompt.end, stopped=stopped)
    return Pair(song, take, stretch(other, 4, bars), stretch(whole, 4, bars))


def test_a_song_that_goes_on_as_it_did_is_like_itself(corpus):
    songs = corpus.songs_of("train")[:4].tolist()
    found = likeness.likeness([pair_of(corpus, song, song, 8) for song in songs], corpus, bars=8)
    for name, value in found["written"]["measures"].items():
        assert value == found["real"]["measures"][name] or name.startswith("share that ends")
    assert found["similarity error"] == 0
    lengths = [len(stretch(corpus.song(song), 4, 8).notes) for song in songs]
    assert found["written"]["longest copies"] == [n for n in lengths if n]  # they are training songs
    others = [pair_of(corpus, song, songs[0], 8, "ended by itself") for song in songs[1:]]
    found = likeness.likeness(others, corpus, bars=8)
    assert found["written"]["measures"]["share that ends within 8 bars"].value == 1
    assert found["real"]["measures"]["share that ends within 8 bars"].value == np.mean(
        [corpus.song(song).n_steps <= 12 * 32 for song in songs[1:]]
    )
    assert found["written"]["measures"]["share with a loop"].value == 0


def test_songs_long_enough_come_first(corpus):
    songs = corpus.songs_of("train")
    last = [corpus.song(song).bar_of(int(corpus.song(song).notes[-1, 0])) for song in songs.tolist()]
    chosen = likeness.songs_to_continue(corpus, songs, 5, 8)
    assert chosen == [song for song, bar in zip(songs.tolist(), last, strict=True) if bar >= 7][:5]
    assert len(likeness.songs_to_continue(corpus, songs, 99, 1000)) == len(songs)
