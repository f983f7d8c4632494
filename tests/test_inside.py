from types import SimpleNamespace

import numpy as np
import pytest

from midigen_jax import config as cfg
from midigen_jax.inside import AGE_EDGES, bar_matrix, look_inside
from midigen_jax.repeats import FAR, NEW
from midigen_jax.song import Tape

# Six tokens in three bars, one head, two hits: token 4 found tokens 0 and 1, which tokens 1 and 2 followed, and so says
# something of token 5; token 5, the last, found token 2.
BAR = np.array([0, 0, 1, 1, 2, 2], np.uint16)
AGES = np.array([[[0, 0], [0, 0], [0, 0], [0, 0], [4, 3], [3, 0]]])
WEIGHTS = np.array([[[0, 0], [0, 0], [0, 0], [0, 0], [0.5, 0.25], [0.2, 0]]])


def test_a_hit_counts_for_the_bar_of_what_followed():
    expected = np.zeros((3, 3))
    expected[2] = [0.5 / 2, 0.25 / 2, 0]  # of two tokens; what the last token found is asked for by nothing
    np.testing.assert_allclose(bar_matrix(AGES, WEIGHTS, BAR), expected)
    np.testing.assert_allclose(bar_matrix(np.repeat(AGES, 2, 0), np.repeat(WEIGHTS, 2, 0), BAR), expected)


def test_shares_and_ages():
    config = cfg.Config(
        model=cfg.Model(heads=1), memory=cfg.Memory(xl=1, knn=4), data=cfg.Data(segment=2)
    )  # a context of 3 tokens
    reader = SimpleNamespace(config=config, recalled=lambda songs: [(AGES, WEIGHTS)] * len(songs))
    kind = np.array([NEW] * 4 + [FAR])  # of tokens 1 to 5: that which token 4 helps to predict is FAR
    tape = Tape(np.zeros(6, np.uint16), BAR, BAR)
    found = look_inside(reader, [tape, tape], [kind, kind], 1)
    assert found["share by repetition"][FAR] == [0.75]
    assert found["share by repetition"][NEW] is None  # nothing was found there
    assert found["share"] == [0.75]
    assert [matrix["song"] for matrix in found["matrices"]] == [0]
    expected = np.zeros(len(AGE_EDGES) + 1)
    expected[1] = 1  # 3 and 4 tokens are 1 to 2 contexts
    assert found["weight by age"] == pytest.approx(expected)
