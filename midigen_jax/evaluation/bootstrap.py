"""Confidence intervals by resampling songs: songs are the independent samples, their tokens are not."""

from typing import NamedTuple

import numpy as np
from scipy import stats

RESAMPLES = 4000


class Interval(NamedTuple):
    """A value and its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        between = f" [{self.low:.3f}, {self.high:.3f}]" if self.low < self.high else ""  # a single song has none
        return f"{self.value:.3f}{between}"


def ratio(sums: np.ndarray, counts: np.ndarray, *, seed: int = 0) -> Interval | None:
    """The ratio of two totals over songs, with its interval; None where nothing was counted.

    The interval is a percentile bootstrap over songs (Efron 1979), with wider percentiles the fewer songs there are
    (Hesterberg 2015, "What teachers should know about the bootstrap", section 3.2): with 8 songs plain percentiles
    would cover the truth in only 90 of 100 cases. For a single song the interval is the value itself.

    For a difference between two readings of the same songs, pass the differences of their sums, so that songs are
    resampled in pairs.

    Args:
        sums, counts: float [songs] both, such as each song's loss and its number of tokens.
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
