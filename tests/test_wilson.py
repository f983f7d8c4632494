import pytest
from scipy.stats import binomtest

from midigen_jax.evaluation.wilson import wilson


@pytest.mark.parametrize(("successes", "trials"), [(0, 64), (1, 1), (7, 12), (12, 12), (31, 64), (500, 1000)])
def test_the_interval_is_that_of_scipy(successes, trials):
    found = wilson(successes, trials)
    assert found is not None
    expected = binomtest(successes, trials).proportion_ci(method="wilson")
    assert found.value == successes / trials
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_of_nothing_there_is_no_share():
    assert wilson(0, 0) is None
