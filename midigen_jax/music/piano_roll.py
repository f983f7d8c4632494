"""Piano rolls as PNG."""

import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..errors import InputError
from ..files import atomic_write
from .pitches import pitch_name
from .song import Song

_BARS_PER_SYSTEM = 16
_MAX_SYSTEMS = 24  # later ones are left out, and the title says so
_HEAD, _FOOT, _GAP, _LEFT, _RIGHT, _KEYS = 0.45, 0.16, 0.36, 0.66, 0.18, 0.24  # inches
_BLACK_KEYS = (1, 3, 6, 8, 10)
_PROMPT, _CONTINUATION, _PROMPT_BACKGROUND = "#3f6fb0", "#e8622a", "#e9f0fa"
_INK, _LABEL, _BAR_LINE, _BEAT_LINE, _OCTAVE_LINE = "#1d2530", "#6b7480", "#aab2bd", "#e3e7ec", "#c9d0d9"
_BLACK_ROW = (0.10, 0.16, 0.28, 0.055)


def draw(target: Path | io.BytesIO, song: Song, *, prompt_end: int | None = None, title: str = "") -> None:
    """Draws a song's piano roll as a PNG.

    Args:
        prompt_end: the time at which the continuation begins; None: there is no prompt.

    Raises:
        InputError: it has no notes.
    """
    onset, duration, pitch, *_ = song.notes.T
    piano_roll(
        target,
        onset,
        duration,
        pitch,
        bar_lines=song.bar_lines(song.end),
        prompt_end=prompt_end,
        steps_per_beat=song.scheme.steps_per_beat,
        title=title,
    )


