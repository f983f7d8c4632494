import pytest

from midigen_jax.evaluation.wilson import wilson

# From Wilson's formula with z = 1.959964.
KNOWN = {(0, 64): (0, 0.0566241), (1, 1): (0.2065493, 1), (7, 12): (0.3195113, 0.8067397), (12, 12): (0.757506, 1)}


@pytest.mark.parametrize(("successes", "trials"), KNOWN)
def test_known_intervals(successes, trials):
    found = wilson(successes, trials)
    assert found is not None
    assert found.value == successes / trials
    assert (found.low, found.high) == pytest.approx(KNOWN[successes, trials], abs=1e-6)


def test_of_nothing_there_is_no_share():
    assert wilson(0, 0) is None
