"""Encodes a folder of MIDI files as a corpus of token arrays."""

import dataclasses
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba.core import event
from tqdm import tqdm

from ..errors import InputError
from ..kernels import merges
from ..miditok_vocab import MidiTokVocabulary
from ..music import miditok
from ..music.song import TokenSequence, with_merges
from ..music.song import transpose as transposed
from ..vocab import Scheme, Vocabulary, from_expansions
from . import duplicates
from .corpus import SPLITS, Corpus, EncodedSong, encoded_files, open_corpus, split_of, write_corpus
from .file_batches import Batches
from .folders import Stamp, changed_file, is_corpus, midi_files

MERGE_TOKENS = 1 << 21  # of the training songs, from which merges are learned, approximately


class _AnnounceCompiling(event.Listener):
    """Announces once that Numba compiles, which takes longer than encoding a thousand files."""

    announced = False

    def on_start(self, event: Any) -> None:
        if not self.announced:
            tqdm.write("compiling the kernels, once; this takes about half a minute", file=sys.stderr)
            self.announced = True

    def on_end(self, event: Any) -> None:
        pass


class _Table(NamedTuple):
    """What is known of every file after encoding; arrays [files]."""

    reasons: list[str]
    lengths: np.ndarray  # in base tokens; 0: not a song
    notes: np.ndarray
    hashes: np.ndarray
    splits: np.ndarray  # index into SPLITS
    groups: list[str]  # the smallest fingerprint among the near-duplicates
    aligned: np.ndarray  # whether beats and bars were found anew
    stamps: list[Stamp]


def _fingerprint(note_hash: np.uint64) -> str:
    return f"{int(note_hash):016x}"


def _survey(batches: Batches, fractions: Sequence[float]) -> tuple[_Table, str]:
    """The table of all files, and a report on near-duplicates."""
    columns: list[list[np.ndarray]] = []
    reasons: list[str] = []
    stamps: list[Stamp] = []
    for batch in range(len(batches)):
        errors, rows, *values = batches.load(
            batch, "reasons", "stamps", "offsets", "notes", "hashes", "aligned", "signatures"
        )
        reasons += errors.tolist()
        stamps += (Stamp(*row) for row in rows.tolist())
        columns.append([np.diff(values[0]), *values[1:]])
    lengths, notes, hashes, aligned, signatures = (np.concatenate(column) for column in zip(*columns, strict=True))
    songs = np.flatnonzero(lengths)
    group = duplicates.groups(signatures[songs], hashes[songs])
    smallest = hashes[songs].copy()
    np.minimum.at(smallest, group, hashes[songs])
    keys = [_fingerprint(key) for key in smallest[group]]
    splits = np.zeros(len(lengths), np.int64)
    splits[songs] = [split_of(key, fractions) for key in keys]
    groups = [""] * len(lengths)
    for song, key in zip(songs.tolist(), keys, strict=True):
        groups[song] = key
    table = _Table(reasons, lengths, notes, hashes, splits, groups, aligned & (lengths > 0), stamps)
    return table, _leak_report(batches, songs, group, table, signatures[songs], fractions)


def _leak_report(
    batches: Batches,
    songs: np.ndarray,
    group: np.ndarray,
    table: _Table,
    signatures: np.ndarray,
    fractions: Sequence[float],
) -> str:
    sizes = np.bincount(group, minlength=len(songs))
    copies = sizes[group] > 1
    report = "near-duplicates (the same music in another key, at another tempo or saved again): "
    if copies.any():
        alone = np.array([split_of(_fingerprint(table.hashes[song]), fractions) for song in songs[copies].tolist()])
        trained = set(group[copies][alone == 0].tolist())
        leaks = sum(g in trained for g in group[copies][alone != 0].tolist())
        report += (
            f"{copies.sum():,} songs\n"
            f"    in {(sizes > 1).sum():,} groups, each kept on one side of the split; split song by song,\n"
            f"    {leaks:,} validation and test songs would have had a near-duplicate in training"
        )
    else:
        report += "none found"
    pair = duplicates.nearest_apart(signatures, table.splits[songs] == 0)
    if pair:
        first, second = (batches.names[songs[i]] for i in (pair.first, pair.second))
        report += (
            f"\n    nearest pair across the split: {first} and {second}, {pair.similarity:.0%} of the melody in common"
        )
    return report


