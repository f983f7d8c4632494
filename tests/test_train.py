import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import write_midi
from small_models import BOTH, changed

from midigen_jax import config as cfg
from midigen_jax.data import encode, loader
from midigen_jax.data.encode import encode_folder
from midigen_jax.errors import InputError
from midigen_jax.model.decoder import abstract_decoder, init_params
from midigen_jax.run import checkpoint
from midigen_jax.run.checkpoint import Checkpoints
from midigen_jax.training import loop, losses, metrics, restore, validation
from midigen_jax.training.sharding import make_mesh
from midigen_jax.training.step import make_loss, make_train_step
from midigen_jax.vocab import Scheme, Vocabulary

ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def equal(one, two) -> bool:
    """To the bit."""

    def same(x, y) -> bool:
        x, y = np.asarray(x), np.asarray(y)
        return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()

    return all(jax.tree.leaves(jax.tree.map(same, one, two)))


def checkpoint_of(run, config) -> checkpoint.Checkpoint:
    shapes = restore.items_of(restore.abstract_state(config, Vocabulary(), make_mesh(config)))
    return checkpoint.open_run(run).newest(lambda meta: shapes)


def steps_of(run) -> list[int]:
    """Of the checkpoints that are there."""
    return checkpoint.open_run(run).steps()


def lines_of(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def straight(small, corpus, tmp_path_factory):
    """A run of twelve steps without interruption."""
    run = tmp_path_factory.mktemp("runs") / "straight"
    assert loop.train(small, corpus.path, run) == 0
    return run


def test_the_loss_falls_and_everything_is_logged(straight, corpus):
    lines = lines_of(straight)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [4, 8, 12]
    assert steps[-1]["bits_per_note"] > 2 * steps[-1]["loss"] / np.log(2)
    assert steps[0]["loss"] > steps[-1]["loss"]
    assert steps[-1]["hit_rate"] > 0.1
    assert steps[-1]["hit_age"] > 24
    assert sum(line["resets"] for line in steps) >= 3  # every lane began with a song
    assert steps[-1]["memory_share"] == pytest.approx((steps[-1]["memory_share/0"] + steps[-1]["memory_share/1"]) / 2)
    assert steps[-1]["attention_share"] == pytest.approx(steps[-1]["hit_rate"] * steps[-1]["memory_share"], rel=1e-5)
    validation = [line for line in lines if "validation/bits_per_note" in line]
    assert [line["step"] for line in validation] == [6, 12]
    assert list((straight / "tensorboard").iterdir())


def test_metrics_are_means_over_steps():
    """But the age of a hit is a mean over hits, and the songs that began are summed."""
    one = {
        "loss": 2.0,
        "hit_rate": np.array([0.25, 0.75]),
        "hits": 10.0,
        "ages": 500.0,
        "attention_share": np.array([0.1, 0.2]),
        "resets": 1,
    }
    two = {
        "loss": 4.0,
        "hit_rate": np.array([1.0, 1.0]),
        "hits": 30.0,
        "ages": 2700.0,
        "attention_share": np.array([0.5, 1.0]),
        "resets": 3,
    }
    nothing = {
        "loss": 6.0,
        "hit_rate": np.array([0.0, 0.0]),
        "hits": 0.0,
        "ages": 0.0,
        "attention_share": np.array([0.0, 0.0]),
        "resets": 0,
    }
    shares = {
        "hit_rate": 0.5,
        "attention_share": 0.3,
        "memory_share": (0.48 + 0.4 / 1.75 * 3) / 2,
        "memory_share/0": 0.48,
        "memory_share/1": 0.4 / 1.75 * 3,
    }
    expected = {"loss": 4, "hit_age": 80, "resets": 4, **shares}
    one, two, nothing = jax.tree.map(jax.numpy.asarray, (one, two, nothing))
    assert metrics.mean_metrics([one, two, nothing]) == pytest.approx(expected)
    assert metrics.mean_metrics([nothing])["hit_age"] == 0


def test_the_first_loss_is_that_of_a_uniform_guess_and_the_step_is_compiled_once(small, corpus, tmp_path):
    mesh, batches = make_mesh(small), loader.training_steps(small, corpus)
    state = restore.restore_or_init(Checkpoints(tmp_path), small, corpus, mesh, None)
    step: Any = make_train_step(abstract_decoder(small, Vocabulary()), small, mesh)
    state, metrics = step(state, next(batches))
    assert float(metrics["loss"]) == pytest.approx(np.log(389), abs=0.1)
    state, _ = step(state, next(batches))
    assert int(state.step) == 2
    assert step._cache_size() == 1


def test_what_is_kept_are_the_newest_and_the_best(small, corpus, tmp_path, monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 4.0])
    monkeypatch.setattr(validation.Validation, "write", lambda *_: next(losses))
    config = changed(small, train__validate_every=3, train__save_every=100, train__keep=2)
    assert loop.train(config, corpus.path, tmp_path) == 0
    assert steps_of(tmp_path) == [12, 9, 6]
    found = checkpoint.open_run(tmp_path).newest(lambda meta: {}, best=True)
    assert found.step == 6
    assert int(checkpoint_of(tmp_path, config).items["rest"]["step"]) == 12


def test_some_are_saved_and_kept_for_good(small, corpus, tmp_path):
    config = changed(small, train__validate_every=100, train__save_every=100, train__keep=1, train__keep_every=4)
    config = changed(config, train__steps=10)
    assert loop.train(config, corpus.path, tmp_path) == 0
    assert steps_of(tmp_path) == [10, 8, 4]


