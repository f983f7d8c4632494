"""A run that is killed again and again ends as one that never was: kill -9 at random moments, saves included.

python benchmarks/kills.py --data CORPUS_OR_MIDI_DIR --kills 50
"""

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
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
SETTINGS = (
    *("model.layers=1", "model.width=32", "model.heads=2", "model.ff_width=64", "model.dropout=0.1"),
    *("memory.xl=16", "memory.knn=256", "memory.knn_layer=1", "memory.top_k=4"),
    *("data.lanes=2", "data.segment=16", "data.transpose=2", "data.workers=1"),
    *("train.warmup=2", "train.save_every=10", "train.validation_songs=1", "train.validate_every=250"),
)


def command(corpus: Corpus, run: Path, steps: int) -> list[str]:
    sets = (part for setting in (*SETTINGS, f"train.steps={steps}") for part in ("--set", setting))
    train = [sys.executable, str(ROOT / "train.py"), str(ROOT / "configs" / "pop909.py")]
    return [*train, "--data", str(corpus.path), "--workdir", str(run), *sets]


def start_killing(run: list[str], seconds: float, *, after_first_step: bool = True) -> str | None:
    """Starts a run and kills it so many seconds after its start or first step; what it said if it ended before."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(
        run, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )
    assert process.stdout is not None
    said = ""
    # After the first step the bar knows the time left.
    while after_first_step and not re.search(r"<\d\d:", said[-8:]) and (letter := process.stdout.read(1)):
        said += letter
    try:
        return said + process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()  # its loader's processes hold the pipe open until they end as well
        return None


def state_after(run: Path, config: cfg.Config, corpus: Corpus) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, by its path."""
    shapes = start.items_of(start.abstract_state(config, corpus.vocabulary, make_mesh(config)))
    found = checkpoint.open_run(run).newest(lambda meta: shapes)
    return jax.tree.map(
        np.asarray,
        {f"{name}/{path}": x for name, tree in found.items.items() for path, x in checkpoint.by_path(tree).items()},
    )


def survive(corpus: Corpus, folder: Path, *, steps: int, kills: int, longest: float, seed: int = 0) -> dict[str, Any]:
    """Trains twice, once killed at random moments, and compares what is left.

    Args:
        longest: seconds of training between two kills, at most; evenly distributed. Every third one comes before, at
            any moment of the eight seconds after the start.

    Returns:
        The number of kills, how many fell on a save, how many arrays differ at the end, and what was left behind.
    """
    config = cfg.override(cfg.load(ROOT / "configs" / "pop909.py"), [*SETTINGS, f"train.steps={steps}"])
    moments, killed, in_a_save = random.Random(seed), 0, 0
    said = start_killing(command(corpus, folder / "straight", steps), 3600)
    assert said is not None
    assert "has trained" in said, said
    while True:
        early = killed % 3 == 2
        seconds = moments.uniform(0, 8 if early else longest) if killed < kills else 3600
        said = start_killing(
            command(corpus, folder / "killed", steps), seconds, after_first_step=killed >= kills or not early
        )
        if said is not None:
            assert "has trained" in said, said
            assert "damaged" not in said, said
            break
        killed += 1
        in_a_save += any(".orbax-checkpoint-tmp" in path.name for path in (folder / "killed").glob("checkpoints/*"))
    one, other = (state_after(folder / name, config, corpus) for name in ("straight", "killed"))
    assert one.keys() == other.keys()
    validations = [
        [line for line in (folder / name / "metrics.jsonl").read_text().splitlines() if "validation/" in line]
        for name in ("straight", "killed")
    ]
    left = [path.name for path in (folder / "killed" / "checkpoints").iterdir() if not path.name.isdigit()]
    return {
        "steps": steps,
        "kills": killed,
        "kills that fell on a save": in_a_save,
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
    parser.add_argument("--longest", type=float, default=1.5, help="seconds of training between two kills, at most")
    args = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        corpus = get_corpus(args.data, Path(folder))
        result = survive(corpus, Path(folder), steps=args.steps, kills=args.kills, longest=args.longest)
        config = cfg.override(cfg.load(ROOT / "configs" / "pop909.py"), [*SETTINGS, f"train.steps={args.steps}"])
        around = circumstances(config, corpus)
    print(f"{', '.join(f'{value} {name}' for name, value in result.items())} ({time.monotonic() - begin:.0f} s)")
    save(f"kills-{args.data.name}", {**around, **result}, otherwise=args.kills != parser.get_default("kills"))
    if result["arrays that differ"] or result["validations that differ"] or result["left behind"]:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
