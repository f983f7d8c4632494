"""The longest excerpt of notes that a song shares with other songs."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from .. import vocab
from ..kernels import score, suffix_automaton


class CommonExcerpt(NamedTuple):
    """The longest excerpt that two songs share."""

    notes: int
    song: int  # index of the other song; -1: none


def pitched(notes: np.ndarray, *, multi: bool = False) -> np.ndarray:
    """The notes without drums, by onset and from the top of each chord down.

    Args:
        notes: int [N, 5] of a `Song`.
        multi: instruments are kept apart; else all parts are pitched.

    Raises:
        ValueError: the notes have another shape.
    """
    if notes.ndim != 2 or notes.shape[1] != score.COLUMNS:
        raise ValueError(f"notes of shape {notes.shape}: give [N, {score.COLUMNS}], as in a song")
    if multi:
        notes = notes[notes[:, 3] != vocab.DRUMS]
    return notes[np.lexsort((-notes[:, 2], notes[:, 0]))]


def intervals(notes: np.ndarray) -> np.ndarray:
    """Time and semitones from each note of `pitched` to the next, as one number: int64 [N - 1], equal in every key."""
    notes = notes.astype(np.int64)
    return np.diff(notes[:, 0]) * 256 + np.diff(notes[:, 2])


def longest_common_excerpts(
    songs: Sequence[np.ndarray], others: Iterable[np.ndarray], *, multi: bool = False
) -> list[CommonExcerpt]:
    """For each song the longest run of notes that one of the other songs has too, transposed or not.

    The other songs are read once, one at a time, so they may be a stream.

    Args:
        songs: int [N, 5] each, as `Song.notes`, as are the others.
        multi: instruments are kept apart; drums are then left out.

    Raises:
        ValueError: notes have another shape.
    """
    own = [pitched(notes, multi=multi) for notes in songs]
    best = [CommonExcerpt(min(len(notes), 1), -1) for notes in own]  # a single note is in every song
    automata = {i: suffix_automaton.build(intervals(notes)) for i, notes in enumerate(own) if len(notes) > 1}
    if not automata:
        return best
    for index, other in enumerate(others):
        sequence = intervals(pitched(other, multi=multi))
        for i, automaton in automata.items():
            shared = int(suffix_automaton.longest_shared(automaton, sequence))
            if shared and shared + 1 > best[i].notes:
                best[i] = CommonExcerpt(shared + 1, index)
    return best


def longest_common_excerpt(notes: np.ndarray, others: Iterable[np.ndarray], *, multi: bool = False) -> CommonExcerpt:
    """`longest_common_excerpts` of one song."""
    return longest_common_excerpts([notes], others, multi=multi)[0]
