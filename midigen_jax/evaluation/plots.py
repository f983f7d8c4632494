"""The plots of the report: each takes results of the evaluation and returns a Matplotlib figure."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from . import ablations, repeats
from .bootstrap import Interval
from .recall_probe import OTHER_THEME

COLOURS = {
    ablations.NONE: "#8a94a0",
    ablations.XL: "#3f6fb0",
    ablations.KNN: "#e8622a",
    ablations.OTHER_KNN: "#7d5ba6",
    OTHER_THEME: "#7d5ba6",
}
RUNS = ("#e8622a", "#3f6fb0", "#4c9a5b", "#7d5ba6", "#8a94a0")
INK = "#1d2530"

Values = Sequence[Interval | None]


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plain(name: str) -> str:
    """The name of a file or a run as plain text for Matplotlib: no formulas, and never hidden from legends."""
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


def _points(axes: Axes, values: Values, label: str, colour: str, shift: float) -> None:
    """Values with their intervals, one at each whole number."""
    here = [(i + shift, *value) for i, value in enumerate(values) if value is not None]
    if here:
        x, y, low, high = np.array(here).T
        axes.errorbar(x, y, (y - low, high - y), fmt="o", color=colour, label=_plain(label), capsize=3, markersize=5)


def _curve(axes: Axes, x: Sequence[float], values: Values, label: str, colour: str) -> None:
    """Values over numbers, with a band for their intervals."""
    here = [(at, *value) for at, value in zip(x, values, strict=False) if value is not None]
    if here:
        at, y, low, high = np.array(here).T
        axes.plot(at, y, "o-", color=colour, label=_plain(label), markersize=4, linewidth=1.6)
        axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)


def differences(series: dict[str, tuple[dict[str, Any], str, str]], y: str) -> Figure:
    """Differences in loss by bars and by repetition.

    Args:
        series: by label: scores (`evaluate.score`), the name of the difference, and a colour.
    """
    figure = _figure(10, 3.7)
    panels = figure.subplots(1, 2, sharey=True)
    titles = {"by bars": "by position in the song (bars)", "by repetition": "by whether the bar repeats an earlier one"}
    for axes, (group, title) in zip(panels, titles.items(), strict=True):
        for i, (label, (scores, name, colour)) in enumerate(series.items()):
            shift = 0.18 * (i - (len(series) - 1) / 2)
            _points(axes, [losses.get(name) for losses in scores[group].values()], label, colour, shift)
        _name_ticks(axes, next(iter(series.values()))[0][group])
        axes.axhline(0, color=INK, linewidth=1)
        _label(axes, title)
    panels[0].set_ylabel(y, fontsize=9.5)
    panels[0].legend(frameon=False, fontsize=9)
    return figure


def recall(probed: dict[str, Any], kinds: Sequence[str], memory_end: float | None) -> Figure:
    """Loss and F1 by distance; a dotted line at the length of the memories in training, in contexts."""
    figure = _figure(5 * len(kinds), 5.8)
    panels = figure.subplots(2, len(kinds), sharex=True, sharey="row", squeeze=False)
    for column, kind in enumerate(kinds):
        for row, (what, y) in enumerate((("nats", "nats per token"), ("F1", "note F1 of the greedy continuation"))):
            axes = panels[row, column]
            for ablation, values in probed[kind][what].items():
                if ablation in COLOURS:
                    _curve(axes, probed["distances"], values, ablation, COLOURS[ablation])
            axes.set_xscale("log", base=2)
            axes.set_xticks(probed["distances"], [f"{x:g}" for x in probed["distances"]])
            if memory_end is not None:
                axes.axvline(memory_end, color=INK, linewidth=1, linestyle=":")
            _label(axes, kind * (row == 0), y * (column == 0), "filler between theme and return, in contexts" * row)
            axes.minorticks_off()
    for axes in panels[1]:
        axes.set_ylim(-0.03, 1.03)
    panels[0, 0].legend(frameon=False, fontsize=9)
    return figure


def bar_matrices(matrices: Sequence[dict[str, Any]], names: Sequence[str]) -> Figure:
    """Which earlier bars were retrieved for each bar, a panel for each song."""
    figure = _figure(3.4 * len(matrices), 3.8)
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    for i, (axes, matrix) in enumerate(zip(panels, matrices, strict=True)):
        name = names[matrix["song"]]
        # A few strong cells would hide all others, so the colours end at the 99th percentile.
        shares = np.array(matrix["shares"])
        top = float(np.quantile(shares[shares > 0], 0.99)) if (shares > 0).any() else 1.0
        axes.imshow(shares, origin="lower", cmap="magma_r", vmin=0, vmax=top, interpolation="nearest")
        _label(axes, name if len(name) < 34 else f"…{name[-32:]}", "bar" * (i == 0), "retrieved bar")
        axes.grid(visible=False)
    return figure


def retrieval(found: dict[str, Any]) -> Figure:
    """The memory's share of the attention by head, and the age of the hits."""
    figure = _figure(10, 3.5)
    left, right = figure.subplots(1, 2)
    by_kind = found["share by repetition"]
    kinds = [kind for kind in repeats.KINDS if by_kind[kind] is not None]
    n_heads = len(found["share"])
    for head in range(n_heads):
        x = np.arange(len(kinds)) + 0.8 * (head - (n_heads - 1) / 2) / n_heads
        colour = (*np.array([232, 98, 42]) / 255, 0.35 + 0.65 * (head + 1) / n_heads)
        left.bar(x, [by_kind[kind][head] for kind in kinds], 0.72 / n_heads, color=colour)
    _name_ticks(left, kinds)
    left.set_ylim(0, 1)
    _label(left, "the memory's share of the attention by head")
    edges, weights = found["age edges, contexts"], np.array(found["weight by age"])
    names = [f"0 to {edges[0]:g}", *(f"to {edge:g}" for edge in edges[1:]), "more"]
    last = int(np.flatnonzero(weights > 0).max(initial=0)) + 1
    right.bar(range(last), weights[:last], 0.8, color=COLOURS[ablations.KNN])
    right.set_xticks(range(last), names[:last])
    _label(right, "weight of the hits by age", x="contexts")
    return figure


