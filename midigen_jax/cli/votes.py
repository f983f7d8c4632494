"""Counts the votes of a blind listening test.

    midigen votes votes-1.json votes-2.json

The files are those that listeners downloaded from listening.html, which midigen evaluate writes. Of each comparison it
prints how often the one was preferred to the other, with a 95 % interval (Wilson 1927) over all votes.
"""

from pathlib import Path

from . import command


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="votes of one listener each")
    args = parser.parse_args()

    # Imported here: help comes without waiting for SciPy.
    from ..evaluation.votes import in_words, preferences, read_votes

    for preference in preferences(vote for path in args.files for vote in read_votes(path)):
        print(in_words(preference))
