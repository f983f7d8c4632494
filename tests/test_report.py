"""The whole evaluation of two tiny runs, and the page that it writes."""

import contextlib
import json
import re

import numpy as np
import pytest
from small_models import build, changed

from midigen_jax.cli import command, evaluate
from midigen_jax.evaluation import ablations, plots, report
from midigen_jax.evaluation.ablations import difference_name
from midigen_jax.evaluation.bootstrap import Interval
from midigen_jax.evaluation.copying import COPIER, INTERVALS, NGRAMS
from midigen_jax.evaluation.evaluate import read_songs, score
from midigen_jax.evaluation.recall_probe import OTHER_THEME
from midigen_jax.run import trained
from midigen_jax.run.checkpoint import Checkpoints, meta_of
from midigen_jax.run.trained import TrainedModel
from midigen_jax.training import losses


@pytest.fixture(scope="module")
def runs(small, corpus, tmp_path_factory):
    """Two checkpoints of a model with both memories, and an exported model with none."""
    folder = tmp_path_factory.mktemp("runs")
    tiny = changed(small, model__layers=1, memory__knn_layer=1)  # compiles faster
    both, none = changed(tiny, memory__knn=256), changed(tiny, memory__xl=0, memory__knn=0)
    with contextlib.closing(Checkpoints(folder / "both", keep=2)) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"params": build(both, seed=step)[1]}, meta_of(both, corpus))
            checkpoints.wait()
    model = TrainedModel(none, build(none)[1], corpus.vocabulary, step=2, corpus=corpus.fingerprint)
    trained.export(folder / "none.safetensors", model)
    return folder


