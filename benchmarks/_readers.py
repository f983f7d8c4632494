"""Readers of MIDI files side by side: what each does with a batch of files, its speed and its memory."""

import importlib.util
import multiprocessing
import os
import re
import resource
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import _shared
import numpy as np

from midigen_jax.errors import InputError

WORKERS = max(2, os.cpu_count() or 1)

Batch = list[str]


# A contestant imports what it needs when it is prepared, so that its process has nothing of the others.


def _midigen_jax() -> Callable[[Batch], Any]:
    from midigen_jax.data.file_batches import encode_batch
    from midigen_jax.vocab import Vocabulary

    return lambda batch: encode_batch(batch, Vocabulary())


def _symusic() -> Callable[[Batch], Any]:
    from symusic import Score

    return lambda batch: deque(map(Score, batch), maxlen=0)


def _mido() -> Callable[[Batch], Any]:
    from mido import MidiFile

    return lambda batch: deque(map(MidiFile, batch), maxlen=0)


def _miditok() -> Callable[[Batch], Any]:
    from miditok import REMI, TokenizerConfig

    tokenizer = REMI(TokenizerConfig())
    return lambda batch: deque(map(tokenizer, batch), maxlen=0)


PREPARE = {"midigen_jax": _midigen_jax, "symusic": _symusic, "mido": _mido, "miditok": _miditok}


class Row(NamedTuple):
    """A row of the table."""

    package: str
    does: str
    way: str = "threads"  # or processes
    workers: int = 1
    every: int = 1  # it reads one of so many files

    @property
    def name(self) -> str:
        return f"{self.package}: {self.does}, " + (f"{self.workers} {self.way}" if self.workers > 1 else "1 thread")


ROWS = (
    Row("midigen_jax", "tokens"),
    Row("midigen_jax", "tokens", "threads", WORKERS),
    Row("midigen_jax", "tokens", "processes", WORKERS),
    Row("symusic", "parse"),
    Row("symusic", "parse", "threads", WORKERS),
    Row("mido", "parse", every=64),
    Row("miditok", "REMI tokens", every=32),
)


def peak_memory() -> int:
    """Peak memory of this process in bytes; on Linux not `ru_maxrss`, which begins with that of its parent."""
    status = Path("/proc/self/status")
    peak = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.is_file() else None
    if peak:
        return int(peak[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)


class Memory(NamedTuple):
    """Peak memory of processes in bytes."""

    imports: int  # before the first file
    peak: int


_worker: tuple[Callable[[Batch], Any], int]


def _prepare_worker(package: str) -> None:
    global _worker
    _worker = PREPARE[package](), peak_memory()


def _work(batch: Batch) -> tuple[int, Memory]:
    read, imports = _worker
    read(batch)
    return os.getpid(), Memory(imports, peak_memory())


@contextmanager
def reader(package: str, way: str, workers: int) -> Iterator[Callable[[Iterable[Batch]], list[Memory]]]:
    """A function that reads batches of files; it returns the memory of each process that it started."""
    if way == "processes":
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, _prepare_worker, (package,)) as processes:
            yield lambda batches: list(dict(processes.map(_work, batches)).values())
        return
    read = PREPARE[package]()
    with ExitStack() as stack:
        each: Callable = map
        if workers > 1:
            each = stack.enter_context(ThreadPoolExecutor(workers)).map

        def read_all(batches: Iterable[Batch]) -> list[Memory]:
            deque(each(read, batches), maxlen=0)
            return []

        yield read_all


def memory_alone(package: str, way: str, workers: int, batches: list[Batch]) -> dict[str, int]:
    """The memory of this process, which did nothing before, and of those that it starts."""
    with reader(package, way, workers) as read:
        imports = peak_memory()
        others = read(batches)
    everyone = [Memory(imports, peak_memory()), *others]
    return Memory(*map(sum, zip(*everyone, strict=True)))._asdict()


