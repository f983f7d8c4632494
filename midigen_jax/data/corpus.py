"""An encoded corpus on disk: flat arrays that can be memory-mapped, and tables that people can read.

meta.json      format version, vocabulary, totals
tokens.npy     uint16 [tokens], all songs concatenated, each from sos to eos
bar.npy        uint16 [tokens], bar number in the song, 65,535 at most
position.npy   uint16 [tokens], position in the bar, in grid steps
offsets.npy    int64 [songs + 1], song i is tokens[offsets[i]:offsets[i + 1]]
meters.npy     int32 [meters, 4]: song, time in grid steps, numerator, denominator
tempos.npy     int32 [tempos, 3]: song, time in grid steps, microseconds per quarter note
songs.csv      one line per song: name, semitones by which it is transposed, split, group of near-duplicates, notes,
               beats, seconds, fingerprint (equal for equal notes)
files.csv      one line per MIDI file that was read: name, size, time of modification, checksum
skipped.csv    files that are not in the corpus, each with the reason
"""

import csv
import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..miditok_vocab import vocabulary_from_json
from ..music.loops import bar_contents
from ..music.song import Song, TokenSequence, make_song, notes_of
from ..vocab import Vocabulary
from .folders import Stamp, check_corpus

FORMAT_VERSION = 4
COUNTED_SONGS = 300
SPLITS = ("train", "validation", "test")
_ARRAYS = {"tokens": np.uint16, "bar": np.uint16, "position": np.uint16, "offsets": np.int64}
_TABLES = {"meters": 4, "tempos": 3}  # columns, int32
_TEXT: Any = {"encoding": "utf-8", "errors": "surrogateescape"}  # file names need not be UTF-8


class EncodedSong(NamedTuple):
    """One song of a corpus."""

    name: str  # path within the folder that was encoded
    tokens: np.ndarray  # uint16 [n]
    bar: np.ndarray  # uint16 [n]
    position: np.ndarray  # uint16 [n]
    meters: np.ndarray  # int32 [m, 3]: time, numerator, denominator
    tempos: np.ndarray  # int32 [t, 2]: time, microseconds per quarter note
    notes: int
    beats: float  # quarter notes up to the end of the last note
    seconds: float  # the same at the file's tempos
    split: int  # index into SPLITS
    fingerprint: str  # equal for songs with equal notes (`fingerprint.note_hash`)
    group: str  # the smallest fingerprint of its near-duplicates
    semitones: int = 0  # by which it is transposed


