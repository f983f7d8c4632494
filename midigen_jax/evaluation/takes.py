"""Long takes: many bars by the default settings, with and without a prompt, beside songs: their faults, and their ends.

Each run writes every take twice: so many bars, in which it may not end, and once more until it ends by itself.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..data.corpus import Corpus
from ..music.loops import ALIKE, MAX_BARS, bar_contents, find_loops
from ..music.metrics import returning_bars
from ..music.song import Prompt, Song, excerpt, new_song
from ..sampling.generation import span
from ..sampling.sampler import Sampler
from ..sampling.settings import DEFAULTS, Length
from .generation_metrics import EvaluationPrompt, before, fault_shares, means, sample_all
from .wilson import wilson

WITHOUT, WITH = "without a prompt", "with a prompt"
DENSE = "a bar with too many notes"
LOOP = f"more than {MAX_BARS} bars nearly alike"
RETURNS = "bars that come back"
DENSITY, LONGEST = 2, 2  # times the 99th percentile of the songs' notes a bar, and their median length, are too much


class Limits(NamedTuple):
    """What is too much, beside the songs."""

    notes: int  # in a bar
    beats: float  # quarter notes in a song


def limits_of(corpus: Corpus, songs: np.ndarray) -> Limits:
    """From the fullest bars of the training songs, and the lengths of these songs."""
    return Limits(DENSITY * corpus.densest_bar(), LONGEST * float(np.median(corpus.beats[songs])))


def describe(songs: Sequence[Song], continued: Sequence[Song | None], limits: Limits) -> dict[str, Any]:
    """The shares of excerpts that have too much of something, and how much of them comes back.

    Args:
        songs: of the same number of bars, or shorter where a song ends.
        continued: the music before each.
    """
    fullest = [max((len(notes) for _, notes in bar_contents(song)), default=0) for song in songs]
    holds = {
        DENSE: [notes > limits.notes for notes in fullest],
        LOOP: [bool(find_loops(song, similarity=ALIKE)) for song in songs],
    }
    return {
        "takes": len(songs),
        "shares": {name: wilson(sum(x), len(x)) for name, x in holds.items()},
        "faults": fault_shares(songs, continued),
        RETURNS: means([[returning_bars(song)] for song in songs])[0],
    }


def endings(beats: Sequence[float], ended: Sequence[bool], limits: Limits) -> dict[str, Any]:
    """Lengths in quarter notes, and the share that has ended before the limit."""
    in_time = [end and length <= limits.beats for end, length in zip(ended, beats, strict=True)]
    return {"beats": [*beats], "ended": [*ended], "ends in time": wilson(sum(in_time), len(in_time))}


def describe_songs(
    corpus: Corpus, songs: np.ndarray, prompts: Sequence[EvaluationPrompt], limits: Limits, *, bars: int
) -> dict[str, Any]:
    """What `write_takes` measures, of the songs: their first bars, and those after the prompts."""
    beginnings = [excerpt(corpus.song(song), 0, bars) for song in songs.tolist()]
    lengths = {
        WITHOUT: corpus.beats[songs],
        WITH: corpus.beats[[prompt.song for prompt in prompts]],
    }
    found = {
        WITHOUT: describe(beginnings, [None] * len(beginnings), limits),
        WITH: describe([prompt.real for prompt in prompts], [before(prompt.prompt) for prompt in prompts], limits),
    }
    return {kind: found[kind] | endings(x.tolist(), [True] * len(x), limits) for kind, x in lengths.items()}


def write_takes(
    sampler: Sampler, prompts: Sequence[EvaluationPrompt], num: int, limits: Limits, *, bars: int, seed: int = 0
) -> dict[str, Any]:
    """What `num` takes without a prompt, and one for each prompt, are like, by WITHOUT and WITH."""
    nothing = Prompt(new_song(sampler.vocabulary.scheme), 0)
    given = {WITHOUT: [nothing] * num, WITH: [prompt.prompt for prompt in prompts]}
    found = {}
    for kind, some in given.items():
        spans = [span(Length(bars), prompt.song, prompt.end) for prompt in some]
        takes = [
            excerpt(take.song, take.song.bar_of(take.start), bars)
            for take in sample_all(sampler, some, spans, settings=DEFAULTS, seed=seed)
        ]
        found[kind] = describe(takes, [before(prompt) for prompt in some], limits)
        spans = [(prompt.end, _last_bar_line(prompt, limits)) for prompt in some]
        lengths, ended = [], []
        for take in sample_all(sampler, some, spans, settings=DEFAULTS, seed=seed):
            lengths.append(take.song.end / take.song.scheme.steps_per_beat)
            ended.append(take.stopped == "ended by itself")
        found[kind] |= endings(lengths, ended, limits)
    return found


def _last_bar_line(prompt: Prompt, limits: Limits) -> int:
    """Up to which a take is waited for: at the limit of a song's length, but a bar after the prompt at least."""
    song = prompt.song
    limit = song.bar_of(int(limits.beats * song.scheme.steps_per_beat))
    return song.bar_start(max(limit, song.bar_of(prompt.end) + 1))
