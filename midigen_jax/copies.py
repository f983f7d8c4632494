"""How much of a continuation was heard before: the longest stretch of notes that it shares with other songs."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from . import vocab
from .corpus import Corpus
from .kernels import copies


class Copy(NamedTuple):
    """The longest stretch that is shared."""

    notes: int
    song: int  # index of the song that has it; -1: none


def pitched(notes: np.ndarray, *, multi: bool = False) -> np.ndarray:
    """The notes without the drums, by onset and from the top of each chord down.

    Args:
        notes: int [N, 5] of a `Song`.
        multi: instruments are kept apart; else all parts are pitched.

    Raises:
        ValueError: the notes have another shape.
    """
    if notes.ndim != 2 or notes.shape[1] != 5:
        raise ValueError(f"notes of shape {notes.shape}: give [N, 5], as a song has them")
    if multi:
        notes = notes[notes[:, 3] != vocab.DRUMS]
    return notes[np.lexsort((-notes[:, 2], notes[:, 0]))]


def steps_of(notes: np.ndarray) -> np.ndarray:
    """From note to note of `pitched`, the steps that pass and the semitones: int64 [N - 1], the same in every key."""
    notes = notes.astype(np.int64)
    return np.diff(notes[:, 0]) * 256 + np.diff(notes[:, 2])


def longest_copy(notes: np.ndarray, others: Iterable[np.ndarray], *, multi: bool = False) -> Copy:
    """The longest run of notes that one of the other songs has too, transposed or not.

    Args:
        notes: int [N, 5] of a `Song`, as are those of the others.
        multi: instruments are kept apart; then the drums are left out.

    Raises:
        ValueError: notes have another shape.
    """
    notes = pitched(notes, multi=multi)
    own = steps_of(notes)
    best = Copy(min(len(notes), 1), -1)  # a note alone is in every song
    if len(own) == 0:
        return best
    automaton = copies.build(own)
    for i, other in enumerate(others):
        shared = int(copies.longest_shared(automaton, steps_of(pitched(other, multi=multi))))
        if shared and shared + 1 > best.notes:
            best = Copy(shared + 1, i)
    return best


def training_notes(corpus: Corpus) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """Indices of the training songs as they were written, and the notes of each, one after the other."""
    songs = corpus.songs_of("train")
    songs = songs[corpus.semitones[songs] == 0]
    return songs, (corpus.song(song).notes for song in songs)
