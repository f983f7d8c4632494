from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from midigen_jax import config as cfg
from midigen_jax.evaluation.repeats import FAR, NEW
from midigen_jax.evaluation.retrieval_analysis import AGE_EDGES, analyse_retrieval, bar_matrix
from midigen_jax.music.song import TokenSequence

# Six tokens in three bars, one head, up to two hits: token 4, which predicts token 5, found tokens 0 and 1, followed by
# tokens 1 and 2; token 5, the last, found token 2.
BAR = np.array([0, 0, 1, 1, 2, 2], np.uint16)
AGES = np.array([[[0, 0], [0, 0], [0, 0], [0, 0], [4, 3], [3, 0]]])
WEIGHTS = np.array([[[0, 0], [0, 0], [0, 0], [0, 0], [0.5, 0.25], [0.2, 0]]])


def test_a_hit_counts_for_the_bar_of_the_token_that_followed_it():
    expected = np.zeros((3, 3))
    expected[2] = [0.5 / 2, 0.25 / 2, 0]  # of two tokens; the last token predicts nothing
    np.testing.assert_allclose(bar_matrix(AGES, WEIGHTS, BAR), expected)
    np.testing.assert_allclose(bar_matrix(np.repeat(AGES, 2, 0), np.repeat(WEIGHTS, 2, 0), BAR), expected)


def test_shares_and_ages():
    config = cfg.Config(
        model=cfg.Model(heads=1), memory=cfg.Memory(xl=1, knn=4, retrieval="context"), data=cfg.Data(segment=2)
    )  # a context of 3 tokens
    reader: Any = SimpleNamespace(config=config, retrieved=lambda songs: [(AGES, WEIGHTS)] * len(songs))
    kind = np.array([NEW] * 4 + [FAR])  # of tokens 1 to 5: the one that token 4 predicts is FAR
    sequence = TokenSequence(np.zeros(6, np.uint16), BAR, BAR)
    found = analyse_retrieval(reader, [sequence, sequence], [kind, kind], 1)
    assert found["share by repetition"][FAR] == [0.75]
    assert found["share by repetition"][NEW] is None  # nothing was found there
    assert found["share"] == [0.75]
    assert [matrix["song"] for matrix in found["matrices"]] == [0]
    expected = np.zeros(len(AGE_EDGES) + 1)
    expected[1] = 1  # 3 and 4 tokens are 1 to 2 contexts
    assert found["weight by age"] == pytest.approx(expected)
