"""Encodes a folder of MIDI files as a corpus of token arrays.

    python -m midigen_jax.encode MIDI_DIR --out CORPUS

Stopped at any moment, the same command goes on where it was.
"""

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

from . import cli, duplicates
from .batches import Batches
from .cli import InputError
from .corpus import SPLITS, Corpus, EncodedSong, is_corpus, open_corpus, split_of, write_corpus
from .kernels import merges, score
from .midi import SUFFIXES
from .vocab import STEPS_PER_BEAT, Scheme, Vocabulary, from_expansions

MAX_VOCABULARY = 1 << 12
MERGE_TOKENS = 1 << 21  # the merges are learned from about so many tokens of the training songs


def _is_file(path: str) -> bool:
    """Whether this is a file, or a link that leads nowhere, which shall be listed as such."""
    return os.path.isfile(path) or not os.path.exists(path)


def midi_files(folder: Path) -> list[str]:
    """The names of all MIDI files below a folder, as paths within it, sorted.

    Raises:
        InputError: the folder does not exist or holds none.
    """
    if not folder.is_dir():
        kind = "is a file, not a folder" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: {kind}; give a folder of MIDI files")
    files, seen = list[str](), set[str]()

    def left_out(error: OSError) -> None:
        print(f"{error.filename}: left out: {error.strerror}", file=sys.stderr)

    for where, folders, names in os.walk(folder, onerror=left_out, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:  # a link that leads to a folder a second time
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        paths = (os.path.join(where, name) for name in names if name.lower().endswith(SUFFIXES))
        files += [os.path.relpath(path, folder).replace(os.sep, "/") for path in paths if _is_file(path)]
    if not files:
        raise InputError(f"{folder}: holds no MIDI files; give a folder with {' '.join(SUFFIXES)} files in it")
    return sorted(files)


class _SayCompiling(event.Listener):
    """Says once that Numba compiles, since that takes longer than encoding a thousand files."""

    said = False

    def on_start(self, event: Any) -> None:
        if not self.said:
            tqdm.write("compiling the kernels; this happens once and takes about half a minute", file=sys.stderr)
            self.said = True

    def on_end(self, event: Any) -> None:
        pass


class _Table(NamedTuple):
    """What is known of every file once all are encoded; arrays [files]."""

    reasons: list[str]
    lengths: np.ndarray  # in base tokens; 0: no song
    notes: np.ndarray
    hashes: np.ndarray
    splits: np.ndarray  # index into SPLITS
    groups: list[str]  # the smallest fingerprint of the near-duplicates


def _fingerprint(note_hash: np.uint64) -> str:
    return f"{int(note_hash):016x}"


def _survey(batches: Batches, fractions: Sequence[float]) -> tuple[_Table, str]:
    """The table of all files, and a report on near-duplicates."""
    columns: list[list[np.ndarray]] = []
    reasons: list[str] = []
    for batch in range(len(batches)):
        errors, *values = batches.load(batch, "reasons", "offsets", "notes", "hashes", "signatures")
        reasons += errors.tolist()
        columns.append([np.diff(values[0]), *values[1:]])
    lengths, notes, hashes, signatures = (np.concatenate(column) for column in zip(*columns, strict=True))
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
    table = _Table(reasons, lengths, notes, hashes, splits, groups)
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
            f"    each is on the side of the split where its like are ({(sizes > 1).sum():,} groups); song by song,\n"
            f"    {leaks:,} validation and test songs would have had one in training"
        )
    else:
        report += "none found"
    pair = duplicates.nearest_apart(signatures, table.splits[songs] == 0)
    if pair:
        first, second = (batches.names[songs[i]] for i in (pair.first, pair.second))
        report += (
            f"\n    nearest pair across the split: {first} and {second}, {pair.similarity:.0%} of the melody alike"
        )
    return report