@pytest.fixture(scope="module")
def written(runs, corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "compared"
    arguments = ["--data", str(corpus.path), "--split", "validation", "--out", str(out)]
    small = ["--songs", "3", "--takes", "2", "--bars", "2", "--themes", "2", "--furthest", "0.5"]
    small += ["--long-takes", "2", "--long-bars", "3", "--listening", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["evaluate", str(runs / "both"), str(runs / "none.safetensors"), *arguments, *small])
        command.run(evaluate.main)
    return out


def test_the_page_is_self_contained_and_complete(written):
    page = (written / "report.html").read_text()
    assert not re.search(r"<script|<iframe|@import|url\(", page)
    sources = re.findall(r'(?:src|href)="([^"]{0,40})', page)
    assert all(source.startswith("data:") for source in sources)
    assert len(re.findall("<audio controls", page)) == 2 * (2 + 1)  # two songs: each run's and the real
    assert len(re.findall("<img ", page)) >= 2 * 2 + 6
    sections = "Summary", "Continuations", "Retrieval analysis", "Targets", "Generation metrics"
    assert all(f">{title}</h2>" in page for title in (*sections, "Long takes", "Originality"))
    copied = [
        f"{run}{copier}"
        for run in ("both", "none")
        for copier in ("", *(f" + {x}" for x in (COPIER, INTERVALS, NGRAMS)))
    ]
    table = page[page.index("both alone minus this") :]
    assert [name for name in re.findall(r"<tr><td>([^<]+)</td>", table) if name in copied] == copied
    assert "nan" not in re.sub(r'"data:[^"]*"', "", page).lower().replace("finance", "")
    assert sorted(path.name for path in written.iterdir()) == [
        "listening.html",
        "report.html",
        "report.json",
        "sample.mid",
        "sample.png",
        "sample.wav",
    ]


def test_the_figures_are_those_of_all_ablations(written):
    found = json.loads((written / "report.json").read_text())
    both, none = (found["runs"][name] for name in ("both", "none"))
    assert {ablations.NONE, ablations.XL, ablations.KNN, ablations.OTHER_KNN} <= set(both["losses"]["all"])
    copied = {f"{ablations.NONE} + {name}" for name in (COPIER, INTERVALS, NGRAMS)}
    differences = {difference_name(name, ablations.NONE) for name in copied}
    assert set(none["losses"]["all"]) == {ablations.NONE, *copied, *differences}
    assert set(found["comparison with copiers"]) == {
        f"both minus {run} + {x}" for run in ("both", "none") for x in (COPIER, INTERVALS, NGRAMS)
    }
    assert "retrieval analysis" in both
    assert "retrieval analysis" not in none
    assert set(found["generation metrics"]["written"]) == {"both", "none"}
    assert both["about"]["steps"] == none["about"]["steps"] == 2
    assert both["about"]["tokens"] == 2 * 3 * 16 * 2
    assert set(both["probe"]["random pitches"]["F1"]) == {ablations.KNN, ablations.XL, OTHER_THEME}
    assert set(none["probe"]["random pitches"]["F1"]) == {ablations.NONE}
    compared = found["comparison"]["both minus none"]["all"]
    difference = both["losses"]["all"][ablations.KNN][0] - none["losses"]["all"][ablations.NONE][0]
    assert compared["both minus none"][0] == pytest.approx(difference)


def test_takes_and_checkpoints_are_in_the_figures(written):
    found = json.loads((written / "report.json").read_text())
    takes = found["long takes"]
    assert {kind["takes"] for run in takes["written"].values() for kind in run.values()} == {2}
    assert all(len(kind["beats"]) == 2 for run in takes["written"].values() for kind in run.values())
    assert set(found["originality"]["runs"]) == {"both"}  # the other is an exported file
    assert set(found["originality"]["runs"]["both"]) == {"1", "2"}
    both, none = found["targets"]["both"], found["targets"]["none"]
    assert [x["what"] for x in both] == [x["what"] for x in none]
    assert len(both) == 2 * 3 + 2 + 2 * 4


def test_bad_input_is_reported_in_a_line(runs, corpus, monkeypatch, capsys):
    twice = [str(runs / "both"), str(runs / "both")]
    no_music = corpus.path / "meta.json"
    for arguments, message in (
        ([twice[0], "--data", str(no_music)], f"{no_music}: is a file, not a folder"),
        ([twice[0], "--furthest", "nan"], "--furthest nan: give at least 0.5"),
        (twice, "another run has the name both too"),
        ([twice[0], "--takes", "0"], "--takes 0: give at least 1"),
        ([str(runs / "none.safetensors")], "none.safetensors: is a file; give a folder for the report with --out"),
        ([twice[0], "--themes", "1"], "--themes 1: the control needs another theme"),
    ):
        monkeypatch.setattr("sys.argv", ["evaluate", "--data", str(corpus.path), *arguments])
        with pytest.raises(SystemExit):
            command.run(evaluate.main)
        assert message in capsys.readouterr().err


def test_names_are_drawn_literally():
    """Neither as formulas nor hidden from legends, whatever bytes a file's name has."""
    assert plots._plain("a$b_$c.mid") == r"a\$b_\$c.mid"
    assert plots._plain("_mine") == " _mine"
    assert plots._plain("b\udcff.mid") == "b?.mid"


def test_the_recall_probe_is_drawn_over_its_distances():
    probed = {"context": 384, "distances": [0.5, 1, 2], "any": {"nats": {ablations.XL: [(1, 0.9, 1.1)] * 3}, "F1": {}}}
    for memory_end in (None, 3.0):
        axes = plots.recall(probed, ["any"], memory_end).axes[0]
        assert 0.3 < axes.get_xlim()[0] < axes.get_xlim()[1] < 4


def test_differences_in_words_claim_no_more_than_their_intervals():
    words = report.in_words(Interval(-0.2, -0.3, -0.1))
    assert words == "0.200 nats per token lower than with XL memory alone (0.100 to 0.300)"
    assert "0.100 nats per token higher" in report.in_words(Interval(0.1, 0.05, 0.2))
    assert "no significant difference" in report.in_words(Interval(-0.1, -0.3, 0.1))
    assert "exactly" in report.in_words(Interval(0, 0, 0))
    assert "for a single song" in report.in_words(Interval(-0.1, -0.1, -0.1))


def test_scores_are_the_figures_of_validation(corpus):
    """Both count the same tokens, notes and beats."""
    index = corpus.songs_of("train")[:3]
    songs = read_songs(corpus, index, 48)
    nats = [np.linspace(0, 3, len(sequence.tokens) - 1) for sequence in songs.sequences]
    expected = losses.figures(float(sum(x.sum() for x in nats)), corpus, index)
    found = score({"model": nats}, songs)
    assert found["all"]["model"][0] == pytest.approx(expected.nats_per_token)
    assert found["bits per note"]["model"][0] == pytest.approx(expected.bits_per_note)
    assert found["bits per beat"]["model"][0] == pytest.approx(expected.bits_per_beat)
