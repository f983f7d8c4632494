"""How like real music a model's is: songs continued by the model, beside how they really went on."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .bootstrap import ratio
from .continuation import Continuation, Length
from .copies import longest_copy, training_notes
from .corpus import Corpus
from .loops import find_loops
from .measures import LAGS, MEASURES, self_similarity
from .sampler import Sampler
from .song import Song, cut, stretch


class Pair(NamedTuple):
    """Two ways on from a song's first bars."""

    song: int
    take: Continuation
    written: Song  # the model's bars alone
    real: Song  # the song's own


def songs_to_continue(corpus: Corpus, songs: np.ndarray, num: int, bars: int) -> list[int]:
    """The first `num` songs of so many bars; where there are too few, the longest of the others as well."""
    last_bar = np.array([int(corpus.bar[corpus.offsets[song + 1] - 1]) for song in songs])
    order = np.argsort(-np.minimum(last_bar + 1, bars), kind="stable")
    return songs[order[:num]].tolist()


def continue_songs(
    sampler: Sampler, corpus: Corpus, songs: Sequence[int], *, prompt_bars: int, bars: int, seed: int = 0
) -> list[Pair]:
    """Each song's first bars, continued at once; the model may end a song.

    Raises:
        InputError: no note begins in a song's first bars.
    """
    prompts = [cut(corpus.song(song), prompt_bars) for song in songs]
    held = sampler.begin(prompts)
    spans = [Length(bars, eos=True).span(row.song, row.end) for row in held.rows]
    ends, eos_from = [end for _, end in spans], [first for first, _ in spans]
    takes = sampler.play(held, ends, eos_from=eos_from, seed=seed).finish()
    pairs = []
    for song, prompt, take in zip(songs, prompts, takes, strict=True):
        bar = take.song.bar_of(prompt.end)
        pairs.append(Pair(song, take, stretch(take.song, bar, bars), stretch(corpus.song(song), bar, bars)))
    return pairs


def _means(rows: list[list[float]]) -> Any:
    """The mean of each column over the songs, with its interval; songs without a value don't count."""
    return [
        ratio(np.nan_to_num(column), np.isfinite(column)) for column in np.asarray(rows, float).reshape(len(rows), -1).T
    ]


def likeness(pairs: Sequence[Pair], corpus: Corpus, *, bars: int) -> dict[str, Any]:
    """Measures of what the model wrote and of what is real, as means over songs with intervals.

    Where a song ends is told by its last bar; a copy is the longest run of notes that a training song has too.
    """
    training = list(training_notes(corpus)[1])
    multi = corpus.vocabulary.scheme.multi

    def of(songs: list[Song], ended: list[bool]) -> dict[str, Any]:
        sounding = [song for song in songs if len(song.notes)]
        rows = [[measure(song) for measure in MEASURES.values()] for song in sounding]
        copied = [longest_copy(song.notes, training, multi=multi).notes for song in sounding]
        found = dict(zip(MEASURES, _means(rows), strict=True)) if rows else {}
        return {
            "measures": found
            | {
                "share with a loop": _means([[bool(find_loops(song))] for song in songs])[0],
                f"share that ends within {bars} bars": _means([[end] for end in ended])[0],
                "longest copy of a training song, notes": _means([[notes] for notes in copied])[0] if copied else None,
            },
            "longest copies": copied,
            "self-similarity": _means([self_similarity(song).tolist() for song in sounding]) if sounding else [],
        }

    ends = [pair.take.stopped == "ended by itself" for pair in pairs]
    really = [_last_bar(corpus.song(pair.song)) < _bar(pair) + bars for pair in pairs]
    found: dict[str, Any] = {
        "songs": len(pairs),
        "lags": LAGS.tolist(),
        "written": of([pair.written for pair in pairs], ends),
        "real": of([pair.real for pair in pairs], really),
    }
    both = zip(found["written"]["self-similarity"], found["real"]["self-similarity"], strict=False)
    apart = [abs(a.value - b.value) for a, b in both if a is not None and b is not None]
    found["similarity error"] = float(np.mean(apart)) if apart else None
    return found


def _bar(pair: Pair) -> int:
    """The bar at which what is new begins."""
    return pair.take.song.bar_of(pair.take.begins)


def _last_bar(song: Song) -> int:
    return song.bar_of(max(song.n_steps - 1, 0))
