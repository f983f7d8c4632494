"""A logits processor that keeps simultaneous notes in the order of encoded songs.

That order is: highest pitch first, in MidiTok's tokens lowest first; where instruments are kept apart, by instrument,
and so within each. A model that may write them in any order can stay at one time without end. Letters of shapes are
those of `shapes`; B are rows.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ..music.song import PITCHES
from ..shapes import Array, Bool, Int
from ..vocab import NO_INSTRUMENT, SOUNDS, Kind, Vocabulary

# At one time, where instruments are not kept apart. One of 10,000 notes of the music21 corpus is a fifth unison.
MAX_UNISONS = 4
NO_RANK = -1
_PASSING = (Kind.REST, Kind.SHIFT, Kind.BAR, Kind.POSITION)


class NoteOrder(NamedTuple):
    """The last note at the current time of each row."""

    rank: Int[Array, " B"]  # its place in the order; NO_RANK: there is none yet
    unisons: Int[Array, " B"]  # notes of this rank


class _TokenNotes(NamedTuple):
    """What matters of each token's notes, int32 [V]; ranks are within an instrument."""

    first: np.ndarray  # rank of the first note, if only its instrument precedes it; else NO_RANK
    first_unisons: np.ndarray  # notes of its rank in the token
    named: np.ndarray  # instrument with which the token begins; else NO_INSTRUMENT
    below: np.ndarray  # the instrument before must come before this one, whose notes follow its own
    last: np.ndarray  # rank of the last note, if no rest follows it; else NO_RANK
    last_unisons: np.ndarray  # notes of its rank in the token


def _token_notes(vocabulary: Vocabulary) -> _TokenNotes:
    found = _TokenNotes(*np.full((6, vocabulary.size), NO_RANK, np.int32))
    found.named[:], found.below[:] = NO_INSTRUMENT, NO_INSTRUMENT + 1
    for token in range(vocabulary.size):
        ranks: list[int] = []  # of the notes since time last passed, or the last instrument
        preceded = changed = False  # by anything but the instrument at the beginning; the instrument
        parts = vocabulary.parts(token)
        # The velocity and the duration of a note that began before.
        while len(parts) > 1 and parts[0][0] in (Kind.VELOCITY, Kind.DURATION):
            parts = parts[1:]
        for i, (kind, value) in enumerate(parts):
            if kind in _PASSING:
                ranks, preceded = [], True
            elif kind == Kind.INSTRUMENT:
                if i == 0:
                    found.named[token] = value
                elif ranks and not changed:
                    found.below[token] = value
                ranks, changed, preceded = [], True, preceded or i > 0
            elif kind in SOUNDS:
                ranks.append(value if vocabulary.rises else PITCHES - 1 - value)
                if not preceded and ranks[-1] == ranks[0]:
                    found.first[token], found.first_unisons[token] = ranks[0], len(ranks)
        if ranks:
            found.last[token], found.last_unisons[token] = ranks[-1], ranks.count(ranks[-1])
    return found


def init_note_order(rows: Int[Array, " B"]) -> NoteOrder:
    """Of rows that are before a rest, or before their first note."""
    return NoteOrder(jnp.full_like(rows, NO_RANK), jnp.zeros_like(rows))


def note_order_mask(order: NoteOrder, instrument: Int[Array, " B"], vocabulary: Vocabulary) -> Bool[Array, "B V"]:
    """The tokens whose notes may follow in order.

    Args:
        instrument: the current one.
    """
    notes = _token_notes(vocabulary)
    last, current = order.rank[:, None], instrument[:, None]
    if not vocabulary.scheme.multi:
        if not vocabulary.has_unisons:
            return (notes.first == NO_RANK) | (notes.first > last)
        again = order.unisons[:, None] + notes.first_unisons <= MAX_UNISONS
        return (notes.first == NO_RANK) | (notes.first > last) | ((notes.first == last) & again)
    # A token names an instrument only if another one played the note before, be it at another time.
    named = (notes.named > last // PITCHES) & (notes.named != current)
    unnamed = ((notes.first == NO_RANK) | (PITCHES * current + notes.first > last)) & (current < notes.below)
    return jnp.where(notes.named != NO_INSTRUMENT, named, unnamed)


def update(
    order: NoteOrder,
    token: Int[Array, " B"],
    advances: Bool[Array, " B"],
    instrument: Int[Array, " B"],
    vocabulary: Vocabulary,
) -> NoteOrder:
    """The order after a token.

    Args:
        advances: whether the token advances time.
        instrument: the current one after the token.
    """
    notes = _token_notes(vocabulary)
    within, unisons = jnp.asarray(notes.last)[token], jnp.asarray(notes.last_unisons)[token]
    rank = within + PITCHES * instrument if vocabulary.scheme.multi else within
    before = NoteOrder(jnp.where(advances, NO_RANK, order.rank), jnp.where(advances, 0, order.unisons))
    unisons = jnp.where(rank == before.rank, before.unisons + unisons, unisons)
    has_notes = within != NO_RANK
    return NoteOrder(jnp.where(has_notes, rank, before.rank), jnp.where(has_notes, unisons, before.unisons))
