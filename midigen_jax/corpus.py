"""An encoded corpus on disk: flat arrays that can be memory-mapped, and tables that a person can read.

meta.json      format version, steps per beat, vocabulary, totals
tokens.npy     uint16 [tokens], all songs one after the other, each from sos to eos
bar.npy        uint16 [tokens], bar number within the song (65,535 where there are more)
step.npy       uint16 [tokens], step within the bar
offsets.npy    int64 [songs + 1], song i is tokens[offsets[i]:offsets[i + 1]]
songs.csv      one line a song: name, split, notes, beats, seconds, fingerprint
skipped.csv    files that are not in the corpus, each with the reason
"""

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import vocab
from .cli import InputError

FORMAT_VERSION = 1
SPLITS = ("train", "validation", "test")
_ARRAYS = ("tokens", "bar", "step", "offsets")
_TEXT: Any = {"encoding": "utf-8", "errors": "surrogateescape"}  # file names need not be UTF-8


class EncodedSong(NamedTuple):
    """One song of a corpus."""

    name: str  # path within the folder that was encoded
    tokens: np.ndarray  # uint16 [n]
    bar: np.ndarray  # [n]
    step: np.ndarray  # [n]
    notes: int
    beats: float  # quarter notes from step 0 to the last note's end
    seconds: float  # the same span at the file's tempo

    @property
    def fingerprint(self) -> str:
        """Equal for songs with equal tokens, whatever their names, tempos or instruments."""
        return hashlib.blake2b(self.tokens.tobytes(), digest_size=8).hexdigest()


class Corpus(NamedTuple):
    """A corpus opened for reading; the arrays are those of the files, memory-mapped."""

    path: Path
    tokens: np.ndarray
    bar: np.ndarray
    step: np.ndarray
    offsets: np.ndarray
    names: list[str]
    splits: np.ndarray  # int [songs], index into SPLITS
    notes: np.ndarray  # int [songs]
    beats: np.ndarray  # float [songs]
    seconds: np.ndarray  # float [songs]
    steps_per_beat: int
    fingerprint: str  # of all songs, their splits and the grid

    def songs_of(self, split: str) -> np.ndarray:
        """Indices of a split's songs."""
        return np.flatnonzero(self.splits == SPLITS.index(split))


def split_of(fingerprint: str, fractions: Sequence[float]) -> int:
    """Index into SPLITS. Depends on the song alone, so that it stays where it is when the folder grows."""
    place = int(hashlib.blake2b(fingerprint.encode(), digest_size=8).hexdigest(), 16) / 2**64
    return min(int(np.searchsorted(np.cumsum(fractions), place, side="right")), len(SPLITS) - 1)


def write_corpus(
    path: Path,
    songs: Sequence[EncodedSong],
    skipped: Iterable[tuple[str, str]],
    *,
    steps_per_beat: int,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
) -> None:
    """Writes a corpus to a new folder; nothing is left at `path` unless all of it was written."""
    temporary = path.with_name(path.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    fingerprints = [song.fingerprint for song in songs]
    splits = [SPLITS[split_of(fingerprint, fractions)] for fingerprint in fingerprints]
    content = "".join(map("".join, zip(fingerprints, splits, strict=True))) + str(steps_per_beat)
    lengths = [len(song.tokens) for song in songs]
    arrays = {
        "tokens": np.concatenate([song.tokens for song in songs]),
        "bar": np.minimum(np.concatenate([song.bar for song in songs]), 0xFFFF).astype(np.uint16),
        "step": np.minimum(np.concatenate([song.step for song in songs]), 0xFFFF).astype(np.uint16),
        "offsets": np.cumsum([0, *lengths], dtype=np.int64),
    }
    for name, array in arrays.items():
        np.save(temporary / f"{name}.npy", array, allow_pickle=False)
    with open(temporary / "songs.csv", "w", newline="", **_TEXT) as file:
        table = csv.writer(file)
        table.writerow(["name", "split", "notes", "beats", "seconds", "fingerprint"])
        for song, split, fingerprint in zip(songs, splits, fingerprints, strict=True):
            table.writerow([song.name, split, song.notes, song.beats, round(song.seconds, 3), fingerprint])
    with open(temporary / "skipped.csv", "w", newline="", **_TEXT) as file:
        csv.writer(file).writerows([("file", "reason"), *skipped])
    meta = {
        "format_version": FORMAT_VERSION,
        "fingerprint": hashlib.blake2b(content.encode(), digest_size=8).hexdigest(),
        "steps_per_beat": steps_per_beat,
        "songs": len(songs),
        "tokens": int(sum(lengths)),
        "vocabulary": vocab.NAMES,
    }
    (temporary / "meta.json").write_text(json.dumps(meta, indent=1))
    shutil.rmtree(path, ignore_errors=True)
    os.replace(temporary, path)


def is_corpus(path: Path) -> bool:
    return (path / "meta.json").is_file()


def skipped_files(path: Path) -> list[str]:
    """The files that a corpus left out."""
    with open(path / "skipped.csv", newline="", **_TEXT) as file:
        return [row["file"] for row in csv.DictReader(file)]


def open_corpus(path: Path) -> Corpus:
    """Opens a corpus without reading its arrays into memory.

    Raises:
        InputError: there is no corpus, or one of another format or vocabulary, or one that is damaged.
    """
    if not is_corpus(path):
        raise InputError(f"{path}: no corpus; make one with python -m midigen_jax.encode MIDI_DIR --out {path}")
    again = f"encode it again: python -m midigen_jax.encode MIDI_DIR --out {path}"
    try:
        meta = json.loads((path / "meta.json").read_text())
        if meta["format_version"] != FORMAT_VERSION:
            raise InputError(
                f"{path}: format version {meta['format_version']}, this program reads {FORMAT_VERSION}; {again}"
            )
        if tuple(meta["vocabulary"]) != vocab.NAMES:
            raise InputError(f"{path}: encoded with another vocabulary; {again}")
        arrays = {name: np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS}
        with open(path / "songs.csv", newline="", **_TEXT) as file:
            rows = list(csv.DictReader(file))
        corpus = Corpus(
            path=path,
            **arrays,
            names=[row["name"] for row in rows],
            splits=np.array([SPLITS.index(row["split"]) for row in rows]),
            notes=np.array([int(row["notes"]) for row in rows]),
            beats=np.array([float(row["beats"]) for row in rows]),
            seconds=np.array([float(row["seconds"]) for row in rows]),
            steps_per_beat=meta["steps_per_beat"],
            fingerprint=meta["fingerprint"],
        )
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged corpus ({error}); {again}") from None
    n_tokens = len(corpus.tokens)
    if (
        len(corpus.offsets) != len(rows) + 1
        or corpus.offsets[-1] != n_tokens
        or len(corpus.bar) != n_tokens
        or len(corpus.step) != n_tokens
    ):
        raise InputError(f"{path}: damaged corpus (its arrays disagree in length); {again}")
    return corpus
