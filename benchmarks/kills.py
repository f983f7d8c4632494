"""A run that is killed again and again ends as one that never was: kill -9 at random moments, saves included.

python benchmarks/kills.py --data CORPUS_OR_MIDI_DIR --kills 50
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import _shared
import numpy as np
from _ours import circumstances

from midigen_jax import config as cfg
from midigen_jax.cli import command
from midigen_jax.data.corpus import Corpus
from midigen_jax.data.encode import open_or_encode
from midigen_jax.run import checkpoint
from midigen_jax.run.tensors import by_path
from midigen_jax.training import restore
from midigen_jax.training.sharding import make_mesh

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs" / "pop909.py"
# A step takes some milliseconds and every tenth is saved, so that many kills fall on a save.
SAVE_EVERY = 10
SETTINGS = (
    *("model.layers=1", "model.width=32", "model.heads=2", "model.ff_width=64", "model.dropout=0.1"),
    *("memory.xl=16", "memory.knn=256", "memory.knn_layer=1", "memory.top_k=4"),
    *("data.lanes=2", "data.segment=16", "data.transpose=2", "data.workers=1"),
    *("train.warmup=2", f"train.save_every={SAVE_EVERY}", "train.validation_songs=1", "train.validate_every=250"),
)


def training_command(corpus: Corpus, run: Path, steps: int) -> list[str]:
    sets = (part for setting in (*SETTINGS, f"train.steps={steps}") for part in ("--set", setting))
    return [
        *(sys.executable, str(ROOT / "train.py"), str(CONFIG)),
        *("--data", str(corpus.path), "--workdir", str(run), *sets),
    ]


def start(command: list[str]) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )


def wait_for_first_step(process: subprocess.Popen) -> str:
    """Returns the output until then."""
    assert process.stdout is not None
    output = ""
    # After the first step the progress bar knows the time left.
    while not re.search(r"<\d\d:", output[-8:]) and (letter := process.stdout.read(1)):
        output += letter
    return output


def newest_checkpoint(run: Path) -> int:
    """The step of the newest checkpoint, 0 if there is none."""
    return max((int(path.name) for path in run.glob("checkpoints/*") if path.name.isdigit()), default=0)


def wait_for_saves(process: subprocess.Popen, run: Path, saves: int) -> None:
    until = newest_checkpoint(run) + saves * SAVE_EVERY
    while newest_checkpoint(run) < until and process.poll() is None:
        time.sleep(0.002)


def arrays_of(run: Path, config: cfg.Config, corpus: Corpus) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, by its path."""
    shapes = restore.items_of(restore.abstract_state(config, corpus.vocabulary, make_mesh(config)))
    found = checkpoint.open_run(run).newest(lambda meta: shapes)
    return {f"{name}/{path}": np.asarray(x) for name, tree in found.items.items() for path, x in by_path(tree).items()}


def config_of(steps: int) -> cfg.Config:
    return cfg.override(cfg.load(CONFIG), [*SETTINGS, f"train.steps={steps}"])


def survive(corpus: Corpus, folder: Path, *, steps: int, kills: int, seed: int = 0) -> dict[str, Any]:
    """Trains twice, once without and once with kills at random moments, and compares the results.

    Two kills of three come some saves after the first step of a start, the third at any moment of the start-up. The
    moment is counted in saves and not in seconds, since a machine may be busy now and idle a minute later; kills waste
    about half of the run at most. The run without kills tells how long a start and a save take.

    Returns:
        The steps from which the killed run resumed, how many kills came during a save, how many arrays differ at the
        end, and which incomplete files are left.
    """
    config = config_of(steps)
    straight, run, asked = folder / "straight", folder / "killed", time.monotonic()
    process = start(training_command(corpus, straight, steps))
    output, first_step = wait_for_first_step(process), time.monotonic()
    output += process.communicate()[0]
    assert "has trained" in output, output
    training = time.monotonic() - first_step
    seconds_per_save = training * SAVE_EVERY / steps
    # At most so many that the pipe can hold the output of that time.
    most_saves = min(max(steps // SAVE_EVERY * 3 // (4 * kills), 1), 20)
    moments, during_save = random.Random(seed), 0
    for kill in range(kills):
        process = start(training_command(corpus, run, steps))
        if kill % 3 == 2:
            timer = threading.Timer(moments.uniform(0, first_step - asked), process.kill)
            timer.start()
            output = wait_for_first_step(process)  # if that comes before the timer, the process is killed here
            timer.cancel()
        else:
            output = wait_for_first_step(process)
            wait_for_saves(process, run, moments.randrange(most_saves))
            time.sleep(moments.uniform(0, seconds_per_save))
        process.kill()
        output += process.communicate()[0]  # the loader's processes hold the pipe open until they end as well
        assert "has trained" not in output, f"it ended before kill {kill + 1}; give more --steps: {output}"
        assert process.returncode == -signal.SIGKILL, output
        # Before its first step a start still has the incomplete files of the kill before it.
        incomplete = any(".orbax-checkpoint-tmp" in path.name for path in run.glob("checkpoints/*"))
        during_save += kill % 3 != 2 and incomplete
    output = start(training_command(corpus, run, steps)).communicate()[0]
    assert "has trained" in output, output
    assert "damaged" not in output, output
    starts = [begun["step"] for begun in json.loads((run / "run.json").read_text())["starts"]]
    assert len(set(starts)) > kills // 3, starts  # else nothing was tested
    one, other = (arrays_of(path, config, corpus) for path in (straight, run))
    assert one.keys() == other.keys()
    validations = [
        [line for line in (path / "metrics.jsonl").read_text().splitlines() if "validation/" in line]
        for path in (straight, run)
    ]
    left = [path.name for path in (run / "checkpoints").iterdir() if not path.name.isdigit()]
    return {
        "steps": steps,
        "seconds of training without kills": training,
        "maximum saves before a kill": most_saves - 1,
        "kills": kills,
        "kills during a save": during_save,
        "steps resumed from": starts,
        "arrays": len(one),
        "arrays that differ": sum(one[path].tobytes() != other[path].tobytes() for path in one),
        "validations": len(validations[0]),
        "validations that differ": sum(x != y for x, y in zip(*validations, strict=True)),
        "incomplete files left": left,
    }


def main() -> None:
    parser = _shared.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="CORPUS_OR_MIDI_DIR", help="music to train on")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=6000, help="steps of each run")
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        corpus = open_or_encode(args.data, Path(folder))
        result = survive(corpus, Path(folder), steps=args.steps, kills=args.kills)
        around = circumstances(config_of(args.steps), corpus)
    print(*(f"{name}: {value}" for name, value in result.items()), sep="\n")
    print(f"{time.monotonic() - began:.0f} s")
    usual = _shared.has_defaults(parser, args, "kills", "steps")
    _shared.save(args.results, f"kills-{args.data.name}", {**around, **result}, usual=usual)
    if result["arrays that differ"] or result["validations that differ"] or result["incomplete files left"]:
        sys.exit(1)


if __name__ == "__main__":
    command.run(main)
