"""Copies of MIDI files with other notes, for folders of any size."""

import random
from collections.abc import Sequence
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path

import numba
import numpy as np

from midigen_jax.errors import InputError


def find_pitches(data: np.ndarray, found: np.ndarray) -> int:
    """Writes the offsets of a well-formed file's pitches, without drums; returns how many there are. Numba compiles it.

    Raises:
        IndexError: the file is not well-formed.
    """
    n = 0
    at = 14
    while at < len(data):
        end = at + 8 + (data[at + 4] << 24 | data[at + 5] << 16 | data[at + 6] << 8 | data[at + 7])
        is_track = data[at] == 0x4D and data[at + 1] == 0x54 and data[at + 2] == 0x72 and data[at + 3] == 0x6B
        at = at + 8 if is_track else end
        status = 0
        while at < end:
            while data[at] >= 0x80:  # the time since the last event
                at += 1
            at += 1
            if data[at] >= 0xF0:
                at += 2 if data[at] == 0xFF else 1
                size = 0
                while data[at] >= 0x80:
                    size = (size | data[at] & 0x7F) << 7
                    at += 1
                at += 1 + (size | data[at])
                continue
            if data[at] >= 0x80:
                status = data[at]
                at += 1
            if status < 0xB0 and status & 0x0F != 9:
                found[n] = at
                n += 1
            at += 1 if 0xC0 <= status < 0xE0 else 2
    return n


def write_copies(files: Sequence[str], n_copies: int, folder: Path) -> None:
    """Writes copies of files, each with its pitch classes permuted: other music, as long and as slow to read."""
    find = numba.njit(boundscheck=True)(find_pitches)
    originals = []
    for path in files:
        data = np.fromfile(path, np.uint8)
        pitches = np.empty(len(data), np.int64)
        with suppress(IndexError):
            originals.append((data, pitches[: find(data, pitches)].copy()))
    if not originals:
        raise InputError("no file can be copied with other notes; give a folder with well-formed MIDI files")
    dice = random.Random(0)
    for i, (data, pitches) in enumerate(islice(cycle(originals), n_copies)):
        classes = dice.sample(range(12), 12)
        other = np.array([12 * (p // 12) + classes[p % 12] if p < 120 else p for p in range(256)], np.uint8)
        copy = data.copy()
        copy[pitches] = other[data[pitches]]
        copy.tofile(folder / f"{i:06}.mid")
