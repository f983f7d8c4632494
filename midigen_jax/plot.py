"""Training curves of one run or several over each other, as a PNG file.

python -m midigen_jax.plot RUN... [--out curves.png]
"""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib import color_sequences
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from . import cli
from .cli import InputError
from .files import renamed

# Titles, and the metrics that each panel shows: the first one drawn through, the others dashed or dotted.
PANELS = (
    (
        "nats a token (solid: training, dashed: validation, dotted: bigram)",
        ("loss", "validation/nats_per_token", "validation/floor_nats_per_token"),
    ),
    ("bits a note (solid: training, dashed: validation)", ("bits_per_note", "validation/bits_per_note")),
    ("norm of the gradients", ("gradient_norm",)),
    ("kNN memory (solid: searches that hit, dashed: gate)", ("hit_rate", "gate")),
    ("age of the hits, tokens", ("hit_age",)),
    ("tokens a second", ("tokens_per_second",)),
)
FALLING = ("loss", "bits_per_note", "gradient_norm")
STYLES = ("-", "--", ":")

Curves = dict[str, list[tuple[int, float]]]


def curves_of(run: Path) -> Curves:
    """The values of every metric, each with its step.

    Raises:
        InputError: there are none.
    """
    path, curves = run / "metrics.jsonl", defaultdict(list)
    if not path.is_file():
        raise InputError(f"{run}: holds no metrics.jsonl; give the folder of a run, as train.py's --workdir names it")
    for line in path.read_text().splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:  # the run is writing it just now
            continue
        for name, value in values.items():
            curves[name].append((values["step"], value))
    if not curves:
        raise InputError(f"{path}: nothing has been logged yet")
    return curves


def plot(runs: dict[str, Curves], path: Path) -> None:
    """Draws the panels, a colour a run, and writes them to `path`."""
    figure = Figure(figsize=(14, 12), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, 2, sharex=True)
    for axis, (title, names) in zip(axes.flat, PANELS, strict=True):
        drawn: list[float] = []
        for (label, curves), color in zip(runs.items(), color_sequences["tab10"] * len(runs), strict=False):
            for name, style in zip(names, STYLES, strict=False):
                if name in curves:
                    steps, values = zip(*curves[name], strict=True)
                    drawn += values
                    axis.plot(
                        steps,
                        values,
                        style,
                        color=color,
                        label=label if style == "-" else None,
                        linewidth=1.2,
                        marker="." if len(steps) < 20 else None,
                    )
        if names[0] in FALLING and len(drawn) > 20:  # the first steps would make all others a flat line
            top = float(np.quantile(drawn, 0.95))
            axis.set_ylim(min(drawn) - 0.1 * (top - min(drawn)) - 1e-9, top + 1e-9)
        axis.set_title(title, fontsize=10, loc="left")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("steps")
    axes[0, 0].legend(frameon=False)
    with renamed(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs")
    parser.add_argument("--out", type=Path, default=Path("curves.png"), metavar="FILE.png", help="the picture")
    args = parser.parse_args()
    plot({str(run): curves_of(run) for run in args.runs}, args.out)
    print(f"{args.out}: {len(args.runs)} run{'s' * (len(args.runs) > 1)}")


if __name__ == "__main__":
    cli.run(main)
