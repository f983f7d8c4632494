"""Notes that begin together come in one order, as songs are encoded: the highest first; where instruments are kept
apart, by instrument, and the highest of each first.

A model that may write them in any order can stay on one step for ever. Letters of shapes are those of `shapes`; B are
rows.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from . import vocab
from .shapes import Array, Bool, Int
from .vocab import Vocabulary

# On one step, where instruments are not kept apart; 1 note in 10,000 of the music21 corpus is a fifth.
MOST_UNISONS = 4
NO_RANK = -1
PITCHES = 128


class Chord(NamedTuple):
    """The last of the notes on the step on which a row stands."""

    rank: Int[Array, " B"]  # in the order of the notes; NO_RANK: there is none yet
    unisons: Int[Array, " B"]  # notes of this rank


class _Notes(NamedTuple):
    """The first note of each token if nothing stands before it but its instrument, and the last if no rest follows it.

    All int32 [V], NO_RANK where there is no such note; the ranks are those within an instrument.
    """

    first: np.ndarray
    instrument: np.ndarray  # that the token names before its first note, or instead of one
    last: np.ndarray
    unisons: np.ndarray  # notes like the last, next to it


def _notes(vocabulary: Vocabulary) -> _Notes:
    found = _Notes(*np.full((4, vocabulary.size), NO_RANK, np.int32))
    for token, parts in enumerate(vocabulary.spelled):
        for i, part in enumerate(parts):
            if part == vocab.SEP:
                found.last[token] = NO_RANK
            elif vocab.NOTE_0 <= part < vocab.DURATION_0:
                rank = vocab.DURATION_0 - 1 - part
                found.unisons[token] = 1 if found.last[token] != rank else found.unisons[token] + 1
                found.last[token] = rank
                if i == 0 or (i == 1 and found.instrument[token] != NO_RANK):
                    found.first[token] = rank
            elif i == 0 and vocab.INSTRUMENT_0 <= part < vocab.velocity_0(vocabulary.scheme):
                found.instrument[token] = part - vocab.INSTRUMENT_0
    return found


def init_chord(rows: Int[Array, " B"]) -> Chord:
    """Of rows that stand before a rest, or before their first note."""
    return Chord(jnp.full_like(rows, NO_RANK), jnp.zeros_like(rows))


def goes_on(chord: Chord, instrument: Int[Array, " B"], vocabulary: Vocabulary) -> Bool[Array, "B V"]:
    """The tokens whose first note may follow, and all that begin with something else.

    Args:
        instrument: that plays.
    """
    notes = _notes(vocabulary)
    last = chord.rank[:, None]
    if not vocabulary.scheme.multi:
        again = chord.unisons[:, None] < MOST_UNISONS
        return (notes.first == NO_RANK) | (notes.first > last) | ((notes.first == last) & again)
    named = notes.instrument != NO_RANK
    plays = jnp.where(named, notes.instrument, instrument[:, None])
    # An instrument is named for another note than before; alone, it has its own next.
    return jnp.where(named, plays > last // PITCHES, (notes.first == NO_RANK) | (PITCHES * plays + notes.first > last))


def hear(
    chord: Chord,
    token: Int[Array, " B"],
    moves: Bool[Array, " B"],
    instrument: Int[Array, " B"],
    vocabulary: Vocabulary,
) -> Chord:
    """The chord after a token.

    Args:
        moves: whether the token moves time on.
        instrument: that plays after it.
    """
    notes = _notes(vocabulary)
    within, unisons = jnp.asarray(notes.last)[token], jnp.asarray(notes.unisons)[token]
    rank = within + PITCHES * instrument if vocabulary.scheme.multi else within
    before = Chord(jnp.where(moves, NO_RANK, chord.rank), jnp.where(moves, 0, chord.unisons))
    unisons = jnp.where(rank == before.rank, before.unisons + unisons, unisons)
    sounds = within != NO_RANK
    return Chord(jnp.where(sounds, rank, before.rank), jnp.where(sounds, unisons, before.unisons))
