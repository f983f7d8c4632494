"""The plots of the report: each takes figures as `midigen_jax.evaluate` finds them, and returns a Matplotlib figure."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from . import arms, repeats
from .bootstrap import Interval
from .probe import OTHER_THEME

COLOURS = {
    arms.NONE: "#8a94a0",
    arms.XL: "#3f6fb0",
    arms.KNN: "#e8622a",
    arms.ANOTHER: "#7d5ba6",
    OTHER_THEME: "#7d5ba6",
}
RUNS = ("#e8622a", "#3f6fb0", "#4c9a5b", "#7d5ba6", "#8a94a0")
INK = "#1d2530"

Cells = Sequence[Interval | None]


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plain(name: str) -> str:
    """The name of a file or a run as Matplotlib takes it: whatever it is, without formulas, and shown in legends."""
    name = name.encode("utf-8", "replace").decode().replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def _label(axes: Axes, title: str = "", y: str = "", x: str = "") -> None:
    axes.set_title(_plain(title), fontsize=10.5, loc="left")
    axes.set_ylabel(y, fontsize=9.5)
    axes.set_xlabel(x, fontsize=9.5)
    axes.tick_params(labelsize=9)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _name_ticks(axes: Axes, names: Iterable[str]) -> None:
    names = [name.replace(", ", ",\n") for name in names]
    axes.set_xticks(range(len(names)), names)


def _points(axes: Axes, cells: Cells, label: str, colour: str, shift: float) -> None:
    """Values with their intervals, one at each whole number."""
    here = [(i + shift, *cell) for i, cell in enumerate(cells) if cell is not None]
    if here:
        x, y, low, high = np.array(here).T
        axes.errorbar(x, y, (y - low, high - y), fmt="o", color=colour, label=_plain(label), capsize=3, markersize=5)


def _curve(axes: Axes, x: Sequence[float], cells: Cells, label: str, colour: str) -> None:
    """Values over numbers, with a band for their intervals."""
    here = [(at, *cell) for at, cell in zip(x, cells, strict=False) if cell is not None]
    if here:
        at, y, low, high = np.array(here).T
        axes.plot(at, y, "o-", color=colour, label=_plain(label), markersize=4, linewidth=1.6)
        axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)


def differences(series: dict[str, tuple[dict[str, Any], str, str]], y: str) -> Figure:
    """Differences in loss by bars and by repetition.

    Args:
        series: by label: the scores of `evaluate.score`, the name of the difference, and a colour.
    """
    figure = _figure(10, 3.7)
    panels = figure.subplots(1, 2, sharey=True)
    titles = {"by bars": "by the song's bars", "by repetition": "by whether the bar was heard before"}
    for axes, (group, title) in zip(panels, titles.items(), strict=True):
        for i, (label, (scores, name, colour)) in enumerate(series.items()):
            shift = 0.18 * (i - (len(series) - 1) / 2)
            _points(axes, [cells.get(name) for cells in scores[group].values()], label, colour, shift)
        _name_ticks(axes, next(iter(series.values()))[0][group])
        axes.axhline(0, color=INK, linewidth=1)
        _label(axes, title)
    panels[0].set_ylabel(y, fontsize=9.5)
    panels[0].legend(frameon=False, fontsize=9)
    return figure


def recall(probed: dict[str, Any], kinds: Sequence[str], forgets: float | None) -> Figure:
    """Loss and F1 by distance; a dotted line where the memories of training end, in contexts."""
    figure = _figure(10, 5.8)
    panels = figure.subplots(2, len(kinds), sharex=True, sharey="row", squeeze=False)
    for column, kind in enumerate(kinds):
        for row, (what, y) in enumerate((("nats", "nats a token"), ("F1", "note F1 of the likeliest continuation"))):
            axes = panels[row, column]
            for arm, cells in probed[kind][what].items():
                if arm in COLOURS:
                    _curve(axes, probed["distances"], cells, arm, COLOURS[arm])
            axes.set_xscale("log", base=2)
            axes.set_xticks(probed["distances"], [f"{x:g}" for x in probed["distances"]])
            if forgets is not None:
                axes.axvline(forgets, color=INK, linewidth=1, linestyle=":")
            _label(axes, kind * (row == 0), y * (column == 0), "filler between theme and return, in contexts" * row)
            axes.minorticks_off()
    for axes in panels[1]:
        axes.set_ylim(-0.03, 1.03)
    panels[0, 0].legend(frameon=False, fontsize=9)
    return figure


def matrices(inside: dict[str, Any], names: Sequence[str]) -> Figure:
    """Which bars were found for which, a song a panel."""
    found = inside["matrices"]
    figure = _figure(3.4 * len(found), 3.8)
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for i, (axes, matrix) in enumerate(zip(panels, found, strict=True)):
        name = names[matrix["song"]]
        # A few strong cells would hide all others: above the 99th of a hundred all are drawn alike.
        cells = np.array(matrix["shares"])
        top = float(np.quantile(cells[cells > 0], 0.99)) if (cells > 0).any() else 1.0
        axes.imshow(cells, origin="lower", cmap="magma_r", vmin=0, vmax=top, interpolation="nearest")
        _label(axes, name if len(name) < 34 else f"…{name[-32:]}", "bar" * (i == 0), "bar that was found for it")
        axes.grid(visible=False)
    return figure


def inside(found: dict[str, Any]) -> Figure:
    """The share of the memory by head, and the age of the hits."""
    figure = _figure(10, 3.5)
    left, right = figure.subplots(1, 2)
    by_kind = found["share by repetition"]
    kinds = [kind for kind in repeats.KINDS if by_kind[kind] is not None]
    n_heads = len(found["share"])
    for head in range(n_heads):
        place = np.arange(len(kinds)) + 0.8 * (head - (n_heads - 1) / 2) / n_heads
        colour = (*np.array([232, 98, 42]) / 255, 0.35 + 0.65 * (head + 1) / n_heads)
        left.bar(place, [by_kind[kind][head] for kind in kinds], 0.72 / n_heads, color=colour)
    _name_ticks(left, kinds)
    left.set_ylim(0, 1)
    _label(left, "the memory's share of the attention, by head")
    edges, weights = found["age edges, contexts"], np.array(found["weight by age"])
    names = [f"0 to {edges[0]:g}", *(f"to {2 * edge:g}" for edge in edges[:-1]), "more"]
    last = int(np.flatnonzero(weights > 0).max(initial=0)) + 1
    right.bar(range(last), weights[:last], 0.8, color=COLOURS[arms.KNN])
    right.set_xticks(range(last), names[:last])
    _label(right, "weight of the hits, by age", x="contexts")
    return figure


def self_similarity(lags: Sequence[int], curves: dict[str, Cells]) -> Figure:
    """Curves of `measures.self_similarity`, the first one of the real songs."""
    figure = _figure(7.5, 3.3)
    axes = figure.subplots()
    for (name, cells), colour in zip(curves.items(), (INK, *RUNS * len(curves)), strict=False):
        _curve(axes, lags, cells, name, colour)
    axes.set_xticks(lags)
    axes.set_ylim(bottom=0)
    _label(axes, "", "share of a bar that comes back", "so many bars later")
    axes.legend(frameon=False, fontsize=9)
    return figure