def _learn_merges(batches: Batches, table: _Table, size: int) -> Vocabulary:
    """Merges that fill the vocabulary up to this size, learned from training songs that lie evenly in the folder.

    Raises:
        InputError: there are no training songs.
    """
    training = np.flatnonzero((table.lengths > 0) & (table.splits == 0))
    if len(training) == 0:
        raise InputError("--vocabulary: no song fell to the training split; give another --split, or leave it out")
    every = -(-int(table.lengths[training].sum()) // MERGE_TOKENS)
    chosen = training[:: max(1, every)]
    parts = []
    for batch in range(len(batches)):
        first, end = batches.bounds[batch], batches.bounds[batch + 1]
        here = chosen[np.searchsorted(chosen, first) : np.searchsorted(chosen, end)] - first
        if len(here):
            tokens, offsets = batches.load(batch, "tokens", "offsets")
            parts.append(np.concatenate([tokens[offsets[i] : offsets[i + 1]] for i in here]))
    learned = merges.learn(np.concatenate(parts), batches.scheme.size, size - batches.scheme.size)
    return from_expansions(batches.scheme, *learned)


def _encoded_songs(batches: Batches, table: _Table, vocabulary: Vocabulary, transpose: int) -> Iterator[EncodedSong]:
    """All songs in the order of their names; each training song is followed by its transposed copies."""
    trie = merges.table(*vocabulary.expansions) if vocabulary.merges else None
    scheme = vocabulary.scheme
    shifts = [0, *(shift for size in range(1, transpose + 1) for shift in (-size, size))]
    fields = ("tokens", "bar", "step", "offsets", "steps", "seconds", "meters", "tempos")
    for batch in range(len(batches)):
        tokens, bar, step, offsets, steps, seconds, meters, tempos = batches.load(batch, *fields)
        for i, name in enumerate(batches.files(batch)):
            song = batches.bounds[batch] + i
            if table.lengths[song] == 0:
                continue
            here = slice(offsets[i], offsets[i + 1])
            for semitones in shifts if table.splits[song] == 0 else shifts[:1]:
                written, written_bar, written_step = tokens[here], bar[here], step[here]
                if semitones:
                    written = score.transpose(written, semitones, scheme)
                    if len(written) == 0:  # a note would leave the 128 pitches
                        continue
                if trie:
                    written, starts = merges.merge(written, trie, scheme.size)
                    written_bar, written_step = written_bar[starts], written_step[starts]
                yield EncodedSong(
                    name=name,
                    tokens=written,
                    bar=written_bar,
                    step=written_step,
                    meters=meters[meters[:, 0] == i, 1:],
                    tempos=tempos[tempos[:, 0] == i, 1:],
                    notes=int(table.notes[song]),
                    beats=steps[i] / scheme.steps_per_beat,
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
    vocabulary: int | Vocabulary = 0,
    transpose: int = 0,
    workers: int | None = None,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
) -> None:
    """Encodes every MIDI file below `folder` into a corpus at `out` and prints a summary.

    The result does not depend on the number of workers (threads: the kernels release the GIL), nor on interruptions.

    Args:
        vocabulary: its size; what exceeds the base tokens is filled with merges. 0: no merges. Or a vocabulary whose
            scheme and merges are used as they are.
        transpose: training songs are also written transposed by 1 to so many semitones, up and down.

    Raises:
        InputError: there is nothing to encode, or `out` exists and is no corpus.
    """
    names = midi_files(folder)
    given, wanted = (vocabulary, vocabulary.size) if isinstance(vocabulary, Vocabulary) else (None, vocabulary)
    scheme = given.scheme if given else scheme
    if out.is_symlink() or not out.name:  # the corpus goes where a link leads
        out = out.resolve()
    if out.exists() and not is_corpus(out) and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out}: exists and is no corpus; give another folder or remove it")
    new_parent = not out.parent.exists()
    with Batches(out.with_name(f".{out.name}.encoding"), folder, names, scheme) as batches:
        # What `before` holds is always whole: it comes and goes by renames; `fresh` and `replaced` may be in part.
        fresh, before, replaced = (batches.path / name for name in ("corpus", "before", "replaced"))
        for partial in (fresh, replaced):
            shutil.rmtree(partial, ignore_errors=True)
        if before.exists():  # killed between the last renames
            os.replace(before, replaced if out.exists() else out)
        with event.install_listener("numba:compile", _SayCompiling()):
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
            words = given or (_learn_merges(batches, table, wanted) if wanted else Vocabulary(scheme))
            skipped = ((name, why) for name, why in zip(names, table.reasons, strict=True) if why)
            write_corpus(fresh, _encoded_songs(batches, table, words, transpose), skipped, words)
        instead = is_corpus(out)
        if out.exists():
            os.replace(out, before)
        os.replace(fresh, out)
        if before.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            os.replace(before, replaced)
        batches.remove()
    _summarise(open_corpus(out), table, leaks, wanted=wanted, instead=instead)


