"""Prompts as the sampler reads them: tokens, and the decode state at their end."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ..errors import InputError
from ..music.song import Prompt, TokenSequence, tokens_of
from ..vocab import NO_INSTRUMENT, Vocabulary
from .decode_state import DecodeState
from .note_order import init_note_order
from .recent_bars import init_recent_bars
from .session import Row

MAX_PROMPT_TOKENS = 1 << 20


class EncodedPrompt(NamedTuple):
    prompt: Prompt
    own: TokenSequence  # of the prompt, without its eos
    read: TokenSequence  # the context song, if any, whose bars are below 0 (int32), then the prompt


def encode(prompt: Prompt, vocabulary: Vocabulary) -> EncodedPrompt:
    """
    Raises:
        InputError: the prompt is too long.
    """
    own = TokenSequence(*(x[:-1] for x in tokens_of(prompt.song, vocabulary)))
    context = TokenSequence(*(x[:0] for x in own))
    if prompt.context:
        context = tokens_of(prompt.context, vocabulary)
        # Its bars come before the prompt's.
        context = context._replace(bar=context.bar.astype(np.int32) - context.bar[-1] - 1)
    if (length := len(context.tokens) + len(own.tokens)) > MAX_PROMPT_TOKENS:
        raise InputError(f"the prompt has {length:,} tokens, more than {MAX_PROMPT_TOKENS:,}; give fewer bars")
    return EncodedPrompt(prompt, own, TokenSequence(*map(np.concatenate, zip(context, own, strict=True))))


def initial_rows(prompts: Sequence[EncodedPrompt], vocabulary: Vocabulary) -> list[Row]:
    rows = []
    for prompt, own, _ in prompts:
        _, _, next_time = vocabulary.walk(own.tokens)
        rows.append(Row(prompt.song, own.tokens, prompt.end, prompt.end, next_time))
    return rows


def initial_state(prompts: Sequence[EncodedPrompt], vocabulary: Vocabulary) -> DecodeState:
    """The decode state at the end of each prompt. Rests lead to the prompt's end before the next note."""
    numbers, named = [], vocabulary.named_instruments
    for prompt in prompts:
        tokens = prompt.own.tokens
        grammar, time, next_time = vocabulary.walk(tokens)
        instruments = named[tokens]
        instruments = instruments[instruments != NO_INSTRUMENT]
        instrument = int(instruments[-1]) if len(instruments) else NO_INSTRUMENT
        numbers.append((int(tokens[-1]), grammar, instrument, time, next_time))
    token, grammar_state, current, time, next_time = jnp.asarray(numbers, jnp.int32).T
    zeros = jnp.zeros_like(token)
    ends = jnp.asarray([prompt.prompt.end for prompt in prompts], jnp.int32)
    order = init_note_order(token)
    return DecodeState(
        token, grammar_state, current, time, next_time, zeros, zeros, order, init_recent_bars(ends, vocabulary.scheme)
    )
