"""Encodes a folder of MIDI files as a corpus of token arrays.

    midigen encode MIDI_DIR --out CORPUS

If it is interrupted, the same command continues from there.
"""

from pathlib import Path

from ..data.folders import check_midi_folder
from ..errors import InputError
from ..miditok_vocab import TOKENIZATIONS
from ..vocab import FAITHFUL, STEPS_PER_BEAT, Scheme
from . import command

MAX_VOCABULARY = 1 << 12
OWN = "midigen"
MIDITOK = [f"miditok:{name}" for name in TOKENIZATIONS]


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="MIDI_DIR", help="folder of MIDI files, searched to any depth")
    parser.add_argument("--out", type=Path, required=True, metavar="CORPUS", help="folder to write the corpus to")
    parser.add_argument("--workers", type=int, help="threads, or processes with MidiTok; default: one per core")
    parser.add_argument(
        "--tokenizer",
        default=OWN,
        metavar="NAME",
        help=f"{OWN}, or one of MidiTok: {', '.join(MIDITOK)} (which needs the extra miditok)",
    )
    parser.add_argument(
        "--steps-per-beat",
        type=int,
        default=8,
        choices=STEPS_PER_BEAT,
        help="resolution of the time grid; 12 and 24 represent triplets",
    )
    parser.add_argument(
        "--tracks",
        choices=("merged", "multi"),
        default="merged",
        help="merged: one part without drums; multi: programs kept apart, with drums",
    )
    parser.add_argument("--velocities", action="store_true", help="keep velocities, in 32 levels")
    parser.add_argument(
        "--no-align-beats",
        dest="align_beats",
        action="store_false",
        help="keep the bar lines also of files whose notes are on a grid that is not the file's own",
    )
    parser.add_argument("--faithful", action="store_true", help="the rules of MIDIGen, including its defects")
    parser.add_argument(
        "--vocabulary",
        type=int,
        default=0,
        metavar="N",
        help=f"size of the vocabulary, reached with merges, up to {MAX_VOCABULARY}; 0: no merges",
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
        help="shares of the songs; near-duplicates are kept together",
    )
    args = parser.parse_args()
    aligns = args.align_beats and not args.faithful
    scheme = Scheme(args.steps_per_beat, args.tracks == "multi", args.velocities, args.faithful, aligns)
    if args.tokenizer not in (OWN, *MIDITOK):
        raise InputError(
            f"--tokenizer {args.tokenizer}: give {OWN}, {' or '.join(MIDITOK)}; MidiTok's others are not supported, "
            "those with several tokens at a time or a sequence per track among them"
        )
    own = args.tokenizer == OWN
    if args.faithful and not own:
        raise InputError("--faithful: the rules of MIDIGen are about its own tokens; leave out --tokenizer")
    if args.faithful and (scheme != FAITHFUL or args.vocabulary or args.transpose):
        raise InputError(
            "--faithful: MIDIGen has 8 steps per beat and merged tracks, no velocities, merges or transposed copies; "
            "leave out these options"
        )
    if not (min(args.split) >= 0 and abs(sum(args.split) - 1) < 1e-6):
        raise InputError(f"--split {' '.join(map(str, args.split))}: give three shares that add up to 1")
    if args.workers is not None and args.workers < 1:
        raise InputError(f"--workers {args.workers}: give at least 1")
    if not 0 <= args.vocabulary <= MAX_VOCABULARY:
        raise InputError(f"--vocabulary {args.vocabulary}: give 0, or up to {MAX_VOCABULARY}")
    if not 0 <= args.transpose <= 11:
        raise InputError(f"--transpose {args.transpose}: give 0 to 11 semitones")
    check_midi_folder(args.folder)

    # Imported here: bad arguments are reported without waiting for Numba.
    from ..data.encode import encode_folder

    encode_folder(
        args.folder,
        args.out,
        scheme=scheme,
        tokenization="" if own else args.tokenizer.removeprefix("miditok:"),
        vocabulary=args.vocabulary,
        transpose=args.transpose,
        workers=args.workers,
        fractions=args.split,
    )
