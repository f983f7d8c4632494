import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import write_midi
from test_model import changed

from midigen_jax import checkpoint, data, evaluate, model, train
from midigen_jax import config as cfg
from midigen_jax.cli import InputError
from midigen_jax.encode import encode_folder
from midigen_jax.step import init_state, make_loss, make_mesh, make_train_step
from midigen_jax.vocab import Scheme, Vocabulary


def equal(one, two) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((np.asarray(x) == np.asarray(y)).all()), one, two)))


def state_of(run, config):
    checkpoints, step = checkpoint.open_run(run)
    return train.restore_state(checkpoints, step, config, Vocabulary(), make_mesh(config))


def lines_of(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def straight(small, corpus, tmp_path_factory):
    """A run of twelve steps without interruption."""
    run = tmp_path_factory.mktemp("runs") / "straight"
    assert train.train(small, corpus.path, run)
    return run


def test_the_loss_falls_and_everything_is_logged(straight, corpus):
    lines = lines_of(straight)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [4, 6, 8, 12]
    assert steps[0]["loss"] > steps[-1]["loss"]
    assert steps[-1]["hit_rate"] > 0.1
    assert steps[-1]["hit_age"] > 24
    assert sum(line["resets"] for line in steps) >= 3  # every lane began with a song
    assert steps[-1]["gate"] == pytest.approx((steps[-1]["gate/0"] + steps[-1]["gate/1"]) / 2)
    assert steps[-1]["mass"] == pytest.approx(steps[-1]["hit_rate"] * steps[-1]["gate"], rel=0.05)
    validation = [line for line in lines if "validation/bits_per_note" in line]
    assert [line["step"] for line in validation] == [6, 12]
    assert list((straight / "tensorboard").iterdir())


def test_metrics_are_means_over_steps():
    """But the age of a hit is a mean over hits, and the songs that began are summed."""
    one = {"loss": 2.0, "hits": 10.0, "ages": 500.0, "gate": np.array([0.25, 0.75]), "resets": 1}
    two = {"loss": 4.0, "hits": 30.0, "ages": 2700.0, "gate": np.array([0.75, 0.75]), "resets": 3}
    nothing = {"loss": 6.0, "hits": 0.0, "ages": 0.0, "gate": np.array([0.5, 0.75]), "resets": 0}
    expected = {"loss": 4, "hit_age": 80, "gate": 0.625, "gate/0": 0.5, "gate/1": 0.75, "resets": 4}
    one, two, nothing = jax.tree.map(jax.numpy.asarray, (one, two, nothing))
    assert train.mean_metrics([one, two, nothing]) == pytest.approx(expected)
    assert train.mean_metrics([nothing])["hit_age"] == 0


def test_the_first_loss_is_that_of_a_uniform_guess(small, corpus):
    state = jax.jit(init_state, static_argnums=(0, 1))(small, Vocabulary())
    step = make_train_step(model.abstract(small, Vocabulary()), small, make_mesh(small))
    songs = corpus.songs_of("train")
    batch = next(data.training_steps(corpus, songs, n_lanes=3, tokens_per_step=32, n_steps=1, first=0, seed=0))
    state, metrics = step(state, batch)
    assert float(metrics["loss"]) == pytest.approx(np.log(389), abs=0.1)
    assert int(state.step) == 1


def test_stopping_and_resuming_gives_the_same_bits(small, corpus, straight, tmp_path, monkeypatch):
    """Ctrl-C in step 5: that step is finished and saved, and the run goes on as if never stopped."""
    run = tmp_path / "run"
    make = train.make_train_step

    def interrupted(*args):
        step, calls = make(*args), []

        def one(state, batch):
            calls.append(None)
            if len(calls) == 5:
                os.kill(os.getpid(), signal.SIGINT)
            return step(state, batch)

        return one

    monkeypatch.setattr(train, "make_train_step", interrupted)
    assert not train.train(small, corpus.path, run)
    monkeypatch.undo()
    assert checkpoint.open_run(run)[1] == 5
    # Lines after the checkpoint, of a machine that went away, are done again; a half-written one is dropped.
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "loss": 0}\n{"step": 9, "lo')
    assert train.train(small, corpus.path, run)
    assert equal(state_of(run, small), state_of(straight, small))
    assert [line["step"] for line in lines_of(run)] == [4, 5, 6, 6, 8, 12, 12]


def test_two_hosts_train_as_one(small, midi_folder, tmp_path):
    """Processes with two devices each. The first encodes and logs; both save, and one process can go on."""
    config = changed(small, data__lanes=4, train__steps=6, train__validate_every=6)
    (tmp_path / "four_lanes.py").write_text(
        f"from midigen_jax import config as cfg\ndef config(): return cfg.from_flat({cfg.flatten(config)}, 'test')\n"
    )
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "midigen_jax.train", "four_lanes.py", "--data", midi_folder, "--workdir", "two"]
    # The proxies of a network are no way to this machine.
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    hosts = [
        subprocess.Popen(
            [*command, "--distributed", f"{address},2,{i}"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE
        )
        for i in range(2)
    ]
    try:
        assert train.train(config, midi_folder, tmp_path / "one")
        said = [host.communicate(timeout=300)[0] for host in hosts]
        assert [host.returncode for host in hosts] == [0, 0]
    finally:
        for host in hosts:
            host.kill()
    assert [b"trained 6 steps" in words for words in said] == [True, False]
    one, two = lines_of(tmp_path / "one"), lines_of(tmp_path / "two")
    assert [line["step"] for line in two] == [line["step"] for line in one] == [4, 6, 6]
    for here, there in zip(one, two, strict=True):
        assert here.keys() == there.keys()
        for name in here.keys() - {"tokens_per_second"}:
            assert there[name] == pytest.approx(here[name], rel=1e-4), name
    assert train.train(changed(config, train__steps=8), midi_folder, tmp_path / "two")


def test_instruments_velocities_and_merges_train_and_validate(small, midi_folder, band_folder, tmp_path):
    folder = shutil.copytree(midi_folder, tmp_path / "midi")
    shutil.copytree(band_folder, folder / "band")
    scheme, fractions = Scheme(12, multi=True, velocities=True), (0.7, 0.2, 0.1)
    encode_folder(folder, tmp_path / "corpus", scheme=scheme, vocabulary=600, transpose=1, fractions=fractions)
    assert train.train(changed(small, train__steps=6), tmp_path / "corpus", tmp_path / "run")
    assert lines_of(tmp_path / "run")[-1]["validation/bits_per_note"] > 0
    with pytest.raises(InputError, match="merged tokens"):
        train.train(changed(small, data__transpose=1), tmp_path / "corpus", tmp_path / "other")


def test_what_does_not_fit_the_checkpoint_is_refused(small, corpus, straight, midi_folder, tmp_path):
    with pytest.raises(InputError, match=r"its checkpoint has model\.width=32, the config 64"):
        train.train(changed(small, model__width=64), corpus.path, straight)
    encode_folder(midi_folder, tmp_path / "corpus", scheme=Scheme(12))
    with pytest.raises(InputError, match="another corpus"):
        train.train(small, tmp_path / "corpus", straight)
    assert checkpoint.open_run(straight)[1] == 12


def test_a_loss_that_is_not_finite_stops_the_run(small, corpus, tmp_path):
    with pytest.raises(InputError, match=r"the loss is (nan|inf)"):
        train.train(changed(small, train__learning_rate=1e30, train__warmup=0), corpus.path, tmp_path / "run")
    with pytest.raises(InputError, match="holds no checkpoint"):
        checkpoint.open_run(tmp_path / "run")


def test_a_midi_folder_is_encoded_once(small, midi_folder, tmp_path):
    corpus = train.get_corpus(midi_folder, tmp_path)
    written = (tmp_path / "corpus" / "meta.json").stat().st_mtime_ns
    assert train.get_corpus(midi_folder, tmp_path).fingerprint == corpus.fingerprint
    assert (tmp_path / "corpus" / "meta.json").stat().st_mtime_ns == written


def test_another_folder_than_the_run_s_is_refused(midi_folder, tmp_path):
    train.get_corpus(midi_folder, tmp_path / "run")
    with pytest.raises(InputError, match="no such folder"):
        train.get_corpus(tmp_path / "missing", tmp_path / "run")
    write_midi(tmp_path / "other" / "a.mid", [[(0, 1, 60)]])
    with pytest.raises(InputError, match="was encoded from other files"):
        train.get_corpus(tmp_path / "other", tmp_path / "run")
    # RUN/corpus may be the user's own folder of music: it is never written over.
    write_midi(tmp_path / "mine" / "corpus" / "a.mid", [[(0, 1, 60)]])
    with pytest.raises(InputError, match="exists and is no corpus"):
        train.get_corpus(tmp_path / "mine" / "corpus", tmp_path / "mine")
    assert (tmp_path / "mine" / "corpus" / "a.mid").exists()


def test_whole_song_loss_does_not_depend_on_the_lanes(small, corpus):
    """Songs are heard from their own empty memories, whatever lane they are in and wherever they begin."""
    config = changed(small, model__layers=1, memory__knn_layer=1, memory__knn=0, memory__xl=0, data__segment=4096)
    _, params = model.init_params(config, Vocabulary(), seed=0)
    songs = corpus.songs_of("validation")
    losses = []
    for lanes in (1, 5):
        here = changed(config, data__lanes=lanes, data__segments=1)
        nats = make_loss(model.abstract(here, Vocabulary()), here, make_mesh(here))(params, corpus, songs)
        losses.append(evaluate.figures(nats, corpus, songs).nats_per_token)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] == pytest.approx(np.log(389), abs=0.1)
