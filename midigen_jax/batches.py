"""Files encoded in batches, which wait on disk until all of them are, so that an interruption loses next to nothing."""

import fcntl
import hashlib
import os
import shutil
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from types import TracebackType
from typing import TextIO
from zipfile import BadZipFile

import numpy as np
from tqdm import tqdm

from . import vocab
from .cli import InputError
from .kernels import encode as kernel
from .vocab import Scheme

# Small enough that a batch's arrays stay in the processor's caches and are used again for the next batch's.
BATCH_FILES = 64
BATCH_BYTES = 1 << 20
MAX_BYTES = 1 << 21  # of a file

TOO_LARGE = f"absurd length: over {MAX_BYTES >> 20} MB"


def _read(path: str | Path) -> tuple[bytes, str]:
    """A file's bytes and "", or none and why."""
    try:
        # The operating system's own calls: `open` takes longer than the kernel does for a small file.
        descriptor = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            return (b"", TOO_LARGE) if size > MAX_BYTES else (os.read(descriptor, size), "")
        finally:
            os.close(descriptor)
    except OSError as error:
        return b"", f"can't be read: {error.strerror or error}"


_local = threading.local()  # each thread's room


def encode_batch(paths: Sequence[str | Path], scheme: Scheme) -> tuple[kernel.Songs, list[str]]:
    """Encodes files in one call of the kernel.

    Returns:
        The songs, whose tokens are valid until this thread encodes again; and for each file why it is none, or "".
    """
    if not hasattr(_local, "room"):
        _local.room = kernel.room_for(MAX_BYTES)
    contents, failures = zip(*map(_read, paths), strict=True)
    data = np.frombuffer(bytearray().join(contents), np.uint8)
    songs = kernel.encode_files(data, np.cumsum([0, *map(len, contents)]), scheme, _local.room)
    errors = (kernel.REASONS.get(code, "") for code in songs.errors.tolist())
    return songs, [failure or error for failure, error in zip(failures, errors, strict=True)]


class Batches:
    """A folder of encoded batches of files, locked while it is open.

    What it holds from an earlier, interrupted run is kept if files, scheme and program are the same.

    Args:
        path: the folder; `remove` it when all is done.
        folder, names: the files are folder/name.
    """

    def __init__(self, path: Path, folder: Path, names: list[str], scheme: Scheme):
        self.path, self.folder, self.names, self.scheme = path, folder, names, scheme
        plan = hashlib.blake2b(str(scheme).encode(), digest_size=16)
        for source in (*sorted(Path(kernel.__file__).parent.glob("*.py")), Path(vocab.__file__), Path(__file__)):
            plan.update(source.read_bytes())
        self.bounds = [0]
        size = 0
        for i, name in enumerate(names):
            try:
                stat = os.stat(folder / name)
                n_bytes, changed = min(stat.st_size, MAX_BYTES), stat.st_mtime_ns
            except OSError:  # gone since it was listed; `encode_batch` says so
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
        """Raises InputError if another run has the folder open, or if it is not one of these."""
        plan, lock = self.path / "plan", self.path / "lock"
        if self.path.exists() and not lock.exists() and any(self.path.iterdir()):
            raise InputError(f"{self.path}: is in the way and was not left by an encoder; move it elsewhere")
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
                print(f"{self.path}: starting anew, since files, options or the program are others than before")
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
            print(f"{self.path} keeps what is encoded; the same command goes on from there", file=sys.stderr)

    def remove(self) -> None:
        """Removes the folder; the lock goes last, since by it the folder is known to be an encoder's."""
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
        """Whether the batch is there and whole."""
        try:
            (reasons,) = self.load(batch, "reasons")
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return False
        return len(reasons) == len(self.files(batch))

    def load(self, batch: int, *names: str) -> list[np.ndarray]:
        """Arrays of a batch: fields of `kernel.Songs`, or `reasons`, why each file is no song."""
        with self._file(batch).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return [arrays[name] for name in names]

    def _encode(self, batch: int) -> int:
        songs, reasons = encode_batch([f"{self.folder}/{name}" for name in self.files(batch)], self.scheme)
        temporary = self._file(batch).with_suffix(".tmp")
        with temporary.open("wb") as file:
            np.savez(file, **songs._asdict(), reasons=np.array(reasons))
        os.replace(temporary, self._file(batch))
        return len(reasons)

    def encode(self, workers: int | None) -> None:
        """Encodes all batches that are not done yet, in threads: the kernels release the GIL."""
        todo = [batch for batch in range(len(self)) if not self.is_done(batch)]
        done = len(self.names) - sum(len(self.files(batch)) for batch in todo)
        if done:
            print(f"{self.path}: going on after {done:,} files that were encoded before", flush=True)
        pool = ThreadPoolExecutor(workers or os.cpu_count())
        bar = tqdm(desc="encoding", total=len(self.names), initial=done, unit="file", leave=False, disable=None)
        try:
            with bar:
                for future in as_completed([pool.submit(self._encode, batch) for batch in todo]):
                    bar.update(future.result())
        finally:
            pool.shutdown(cancel_futures=True)
