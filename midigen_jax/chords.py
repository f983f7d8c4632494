"""Notes that begin together come in one order, as songs are encoded: the highest first; where instruments are kept
apart, by instrument, and the highest of each first.

A model that may write them in any order can stay on one step for ever. Letters of shapes are those of `shapes`; B are
rows.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from . import vocab
from .controls import NO_INSTRUMENT
from .shapes import Array, Bool, Int
from .vocab import Vocabulary

# On one step, where instruments are not kept apart. Of 10,000 notes of the music21 corpus one is a fifth unison.
MOST_UNISONS = 4
NO_RANK = -1
PITCHES = 128


class Chord(NamedTuple):
    """The last of the notes on the step on which a row stands."""

    rank: Int[Array, " B"]  # in the order of the notes; NO_RANK: there is none yet
    unisons: Int[Array, " B"]  # notes of this rank


class _Notes(NamedTuple):
    """What counts of each token's notes, int32 [V]; ranks are those within an instrument."""

    first: np.ndarray  # rank of the first, if nothing stands before it but its instrument; else NO_RANK
    first_unisons: np.ndarray  # notes of its rank that come with it
    named: np.ndarray  # instrument with which the token begins; else NO_INSTRUMENT
    below: np.ndarray  # the instrument that plays before must come before this one, whose notes follow its own
    last: np.ndarray  # rank of the last, if no rest follows it; else NO_RANK
    last_unisons: np.ndarray  # notes of its rank that come with it


def _notes(vocabulary: Vocabulary) -> _Notes:
    found = _Notes(*np.full((6, vocabulary.size), NO_RANK, np.int32))
    found.named[:], found.below[:] = NO_INSTRUMENT, NO_INSTRUMENT + 1
    for token, parts in enumerate(vocabulary.spelled):
        ranks: list[int] = []  # of the notes since the last rest or instrument
        preceded = renamed = False  # by anything but the instrument at the beginning; by any instrument
        for i, part in enumerate(parts):
            if part == vocab.SEP:
                ranks, preceded = [], True
            elif vocab.INSTRUMENT_0 <= part < vocab.velocity_0(vocabulary.scheme):
                if i == 0:
                    found.named[token] = part - vocab.INSTRUMENT_0
                elif ranks and not renamed:
                    found.below[token] = part - vocab.INSTRUMENT_0
                ranks, renamed, preceded = [], True, preceded or i > 0
            elif vocab.NOTE_0 <= part < vocab.DURATION_0:
                ranks.append(vocab.DURATION_0 - 1 - part)
                if not preceded and ranks[-1] == ranks[0]:
                    found.first[token], found.first_unisons[token] = ranks[0], len(ranks)
        if ranks:
            found.last[token], found.last_unisons[token] = ranks[-1], ranks.count(ranks[-1])
    return found


def init_chord(rows: Int[Array, " B"]) -> Chord:
    """Of rows that stand before a rest, or before their first note."""
    return Chord(jnp.full_like(rows, NO_RANK), jnp.zeros_like(rows))


def may_follow(chord: Chord, instrument: Int[Array, " B"], vocabulary: Vocabulary) -> Bool[Array, "B V"]:
    """The tokens whose notes come in the order, one after the other and after the chord's.

    Args:
        instrument: that plays.
    """
    notes = _notes(vocabulary)
    last, plays = chord.rank[:, None], instrument[:, None]
    if not vocabulary.scheme.multi:
        again = chord.unisons[:, None] + notes.first_unisons <= MOST_UNISONS
        return (notes.first == NO_RANK) | (notes.first > last) | ((notes.first == last) & again)
    # An instrument is named if another has played the note before, be it on another step.
    named = (notes.named > last // PITCHES) & (notes.named != plays)
    unnamed = ((notes.first == NO_RANK) | (PITCHES * plays + notes.first > last)) & (plays < notes.below)
    return jnp.where(notes.named != NO_INSTRUMENT, named, unnamed)


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
    within, unisons = jnp.asarray(notes.last)[token], jnp.asarray(notes.last_unisons)[token]
    rank = within + PITCHES * instrument if vocabulary.scheme.multi else within
    before = Chord(jnp.where(moves, NO_RANK, chord.rank), jnp.where(moves, 0, chord.unisons))
    unisons = jnp.where(rank == before.rank, before.unisons + unisons, unisons)
    sounds = within != NO_RANK
    return Chord(jnp.where(sounds, rank, before.rank), jnp.where(sounds, unisons, before.unisons))
