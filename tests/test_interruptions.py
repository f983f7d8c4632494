"""Training that is stopped, killed, short of disk space, or spread over devices and hosts."""

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

import numpy as np
import pytest
from conftest import random_notes, write_midi
from small_models import changed
from test_train import ENVIRONMENT, checkpoint_of, equal, lines_of, steps_of, write_config

from midigen_jax import config as cfg
from midigen_jax.data import loader
from midigen_jax.data.corpus import open_corpus
from midigen_jax.data.encode import encode_folder
from midigen_jax.errors import InputError
from midigen_jax.run import checkpoint, signals
from midigen_jax.training import loop, samples

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


@pytest.mark.parametrize(
    ("retrieval", "stops"),
    [
        ("context+alignment", (10,)),
        *(
            pytest.param(retrieval, (10,), marks=pytest.mark.slow)
            for retrieval in ("context", "attention", "attention+alignment")
        ),
        pytest.param("context+alignment", (2, 10, 13), marks=pytest.mark.slow),
    ],
)
def test_stopping_and_resuming_in_new_processes_gives_the_same_bits(small, tmp_path, retrieval, stops):
    """Stopped at an epoch's end, in the middle of a song and of an epoch; with other loaders each time."""
    path, tokens = one_lane_of_whole_epochs(tmp_path, steps=5)
    lanes = loader.Lanes(open_corpus(path), open_corpus(path).songs_of("train"), 1, seed=0)
    song = lanes.read(0, 13 * tokens)["song"][0]
    assert [int(end[0]) for end in lanes.ends[:3]] == [0, 5 * tokens, 10 * tokens]
    assert [song[stop * tokens - 1] == song[stop * tokens] for stop in (2, 10)] == [True, False]
    config = changed(small, train__steps=16, train__validate_every=5, train__save_every=100, data__transpose=2)
    config = changed(config, data__lanes=1, data__segment=tokens, data__segments=1, memory__knn=4 * tokens)
    config = changed(config, memory__retrieval=retrieval)
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


@pytest.mark.slow
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
