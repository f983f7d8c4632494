"""The evaluation's report: tables, plots, piano rolls and players in one HTML file.

All pictures and sounds are embedded in the page, and it contains no scripts.
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

from ..music import audio
from ..music.midi import write_song
from ..music.piano_roll import draw
from ..music.song import Song
from . import ablations, copying, plots, repeats
from .ablations import difference_name
from .bootstrap import RESAMPLES, Interval
from .generation_metrics import Pair
from .plots import COLOURS, RUNS
from .recall_probe import CHANGED, KINDS, OTHER_THEME, RANDOM, SHIFTS

OWN = difference_name(ablations.KNN, ablations.XL)
OTHER = difference_name(ablations.OTHER_KNN, ablations.XL)
NOTHING = "-"  # in a table
DRIFT = ("notes per beat", "chords per bar", "bass movement", "stutter")  # metrics of the first and the last bars

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


def introductions(reach: int) -> dict[str, str]:
    """What a reader has to know of some sections.

    Args:
        reach: in tokens, of `repeats.kinds_of_bars`.
    """
    return {
        "Summary": (
            "Loss measures how hard it is for a model to predict the next token; lower is better. Bits per note can be "
            "compared with those of other models, whatever their tokens; nats per token are the same loss, counted by "
            "token. XL memory holds the last few hundred tokens, kNN memory the part of the song before them."
        ),
        "Continuations": (
            "The first bars (blue) are from a song that the models were not trained on; they continue it (orange)."
        ),
        "Effect of the memories": (
            "Each song is read whole, from an empty memory. In the control the model sees another song's kNN memory, "
            "of about the same length, in place of its own; what helps there is not memory of this song. A bar is a "
            "repeat if the same pitches begin at the same positions as in an earlier bar. A repeat is far if that bar "
            f"ended more than {reach:,} tokens before, further back than any layer attends directly (XL memory and a "
            "segment; with several runs, the longest). Stacked layers pass information on, so that some of it arrives "
            "from further back even without kNN memory: from up to that many tokens for each layer. A varied bar "
            f"repeats none, but shares at least {repeats.SHARED_NOTES:.0%} of its notes and "
            f"{repeats.SHARED_ONSETS:.0%} of its onsets with an earlier bar of the same key. Sparse bars have "
            f"fewer than {repeats.FEWEST} notes. Here and below, intervals are 95 % confidence intervals from "
            f"{RESAMPLES:,} resamples of the songs (percentile bootstrap, widened for few songs; paired for "
            "differences)."
        ),
        "Copying": (
            "What plain copying from the song so far adds to each model. The copier predicts what followed the most "
            "recent of the longest earlier occurrences of the last tokens; what it adds, the model's memory has "
            "missed. That of tokens and intervals copies what is transposed, too. The n-grams of the song count what "
            f"followed the last {copying.LENGTHS[0]} to {copying.LENGTHS[-1]} tokens and know the song's scale and "
            "habits as well. How far each is trusted is fitted to the other half of the songs "
            "(for a single song to none). In the last column songs are compared in pairs; below 0 the first model "
            "without a copier is better."
        ),
        "Recall probe": (
            "The model reads four bars, filler from other songs, then the first of the four bars again. Shown are its "
            "loss on the other three bars, and how many of their notes its greedy continuation contains. If the "
            "pitches are drawn at random, nothing that the model learned in training can help. These themes return as "
            f"they were, 1 to {SHIFTS[-1]} semitones transposed, or with {CHANGED[0]:.0%} to {CHANGED[1]:.0%} of "
            "their notes changed."
        ),
        "Generation metrics": (
            "The models' continuations beside the real ones, over the same bars: means over songs. They are sampled "
            "with the default settings, except that loops are allowed. Polyphony, pitch-class entropy and scale "
            "consistency are defined as in MusPy. A chord is the triad that fits best what sounds in half a bar "
            "(chords per bar) or a bar; bass movement is the share of beats with another lowest pitch than the beat "
            "before; stutter is the share of notes that repeat a pitch within less than a sixteenth; a bar comes back "
            "if 80 % of its notes are those of an earlier bar. A distance of distributions is 0 if they are the same, "
            "and 1 if they have nothing in common. A classifier that was trained on windows of 8 bars of other songs "
            "tells written from real music; the area under its ROC curve is 0.5 if it can't, and 1 if it always can."
        ),
    }


def cell(interval: Interval | None, digits: int = 3) -> str:
    """The value, and its interval below."""
    if interval is None:
        return NOTHING
    x, low, high = (f"{number:.{digits}f}" for number in interval)
    return f"{x}<small>{low} to {high}</small>" if interval.low < interval.high else x  # a single song has none


def in_words(interval: Interval | None) -> str:
    """A difference from XL memory alone in words that claim no more than its interval does."""
    if interval is None:
        return "not measured"
    x, low, high = interval
    if x == low == high == 0:
        return "exactly the loss of XL memory alone"
    if low == high:
        return f"{x:+.3f} nats per token compared with XL memory alone, for a single song"
    if low <= 0 <= high:
        return f"no significant difference from XL memory alone ({x:+.3f} nats per token, {low:+.3f} to {high:+.3f})"
    least, most = sorted((abs(low), abs(high)))
    direction = "lower" if x < 0 else "higher"
    return f"{abs(x):.3f} nats per token {direction} than with XL memory alone ({least:.3f} to {most:.3f})"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table whose cells are HTML already."""
    lines = ["<tr>" + "".join(f"<th>{x}</th>" for x in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{x}</td>" for x in row) + "</tr>" for row in rows]
    return '<div class="wide"><table>' + "\n".join(lines) + "</table></div>"


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def plot(figure: Figure, caption: str) -> str:
    target = io.BytesIO()
    figure.savefig(target, format="svg", metadata={"Date": None})
    uri = data_uri("image/svg+xml", target.getvalue())
    return f'<figure><img src="{uri}" alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'


def piano_roll(song: Song, prompt_end: int, title: str) -> str:
    target = io.BytesIO()
    draw(target, song, prompt_end=prompt_end, title=title)
    return f'<figure><img src="{data_uri("image/png", target.getvalue())}" alt="Piano roll: {escape(title)}"></figure>'


def player(song: Song) -> str:
    """A player, and the MIDI file to download."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "song.mid"
        write_song(path, song)
        midi, sound = data_uri("audio/midi", path.read_bytes()), data_uri("audio/mpeg", audio.mp3(path))
    return f'<audio controls src="{sound}"></audio><a class="small" download="song.mid" href="{midi}">MIDI file</a>'


def _summary(runs: dict[str, Any]) -> str:
    """What the figures say about the kNN memories, in sentences."""
    parts = []
    for name, run in runs.items():
        losses, probed = run["losses"], run.get("probe")
        if OWN not in losses["all"]:
            continue
        far = losses["by repetition"][repeats.FAR]
        groups = {"Whole songs": losses["all"], "Far repeats": far}
        groups |= {f"Bars {bars}": losses["by bars"][bars] for bars in ("32 to 63", "64 and beyond")}
        sentences = [
            f"{group}, with the kNN memory: {in_words(means.get(OWN))}. With another song's in its place: "
            f"{in_words(means.get(OTHER))}."
            for group, means in groups.items()
            if means.get(OWN) is not None
        ]
        if far.get(OWN) is None:
            sentences.append("These songs have no far repeats, where a kNN memory can help most.")
        if probed:
            f1 = {case: "{:.2f} ({:.2f} to {:.2f})".format(*x[-1]) for case, x in probed[RANDOM]["F1"].items()}
            sentences.append(
                f"Recall of random themes after {probed['distances'][-1]:g} contexts of filler, as note F1: "
                f"{f1[ablations.KNN]} with the kNN memory, {f1[ablations.XL]} with XL memory alone, and "
                f"{f1[OTHER_THEME]} if another theme came before the filler."
            )
        parts.append(f"<h3>{escape(name)}</h3><ul>" + "".join(f"<li>{x}</li>" for x in sentences) + "</ul>")
    return "\n".join(parts)


def _runs_table(runs: dict[str, Any]) -> str:
    rows = []
    for name, run in runs.items():
        about, losses, complete = run["about"], run["losses"], run["complete"]
        sizes = (f"{about[key]:,}" for key in ("parameters", "tokens", "XL memory", "kNN memory"))
        units = (cell(losses[f"bits per {unit}"][complete], 2) for unit in ("note", "beat", "second"))
        rows.append([escape(name), *sizes, *units, cell(losses["all"][complete])])
    head = ["run", "parameters", "training tokens", "XL slots", "kNN slots"]
    return table([*head, "bits per note", "bits per beat", "bits per second", "nats per token"], rows)


def _all_losses(runs: dict[str, Any]) -> str:
    parts = []
    for name, run in runs.items():
        losses = run["losses"]
        names = list(losses["all"])
        rows = [["all", *(cell(losses["all"][x]) for x in names)]]
        for group in ("by token type", "by bars", "by repetition"):
            if group not in losses:
                continue
            title = "bars " if group == "by bars" else "bars, " if group == "by repetition" else ""
            rows += [[title + x, *(cell(means.get(y)) for y in names)] for x, means in losses[group].items()]
        parts.append(f"<h3>{escape(name)}</h3>" + table(["nats per token", *map(escape, names)], rows))
    return "\n".join(parts)


def _memories(result: dict[str, Any]) -> str:
    parts = []
    for name, run in result["runs"].items():
        if OWN in run["losses"]["all"]:
            labels = {"its own kNN memory": (OWN, ablations.KNN), "another song's": (OTHER, ablations.OTHER_KNN)}
            series = {x: (run["losses"], what, COLOURS[ablation]) for x, (what, ablation) in labels.items()}
            figure = plots.differences(series, "nats per token,\nbelow 0: better than XL memory alone")
            parts.append(plot(figure, f"{name}: what the kNN memory adds to XL memory, with the same parameters."))
    if result["comparison"]:
        series = {
            name: (scores, name, RUNS[(i + 1) % len(RUNS)])
            for i, (name, scores) in enumerate(result["comparison"].items())
        }
        figure = plots.differences(series, "nats per token,\nbelow 0: the first run is better")
        parts.append(plot(figure, "Runs compared, each with all memories that it was trained with."))
        first = next(iter(result["comparison"].values()))
        head = ["nats per token", "all", *(f"bars {x}" for x in first["by bars"]), *first["by repetition"]]
        rows = []
        for name, scores in result["comparison"].items():
            groups = [scores["all"], *scores["by bars"].values(), *scores["by repetition"].values()]
            rows.append([escape(name), *(cell(means.get(name)) for means in groups)])
        parts.append(table(head, rows))
    return "\n".join(parts)


def _copying(result: dict[str, Any]) -> str:
    """Every run alone and with each copier, and the first run's difference from all of them."""
    first, *_ = result["runs"]
    compared, rows = result["comparison"] | result["comparison with copiers"], []
    for name, run in result["runs"].items():
        complete, losses = run["complete"], run["losses"]
        for what in [x for x in losses["bits per note"] if x == complete or x.startswith(f"{complete} + ")]:
            label = name + what.removeprefix(complete)
            difference = difference_name(first, label)
            less = compared[difference]["all"][difference] if difference in compared else None  # of the first alone
            groups = [losses["all"], *losses["by repetition"].values()]
            values = [cell(losses["bits per note"][what], 2), *(cell(x.get(what)) for x in groups)]
            rows.append([escape(label), *values, cell(less)])
    head = ["nats per token", "bits per note", "all", *repeats.KINDS, f"{escape(first)} alone minus this"]
    return table(head, rows)


def _recall_probe(runs: dict[str, Any]) -> str:
    parts = []
    for name, run in runs.items():
        if probed := run.get("probe"):
            caption = f"{name}: {probed['themes']} themes; a context is {probed['context']} tokens."
            about, memory_end = run["about"], None
            if about["kNN memory"]:
                contexts = (about["kNN memory"] + about["XL memory"]) / probed["context"]
                if contexts <= 2 * max(probed["distances"]):
                    memory_end = contexts
                caption += " The ring of the probe holds all of it; that of training ends"
                caption += f" after {contexts:.1f} contexts{' (dotted)' if memory_end else ''}."
            parts.append(plot(plots.recall(probed, KINDS, memory_end), caption))
    return "\n".join(parts)


def _retrieval_analysis(runs: dict[str, Any], names: Sequence[str]) -> str:
    parts = []
    for name, run in runs.items():
        if found := run.get("retrieval analysis"):
            if found["matrices"]:
                caption = f"{name}: the share of the heads' attention that each bar pays to earlier bars in the memory."
                parts.append(plot(plots.bar_matrices(found["matrices"], names), caption))
            caption = f"{name}: the memory's share of the attention, and the age of its hits."
            parts.append(plot(plots.retrieval(found), caption))
    return "\n".join(parts)


def _classifier(told: dict[str, Any]) -> str:
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


def _generation_metrics(found: dict[str, Any]) -> str:
    columns = {"the songs themselves": found["real"], **found["written"]}
    metrics = dict.fromkeys(name for column in columns.values() for name in column["metrics"])
    rows = [[name, *(cell(column["metrics"].get(name), 2) for column in columns.values())] for name in metrics]
    rows.insert(0, ["excerpts with notes", *(f"{column['excerpts with notes']}" for column in columns.values())])
    for part in found["real"]["parts"]:
        for name in DRIFT:
            values = (column["parts"][part].get(name) for column in columns.values())
            rows.append([f"{name}, {part}", *(cell(value, 2) for value in values)])
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
        + _classifier(found.get("classifier", {}))
        + plot(plots.self_similarity(found["lags"], curves), caption)
    )


def _continuations(pairs: dict[str, list[Pair]], titles: Sequence[str]) -> str:
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


def _environment(result: dict[str, Any]) -> str:
    environment = result["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    text = (
        f"{result['date']}; commit {environment['commit'][:12] or 'unknown'}; {environment['processor']}, "
        f"{environment['cores']} cores; Python {environment['python']}, {versions}. "
        f"Corpus {result['corpus']['fingerprint']}."
    )
    return f"<p><code>{escape(result['command'])}</code></p><p class='small'>{escape(text)}</p>"


def page(result: dict[str, Any], pairs: dict[str, list[Pair]], titles: Sequence[str]) -> str:
    """The whole page.

    Args:
        result: the contents of report.json.
        pairs: for each run the same songs, continued, which the page plays.
        titles: of these songs.
    """
    runs, corpus = result["runs"], result["corpus"]
    sections = {
        "Summary": _summary(runs) + _runs_table(runs),
        "Continuations": _continuations(pairs, titles),
        "Effect of the memories": _memories(result),
        "Copying": _copying(result),
        "Recall probe": _recall_probe(runs),
        "Retrieval analysis": _retrieval_analysis(runs, corpus["names"]),
        "Generation metrics": _generation_metrics(result["generation metrics"]),
        "All losses": _all_losses(runs),
        "Environment": _environment(result),
    }
    title = f"Evaluation of {', '.join(runs)}"
    read = f"{corpus['songs']} songs of the {corpus['split']} split, {corpus['tokens']:,} tokens"
    body = [f"<h1>{escape(title)}</h1>", f"<p class='small'>{read}.</p>"]
    texts = introductions(corpus["reach"])
    for name, content in sections.items():
        if content:
            body += [f"<h2>{name}</h2>", f"<p>{texts[name]}</p>" if name in texts else "", content]
    return PAGE.substitute(title=escape(title), body="\n".join(body))
