import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from midigen_jax import config as cfg
from midigen_jax.context import LENGTH, Context
from midigen_jax.vocab import Vocabulary

CONFIG = cfg.Config(model=cfg.Model(width=128, heads=2))


@pytest.fixture(scope="module")
def context():
    return Context(CONFIG, Vocabulary(), 96, rngs=nnx.Rngs(0))


def key(context, tokens, *, step=8, song=None):
    """Of the last of some tokens, [H, Dh]."""
    tokens = np.pad(tokens, (LENGTH, 0), constant_values=0)[-LENGTH:]
    song = np.zeros(LENGTH, int) if song is None else song
    return np.asarray(context(jnp.asarray(tokens)[None], jnp.asarray(song)[None], jnp.array([[step]])))[0, 0]


def likeness(a, b):
    return (a * b).sum(-1)


def test_the_more_two_places_share_the_more_alike_they_are(context):
    random = np.random.default_rng(0)
    tokens = random.integers(4, 389, LENGTH)
    own = key(context, tokens)
    np.testing.assert_allclose(likeness(own, own), 1, rtol=1e-5)
    alike = []
    for shared in (0, 1, 2, 4, 8, 15):
        others = [np.append(random.integers(4, 389, LENGTH - shared), tokens[LENGTH - shared :]) for _ in range(50)]
        alike.append(np.mean([likeness(own, key(context, other)) for other in others], 0))
    assert (np.diff(alike, axis=0) > 0).all()
    assert (alike[2] > 0.5)[0]  # the first head hears the last few tokens ...
    assert (alike[2] < 0.5)[1]  # ... the last one many
    assert (alike[-1] > 0.9).all()


def test_order_and_step_count(context):
    tokens = np.random.default_rng(0).integers(4, 389, LENGTH)
    own = key(context, tokens)
    assert (likeness(own, key(context, tokens[::-1])) < 0.5).all()
    assert (likeness(own, key(context, tokens, step=9)) < 0.95).all()
    np.testing.assert_array_equal(own, key(context, tokens, step=8 + 96))


def test_tokens_of_another_song_do_not_count(context):
    random = np.random.default_rng(0)
    tokens, song = random.integers(4, 389, LENGTH), np.repeat([0, 1], [LENGTH - 5, 5])
    other = np.append(random.integers(4, 389, LENGTH - 5), tokens[-5:])
    np.testing.assert_array_equal(key(context, tokens, song=song), key(context, other, song=song))
    assert (key(context, tokens) != key(context, other)).any()


def test_keys_of_a_tape_are_those_of_its_places(context):
    random = np.random.default_rng(0)
    tokens, step = random.integers(4, 389, LENGTH + 9), random.integers(0, 96, 10)
    song = np.repeat([0, 1], [LENGTH, 9])
    keys = context(jnp.asarray(tokens)[None], jnp.asarray(song)[None], jnp.asarray(step)[None])[0]
    for i in range(10):
        here = slice(i, i + LENGTH)
        np.testing.assert_allclose(keys[i], key(context, tokens[here], step=step[i], song=song[here]), atol=1e-6)
