"""How fast MIDI files become tokens, beside other readers, and what a large corpus takes.

python benchmarks/encode.py --data MIDI_DIR

Readers go over the same files in turn, round by round. The slow ones take every so-manieth of them; all figures count
the notes that this project's reader finds. Memory is the peak of a process of its own that does nothing else.

The corpus builder gets copies of the files with other notes: the twelve pitch classes of each are permuted. To see how
it grows, give --copies 1000 20000; that takes a minute more, and the copies lie in the folder for temporary files.
"""

import importlib.util
import json
import multiprocessing
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _shared import save

from midigen_jax import cli
from midigen_jax.environment import environment

WORKERS = max(2, os.cpu_count() or 1)
VOCABULARY = 2048
STARTED_ON = 10  # files

Batch = list[str]


# The contestants import what they need when they are prepared, so that a process of one has nothing of the others.


def _midigen_jax() -> Callable[[Batch], Any]:
    from midigen_jax.batches import encode_batch
    from midigen_jax.vocab import Scheme

    return lambda batch: encode_batch(batch, Scheme())


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
    """A line of the table."""

    package: str
    does: str
    way: str = "threads"  # or processes
    workers: int = 1
    every: int = 1  # of how many files it reads one

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
    """The most bytes that this process has held; on Linux not `ru_maxrss`, which starts at that of its parent."""
    status = Path("/proc/self/status")
    peak = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.is_file() else None
    if peak:
        return int(peak[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)


class Memory(NamedTuple):
    """Bytes that processes held at most."""

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


def reader(package: str, way: str, workers: int) -> Callable[[Iterable[Batch]], list[Memory]]:
    """What reads batches of files; it returns the memory of each process that it started."""
    if way == "processes":
        context = multiprocessing.get_context("spawn")
        processes = ProcessPoolExecutor(workers, context, _prepare_worker, (package,))
        return lambda batches: list(dict(processes.map(_work, batches)).values())
    read = PREPARE[package]()
    each = ThreadPoolExecutor(workers).map if workers > 1 else map

    def read_all(batches: Iterable[Batch]) -> list[Memory]:
        deque(each(read, batches), maxlen=0)
        return []

    return read_all


def memory_alone(package: str, way: str, workers: int, batches: list[Batch]) -> dict[str, int]:
    """The memory of this process, which did nothing before, and of those that it starts."""
    read = reader(package, way, workers)
    imports = peak_memory()
    others = read(batches)
    everyone = [Memory(imports, peak_memory()), *others]
    return Memory(*map(sum, zip(*everyone, strict=True)))._asdict()


def fresh(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Calls a function of this file in a process of its own."""
    code = f"import json, sys, encode; print(json.dumps(encode.{function.__name__}(*json.load(sys.stdin))))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(arguments),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
    )
    return json.loads(done.stdout.splitlines()[-1])


def batched(paths: Sequence[str]) -> list[Batch]:
    """The batches that `encode_folder` makes of them."""
    from midigen_jax.batches import BATCH_BYTES, BATCH_FILES

    batches: list[Batch] = [[]]
    room = BATCH_BYTES
    for path in paths:
        room -= os.path.getsize(path)
        if batches[-1] and (len(batches[-1]) == BATCH_FILES or room < 0):
            batches.append([])
            room = BATCH_BYTES - os.path.getsize(path)
        batches[-1].append(path)
    return batches


def read_by(package: str, paths: Iterable[str]) -> set[str]:
    """Those of the files that a package does not give up on; every reader is warm after it."""
    read = PREPARE[package]()
    good = set()
    for path in set(paths):
        try:
            read([path])
            good.add(path)
        except Exception as error:
            print(f"{package} is spared {path}: {type(error).__name__}: {error}")
    return good


def print_table(*lines: Sequence[str]) -> None:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *others in lines:
        print(first.ljust(widths[0]), *(text.rjust(width + 2) for text, width in zip(others, widths[1:], strict=True)))
    print()


def note_counts(paths: Iterable[str]) -> dict[str, int]:
    """The notes of each file that holds any."""
    from midigen_jax.kernels import smf

    counts = {path: len(smf.read_smf(np.fromfile(path, np.uint8))[2]) for path in paths}
    return {path: notes for path, notes in counts.items() if notes}


def compare(files: Sequence[str], n_files: int, rounds: int) -> dict[str, Any]:
    """Readers side by side."""
    notes = note_counts(files)
    names = list(notes)
    if not names:
        raise cli.InputError("none of the files holds a note; give a folder of music")
    step = max(1, len(names) // n_files)
    chosen = list(islice(cycle(names[::step]), n_files))
    rows = [row for row in ROWS if importlib.util.find_spec(row.package)]
    for package in sorted({row.package for row in ROWS} - {row.package for row in rows}):
        print(f'{package} is not installed: pip install -e ".[bench]"')

    reads, work = {}, {}
    for row in rows:
        good = read_by(row.package, chosen[:: row.every])
        if not good:
            continue
        work[row] = batched([path for path in chosen[:: row.every] if path in good])
        reads[row] = reader(row.package, row.way, row.workers)
        reads[row](work[row])
    rows = list(work)
    seconds: dict[Row, list[float]] = {row: [] for row in rows}
    for turn in range(rounds):
        for row in rows[turn % len(rows) :] + rows[: turn % len(rows)]:
            begin = time.perf_counter()
            reads[row](work[row])
            seconds[row].append(time.perf_counter() - begin)

    results = {}
    own = np.array(seconds[rows[0]]) / sum(notes[path] for batch in work[rows[0]] for path in batch)
    for row in rows:
        paths = [path for batch in work[row] for path in batch]
        n_notes, size = sum(notes[path] for path in paths), sum(map(os.path.getsize, paths))
        median = statistics.median(seconds[row])
        results[row.name] = {
            "files": len(paths),
            "notes": n_notes,
            "bytes": size,
            "notes_per_second": n_notes / median,
            "files_per_second": len(paths) / median,
            "bytes_per_second": size / median,
            "relative_time": statistics.median((np.array(seconds[row]) / n_notes / own).tolist()),
            "relative_time_each_round": (np.array(seconds[row]) / n_notes / own).tolist(),
            "seconds_each_round": seconds[row],
            "memory": fresh(memory_alone, row.package, row.way, row.workers, work[row]),
        }
    print_table(
        ["", "files", "notes/s", "files/s", "MB/s", "relative time", "peak MB", "of it imports"],
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
    return results


def build(folder: str, out: str, workers: int) -> dict[str, Any]:
    """Encodes a folder in this process, which did nothing before."""
    from midigen_jax.encode import encode_folder

    imports = peak_memory()
    begin = time.perf_counter()
    encode_folder(Path(folder), Path(out), workers=workers)
    return {"seconds": time.perf_counter() - begin, "memory": Memory(imports, peak_memory())._asdict()}


def grow(files: Sequence[str], sizes: Sequence[int], scratch: Path) -> list[dict[str, Any]]:
    """The corpus builder on so many files."""
    from _copies import write_copies

    results: list[dict[str, Any]] = []
    if not sizes:
        return results
    for n_files in sizes:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            copies = Path(folder, "midi")
            copies.mkdir()
            write_copies(files, n_files, copies)
            for workers in sorted({1, WORKERS}):
                done = fresh(build, str(copies), str(Path(folder, f"corpus{workers}")), workers)
                results.append({"files": n_files, "workers": workers, **done})
    print_table(
        ["corpus builder", "workers", "seconds", "files/s", "peak MB", "of it imports"],
        *(
            [
                f"{result['files']:,} files",
                f"{result['workers']}",
                f"{result['seconds']:.2f}",
                f"{result['files'] / result['seconds']:,.0f}",
                f"{result['memory']['peak'] / 1e6:,.0f}",
                f"{result['memory']['imports'] / 1e6:,.0f}",
            ]
            for result in results
        ),
    )
    if len(sizes) > 1:
        few, many = results[0], results[-2]  # one worker
        thousands = (many["files"] - few["files"]) / 1000
        seconds, growth = many["seconds"] - few["seconds"], many["memory"]["peak"] - few["memory"]["peak"]
        print(f"1 worker: {seconds / thousands:.2f} s for every 1,000 files more; {growth / 1e6:,.0f} MB for all\n")
    return results


def start_up(files: Sequence[str], rounds: int, scratch: Path) -> dict[str, Any]:
    """The whole command on a few files: the first run ever, which compiles, and later ones."""
    folder = scratch / "few"
    folder.mkdir()
    for i, path in enumerate(files[:STARTED_ON]):
        (folder / f"{i}.mid").symlink_to(path)
    seconds = []
    for _ in range(1 + rounds):
        begin = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "midigen_jax.encode", str(folder), "--out", str(scratch / "few.corpus")],
            env={**os.environ, "NUMBA_CACHE_DIR": str(scratch / "kernels")},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        seconds.append(time.perf_counter() - begin)
    result = {"first_run_seconds": seconds[0], "later_seconds": statistics.median(seconds[1:])}
    print_table(
        [f"python -m midigen_jax.encode, {STARTED_ON} files", "seconds"],
        ["the first run ever, kernels compiled", f"{seconds[0]:.2f}"],
        ["later, kernels from disk", f"{result['later_seconds']:.2f}"],
    )
    return {**result, "seconds_each_run": seconds}


def merge(folder: str, scratch: str) -> dict[str, Any]:
    """A corpus without and with merges, and how long learning them takes."""
    from midigen_jax.corpus import open_corpus
    from midigen_jax.encode import MERGE_TOKENS, encode_folder
    from midigen_jax.kernels import merges

    out = Path(scratch, "merged")
    encode_folder(Path(folder), out, vocabulary=VOCABULARY)  # loads every kernel
    result: dict[str, Any] = {}
    for size in (0, VOCABULARY):
        begin = time.perf_counter()
        encode_folder(Path(folder), out, vocabulary=size)
        seconds = time.perf_counter() - begin
        corpus = open_corpus(out)
        songs = len(corpus.names)
        row = {"seconds": seconds, "tokens_per_song": len(corpus.tokens) / songs, "songs": songs}
        if not size:  # learn as the builder does, from about MERGE_TOKENS tokens of the training songs
            base, training = corpus.vocabulary.size, corpus.songs_of("train")
            every = max(1, -(-int(np.diff(corpus.offsets)[training].sum()) // MERGE_TOKENS))
            tokens = np.concatenate([corpus.tokens_of(song) for song in training[::every]])
            merges.learn(tokens[:1000], base, 1)
            begin = time.perf_counter()
            merges.learn(tokens, base, VOCABULARY - base)
            result = {"learned_from_tokens": len(tokens), "learn_seconds": time.perf_counter() - begin}
        result["with" if size else "without"] = row | {"vocabulary": corpus.vocabulary.size}
    return result


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="MIDI_DIR")
    parser.add_argument(
        "--files", type=int, default=2048, help="files that the fast readers read; a smaller folder is read repeatedly"
    )
    parser.add_argument("--rounds", type=int, default=5)
    copies_help = "sizes of the folders that are built, in files; the seconds hold the loading of the kernels"
    parser.add_argument("--copies", type=int, nargs="*", default=[1000], metavar="N", help=copies_help)
    args = parser.parse_args()

    from midigen_jax.encode import midi_files

    data = args.data.resolve()
    files = [str(data / name) for name in midi_files(data)]
    result: dict[str, Any] = {
        "data": data.name,
        "environment": environment(("numpy", "numba", "mido", "symusic", "miditok")),
        "readers": compare(files, args.files, args.rounds),
    }
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        result["merges"] = merged = fresh(merge, str(data), folder)  # also compiles what the builder needs
        result["builder"] = grow(files, sorted(set(args.copies)), scratch)
        result["start_up"] = start_up(files, args.rounds, scratch)
    print_table(
        ["merges", "vocabulary", "tokens a song", "seconds"],
        *(
            [
                f"corpus {way}",
                f"{merged[way]['vocabulary']:,}",
                f"{merged[way]['tokens_per_song']:,.0f}",
                f"{merged[way]['seconds']:.2f}",
            ]
            for way in ("without", "with")
        ),
        [f"learning alone, {merged['learned_from_tokens']:,} tokens", "", "", f"{merged['learn_seconds']:.2f}"],
    )
    save(f"encode-{data.name}", result)


if __name__ == "__main__":
    cli.run(main)