def self_similarity(lags: Sequence[int], curves: dict[str, Values]) -> Figure:
    """Curves of `metrics.self_similarity`, the first one of the real songs."""
    figure = _figure(7.5, 3.3)
    axes = figure.subplots()
    for (name, values), colour in zip(curves.items(), (INK, *RUNS * len(curves)), strict=False):
        _curve(axes, lags, values, name, colour)
    axes.set_xticks(lags)
    axes.set_ylim(bottom=0)
    _label(axes, "", "share of a bar that recurs", "after this many bars")
    axes.legend(frameon=False, fontsize=9)
    return figure


def endings(songs: dict[str, Any], runs: dict[str, dict[str, dict[str, Any]]], limit: float) -> Figure:
    """The share of songs, and of each run's takes, that has ended after so many quarter notes.

    Args:
        songs: results of `takes.endings`, as are those of each run, by kind of take.
        limit: quarter notes up to which takes were waited for.
    """
    figure = _figure(7.5, 3.3)
    axes = figure.subplots()
    curves = [("the songs", songs, INK, "-")]
    for (name, kinds), colour in zip(runs.items(), RUNS * len(runs), strict=False):
        for (kind, found), line in zip(kinds.items(), ("-", "--"), strict=True):
            curves.append((f"{name}, {kind}", found, colour, line))
    for name, found, colour, line in curves:
        beats = np.sort([x for x, ended in zip(found["beats"], found["ended"], strict=True) if ended])
        share = np.arange(len(beats) + 1) / max(len(found["beats"]), 1)
        # From 0 on, and level after the last.
        x, y = np.concatenate([[0], beats, [1.1 * limit]]), np.append(share, share[-1])
        axes.step(x, y, where="post", color=colour, linestyle=line, label=_plain(name), linewidth=1.6)
    axes.axvline(limit, color=INK, linewidth=1, linestyle=":")
    axes.set_xlim(0, 1.1 * limit)
    axes.set_ylim(0, 1.03)
    _label(axes, "", "share that has ended", "quarter notes")
    axes.legend(frameon=False, fontsize=9)
    return figure


def originality(found: dict[str, Any]) -> Figure:
    """The longest training excerpts by step of training (`originality.curves`), and those of the songs."""
    figure = _figure(7.5, 3.3)
    axes = figure.subplots()
    styles = {"median": "-", "maximum": ":"}
    for (name, by_step), colour in zip(found["runs"].items(), RUNS * len(found["runs"]), strict=False):
        for what, line in styles.items():
            here = [(step, row[what]) for step, row in by_step.items() if row[what] is not None]
            if here:
                label = _plain(f"{name}, {what}")
                axes.plot(*zip(*here, strict=True), "o", linestyle=line, color=colour, label=label, markersize=4)
    for what, line in styles.items():
        if found["songs"][what] is not None:
            axes.axhline(found["songs"][what], color=INK, linestyle=line, linewidth=1, label=f"the songs, {what}")
    axes.set_ylim(bottom=0)
    _label(axes, "", "notes", "steps of training")
    if axes.lines:
        axes.legend(frameon=False, fontsize=9)
    return figure
