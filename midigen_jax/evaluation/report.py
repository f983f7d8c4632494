"""The evaluation's report: tables, plots, piano rolls and players in one HTML file.

All pictures and sounds are embedded in the page, and it contains no scripts.
"""

from collections.abc import Sequence
from html import escape
from typing import Any

from . import ablations, copying, plots, repeats, report_music
from .ablations import difference_name
from .bootstrap import RESAMPLES, Interval
from .generation_metrics import Pair
from .page import PAGE, cell, plot, table
from .plots import COLOURS, RUNS
from .recall_probe import CHANGED, KINDS, OTHER_THEME, RANDOM, SHIFTS

OWN = difference_name(ablations.KNN, ablations.XL)
OTHER = difference_name(ablations.OTHER_KNN, ablations.XL)


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
            "tells written from real music; the area under its ROC curve is 0.5 if it can't, and 1 if it always can. "
            "Faults are what a listener hears at once, unless the prompt has it too."
        ),
        "Targets": (
            "What music reaches that can't be told from songs at first sight, and what the runs reach, with 95 % "
            "intervals: of shares Wilson's, of multiples that of the run's mean alone. The sections below say more."
        ),
        "Long takes": (
            "Music of many bars by the default settings, invented and continued, beside the first bars of the songs "
            "and their own continuations. A bar has too many notes if it has more than twice as many as 99 of 100 "
            "bars of the training songs. Bars are nearly alike if 80 % of the notes that either has are in both; here "
            "each bar is compared with that 1, 2, 3 or 4 bars before. For their lengths the takes are written once "
            "more, and may end at any time."
        ),
        "Originality": (
            "The longest excerpt, transposed or not, that the continuations of the same prompts share with any "
            "training song, by checkpoint: a model that learns its songs by heart copies longer and longer ones. The "
            "songs' own continuations, which nobody copied, share what belongs to the style."
        ),
    }


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
        "Continuations": report_music.continuations(pairs, titles),
        "Effect of the memories": _memories(result),
        "Copying": _copying(result),
        "Recall probe": _recall_probe(runs),
        "Retrieval analysis": _retrieval_analysis(runs, corpus["names"]),
        "Targets": report_music.targets(result["targets"]),
        "Generation metrics": report_music.generation_metrics(result["generation metrics"]),
        "Long takes": report_music.long_takes(result["long takes"]),
        "Originality": report_music.originality(result["originality"]),
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
