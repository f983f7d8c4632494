"""The report's sections on generated music."""

from collections.abc import Sequence
from html import escape
from typing import Any

from . import plots
from .generation_metrics import Pair
from .page import NOTHING, cell, piano_roll, player, plot, table
from .takes import RETURNS, WITH, WITHOUT

DRIFT = ("notes per beat", "chords per bar", "bass movement", "stutter")  # metrics of the first and the last bars


def classifier(told: dict[str, Any]) -> str:
    rows = [
        [
            escape(name),
            cell(x["area"]),
            escape(", ".join(f"{what} ({loss:.3f})" for what, loss in x["looks at"].items())),
        ]
        for name, x in told.items()
        if x
    ]
    return table(["told from the songs' own", "area under the ROC curve", "looks at"], rows) if rows else ""


def generation_metrics(found: dict[str, Any]) -> str:
    columns = {"the songs themselves": found["real"], **found["written"]}
    metrics = dict.fromkeys(name for column in columns.values() for name in column["metrics"])
    rows = [[name, *(cell(column["metrics"].get(name), 2) for column in columns.values())] for name in metrics]
    rows.insert(0, ["excerpts with notes", *(f"{column['excerpts with notes']}" for column in columns.values())])
    for part in found["real"]["parts"]:
        for name in DRIFT:
            values = (column["parts"][part].get(name) for column in columns.values())
            rows.append([f"{name}, {part}", *(cell(value, 2) for value in values)])
    for name in found["real"]["faults"]:
        rows.append([f"fault: {name}", *(cell(column["faults"][name], 2) for column in columns.values())])
    for name in found["real"].get("distributions", {}):
        distances = (column["distances"].get(name) for column in found["written"].values())
        rows.append([f"{name}: distance", "0", *(NOTHING if x is None else f"{x:.2f}" for x in distances)])
    if told := found.get("classifier"):
        areas = (told[name] and told[name]["area"] for name in found["written"])
        rows.append(["area under the classifier's ROC curve", "0.5", *map(cell, areas)])
    errors = [column["self-similarity error"] for column in found["written"].values()]
    rows.append(["mean error of the curve below", "0", *(NOTHING if x is None else f"{x:.3f}" for x in errors)])
    curves = {name: column["self-similarity"] for name, column in columns.items()}
    caption = "Self-similarity: how much of a bar recurs after a number of bars (mean over songs, with intervals)."
    head = [f"{found['songs']} songs", *map(escape, columns)]
    return (
        table(head, rows)
        + classifier(found.get("classifier", {}))
        + plot(plots.self_similarity(found["lags"], curves), caption)
    )


def continuations(pairs: dict[str, list[Pair]], titles: Sequence[str]) -> str:
    """Players: each run's continuation, then the song's own."""
    parts = []
    for title, *row in zip(titles, *pairs.values(), strict=False):
        parts.append(f"<h3>{escape(title)}</h3>")
        for name, pair in zip(pairs, row, strict=True):
            continuation = pair.continuation
            parts.append(piano_roll(continuation.song, continuation.start, f"{title}, continued by {name}"))
            parts.append(f'<p class="small">{escape(name)}: {escape(continuation.summary())}</p>')
            parts.append(player(continuation.song))
        parts.append(f'<p class="small">The song\'s own continuation:</p>{player(row[0].prompt.real)}')
    return "\n".join(parts)


def targets(found: dict[str, list[dict[str, Any]]]) -> str:
    """Each target, and what the runs reach."""
    rows = []
    for row in zip(*found.values(), strict=True):
        rows.append([escape(row[0]["what"]), escape(row[0]["limit"]), *map(_reached, row)])
    return table(["target", "limit", *map(escape, found)], rows)


def _reached(target: dict[str, Any]) -> str:
    """What a run reaches, and whether that is enough."""
    value = cell(target["interval"], 2)
    return value if target["met"] is None else f"{value} {'met' if target['met'] else '<strong>missed</strong>'}"


def long_takes(found: dict[str, Any] | None) -> str:
    """A column for each kind of take, of the songs and of each run, and when they end."""
    if found is None:
        return ""
    columns, head = [], []
    for kind in (WITHOUT, WITH):
        columns += [found["songs"][kind], *(of_run[kind] for of_run in found["written"].values())]
        head += [f"{escape(name)}, {kind}" for name in ("the songs", *found["written"])]
    rows = [[f"takes of {found['bars']} bars", *(f"{column['takes']}" for column in columns)]]
    for group, title in {"shares": "", "faults": "fault: "}.items():
        for name in columns[0][group]:
            rows.append([f"{title}{name}", *(cell(column[group][name], 2) for column in columns)])
    rows.append([RETURNS, *(cell(column[RETURNS], 2) for column in columns)])
    in_time = f"ends within {found['limits']['beats']:g} quarter notes"
    rows.append([in_time, *(cell(column["ends in time"], 2) for column in columns)])
    caption = (
        "How many have ended after so many quarter notes. The dotted line is at twice the songs' median length, up to "
        "which takes were waited for."
    )
    figure = plots.endings(found["songs"][WITHOUT], found["written"], found["limits"]["beats"])
    return table(["share of takes", *head], rows) + plot(figure, caption)


def originality(found: dict[str, Any]) -> str:
    if not found["runs"]:
        return ""
    caption = "Notes of the longest excerpt that a take shares with a training song: the median and the maximum."
    return plot(plots.originality(found), caption)
