"""Logits processors: which tokens the settings allow, and temperature, top-k, top-p and min-p.

`SettingArrays` hold the user's settings as arrays, so that one compiled program serves all of them. Letters of shapes
are those of `shapes`; B are rows.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import vocab
from ..errors import InputError
from ..model import pointer
from ..model.pointer import Copies
from ..model.retrieval import sum_by_token
from ..shapes import Array, Bool, Float, Int
from ..vocab import SOUNDS, Kind, Vocabulary
from .settings import GenerationSettings

# Added to the log-odds at most: a memory that must always be followed copies rests, once there is one, without end.
MOST_LOG_ODDS = 3.0
# Added to the log-odds of what was not played some phrases before; a low temperature multiplies the odds of the same
# too. With the odds that were learned, bars come back in what is sampled at other distances more often than in songs.
# Chosen on validation songs of POP909.
BETWEEN_PHRASES = -0.4
LEAST_FACTOR = 0.5  # the least by which a low temperature multiplies them
PROBABILITY_BITS = 30  # of a float32 up to 1: the others are 0
PITCHED, DRUMS, SILENCED = range(3)  # kinds of instruments, by what the settings let them play


class SettingArrays(NamedTuple):
    """`GenerationSettings` as arrays."""

    temperature: Float[Array, ""]
    copy: Float[Array, ""]  # log-odds added to those of the kNN memory
    between_phrases: Float[Array, ""]  # and to those of what was not played some phrases before
    phrase_bars: Int[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]
    min_p: Float[Array, ""]
    loop_bars: Int[Array, ""]
    kind: Int[Array, " instruments"]  # PITCHED, DRUMS or SILENCED
    allowed: Bool[Array, "3 V"]  # tokens after an instrument of each kind


def make_setting_arrays(settings: GenerationSettings, vocabulary: Vocabulary) -> SettingArrays:
    """
    Raises:
        InputError: the vocabulary has no instruments, or fewer than top-k tokens.
    """
    scheme, greedy = vocabulary.scheme, settings.top_k == 1
    if settings.top_k > vocabulary.size:
        raise InputError(f"top-k {settings.top_k}: the vocabulary has {vocabulary.size} tokens; give fewer, or 0")
    if settings.instruments and not scheme.multi:
        raise InputError("instruments: this model knows none; train one on a corpus encoded with --tracks multi")
    wanted = settings.instruments or tuple(range(vocab.N_INSTRUMENTS))
    kind = np.full(vocab.N_INSTRUMENTS + 1, PITCHED, np.int32)
    kind[vocab.DRUMS] = DRUMS
    kind[[i for i in range(vocab.N_INSTRUMENTS) if i not in wanted]] = SILENCED
    if scheme.multi:
        kind[vocab.NO_INSTRUMENT] = SILENCED  # a song's first note needs one
    allowed = np.ones((3, vocabulary.size), bool)
    drum = Kind.DRUM if Kind.DRUM in vocabulary.kinds else Kind.NOTE
    for before in (PITCHED, DRUMS, SILENCED):
        for token in range(vocabulary.size):
            playing = before
            for what, value in vocabulary.parts(token):
                if what == Kind.INSTRUMENT:
                    playing = kind[value]
                    allowed[before, token] &= playing != SILENCED
                elif what in SOUNDS:
                    fits = settings.lowest <= value <= settings.highest and value % 12 in settings.key
                    drums_fit = playing == DRUMS and what == drum
                    allowed[before, token] &= drums_fit or (playing == PITCHED and fits and what == Kind.NOTE)
    return SettingArrays(
        # What corrects for drawing at random has no place where nothing is drawn.
        temperature=jnp.asarray(1 if greedy else settings.temperature, jnp.float32),
        copy=jnp.asarray(_copy_log_odds(settings.copy), jnp.float32),
        between_phrases=jnp.asarray(0 if greedy else _between_phrases(settings), jnp.float32),
        phrase_bars=jnp.asarray(max(settings.phrase_bars, 1), jnp.int32),
        top_k=jnp.asarray(settings.top_k or vocabulary.size, jnp.int32),
        top_p=jnp.asarray(1 if greedy else settings.top_p, jnp.float32),
        min_p=jnp.asarray(settings.min_p, jnp.float32),
        loop_bars=jnp.asarray(settings.loop_bars, jnp.int32),
        kind=jnp.asarray(kind),
        allowed=jnp.asarray(allowed),
    )


def instrument_after(instrument: Int[Array, " B"], token: Int[Array, " B"], vocabulary: Vocabulary) -> Array:
    """The instrument that plays after a token."""
    if not vocabulary.scheme.multi:
        return instrument
    named = jnp.asarray(vocabulary.named_instruments)[token]
    return jnp.where(named == vocab.NO_INSTRUMENT, instrument, named)


def time_passed(
    grammar: Int[Array, "*B"], token: Int[Array, "*V"], position: Int[Array, "*B"], vocabulary: Vocabulary
) -> Int[Array, "*C"]:
    """The steps by which tokens move time on from a position in the bar."""
    steps, clock = jnp.asarray(vocabulary.grammar[1])[grammar, token], vocabulary.clock
    if not clock.from_bar.any():
        return steps
    line = jnp.asarray(clock.line)[jnp.asarray(vocabulary.state_context)[grammar], token]
    return steps + jnp.where(jnp.asarray(clock.from_bar)[token], line - position, 0)


def _copy_log_odds(copy: float) -> float:
    """What is added to the log-odds of the kNN memory; at 0.5 nothing."""
    if copy == 0:
        return pointer.NONE
    return min(math.log(copy / (1 - copy)), MOST_LOG_ODDS) if copy < 1 else MOST_LOG_ODDS


def _between_phrases(settings: GenerationSettings) -> float:
    """What is added to the log-odds of what was not played some phrases before."""
    if settings.phrase_bars == 0:
        return 0.0
    return BETWEEN_PHRASES + math.log(min(max(settings.temperature, LEAST_FACTOR), 1))


def process_logits(
    logits: Float[Array, "B V"], copies: Copies | None, legal: Bool[Array, "B V"], settings: SettingArrays
) -> Float[Array, "B V"]:
    """Applies temperature, top-p, top-k and min-p: tokens that are not drawn from get minus infinity.

    Temperature and top-p shape what is new: the tokens that no candidate of the memory by alignment names. They leave
    all of these together as likely as they were, so that a copy ends as often as was learned: a top-p of the whole
    would cut the few percent with which it does. Candidates from between phrases have lower odds (BETWEEN_PHRASES);
    below 1 these are also multiplied by the temperature: the lower that is, the more what is new resembles the past
    already. Top-k and min-p cut what is unlikely in the whole. The most likely token always stays; with top-k 1 it is
    the one that was learned, whatever the temperature and top-p.
    """
    logits = jnp.where(legal, logits, -jnp.inf)
    if copies is None:
        logits = _shape(logits, settings)
        probabilities = jax.nn.softmax(logits)
    else:
        may_copy = (copies.token >= 0) & jnp.take_along_axis(legal, jnp.maximum(copies.token, 0), -1)
        of_phrase = (copies.bars > 0) & (copies.bars % settings.phrase_bars == 0)
        log_odds = copies.log_odds + jnp.where(of_phrase, 0, settings.between_phrases)
        copies = copies._replace(log_odds=jnp.where(may_copy, log_odds, pointer.NONE))
        probabilities = pointer.mixture(_shape_new(logits, copies, settings), copies)
        logits = jnp.log(probabilities)
    highest = probabilities.max(-1)
    top_k = _threshold(probabilities, jnp.ones_like(probabilities), settings.top_k)
    threshold = jnp.minimum(jnp.maximum(settings.min_p * highest, top_k), highest)
    return jnp.where(probabilities >= threshold[:, None], logits, -jnp.inf)


def _shape(logits: Float[Array, "B V"], settings: SettingArrays) -> Float[Array, "B V"]:
    """Applies temperature and top-p."""
    return _top_p(logits / settings.temperature, settings.top_p)


def _shape_new(logits: Float[Array, "B V"], copies: Copies, settings: SettingArrays) -> Float[Array, "B V"]:
    """The decoder's own probabilities, with temperature and top-p for the tokens that no candidate names: all together
    stay as likely as they were. Top-p cuts what the decoder holds unlikely among all tokens, save the likeliest that is
    new."""
    is_candidate = (copies.log_odds > pointer.NONE / 2).astype(jnp.float32)
    named = sum_by_token(is_candidate[:, None], copies.token[:, None], logits.shape[-1]) > 0
    own, new = jax.nn.softmax(logits), jnp.where(named, -jnp.inf, logits)
    highest = new.max(-1, keepdims=True)
    kept = (_shape(logits, settings) > -jnp.inf) | (new == highest)
    # Where no token is new, the highest is minus infinity.
    shaped = jnp.exp((new - jnp.maximum(highest, -jnp.finfo(logits.dtype).max)) / settings.temperature)
    shaped = jnp.where(kept, shaped, 0)
    mass = jnp.sum(jnp.where(named, 0, own), -1, keepdims=True) / jnp.maximum(shaped.sum(-1, keepdims=True), 1)
    return jnp.where(named, own, mass * shaped)


def _top_p(logits: Float[Array, "B V"], top_p: Float[Array, ""]) -> Float[Array, "B V"]:
    """Keeps a token if the more likely ones together have less than `top_p`."""
    probabilities = jax.nn.softmax(logits)
    # The sum of all may round to less or more than 1, which keeps all.
    least = _threshold(probabilities, probabilities, jnp.where(top_p < 1, top_p, jnp.inf))
    least = jnp.minimum(least, probabilities.max(-1))  # also where top-p rounds to 0
    return jnp.where(probabilities >= least[:, None], logits, -jnp.inf)


def _threshold(
    probabilities: Float[Array, "B V"], weights: Float[Array, "B V"], total: Float[Array, ""] | Int[Array, ""]
) -> Float[Array, " B"]:
    """The highest probability so that all tokens at or above it weigh `total` together; 0 where all weigh less.

    Found bit by bit, as floats that are not negative have the order of their bits. To sort the probabilities takes 9
    times as long on a CPU for one row, and 20 times as long for 16.
    """
    order = jax.lax.bitcast_convert_type(probabilities, jnp.int32)

    def one_bit(i: Array, threshold: Int[Array, " B"]) -> Int[Array, " B"]:
        higher = threshold | jnp.int32(1 << (PROBABILITY_BITS - 1)) >> i
        weight = jnp.sum(jnp.where(order >= higher[:, None], weights, 0), -1)
        return jnp.where(weight >= total, higher, threshold)

    none = jnp.zeros(len(probabilities), jnp.int32)
    return jax.lax.bitcast_convert_type(jax.lax.fori_loop(0, PROBABILITY_BITS, one_bit, none), jnp.float32)
