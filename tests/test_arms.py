"""Songs read with and without their memories."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_model import build, changed

from midigen_jax import arms, model, step, vocab
from midigen_jax import config as cfg
from midigen_jax.arms import ANOTHER, KNN, NONE, XL, Reader
from midigen_jax.corpus import EncodedSong, open_corpus, write_corpus
from midigen_jax.vocab import Vocabulary


def corpus_of(path, songs):
    """A corpus of songs that are given as tokens."""

    def song(i, tokens):
        tokens, table = np.asarray(tokens, np.uint16), np.empty((0, 3), np.int32)
        place = np.arange(len(tokens), dtype=np.uint16)
        name = str(i)
        return EncodedSong(
            name, tokens, place // 32, place % 32, table, table[:, 1:], len(tokens) // 2, 2.0, 1.0, 0, name, name
        )

    write_corpus(path, [song(i, tokens) for i, tokens in enumerate(songs)], [], Vocabulary())
    return open_corpus(path)


def random_songs(lengths, seed=0):
    random = np.random.default_rng(seed)
    return [[vocab.SOS, *random.integers(vocab.NOTE_0, vocab.DURATION_0, n - 2), vocab.EOS] for n in lengths]


@pytest.fixture(scope="module")
def copier():
    """A model that expects what followed when the same was heard before, and nothing in particular else.

    One layer whose memory's values are the tokens themselves, which go straight to the logits.
    """
    config = cfg.Config(
        model=cfg.Model(layers=1, width=128, heads=2, ff_width=8, previous_tokens=0, qk_norm=False),
        memory=cfg.Memory(xl=16, knn=256, knn_layer=1, top_k=4),
        data=cfg.Data(lanes=2, segment=16),
    )
    params = model.init_params(config, Vocabulary(), seed=0)[1]
    random = np.random.default_rng(0)
    params |= {"bar": jnp.zeros_like(params["bar"]), "step": jnp.zeros_like(params["step"])}
    params["token"] = params["output"] = jnp.asarray(random.normal(size=params["token"].shape), jnp.float32)
    identity = np.eye(128, dtype=np.float32).reshape(128, 2, 64)
    block = params["blocks"][0]
    block["ff"]["down"]["kernel"] *= 0
    block["attention"]["qkv"] = jnp.asarray(np.stack([0 * identity, 0 * identity, identity]).swapaxes(1, 2))
    block["attention"]["out"] = jnp.asarray(20 * identity.transpose(1, 2, 0))
    return Reader(config, params, Vocabulary())


def mean(rows):
    return float(np.concatenate(rows).mean())


def test_the_right_song_planted_in_the_memory_lowers_the_loss_and_a_wrong_one_does_not(copier, tmp_path):
    song, other = random_songs([120, 120])
    songs = np.arange(2)
    right, wrong = corpus_of(tmp_path / "right", [song, song]), corpus_of(tmp_path / "wrong", [song, other])
    alone = mean(copier.nats(right, songs, XL)[:1])
    assert mean(copier.nats(right, songs, ANOTHER)[:1]) < alone / 4
    assert mean(copier.nats(wrong, songs, ANOTHER)[:1]) > alone - 0.1


def test_a_song_that_comes_back_is_remembered(copier, tmp_path):
    theme, filler = random_songs([60, 100])
    corpus = corpus_of(tmp_path / "c", [[*theme[:-1], *filler[1:-1], *theme[1:]]] * 2)
    last = slice(-50, None)
    nats = {arm: copier.nats(corpus, np.arange(2), arm)[0][last].mean() for arm in (XL, KNN)}
    assert nats[KNN] < nats[XL] / 4


def test_arms_are_what_they_say(small, tmp_path):
    """Of a random model: all memories, as in training; none, each segment as if it were the first; and XL alone."""
    config = changed(small, model__dropout=0.0)
    graphdef, params = build(config)
    corpus, songs = corpus_of(tmp_path / "c", random_songs([150, 97, 33])), np.arange(3)
    reader = Reader(config, params, Vocabulary())
    assert reader.arms == (NONE, XL, KNN, ANOTHER)
    nats = {arm: reader.nats(corpus, songs, arm) for arm in reader.arms}
    for rows in nats.values():
        assert [len(row) for row in rows] == [149, 96, 32]
    total = step.make_loss(graphdef, config, step.make_mesh(config))(params, corpus, songs)
    assert sum(row.sum(dtype=np.float64) for row in nats[KNN]) == pytest.approx(total, rel=1e-5)
    closed = jax.tree.map_with_path(lambda path, x: x * 0 - 1e4 if path[-1].key == "gate" else x, params)
    without = Reader(config, closed, Vocabulary()).nats(corpus, songs, KNN)
    for a, b in zip(nats[XL], without, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    first = slice(0, 16)
    for arm in (NONE, XL, KNN):  # nothing has been heard yet
        np.testing.assert_allclose(nats[arm][0][first], nats[XL][0][first], atol=1e-5)
    alone = corpus_of(tmp_path / "alone", [corpus.tokens_of(0)[32:48], corpus.tokens_of(0)[32:48]])
    differ = [np.abs(nats[a][0][32:47] - nats[b][0][32:47]).max() for a, b in ((NONE, XL), (XL, KNN), (KNN, ANOTHER))]
    assert differ[0] > 0.01
    assert len(reader.nats(alone, np.arange(2), NONE)[0]) == 15
    later = [np.abs(nats[a][0][60:] - nats[b][0][60:]).max() for a, b in ((XL, KNN), (KNN, ANOTHER), (XL, ANOTHER))]
    assert min(later) > 0.01


def test_a_model_without_kNN_memory_has_two_arms(small):
    config = changed(small, memory__knn=0)
    assert Reader(config, build(config)[1], Vocabulary()).arms == (arms.NONE, arms.XL)
