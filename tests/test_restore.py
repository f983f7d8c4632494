"""Where runs begin: from another run's checkpoint, and after kill -9."""

import jax
import numpy as np
import pytest
from kills import survive
from small_models import changed
from test_train import checkpoint_of, equal

from midigen_jax.data.corpus import open_corpus
from midigen_jax.data.encode import encode_folder
from midigen_jax.errors import InputError
from midigen_jax.model.memory import NO_SONG
from midigen_jax.run.trained import export, load
from midigen_jax.training import loop, restore
from midigen_jax.training.sharding import make_mesh
from midigen_jax.training.state import init_state
from midigen_jax.vocab import Scheme, Vocabulary


@pytest.fixture(scope="module")
def trained(small, corpus, tmp_path_factory):
    run = tmp_path_factory.mktemp("trained")
    assert loop.train(changed(small, train__steps=4), corpus.path, run) == 0
    return run


def initialise_from(source, config, corpus):
    mesh = make_mesh(config)
    return restore.items_of(
        restore.initialise_from(source, init_state(config, corpus.vocabulary), config, corpus, mesh)
    )


def test_a_run_goes_on_elsewhere_with_all_it_had(small, corpus, trained, capsys):
    config = changed(small, train__learning_rate=1e-4, data__workers=2)
    assert equal(initialise_from(trained, config, corpus), checkpoint_of(trained, small).items)
    assert capsys.readouterr().out.count("kept") == 4


@pytest.mark.parametrize("changes", [{"data__lanes": 6}, {"memory__knn": 128}, {"memory__xl": 40}])
def test_a_run_grows(small, corpus, trained, capsys, changes):
    config = changed(small, **changes)
    state, before = initialise_from(trained, config, corpus), checkpoint_of(trained, small).items
    for name in ("params", "optimizer", "rest"):
        assert equal(state[name], before[name])
    assert (state["memory"].xl.song == NO_SONG).all()
    assert state["memory"].knn.song.shape == (config.data.lanes, config.memory.knn)
    said = capsys.readouterr().out
    assert "memories: emptied, since" in said
    assert ("position in the music: kept" in said) == ("data__lanes" not in changes)


def test_other_music_keeps_the_weights_alone(small, midi_folder, trained, tmp_path, capsys):
    encode_folder(midi_folder, tmp_path / "corpus", vocabulary=restore.vocabulary_of(trained), fractions=(0.5, 0.5, 0))
    state = initialise_from(trained, small, open_corpus(tmp_path / "corpus"))
    assert equal(state["params"], checkpoint_of(trained, small).items["params"])
    assert int(state["rest"]["step"]) == 0
    assert all(not np.asarray(x).any() for x in jax.tree.leaves(state["optimizer"]))
    assert "everything else: reset, since the music is different" in capsys.readouterr().out


def test_a_run_begins_with_an_exported_model(small, corpus, trained, tmp_path, capsys):
    path = tmp_path / "model.safetensors"
    export(path, load(trained))
    state = initialise_from(path, small, corpus)
    assert equal(state["params"], checkpoint_of(trained, small).items["params"])
    assert int(state["rest"]["step"]) == 0
    assert "everything else: reset" in capsys.readouterr().out
    assert restore.vocabulary_of(path) == Vocabulary()
    with pytest.raises(InputError, match=r"its model has model\.width=32; --set model\.width=32"):
        initialise_from(path, changed(small, model__width=64), corpus)
    assert loop.train(changed(small, train__steps=2), corpus.path, tmp_path / "run", path) == 0


def test_what_does_not_fit_is_refused(small, corpus, midi_folder, trained, tmp_path):
    for changes, message in (
        ({"model__width": 64}, r"its model has model\.width=32; --set model\.width=32"),
        ({"memory__knn": 0}, r"its model has memory\.knn=64"),
        ({"memory__retrieval": "attention"}, r"its model has memory\.retrieval=context"),
        ({"memory__mixing": "gate"}, r"its model has memory\.mixing=softmax; --set memory\.mixing=softmax"),
    ):
        with pytest.raises(InputError, match=message):
            initialise_from(trained, changed(small, **changes), corpus)
    encode_folder(midi_folder, tmp_path / "corpus", scheme=Scheme(12))
    with pytest.raises(InputError, match="has another vocabulary"):
        initialise_from(trained, small, open_corpus(tmp_path / "corpus"))
    with pytest.raises(InputError, match=r"has been trained for 4 steps on this music; --set train\.steps=8"):
        initialise_from(trained, changed(small, train__steps=4), corpus)
    with pytest.raises(InputError, match="no such run folder"):
        restore.vocabulary_of(tmp_path / "missing")
    assert restore.vocabulary_of(trained) == Vocabulary()


def test_killed_in_its_first_save_a_run_still_begins_from_the_other(small, corpus, tmp_path):
    (tmp_path / "run" / "checkpoints" / "6.orbax-checkpoint-tmp").mkdir(parents=True)
    with pytest.raises(InputError, match="other: no such run folder"):
        loop.train(small, corpus.path, tmp_path / "run", tmp_path / "other")


@pytest.mark.slow
def test_killed_three_times_it_ends_as_if_never_killed(corpus, tmp_path):
    result = survive(corpus, tmp_path, steps=300, kills=3)
    assert result["kills"] == 3
    assert result["steps resumed from"][-1] > 0
    assert result["arrays"] > 20
    assert result["validations"] == 2
    assert result["arrays that differ"] == result["validations that differ"] == 0
    assert result["incomplete files left"] == []
