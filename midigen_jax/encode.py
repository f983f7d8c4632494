"""Encodes a folder of MIDI files as a corpus of token arrays.

python -m midigen_jax.encode MIDI_DIR --out CORPUS
"""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from . import cli
from .cli import InputError
from .corpus import SPLITS, EncodedSong, is_corpus, open_corpus, write_corpus
from .kernels import score, smf
from .midi import SUFFIXES


def midi_files(folder: Path) -> list[Path]:
    """All MIDI files below a folder, in the order of their names.

    Raises:
        InputError: the folder does not exist or holds none.
    """
    if not folder.is_dir():
        kind = "is a file, not a folder" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: {kind}; give a folder of MIDI files")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise InputError(f"{folder}: holds no MIDI files; give a folder with {' '.join(SUFFIXES)} files in it")
    return files


def corpus_names(files: Sequence[Path], folder: Path) -> list[str]:
    """The names that a corpus of this folder knows its files by."""
    return [path.relative_to(folder).as_posix() for path in files]


def encode_file(path: Path, name: str, steps_per_beat: int) -> EncodedSong | str:
    """The song of a MIDI file, or the reason why there is none."""
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        return f"can't be read: {error.strerror or error}"
    # Two calls, since Numba notices on disk a changed kernel's own file, not those of kernels that it calls.
    code, division, raw_notes, meters, tempos = smf.read_smf(data)
    if code != smf.OK:
        return smf.ERRORS[code]
    tokens, bar, step, notes, n_steps, seconds = score.encode_song(division, raw_notes, meters, tempos, steps_per_beat)
    if len(tokens) == 0:
        return "holds no notes (drums aside)"
    return EncodedSong(name, tokens, bar, step, notes, n_steps / steps_per_beat, seconds)


def encode_folder(
    folder: Path,
    out: Path,
    *,
    steps_per_beat: int = 8,
    workers: int | None = None,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
) -> None:
    """Encodes every MIDI file below `folder` into a corpus at `out` and prints a summary.

    The result does not depend on the number of workers (threads: the kernels release the GIL).

    Raises:
        InputError: there is nothing to encode, or `out` exists and is no corpus.
    """
    files = midi_files(folder)
    names = corpus_names(files, folder)
    if out.exists() and not is_corpus(out):
        raise InputError(f"{out}: exists and is no corpus; give another folder or remove it")

    def encode_one(path: Path, name: str) -> EncodedSong | str:
        return encode_file(path, name, steps_per_beat)

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        results = list(
            tqdm(pool.map(encode_one, files, names), "encoding", len(files), unit="file", leave=False, disable=None)
        )
    songs = [result for result in results if isinstance(result, EncodedSong)]
    skipped = [(name, why) for name, why in zip(names, results, strict=True) if isinstance(why, str)]
    reasons = Counter(why for _, why in skipped)
    if not songs:
        name, why = skipped[0]
        raise InputError(
            f"{folder}: none of its {len(files)} MIDI files can be used (the first, {name}: {why}); "
            "give a folder with readable files"
        )
    write_corpus(out, songs, skipped, steps_per_beat=steps_per_beat, fractions=fractions)
    corpus = open_corpus(out)
    counts = {split: len(corpus.songs_of(split)) for split in SPLITS}
    notes = int(corpus.notes.sum())
    print(
        f"{out}: {len(songs):,} songs ({', '.join(f'{n:,} {split}' for split, n in counts.items())}), "
        f"{notes:,} notes, {len(corpus.tokens):,} tokens ({len(corpus.tokens) / notes:.2f} a note), "
        f"{corpus.seconds.sum() / 3600:.1f} hours of music"
    )
    for why, count in reasons.most_common():
        print(f"  skipped {count:,}: {why} (see {out / 'skipped.csv'})")


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="MIDI_DIR", help="folder of MIDI files, searched to any depth")
    parser.add_argument("--out", type=Path, required=True, metavar="CORPUS", help="folder to write the corpus to")
    parser.add_argument("--workers", type=int, help="threads; all cores if not given")
    parser.add_argument("--steps-per-beat", type=int, default=8, choices=(4, 8, 12, 24), help="grid of the time")
    parser.add_argument(
        "--split",
        type=float,
        nargs=3,
        default=(0.8, 0.1, 0.1),
        metavar=("TRAIN", "VALIDATION", "TEST"),
        help="shares of the songs; equal songs stay together",
    )
    args = parser.parse_args()
    if min(args.split) < 0 or abs(sum(args.split) - 1) > 1e-6:
        raise InputError(f"--split {' '.join(map(str, args.split))}: give three shares that add up to 1")
    if args.workers is not None and args.workers < 1:
        raise InputError(f"--workers {args.workers}: give at least 1")
    encode_folder(args.folder, args.out, steps_per_beat=args.steps_per_beat, workers=args.workers, fractions=args.split)


if __name__ == "__main__":
    cli.run(main)
