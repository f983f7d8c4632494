"""Encodes files in batches that are kept on disk until all are done, so that an interruption loses next to nothing."""

import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType
from typing import TextIO
from zipfile import BadZipFile

import numpy as np
from tqdm import tqdm

from .. import miditok_vocab, vocab
from ..errors import InputError
from ..kernels import encode as kernel
from ..miditok_vocab import MidiTokVocabulary
from ..music import miditok
from ..music.song import make_song
from ..vocab import Vocabulary
from . import folders
from .folders import MAX_BYTES, Stamp, read_file

# Small enough that the arrays of a batch stay in the processor's caches for the next one.
BATCH_FILES = 64
BATCH_BYTES = 1 << 20

_local = threading.local()  # the workspace of each thread


def encode_batch(paths: Sequence[str | Path], vocabulary: Vocabulary) -> tuple[kernel.Songs, list[str], list[Stamp]]:
    """Encodes files as base tokens, in one call of the kernel; as MidiTok's, also one by one by MidiTok.

    Returns:
        The songs; their tokens are valid until this thread encodes again.
        For each file the reason why it is not a song, or "".
        The stamp of each file.
    """
    if not hasattr(_local, "workspace"):
        _local.workspace = kernel.make_workspace(MAX_BYTES)
    contents, failures, stamps = zip(*map(read_file, paths), strict=True)
    data = np.frombuffer(bytearray().join(contents), np.uint8)
    songs = kernel.encode_files(data, np.cumsum([0, *map(len, contents)]), vocabulary.scheme, _local.workspace)
    errors = (kernel.REASONS.get(code, "") for code in songs.errors.tolist())
    reasons = [failure or error for failure, error in zip(failures, errors, strict=True)]
    if isinstance(vocabulary, MidiTokVocabulary):
        songs, reasons = _with_miditok(songs, reasons, contents, vocabulary)
    return songs, reasons, list(stamps)


def _with_miditok(
    songs: kernel.Songs, reasons: list[str], contents: Sequence[bytes], vocabulary: MidiTokVocabulary
) -> tuple[kernel.Songs, list[str]]:
    """The same songs as MidiTok's tokens, and the reasons why files are not songs. What tells copies apart stays."""
    scheme, reasons = vocabulary.scheme, list(reasons)
    arrays: list[list[np.ndarray]] = [[], [], []]
    meters, notes, ends = [np.zeros((0, 4), np.int32)], songs.notes * 0, songs.ends * 0
    lengths = np.zeros(len(contents), np.int64)
    for i, content in enumerate(contents):
        if reasons[i]:
            continue
        try:
            tokens = miditok.tokens_of_file(content, vocabulary)
        except ValueError as error:
            reasons[i] = str(error)
            continue
        found, _, changes = miditok.read(tokens, vocabulary)
        if len(found) == 0:
            reasons[i] = kernel.REASONS[kernel.NO_NOTES]
            continue
        song = make_song(found, changes, songs.tempos[songs.tempos[:, 0] == i, 1:], scheme)
        for array, values in zip(arrays, (tokens, *miditok.places_of(tokens, song.bars, vocabulary)), strict=True):
            array.append(values)
        meters.append(np.column_stack((np.full(len(changes), i), changes)).astype(np.int32))
        lengths[i], notes[i], ends[i] = len(tokens), len(found), song.end
        songs.seconds[i] = song.seconds_at(song.end)
    tokens, bar, position = (np.concatenate([np.zeros(0, np.uint16), *array]) for array in arrays)
    return songs._replace(
        tokens=tokens,
        bar=bar,
        position=position,
        offsets=np.cumsum([0, *lengths]),
        notes=notes,
        ends=ends,
        meters=np.concatenate(meters),
    ), reasons


def _encode_to(vocabulary: Vocabulary, paths: Sequence[str], path: Path) -> int:
    """Encodes files as a batch, and returns their number."""
    songs, reasons, stamps = encode_batch(paths, vocabulary)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez(file, **songs._asdict(), reasons=np.array(reasons), stamps=np.array(stamps, np.int64))
    os.replace(temporary, path)
    return len(reasons)


