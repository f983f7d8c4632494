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
from . import note_order, recent_bars
from .logits_processors import SettingArrays, instrument_after, time_passed
from .note_order import NoteOrder
from .recent_bars import RecentBars

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
    recent: RecentBars


class Timeline(NamedTuple):
    """The meters of each row, and its limits."""

    bars: Int[Array, "B n 3"]  # start, bar length and number of the first bar of every meter
    prompt_end: Int[Array, " B"]  # no sampled event begins before this time
    eos_from: Int[Array, " B"]  # the song may end from this time on
    end: Int[Array, " B"]  # the row stops at this time ...
    max_drawn: Int[Array, " B"]  # ... or after this many tokens
    max_notes: Int[Array, " B"]  # in a bar


def enter_bar(state: DecodeState, timeline: Timeline) -> tuple[DecodeState, Int[Array, " B"]]:
    """The state in the bar of the next token, and the position of that token in the bar."""
    bar, position, length = bar_position(state.next_time, timeline)
    return state._replace(recent=recent_bars.enter_bar(state.recent, bar, length)), position


def allowed_tokens(
    state: DecodeState, timeline: Timeline, position: Int[Array, " B"], settings: SettingArrays, vocabulary: Vocabulary
) -> Bool[Array, "B V"]:
    """The tokens that may come next, by the grammar and by every logits processor that excludes tokens.

    Before the prompt's end only rests that lead to it are allowed; an invention begins with a note.

    Args:
        position: of the next token in its bar, which `enter_bar` gives.
    """
    next_state, _ = vocabulary.grammar
    ids = jnp.arange(vocabulary.size)
    may_end = (state.next_time >= timeline.eos_from)[:, None]
    legal = jnp.asarray(next_state >= 0)[state.grammar] & ((ids != vocab.EOS) | may_end)
    passes = time_passed(state.grammar[:, None], ids, position[:, None], vocabulary)
    missing = jnp.maximum(timeline.prompt_end - state.next_time, 0)[:, None]
    to_prompt_end = jnp.asarray(vocabulary.waits)[state.grammar]
    to_prompt_end |= (passes >= missing) & ~jnp.asarray(recent_bars.holds_note(vocabulary))
    begins = ((state.drawn == 0) & (timeline.prompt_end == 0))[:, None]
    legal &= jnp.where(missing > 0, to_prompt_end, ~begins | ~jnp.asarray(vocabulary.passes_time_first))
    if vocabulary.clock.from_bar.any():
        legal &= moves_forward(state.grammar, position, vocabulary)
    legal &= note_order.note_order_mask(state.order, state.instrument, vocabulary)
    legal &= settings.allowed[settings.kind[state.instrument]]
    excluded = recent_bars.excluded_tokens(
        state.recent, state.grammar, state.next_time, position, timeline.max_notes, settings, vocabulary
    )
    without = legal & ~(excluded & (missing == 0))
    return jnp.where(without.any(1, keepdims=True), without, legal)


def advance(
    state: DecodeState, token: Int[Array, " B"], position: Int[Array, " B"], vocabulary: Vocabulary
) -> DecodeState:
    """The state after a token at a position in its bar."""
    next_state, _ = vocabulary.grammar
    instrument = instrument_after(state.instrument, token, vocabulary)
    passed, time = time_passed(state.grammar, token, position, vocabulary), state.next_time
    if vocabulary.clock.arrives.any():
        led = time_passed(state.grammar, jnp.asarray(vocabulary.clock.first)[token], position, vocabulary)
        time += jnp.where(jnp.asarray(vocabulary.clock.arrives)[token], led, 0)
    return DecodeState(
        token,
        jnp.asarray(next_state, jnp.int32)[state.grammar, token],
        instrument,
        time,
        state.next_time + passed,
        state.drawn + 1,
        state.stream,
        note_order.update(state.order, token, passed > 0, instrument, vocabulary),
        recent_bars.update(state.recent, token, state.grammar, state.next_time, position, vocabulary),
    )


def moves_forward(grammar: Int[Array, " B"], position: Int[Array, " B"], vocabulary: Vocabulary) -> Bool[Array, "B V"]:
    """The tokens that do not lead back in the bar, nor to a position that was named before."""
    led = jnp.asarray(vocabulary.clock.position)[jnp.asarray(vocabulary.state_context)[grammar]]
    least = jnp.where(jnp.asarray(vocabulary.begins_bar)[grammar], position, position + 1)
    return (led < 0) | (led >= least[:, None])


def bar_position(
    time: Int[Array, " B"], timeline: Timeline
) -> tuple[Int[Array, " B"], Int[Array, " B"], Int[Array, " B"]]:
    """The bar at a time, the position in the bar, and the bar's length."""
    i = jnp.sum(timeline.bars[:, :, 0] <= time[:, None], 1) - 1
    start, length, first_bar = jnp.take_along_axis(timeline.bars, i[:, None, None], 1)[:, 0].T
    since = time - start
    return first_bar + since // length, since % length, length


def where_active(active: Bool[Array, " B"], new: Any, old: Any) -> Any:
    """Trees of arrays [B, ...]: the new one where a row is active."""
    return jax.tree.map(lambda n, o: jnp.where(active.reshape(-1, *[1] * (n.ndim - 1)), n, o), new, old)
