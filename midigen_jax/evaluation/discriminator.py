"""Can a classifier tell written music from real music? A measure that needs no list of what may go wrong.

A random forest (Breiman 2001) is trained on windows of a few bars, each described by numbers, and judges windows of
songs that it was not trained on. The area under its ROC curve is the probability that it takes the written one of two
windows for the written one: 0.5 if it can't tell them apart, 1 if it always can (Lopez-Paz and Oquab 2017, "Revisiting
classifier two-sample tests").
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..music.harmony import pitched
from ..music.loops import bar_contents
from ..music.metrics import DURATIONS, METRICS, duration_shares, onset_shares, self_similarity
from ..music.song import Song, excerpt
from .bootstrap import RESAMPLES, Interval

WINDOW = 8  # bars
LEAST_NOTES = 8  # in a window
FOLDS = 8
TREES = 300
NAMED = 6  # features that are named as what the classifier looks at
INTERVALS = (0, 2, 4, 7, 12)  # semitones between successive top notes: up to each, or more


def windows(song: Song, bars: int) -> list[Song]:
    """The parts of WINDOW bars of an excerpt of so many bars, those with enough notes."""
    parts = [excerpt(song, bar, WINDOW) for bar in range(0, bars - WINDOW + 1, WINDOW)]
    return [part for part in parts if len(part.notes) >= LEAST_NOTES]


def features(song: Song) -> dict[str, float]:
    """What the classifier knows of a window; nan where something has no value."""
    notes = pitched(song)
    bars = np.array([len(bar) for _, bar in bar_contents(song)] + [0] * WINDOW)[:WINDOW]
    onsets, sizes = np.unique(notes[:, 0], return_counts=True)
    top = np.full(len(onsets), -1)
    np.maximum.at(top, np.searchsorted(onsets, notes[:, 0]), notes[:, 2])
    steps, pitches = np.abs(np.diff(top)), notes[:, 2]
    found = {name: metric(song) for name, metric in METRICS.items()}
    found |= {f"self-similarity at {lag}": x for lag, x in enumerate(self_similarity(song)[:4].tolist(), 1)}
    found |= {f"onsets at {i}/12 of a beat": x for i, x in enumerate(onset_shares(song).reshape(12, 2).sum(1).tolist())}
    names = [*(f"durations to {x:.2g}" for x in DURATIONS), "longer durations"]
    found |= dict(zip(names, duration_shares(song).tolist(), strict=True))
    intervals = np.bincount(np.searchsorted(INTERVALS, steps), minlength=len(INTERVALS) + 1) / max(len(steps), 1)
    found |= {f"top line, class of steps {i}": x for i, x in enumerate(intervals.tolist())}
    found |= {f"share of onsets with {i} notes": float(np.mean(sizes == i)) for i in (1, 2, 3, 4)}
    found |= {"mean pitch": pitches.mean(), "spread of pitches": pitches.std()}
    found |= {"lowest pitch": pitches.min(), "highest pitch": pitches.max(), "range of the top line": np.ptp(top)}
    found |= {"spread of notes a bar": bars.std(), "most notes in a bar": bars.max(), "fewest": bars.min()}
    found["different notes a bar"] = len({note for _, bar in bar_contents(song) for note in bar}) / WINDOW
    return {name: float(x) for name, x in found.items()}


def shuffled_bars(song: Song, bars: int, random: np.random.Generator) -> Song:
    """The excerpt with its bars in another order: a control, in which each bar is real."""
    order = random.permutation(bars)
    parts = []
    for place, bar in enumerate(order.tolist()):
        notes = excerpt(song, bar, 1).notes
        notes[:, 0] += song.bar_start(place)
        parts.append(notes)
    notes = np.concatenate(parts)
    return song._replace(notes=notes[np.argsort(notes[:, 0], kind="stable")])


def discriminate(real: Sequence[Song], written: Sequence[Song], bars: int, *, seed: int = 0) -> dict[str, Any] | None:
    """How well real excerpts are told from written ones of the same songs, by their windows.

    Args:
        real, written: excerpts of so many bars, of the same songs in the same order.

    Returns:
        The area under the ROC curve with its interval over songs, and the features that matter most, each with the
        loss of that area when it is shuffled. None if there are too few songs with notes in both.
    """
    from sklearn.ensemble import RandomForestClassifier  # takes a second to import
    from sklearn.inspection import permutation_importance
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold

    rows: list[dict[str, float]] = []
    labels: list[int] = []
    songs: list[int] = []
    for number, pair in enumerate(zip(real, written, strict=True)):
        parts = [windows(x, bars) for x in pair]
        if all(parts):
            for is_written, some in enumerate(parts):
                rows += [features(part) for part in some]
                labels += [is_written] * len(some)
                songs += [number] * len(some)
    label, group = np.array(labels), np.array(songs)
    numbers = np.unique(group)
    if len(numbers) < FOLDS:
        return None
    names = list(rows[0])
    table = np.array([[row[name] for name in names] for row in rows])
    score, importance = np.zeros(len(label)), np.zeros(len(names))
    for train, test in GroupKFold(FOLDS).split(table, label, group):
        forest = RandomForestClassifier(TREES, min_samples_leaf=3, class_weight="balanced", random_state=seed)
        forest.fit(table[train], label[train])
        score[test] = forest.predict_proba(table[test])[:, 1]
        shuffled = permutation_importance(
            forest, table[test], label[test], scoring="roc_auc", n_repeats=3, random_state=seed
        )
        importance += shuffled.importances_mean / FOLDS
    of_song = [np.flatnonzero(group == n) for n in numbers]
    random = np.random.default_rng(seed)
    areas = []
    for _ in range(RESAMPLES // 4):
        drawn = np.concatenate([of_song[i] for i in random.integers(0, len(of_song), len(of_song))])
        areas.append(roc_auc_score(label[drawn], score[drawn]))
    low, high = np.quantile(areas, [0.025, 0.975])
    best = np.argsort(-importance)[:NAMED]
    return {
        "area": Interval(float(roc_auc_score(label, score)), float(low), float(high)),
        "windows": len(label),
        "looks at": {names[i]: float(importance[i]) for i in best},
    }
