"""The state of each row between two sampled tokens, and which tokens may come next.

Letters of shapes are those of `shapes`; B are rows. Times are in grid steps.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import vocab
from ..shapes import Array, Bool, Int
from ..vocab import Vocabulary
from . import note_order, repetition
from .logits_processors import SettingArrays, instrument_after
from .note_order import NoteOrder
from .repetition import Repetition

NEVER = np.iinfo(np.int32).max  # a time that no song reaches


class DecodeState(NamedTuple):
    token: Int[Array, " B"]  # the last one; the decoder has not read it yet
    grammar: Int[Array, " B"]  # state of the grammar after it
    instrument: Int[Array, " B"]  # the current one
    time: Int[Array, " B"]  # of the token
    next_time: Int[Array, " B"]  # of the next token
    drawn: Int[Array, " B"]  # number of tokens drawn
    stream: Int[Array, " B"]  # of random numbers; a row keeps it wherever it is in a batch
    order: NoteOrder
    repetition: Repetition


class Timeline(NamedTuple):
    """The meters of each row, and its limits."""

    bars: Int[Array, "B n 3"]  # start, bar length and number of the first bar of every meter
    prompt_end: Int[Array, " B"]  # no sampled event begins before this time
    eos_from: Int[Array, " B"]  # the song may end from this time on
    end: Int[Array, " B"]  # the row stops at this time ...
    max_drawn: Int[Array, " B"]  # ... or after this many tokens


def allowed_tokens(
    state: DecodeState, timeline: Timeline, bar: Int[Array, " B"], settings: SettingArrays, vocabulary: Vocabulary
) -> Bool[Array, "B V"]:
    """The tokens that may come next, by the grammar and by every logits processor that excludes tokens.

    Before the prompt's end only rests that lead to it are allowed; an invention begins with a note.

    Args:
        bar: length of the bar of each row's last token.
    """
    next_state, _ = vocabulary.grammar
    ids = jnp.arange(vocabulary.size)
    may_end = (state.next_time >= timeline.eos_from)[:, None]
    legal = jnp.asarray(next_state >= 0)[state.grammar] & ((ids != vocab.EOS) | may_end)
    missing = jnp.clip(timeline.prompt_end - state.next_time, 0, vocab.MAX_DURATION)[:, None]
    resting = jnp.isin(state.grammar, jnp.array([vocab.REST, vocab.START_REST]))[:, None]
    to_prompt_end = jnp.where(resting, ids >= vocab.DURATION_0 + missing, ids == vocab.SEP)
    begins = (state.token == vocab.SOS)[:, None]
    notes = jnp.asarray(vocabulary.begins_with_note)
    legal &= jnp.where(missing > 0, to_prompt_end, ~begins | notes)
    legal &= note_order.note_order_mask(state.order, state.instrument, vocabulary)
    legal &= settings.allowed[settings.kind[state.instrument]]
    looping = repetition.repetition_mask(state.repetition, state.grammar, state.next_time, bar, settings, vocabulary)
    without_loops = legal & ~(looping & (missing == 0))
    return jnp.where(without_loops.any(1, keepdims=True), without_loops, legal)


def advance(state: DecodeState, token: Int[Array, " B"], vocabulary: Vocabulary) -> DecodeState:
    """The state after a token."""
    next_state, durations = vocabulary.grammar
    instrument = instrument_after(state.instrument, token, vocabulary)
    passed = jnp.asarray(durations)[state.grammar, token]
    return DecodeState(
        token,
        jnp.asarray(next_state, jnp.int32)[state.grammar, token],
        instrument,
        state.next_time,
        state.next_time + passed,
        state.drawn + 1,
        state.stream,
        note_order.update(state.order, token, passed > 0, instrument, vocabulary),
        repetition.update(state.repetition, state.grammar, token, state.next_time, vocabulary),
    )


def bar_position(state: DecodeState, timeline: Timeline) -> tuple[Int[Array, " B"], Int[Array, " B"], Int[Array, " B"]]:
    """Bar of the last token, its position in the bar, and the bar's length."""
    i = jnp.sum(timeline.bars[:, :, 0] <= state.time[:, None], 1) - 1
    start, length, first_bar = jnp.take_along_axis(timeline.bars, i[:, None, None], 1)[:, 0].T
    since = state.time - start
    return first_bar + since // length, since % length, length


def where_active(active: Bool[Array, " B"], new: Any, old: Any) -> Any:
    """Trees of arrays [B, ...]: the new one where a row is active."""
    return jax.tree.map(lambda n, o: jnp.where(active.reshape(-1, *[1] * (n.ndim - 1)), n, o), new, old)
