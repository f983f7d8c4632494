"""How tokens are drawn: what may come next, how wild the choice is, and what keeps music from going in circles.

What a user sets is in `Controls`; `Rules` are the same as arrays, so that one compiled program serves all of them.
Letters of shapes are those of `shapes`; B are rows.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import vocab
from .cli import InputError
from .shapes import Array, Bool, Float, Int
from .song import parse_instruments, parse_key, parse_pitch
from .vocab import Vocabulary

LAGS = 512  # heads (see `_heads`) that a loop may be long, and that are remembered
LOOP_PERIOD = 4  # bars that it may be long
NO_HEAD = -1
NO_INSTRUMENT = vocab.N_INSTRUMENTS  # where there are none, or before a song's first one
MOST_LOOP_BARS = 10_000  # which are less than 2^31 steps
PITCHED, DRUMS, SILENCED = range(3)  # kinds of instruments, by what the controls let them play


@dataclass(frozen=True)
class Controls:
    """What a user sets; the defaults of `sample.py`."""

    # Below 1 a memory that is sure already of what came next is believed even more, and music goes in circles.
    temperature: float = 1.0
    top_k: int = 0  # draw from so many likeliest tokens; 0: all
    top_p: float = 0.95  # from the likeliest that together have this probability (Holtzman et al. 2020); 1: all
    min_p: float = 0.0  # from those at least this share as likely as the likeliest (Nguyen et al. 2024)
    loop_bars: int = 8  # what repeats itself every four bars or faster, and silence, last at most so long; 0: for ever
    lowest: int = 0  # pitches; drums are not asked
    highest: int = 127
    key: tuple[int, ...] = tuple(range(12))  # pitch classes, 0 for C; drums are not asked
    instruments: tuple[int, ...] = ()  # programs from 0, vocab.DRUMS for the drums; none named: all

    def __post_init__(self) -> None:
        if not 1e-3 <= self.temperature <= 1e3:  # beyond, logits are no numbers any more
            raise InputError(f"temperature {self.temperature}: give a number above 0, from 0.001 to 1000")
        if self.top_k < 0:
            raise InputError(f"top-k {self.top_k}: give how many tokens to draw from, or 0 for all")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top-p {self.top_p}: give a number above 0, up to 1 for all tokens")
        if not 0 <= self.min_p <= 1:
            raise InputError(f"min-p {self.min_p}: give a number from 0 to 1")
        if self.loop_bars != 0 and not 2 <= self.loop_bars <= MOST_LOOP_BARS:
            raise InputError(f"loop-bars {self.loop_bars}: give 2 to {MOST_LOOP_BARS} bars, or 0 to let loops be")
        if not set(self.key) <= set(range(12)):
            raise InputError(f"key {self.key}: give pitch classes from 0 to 11")
        if not set(self.instruments) <= set(range(vocab.N_INSTRUMENTS)):
            raise InputError(f"instruments {self.instruments}: give programs from 0 to 127, or {vocab.DRUMS} for drums")
        if self.lowest > self.highest:
            raise InputError(f"lowest {self.lowest} is above highest {self.highest}; swap them")
        pitches = [p for p in range(max(self.lowest, 0), min(self.highest, 127) + 1) if p % 12 in self.key]
        if not pitches:
            raise InputError(f"no pitch from {self.lowest} to {self.highest} is in the key; give a wider range")

    @classmethod
    def of(cls, **settings: Any) -> "Controls":
        """Settings of which pitches, key and instruments may be words, such as C4, "D minor" and "0,32,drums".

        Raises:
            InputError: they can't be used.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in settings:
            if name not in known:
                raise InputError(f"{name}: no such setting; there are {', '.join(known)}")
        words = {"lowest": parse_pitch, "highest": parse_pitch, "key": parse_key, "instruments": parse_instruments}
        for name, parse in words.items():
            if isinstance(settings.get(name), str):
                try:
                    settings[name] = parse(settings[name])
                except InputError as error:
                    raise InputError(f"{name} {error}") from None
        return cls(**settings)


class Rules(NamedTuple):
    """Controls as arrays."""

    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]
    min_p: Float[Array, ""]
    loop_bars: Int[Array, ""]
    kind: Int[Array, " instruments"]  # PITCHED, DRUMS or SILENCED
    may_come: Bool[Array, "3 V"]  # after an instrument of each kind


