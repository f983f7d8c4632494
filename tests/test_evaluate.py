import numpy as np

from midigen_jax import arms, vocab
from midigen_jax.evaluate import DURATION, OTHER, PITCH, REST, cells, parts_of


def test_what_tokens_say():
    note, duration = vocab.NOTE_0 + 60, vocab.DURATION_0 + 8
    tokens = np.array([vocab.SOS, note, duration, vocab.SEP, duration, note, duration, vocab.EOS])
    assert parts_of(tokens).tolist() == [PITCH, DURATION, REST, REST, PITCH, DURATION, OTHER]


def test_cells_are_means_over_the_counted_tokens_and_their_differences():
    nats = {arms.XL: [np.array([1.0, 2.0]), np.array([3.0])], arms.KNN: [np.array([1.0, 1.0]), np.array([0.0])]}
    found = cells(nats, [np.array([False, True]), np.array([True])])
    assert found[arms.XL].value == 2.5
    assert found[arms.KNN].value == 0.5
    assert found[f"{arms.KNN} less {arms.XL}"] == (-2.0, -3.0, -1.0)
    nothing = cells(nats, [np.zeros(2, bool), np.zeros(1, bool)])
    assert set(nothing.values()) == {None}
