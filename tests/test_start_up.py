"""Commands answer at once, and importing the package changes nothing in the process that imports it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"jax", "matplotlib", "orbax", "flax", "optax", "grain", "numba", "tensorboardX", "scipy", "music21"}

# What a command imports before it stops with an exit status.
STOPS = """
import sys
from midigen_jax.cli.command import run
sys.argv = ["midigen", *sys.argv[1:]]
from midigen_jax.cli import main
try:
    main.main()
except SystemExit as stop:
    print("status", stop.code or 0)
print("heavy", sorted(set(sys.modules) & set(HEAVY)))
""".replace("HEAVY", repr(HEAVY))


def stops(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-c", STOPS, *arguments]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder, env=environment)
    return done.stdout + done.stderr


SUBCOMMANDS = ["encode", "decode", "train", "sample", "evaluate", "votes", "plot", "export", "music21"]


@pytest.mark.parametrize("subcommand", SUBCOMMANDS)
def test_help_imports_nothing_heavy(tmp_path, subcommand):
    output = stops(tmp_path, subcommand, "--help")
    assert f"usage: midigen {subcommand}" in output
    assert "heavy []" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train configs/nothing.py --data . --workdir run", "configs/nothing.py: no such config file"),
        ("train {demo} --data . --workdir run --set model.depth=3", "unknown config key model.depth"),
        ("train {demo} --data nowhere --workdir run", "nowhere: no such folder"),
        ("train {demo} --data . --workdir run --init-from other", "other: no such run folder"),
        ("encode nowhere --out corpus", "nowhere: no such folder"),
        ("decode nowhere", "nowhere: no such folder"),
        ("sample nowhere", "nowhere: no such run folder"),
        ("sample . --temperature 0", "temperature 0.0: give a number above 0"),
        ("sample . --key H", "key H: no key"),
        ("sample . --prompt nothing.mid", "--prompt nothing.mid: no such file"),
        ("evaluate nowhere --data .", "nowhere: no such run folder"),
        ("plot nowhere", "nowhere: holds no metrics.jsonl"),
        ("export nowhere out", "nowhere: no such run folder"),
        ("paint", "paint: no such subcommand"),
    ],
)
def test_bad_arguments_are_reported_without_anything_heavy(tmp_path, arguments, message):
    arguments = arguments.format(demo=ROOT / "configs" / "demo.py")
    output = stops(tmp_path, *arguments.split())
    assert message in output
    assert "status 2" in output
    assert "heavy []" in output
    assert list(tmp_path.iterdir()) == []


def test_the_package_loads_without_jax():
    """The loader's processes rely on it."""
    code = f"import midigen_jax, sys; print(sorted(set(sys.modules) & { {*HEAVY, 'numpy'} }))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


IMPORTS = """
import importlib, logging, pkgutil, signal, sys, warnings
import faiss, grain, jax, jaxtyping, matplotlib.figure, mido, midirenderer, numba, optax, orbax.checkpoint, pretty_midi
import jax.experimental.multihost_utils, safetensors.flax, scipy.stats, soundfile, tensorboardX, tqdm
from flax import nnx
from flax.configurations import config as flax_config
import tensorboardX.event_file_writer, jax.experimental.buffer_callback

def settings():
    names = ["", "absl", "asyncio", "jax", "orbax", "numba", "matplotlib"]
    return {
        "loggers": [(logging.getLogger(n).level, list(logging.getLogger(n).handlers)) for n in names],
        "hooks": [sys.excepthook, sys.unraisablehook, sys.displayhook],
        "filters": list(warnings.filters),
        "signals": [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)],
        "jax": dict(jax.config.values),
        "flax": dict(flax_config._values),
        "faiss": faiss.cvar.distance_compute_blas_threshold,
        "nnx": [nnx.set_graph_mode.get_default(), list(nnx.set_graph_mode.get_stack())],
        "streams": [sys.stdout, sys.stderr],
    }

before = settings()
import midigen_jax
names = [m.name for m in pkgutil.walk_packages(midigen_jax.__path__, "midigen_jax.")]
names.remove("midigen_jax.__main__")
assert len(names) > 60
for name in names:
    importlib.import_module(name)
after = settings()
assert before == after, [(n, before[n], after[n]) for n in before if before[n] != after[n]]
"""


def test_importing_changes_nothing_in_the_process():
    """No logger, hook, filter, signal handler or mode of a library is other than it was."""
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
