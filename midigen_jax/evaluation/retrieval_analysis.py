"""What the kNN memory retrieves: from which bars, with which share of the attention, and from how long ago."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..music.song import TokenSequence
from .ablations import SongReader
from .repeats import KINDS, reach_of

MAX_BARS = 512  # songs with more bars are not drawn
AGE_EDGES = 2.0 ** np.arange(0, 14)  # in contexts (XL memory and a segment)


def bar_matrix(ages: np.ndarray, weights: np.ndarray, bar: np.ndarray) -> np.ndarray:
    """The share of the attention that each bar pays to each earlier one, float64 [bars, bars], averaged over heads and
    over the bar's tokens.

    A hit predicts the next token. So it is counted for that token's bar, and as attention to the bar of the token that
    followed the hit.

    Args:
        ages, weights: [H, N, k] of `SongReader.retrieved`.
        bar: [N], that each token begins in.
    """
    ages, weights, bar = ages[:, :-1], weights[:, :-1], bar.astype(int)  # the last token predicts nothing
    next_token = np.arange(1, len(bar))[:, None]
    found, n_bars = ages > 0, int(bar[-1]) + 1
    to, source = (bar[np.broadcast_to(x, ages.shape)[found]] for x in (next_token, next_token - ages))
    total = np.bincount(to * n_bars + source, weights[found], n_bars * n_bars).reshape(n_bars, n_bars)
    return total / np.maximum(len(ages) * np.bincount(bar[1:], minlength=n_bars), 1)[:, None]


def analyse_retrieval(
    reader: SongReader, songs: Sequence[TokenSequence], kinds: Sequence[np.ndarray], n_matrices: int
) -> dict[str, Any]:
    """Statistics of the retrieval in some songs, and the bar matrices of the first ones with at most MAX_BARS bars.

    Args:
        kinds: for each song [N - 1], the kind of the bar that each token but sos is in.
        n_matrices: how many matrices.
    """
    context = reach_of(reader.config)
    heads = reader.config.model.heads * reader.config.memory.has_keys + reader.config.memory.aligns
    shares = {kind: np.zeros(heads) for kind in KINDS}
    counts = dict.fromkeys(KINDS, 0)
    weight_by_age, matrices = np.zeros(len(AGE_EDGES) + 1), list[dict[str, Any]]()
    for i, (song, kind, (ages, weights)) in enumerate(zip(songs, kinds, reader.retrieved(songs), strict=True)):
        if len(matrices) < n_matrices and song.bar[-1] < MAX_BARS:
            matrices.append({"song": i, "shares": np.round(bar_matrix(ages, weights, song.bar), 4).tolist()})
        share = weights.sum(-1)[:, :-1]  # the last token predicts nothing
        found = np.asarray((ages > 0).any((0, 2)))[:-1]
        for name in KINDS:
            here = found & np.equal(kind, name)
            shares[name] += share[:, here].sum(1)
            counts[name] += int(here.sum())
        bins = np.digitize(ages[ages > 0] / context, AGE_EDGES)
        weight_by_age += np.bincount(bins, weights[ages > 0], len(weight_by_age))
    return {
        "share by repetition": {
            name: (shares[name] / counts[name]).tolist() if counts[name] else None for name in KINDS
        },
        "share": (np.sum(list(shares.values()), 0) / max(sum(counts.values()), 1)).tolist(),
        "age edges, contexts": AGE_EDGES.tolist(),
        "weight by age": (weight_by_age / max(weight_by_age.sum(), 1e-9)).tolist(),
        "matrices": matrices,
    }
