"""Training curves of one or several runs in one picture."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import atomic_write

# Titles, and the metrics that each panel shows: the first one solid, the others dashed or dotted.
PANELS = (
    (
        "nats per token (solid: training, dashed: validation, dotted: bigram)",
        ("loss", "validation/nats_per_token", "validation/bigram_nats_per_token"),
    ),
    ("bits per note (solid: training, dashed: validation)", ("bits_per_note", "validation/bits_per_note")),
    ("gradient norm", ("gradient_norm",)),
    ("kNN memory (solid: hit rate, dashed: share of the attention)", ("hit_rate", "memory_share")),
    ("age of the hits, tokens", ("hit_age",)),
    ("tokens per second", ("tokens_per_second",)),
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
        raise InputError(f"{run}: holds no metrics.jsonl; give the folder of a run, the --workdir of train.py")
    for line in path.read_text().splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:  # the run is writing this line now
            continue
        for name, value in values.items():
            curves[name].append((values["step"], float(value)))
    if not curves:
        raise InputError(f"{path}: nothing has been logged yet")
    return curves


def plot(runs: dict[str, Curves], path: Path) -> None:
    """Draws the panels, one colour per run, and writes a PNG file."""
    # Imported here, so that a run that can't be read is reported without waiting for Matplotlib.
    from matplotlib import color_sequences
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

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
        if names[0] in FALLING and len(drawn) > 20:  # the first steps would flatten all others
            top = float(np.quantile(drawn, 0.95))
            axis.set_ylim(min(drawn) - 0.1 * (top - min(drawn)) - 1e-9, top + 1e-9)
        axis.set_title(title, fontsize=10, loc="left")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("steps")
    axes[0, 0].legend(frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