class Corpus(NamedTuple):
    """A corpus opened for reading; its arrays are memory-mapped files."""

    path: Path
    vocabulary: Vocabulary
    tokens: np.ndarray
    bar: np.ndarray
    position: np.ndarray
    offsets: np.ndarray
    meters: np.ndarray
    tempos: np.ndarray
    names: list[str]
    semitones: np.ndarray  # int [songs]
    splits: np.ndarray  # int [songs], index into SPLITS
    notes: np.ndarray  # int [songs]
    beats: np.ndarray  # float [songs]
    seconds: np.ndarray  # float [songs]
    fingerprint: str  # of the vocabulary, all songs and their splits

    def __reduce__(self) -> tuple:
        """Pickled as a path: another process opens it again."""
        return open_corpus, (self.path,)

    def songs_of(self, split: str) -> np.ndarray:
        """Indices of a split's songs."""
        return np.flatnonzero(self.splits == SPLITS.index(split))

    def tokens_of(self, song: int) -> np.ndarray:
        """The tokens of a song, uint16 [n] from sos to eos."""
        return self.tokens[self.offsets[song] : self.offsets[song + 1]]

    def sequence_of(self, song: int) -> TokenSequence:
        """A song as a model reads it."""
        here = slice(self.offsets[song], self.offsets[song + 1])
        return TokenSequence(*(np.asarray(x[here]) for x in (self.tokens, self.bar, self.position)))

    def song(self, song: int) -> Song:
        """A song, decoded from its tokens.

        Raises:
            InputError: a token is not in the vocabulary.
        """
        meters, tempos = (
            np.array(table[slice(*np.searchsorted(table[:, 0], [song, song + 1])), 1:])
            for table in (self.meters, self.tempos)
        )
        tokens = self.tokens_of(song)
        if tokens.max(initial=0) >= self.vocabulary.size:
            raise InputError(f"{self.path}: damaged corpus (a token beyond its vocabulary); encode it again")
        return make_song(notes_of(tokens, self.vocabulary), meters, tempos, self.vocabulary.scheme)

    def densest_bar(self) -> int:
        """How many notes the fullest of 100 bars has, by up to COUNTED_SONGS training songs; 0 without any."""
        songs = self.songs_of("train")
        songs = songs[:: max(1, len(songs) // COUNTED_SONGS)][:COUNTED_SONGS]
        counts = [len(bar) for song in songs.tolist() for _, bar in bar_contents(self.song(song)) if bar]
        return int(np.percentile(counts, 99)) if counts else 0


def split_of(group: str, fractions: Sequence[float]) -> int:
    """A group's index into SPLITS. It depends only on the group, so it does not change when the folder grows."""
    point = int(hashlib.blake2b(group.encode(), digest_size=8).hexdigest(), 16) / 2**64
    return min(bisect_right(list(accumulate(fractions)), point), len(SPLITS) - 1)


class _ArrayFile:
    """A .npy file that is written piece by piece."""

    def __init__(self, path: Path, dtype: Any, columns: int | None = None):
        self.shape, self.dtype, self.rows = (() if columns is None else (columns,)), np.dtype(dtype), 0
        self.file = path.open("wb")
        self._write_header()

    def _write_header(self) -> None:
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.rows, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, header)  # its length does not depend on the number of rows

    def append(self, rows: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(rows, self.dtype).data)
        self.rows += len(rows)

    def close(self) -> None:
        self.file.seek(0)
        self._write_header()
        self.file.close()


def write_corpus(
    path: Path,
    songs: Iterable[EncodedSong],
    skipped: Iterable[tuple[str, str]],
    vocabulary: Vocabulary,
    files: Iterable[tuple[str, Stamp]] = (),
) -> None:
    """Writes a corpus to a new folder, song by song. meta.json, which makes it a corpus, is written last.

    Args:
        skipped: files that are not songs, and the reasons.
        files: the stamps of all files.
    """
    path.mkdir(parents=True)
    arrays = {name: _ArrayFile(path / f"{name}.npy", dtype) for name, dtype in _ARRAYS.items()}
    arrays |= {name: _ArrayFile(path / f"{name}.npy", np.int32, columns) for name, columns in _TABLES.items()}
    content = hashlib.blake2b(json.dumps(vocabulary.to_json()).encode(), digest_size=8)
    arrays["offsets"].append(np.zeros(1))
    n_songs = 0
    with open(path / "songs.csv", "w", newline="", **_TEXT) as file:
        table = csv.writer(file)
        table.writerow(["name", "semitones", "split", "group", "notes", "beats", "seconds", "fingerprint"])
        for n_songs, song in enumerate(songs, 1):
            for name in ("tokens", "bar", "position"):
                arrays[name].append(getattr(song, name))
            arrays["offsets"].append(np.array([arrays["tokens"].rows]))
            for name in _TABLES:
                rows = getattr(song, name)
                arrays[name].append(np.column_stack((np.full(len(rows), n_songs - 1), rows)))
            split = SPLITS[song.split]
            numbers = [song.notes, song.beats, round(song.seconds, 3)]
            table.writerow([song.name, song.semitones, split, song.group, *numbers, song.fingerprint])
            content.update(split.encode())
            for name in ("tokens", "bar", "position"):
                content.update(np.ascontiguousarray(getattr(song, name)).data)
    for array in arrays.values():
        array.close()
    with open(path / "skipped.csv", "w", newline="", **_TEXT) as file:
        csv.writer(file).writerows([("file", "reason"), *skipped])
    with open(path / "files.csv", "w", newline="", **_TEXT) as file:
        table = csv.writer(file)
        table.writerow(["file", *Stamp._fields])
        table.writerows((name, *stamp) for name, stamp in files)
    meta = {
        "format_version": FORMAT_VERSION,
        "fingerprint": content.hexdigest(),
        "songs": n_songs,
        "tokens": arrays["tokens"].rows,
        "vocabulary": vocabulary.to_json(),
    }
    (path / "meta.json").write_text(json.dumps(meta))


def encoded_files(path: Path) -> dict[str, Stamp]:
    """The files that a corpus was encoded from, and their stamps.

    Raises:
        InputError: the list is damaged.
    """
    try:
        with open(path / "files.csv", newline="", **_TEXT) as file:
            return {row["file"]: Stamp(*(int(row[name]) for name in Stamp._fields)) for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(f"{path}: damaged corpus ({error}); {_encode_again(path)}") from None


def training_notes(corpus: Corpus) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """The training songs that are not transposed copies: their indices, and a stream of their notes.

    Each call gives a fresh stream, which decodes one song at a time: a large corpus does not fit in memory.
    """
    songs = corpus.songs_of("train")
    songs = songs[corpus.semitones[songs] == 0]
    return songs, (corpus.song(song).notes for song in songs)


def _encode_again(path: Path) -> str:
    return f"encode it again: midigen encode MIDI_DIR --out {path}"


def open_corpus(path: Path) -> Corpus:
    """Opens a corpus without reading its arrays into memory.

    Raises:
        InputError: there is no corpus, or it is damaged or of another format version.
    """
    check_corpus(path)
    again = _encode_again(path)
    try:
        meta = json.loads((path / "meta.json").read_text())
        if meta["format_version"] != FORMAT_VERSION:
            raise InputError(
                f"{path}: a corpus of format version {meta['format_version']}, but this program reads version "
                f"{FORMAT_VERSION}; {again}"
            )
        names = (*_ARRAYS, *_TABLES)
        arrays = {name: np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}
        with open(path / "songs.csv", newline="", **_TEXT) as file:
            rows = list(csv.DictReader(file))
        corpus = Corpus(
            path=path,
            vocabulary=vocabulary_from_json(meta["vocabulary"]),
            **arrays,
            names=[row["name"] for row in rows],
            semitones=np.array([int(row["semitones"]) for row in rows]),
            splits=np.array([SPLITS.index(row["split"]) for row in rows]),
            notes=np.array([int(row["notes"]) for row in rows]),
            beats=np.array([float(row["beats"]) for row in rows]),
            seconds=np.array([float(row["seconds"]) for row in rows]),
            fingerprint=meta["fingerprint"],
        )
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError, csv.Error) as error:
        raise InputError(f"{path}: damaged corpus ({error}); {again}") from None
    kinds = [arrays[name].dtype == dtype and arrays[name].ndim == 1 for name, dtype in _ARRAYS.items()]
    kinds += [arrays[name].dtype == np.int32 and arrays[name].shape[1:] == (n,) for name, n in _TABLES.items()]
    if not (
        all(kinds)
        and len(corpus.offsets) == len(rows) + 1
        and corpus.offsets[0] == 0
        and (np.diff(corpus.offsets) > 0).all()
        and corpus.offsets[-1] == len(corpus.tokens) == len(corpus.bar) == len(corpus.position)
    ):
        raise InputError(f"{path}: damaged corpus (its arrays differ in type or length); {again}")
    return corpus