def _learn_merges(batches: Batches, table: _Table, size: int) -> Vocabulary:
    """Merges that fill the vocabulary up to this size, learned from an even selection of the training songs.

    Raises:
        InputError: there are no training songs.
    """
    training = np.flatnonzero((table.lengths > 0) & (table.splits == 0))
    if len(training) == 0:
        raise InputError("--vocabulary: no song is in the training split; give another --split, or no --vocabulary")
    base = batches.vocabulary
    every = -(-int(table.lengths[training].sum()) // MERGE_TOKENS)
    chosen = training[:: max(1, every)]
    parts = []
    for batch in range(len(batches)):
        first, end = batches.bounds[batch], batches.bounds[batch + 1]
        here = chosen[np.searchsorted(chosen, first) : np.searchsorted(chosen, end)] - first
        if len(here):
            tokens, offsets = batches.load(batch, "tokens", "offsets")
            parts += [tokens[offsets[i] : offsets[i + 1]] for i in here]
    if isinstance(base, MidiTokVocabulary):
        return miditok.learn(parts, base, size)
    learned = merges.learn(np.concatenate(parts), base.base_size, size - base.base_size)
    return from_expansions(base.scheme, *learned)


def _encoded_songs(batches: Batches, table: _Table, vocabulary: Vocabulary, transpose: int) -> Iterator[EncodedSong]:
    """All songs in the order of their names, each training song followed by its transposed copies."""
    shifts = [0, *(shift for size in range(1, transpose + 1) for shift in (-size, size))]
    fields = ("tokens", "bar", "position", "offsets", "ends", "seconds", "meters", "tempos")
    for batch in range(len(batches)):
        tokens, bar, position, offsets, ends, seconds, meters, tempos = batches.load(batch, *fields)
        for i, name in enumerate(batches.files(batch)):
            song = batches.bounds[batch] + i
            if table.lengths[song] == 0:
                continue
            here = slice(offsets[i], offsets[i + 1])
            for semitones in shifts if table.splits[song] == 0 else shifts[:1]:
                song_tokens = tokens[here]
                if semitones:
                    song_tokens = transposed(song_tokens, semitones, vocabulary)
                    if len(song_tokens) == 0:  # a note would leave the 128 pitches
                        continue
                written = with_merges(TokenSequence(song_tokens, bar[here], position[here]), vocabulary)
                yield EncodedSong(
                    name=name,
                    **written._asdict(),
                    meters=meters[meters[:, 0] == i, 1:],
                    tempos=tempos[tempos[:, 0] == i, 1:],
                    notes=int(table.notes[song]),
                    beats=ends[i] / vocabulary.scheme.steps_per_beat,
                    seconds=float(seconds[i]),
                    split=int(table.splits[song]),
                    fingerprint=_fingerprint(table.hashes[song]),
                    group=table.groups[song],
                    semitones=semitones,
                )


def encode_folder(
    folder: Path,
    out: Path,
    *,
    scheme: Scheme = Scheme(),  # noqa: B008  (a tuple)
    tokenization: str = "",
    vocabulary: int | Vocabulary = 0,
    transpose: int = 0,
    workers: int | None = None,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
) -> None:
    """Encodes every MIDI file below `folder` into a corpus at `out` and prints a summary.

    The result depends neither on the number of workers (threads, since the kernels release the GIL) nor on
    interruptions.

    Args:
        tokenization: one of MidiTok's (`miditok_vocab.TOKENIZATIONS`); else this project's own.
        vocabulary: its size, which is reached with merges; 0: no merges. Or a vocabulary, which is used as it is.
        transpose: training songs are also written transposed by up to this many semitones, up and down.
        fractions: the shares of training, validation and test songs.

    Raises:
        InputError: there is nothing to encode, `out` exists and is not a corpus, or MidiTok is not installed.
    """
    names = midi_files(folder)
    given, wanted = (vocabulary, vocabulary.size) if isinstance(vocabulary, Vocabulary) else (None, vocabulary)
    if given:
        base = dataclasses.replace(given, merges=()) if not isinstance(given, MidiTokVocabulary) else given
    else:
        base = miditok.make_vocabulary(tokenization, scheme) if tokenization else Vocabulary(scheme)
    if given is None and 0 < wanted <= base.base_size:
        raise InputError(f"--vocabulary {wanted}: give 0, or over {base.base_size} (the base tokens)")
    if out.is_symlink() or not out.name:  # the target of a link is written, not the link
        out = out.resolve()
    if out.exists() and not is_corpus(out) and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out}: exists and is no corpus; give another folder, or remove it")
    new_parent = not out.parent.exists()
    with Batches(out.with_name(f".{out.name}.encoding"), folder, names, base) as batches:
        # `before` is always complete, since it comes and goes by renames; `fresh` and `replaced` may be incomplete.
        fresh, before, replaced = (batches.path / name for name in ("corpus", "before", "replaced"))
        for partial in (fresh, replaced):
            shutil.rmtree(partial, ignore_errors=True)
        if before.exists():  # killed between the last renames
            os.replace(before, replaced if out.exists() else out)
        with event.install_listener("numba:compile", _AnnounceCompiling()):
            batches.encode(workers)
            table, leaks = _survey(batches, fractions)
            if not table.lengths.any():
                batches.remove()
                if new_parent:
                    out.parent.rmdir()
                raise InputError(
                    f"{folder}: none of its {len(names)} MIDI files can be used (the first, {names[0]}: "
                    f"{table.reasons[0]}); give a folder with readable files"
                )
            words = given or (_learn_merges(batches, table, wanted) if wanted else base)
            skipped = ((name, why) for name, why in zip(names, table.reasons, strict=True) if why)
            files = zip(names, table.stamps, strict=True)
            write_corpus(fresh, _encoded_songs(batches, table, words, transpose), skipped, words, files)
        existed = is_corpus(out)
        if out.exists():
            os.replace(out, before)
        os.replace(fresh, out)
        if before.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            os.replace(before, replaced)
        batches.remove()
    _summarise(open_corpus(out), table, leaks, wanted=wanted, replaced=existed)


