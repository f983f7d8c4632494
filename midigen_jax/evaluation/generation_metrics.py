"""Generated music compared with real music: songs continued by a model, beside how they really continue."""

from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from ..data.corpus import Corpus, training_notes
from ..errors import InputError
from ..music.excerpts import longest_common_excerpts
from ..music.loops import find_loops
from ..music.song import Prompt, Song, cut, excerpt
from ..sampling.continuation import Continuation
from ..sampling.generation import span
from ..sampling.sampler import Sampler
from ..sampling.settings import GenerationSettings, Length
from .bootstrap import Interval, ratio
from .music_metrics import LAGS, METRICS, self_similarity

SETTINGS = GenerationSettings(loop_bars=0)  # the defaults, except that loops are allowed: they are counted
VARIED = 0.5  # the least similarity of the bars of a varied loop


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


def continue_songs(
    sampler: Sampler,
    prompts: Sequence[EvaluationPrompt],
    *,
    bars: int,
    settings: GenerationSettings = SETTINGS,
    seed: int = 0,
) -> list[Pair]:
    """Continues all prompts at once; the model may end a song at any time."""
    session = sampler.prefill([prompt.prompt for prompt in prompts])
    spans = [span(Length(bars, eos=True), row.song, row.end) for row in session.rows]
    eos_from, ends = [first for first, _ in spans], [end for _, end in spans]
    continuations = sampler.sample(session, ends, eos_from=eos_from, settings=settings, seed=seed).finish()
    return [
        Pair(prompt, continuation, excerpt(continuation.song, continuation.song.bar_of(continuation.start), bars))
        for prompt, continuation in zip(prompts, continuations, strict=True)
    ]


def _means(rows: Sequence[Sequence[float]]) -> list[Interval | None]:
    """The mean of each column over the songs, with its interval; songs without a value are left out."""
    columns = np.asarray(rows, float).reshape(len(rows), -1).T
    return [ratio(np.nan_to_num(column), np.isfinite(column)) for column in columns]


def describe(songs: Sequence[Song], ended: Sequence[bool], copied: Sequence[int] | None = None) -> dict[str, Any]:
    """Metrics of excerpts of songs, as means with intervals; excerpts without notes count only for the shares.

    Args:
        ended: whether each song ended within its excerpt.
        copied: notes of the longest part of each excerpt that a training song has too, if that was looked for.
    """
    with_notes = [i for i, song in enumerate(songs) if len(song.notes)]
    sounding = [songs[i] for i in with_notes]
    found: dict[str, Any] = {"excerpts with notes": len(sounding), "self-similarity": [], "metrics": {}}
    shares = {
        "share with a loop": _means([[bool(find_loops(song))] for song in songs])[0],
        "share with a varied loop": _means([[bool(find_loops(song, similarity=VARIED))] for song in songs])[0],
        "share that ends": _means([[end] for end in ended])[0],
    }
    if sounding:
        means = _means([[metric(song) for metric in METRICS.values()] for song in sounding])
        found["metrics"] = dict(zip(METRICS, means, strict=True))
        found["self-similarity"] = _means([self_similarity(song).tolist() for song in sounding])
    found["metrics"] |= shares
    if sounding and copied is not None:
        found["longest training excerpts"] = [copied[i] for i in with_notes]
        longest = _means([[n] for n in found["longest training excerpts"]])[0]
        found["metrics"]["longest excerpt of a training song, notes"] = longest
    return found


def self_similarity_error(written: dict[str, Any], real: dict[str, Any]) -> float | None:
    """How far apart the self-similarities of two results of `describe` are, on average over the lags both have."""
    both = zip(written["self-similarity"], real["self-similarity"], strict=False)  # none of excerpts without notes
    errors = [abs(a.value - b.value) for a, b in both if a is not None and b is not None]
    return float(np.mean(errors)) if errors else None


def compare_with_real(
    prompts: Sequence[EvaluationPrompt], pairs: dict[str, list[Pair]], corpus: Corpus
) -> dict[str, Any]:
    """Metrics of the real continuations and of those of each run, and how far apart their self-similarities are."""
    columns = [([prompt.real for prompt in prompts], [prompt.ends for prompt in prompts])]
    for some in pairs.values():
        ended = [pair.continuation.stopped == "ended by itself" for pair in some]
        columns.append(([pair.written for pair in some], ended))
    notes = [song.notes for songs, _ in columns for song in songs]
    _, training = training_notes(corpus)
    found = iter(longest_common_excerpts(notes, training, multi=corpus.vocabulary.scheme.multi))
    real, *others = (describe(songs, ended, [x.notes for x in islice(found, len(songs))]) for songs, ended in columns)
    written = dict(zip(pairs, others, strict=True))
    for metrics in written.values():
        metrics["self-similarity error"] = self_similarity_error(metrics, real)
    return {"songs": len(prompts), "lags": LAGS.tolist(), "real": real, "written": written}