class Echo(NamedTuple):
    """What a row has played of late, so that it is noticed when it repeats itself. Times are in steps."""

    heads: Int[Array, "B lags"]  # the newest first
    when: Int[Array, "B lags"]
    lasts: Int[Array, "B lags"]  # for how long each head has been the one so many heads before; -1: it is not
    onset: Int[Array, " B"]  # of the last note


def make_rules(controls: Controls, vocabulary: Vocabulary) -> Rules:
    """
    Raises:
        InputError: the vocabulary has no such instruments, or not so many tokens.
    """
    scheme = vocabulary.scheme
    if controls.top_k > vocabulary.size:
        raise InputError(f"top-k {controls.top_k}: the vocabulary has {vocabulary.size} tokens; give fewer, or 0")
    if controls.instruments and not scheme.multi:
        raise InputError("instruments: this model knows none; train one on a corpus encoded with --tracks multi")
    wanted = controls.instruments or tuple(range(vocab.N_INSTRUMENTS))
    kind = np.full(vocab.N_INSTRUMENTS + 1, PITCHED)
    kind[vocab.DRUMS] = DRUMS
    kind[[i for i in range(vocab.N_INSTRUMENTS) if i not in wanted]] = SILENCED
    may_come = np.ones((3, vocabulary.size), bool)
    for before in (PITCHED, DRUMS, SILENCED):
        for token, parts in enumerate(vocabulary.spelled):
            playing = before
            for part in parts:
                if scheme.multi and vocab.INSTRUMENT_0 <= part < vocab.velocity_0(scheme):
                    playing = kind[part - vocab.INSTRUMENT_0]
                    may_come[before, token] &= playing != SILENCED
                elif vocab.NOTE_0 <= part < vocab.DURATION_0:
                    pitch = part - vocab.NOTE_0
                    fits = controls.lowest <= pitch <= controls.highest and pitch % 12 in controls.key
                    may_come[before, token] &= playing == DRUMS or (playing == PITCHED and fits)
    top_k = controls.top_k or vocabulary.size
    numbers = (
        np.float32(controls.temperature),
        np.int32(top_k),
        np.float32(controls.top_p),
        np.float32(controls.min_p),
    )
    return Rules(*map(jnp.asarray, (*numbers, np.int32(controls.loop_bars), kind.astype(np.int32), may_come)))


def instruments_named(vocabulary: Vocabulary) -> np.ndarray:
    """The last instrument that each token names, NO_INSTRUMENT where it names none: int32 [V]."""
    named = np.full(vocabulary.size, NO_INSTRUMENT, np.int32)
    if vocabulary.scheme.multi:
        for token, parts in enumerate(vocabulary.spelled):
            for part in parts:
                if vocab.INSTRUMENT_0 <= part < vocab.velocity_0(vocabulary.scheme):
                    named[token] = part - vocab.INSTRUMENT_0
    return named


def instrument_after(instrument: Int[Array, " B"], token: Int[Array, " B"], vocabulary: Vocabulary) -> Array:
    """The instrument that plays after a token."""
    if not vocabulary.scheme.multi:
        return instrument
    named = jnp.asarray(instruments_named(vocabulary))[token]
    return jnp.where(named == NO_INSTRUMENT, instrument, named)


def _heads(vocabulary: Vocabulary) -> np.ndarray:
    """What a token in each state of the grammar adds to the sequence in which repetitions are looked for: int32 [8, V].

    Notes, instruments, how long rests are, and whole merges, but not how long or loud notes are: a loop stays one if
    only these change. NO_HEAD where a token adds nothing.
    """
    scheme, durations = vocabulary.scheme, slice(vocab.DURATION_0, vocab.INSTRUMENT_0)
    heads = np.tile(np.arange(vocabulary.size, dtype=np.int32), (vocab.END + 1, 1))
    heads[:, : vocab.NOTE_0] = NO_HEAD
    heads[[vocab.NOTE, vocab.VELOCITY], durations] = NO_HEAD
    if scheme.velocities:
        heads[:, vocab.velocity_0(scheme) : scheme.size] = NO_HEAD
    first: dict[tuple[int, ...], int] = {}
    for token, merge in enumerate(vocabulary.merges, scheme.size):
        state, kept = vocab.EVENT, []
        for part in merge:
            if heads[state, part] != NO_HEAD:
                kept.append(part)
            state = int(vocabulary.grammar[0][state, part])
        heads[:, token] = first.setdefault(tuple(kept), token)
    return heads


