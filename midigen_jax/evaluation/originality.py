"""The originality curve: how long an excerpt of a training song the takes of a run contain, as training goes on.

A model that learns its songs by heart copies longer and longer excerpts, in any key (`longest_common_excerpts`). What
the songs' own continuations share with training songs, which nobody copied, says how much is in the style.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np

from ..data.corpus import Corpus, training_notes
from ..music.excerpts import longest_common_excerpts
from ..music.song import Song
from ..run import trained
from ..sampling.sampler import Sampler
from .generation_metrics import EvaluationPrompt, continue_songs


def continue_at_steps(
    sampler: Sampler, prompts: Sequence[EvaluationPrompt], num: int, *, bars: int, seed: int = 0
) -> dict[int, list[Song]]:
    """Continuations of the same prompts by up to `num` checkpoints of the model's run that are older than it, by step.

    An exported model has none. The sampler has its model again afterwards.
    """
    model, found = sampler.model, dict[int, list[Song]]()
    if model.run is None or num < 1:
        return {}
    try:
        for older in trained.load_older(model.run, model.step, num):
            sampler.set_model(older)
            found[older.step] = [x.written for x in continue_songs(sampler, prompts, bars=bars, seed=seed)]
    finally:
        sampler.set_model(model)
    return found


def longest(notes: Sequence[int]) -> dict[str, Any]:
    """The longest excerpts of several takes, in notes, and their median and maximum; None of none."""
    return {
        "longest": [*notes],
        "median": float(np.median(notes)) if notes else None,
        "maximum": max(notes, default=None),
    }


def curves(
    older: dict[str, dict[int, list[Song]]],
    newest: dict[str, tuple[int, list[int]]],
    real: list[int],
    corpus: Corpus,
) -> dict[str, Any]:
    """The curve of each run that has older checkpoints, and the songs' own figures.

    Args:
        older: by run and step, takes.
        newest: by run, its last step and the longest training excerpts of its takes, in notes.
        real: the same of the songs' own continuations.
    """
    takes = [song.notes for by_step in older.values() for songs in by_step.values() for song in songs]
    found = iter(longest_common_excerpts(takes, training_notes(corpus)[1], multi=corpus.vocabulary.scheme.multi))
    runs: dict[str, Any] = {}
    for name, by_step in older.items():
        notes = {step: [x.notes for x in islice(found, len(songs))] for step, songs in by_step.items()}
        last, of_last = newest[name]
        # A take without notes has no excerpt.
        runs[name] = {step: longest([n for n in some if n]) for step, some in [*notes.items(), (last, of_last)]}
    return {"songs": longest(real), "runs": {name: by_step for name, by_step in runs.items() if len(by_step) > 1}}
