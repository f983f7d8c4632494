"""How often beats and bars are found in music whose bar lines are hidden.

    python benchmarks/beats.py --data MIDI_DIR

Of all files that end in 4/4, the part in that meter is moved by a random number of ticks, under a meter of a single
beat; then counted: files whose beats are found, whose bars are, and whose bars are found half a bar off. Also counted:
files that encoding would move as they are.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _shared
import numpy as np

from midigen_jax.cli import command
from midigen_jax.data.folders import midi_files
from midigen_jax.kernels import beats, smf
from midigen_jax.run.environment import environment

FEWEST = 200  # notes


def moved_by(notes: np.ndarray, meters: Sequence[Sequence[int]], division: int) -> int | None:
    """By how many ticks `beats.align` moves the notes; None where it leaves them alone."""
    rows = np.zeros((len(meters) + 1, 3), np.int32)
    rows[: len(meters)] = np.array(meters, np.int32).reshape(-1, 3)
    moved = notes.copy()
    _, aligned = beats.align(moved, rows, len(meters), np.zeros((0, 2), np.int32), division)
    last = int(notes[:, smf.ONSET].argmax())
    return int(moved[last, smf.ONSET] - notes[last, smf.ONSET]) if aligned else None


def judged(path: Path, random: np.random.Generator) -> list[str]:
    """What is counted of a file."""
    error, division, notes, meters, _ = smf.read_smf(np.fromfile(path, np.uint8))
    if error != smf.OK or len(notes) == 0:
        return []
    counts = ["files"]
    if moved_by(notes, meters.tolist(), division):
        counts.append("moved as they are")
    if len(meters) == 0 or meters[-1, 1:].tolist() != [4, 4]:
        return counts
    notes = notes[notes[:, smf.ONSET] >= meters[-1, 0]].copy()
    if len(notes) < FEWEST:
        return counts
    hidden = int(random.integers(1, 4 * division))
    notes[:, smf.ONSET] += hidden - meters[-1, 0]
    counts.append("hidden")
    move = moved_by(notes, [[0, 1, 4]], division)
    if move is None:
        return [*counts, "on no grid"]
    sixteenths = round((hidden + move) * 4 / division) % 16
    right = {"beat": sixteenths % 4 == 0, "bar": sixteenths == 0, "half a bar off": sixteenths == 8}
    return [*counts, *(name for name, holds in right.items() if holds)]


def main() -> None:
    parser = _shared.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="MIDI_DIR")
    args = parser.parse_args()
    random, counts = np.random.default_rng(0), Counter[str]()
    for name in midi_files(args.data):
        counts.update(judged(args.data / name, random))
    result: dict[str, Any] = {"corpus": args.data.name, "counts": counts}
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))
    name = f"beats-{args.data.name}"
    _shared.save(args.results, name, result | {"environment": environment(("numpy", "numba"))})


if __name__ == "__main__":
    command.run(main)
