"""Folders of MIDI files and of corpora, as far as they can be checked without reading music. Imports no Numba."""

import os
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError

SUFFIXES = (".mid", ".midi", ".kar", ".rmi")
MAX_BYTES = 1 << 21  # of a file
TOO_LARGE = f"too long: over {MAX_BYTES >> 20} MB"


def check_midi_folder(folder: Path) -> None:
    """
    Raises:
        InputError: there is no such folder.
    """
    if not folder.is_dir():
        kind = "is a file, not a folder" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: {kind}; give a folder of MIDI files")


def _is_file(path: str) -> bool:
    """Whether this is a file, or a broken link, which is to be reported as such."""
    return os.path.isfile(path) or not os.path.exists(path)


def midi_files(folder: Path) -> list[str]:
    """The names of all MIDI files below a folder, as paths within it, sorted.

    Raises:
        InputError: the folder does not exist or holds none.
    """
    check_midi_folder(folder)
    files, seen = list[str](), set[str]()

    def report(error: OSError) -> None:
        print(f"{error.filename}: skipped: {error.strerror}", file=sys.stderr)

    for parent, folders, names in os.walk(folder, onerror=report, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link to a folder that was visited before
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        paths = (os.path.join(parent, name) for name in names if name.lower().endswith(SUFFIXES))
        files += [os.path.relpath(path, folder).replace(os.sep, "/") for path in paths if _is_file(path)]
    if not files:
        raise InputError(f"{folder}: holds no MIDI files; give a folder with {' '.join(SUFFIXES)} files in it")
    return sorted(files)


class Stamp(NamedTuple):
    """What identifies the content of a file; all -1 if it could not be read."""

    size: int = -1  # bytes
    modified: int = -1  # nanoseconds since 1970
    checksum: int = -1  # CRC-32, which costs next to nothing beside encoding; -1 of a file over MAX_BYTES


def read_file(path: str | Path) -> tuple[bytes, str, Stamp]:
    """A file's content and "", or b"" and the reason; and its stamp."""
    try:
        # System calls: for a small file `open` takes longer than the kernel that encodes it.
        descriptor = os.open(path, os.O_RDONLY)
        try:
            stat = os.fstat(descriptor)
            if stat.st_size > MAX_BYTES:
                return b"", TOO_LARGE, Stamp(stat.st_size, stat.st_mtime_ns)
            content = os.read(descriptor, stat.st_size)
            return content, "", Stamp(stat.st_size, stat.st_mtime_ns, zlib.crc32(content))
        finally:
            os.close(descriptor)
    except OSError as error:
        return b"", f"can't be read: {error.strerror or error}", Stamp()


def changed_file(folder: Path, stamps: Mapping[str, Stamp]) -> str | None:
    """The first of the folder's files whose content is not that of its stamp, or None.

    A file is read only if its size is unchanged and its time of modification is not, or if it could not be read before.
    """
    for name, before in stamps.items():
        path = folder / name
        if before == Stamp():
            if read_file(path)[2] != before:
                return name
            continue
        try:
            stat = path.stat()
            size, modified = stat.st_size, stat.st_mtime_ns
        except OSError:
            size = modified = -1
        if (size, modified) == before[:2]:
            continue
        if size != before.size or read_file(path)[2].checksum != before.checksum:
            return name
    return None


def is_corpus(path: Path) -> bool:
    return (path / "meta.json").is_file()


def check_corpus(path: Path) -> None:
    """
    Raises:
        InputError: there is no corpus at this path.
    """
    if not is_corpus(path):
        kind = "no corpus" if path.exists() else "no such folder"
        raise InputError(f"{path}: {kind}; make one with midigen encode MIDI_DIR --out {path}")
