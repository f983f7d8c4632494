import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midigen_jax import vocab
from midigen_jax.data.corpus import training_notes
from midigen_jax.kernels import suffix_automaton
from midigen_jax.music.excerpts import CommonExcerpt, longest_common_excerpt, longest_common_excerpts


def song(*notes):
    """Notes (onset, pitch)."""
    return np.array([(onset, 4, pitch, 0, 80) for onset, pitch in notes], np.int32).reshape(-1, 5)


TUNE = [(0, 60), (8, 62), (16, 64), (16, 60), (24, 65), (40, 67)]


def test_an_excerpt_is_found_in_any_key_and_at_any_time():
    other = song((0, 50), *((onset + 100, pitch + 5) for onset, pitch in TUNE[1:5]), (400, 60))
    assert longest_common_excerpt(song(*TUNE), [song((0, 1), (3, 9)), other]) == CommonExcerpt(4, 1)
    assert longest_common_excerpt(song(*TUNE), [song(*TUNE), other]) == CommonExcerpt(6, 0)


def test_the_rhythm_counts():
    other = song(*((2 * onset, pitch) for onset, pitch in TUNE))
    assert longest_common_excerpt(song(*TUNE), [other]).notes == 2  # the two that begin together


def test_no_excerpt_spans_two_songs():
    assert longest_common_excerpt(song(*TUNE), [song(*TUNE[:3]), song(*TUNE[3:])]).notes == 3


def test_songs_that_share_nothing():
    assert longest_common_excerpt(song(), [song(*TUNE)]) == CommonExcerpt(0, -1)
    assert longest_common_excerpt(song((0, 60)), [song(*TUNE)]) == CommonExcerpt(1, -1)
    assert longest_common_excerpt(song(*TUNE), []) == CommonExcerpt(1, -1)
    assert longest_common_excerpt(song(*TUNE), [song((0, 60), (1, 20), (2, 100))]) == CommonExcerpt(1, -1)


def test_drums_are_ignored():
    drums = song((8, 36), (16, 38))
    drums[:, 3] = vocab.DRUMS
    assert longest_common_excerpt(song(*TUNE), [np.concatenate([song(*TUNE), drums])], multi=True).notes == 6
    assert longest_common_excerpt(drums, [drums], multi=True) == CommonExcerpt(0, -1)
    assert longest_common_excerpt(drums, [drums]).notes == 2  # parts are tracks, not instruments


def test_chords_are_read_from_the_top_down():
    chord = song((0, 60), (0, 64), (0, 67))
    assert longest_common_excerpt(chord, [chord[[1, 0, 2]]]) == CommonExcerpt(3, 0)


def test_notes_of_another_shape_are_refused():
    for notes, others in ((np.zeros((3, 4), int), []), (song(*TUNE), [np.zeros(5, int)])):
        with pytest.raises(ValueError, match="give"):
            longest_common_excerpt(notes, others)


def test_training_notes_leave_out_transposed_copies(corpus):
    songs, notes = training_notes(corpus)
    assert songs.tolist() == corpus.songs_of("train").tolist()
    first = next(notes)
    assert longest_common_excerpt(first[10:30], [first]).notes == 20
    transposed = np.zeros_like(corpus.semitones)
    transposed[songs[1]] = 5
    kept, notes = training_notes(corpus._replace(semitones=transposed))
    assert kept.tolist() == np.delete(songs, 1).tolist()
    assert len(list(notes)) == len(kept)


def test_training_notes_are_a_stream(corpus, monkeypatch):
    """One song at a time is decoded, and each call gives a new stream."""
    decoded = []
    song_of = type(corpus).song
    monkeypatch.setattr(type(corpus), "song", lambda self, song: decoded.append(song) or song_of(self, song))
    songs, notes = training_notes(corpus)
    assert decoded == []
    next(notes)
    assert decoded == songs[:1].tolist()
    _, again = training_notes(corpus)
    assert (next(again) == song_of(corpus, songs[0]).notes).all()


def test_many_songs_are_compared_in_one_pass_that_holds_one_song_at_a_time():
    alive = weakref.WeakValueDictionary()
    last = song(*enumerate(np.random.default_rng(0).integers(40, 80, 200).tolist()))

    def others():
        for i in range(20):
            assert len(alive) <= 1
            alive[i] = other = last[: 10 * (i + 1)].copy()
            yield other

    excerpts = [last[100:130], last[20:70], song((0, 60))]
    assert longest_common_excerpts(excerpts, others()) == [
        CommonExcerpt(30, 12),
        CommonExcerpt(50, 6),
        CommonExcerpt(1, -1),
    ]
    assert longest_common_excerpts([], others()) == []


@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2), max_size=40))
def test_the_automaton_finds_what_plain_search_finds(a, b):
    def plain():
        for length in range(min(len(a), len(b)), 0, -1):
            runs = {tuple(a[i : i + length]) for i in range(len(a) - length + 1)}
            if any(tuple(b[i : i + length]) in runs for i in range(len(b) - length + 1)):
                return length
        return 0

    automaton = suffix_automaton.build(np.array(a, np.int64))
    assert suffix_automaton.longest_shared(automaton, np.array(b, np.int64)) == plain()
