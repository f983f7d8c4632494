"""Draws the training curves of one or several runs in one picture.

midigen plot RUN... [--out curves.png]
"""

from pathlib import Path

from . import command


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs")
    parser.add_argument("--out", type=Path, default=Path("curves.png"), metavar="FILE.png", help="the picture")
    args = parser.parse_args()
    from ..training.curves import curves_of, plot

    plot({str(run): curves_of(run) for run in args.runs}, args.out)
    print(f"{args.out}: {len(args.runs)} run{'s' * (len(args.runs) > 1)}")
