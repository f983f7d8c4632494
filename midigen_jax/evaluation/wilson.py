"""The confidence interval of a share, such as of takes with a fault or of votes for a model."""

from scipy import stats

from .bootstrap import Interval


def wilson(successes: int, trials: int) -> Interval | None:
    """A share with its 95 % Wilson score interval (Wilson 1927); None of nothing.

    Unlike resampling it says something of 0 in 64 as well: at most 0.06.
    """
    if trials == 0:
        return None
    found = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    return Interval(successes / trials, float(found.low), float(found.high))
