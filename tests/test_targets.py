"""Targets: met, missed, or not measured."""

import pytest

from midigen_jax.evaluation.bootstrap import Interval
from midigen_jax.evaluation.takes import DENSE, LOOP, RETURNS, WITH, WITHOUT
from midigen_jax.evaluation.targets import HARMONY, targets


def exactly(x: float) -> Interval:
    return Interval(x, x, x)


def found(written: float, *, stutter: float = 0.0, chord: float = 0.0, returns: float = 1.0, ends: float = 0.5):
    """The targets by name, for means that are `written` times the songs'."""
    songs = dict.fromkeys(HARMONY, exactly(2.0)) | {"stutter": exactly(0.0)}
    of_run = dict.fromkeys(HARMONY, exactly(2.0 * written)) | {"stutter": exactly(stutter)}
    generated = {
        "real": {"parts": {"last 8 bars": songs}},
        "written": {"run": {"parts": {"last 8 bars": of_run}, "faults": {"one chord": exactly(chord)}}},
        "classifier": {"run": {"area": Interval(0.8, 0.7, 0.9)}},
    }
    shares = {"shares": {DENSE: exactly(0.0), LOOP: exactly(1 / 64)}}
    take = {**shares, RETURNS: exactly(0.3 * returns), "ends in time": exactly(ends)}
    long = {
        "songs": {kind: {RETURNS: exactly(0.3)} for kind in (WITHOUT, WITH)},
        "written": {"run": dict.fromkeys((WITHOUT, WITH), take)},
    }
    return {target.what: target for target in targets("run", generated, long)}


def test_means_are_compared_with_the_songs():
    for written, met in ((0.79, False), (0.81, True), (1.19, True), (1.21, False)):
        target = found(written)["continuations: bass movement, last 8 bars"]
        assert target.value == pytest.approx(written)
        assert target.met is met


def test_of_nothing_there_is_no_multiple():
    assert found(1.0)["continuations: stutter, last 8 bars"][2:] == (None, None, True)
    assert found(1.0, stutter=0.01)["continuations: stutter, last 8 bars"].met is False


def test_shares_of_takes():
    rows = found(1.0, chord=1 / 48, returns=0.69, ends=0.49)
    chord = "continuations: one chord for over 8 bars, and for longer than in the prompt"
    assert rows[chord].met is False
    assert found(1.0)[chord].met is True
    for kind in (WITHOUT, WITH):
        assert rows[f"long takes {kind}: {DENSE}"].met is True
        assert rows[f"long takes {kind}: {LOOP}"].met is False
        assert rows[f"long takes {kind}: {RETURNS}"].met is False
        assert found(1.0, returns=1.29)[f"long takes {kind}: {RETURNS}"].met is True
        assert [row.met for name, row in rows.items() if f"{kind}: end by" in name] == [False]


def test_the_classifier_has_no_limit_and_takes_may_be_missing():
    row = found(1.0)["continuations: area under the classifier's ROC curve"]
    assert (row.interval, row.met) == ((0.8, 0.7, 0.9), None)
    nothing = {"real": {"parts": {"first 8 bars": {}}}, "written": {"run": {"parts": {"first 8 bars": {}}}}}
    nothing["written"]["run"]["faults"] = {"one chord": None}
    assert {row.met for row in targets("run", nothing, None)} == {None}
