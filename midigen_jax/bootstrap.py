"""Intervals by resampling songs: the songs of a collection, not their tokens, are what is drawn by chance."""

from typing import NamedTuple

import numpy as np
from scipy import stats

RESAMPLES = 4000


class Interval(NamedTuple):
    """A value and the interval that covers its true one in 95 of 100 collections."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def ratio(sums: np.ndarray, counts: np.ndarray, *, seed: int = 0) -> Interval | None:
    """The ratio of two totals over songs, with its interval; None where nothing was counted.

    Percentiles of resampled songs (Efron 1979), further out the fewer songs there are (Hesterberg 2015, "What teachers
    should know about the bootstrap", section 3.2): plain ones would cover the truth of 8 songs in 90 of 100 cases. Of
    one song there is no interval.

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
    n = len(sums)
    tail = stats.norm.cdf(-np.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1)) if n > 1 else 0.5
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high))