def test_a_validation_loss_that_is_not_finite_is_not_saved(small, corpus, tmp_path, monkeypatch):
    make = loop.make_loss
    monkeypatch.setattr(loop, "make_loss", lambda *args: lambda *_: make(*args)(*_) * np.nan)
    with pytest.raises(InputError, match="the validation loss at step 6 is nan"):
        loop.train(small, corpus.path, tmp_path)
    assert Checkpoints(tmp_path).steps() == []


def test_it_saves_and_samples_by_the_clock(small, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "over", lambda since, minutes: minutes > 0)
    config = changed(small, train__steps=2, train__keep=9, train__sample_minutes=1)
    assert loop.train(config, corpus.path, tmp_path) == 0
    assert steps_of(tmp_path) == [2, 1]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        f"step-{step:08}.{kind}" for step in (1, 2) for kind in ("mid", "png", "wav")
    ]


def write_config(path: Path, config: cfg.Config) -> None:
    path.write_text(
        f"from midigen_jax import config as cfg\ndef config(): return cfg.from_flat({cfg.flatten(config)}, 'test')\n"
    )


def test_instruments_velocities_and_merges_train_and_validate(small, midi_folder, band_folder, tmp_path, capsys):
    folder = shutil.copytree(midi_folder, tmp_path / "midi")
    shutil.copytree(band_folder, folder / "band")
    scheme, fractions = Scheme(12, multi=True, velocities=True), (0.7, 0.2, 0.1)
    encode_folder(folder, tmp_path / "corpus", scheme=scheme, vocabulary=600, transpose=1, fractions=fractions)
    assert loop.train(changed(small, train__steps=6, **BOTH), tmp_path / "corpus", tmp_path / "run") == 0
    assert lines_of(tmp_path / "run")[-1]["validation/bits_per_note"] > 0
    assert "merges hide some of what returns in another key" in capsys.readouterr().out
    for refused in ({"data__transpose": 1}, {"data__modulate": 0.5}):
        with pytest.raises(InputError, match="merged tokens"):
            loop.train(changed(small, **refused), tmp_path / "corpus", tmp_path / "other")


def test_what_does_not_fit_the_checkpoint_is_refused(small, corpus, straight, midi_folder, tmp_path):
    with pytest.raises(InputError, match=r"its checkpoint has model\.width=32, the config 64"):
        loop.train(changed(small, model__width=64), corpus.path, straight)
    for scheme, fractions, message in (
        (Scheme(), (0.5, 0.5, 0), "another corpus"),
        (Scheme(12), (0.7, 0.2, 0.1), "another vocabulary"),
    ):
        encode_folder(midi_folder, tmp_path / "corpus", scheme=scheme, fractions=fractions)
        with pytest.raises(InputError, match=message):
            loop.train(small, tmp_path / "corpus", straight)
    assert steps_of(straight)[0] == 12


def test_a_loss_that_is_not_finite_stops_the_run(small, corpus, tmp_path):
    with pytest.raises(InputError, match=r"step [23] has a loss of (nan|inf|[0-9.]+) and a gradient of norm (nan|inf)"):
        loop.train(changed(small, train__learning_rate=1e30, train__warmup=0), corpus.path, tmp_path / "run")
    with pytest.raises(InputError, match="holds no checkpoint"):
        checkpoint.open_run(tmp_path / "run")


def test_a_midi_folder_is_encoded_once(small, midi_folder, tmp_path):
    corpus = encode.open_or_encode(midi_folder, tmp_path)
    written = (tmp_path / "corpus" / "meta.json").stat().st_mtime_ns
    assert encode.open_or_encode(midi_folder, tmp_path).fingerprint == corpus.fingerprint
    assert (tmp_path / "corpus" / "meta.json").stat().st_mtime_ns == written


def test_another_folder_than_the_run_s_is_refused(midi_folder, tmp_path):
    encode.open_or_encode(midi_folder, tmp_path / "run")
    with pytest.raises(InputError, match="no such folder"):
        encode.open_or_encode(tmp_path / "missing", tmp_path / "run")
    write_midi(tmp_path / "other" / "a.mid", [[(0, 1, 60)]])
    with pytest.raises(InputError, match="was encoded from other files"):
        encode.open_or_encode(tmp_path / "other", tmp_path / "run")
    # RUN/corpus may be the user's own folder of music: it is never written over.
    write_midi(tmp_path / "mine" / "corpus" / "a.mid", [[(0, 1, 60)]])
    with pytest.raises(InputError, match="exists and is no corpus"):
        encode.open_or_encode(tmp_path / "mine" / "corpus", tmp_path / "mine")
    assert (tmp_path / "mine" / "corpus" / "a.mid").exists()


def test_whole_song_loss_does_not_depend_on_the_lanes(small, corpus):
    """Songs are heard from their own empty memories, whatever lane they are in and wherever they begin."""
    config = changed(small, model__layers=1, memory__knn_layer=1, memory__knn=0, memory__xl=0, data__segment=4096)
    _, params = init_params(config, Vocabulary(), seed=0)
    songs = corpus.songs_of("validation")
    seen = []
    for lanes in (1, 5):
        here = changed(config, data__lanes=lanes, data__segments=1)
        nats = make_loss(abstract_decoder(here, Vocabulary()), here, make_mesh(here))(params, corpus, songs)
        seen.append(losses.figures(nats, corpus, songs).nats_per_token)
    assert seen[0] == pytest.approx(seen[1], rel=1e-5)
    assert seen[0] == pytest.approx(np.log(389), abs=0.1)
