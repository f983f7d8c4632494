"""Generated music compared with real music: songs continued by a model, beside how they really continue."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from ..data.corpus import Corpus, training_notes
from ..errors import InputError
from ..music.excerpts import longest_common_excerpts
from ..music.harmony import longest_chord
from ..music.loops import ALIKE, find_loops
from ..music.metrics import LAGS, METRICS, duration_shares, onset_shares, self_similarity, total_variation
from ..music.quality import KINDS, LONGEST_CHORD, find_faults
from ..music.song import Prompt, Song, cut, excerpt
from ..sampling.continuation import Continuation
from ..sampling.generation import span
from ..sampling.sampler import Sampler
from ..sampling.settings import GenerationSettings, Length
from .bootstrap import Interval, ratio
from .discriminator import discriminate, shuffled_bars
from .wilson import wilson

SETTINGS = GenerationSettings(loop_bars=0)  # the defaults, except that loops are allowed: they are counted
PART_BARS = 8  # of the first and the last part of an excerpt
EXCERPTS = "longest training excerpts"  # of takes with notes, in notes
ROWS = 16  # songs sampled at once
# Of the notes that either of two bars of a varied loop has, the share that both have (`find_loops`). That a bar varies
# an earlier one, in `repeats`, is less: that it can be predicted from it, which the rhythm decides as well.
VARIED = 0.5


class EvaluationPrompt(NamedTuple):
    """A song that a model is to continue."""

    song: int  # index in the corpus
    prompt: Prompt
    real: Song  # the bars that follow the prompt in the song itself
    ends: bool  # whether the song ends within these bars


class Pair(NamedTuple):
    """A prompt, which holds the song's own continuation, and a model's."""

    prompt: EvaluationPrompt
    continuation: Continuation
    written: Song  # the model's bars alone


def choose_prompts(
    corpus: Corpus, songs: np.ndarray, num: int, *, prompt_bars: int, bars: int
) -> list[EvaluationPrompt]:
    """The first `num` songs that have notes both in their first bars and in the bars after these.

    Raises:
        InputError: there is none.
    """
    prompts: list[EvaluationPrompt] = []
    for index in songs.tolist():
        song = corpus.song(index)
        if song.notes[0, 0] < song.bar_start(prompt_bars):
            prompt = cut(song, prompt_bars)
            bar = song.bar_of(prompt.end)
            real = excerpt(song, bar, bars)
            if len(real.notes):
                prompts.append(EvaluationPrompt(index, prompt, real, song.end <= song.bar_start(bar + bars)))
        if len(prompts) == num:
            break
    if not prompts:
        raise InputError(f"{corpus.path}: no song continues after its first {prompt_bars} bars; lower --prompt-bars")
    return prompts


def sample_all(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    spans: Sequence[tuple[int, int]],
    *,
    settings: GenerationSettings = SETTINGS,
    seed: int = 0,
) -> Iterator[Continuation]:
    """Continues any number of prompts, ROWS at once.

    Args:
        spans: of each the times from which on it may end, and at which it stops (`sampling.generation.span`).
    """
    for first in range(0, len(prompts), ROWS):
        here = slice(first, first + ROWS)
        eos_from, ends = zip(*spans[here], strict=True)
        session = sampler.prefill(prompts[here])
        yield from sampler.sample(session, ends, eos_from=eos_from, settings=settings, seed=seed + first).finish()


def continue_songs(
    sampler: Sampler,
    prompts: Sequence[EvaluationPrompt],
    *,
    bars: int,
    settings: GenerationSettings = SETTINGS,
    seed: int = 0,
) -> list[Pair]:
    """Continues all prompts; the model may end a song at any time."""
    given = [prompt.prompt for prompt in prompts]
    spans = [span(Length(bars, eos=True), prompt.song, prompt.end) for prompt in given]
    continuations = sample_all(sampler, given, spans, settings=settings, seed=seed)
    return [
        Pair(prompt, continuation, excerpt(continuation.song, continuation.song.bar_of(continuation.start), bars))
        for prompt, continuation in zip(prompts, continuations, strict=True)
    ]


def means(rows: Sequence[Sequence[float]]) -> list[Interval | None]:
    """The mean of each column over the songs, with its interval; songs without a value are left out."""
    columns = np.asarray(rows, float).reshape(len(rows), -1).T
    return [ratio(np.nan_to_num(column), np.isfinite(column)) for column in columns]


def _metrics(songs: Sequence[Song]) -> dict[str, Interval | None]:
    """The mean of each metric over the songs."""
    rows = [[metric(song) for metric in METRICS.values()] for song in songs]
    return dict(zip(METRICS, means(rows), strict=True))


def _mean_shares(songs: Sequence[Song], shares: Callable[[Song], np.ndarray]) -> list[float]:
    """A distribution, averaged over the songs."""
    return np.mean([shares(song) for song in songs], 0).tolist()


DISTRIBUTIONS = {"onsets in the beat": onset_shares, "durations": duration_shares}
SHARES: dict[str, Callable[[Song], bool]] = {
    "share with a loop": lambda song: bool(find_loops(song)),
    "share with a varied loop": lambda song: bool(find_loops(song, similarity=VARIED)),
    "share with a loop of bars that are nearly alike": lambda song: bool(find_loops(song, similarity=ALIKE)),
    f"share with a chord for over {LONGEST_CHORD} bars": lambda song: longest_chord(song) > LONGEST_CHORD,
}


def describe(
    songs: Sequence[Song], ended: Sequence[bool], copied: Sequence[int] | None = None, *, bars: int | None = None
) -> dict[str, Any]:
    """Metrics of excerpts of songs, as means with intervals; excerpts without notes count only for the shares.

    Args:
        ended: whether each song ended within its excerpt.
        copied: notes of the longest part of each excerpt that a training song has too, if that was looked for.
        bars: the length of the excerpts; if given, their first and last PART_BARS bars are described too, so that drift
            shows.
    """
    with_notes = [i for i, song in enumerate(songs) if len(song.notes)]
    sounding = [songs[i] for i in with_notes]
    found: dict[str, Any] = {"excerpts with notes": len(sounding), "self-similarity": [], "metrics": {}, "parts": {}}
    if sounding:
        found["metrics"] = _metrics(sounding)
        found["self-similarity"] = means([self_similarity(song).tolist() for song in sounding])
        found["distributions"] = {name: _mean_shares(sounding, shares) for name, shares in DISTRIBUTIONS.items()}
    found["metrics"] |= {name: means([[holds(song)] for song in songs])[0] for name, holds in SHARES.items()}
    found["metrics"]["share that ends"] = means([[end] for end in ended])[0]
    if sounding and copied is not None:
        found[EXCERPTS] = [copied[i] for i in with_notes]
        longest = means([[n] for n in found[EXCERPTS]])[0]
        found["metrics"]["longest excerpt of a training song, notes"] = longest
    for name, first in {"first": 0, "last": bars - PART_BARS}.items() if bars else ():
        parts = [excerpt(song, max(first, 0), PART_BARS) for song in songs]
        parts = [part for part in parts if len(part.notes)]
        found["parts"][f"{name} {PART_BARS} bars"] = _metrics(parts) if parts else {}
    return found


def self_similarity_error(written: dict[str, Any], real: dict[str, Any]) -> float | None:
    """How far apart the self-similarities of two results of `describe` are, on average over the lags both have."""
    both = zip(written["self-similarity"], real["self-similarity"], strict=False)  # none of excerpts without notes
    errors = [abs(a.value - b.value) for a, b in both if a is not None and b is not None]
    return float(np.mean(errors)) if errors else None


def distances(written: dict[str, Any], real: dict[str, Any]) -> dict[str, float]:
    """How far apart the distributions of two results of `describe` are, from 0 to 1."""
    both = zip(written.get("distributions", {}).items(), real.get("distributions", {}).values(), strict=False)
    return {name: total_variation(np.array(one), np.array(other)) for (name, one), other in both}


def before(prompt: Prompt) -> Song | None:
    """The music of a prompt up to where it is continued; None if there is none."""
    bar = prompt.song.bar_of(prompt.end)
    return excerpt(prompt.song, 0, bar) if bar else None


def fault_shares(songs: Sequence[Song], continued: Sequence[Song | None]) -> dict[str, Interval | None]:
    """The share of excerpts with each kind of fault (`quality.find_faults`), with its interval.

    Args:
        continued: the music before each excerpt, which may have had the same.
    """
    kinds = [{fault.kind for fault in find_faults(*pair)} for pair in zip(songs, continued, strict=True)]
    return {kind.name: wilson(sum(kind.name in found for found in kinds), len(kinds)) for kind in KINDS}


def told_apart(
    prompts: Sequence[EvaluationPrompt], pairs: dict[str, list[Pair]], bars: int
) -> dict[str, dict[str, Any] | None]:
    """How well a classifier tells each run's continuations, and two controls, from the songs' own (`discriminate`)."""
    random, real = np.random.default_rng(0), [prompt.real for prompt in prompts]
    excerpts = {name: [pair.written for pair in some] for name, some in pairs.items()}
    excerpts["their own bars in another order"] = [shuffled_bars(song, bars, random) for song in real]
    told = {name: discriminate(real, songs, bars) for name, songs in excerpts.items()}
    half = len(real) // 2  # no song twice, or its windows would be known from training
    return told | {"other songs' continuations": discriminate(real[:half], real[half : 2 * half], bars)}


def compare_with_real(
    prompts: Sequence[EvaluationPrompt], pairs: dict[str, list[Pair]], corpus: Corpus, *, bars: int | None = None
) -> dict[str, Any]:
    """Metrics of the real continuations and of those of each run, and how far apart their self-similarities are."""
    columns = [([prompt.real for prompt in prompts], [prompt.ends for prompt in prompts])]
    for some in pairs.values():
        ended = [pair.continuation.stopped == "ended by itself" for pair in some]
        columns.append(([pair.written for pair in some], ended))
    notes = [song.notes for songs, _ in columns for song in songs]
    _, training = training_notes(corpus)
    found = iter(longest_common_excerpts(notes, training, multi=corpus.vocabulary.scheme.multi))
    real, *others = (
        describe(songs, ended, [x.notes for x in islice(found, len(songs))], bars=bars) for songs, ended in columns
    )
    written = dict(zip(pairs, others, strict=True))
    continued = [before(prompt.prompt) for prompt in prompts]
    for metrics, (songs, _) in zip((real, *others), columns, strict=True):
        metrics["faults"] = fault_shares(songs, continued)
    for metrics in written.values():
        metrics["self-similarity error"] = self_similarity_error(metrics, real)
        metrics["distances"] = distances(metrics, real)
    result = {"songs": len(prompts), "lags": LAGS.tolist(), "real": real, "written": written}
    if bars:
        result["classifier"] = told_apart(prompts, pairs, bars)
    return result
