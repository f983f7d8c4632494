"""The page that `midigen_jax.evaluate` writes: tables, plots, piano rolls and players in one HTML file.

All pictures and sounds are in the page itself, and nothing in it is a script.
"""

import base64
import io
import tempfile
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from matplotlib.figure import Figure

from . import arms, figures, render, repeats
from .bootstrap import Interval
from .continuation import draw
from .figures import COLOURS, RUNS
from .likeness import Pair
from .midi import write_song
from .probe import OTHER_THEME, RANDOM, UNSEEN
from .song import Song

OWN, OTHER = arms.less(arms.KNN, arms.XL), arms.less(arms.ANOTHER, arms.XL)

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<link rel="icon" href="data:,">
<style>
body { font: 16px/1.55 system-ui, sans-serif; color: #1d2530; background: #fff; margin: 0 auto; max-width: 62rem;
  padding: 2rem 1.2rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.35rem; margin: 2.8rem 0 .4rem; border-top: 1px solid #e3e7ec; padding-top: 1.4rem; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .3rem; }
p, li { max-width: 46rem; }
ul { padding-left: 1.1rem; }
.small, figcaption, small { color: #5b6572; font-size: .86rem; }
figure { margin: 1rem 0 1.6rem; }
img { max-width: 100%; height: auto; display: block; }
audio { width: 100%; max-width: 30rem; height: 2.2rem; display: block; margin: .3rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .8rem 0 1.4rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .28rem .9rem .28rem 0; border-bottom: 1px solid #e9edf1; vertical-align: top; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; }
th { font-weight: 600; font-size: .86rem; color: #5b6572; }
td small { display: block; line-height: 1.1; white-space: nowrap; }
code { font: .88em ui-monospace, monospace; background: #f3f5f8; padding: .1em .3em; overflow-wrap: anywhere; }
</style>
</head>
<body>
$body
</body>
</html>
""")


INTRODUCTIONS = {
    "In short": (
        "Loss tells how hard a model finds it to guess what comes next; less is better. Bits a note compare with those "
        "of other models, whatever their tokens; nats a token are the same, counted by token. XL memory holds the last "
        "few hundred tokens, kNN memory what was heard of the song before them."
    ),
    "Listen": (
        "The first bars (blue) are those of a song that the models were not trained on; they go on from there (orange)."
    ),
    "What its memory is worth": (
        "Each song is read whole, from an empty memory. In the control it finds, in place of its own past, what is "
        "kept of another song of about its length: what helps there is no memory of this song. A bar is a repeat if "
        "the same notes begin at the same steps as in an earlier bar; a far one if that bar is further back than "
        "the window of the last tokens reaches, in the run where that is longest. Sparse bars have fewer than "
        f"{repeats.FEWEST} notes. Intervals here and below: 95 %, by drawing songs anew 4,000 times (percentile "
        "bootstrap, widened where they are few), in pairs for differences."
    ),
    "A theme that returns": (
        "Four bars, filler from other songs, then the first of the four bars again: loss on the other three, and "
        "how many of their notes the likeliest continuation has. With pitches drawn at random no weights can know a "
        "theme."
    ),
    "What it writes": (
        "Continuations against how the songs really go on, over the same bars: means over songs. They are sampled "
        "as by default, but that loops are let be. Entropy, scale consistency and polyphony are MusPy's."
    ),
}
NOTHING = "-"  # in a table


def cell(interval: Interval | None, digits: int = 3) -> str:
    """The value, and its interval below."""
    if interval is None:
        return NOTHING
    x, low, high = (f"{number:.{digits}f}" for number in interval)
    return f"{x}<small>{low} to {high}</small>"


def in_words(interval: Interval | None) -> str:
    """A difference in nats a token, in words that claim no more than its interval."""
    if interval is None:
        return "not measured"
    x, low, high = interval
    if low == high:
        return f"{x:+.3f} nats a token beside XL memory alone, of a single song"
    if low <= 0 <= high:
        return f"no difference that can be told from chance ({x:+.3f} nats a token, {low:+.3f} to {high:+.3f})"
    least, most = sorted((abs(low), abs(high)))
    return (
        f"{abs(x):.3f} nats a token {'less' if x < 0 else 'more'} than with XL memory alone ({least:.3f} to {most:.3f})"
    )


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Cells are HTML already."""
    lines = ["<tr>" + "".join(f"<th>{x}</th>" for x in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{x}</td>" for x in row) + "</tr>" for row in rows]
    return '<div class="wide"><table>' + "\n".join(lines) + "</table></div>"


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def picture(figure: Figure, caption: str) -> str:
    target = io.BytesIO()
    figure.savefig(target, format="svg", metadata={"Date": None})
    uri = data_uri("image/svg+xml", target.getvalue())
    return f'<figure><img src="{uri}" alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'


def piano_roll(song: Song, prompt_end: int, title: str) -> str:
    target = io.BytesIO()
    draw(target, song, prompt_end=prompt_end, title=title)
    return f'<figure><img src="{data_uri("image/png", target.getvalue())}" alt="Piano roll: {escape(title)}"></figure>'


def player(song: Song) -> str:
    """A player, and the MIDI file to take along."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "song.mid"
        write_song(path, song)
        midi, sound = data_uri("audio/midi", path.read_bytes()), data_uri("audio/mpeg", render.mp3(path))
    return f'<audio controls src="{sound}"></audio><a class="small" download="song.mid" href="{midi}">MIDI file</a>'


def _in_short(runs: dict[str, Any]) -> str:
    """What the figures say of the kNN memories, in sentences."""
    parts = []
    for name, run in runs.items():
        losses, probed = run["losses"], run.get("probe")
        if OWN not in losses["all"]:
            continue
        far = losses["by repetition"][repeats.FAR]
        places = {"Whole songs": losses["all"], "Bars that come back from beyond the window": far}
        places |= {f"Bars {bars}": losses["by bars"][bars] for bars in ("32 to 63", "64 and beyond")}
        said = [
            f"{place}, with the kNN memory: {in_words(cells.get(OWN))}. With another song's in its place: "
            f"{in_words(cells.get(OTHER))}."
            for place, cells in places.items()
            if cells.get(OWN) is not None
        ]
        if far.get(OWN) is None:
            said.append("No bar comes back from beyond the window, where a kNN memory has most to tell.")
        if probed:
            f1 = {arm: "{:.2f} ({:.2f} to {:.2f})".format(*x[-1]) for arm, x in probed[RANDOM]["F1"].items()}
            said.append(
                f"A random theme after {probed['distances'][-1]:g} contexts of other music, note F1: {f1[arms.KNN]}. "
                f"With XL memory alone: {f1[arms.XL]}. Where another theme was heard: {f1[OTHER_THEME]}."
            )
        parts.append(f"<h3>{escape(name)}</h3><ul>" + "".join(f"<li>{x}</li>" for x in said) + "</ul>")
    return "\n".join(parts)


def _runs_table(runs: dict[str, Any]) -> str:
    rows = []
    for name, run in runs.items():
        about, losses = run["about"], run["losses"]
        arm = next(arm for arm in (arms.KNN, arms.XL, arms.NONE) if arm in losses["all"])
        sizes = (f"{about[key]:,}" for key in ("parameters", "tokens", "XL memory", "kNN memory"))
        units = (cell(losses[f"bits a {unit}"][arm], 2) for unit in ("note", "beat", "second"))
        rows.append([escape(name), *sizes, *units, cell(losses["all"][arm])])
    head = ["run", "parameters", "trained on tokens", "XL slots", "kNN slots"]
    return table([*head, "bits a note", "bits a beat", "bits a second", "nats a token"], rows)


def _losses(runs: dict[str, Any]) -> str:
    parts = []
    for name, run in runs.items():
        losses = run["losses"]
        names = list(losses["all"])
        rows = [["all", *(cell(losses["all"][arm]) for arm in names)]]
        for group in ("by what is said", "by bars", "by repetition"):
            if group not in losses:
                continue
            title = "bars " if group == "by bars" else "bars, " if group == "by repetition" else ""
            rows += [[title + x, *(cell(cells.get(arm)) for arm in names)] for x, cells in losses[group].items()]
        parts.append(f"<h3>{escape(name)}</h3>" + table(["nats a token", *map(escape, names)], rows))
    return "\n".join(parts)


def _memory(result: dict[str, Any]) -> str:
    parts = []
    for name, run in result["runs"].items():
        if OWN in run["losses"]["all"]:
            labels = {"its own kNN memory": (OWN, arms.KNN), "another song's (control)": (OTHER, arms.ANOTHER)}
            series = {x: (run["losses"], what, COLOURS[arm]) for x, (what, arm) in labels.items()}
            figure = figures.differences(series, "nats a token,\nless than 0: better than XL memory alone")
            parts.append(picture(figure, f"{name}: what the kNN memory adds to XL memory, from one checkpoint."))
    if result["comparison"]:
        series = {
            name: (scores, name, RUNS[(i + 1) % len(RUNS)])
            for i, (name, scores) in enumerate(result["comparison"].items())
        }
        figure = figures.differences(series, "nats a token,\nless than 0: the first run is better")
        parts.append(picture(figure, "Runs against each other, each with all memories that it was trained with."))
        first = next(iter(result["comparison"].values()))
        head = ["nats a token", "all", *(f"bars {x}" for x in first["by bars"]), *first["by repetition"]]
        rows = []
        for name, scores in result["comparison"].items():
            groups = [scores["all"], *scores["by bars"].values(), *scores["by repetition"].values()]
            rows.append([escape(name), *(cell(cells.get(name)) for cells in groups)])
        parts.append(table(head, rows))
    return "\n".join(parts)


def _probe(runs: dict[str, Any]) -> str:
    parts = []
    for name, run in runs.items():
        if probed := run.get("probe"):
            caption = f"{name}: {probed['themes']} themes; a context is {probed['context']} tokens."
            about, forgets = run["about"], None
            if about["kNN memory"]:
                forgets = (about["kNN memory"] + about["XL memory"]) / probed["context"]
                caption += f" Here the ring is long enough; that of training forgets after {forgets:.1f} contexts"
                shown = forgets <= 2 * max(probed["distances"])
                caption, forgets = caption + " (dotted)." * shown + "." * (not shown), forgets if shown else None
            parts.append(picture(figures.recall(probed, (UNSEEN, RANDOM), forgets), caption))
    return "\n".join(parts)


def _inside(runs: dict[str, Any], names: Sequence[str]) -> str:
    parts = []
    for name, run in runs.items():
        if found := run.get("inside"):
            caption = f"{name}: which bars the memory found for which, by their share of the heads' attention."
            parts.append(picture(figures.matrices(found, names), caption))
            parts.append(picture(figures.inside(found), f"{name}: how much it counts, and how old its hits are."))
    return "\n".join(parts)


def _likeness(found: dict[str, Any]) -> str:
    columns = {"the songs themselves": found["real"], **found["written"]}
    measures = dict.fromkeys(name for column in columns.values() for name in column["measures"])
    rows = [[name, *(cell(column["measures"].get(name), 2) for column in columns.values())] for name in measures]
    rows.insert(0, ["stretches with notes", *(f"{column['stretches with notes']}" for column in columns.values())])
    errors = [column["similarity error"] for column in found["written"].values()]
    rows.append(["distance of the curve below", "0", *(NOTHING if x is None else f"{x:.3f}" for x in errors)])
    curves = {name: column["self-similarity"] for name, column in columns.items()}
    caption = "How much of a bar comes back so many bars later: mean over songs, and interval."
    head = [f"{found['songs']} songs", *map(escape, columns)]
    return table(head, rows) + picture(figures.self_similarity(found["lags"], curves), caption)


def _listen(pairs: dict[str, list[Pair]], titles: Sequence[str]) -> str:
    """Songs to be heard: each run's continuation, then how the song itself goes on."""
    parts = []
    for title, *takes in zip(titles, *pairs.values(), strict=False):
        parts.append(f"<h3>{escape(title)}</h3>")
        for name, pair in zip(pairs, takes, strict=True):
            parts.append(piano_roll(pair.take.song, pair.take.begins, f"{title}, continued by {name}"))
            parts.append(f'<p class="small">{escape(name)}: {escape(pair.take.summary())}</p>')
            parts.append(player(pair.take.song))
        parts.append(f'<p class="small">How the song itself goes on:</p>{player(takes[0].begun.real)}')
    return "\n".join(parts)


def _circumstances(result: dict[str, Any]) -> str:
    environment = result["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    said = (
        f"{result['date']}; commit {environment['commit'][:12] or 'unknown'}; {environment['processor']}, "
        f"{environment['cores']} cores; Python {environment['python']}, {versions}. "
        f"Corpus {result['corpus']['fingerprint']}."
    )
    return f"<p><code>{escape(result['command'])}</code></p><p class='small'>{escape(said)}</p>"


def page(result: dict[str, Any], pairs: dict[str, list[Pair]], titles: Sequence[str]) -> str:
    """The whole page.

    Args:
        result: what goes to report.json.
        pairs: of each run, the same songs continued, to be listened to.
        titles: of these songs.
    """
    runs, corpus = result["runs"], result["corpus"]
    sections = {
        "In short": _in_short(runs) + _runs_table(runs),
        "Listen": _listen(pairs, titles),
        "What its memory is worth": _memory(result),
        "A theme that returns": _probe(runs),
        "Inside the memory": _inside(runs, corpus["names"]),
        "What it writes": _likeness(result["likeness"]),
        "All losses": _losses(runs),
        "How it was made": _circumstances(result),
    }
    title = f"What {', '.join(runs)} remember{'s' * (len(runs) == 1)}"
    read = f"{corpus['songs']} songs of the {corpus['split']} split, {corpus['tokens']:,} tokens"
    body = [f"<h1>{escape(title)}</h1>", f"<p class='small'>{read}.</p>"]
    for name, content in sections.items():
        if content:
            body += [f"<h2>{name}</h2>", f"<p>{INTRODUCTIONS[name]}</p>" if name in INTRODUCTIONS else "", content]
    return PAGE.substitute(title=escape(title), body="\n".join(body))
