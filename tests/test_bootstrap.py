import numpy as np
import pytest

from midigen_jax.evaluation import bootstrap
from midigen_jax.evaluation.bootstrap import Interval


def ratio(sums: np.ndarray, counts: np.ndarray, *, seed: int = 0) -> Interval:
    """Of what has been counted."""
    found = bootstrap.ratio(sums, counts, seed=seed)
    assert found is not None
    return found


def test_the_value_is_the_ratio_of_totals():
    found = ratio(np.array([1.0, 5.0, 0.0]), np.array([2.0, 4.0, 0.0]))
    assert found.value == 1
    assert (found.low, found.high) == (0.5, 1.25)  # of two songs, the extremes
    assert bootstrap.ratio(np.zeros(2), np.zeros(2)) is None
    assert ratio(np.array([3.0]), np.array([2.0])) == (1.5, 1.5, 1.5)


@pytest.mark.parametrize("songs", [6, 60])
def test_intervals_cover_the_truth(songs):
    """Of 300 collections of songs of different lengths and losses, in about 95 %."""
    random, covered = np.random.default_rng(0), 0
    for i in range(300):
        tokens = random.integers(100, 1000, songs)
        own = random.normal(1.5, 0.3, songs)  # independent of the length, so 1.5 is the truth
        found = ratio(tokens * own, tokens, seed=i)
        covered += found.low <= 1.5 <= found.high
    assert 0.91 <= covered / 300 <= 0.985


def test_pairing_makes_a_small_difference_significant():
    """The variation between songs does not hide a difference that each of them shows."""
    random = np.random.default_rng(0)
    tokens = random.integers(100, 1000, 60)
    one = tokens * random.normal(1.5, 0.5, 60)
    other = one - tokens * random.normal(0.02, 0.01, 60)
    apart = [ratio(x, tokens) for x in (one, other)]
    assert apart[1].high > apart[0].low
    difference = ratio(other - one, tokens)
    assert difference.value == pytest.approx(-0.02, abs=0.005)
    assert difference.high < 0
