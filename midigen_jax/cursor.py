"""Where each row of a batch is while it is sampled, and what may come next there.

Letters of shapes are those of `shapes`; B are rows. Times are in steps.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import chords, controls, vocab
from .chords import Chord
from .controls import Echo, Rules
from .shapes import Array, Bool, Int
from .vocab import Vocabulary

NEVER = np.iinfo(np.int32).max  # a step that no song reaches


class Cursor(NamedTuple):
    """Where each row is."""

    token: Int[Array, " B"]  # the last one; it has not been read yet
    state: Int[Array, " B"]  # of the grammar, after it
    instrument: Int[Array, " B"]  # that plays
    step: Int[Array, " B"]  # where it stands
    now: Int[Array, " B"]  # where the next token will stand
    drawn: Int[Array, " B"]  # tokens that were drawn
    stream: Int[Array, " B"]  # of random numbers, from which the row draws, whatever place it has in a batch
    chord: Chord  # on the step where it stands
    echo: Echo


class Timeline(NamedTuple):
    """What times mean for each row, and where it begins and ends."""

    bars: Int[Array, "B n 3"]  # first step, steps a bar, number of the first bar, of every meter
    prompt_end: Int[Array, " B"]  # no sampled event begins before this step
    eos_from: Int[Array, " B"]  # from this step on the song may end by itself
    end: Int[Array, " B"]  # the row stops when time has come so far ...
    most: Int[Array, " B"]  # ... or when so many tokens were drawn


def allowed(
    cursor: Cursor, timeline: Timeline, bar: Int[Array, " B"], rules: Rules, vocabulary: Vocabulary
) -> Bool[Array, "B V"]:
    """The tokens that may come next, by the grammar, the order of notes that begin together, and the rules.

    Before the prompt's end nothing but rests that lead up to it; an invention begins with a note.

    Args:
        bar: steps of the bar of each row's last token.
    """
    next_state, _ = vocabulary.grammar
    ids = jnp.arange(vocabulary.size)
    ending = (cursor.now >= timeline.eos_from)[:, None]
    legal = jnp.asarray(next_state >= 0)[cursor.state] & ((ids != vocab.EOS) | ending)
    missing = jnp.clip(timeline.prompt_end - cursor.now, 0, vocab.MAX_DURATION)[:, None]
    resting = jnp.isin(cursor.state, jnp.array([vocab.REST, vocab.START_REST]))[:, None]
    leading_up = jnp.where(resting, ids >= vocab.DURATION_0 + missing, ids == vocab.SEP)
    begins = (cursor.token == vocab.SOS)[:, None]
    notes = jnp.asarray(vocabulary.begins_with_note)
    legal &= jnp.where(missing > 0, leading_up, ~begins | notes)
    legal &= chords.may_follow(cursor.chord, cursor.instrument, vocabulary)
    legal &= rules.may_come[rules.kind[cursor.instrument]]
    circles = controls.goes_in_circles(cursor.echo, cursor.state, cursor.now, bar, rules, vocabulary)
    straight = legal & ~(circles & (missing == 0))
    return jnp.where(straight.any(1, keepdims=True), straight, legal)


def advance(cursor: Cursor, token: Int[Array, " B"], vocabulary: Vocabulary) -> Cursor:
    """The cursor after a token."""
    next_state, steps = vocabulary.grammar
    instrument = controls.instrument_after(cursor.instrument, token, vocabulary)
    passed = jnp.asarray(steps)[cursor.state, token]
    return Cursor(
        token,
        jnp.asarray(next_state, jnp.int32)[cursor.state, token],
        instrument,
        cursor.now,
        cursor.now + passed,
        cursor.drawn + 1,
        cursor.stream,
        chords.hear(cursor.chord, token, passed > 0, instrument, vocabulary),
        controls.hear(cursor.echo, cursor.state, token, cursor.now, vocabulary),
    )


def position(cursor: Cursor, timeline: Timeline) -> tuple[Int[Array, " B"], Int[Array, " B"], Int[Array, " B"]]:
    """Bar of the last token, its step within the bar, and the bar's steps."""
    i = jnp.sum(timeline.bars[:, :, 0] <= cursor.step[:, None], 1) - 1
    first_step, bar_length, first_bar = jnp.take_along_axis(timeline.bars, i[:, None, None], 1)[:, 0].T
    since = cursor.step - first_step
    return first_bar + since // bar_length, since % bar_length, bar_length


def choose(active: Bool[Array, " B"], new: Any, old: Any) -> Any:
    """Trees of arrays [B, ...]: the new one where a row is active."""
    return jax.tree.map(lambda n, o: jnp.where(active.reshape(-1, *[1] * (n.ndim - 1)), n, o), new, old)
