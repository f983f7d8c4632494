"""A folder of real polyphonic music, from the scores that the PyPI package music21 ships.

    python -m midigen_jax.music21_corpus --out DIR

Nothing is downloaded. Each score becomes one MIDI file, such as `DIR/bach/bwv253.mid`: a track a part,
repeats played, ties merged, and a meter wherever the length of the bars changes, so that a pickup bar is a
short bar of its own. Scores that come twice, have a single voice or cannot be read are left out and listed in
`DIR/skipped.csv`. Running it again goes on where it was stopped.
"""

import csv
import importlib.util
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import mido
from tqdm import tqdm

from . import cli
from .cli import InputError
from .music21_score import read_score, write_midi

# Chosen by notes for each second of conversion, and by how far they lower the bits a note of an n-gram model
# on held-out chorales: from 6.72 to 6.62 with Monteverdi, 6.71 with Haydn and Mozart, 6.60 with a third of
# Beethoven, 6.67 with half of the trecento; with Palestrina, whose encoder reserves the rights to other
# formats, it is 6.75.
_RASUMOVSKY = ("beethoven/opus59no1", "beethoven/opus59no2", "beethoven/opus59no3")
COMPOSERS = ("bach", "monteverdi", "haydn", "mozart", "beethoven/opus18no1", *_RASUMOVSKY)
_FORMATS = (".mxl", ".musicxml", ".xml", ".krn")  # the best first
_ALIKE = 0.8  # scores with this part of their notes in common are one piece


def corpus_folder() -> Path:
    """The folder of music21's scores. InputError with the mend where there is none."""
    spec = importlib.util.find_spec("music21")
    if spec is None or not spec.submodule_search_locations:
        raise InputError('music21 is not installed: pip install "midigen_jax[demo]"')
    folder = Path(spec.submodule_search_locations[0]) / "corpus"
    if not (folder / "bach").is_dir():
        raise InputError(f"{folder}: this music21 came without its scores: install it from PyPI")
    return folder


def scores(composers: Sequence[str] = COMPOSERS) -> list[str]:
    """The scores of these composers, in order, as paths in music21's corpus; of two formats, the better."""
    folder = corpus_folder()
    found: dict[str, str] = {}
    for composer in composers:
        files = [file for file in (folder / composer).rglob("*") if file.suffix in _FORMATS]
        if not files:
            raise InputError(f"--composers {composer}: no folder of scores in {folder}")
        for file in sorted(files, key=lambda file: (file.as_posix(), _FORMATS.index(file.suffix))):
            score = file.relative_to(folder).as_posix()
            found.setdefault(_without_format(score), score)
    return [found[name] for name in found]


def _without_format(score: str) -> str:
    return score.rpartition(".")[0]


def fingerprint(path: Path) -> frozenset[tuple[int, int]]:
    """Onset (ticks) and pitch of a MIDI file's notes, counted from the first onset and the lowest pitch."""
    notes = []
    for track in mido.MidiFile(path).tracks:
        tick = 0
        for message in track:
            tick += message.time
            if message.type == "note_on" and message.velocity:
                notes.append((tick, message.note))
    first, lowest = min(tick for tick, _ in notes), min(pitch for _, pitch in notes)
    return frozenset((tick - first, pitch - lowest) for tick, pitch in notes)


def convert(score: str, out: Path) -> str | frozenset[tuple[int, int]]:
    """Converts a score of music21's corpus into `out`, under a temporary name; if it is there, only reads it.

    Gives the fingerprint, or in words why there is no piece. Runs in a worker.
    """
    path = _midi_path(score, out)
    if path.exists():
        return fingerprint(path)
    # Strangers' scores, read by a large library: whatever goes wrong costs one piece and is reported.
    try:
        piece = read_score(corpus_folder() / score)
    except ValueError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_midi(piece, _temporary(path))
    return fingerprint(_temporary(path))


def _midi_path(score: str, out: Path) -> Path:
    return out / f"{_without_format(score)}.mid"


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def build(out: Path, workers: int, composers: Sequence[str] = COMPOSERS) -> int:
    """Fills the folder `out` with the MIDI files of these composers; returns how many it then holds.

    Duplicates are judged in the order of the scores, whichever of the `workers` processes is first, so the
    folder's content does not depend on them or on interruptions.
    """
    if workers < 1:
        raise InputError(f"--workers {workers}: at least 1 is needed")
    pieces = scores(composers)
    out.mkdir(parents=True, exist_ok=True)
    skipped = {score: reason for score, reason in _read_skipped(out) if score in pieces}
    todo = [score for score in pieces if score not in skipped]
    seen: list[tuple[str, frozenset[tuple[int, int]]]] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_interrupts_to_main) as pool:
        results = pool.map(partial(convert, out=out), todo, chunksize=4)
        for score, result in zip(todo, tqdm(results, "music21", len(todo), unit="piece"), strict=True):
            path = _midi_path(score, out)
            if isinstance(result, str):
                skipped[score] = result
            elif twin := next((name for name, other in seen if _alike(result, other)), None):
                skipped[score] = f"the same music as {twin}"
                _temporary(path).unlink(missing_ok=True)
            else:
                seen.append((score, result))
                if not path.exists():
                    os.replace(_temporary(path), path)
    _write_skipped(out, skipped)
    reasons = Counter("duplicates" if "same music" in reason else reason for reason in skipped.values())
    notes = sum(len(print_) for _, print_ in seen)
    why = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common(3))
    tail = f"; {len(skipped)} left out ({why}), see {out / 'skipped.csv'}" if skipped else ""
    print(f"{out}: {len(seen)} pieces, {notes:,} notes{tail}")
    return len(seen)


def _leave_interrupts_to_main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _alike(a: frozenset[tuple[int, int]], b: frozenset[tuple[int, int]]) -> bool:
    if min(len(a), len(b)) < _ALIKE * max(len(a), len(b)):
        return False
    both = len(a & b)
    return both >= _ALIKE * (len(a) + len(b) - both)


def _read_skipped(out: Path) -> list[tuple[str, str]]:
    path = out / "skipped.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [(row[0], row[1]) for row in csv.reader(file) if len(row) == 2][1:]


def _write_skipped(out: Path, skipped: dict[str, str]) -> None:
    path = out / "skipped.csv"
    with _temporary(path).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("score", "reason"), *skipped.items()])
    os.replace(_temporary(path), path)


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the MIDI files")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--composers", nargs="+", default=COMPOSERS, help="folders of music21's corpus")
    args = parser.parse_args()
    build(args.out, args.workers, args.composers)


if __name__ == "__main__":
    cli.run(main)