class Batches:
    """A folder of encoded batches of files, locked while it is open.

    The batches of an earlier, interrupted run are kept if the files, the base tokens and the program are the same.

    Args:
        path: the folder; `remove` it when everything is done.
        folder, names: the files are folder/name.
    """

    def __init__(self, path: Path, folder: Path, names: list[str], vocabulary: Vocabulary):
        self.path, self.folder, self.names, self.vocabulary = path, folder, names, vocabulary
        plan = hashlib.blake2b(json.dumps(vocabulary.to_json()).encode(), digest_size=16)
        modules = (vocab.__file__, miditok_vocab.__file__, miditok.__file__, folders.__file__, __file__)
        for source in (*sorted(Path(kernel.__file__).parent.glob("*.py")), *map(Path, modules)):
            plan.update(source.read_bytes())
        self.bounds = [0]
        size = 0
        for i, name in enumerate(names):
            try:
                stat = os.stat(folder / name)
                n_bytes, changed = min(stat.st_size, MAX_BYTES), stat.st_mtime_ns
            except OSError:  # removed since it was listed; `encode_batch` reports it
                n_bytes = changed = 0
            plan.update(f"{name}\0{n_bytes}\0{changed}\0".encode(errors="surrogateescape"))
            if i - self.bounds[-1] == BATCH_FILES or (i > self.bounds[-1] and size + n_bytes > BATCH_BYTES):
                self.bounds.append(i)
                size = 0
            size += n_bytes
        self.bounds.append(len(names))
        plan.update(str(self.bounds).encode())
        self.plan = plan.hexdigest()
        self._lock: TextIO | None = None

    def __enter__(self) -> "Batches":
        """
        Raises:
            InputError: another run has the folder open, or it is not a folder of batches.
        """
        plan, lock = self.path / "plan", self.path / "lock"
        if self.path.exists() and not lock.exists() and any(self.path.iterdir()):
            raise InputError(f"{self.path}: is in the way and was not made by midigen encode; move it elsewhere")
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = lock.open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise InputError(f"{self.path}: another run is encoding here; wait for it, or give another --out") from None
        if not plan.is_file() or plan.read_text() != self.plan:
            left = [*self.path.glob("*.npz"), *self.path.glob("*.tmp")]
            if left:
                print(f"{self.path}: starting from the beginning: files, options or the program have changed")
            for file in left:
                file.unlink()
            plan.write_text(self.plan)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock:
            self._lock.close()
        if kind is KeyboardInterrupt:
            print(f"{self.path} keeps the files encoded so far; the same command continues from there", file=sys.stderr)

    def remove(self) -> None:
        """Removes the folder; the lock last, since it marks the folder as one of these."""
        for entry in self.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != "lock":
                entry.unlink()
        (self.path / "lock").unlink()
        self.path.rmdir()

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def files(self, batch: int) -> list[str]:
        return self.names[self.bounds[batch] : self.bounds[batch + 1]]

    def _file(self, batch: int) -> Path:
        return self.path / f"{batch:06}.npz"

    def is_done(self, batch: int) -> bool:
        """Whether the batch is there and complete."""
        try:
            (reasons,) = self.load(batch, "reasons")
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return False
        return len(reasons) == len(self.files(batch))

    def load(self, batch: int, *names: str) -> list[np.ndarray]:
        """Arrays of a batch: fields of `kernel.Songs`, `reasons` [files], or `stamps` int64 [files, 3]."""
        with self._file(batch).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return [arrays[name] for name in names]

    def encode(self, workers: int | None) -> None:
        """Encodes all batches that are not done yet.

        In threads, since the kernels release the GIL; with MidiTok, which is Python, in processes.
        """
        todo = [batch for batch in range(len(self)) if not self.is_done(batch)]
        done = len(self.names) - sum(len(self.files(batch)) for batch in todo)
        if done:
            print(f"{self.path}: continuing after {done:,} files that were encoded before", flush=True)
        workers = workers or os.cpu_count() or 1
        pool: Executor | None = None
        if isinstance(self.vocabulary, MidiTokVocabulary) and workers > 1:
            spawn = multiprocessing.get_context("spawn")
            # Ctrl-C is sent to all processes of a terminal; this one tells the others.
            pool = ProcessPoolExecutor(workers, spawn, signal.signal, (signal.SIGINT, signal.SIG_IGN))
        pool = pool or ThreadPoolExecutor(workers)
        jobs = [([f"{self.folder}/{name}" for name in self.files(batch)], self._file(batch)) for batch in todo]
        bar = tqdm(desc="encoding", total=len(self.names), initial=done, unit="file", leave=False, disable=None)
        try:
            with bar:
                for future in as_completed([pool.submit(_encode_to, self.vocabulary, *job) for job in jobs]):
                    bar.update(future.result())
        except BrokenProcessPool:
            raise InputError(
                f"{self.path}: a process that encodes was killed; the same command continues, with --workers 1 in less "
                "memory"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)