def piano_roll(
    path: str | Path | io.BytesIO,
    onset: np.ndarray,
    duration: np.ndarray,
    pitch: np.ndarray,
    *,
    bar_lines: np.ndarray,
    prompt_end: int | None = None,
    steps_per_beat: int = 8,
    title: str = "",
) -> None:
    """Draws notes as a PNG, in systems of at most 16 bars, one below the other.

    Args:
        onset, duration, pitch: int [N], in grid steps and MIDI numbers.
        bar_lines: int [bars], the times at which bars begin.
        prompt_end: the time at which the prompt ends and the continuation begins; None: there is no prompt.

    Raises:
        InputError: there are no notes.
    """
    onset, duration, pitch = (np.asarray(column, dtype=np.int64) for column in (onset, duration, pitch))
    if onset.size == 0 or not onset.shape == duration.shape == pitch.shape:
        raise InputError(f"{path}: no notes to draw, or not as many onsets as durations and pitches")
    bars = _bars(onset, duration, np.asarray(bar_lines, dtype=np.int64), 4 * steps_per_beat)
    count = len(bars) - 1
    per_system = -(-count // -(-count // _BARS_PER_SYSTEM))
    starts = range(0, count, per_system)[:_MAX_SYSTEMS]
    systems = [bars[first : first + per_system + 1] for first in starts]
    if (shown := starts[-1] + len(systems[-1]) - 1) < count:
        title = f"{title} (bars 1 to {shown} of {count})".lstrip()
    span = max(int(system[-1] - system[0]) for system in systems)  # one scale for all
    low, high = int(pitch.min()) - 2, int(pitch.max()) + 2

    width = float(np.clip(0.27 * span / steps_per_beat, 6.0, 13.5)) + _LEFT + _KEYS + _RIGHT
    height = float(np.clip(0.085 * (high - low + 1), 1.6, 4.0))
    total = _HEAD + len(systems) * (_GAP + height) + _FOOT
    figure = Figure(figsize=(width, total), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    for number, (first, system) in enumerate(zip(starts, systems, strict=True)):
        bottom = (total - _HEAD - (number + 1) * (_GAP + height)) / total
        keys = figure.add_axes((_LEFT / width, bottom, _KEYS / width, height / total))
        _draw_keys(keys, low, high)
        axes = figure.add_axes(((_LEFT + _KEYS) / width, bottom, 1 - (_LEFT + _KEYS + _RIGHT) / width, height / total))
        axes.set(xlim=(system[0], system[0] + span), ylim=(low - 0.5, high + 0.5))
        _draw_grid(axes, low, high, system, first, steps_per_beat)
        _draw_notes(axes, onset, duration, pitch, system, prompt_end)
        if prompt_end is not None:
            _draw_prompt_end(axes, prompt_end, system)
    figure.text(
        _LEFT / width,
        1 - 0.26 / total,
        title.encode("utf-8", "replace").decode(),  # file names need not be valid UTF-8
        parse_math=False,
        va="center",
        color=_INK,
        fontsize=13,
        fontweight="bold",
    )
    if prompt_end is not None:
        parts = ((_PROMPT, "prompt"), (_CONTINUATION, "continuation"))
        figure.legend(
            handles=[Patch(facecolor=colour, label=label) for colour, label in parts],
            loc="center right",
            bbox_to_anchor=(1 - _RIGHT / width, 1 - 0.26 / total),
            ncols=2,
            frameon=False,
            fontsize=11,
            labelcolor=_INK,
            handlelength=1.3,
            borderpad=0,
            borderaxespad=0,
        )
    if isinstance(path, io.BytesIO):
        figure.savefig(path, format="png")
        return
    with atomic_write(Path(path)) as temporary:
        figure.savefig(temporary, format="png")


def _bars(onset: np.ndarray, duration: np.ndarray, bar_lines: np.ndarray, bar: int) -> np.ndarray:
    """The starts of the bars that hold notes, then the end of the last one: [bars + 1]."""
    end = int((onset + duration).max())
    lines = np.unique(np.append(bar_lines, min(0, int(onset.min()))))
    if (after := lines[lines >= end]).size:
        return np.append(lines[lines < end], after[0])
    length = int(lines[-1] - lines[-2]) if len(lines) > 1 else bar
    return np.append(lines, max(end, int(lines[-1]) + length))


def _boxes(left: np.ndarray, right: np.ndarray, middle: np.ndarray, height: float) -> Any:
    """Corners of rectangles, [N, 4, 2], around `middle`; left, right, middle: [N]."""
    low, high = middle - height / 2, middle + height / 2
    return np.stack([[left, low], [right, low], [right, high], [left, high]]).transpose(2, 0, 1)


def _black_rows(low: int, high: int) -> np.ndarray:
    rows = np.arange(low, high + 1)
    return rows[np.isin(rows % 12, _BLACK_KEYS)].astype(float)


def _draw_keys(axes: Axes, low: int, high: int) -> None:
    """The keyboard at the left of a system, with the names of its Cs, and of more keys if there is space."""
    black, ones = _black_rows(low, high), np.ones(len(_black_rows(low, high)))
    axes.set(xlim=(0, 1), ylim=(low - 0.5, high + 0.5), xticks=[])
    # White keys meet in the middle of a black key, or between E and F, B and C.
    between = [row - 0.5 for row in range(low, high + 1) if row % 12 in (0, 5)] + black.tolist()
    axes.add_collection(LineCollection([[(0, y), (1, y)] for y in between], colors=_BAR_LINE, linewidths=0.5, zorder=1))
    axes.add_collection(PolyCollection(_boxes(0 * ones, 0.62 * ones, black, 0.8), facecolor=_INK, linewidth=0))
    named = (0, 4, 7) if high - low < 36 else (0, 7) if high - low < 60 else (0,)
    rows = [row for row in range(low, high + 1) if row % 12 in named]
    axes.set_yticks(rows, [pitch_name(row) for row in rows], fontsize=8, color=_LABEL)
    for row, label in zip(rows, axes.get_yticklabels(), strict=True):
        label.set(color=_INK if row % 12 == 0 else _LABEL, fontweight="bold" if row % 12 == 0 else "normal")
    axes.tick_params(length=0, pad=4)
    for spine in axes.spines.values():
        spine.set(color=_BAR_LINE, linewidth=0.8)


def _draw_grid(axes: Axes, low: int, high: int, bars: np.ndarray, first: int, steps_per_beat: int) -> None:
    """Rows of black keys, octaves, beats and bars; bars: [bars + 1], the first has number `first` + 1."""
    black, (start, stop) = _black_rows(low, high), bars[[0, -1]]
    axes.axis("off")
    whole = np.ones(len(black))
    axes.add_collection(PolyCollection(_boxes(start * whole, stop * whole, black, 1.0), facecolor=_BLACK_ROW, zorder=1))
    bottom, top = low - 0.5, high + 0.5
    octaves = [row - 0.5 for row in range(low, high + 1) if row % 12 == 0]
    beats = [beat for a, b in pairwise(bars) for beat in range(a + steps_per_beat, b, steps_per_beat)]
    for positions, colour, line in ((beats, _BEAT_LINE, 0.5), (bars, _BAR_LINE, 0.9)):
        upright = [[(x, bottom), (x, top)] for x in positions]
        axes.add_collection(LineCollection(upright, colors=colour, linewidths=line, zorder=2, clip_on=False))
    level = [[(start, y), (stop, y)] for y in octaves]
    axes.add_collection(LineCollection(level, colors=_OCTAVE_LINE, linewidths=0.7, zorder=2))
    frame = [[(start, y), (stop, y)] for y in (bottom, top)]
    axes.add_collection(LineCollection(frame, colors=_BAR_LINE, linewidths=0.9, zorder=2, clip_on=False))
    for number, x in enumerate(bars[:-1].tolist(), start=first + 1):
        axes.annotate(str(number), (x, top), (1, 3), textcoords="offset points", fontsize=8, color=_LABEL)


def _draw_notes(
    axes: Axes,
    onset: np.ndarray,
    duration: np.ndarray,
    pitch: np.ndarray,
    bars: np.ndarray,
    prompt_end: int | None,
) -> None:
    start, stop = int(bars[0]), int(bars[-1])
    here = (onset < stop) & (onset + duration > start)
    left, right = onset[here].clip(start), (onset + duration)[here].clip(max=stop)
    in_prompt = onset[here] < (start if prompt_end is None else prompt_end)
    colours = np.where(in_prompt, _PROMPT, _CONTINUATION if prompt_end is not None else _PROMPT)
    notes = PolyCollection(
        _boxes(left, right, pitch[here], 0.92),
        facecolors=colours.tolist(),
        edgecolors="white",
        linewidths=0.6,
        zorder=4,
    )
    axes.add_collection(notes)


def _draw_prompt_end(axes: Axes, prompt_end: int, bars: np.ndarray) -> None:
    """The prompt's background, and a line at its end if that is in this system; bars: [bars + 1]."""
    start, stop = int(bars[0]), int(bars[-1])
    bottom, top = axes.get_ylim()
    if prompt_end > start:
        background = _boxes(
            np.array([start]), np.array([min(prompt_end, stop)]), np.array([(bottom + top) / 2]), top - bottom
        )
        axes.add_collection(PolyCollection(background, facecolor=_PROMPT_BACKGROUND, linewidth=0, zorder=0))
    if start <= prompt_end < stop:
        line = LineCollection([[(prompt_end, bottom), (prompt_end, top)]], colors=_INK, linewidths=2.2, zorder=5)
        line.set_clip_on(False)
        axes.add_collection(line)
