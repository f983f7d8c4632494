"""Inside the kNN memory: which bars were found for which, how much they counted, and how long ago they were."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .arms import Reader
from .repeats import KINDS
from .song import Tape

MOST_BARS = 512  # of a song whose matrix is drawn
AGE_EDGES = 2.0 ** np.arange(0, 14)  # in contexts: XL memory and a segment


def bar_matrix(ages: np.ndarray, weights: np.ndarray, bar: np.ndarray) -> np.ndarray:
    """How much each bar took from each earlier one, float64 [bars, bars]: the share of the heads' attention, on the
    average over heads and over a bar's tokens.

    What a token found says which one comes next: it counts for the bar of that, and as taken from the bar of the token
    that followed the hit.

    Args:
        ages, weights: [H, N, k] of `Reader.recalled`.
        bar: [N], that each token begins in.
    """
    ages, weights, bar = ages[:, :-1], weights[:, :-1], bar.astype(int)  # nothing comes after the last token
    next_token = np.arange(1, len(bar))[:, None]
    found, n_bars = ages > 0, int(bar[-1]) + 1
    to, source = (bar[np.broadcast_to(x, ages.shape)[found]] for x in (next_token, next_token - ages))
    total = np.bincount(to * n_bars + source, weights[found], n_bars * n_bars).reshape(n_bars, n_bars)
    return total / np.maximum(len(ages) * np.bincount(bar[1:], minlength=n_bars), 1)[:, None]


def look_inside(reader: Reader, songs: Sequence[Tape], kinds: Sequence[np.ndarray], drawn: int) -> dict[str, Any]:
    """The figures of some songs, and the matrices of the first ones that have at most MOST_BARS bars.

    Args:
        kinds: of each song [N - 1], the kind of the bar that each token but sos is in.
        drawn: matrices.
    """
    context = reader.config.memory.xl + reader.config.data.segment
    heads = reader.config.model.heads
    shares = {kind: np.zeros(heads) for kind in KINDS}
    counts = dict.fromkeys(KINDS, 0)
    aged, matrices = np.zeros(len(AGE_EDGES) + 1), list[dict[str, Any]]()
    for i, (song, kind, (ages, weights)) in enumerate(zip(songs, kinds, reader.recalled(songs), strict=True)):
        if len(matrices) < drawn and song.bar[-1] < MOST_BARS:
            shares_of_bars = np.round(bar_matrix(ages, weights, song.bar), 4)
            matrices.append({"song": i, "shares": shares_of_bars.tolist()})
        share = weights.sum(-1)[:, :-1]  # the last token predicts nothing
        found = np.asarray((ages > 0).any((0, 2)))[:-1]
        for name in KINDS:
            here = found & np.equal(kind, name)
            shares[name] += share[:, here].sum(1)
            counts[name] += int(here.sum())
        aged += np.bincount(np.digitize(ages[ages > 0] / context, AGE_EDGES), weights[ages > 0], len(aged))
    return {
        "share by repetition": {
            name: (shares[name] / counts[name]).tolist() if counts[name] else None for name in KINDS
        },
        "share": (np.sum(list(shares.values()), 0) / max(sum(counts.values()), 1)).tolist(),
        "age edges, contexts": AGE_EDGES.tolist(),
        "weight by age": (aged / max(aged.sum(), 1e-9)).tolist(),
        "matrices": matrices,
    }
