"""Songs continued by rivals: our tokens, sampled without a grammar or any other rule, and decoded as our own are.

Temperature and top-p are this project's defaults. When the window is full its newer half is read again, so that each
token has at least half a window before it, as when songs are evaluated. Tokens that complete no event are ignored.
"""

import numpy as np
import torch
from _windowed import Learner

from midigen_jax import vocab
from midigen_jax.kernels.meter import bar_positions
from midigen_jax.music.song import Prompt, Song, excerpt, notes_of, tokens_of
from midigen_jax.sampling.generation import MAX_TOKENS_PER_BAR
from midigen_jax.sampling.settings import DEFAULTS
from midigen_jax.vocab import DURATION_0, INSTRUMENT_0, SEP, Vocabulary


class Timeline:
    """The time at which each token's event begins, as tokens come one after the other."""

    def __init__(self, vocabulary: Vocabulary):
        self.parts, self.now, self.rests = vocabulary.base_tokens, 0, False

    def advance(self, token: int) -> int:
        """The time at which this token begins; time moves on by the rests that it completes."""
        begins = self.now
        for part in self.parts[token]:
            if self.rests and DURATION_0 <= part < INSTRUMENT_0:
                self.now += part - DURATION_0
            self.rests = part == SEP
        return begins


@torch.inference_mode()
def continue_song(
    learner: Learner, vocabulary: Vocabulary, prompt: Prompt, bars: int, *, seed: int
) -> tuple[Song, bool]:
    """The bars that follow the prompt, and whether the song ended within them."""
    song, timeline, half = prompt.song, Timeline(vocabulary), learner.window // 2
    first_bar = song.bar_of(prompt.end)
    end = song.bar_start(first_bar + bars)
    tokens, bar, position = ([int(x) for x in array[:-1]] for array in tokens_of(song, vocabulary))
    for token in tokens:
        timeline.advance(token)
    random = torch.Generator(learner.device).manual_seed(seed)
    learner.model.eval()
    cache, read, begin = None, 0, max(len(tokens) - learner.window, 0)  # the window's first token
    most = len(tokens) + bars * MAX_TOKENS_PER_BAR
    while timeline.now < end and tokens[-1] != vocab.EOS and len(tokens) < most:
        if len(tokens) - begin > learner.window:
            cache, begin = None, len(tokens) - half
        unread = slice(begin if cache is None else read, len(tokens))
        arrays = {"tokens": tokens, "bar": bar, "position": position}
        batch = {name: torch.tensor([x[unread]], device=learner.device) for name, x in arrays.items()}
        logits, cache = learner.model(batch, cache)
        read = len(tokens)
        token = draw(logits[0, -1], random)
        here, at = bar_positions(np.array([timeline.advance(token)]), song.bars)
        for array, value in ((tokens, token), (bar, int(here[0])), (position, int(at[0]))):
            array.append(value)
    notes = notes_of(np.array(tokens, np.uint16), vocabulary)
    return excerpt(song._replace(notes=notes), first_bar, bars), tokens[-1] == vocab.EOS


def draw(logits: torch.Tensor, random: torch.Generator) -> int:
    """From the likeliest tokens that together have top-p."""
    likeliest, ids = torch.softmax(logits / DEFAULTS.temperature, -1).sort(descending=True)
    likeliest = likeliest.masked_fill(likeliest.cumsum(-1) - likeliest > DEFAULTS.top_p, 0)
    return int(ids[torch.multinomial(likeliest, 1, generator=random)])
