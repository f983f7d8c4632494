"""The confidence interval of a share, such as of takes with a fault or of votes for a model."""

import math

from .bootstrap import Interval

Z = 1.959964  # of 95 %, both tails


def wilson(successes: int, trials: int) -> Interval | None:
    """A share with its Wilson score interval (Wilson 1927); None of nothing.

    Unlike resampling it says something of 0 in 64 as well: at most 0.06.
    """
    if trials == 0:
        return None
    share, scale = successes / trials, 1 + Z * Z / trials
    centre = (share + Z * Z / (2 * trials)) / scale
    half = Z / scale * math.sqrt(share * (1 - share) / trials + Z * Z / (4 * trials * trials))
    # Exact at the ends, where rounding would leave a speck.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return Interval(share, low, high)