def _sounds(vocabulary: Vocabulary) -> np.ndarray:
    """Whether a token holds a note: bool [V]."""
    return np.array([any(vocab.NOTE_0 <= p < vocab.DURATION_0 for p in parts) for parts in vocabulary.spelled])


def init_echo(now: Int[Array, " B"]) -> Echo:
    when = jnp.repeat(now[:, None], LAGS, 1)
    return Echo(jnp.full(when.shape, NO_HEAD, jnp.int32), when, jnp.full(when.shape, -1, jnp.int32), now + 0)


def hear(
    echo: Echo, state: Int[Array, " B"], token: Int[Array, " B"], step: Int[Array, " B"], vocabulary: Vocabulary
) -> Echo:
    """The echo after a token.

    Args:
        state: of the grammar, before the token.
        step: where the token stands.
    """
    head = jnp.asarray(_heads(vocabulary))[state, token]
    # Where it is another one, half of what was repeated counts on: a loop is none the less one for a slip.
    longer = jnp.where(echo.lasts < 0, 0, echo.lasts + (step[:, None] - echo.when[:, :1]))
    lasts = jnp.where(echo.heads == head[:, None], longer, jnp.where(echo.lasts > 0, echo.lasts // 2, -1))
    heads, when = (
        jnp.concatenate([new[:, None], old[:, :-1]], 1) for new, old in ((head, echo.heads), (step, echo.when))
    )
    adds = (head != NO_HEAD)[:, None]
    onset = jnp.where(jnp.asarray(_sounds(vocabulary))[token], step, echo.onset)
    heads, when, lasts = (
        jnp.where(adds, new, old) for new, old in ((heads, echo.heads), (when, echo.when), (lasts, echo.lasts))
    )
    return Echo(heads, when, lasts, onset)


def goes_in_circles(
    echo: Echo,
    state: Int[Array, " B"],
    now: Int[Array, " B"],
    bar: Int[Array, " B"],
    rules: Rules,
    vocabulary: Vocabulary,
) -> Bool[Array, "B V"]:
    """The tokens with which a loop or a silence would last too long.

    Args:
        now: where the token will stand.
        bar: its bar's steps.
    """
    most = rules.loop_bars * bar
    period, lasts = now[:, None] - echo.when, echo.lasts + (now[:, None] - echo.when[:, :1])
    stuck = (echo.lasts >= 0) & (period > 0) & (period <= LOOP_PERIOD * bar[:, None])
    stuck &= lasts + period > (most - bar)[:, None]
    worst = jnp.argmax(jnp.where(stuck, lasts, -1), 1)[:, None]
    expected = jnp.where(jnp.take_along_axis(stuck, worst, 1), jnp.take_along_axis(echo.heads, worst, 1), NO_HEAD)
    heads = jnp.asarray(_heads(vocabulary))[state]
    again = (heads == expected) & (expected != NO_HEAD)
    left = (most - (now - echo.onset))[:, None]
    silent = jnp.maximum(jnp.asarray(vocabulary.grammar[1])[state], jnp.arange(vocabulary.size) == vocab.SEP) > left
    return (again | silent) & (rules.loop_bars > 0)


def restrict(logits: Float[Array, "B V"], rules: Rules) -> Float[Array, "B V"]:
    """Logits over the temperature, with what is not drawn from at minus infinity; the likeliest always stays."""
    logits = logits / rules.temperature
    probabilities = jax.nn.softmax(logits)
    ranked = jnp.sort(probabilities, -1, descending=True)
    floor = jnp.maximum(rules.min_p * ranked[:, 0], jax.lax.dynamic_index_in_dim(ranked, rules.top_k - 1, 1, False))
    # A token stays if those before it have less than top_p.
    kept = (jnp.cumsum(ranked, -1) - ranked < rules.top_p) | (rules.top_p >= 1)
    floor = jnp.minimum(jnp.maximum(floor, jnp.min(jnp.where(kept, ranked, 1.0), -1)), ranked[:, 0])
    return jnp.where(probabilities >= floor[:, None], logits, -jnp.inf)
