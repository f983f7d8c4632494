import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from midigen_jax import config as cfg
from midigen_jax.errors import InputError
from midigen_jax.model.context_keys import LENGTH, ContextKeys, rotation
from midigen_jax.vocab import Vocabulary

CONFIG = cfg.Config(model=cfg.Model(width=128, heads=2))


@pytest.fixture(scope="module")
def context():
    return ContextKeys(CONFIG, Vocabulary(), 96, rngs=nnx.Rngs(0))


def key(context, tokens, *, position=8, song=None):
    """Of the last of some tokens, [H, Dh]."""
    tokens = np.pad(tokens, (LENGTH, 0), constant_values=0)[-LENGTH:]
    song = np.zeros(LENGTH, int) if song is None else song
    return np.asarray(context(jnp.asarray(tokens)[None], jnp.asarray(song)[None], jnp.array([[position]])))[0, 0]


def similarity(a, b):
    return (a * b).sum(-1)


def test_the_more_two_places_share_the_more_alike_they_are(context):
    random = np.random.default_rng(0)
    tokens = random.integers(4, 389, LENGTH)
    own = key(context, tokens)
    np.testing.assert_allclose(similarity(own, own), 1, rtol=1e-5)
    alike = []
    for shared in (0, 1, 2, 4, 8, 15):
        others = [np.append(random.integers(4, 389, LENGTH - shared), tokens[LENGTH - shared :]) for _ in range(50)]
        alike.append(np.mean([similarity(own, key(context, other)) for other in others], 0))
    assert (np.diff(alike, axis=0) > 0).all()
    assert (alike[2] > 0.5)[0]  # the first head describes the last few tokens ...
    assert (alike[2] < 0.5)[1]  # ... the last one many
    assert (alike[-1] > 0.9).all()


def test_order_and_position_count(context):
    tokens = np.random.default_rng(0).integers(4, 389, LENGTH)
    own = key(context, tokens)
    assert (similarity(own, key(context, tokens[::-1])) < 0.5).all()
    assert (similarity(own, key(context, tokens, position=9)) < 0.95).all()
    np.testing.assert_array_equal(own, key(context, tokens, position=8 + 96))


def test_tokens_of_another_song_do_not_count(context):
    random = np.random.default_rng(0)
    tokens, song = random.integers(4, 389, LENGTH), np.repeat([0, 1], [LENGTH - 5, 5])
    other = np.append(random.integers(4, 389, LENGTH - 5), tokens[-5:])
    np.testing.assert_array_equal(key(context, tokens, song=song), key(context, other, song=song))
    assert (key(context, tokens) != key(context, other)).any()


def test_keys_of_a_sequence_are_those_of_its_tokens(context):
    random = np.random.default_rng(0)
    tokens, position = random.integers(4, 389, LENGTH + 9), random.integers(0, 96, 10)
    song = np.repeat([0, 1], [LENGTH, 9])
    keys = context(jnp.asarray(tokens)[None], jnp.asarray(song)[None], jnp.asarray(position)[None])[0]
    for i in range(10):
        here = slice(i, i + LENGTH)
        np.testing.assert_allclose(
            keys[i], key(context, tokens[here], position=position[i], song=song[here]), atol=1e-6
        )


@pytest.mark.parametrize("head_width", [16, 20, 25, 35, 40, 64, 75, 80, 96])
def test_every_distance_has_a_rotation_of_its_own(head_width):
    """Else two tokens at two distances would be the same in either order."""
    shifts = {rotation(head_width) * distance % head_width for distance in range(LENGTH)}
    assert len(shifts) == LENGTH
    config = cfg.Config(model=cfg.Model(width=head_width, heads=1, positions="t5"))
    context = ContextKeys(config, Vocabulary(), 96, rngs=nnx.Rngs(0))
    tokens = np.random.default_rng(0).integers(4, 389, LENGTH)
    swapped = tokens.copy()
    swapped[[0, 8]] = tokens[[8, 0]]  # at distances 15 and 7
    assert similarity(key(context, tokens), key(context, swapped)) < 0.9999


def test_heads_too_narrow_for_the_order_are_refused():
    with pytest.raises(InputError, match=r"model\.heads=32: must leave each head a width of at least 16"):
        cfg.Config(model=cfg.Model(width=256, heads=32), memory=cfg.Memory(retrieval="context"))
