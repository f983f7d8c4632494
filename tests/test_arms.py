"""Songs read with and without their memories."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_model import build, changed

from midigen_jax import arms, memory, model, step, vocab
from midigen_jax import config as cfg
from midigen_jax.arms import ANOTHER, KNN, NONE, XL, Reader
from midigen_jax.song import Tape
from midigen_jax.vocab import Vocabulary


def tape(tokens):
    """A song that is given as tokens, a step each."""
    place = np.arange(len(tokens), dtype=np.uint16)
    return Tape(np.asarray(tokens, np.uint16), place // 32, place % 32)


def random_songs(lengths, seed=0):
    random = np.random.default_rng(seed)
    return [[vocab.SOS, *random.integers(vocab.NOTE_0, vocab.DURATION_0, n - 2), vocab.EOS] for n in lengths]


def copier_config():
    return cfg.Config(
        model=cfg.Model(layers=1, width=128, heads=2, ff_width=8, previous_tokens=0, qk_norm=False),
        memory=cfg.Memory(xl=16, knn=256, knn_layer=1, top_k=4),
        data=cfg.Data(lanes=2, segment=16),
    )


def copier_params():
    """Of a model that expects what followed when the same was heard before, and nothing in particular else.

    One layer, to which nothing but the memory adds anything.
    """
    params = model.init_params(copier_config(), Vocabulary(), seed=0)[1]
    random = np.random.default_rng(0)
    params |= {"bar": jnp.zeros_like(params["bar"]), "step": jnp.zeros_like(params["step"])}
    for name, size in (("token", 1.0), ("output", 0.15)):
        params[name] = jnp.asarray(size * random.normal(size=params[name].shape), jnp.float32)
    block = params["blocks"][0]
    block["ff"]["down"]["kernel"] *= 0
    block["attention"] |= {"out": 0 * block["attention"]["out"], "vote": jnp.full(2, 20.0)}
    return params


@pytest.fixture(scope="module")
def copier():
    return Reader(copier_config(), copier_params(), Vocabulary())


def mean(rows):
    return float(np.concatenate(rows).mean())


def test_the_right_song_planted_in_the_memory_lowers_the_loss_and_a_wrong_one_does_not(copier):
    song, other = random_songs([120, 120])
    right, wrong = [tape(song)] * 2, [tape(song), tape(other)]
    alone = mean(copier.nats(right, XL)[:1])
    assert mean(copier.nats(right, ANOTHER)[:1]) < alone / 4
    assert mean(copier.nats(wrong, ANOTHER)[:1]) > alone - 0.1


def test_a_song_that_comes_back_is_remembered(copier):
    theme, filler = random_songs([60, 100])
    song = tape([*theme[:-1], *filler[1:-1], *theme[1:]])
    nats = {arm: copier.nats([song], arm)[0][-50:].mean() for arm in (XL, KNN)}
    assert nats[KNN] < nats[XL] / 4


def test_what_is_recalled_is_where_it_was_heard(copier):
    theme, filler = random_songs([60, 100])
    song = tape([*theme[:-1], *filler[1:-1], *theme[1:]])
    ((ages, weights),) = copier.recalled([song])
    assert ages.shape == weights.shape == (2, len(song.tokens), 4)
    again = slice(-40, -1)
    best = np.take_along_axis(ages[:, again], weights[:, again].argmax(-1)[..., None], -1)
    assert (best[1] == len(theme) - 1 + len(filler) - 2 - 1).mean() > 0.9  # the last head, which looks far back
    assert ((ages > 0) == (weights > 0)).mean() > 0.99
    assert (weights.sum(-1) <= 1 + 1e-5).all()
    assert (ages[:, :32] == 0).all()  # nothing has left the window yet


def test_arms_are_what_they_say(small):
    """Of a random model: all memories, as in training; none, each segment as if it were the first; and XL alone."""
    config = changed(small, model__dropout=0.0)
    graphdef, params = build(config)
    songs = [tape(tokens) for tokens in random_songs([150, 97, 33])]
    reader = Reader(config, params, Vocabulary())
    assert reader.arms == (NONE, XL, KNN, ANOTHER)
    nats = {arm: reader.nats(songs, arm) for arm in reader.arms}
    for rows in nats.values():
        assert [len(row) for row in rows] == [149, 96, 32]
    batch = {name: jnp.asarray(np.pad(x, (0, 10))[None], jnp.int32) for name, x in songs[0]._asdict().items()}
    targets = np.pad(songs[0].tokens[1:].astype(np.int32), (0, 11), constant_values=-1)
    batch |= {"song": jnp.zeros_like(batch["tokens"]), "targets": jnp.asarray(targets[None])}
    total, _ = step.run_segments(nnx.merge(graphdef, params), memory.init_memory(config, 1), batch)
    assert nats[KNN][0].sum(dtype=np.float64) == pytest.approx(float(total), rel=1e-5)
    without = Reader(config, arms.without_knn(params), Vocabulary()).nats(songs, KNN)
    for a, b in zip(nats[XL], without, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    first = slice(0, 16)
    for arm in (NONE, XL, KNN):  # nothing has been heard yet
        np.testing.assert_allclose(nats[arm][0][first], nats[XL][0][first], atol=1e-5)
    differ = [np.abs(nats[a][0][32:47] - nats[b][0][32:47]).max() for a, b in ((NONE, XL), (XL, KNN), (KNN, ANOTHER))]
    assert differ[0] > 0.01
    later = [np.abs(nats[a][0][60:] - nats[b][0][60:]).max() for a, b in ((XL, KNN), (KNN, ANOTHER), (XL, ANOTHER))]
    assert min(later) > 0.01


def test_a_model_without_kNN_memory_has_two_arms(small):
    config = changed(small, memory__knn=0)
    assert Reader(config, build(config)[1], Vocabulary()).arms == (arms.NONE, arms.XL)
