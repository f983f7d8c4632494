"""How fast MIDI files become tokens, beside other readers, and what a large corpus costs.

    python benchmarks/encode.py --data MIDI_DIR

Readers read the same files in turn, round by round; the slow ones read one of every so many. All figures count the
notes that this project's reader finds. Memory is the peak of a process of its own that does nothing else.

The corpus builder gets copies of the files with other notes: the twelve pitch classes of each are permuted. To see how
it scales, give --copies 1000 20000; that takes a minute more, and the copies are in the folder for temporary files.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _readers
import _shared
import numpy as np
from _readers import WORKERS, Memory, peak_memory, print_table

from midigen_jax.cli import command
from midigen_jax.run.environment import environment

VOCABULARY = 2048
START_UP_FILES = 10


def build(folder: str, out: str, workers: int) -> dict[str, Any]:
    """Encodes a folder in this process, which did nothing before."""
    from midigen_jax.data.encode import encode_folder

    imports = peak_memory()
    began = time.perf_counter()
    encode_folder(Path(folder), Path(out), workers=workers)
    return {"seconds": time.perf_counter() - began, "memory": Memory(imports, peak_memory())._asdict()}


def grow(files: Sequence[str], sizes: Sequence[int], scratch: Path) -> list[dict[str, Any]]:
    """The corpus builder on folders of these sizes."""
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
                out = Path(folder, f"corpus{workers}")
                figures = _shared.in_new_process(build, str(copies), str(out), workers)
                results.append({"files": n_files, "workers": workers, **figures})
    print_table(
        ["corpus builder", "workers", "seconds", "files/s", "peak MB", "of these imports"],
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
        print(f"1 worker: {seconds / thousands:.2f} s per 1,000 more files; {growth / 1e6:,.0f} MB for all of them\n")
    return results


def run_encoder(folder: Path, out: Path, kernels: Path) -> None:
    """Runs the whole command.

    Args:
        kernels: the folder for compiled kernels.
    """
    subprocess.run(
        [sys.executable, "-m", "midigen_jax.encode", str(folder), "--out", str(out)],
        env={**os.environ, "NUMBA_CACHE_DIR": str(kernels)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )


def start_up(files: Sequence[str], rounds: int, scratch: Path) -> dict[str, Any]:
    """Seconds of the whole command on a few files: the first run ever, which compiles, and later ones."""
    folder = scratch / "few"
    folder.mkdir()
    for i, path in enumerate(files[:START_UP_FILES]):
        (folder / f"{i}.mid").symlink_to(path)
    seconds = []
    for _ in range(1 + rounds):
        began = time.perf_counter()
        run_encoder(folder, scratch / "few.corpus", scratch / "kernels")
        seconds.append(time.perf_counter() - began)
    result = {"first_run_seconds": seconds[0], "later_seconds": statistics.median(seconds[1:])}
    print_table(
        [f"python -m midigen_jax.encode, {START_UP_FILES} files", "seconds"],
        ["the first run ever, which compiles the kernels", f"{seconds[0]:.2f}"],
        ["later, kernels from disk", f"{result['later_seconds']:.2f}"],
    )
    return {**result, "seconds_each_run": seconds}


def merge(folder: str, scratch: str, vocabulary: int) -> dict[str, Any]:
    """A corpus without and with merges, and how long learning them takes."""
    from midigen_jax.data.corpus import open_corpus
    from midigen_jax.data.encode import MERGE_TOKENS, encode_folder
    from midigen_jax.kernels import merges

    out = Path(scratch, "merged")
    encode_folder(Path(folder), out, vocabulary=vocabulary)  # loads every kernel
    result: dict[str, Any] = {}
    for size in (0, vocabulary):
        began = time.perf_counter()
        encode_folder(Path(folder), out, vocabulary=size)
        seconds = time.perf_counter() - began
        corpus = open_corpus(out)
        songs = len(corpus.names)
        row = {"seconds": seconds, "tokens_per_song": len(corpus.tokens) / songs, "songs": songs}
        if not size:  # learn as the builder does, from about MERGE_TOKENS tokens of the training songs
            base, training = corpus.vocabulary.size, corpus.songs_of("train")
            every = max(1, -(-int(np.diff(corpus.offsets)[training].sum()) // MERGE_TOKENS))
            tokens = np.concatenate([corpus.tokens_of(song) for song in training[::every]])
            merges.learn(tokens[:1000], base, 1)
            began = time.perf_counter()
            merges.learn(tokens, base, vocabulary - base)
            result = {"learned_from_tokens": len(tokens), "learn_seconds": time.perf_counter() - began}
        result["with" if size else "without"] = row | {"vocabulary": corpus.vocabulary.size}
    return result


def print_merges(merged: dict[str, Any]) -> None:
    print_table(
        ["merges", "vocabulary", "tokens per song", "seconds"],
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


def main() -> None:
    parser = _shared.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="MIDI_DIR")
    parser.add_argument(
        "--files", type=int, default=2048, help="files that the fast readers read; a smaller folder is read repeatedly"
    )
    parser.add_argument("--rounds", type=int, default=5)
    copies_help = "sizes of the folders that are built, in files; the seconds include the loading of the kernels"
    parser.add_argument("--copies", type=int, nargs="*", default=[1000], metavar="N", help=copies_help)
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY, help="size of the one with merges")
    args = parser.parse_args()

    from midigen_jax.data.folders import midi_files

    data = args.data.resolve()
    files = [str(data / name) for name in midi_files(data)]
    result: dict[str, Any] = {
        "data": data.name,
        "environment": environment(("numpy", "numba", "mido", "symusic", "miditok")),
        "readers": _readers.compare(files, args.files, args.rounds),
    }
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        # This also compiles what the builder needs.
        result["merges"] = _shared.in_new_process(merge, str(data), folder, args.vocabulary)
        result["builder"] = grow(files, sorted(set(args.copies)), scratch)
        result["start_up"] = start_up(files, args.rounds, scratch)
    print_merges(result["merges"])
    usual = _shared.has_defaults(parser, args, "files", "rounds", "vocabulary")
    _shared.save(args.results, f"encode-{data.name}", result, usual=usual)


if __name__ == "__main__":
    command.run(main)
