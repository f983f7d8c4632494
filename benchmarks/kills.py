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

import jax
import numpy as np
from _ours import circumstances
from _shared import save

from midigen_jax import checkpoint, cli, start
from midigen_jax import config as cfg
from midigen_jax.corpus import Corpus
from midigen_jax.step import make_mesh
from midigen_jax.train import get_corpus

ROOT = Path(__file__).parent.parent
# A step takes some milliseconds and every tenth is saved, so that many kills fall on a save.
SAVE_EVERY = 10
SETTINGS = (
    *("model.layers=1", "model.width=32", "model.heads=2", "model.ff_width=64", "model.dropout=0.1"),
    *("memory.xl=16", "memory.knn=256", "memory.knn_layer=1", "memory.top_k=4"),
    *("data.lanes=2", "data.segment=16", "data.transpose=2", "data.workers=1"),
    *("train.warmup=2", f"train.save_every={SAVE_EVERY}", "train.validation_songs=1", "train.validate_every=250"),
)


def command(corpus: Corpus, run: Path, steps: int) -> list[str]:
    sets = (part for setting in (*SETTINGS, f"train.steps={steps}") for part in ("--set", setting))
    train = [sys.executable, str(ROOT / "train.py"), str(ROOT / "configs" / "pop909.py")]
    return [*train, "--data", str(corpus.path), "--workdir", str(run), *sets]


def begin(run: list[str]) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        run, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )


def hear_first_step(process: subprocess.Popen) -> str:
    """Waits for it; returns what was said until then."""
    assert process.stdout is not None
    said = ""
    # After the first step the bar knows the time left.
    while not re.search(r"<\d\d:", said[-8:]) and (letter := process.stdout.read(1)):
        said += letter
    return said


def newest(run: Path) -> int:
    """The step of its newest checkpoint, 0 if there is none."""
    return max((int(path.name) for path in run.glob("checkpoints/*") if path.name.isdigit()), default=0)


def wait_for_saves(process: subprocess.Popen, run: Path, saves: int) -> None:
    until = newest(run) + saves * SAVE_EVERY
    while newest(run) < until and process.poll() is None:
        time.sleep(0.002)


def state_after(run: Path, config: cfg.Config, corpus: Corpus) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, by its path."""
    shapes = start.items_of(start.abstract_state(config, corpus.vocabulary, make_mesh(config)))
    found = checkpoint.open_run(run).newest(lambda meta: shapes)
    return jax.tree.map(
        np.asarray,
        {f"{name}/{path}": x for name, tree in found.items.items() for path, x in checkpoint.by_path(tree).items()},
    )


def survive(corpus: Corpus, folder: Path, *, steps: int, kills: int, seed: int = 0) -> dict[str, Any]:
    """Trains twice, once killed at random moments, and compares what is left.

    Two kills of three fall some saves after the first step of a start, the third at any moment of its start-up.
    Training is counted in saves and not in seconds, for a machine may be busy now and idle a minute later; all that is
    trained before kills is about half of the run at most. The run without kills tells how long a start and a save take.

    Returns:
        The steps from which the killed run began, how many kills fell on a save, how many arrays differ at the end, and
        what was left behind.
    """
    config = cfg.override(cfg.load(ROOT / "configs" / "pop909.py"), [*SETTINGS, f"train.steps={steps}"])
    straight, run, asked = folder / "straight", folder / "killed", time.monotonic()
    process = begin(command(corpus, straight, steps))
    said, first_step = hear_first_step(process), time.monotonic()
    said += process.communicate()[0]
    assert "has trained" in said, said
    training = time.monotonic() - first_step
    a_save = training * SAVE_EVERY / steps
    # The pipe holds what is said in so long.
    most_saves = min(max(steps // SAVE_EVERY * 3 // (4 * kills), 1), 20)
    moments, in_a_save = random.Random(seed), 0
    for kill in range(kills):
        process = begin(command(corpus, run, steps))
        if kill % 3 == 2:
            timer = threading.Timer(moments.uniform(0, first_step - asked), process.kill)
            timer.start()
            said = hear_first_step(process)  # if it comes before the timer's end, it is killed here
            timer.cancel()
        else:
            said = hear_first_step(process)
            wait_for_saves(process, run, moments.randrange(most_saves))
            time.sleep(moments.uniform(0, a_save))
        process.kill()
        said += process.communicate()[0]  # its loader's processes hold the pipe open until they end as well
        assert "has trained" not in said, f"it ended before kill {kill + 1}; give more --steps: {said}"
        assert process.returncode == -signal.SIGKILL, said
        # Before its first step a start still has what the kill before it left.
        in_a_save += kill % 3 != 2 and any(".orbax-checkpoint-tmp" in path.name for path in run.glob("checkpoints/*"))
    said = begin(command(corpus, run, steps)).communicate()[0]
    assert "has trained" in said, said
    assert "damaged" not in said, said
    starts = [begun["step"] for begun in json.loads((run / "run.json").read_text())["starts"]]
    assert len(set(starts)) > kills // 3, starts  # else nothing was tested
    one, other = (state_after(path, config, corpus) for path in (straight, run))
    assert one.keys() == other.keys()
    validations = [
        [line for line in (path / "metrics.jsonl").read_text().splitlines() if "validation/" in line]
        for path in (straight, run)
    ]
    left = [path.name for path in (run / "checkpoints").iterdir() if not path.name.isdigit()]
    return {
        "steps": steps,
        "seconds of training without kills": training,
        "saves waited for before a kill, fewer than": most_saves,
        "kills": kills,
        "kills that fell on a save": in_a_save,
        "steps from which starts went on": starts,
        "arrays": len(one),
        "arrays that differ": sum(one[path].tobytes() != other[path].tobytes() for path in one),
        "validations": len(validations[0]),
        "validations that differ": sum(x != y for x, y in zip(*validations, strict=True)),
        "left behind": left,
    }


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="CORPUS_OR_MIDI_DIR", help="music to learn from")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=6000, help="of each run")
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        corpus = get_corpus(args.data, Path(folder))
        result = survive(corpus, Path(folder), steps=args.steps, kills=args.kills)
        config = cfg.override(cfg.load(ROOT / "configs" / "pop909.py"), [*SETTINGS, f"train.steps={args.steps}"])
        around = circumstances(config, corpus)
    print(f"{', '.join(f'{value} {name}' for name, value in result.items())} ({time.monotonic() - began:.0f} s)")
    save(f"kills-{args.data.name}", {**around, **result}, otherwise=args.kills != parser.get_default("kills"))
    if result["arrays that differ"] or result["validations that differ"] or result["left behind"]:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
