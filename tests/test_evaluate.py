"""Losses by token type and by group of tokens."""

import numpy as np

from midigen_jax import vocab
from midigen_jax.evaluation import ablations
from midigen_jax.evaluation.evaluate import DURATION, OTHER, PITCH, REST, mean_losses, token_types


def test_the_type_of_each_token():
    note, duration = vocab.NOTE_0 + 60, vocab.DURATION_0 + 8
    tokens = np.array([vocab.SOS, note, duration, vocab.SEP, duration, note, duration, vocab.EOS])
    assert token_types(tokens, vocab.Vocabulary()).tolist() == [PITCH, DURATION, REST, REST, PITCH, DURATION, OTHER]


def test_means_are_over_the_counted_tokens():
    nats = {
        ablations.XL: [np.array([1.0, 2.0]), np.array([3.0])],
        ablations.KNN: [np.array([1.0, 1.0]), np.array([0.0])],
    }
    found = mean_losses(nats, [np.array([False, True]), np.array([True])])
    assert found[ablations.XL] == (2.5, 2.0, 3.0)
    assert found[ablations.KNN] == (0.5, 0.0, 1.0)
    assert found[f"{ablations.KNN} minus {ablations.XL}"] == (-2.0, -3.0, -1.0)
    nothing = mean_losses(nats, [np.zeros(2, bool), np.zeros(1, bool)])
    assert set(nothing.values()) == {None}
