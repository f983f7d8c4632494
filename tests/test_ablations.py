"""Songs read with and without their memories."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_models import KINDS_AND_BOTH, build, changed, some

from midigen_jax import config as cfg
from midigen_jax import vocab
from midigen_jax.evaluation import ablations
from midigen_jax.evaluation.ablations import KNN, NONE, OTHER_KNN, XL, SongReader
from midigen_jax.model import decoder, memory
from midigen_jax.model.reader import read_segments
from midigen_jax.music.song import TokenSequence
from midigen_jax.run.trained import TrainedModel
from midigen_jax.vocab import Vocabulary


def sequence_of(tokens):
    """A song of these tokens, a grid step apart."""
    time = np.arange(len(tokens), dtype=np.uint16)
    return TokenSequence(np.asarray(tokens, np.uint16), time // 32, time % 32)


def random_songs(lengths, seed=0):
    random = np.random.default_rng(seed)
    return [[vocab.SOS, *random.integers(vocab.NOTE_0, vocab.DURATION_0, n - 2), vocab.EOS] for n in lengths]


def copier_config():
    return cfg.Config(
        model=cfg.Model(layers=1, width=128, heads=2, ff_width=8, previous_tokens=0, qk_norm=False),
        memory=cfg.Memory(xl=16, knn=256, retrieval="context", knn_layer=1, top_k=4),
        data=cfg.Data(lanes=2, segment=16),
    )


def copier_params():
    """Of a model that predicts what followed when it read the same tokens before, and is undecided otherwise.

    It has one layer, to which only the memory contributes.
    """
    params = decoder.init_params(copier_config(), Vocabulary(), seed=0)[1]
    random = np.random.default_rng(0)
    params |= {"bar": jnp.zeros_like(params["bar"]), "position": jnp.zeros_like(params["position"])}
    for name, size in (("token", 1.0), ("output", 0.15)):
        params[name] = jnp.asarray(size * random.normal(size=params[name].shape), jnp.float32)
    block = params["blocks"][0]
    block["ff"]["down"]["kernel"] *= 0
    block["attention"]["out"] *= 0
    block["attention"]["knn"]["logit_scale"] = jnp.full(2, 20.0)
    return params


def copier_model():
    return TrainedModel(copier_config(), copier_params(), Vocabulary())


@pytest.fixture(scope="module")
def copier():
    return SongReader(copier_model())


def mean(rows):
    return float(np.concatenate(rows).mean())


def test_the_memory_of_the_same_song_lowers_the_loss_and_that_of_another_does_not(copier):
    song, other = random_songs([120, 120])
    right, wrong = [sequence_of(song)] * 2, [sequence_of(song), sequence_of(other)]
    alone = mean(copier.nats(right, XL)[:1])
    assert mean(copier.nats(right, OTHER_KNN)[:1]) < alone / 4
    assert mean(copier.nats(wrong, OTHER_KNN)[:1]) > alone - 0.1


def test_a_repeated_theme_is_remembered(copier):
    theme, filler = random_songs([60, 100])
    song = sequence_of([*theme[:-1], *filler[1:-1], *theme[1:]])
    nats = {ablation: copier.nats([song], ablation)[0][-50:].mean() for ablation in (XL, KNN)}
    assert nats[KNN] < nats[XL] / 4


def test_hits_are_where_the_theme_was(copier):
    theme, filler = random_songs([60, 100])
    song = sequence_of([*theme[:-1], *filler[1:-1], *theme[1:]])
    ((ages, weights),) = copier.retrieved([song])
    assert ages.shape == weights.shape == (2, len(song.tokens), 4)
    again = slice(-40, -1)
    best = np.take_along_axis(ages[:, again], weights[:, again].argmax(-1)[..., None], -1)
    assert (best[1] == len(theme) - 1 + len(filler) - 2 - 1).mean() > 0.9  # the head with the longest context
    assert ((ages > 0) == (weights > 0)).mean() > 0.99
    assert (weights.sum(-1) <= 1 + 1e-5).all()
    assert (ages[:, :32] == 0).all()  # nothing has left the window yet


@pytest.mark.parametrize("changes", some(KINDS_AND_BOTH, "context+alignment"))
def test_each_ablation_hides_what_it_says(small, changes):
    """Of a random model: all memories, as in training; none, each segment as if it were the first; and XL alone."""
    config = changed(small, model__dropout=0.0, **changes)
    graphdef, params = build(config)
    songs = [sequence_of(tokens) for tokens in random_songs([150, 97, 33])]
    model = TrainedModel(config, params, Vocabulary())
    reader = SongReader(model)
    assert reader.ablations == (NONE, XL, KNN, OTHER_KNN)
    nats = {ablation: reader.nats(songs, ablation) for ablation in reader.ablations}
    for rows in nats.values():
        assert [len(row) for row in rows] == [149, 96, 32]
    batch: Any = {name: jnp.asarray(np.pad(x, (0, 10))[None], jnp.int32) for name, x in songs[0]._asdict().items()}
    targets = np.pad(songs[0].tokens[1:].astype(np.int32), (0, 11), constant_values=-1)
    batch |= {"song": jnp.zeros_like(batch["tokens"]), "targets": jnp.asarray(targets[None])}
    losses, _ = read_segments(nnx.merge(graphdef, params), memory.init_memory(config, 1), batch)
    assert nats[KNN][0].sum(dtype=np.float64) == pytest.approx(float(losses.nats), rel=1e-5)
    hidden = dataclasses.replace(model, params=ablations.without_knn(params))
    without = SongReader(hidden).nats(songs, KNN)
    for a, b in zip(nats[XL], without, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    first = slice(0, 16)
    for ablation in (NONE, XL, KNN):  # the memories are still empty
        np.testing.assert_allclose(nats[ablation][0][first], nats[XL][0][first], atol=1e-5)
    differ = [np.abs(nats[a][0][32:47] - nats[b][0][32:47]).max() for a, b in ((NONE, XL), (XL, KNN), (KNN, OTHER_KNN))]
    assert differ[0] > 0.01
    later = [np.abs(nats[a][0][60:] - nats[b][0][60:]).max() for a, b in ((XL, KNN), (KNN, OTHER_KNN), (XL, OTHER_KNN))]
    assert min(later) > 0.01


def test_a_model_without_kNN_memory_has_two_ablations(small):
    config = changed(small, memory__knn=0)
    reader = SongReader(TrainedModel(config, build(config)[1], Vocabulary()))
    assert reader.ablations == (NONE, XL)
    assert reader.complete == XL


def test_one_program_serves_all_ablations_without_another_songs_memory(copier):
    songs = [sequence_of(tokens) for tokens in random_songs([40, 30])]
    for ablation in (NONE, XL, KNN):
        copier.nats(songs, ablation)
    list(copier.retrieved(songs))
    programs = copier._read._cache_size()
    copier.nats(songs, OTHER_KNN)
    copier.nats(songs, OTHER_KNN)
    assert programs <= 2  # with another song's memory and without
    assert copier._read._cache_size() <= 2
