"""Makes a folder of polyphonic MIDI files from the scores that the PyPI package music21 ships.

    midigen music21 --out DIR

Nothing is downloaded. Scores that are skipped are listed in DIR/skipped.csv. If it is interrupted, the same command
continues from there.
"""

import os
from pathlib import Path

from ..errors import InputError
from . import command


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the MIDI files")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument(
        "--composers",
        nargs="+",
        help="folders of music21's corpus; default: bach, monteverdi, haydn, mozart and four quartets of beethoven",
    )
    args = parser.parse_args()
    if args.workers < 1:
        raise InputError(f"--workers {args.workers}: give at least 1")

    # Imported here: bad arguments are reported at once.
    from ..data.music21_corpus import COMPOSERS, build

    build(args.out, args.workers, args.composers or COMPOSERS)