def _summarise(corpus: Corpus, table: _Table, leaks: str, wanted: int, instead: bool) -> None:
    notes, n_files = int(corpus.notes.sum()), len(table.reasons)
    place = " (instead of the corpus that was there)" if instead else ""
    print(f"{corpus.path}: {n_files:,} files, {len(corpus.names):,} songs{place}")
    splits = ", ".join(f"{len(corpus.songs_of(split)):,} {split}" for split in SPLITS)
    copies = np.count_nonzero(corpus.semitones)
    print(f"  {splits}" + (f", {copies:,} of them transposed copies" if copies else ""))
    if len(corpus.songs_of("train")) == 0:
        print("  no song fell to the training split; to train on them all give --split 1 0 0")
    size = corpus.vocabulary.size
    short = f" (nothing repeats that would fill it up to {wanted:,})" if size < wanted else ""
    print(
        f"  {notes:,} notes, {len(corpus.tokens):,} tokens ({len(corpus.tokens) / notes:.2f} a note) of a vocabulary "
        f"of {size:,}{short}, {corpus.seconds.sum() / 3600:.1f} hours of music"
    )
    print(f"  {leaks}")
    reasons = Counter(filter(None, table.reasons))
    if reasons:
        print(f"  skipped {reasons.total():,} files, listed in {corpus.path / 'skipped.csv'}")
    for why, count in reasons.most_common():
        print(f"    {count:,}: {why}")


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="MIDI_DIR", help="folder of MIDI files, searched to any depth")
    parser.add_argument("--out", type=Path, required=True, metavar="CORPUS", help="folder to write the corpus to")
    parser.add_argument("--workers", type=int, help="threads; all cores if not given")
    parser.add_argument(
        "--steps-per-beat",
        type=int,
        default=8,
        choices=STEPS_PER_BEAT,
        help="grid of the time; 12 and 24 hold triplets",
    )
    parser.add_argument(
        "--tracks",
        choices=("merged", "multi"),
        default="merged",
        help="merged: one part without drums; multi: programs are kept apart, with drums",
    )
    parser.add_argument("--velocities", action="store_true", help="keep how loud each note is, in 32 degrees")
    parser.add_argument("--faithful", action="store_true", help="the rules of MIDIGen, its defects included")
    parser.add_argument(
        "--vocabulary",
        type=int,
        default=0,
        metavar="N",
        help=f"size of the vocabulary, filled with merges, up to {MAX_VOCABULARY}; 0: none",
    )
    parser.add_argument(
        "--transpose",
        type=int,
        default=0,
        metavar="N",
        help="add training songs transposed by 1 to N semitones up and down, N up to 11",
    )
    parser.add_argument(
        "--split",
        type=float,
        nargs=3,
        default=(0.8, 0.1, 0.1),
        metavar=("TRAIN", "VALIDATION", "TEST"),
        help="shares of the songs; near-duplicates stay together",
    )
    args = parser.parse_args()
    scheme = Scheme(args.steps_per_beat, args.tracks == "multi", args.velocities, args.faithful)
    if args.faithful and (scheme != Scheme(faithful=True) or args.vocabulary or args.transpose):
        raise InputError(
            "--faithful: MIDIGen has 8 steps a beat and merged tracks, no velocities, merges or copies; leave these out"
        )
    if not (min(args.split) >= 0 and abs(sum(args.split) - 1) < 1e-6):
        raise InputError(f"--split {' '.join(map(str, args.split))}: give three shares that add up to 1")
    if args.workers is not None and args.workers < 1:
        raise InputError(f"--workers {args.workers}: give at least 1")
    if args.vocabulary and not scheme.size < args.vocabulary <= MAX_VOCABULARY:
        raise InputError(
            f"--vocabulary {args.vocabulary}: give 0, or over {scheme.size} (the base tokens) up to {MAX_VOCABULARY}"
        )
    if not 0 <= args.transpose <= 11:
        raise InputError(f"--transpose {args.transpose}: give 0 to 11 semitones")
    encode_folder(
        args.folder,
        args.out,
        scheme=scheme,
        vocabulary=args.vocabulary,
        transpose=args.transpose,
        workers=args.workers,
        fractions=args.split,
    )


if __name__ == "__main__":
    cli.run(main)
