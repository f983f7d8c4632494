"""Polyphonic music from the scores that the PyPI package music21 ships, as a folder of MIDI files.

Nothing is downloaded. Each score becomes one MIDI file, such as `DIR/bach/bwv253.mid`: one track per part, repeats
played, ties merged, and a meter wherever the length of the bars changes, so a pickup bar is a short bar of its own.
Duplicates and scores that have a single part or can't be read are skipped and listed in `DIR/skipped.csv`.
"""

import csv
import importlib.util
import multiprocessing
import signal
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import mido
from tqdm import tqdm

from ..errors import InputError
from ..files import atomic_write
from .music21_score import read_score, write_piece

# Chosen by notes per second of conversion, and by how much they lower the bits per note of an n-gram model on held-out
# chorales: from 6.72 to 6.62 with Monteverdi, 6.71 with Haydn and Mozart, 6.60 with a third of Beethoven, 6.67 with
# half of the trecento; with Palestrina, whose editor reserves the rights to other formats, it is 6.75.
_RASUMOVSKY = ("beethoven/opus59no1", "beethoven/opus59no2", "beethoven/opus59no3")
COMPOSERS = ("bach", "monteverdi", "haydn", "mozart", "beethoven/opus18no1", *_RASUMOVSKY)
_FORMATS = (".mxl", ".musicxml", ".xml", ".krn")  # best first
_MIN_SIMILARITY = 0.8  # scores that share this part of their notes are the same piece


def corpus_folder() -> Path:
    """The folder of music21's scores.

    Raises:
        InputError: music21 or its scores are missing.
    """
    spec = importlib.util.find_spec("music21")
    if spec is None or not spec.submodule_search_locations:
        raise InputError('music21 is not installed; pip install "midigen_jax[demo]"')
    folder = Path(spec.submodule_search_locations[0]) / "corpus"
    if not (folder / "bach").is_dir():
        raise InputError(f"{folder}: this music21 has no scores; install it from PyPI")
    return folder


def scores(composers: Sequence[str] = COMPOSERS) -> list[str]:
    """The scores of these composers, in order, as paths in music21's corpus; of several formats the best."""
    folder = corpus_folder()
    found: dict[str, str] = {}
    for composer in composers:
        files = [file for file in (folder / composer).rglob("*") if file.suffix in _FORMATS]
        if not files:
            raise InputError(f"--composers {composer}: no such folder of scores in {folder}; give one of its folders")
        for file in sorted(files, key=lambda file: (file.as_posix(), _FORMATS.index(file.suffix))):
            score = file.relative_to(folder).as_posix()
            found.setdefault(_without_format(score), score)
    return [found[name] for name in found]


def _without_format(score: str) -> str:
    return score.rpartition(".")[0]


def fingerprint(path: Path) -> frozenset[tuple[int, int]]:
    """Onset (ticks) and pitch of a MIDI file's notes, relative to the first onset and the lowest pitch."""
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
    """Converts a score of music21's corpus to a pending file in `out`, unless it was converted before.

    Runs in a worker process.

    Returns:
        The fingerprint, or the reason why the score is skipped.
    """
    path = _midi_path(score, out)
    if path.exists():
        return fingerprint(path)
    # Scores from many sources, read by a large library: any error skips one score and is reported.
    try:
        piece = read_score(corpus_folder() / score)
    except ValueError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_piece(_pending(path), piece)
    return fingerprint(_pending(path))


def _midi_path(score: str, out: Path) -> Path:
    return out / f"{_without_format(score)}.mid"


def _pending(path: Path) -> Path:
    """Where a file waits until it is known that it is no duplicate."""
    return path.with_name(f".{path.name}.part")


def build(out: Path, workers: int, composers: Sequence[str] = COMPOSERS) -> int:
    """Fills the folder `out` with the MIDI files of these composers; returns their number.

    Duplicates are decided in the order of the scores, so the result depends neither on the number of worker processes
    nor on interruptions.

    Raises:
        InputError: music21 is missing, or there is no such composer.
    """
    pieces = scores(composers)
    out.mkdir(parents=True, exist_ok=True)
    skipped = {score: reason for score, reason in _read_skipped(out) if score in pieces}
    todo = [score for score in pieces if score not in skipped]
    seen: list[tuple[str, frozenset[tuple[int, int]]]] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_ignore_interrupts) as pool:
        results = pool.map(partial(convert, out=out), todo, chunksize=4)
        for score, result in zip(todo, tqdm(results, "music21", len(todo), unit="piece"), strict=True):
            path = _midi_path(score, out)
            if isinstance(result, str):
                skipped[score] = result
            elif twin := next((name for name, other in seen if _alike(result, other)), None):
                skipped[score] = f"the same music as {twin}"
                _pending(path).unlink(missing_ok=True)
            else:
                seen.append((score, result))
                if not path.exists():
                    _pending(path).replace(path)
    _write_skipped(out, skipped)
    reasons = Counter("duplicates" if "same music" in reason else reason for reason in skipped.values())
    why = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common(3))
    tail = f"; {len(skipped)} skipped ({why}), see {out / 'skipped.csv'}" if skipped else ""
    print(f"{out}: {len(seen)} piece{'s' * (len(seen) != 1)}{tail}")
    return len(seen)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _alike(a: frozenset[tuple[int, int]], b: frozenset[tuple[int, int]]) -> bool:
    if min(len(a), len(b)) < _MIN_SIMILARITY * max(len(a), len(b)):
        return False
    both = len(a & b)
    return both >= _MIN_SIMILARITY * (len(a) + len(b) - both)


def _read_skipped(out: Path) -> list[tuple[str, str]]:
    path = out / "skipped.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [(row[0], row[1]) for row in csv.reader(file) if len(row) == 2][1:]


def _write_skipped(out: Path, skipped: dict[str, str]) -> None:
    with atomic_write(out / "skipped.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("score", "reason"), *skipped.items()])
