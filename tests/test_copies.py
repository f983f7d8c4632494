import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midigen_jax import copies, vocab
from midigen_jax.copies import Copy, longest_copy
from midigen_jax.kernels import copies as kernel


def song(*notes):
    """Notes (onset, pitch)."""
    return np.array([(onset, 4, pitch, 0, 80) for onset, pitch in notes], np.int32).reshape(-1, 5)


TUNE = [(0, 60), (8, 62), (16, 64), (16, 60), (24, 65), (40, 67)]


def test_a_stretch_is_found_in_any_key_and_at_any_time():
    other = song((0, 50), *((onset + 100, pitch + 5) for onset, pitch in TUNE[1:5]), (400, 60))
    assert longest_copy(song(*TUNE), [song((0, 1), (3, 9)), other]) == Copy(4, 1)
    assert longest_copy(song(*TUNE), [song(*TUNE), other]) == Copy(6, 0)


def test_another_rhythm_is_another_tune():
    other = song(*((2 * onset, pitch) for onset, pitch in TUNE))
    assert longest_copy(song(*TUNE), [other]).notes == 2  # the two that begin together


def test_no_stretch_crosses_from_one_song_into_another():
    assert longest_copy(song(*TUNE), [song(*TUNE[:3]), song(*TUNE[3:])]).notes == 3


def test_where_nothing_is_shared():
    assert longest_copy(song(), [song(*TUNE)]) == Copy(0, -1)
    assert longest_copy(song((0, 60)), [song(*TUNE)]) == Copy(1, -1)
    assert longest_copy(song(*TUNE), []) == Copy(1, -1)
    assert longest_copy(song(*TUNE), [song((0, 60), (1, 20), (2, 100))]) == Copy(1, -1)


def test_drums_are_left_out():
    drums = song((8, 36), (16, 38))
    drums[:, 3] = vocab.DRUMS
    assert longest_copy(song(*TUNE), [np.concatenate([song(*TUNE), drums])], multi=True).notes == 6
    assert longest_copy(drums, [drums], multi=True) == Copy(0, -1)
    assert longest_copy(drums, [drums]).notes == 2  # where parts are tracks, not instruments


def test_the_notes_of_a_chord_come_from_the_top_down():
    chord = song((0, 60), (0, 64), (0, 67))
    assert longest_copy(chord, [chord[[1, 0, 2]]]) == Copy(3, 0)


def test_notes_of_another_shape_are_refused():
    for notes, others in ((np.zeros((3, 4), int), []), (song(*TUNE), [np.zeros(5, int)])):
        with pytest.raises(ValueError, match="give"):
            longest_copy(notes, others)


def test_training_songs_are_those_as_they_were_written(corpus):
    songs, notes = copies.training_notes(corpus)
    assert songs.tolist() == corpus.songs_of("train").tolist()
    first = next(notes)
    assert longest_copy(first[10:30], [first]).notes == 20
    transposed = np.zeros_like(corpus.semitones)
    transposed[songs[1]] = 5
    kept, notes = copies.training_notes(corpus._replace(semitones=transposed))
    assert kept.tolist() == np.delete(songs, 1).tolist()
    assert len(list(notes)) == len(kept)


@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2), max_size=40))
def test_the_automaton_finds_what_plain_search_finds(a, b):
    def plain():
        for length in range(min(len(a), len(b)), 0, -1):
            runs = {tuple(a[i : i + length]) for i in range(len(a) - length + 1)}
            if any(tuple(b[i : i + length]) in runs for i in range(len(b) - length + 1)):
                return length
        return 0

    automaton = kernel.build(np.array(a, np.int64))
    assert kernel.longest_shared(automaton, np.array(b, np.int64)) == plain()
