"""Intervals by resampling songs: the songs of a collection, not their tokens, are what is drawn by chance."""

from typing import NamedTuple

import numpy as np

RESAMPLES = 4000


class Interval(NamedTuple):
    """A value and the interval that covers its true one in 95 of 100 collections."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def ratio(sums: np.ndarray, counts: np.ndarray, *, seed: int = 0) -> Interval | None:
    """The ratio of two totals over songs, with its percentile interval (Efron 1979); None where nothing was counted.

    For the difference between two ways to read the same songs give the differences of their sums, so that the songs are
    drawn in pairs.

    Args:
        sums, counts: float [songs] both, such as a song's loss and its tokens.
    """
    counted = counts > 0
    sums, counts = np.asarray(sums, float)[counted], np.asarray(counts, float)[counted]
    if len(sums) == 0:
        return None
    drawn = np.random.default_rng(seed).integers(0, len(sums), (RESAMPLES, len(sums)))
    ratios = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high))
