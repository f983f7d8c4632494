import contextlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import random_notes, write_midi
from test_model import changed

from midigen_jax import config as cfg
from midigen_jax.data import encode, loader
from midigen_jax.data.corpus import open_corpus
from midigen_jax.data.encode import encode_folder
from midigen_jax.errors import InputError
from midigen_jax.model.decoder import abstract_decoder, init_params
from midigen_jax.run import checkpoint, signals
from midigen_jax.run.checkpoint import Checkpoints
from midigen_jax.training import loop, losses, metrics, restore, samples, validation
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
        "hit_rate": 0.5,
        "hits": 10.0,
        "ages": 500.0,
        "attention_share": np.array([0.1, 0.2]),
        "resets": 1,
    }
    two = {
        "loss": 4.0,
        "hit_rate": 1.0,
        "hits": 30.0,
        "ages": 2700.0,
        "attention_share": np.array([0.5, 1.0]),
        "resets": 3,
    }
    nothing = {
        "loss": 6.0,
        "hit_rate": 0.0,
        "hits": 0.0,
        "ages": 0.0,
        "attention_share": np.array([0.0, 0.0]),
        "resets": 0,
    }
    shares = {
        "hit_rate": 0.5,
        "attention_share": 0.3,
        "memory_share": 0.6,
        "memory_share/0": 0.4,
        "memory_share/1": 0.8,
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


STOPPED = """
import os, signal, sys
from midigen_jax.cli import command, train
from midigen_jax.training import loop
if __name__ == "__main__":  # what Ctrl-C does while it is at a step
    stop, make = int(sys.argv.pop()), loop.make_train_step
    def interrupted(*args):
        step = make(*args)
        def one(state, batch):
            if int(state.step) + 1 == stop:
                os.kill(os.getpid(), signal.SIGINT)
            return step(state, batch)
        return one
    loop.make_train_step = interrupted
    command.run(train.main)
"""


def one_lane_of_whole_epochs(folder: Path, steps: int) -> tuple[Path, int]:
    """A corpus, and how many tokens a step has of which so many steps are an epoch in one lane."""
    for seed in range(100):
        random, midi = np.random.default_rng(seed), folder / f"midi{seed}"
        for i in range(8):
            write_midi(midi / f"{i}.mid", [random_notes(random, 12 + 3 * i, beats=6 + i)])
        encode_folder(midi, folder / f"corpus{seed}", fractions=(0.7, 0.3, 0))
        corpus = open_corpus(folder / f"corpus{seed}")
        tokens = int(np.diff(corpus.offsets)[corpus.songs_of("train")].sum())
        if tokens % steps == 0 and len(corpus.songs_of("validation")):
            return corpus.path, tokens // steps
    raise AssertionError


@pytest.mark.parametrize("stops", [(10,), pytest.param((2, 10, 13), marks=pytest.mark.slow)])
def test_stopping_and_resuming_in_new_processes_gives_the_same_bits(small, tmp_path, stops):
    """Stopped at an epoch's end, in the middle of a song and of an epoch; with other loaders each time."""
    path, tokens = one_lane_of_whole_epochs(tmp_path, steps=5)
    lanes = loader.Lanes(open_corpus(path), open_corpus(path).songs_of("train"), 1, seed=0)
    song = lanes.read(0, 13 * tokens)["song"][0]
    assert [int(end[0]) for end in lanes.ends[:3]] == [0, 5 * tokens, 10 * tokens]
    assert [song[stop * tokens - 1] == song[stop * tokens] for stop in (2, 10)] == [True, False]
    config = changed(small, train__steps=16, train__validate_every=5, train__save_every=100, data__transpose=2)
    config = changed(config, data__lanes=1, data__segment=tokens, data__segments=1, memory__knn=4 * tokens)
    write_config(tmp_path / "config.py", config)
    (tmp_path / "stopped.py").write_text(STOPPED)
    loaders = ((2, "device"), (0, "disk"), (2, "host"), (0, "disk"))
    for stop, (workers, location) in zip((*stops, 16), loaders, strict=False):
        sets = ["--set", f"data.workers={workers}", "--set", f"data.location={location}"]
        command = [sys.executable, "stopped.py", "config.py", "--data", path, "--workdir", "run", *sets, str(stop)]
        done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
        assert done.returncode == (128 + signal.SIGINT if stop < 16 else 0), done.stderr[-2000:]
        assert steps_of(tmp_path / "run")[0] == stop
        # Lines after the checkpoint, of a machine that went away, are done again; a half-written one is dropped.
        if stop < 16:
            with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
                file.write('{"step": 15, "loss": 0}\n{"step": 15, "lo')
    assert loop.train(config, path, tmp_path / "straight") == 0
    one, two = (checkpoint_of(tmp_path / name, config) for name in ("straight", "run"))
    assert equal(one.items, two.items)
    straight, stopped = lines_of(tmp_path / "straight"), lines_of(tmp_path / "run")
    validations = [[x for x in lines if "validation/nats_per_token" in x] for lines in (straight, stopped)]
    assert len(validations[0]) == 4
    assert validations[0] == validations[1]
    starts = json.loads((tmp_path / "run" / "run.json").read_text())["starts"]
    assert [x["step"] for x in starts] == [0, *stops]


def test_a_signal_while_the_loader_starts_is_heard_by_the_loop_alone(small, corpus):
    """Its processes begin in some seconds, in which Ctrl-C goes to them as well."""
    config = changed(small, data__workers=1)
    with signals.stop_signals() as stopping:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        with contextlib.closing(loader.training_steps(config, corpus)) as steps:
            next(steps)
            assert stopping == [signal.SIGINT]
            (worker,) = multiprocessing.active_children()
            os.kill(worker.pid, signal.SIGINT)
            assert len(list(steps)) == 11


def test_a_second_signal_leaves_at_once(small, corpus, tmp_path):
    code = f"""
import os, signal
from midigen_jax import config as cfg
from midigen_jax.training import loop
from pathlib import Path
if __name__ == "__main__":
    make = loop.make_train_step
    def impatient(*args):
        def step(state, batch):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
        return step
    loop.make_train_step = impatient
    loop.train(cfg.from_flat({cfg.flatten(small)}, "test"), Path({str(corpus.path)!r}), Path("run"))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, check=False)
    assert done.returncode == 128 + signal.SIGINT
    assert b"press Ctrl-C again to quit at once" in done.stderr
    assert b"Traceback" not in done.stderr


def test_what_is_kept_are_the_newest_and_the_best(small, corpus, tmp_path, monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 4.0])
    monkeypatch.setattr(validation.Validation, "write", lambda *_: next(losses))
    config = changed(small, train__validate_every=3, train__save_every=100, train__keep=2)
    assert loop.train(config, corpus.path, tmp_path) == 0
    assert steps_of(tmp_path) == [12, 9, 6]
    found = checkpoint.open_run(tmp_path).newest(lambda meta: {}, best=True)
    assert found.step == 6
    assert int(checkpoint_of(tmp_path, config).items["rest"]["step"]) == 12


def test_a_full_disk_is_told_and_the_run_goes_on_or_ends(small, corpus, tmp_path, capsys, monkeypatch):
    """One save of three finds no room; then the last one does."""
    config = changed(small, train__save_every=4, train__validate_every=100, train__keep=9)
    free = shutil.disk_usage

    def full_at(*steps):
        counts = iter(range(1, 4))
        full = [4 * n for n in range(1, 4) if 4 * n in steps]
        monkeypatch.setattr(
            checkpoint.shutil,
            "disk_usage",
            lambda path: free(path)._replace(free=0 if 4 * next(counts) in full else 1 << 40),
        )

    full_at(8)
    assert loop.train(config, corpus.path, tmp_path / "on") == 0
    assert steps_of(tmp_path / "on") == [12, 4]
    assert "could not be written (it may need" in capsys.readouterr().out
    full_at(8)
    with pytest.raises(InputError, match="free some space and give the same command, which resumes from step 4"):
        loop.train(changed(config, train__on_failed_save="stop"), corpus.path, tmp_path / "stop")
    full_at(12)
    with pytest.raises(InputError, match="resumes from step 8"):
        loop.train(config, corpus.path, tmp_path / "last")


@pytest.mark.slow
def test_a_disk_that_fills_in_the_middle_of_it_stops_nothing(small, corpus, tmp_path):
    """No file may grow beyond 12 kB: logs, samples and checkpoints all hit that, and the last one is told."""
    config = changed(small, train__steps=40, train__log_every=1, train__sample_minutes=1e-6, train__save_every=10)
    write_config(tmp_path / "config.py", config)
    # Numba has kept the kernels, which takes more.
    next(loader.training_steps(config, corpus))
    samples.Samples(config, corpus, tmp_path)
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (12_000,) * 2)"
    code += "; from midigen_jax.cli import command, train; command.run(train.main)"
    command = [sys.executable, "-c", code, "config.py"]
    done = subprocess.run(
        [*command, "--data", corpus.path, "--workdir", "run"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert "40/40" in done.stderr
    assert "a checkpoint could not be written (File too large); the run continues" in done.stdout
    assert "the sample could not be written (File too large); the run continues" in done.stdout
    assert "(File too large); free some space and give the same command, which starts over" in done.stderr
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_a_validation_loss_that_is_not_finite_is_not_saved(small, corpus, tmp_path, monkeypatch):
    make = loop.make_loss
    monkeypatch.setattr(loop, "make_loss", lambda *args: lambda *_: make(*args)(*_) * np.nan)
    with pytest.raises(InputError, match="the validation loss at step 6 is nan"):
        loop.train(small, corpus.path, tmp_path)
    assert Checkpoints(tmp_path).steps() == []


def test_it_saves_and_samples_by_the_clock(small, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "over", lambda since, minutes: minutes > 0)
    config = changed(small, train__steps=3, train__keep=9, train__sample_minutes=1)
    assert loop.train(config, corpus.path, tmp_path) == 0
    assert steps_of(tmp_path) == [3, 2, 1]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        f"step-{step:08}.{kind}" for step in (1, 2, 3) for kind in ("mid", "png", "wav")
    ]


def write_config(path: Path, config: cfg.Config) -> None:
    path.write_text(
        f"from midigen_jax import config as cfg\ndef config(): return cfg.from_flat({cfg.flatten(config)}, 'test')\n"
    )


@pytest.mark.slow
def test_a_run_killed_on_four_devices_resumes_with_two(small, corpus, tmp_path):
    write_config(tmp_path / "config.py", changed(small, data__lanes=4, train__steps=30, train__keep=9))
    command = [sys.executable, "-m", "midigen_jax.train", "config.py", "--data", corpus.path, "--workdir"]

    def on(devices, run):
        environment = ENVIRONMENT | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        return subprocess.Popen(
            [*command, run], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    said, _ = on(4, "four").communicate()
    assert "4 x cpu" in said
    killed = on(4, "two")
    while killed.poll() is None and not (tmp_path / "two" / "checkpoints" / "6").is_dir():
        time.sleep(0.005)
    killed.kill()
    killed.communicate()
    said, _ = on(2, "two").communicate()
    assert "2 x cpu" in said
    step = int(re.search(r"resumed at step (\d+) of 30", said)[1])
    four, two = ([x for x in lines_of(tmp_path / run) if x["step"] > step + 4] for run in ("four", "two"))
    assert len(two) > 1
    for one, other in zip(four, two, strict=True):
        for name in one.keys() - {"tokens_per_second", "seconds_per_step"}:
            assert other[name] == pytest.approx(one[name], rel=1e-3), name


def test_two_hosts_train_as_one(small, midi_folder, tmp_path):
    """Processes with two devices each. The first encodes and logs; both save, and one process can go on."""
    config = changed(small, data__lanes=4, train__steps=6, train__validate_every=6)
    write_config(tmp_path / "four_lanes.py", config)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "midigen_jax.train", "four_lanes.py", "--data", midi_folder, "--workdir", "two"]
    # The proxies of a network are no way to this machine.
    environment = {name: value for name, value in ENVIRONMENT.items() if not name.lower().endswith("_proxy")}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    hosts = [
        subprocess.Popen(
            [*command, "--distributed", f"{address},2,{i}"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE
        )
        for i in range(2)
    ]
    try:
        assert loop.train(config, midi_folder, tmp_path / "one") == 0
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
        for name in here.keys() - {"tokens_per_second", "seconds_per_step"}:
            assert there[name] == pytest.approx(here[name], rel=1e-4), name
    assert loop.train(changed(config, train__steps=8), midi_folder, tmp_path / "two") == 0


def test_instruments_velocities_and_merges_train_and_validate(small, midi_folder, band_folder, tmp_path):
    folder = shutil.copytree(midi_folder, tmp_path / "midi")
    shutil.copytree(band_folder, folder / "band")
    scheme, fractions = Scheme(12, multi=True, velocities=True), (0.7, 0.2, 0.1)
    encode_folder(folder, tmp_path / "corpus", scheme=scheme, vocabulary=600, transpose=1, fractions=fractions)
    assert loop.train(changed(small, train__steps=6), tmp_path / "corpus", tmp_path / "run") == 0
    assert lines_of(tmp_path / "run")[-1]["validation/bits_per_note"] > 0
    with pytest.raises(InputError, match="merged tokens"):
        loop.train(changed(small, data__transpose=1), tmp_path / "corpus", tmp_path / "other")


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