def batched(paths: Sequence[str]) -> list[Batch]:
    """The batches that `encode_folder` makes of them."""
    from midigen_jax.data.file_batches import BATCH_BYTES, BATCH_FILES

    batches: list[Batch] = [[]]
    bytes_left = BATCH_BYTES
    for path in paths:
        bytes_left -= os.path.getsize(path)
        if batches[-1] and (len(batches[-1]) == BATCH_FILES or bytes_left < 0):
            batches.append([])
            bytes_left = BATCH_BYTES - os.path.getsize(path)
        batches[-1].append(path)
    return batches


def readable_by(package: str, paths: Iterable[str]) -> set[str]:
    """Those of the files that a package can read; every reader is warm after it."""
    read = PREPARE[package]()
    good = set()
    for path in set(paths):
        try:
            read([path])
            good.add(path)
        except Exception as error:
            print(f"{package} does not get {path}: {type(error).__name__}: {error}")
    return good


def print_table(*lines: Sequence[str]) -> None:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *others in lines:
        print(first.ljust(widths[0]), *(text.rjust(width + 2) for text, width in zip(others, widths[1:], strict=True)))
    print()


def note_counts(paths: Iterable[str]) -> dict[str, int]:
    """The notes of each file that has any."""
    from midigen_jax.kernels import smf

    counts = {path: len(smf.read_smf(np.fromfile(path, np.uint8))[2]) for path in paths}
    return {path: notes for path, notes in counts.items() if notes}


def compare(files: Sequence[str], n_files: int, rounds: int) -> dict[str, Any]:
    """All readers, round by round."""
    notes = note_counts(files)
    names = list(notes)
    if not names:
        raise InputError("none of the files has a note; give a folder of music")
    chosen = list(islice(cycle(names[:: max(1, len(names) // n_files)]), n_files))
    rows = [row for row in ROWS if importlib.util.find_spec(row.package)]
    for package in sorted({row.package for row in ROWS} - {row.package for row in rows}):
        print(f'{package} is left out: it is not installed; pip install -e ".[bench]"')

    work: dict[Row, list[Batch]] = {}
    for row in rows:
        if good := readable_by(row.package, chosen[:: row.every]):
            work[row] = batched([path for path in chosen[:: row.every] if path in good])
    rows = list(work)
    seconds: dict[Row, list[float]] = {row: [] for row in rows}
    with ExitStack() as stack:
        reads = {row: stack.enter_context(reader(row.package, row.way, row.workers)) for row in rows}
        for row in rows:
            reads[row](work[row])
        for turn in range(rounds):
            for row in rows[turn % len(rows) :] + rows[: turn % len(rows)]:
                began = time.perf_counter()
                reads[row](work[row])
                seconds[row].append(time.perf_counter() - began)

    results = {}
    own = np.array(seconds[rows[0]]) / sum(notes[path] for batch in work[rows[0]] for path in batch)
    for row in rows:
        paths = [path for batch in work[row] for path in batch]
        n_notes, size = sum(notes[path] for path in paths), sum(map(os.path.getsize, paths))
        median = statistics.median(seconds[row])
        relative = (np.array(seconds[row]) / n_notes / own).tolist()
        results[row.name] = {
            "files": len(paths),
            "notes": n_notes,
            "bytes": size,
            "notes_per_second": n_notes / median,
            "files_per_second": len(paths) / median,
            "bytes_per_second": size / median,
            "relative_time": statistics.median(relative),
            "relative_time_each_round": relative,
            "seconds_each_round": seconds[row],
            "memory": _shared.in_new_process(memory_alone, row.package, row.way, row.workers, work[row]),
        }
    _print_results(results)
    return results


def _print_results(results: dict[str, Any]) -> None:
    print_table(
        ["", "files", "notes/s", "files/s", "MB/s", "relative time", "peak MB", "of these imports"],
        *(
            [
                name,
                f"{result['files']:,}",
                f"{result['notes_per_second']:,.0f}",
                f"{result['files_per_second']:,.0f}",
                f"{result['bytes_per_second'] / 1e6:,.2f}",
                f"{result['relative_time']:,.2f}",
                f"{result['memory']['peak'] / 1e6:,.0f}",
                f"{result['memory']['imports'] / 1e6:,.0f}",
            ]
            for name, result in results.items()
        ),
    )