def _summarise(corpus: Corpus, table: _Table, leaks: str, wanted: int, replaced: bool) -> None:
    notes, n_files = int(corpus.notes.sum()), len(table.reasons)
    replacing = ", replacing the corpus that was there" if replaced else ""
    print(f"{corpus.path}: {n_files:,} files, {len(corpus.names):,} songs{replacing}")
    splits = ", ".join(f"{len(corpus.songs_of(split)):,} {split}" for split in SPLITS)
    copies = np.count_nonzero(corpus.semitones)
    print(f"  {splits}" + (f", {copies:,} of them transposed copies" if copies else ""))
    if len(corpus.songs_of("train")) == 0:
        print("  no song is in the training split; to train on all of them give --split 1 0 0")
    size = corpus.vocabulary.size
    short = f" (too little repeats to reach {wanted:,})" if size < wanted else ""
    print(
        f"  {notes:,} notes, {len(corpus.tokens):,} tokens ({len(corpus.tokens) / notes:.2f} per note) with a "
        f"vocabulary of {size:,}{short}, {corpus.seconds.sum() / 3600:.1f} hours of music"
    )
    if n_aligned := np.count_nonzero(table.aligned):
        print(f"  beats and bars found anew in {n_aligned:,} songs, whose own bar lines were wrong")
    print(f"  {leaks}")
    reasons = Counter(filter(None, table.reasons))
    if reasons:
        print(f"  skipped {reasons.total():,} files, listed in {corpus.path / 'skipped.csv'}")
    for why, count in reasons.most_common():
        print(f"    {count:,}: {why}")


def open_or_encode(source: Path, run: Path, vocabulary: Vocabulary | int = 0) -> Corpus:
    """The corpus at `source`; or, if that is a MIDI folder, RUN/corpus, which is encoded from it the first time.

    Args:
        vocabulary: as in `encode_folder`.

    Raises:
        InputError: there is nothing to encode, or RUN/corpus was encoded from other files or from other content.
    """
    if is_corpus(source):
        return open_corpus(source)
    names, path = midi_files(source), run / "corpus"
    if not is_corpus(path):
        encode_folder(source, path, vocabulary=vocabulary)
        return open_corpus(path)
    corpus, files = open_corpus(path), encoded_files(path)
    choice = f"to go on with the old ones give --data {path}, to train on the new ones another run folder"
    if sorted(files) != names:
        raise InputError(f"{path}: was encoded from other files than are in {source} now; {choice}")
    if changed := changed_file(source, files):
        raise InputError(f"{source / changed}: has changed since {path} was encoded from the files; {choice}")
    return corpus
