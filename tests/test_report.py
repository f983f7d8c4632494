"""The whole evaluation of two tiny runs, and the page that it writes."""

import json
import re

import pytest
from test_model import changed

from midigen_jax import arms, cli, evaluate, figures, train
from midigen_jax.probe import OTHER_THEME


@pytest.fixture(scope="module")
def runs(small, corpus, tmp_path_factory):
    """One with both memories, and one with none."""
    folder = tmp_path_factory.mktemp("runs")
    short = changed(small, train__steps=2, train__validate_every=2, train__save_every=2)
    train.train(changed(short, memory__knn=256), corpus.path, folder / "both")
    train.train(changed(short, memory__xl=0, memory__knn=0), corpus.path, folder / "none")
    return folder


@pytest.fixture(scope="module")
def written(runs, corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "compared"
    arguments = ["--data", str(corpus.path), "--split", "validation", "--out", str(out)]
    small = ["--songs", "3", "--takes", "2", "--bars", "2", "--themes", "2", "--furthest", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["evaluate", str(runs / "both"), str(runs / "none"), *arguments, *small])
        cli.run(evaluate.main)
    return out


def test_the_page_holds_all_it_shows(written):
    page = (written / "report.html").read_text()
    assert not re.search(r"<script|<iframe|@import|url\(", page)
    sources = re.findall(r'(?:src|href)="([^"]{0,40})', page)
    assert all(source.startswith("data:") for source in sources)
    assert len(re.findall("<audio controls", page)) == 2 * (2 + 1)  # two songs: by each run, and as they are
    assert len(re.findall("<img ", page)) >= 2 * 2 + 6
    assert all(f">{title}</h2>" in page for title in ("In short", "Listen", "Inside the memory", "What it writes"))
    assert "nan" not in re.sub(r'"data:[^"]*"', "", page).lower().replace("finance", "")
    assert sorted(path.name for path in written.iterdir()) == [
        "report.html",
        "report.json",
        "sample.mid",
        "sample.png",
        "sample.wav",
    ]


def test_the_figures_are_those_of_all_arms(written):
    found = json.loads((written / "report.json").read_text())
    both, none = (found["runs"][name] for name in ("both", "none"))
    assert {arms.NONE, arms.XL, arms.KNN, arms.ANOTHER} <= set(both["losses"]["all"])
    assert set(none["losses"]["all"]) == {arms.NONE}
    assert "inside" not in none
    assert both["about"]["steps"] == 2
    assert both["about"]["tokens"] == 2 * 3 * 16 * 2
    assert set(both["probe"]["random pitches"]["F1"]) == {arms.KNN, arms.XL, OTHER_THEME}
    assert set(none["probe"]["random pitches"]["F1"]) == {arms.NONE}
    compared = found["comparison"]["both less none"]["all"]
    difference = both["losses"]["all"][arms.KNN][0] - none["losses"]["all"][arms.NONE][0]
    assert compared["both less none"][0] == pytest.approx(difference)


def test_what_does_not_fit_is_said_in_a_line(runs, corpus, monkeypatch, capsys):
    twice = [str(runs / "both"), str(runs / "both")]
    for arguments, message in (
        (twice, "another run has the name both too"),
        ([twice[0], "--takes", "0"], "--takes 0: give at least 1"),
        ([twice[0], "--themes", "1"], "--themes 1: another theme is the control"),
    ):
        monkeypatch.setattr("sys.argv", ["evaluate", *arguments, "--data", str(corpus.path)])
        with pytest.raises(SystemExit):
            cli.run(evaluate.main)
        assert message in capsys.readouterr().err


def test_names_are_drawn_as_they_are():
    """Neither formulas nor hidden from legends, whatever bytes a file's name has."""
    assert figures._plain("a$b_$c.mid") == r"a\$b_\$c.mid"
    assert figures._plain("_mine") == " _mine"
    assert figures._plain("b\udcff.mid") == "b?.mid"


def test_the_probe_is_drawn_over_its_distances():
    probed = {"context": 384, "distances": [0.5, 1, 2], "any": {"nats": {arms.XL: [(1, 0.9, 1.1)] * 3}, "F1": {}}}
    for forgets in (None, 3.0):
        axes = figures.recall(probed, ["any"], forgets).axes[0]
        assert 0.3 < axes.get_xlim()[0] < axes.get_xlim()[1] < 4
