"""The originality curve: excerpts of training songs that takes of several checkpoints contain."""

import contextlib

import jax
import numpy as np
import pytest
from small_models import build, changed

from midigen_jax.evaluation import originality, plots
from midigen_jax.run import trained
from midigen_jax.run.checkpoint import Checkpoints, meta_of


@pytest.fixture(scope="module")
def run(small, corpus, tmp_path_factory):
    """Five checkpoints of a tiny run."""
    folder, config = tmp_path_factory.mktemp("run"), changed(small, memory__xl=0, memory__knn=0)
    with contextlib.closing(Checkpoints(folder, keep=9)) as checkpoints:
        for step in (10, 20, 30, 40, 50):
            checkpoints.save(step, {"params": build(config, seed=step)[1]}, meta_of(config, corpus))
            checkpoints.wait()
    return folder


def test_copies_grow_with_training(corpus):
    """Takes that hold 5, 9 and 20 notes of a training song, transposed; those of the last step were measured before."""
    song = corpus.song(int(corpus.songs_of("train")[0]))

    def take(n):
        notes = song.notes[10 : 10 + n].copy()
        notes[:, 2] += 3
        return song._replace(notes=notes)

    older = {"mine": {10: [take(5), take(9), take(0)], 20: [take(20), take(5)]}, "exported": {}}
    found = originality.curves(older, {"mine": (30, [40, 2]), "exported": (7, [3])}, [4, 6, 8], corpus)
    assert found["songs"] == {"longest": [4, 6, 8], "median": 6, "maximum": 8}
    assert found["runs"].keys() == {"mine"}  # the other has one step only
    mine = found["runs"]["mine"]
    assert {step: row["longest"] for step, row in mine.items()} == {10: [5, 9], 20: [20, 5], 30: [40, 2]}
    assert (mine[20]["median"], mine[20]["maximum"]) == (12.5, 20)
    axes = plots.originality(found).axes[0]
    assert {tuple(line.get_ydata()) for line in axes.lines} == {(7, 12.5, 21), (9, 20, 40), (6, 6), (8, 8)}


def test_takes_without_notes_have_no_curve(corpus):
    song = corpus.song(0)
    empty = song._replace(notes=song.notes[:0])
    found = originality.curves({"mine": {10: [empty]}}, {"mine": (20, [])}, [], corpus)
    assert {row["median"] for row in found["runs"]["mine"].values()} == {None}
    assert plots.originality(found).axes[0].lines[:] == []


@pytest.mark.parametrize(("num", "steps"), [(1, [10]), (2, [10, 40]), (3, [10, 30, 40]), (9, [10, 20, 30, 40])])
def test_older_checkpoints_are_spread_over_the_training(run, num, steps):
    assert [model.step for model in trained.load_older(run, 50, num)] == steps


def test_each_has_its_own_parameters_and_a_damaged_one_is_left_out(run, capsys):
    def norm(model):
        return float(sum(np.square(x).sum() for x in jax.tree.leaves(model.params)))

    models = {model.step: norm(model) for model in trained.load_older(run, 51, 9)}
    assert len(set(models.values())) == 5
    assert models[50] == norm(trained.load_run(run))
    meta = run / "checkpoints" / "20" / "meta" / "metadata"
    content = meta.read_bytes()
    try:
        meta.write_bytes(b"x")
        assert [model.step for model in trained.load_older(run, 50, 9)] == [10, 30, 40]
        assert "checkpoint of step 20 is damaged" in capsys.readouterr().out
    finally:
        meta.write_bytes(content)
    assert list(trained.load_older(run, 10, 9)) == []
