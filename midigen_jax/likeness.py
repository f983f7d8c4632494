"""How like real music a model's is: songs continued by the model, beside how they really went on."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .bootstrap import Interval, ratio
from .cli import InputError
from .continuation import Continuation, Length
from .controls import Controls
from .copies import longest_copy, training_notes
from .corpus import Corpus
from .loops import find_loops
from .measures import LAGS, MEASURES, self_similarity
from .sampler import Sampler
from .song import Prompt, Song, cut, stretch

# As songs are sampled by default, but that loops are let be: they are counted.
SETTINGS = Controls(loop_bars=0)


class Begun(NamedTuple):
    """A song that a model is to continue."""

    song: int  # index in the corpus
    prompt: Prompt
    real: Song  # so many bars of the song itself from there on
    ends: bool  # within these


class Pair(NamedTuple):
    """Two ways on from a song's first bars."""

    begun: Begun
    take: Continuation
    written: Song  # the model's bars alone


def begin_songs(corpus: Corpus, songs: np.ndarray, num: int, *, prompt_bars: int, bars: int) -> list[Begun]:
    """The first `num` songs that have notes in their first bars and in those after them.

    Raises:
        InputError: there is none.
    """
    begun: list[Begun] = []
    for index in songs.tolist():
        song = corpus.song(index)
        if song.notes[0, 0] < song.bar_start(prompt_bars):
            prompt = cut(song, prompt_bars)
            bar = song.bar_of(prompt.end)
            real = stretch(song, bar, bars)
            if len(real.notes):
                begun.append(Begun(index, prompt, real, song.n_steps <= song.bar_start(bar + bars)))
        if len(begun) == num:
            break
    if not begun:
        raise InputError(f"{corpus.path}: no song goes on after its first {prompt_bars} bars; give fewer --prompt-bars")
    return begun


def continue_songs(sampler: Sampler, begun: Sequence[Begun], *, bars: int, seed: int = 0) -> list[Pair]:
    """Each song's first bars, continued at once; the model may end a song."""
    held = sampler.begin([one.prompt for one in begun])
    spans = [Length(bars, eos=True).span(row.song, row.end) for row in held.rows]
    ends, eos_from = [end for _, end in spans], [first for first, _ in spans]
    takes = sampler.play(held, ends, eos_from=eos_from, settings=SETTINGS, seed=seed).finish()
    return [
        Pair(one, take, stretch(take.song, take.song.bar_of(take.begins), bars))
        for one, take in zip(begun, takes, strict=True)
    ]


def _means(rows: Sequence[Sequence[float]]) -> list[Interval | None]:
    """The mean of each column over the songs, with its interval; songs without a value don't count."""
    columns = np.asarray(rows, float).reshape(len(rows), -1).T
    return [ratio(np.nan_to_num(column), np.isfinite(column)) for column in columns]


def describe(songs: Sequence[Song], ended: Sequence[bool], training: Sequence[np.ndarray]) -> dict[str, Any]:
    """Measures of stretches of songs, as means with intervals; silent ones count for the shares alone.

    Args:
        ended: whether each song ended there.
        training: notes of the training songs.
    """
    sounding = [song for song in songs if len(song.notes)]
    found: dict[str, Any] = {"stretches with notes": len(sounding), "self-similarity": [], "measures": {}}
    found["measures"] = {
        "share with a loop": _means([[bool(find_loops(song))] for song in songs])[0],
        "share that ends": _means([[end] for end in ended])[0],
    }
    if sounding:
        measured = _means([[measure(song) for measure in MEASURES.values()] for song in sounding])
        copied = [longest_copy(song.notes, training, multi=song.scheme.multi).notes for song in sounding]
        found["measures"] = dict(zip(MEASURES, measured, strict=True)) | found["measures"]
        found["measures"]["longest copy of a training song, notes"] = _means([[n] for n in copied])[0]
        found["longest copies"] = copied
        found["self-similarity"] = _means([self_similarity(song).tolist() for song in sounding])
    return found


def likeness(begun: Sequence[Begun], pairs: dict[str, list[Pair]], corpus: Corpus) -> dict[str, Any]:
    """What is real and what each model wrote, and how far their curves of self-similarity are apart."""
    training = list(training_notes(corpus)[1])
    real = describe([one.real for one in begun], [one.ends for one in begun], training)
    written = {}
    for name, some in pairs.items():
        ends = [pair.take.stopped == "ended by itself" for pair in some]
        written[name] = describe([pair.written for pair in some], ends, training)
        both = zip(written[name]["self-similarity"], real["self-similarity"], strict=False)
        apart = [abs(a.value - b.value) for a, b in both if a is not None and b is not None]
        written[name]["similarity error"] = float(np.mean(apart)) if apart else None
    return {"songs": len(begun), "lags": LAGS.tolist(), "real": real, "written": written}
