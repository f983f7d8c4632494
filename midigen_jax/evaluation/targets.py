"""Targets: what music reaches that can't be told from songs at first sight, and what a run reaches."""

from typing import Any, NamedTuple

from ..music.quality import LONGEST_CHORD
from .bootstrap import Interval
from .takes import DENSE, LOOP, RETURNS, WITH, WITHOUT

HARMONY = ("chords per bar", "bass movement", "stutter")  # in the first and the last bars of continuations
NEAR, RETURN, END = 0.2, 0.3, 0.5


class Target(NamedTuple):
    what: str
    limit: str  # in words; "" if there is none
    value: float | None  # None: nothing was measured
    interval: Interval | None
    met: bool | None  # None: nothing was measured, or there is no limit


def _beside(what: str, written: Interval | None, real: Interval | None, distance: float) -> Target:
    """That a mean is about the songs' own."""
    limit = f"{1 - distance:.1f} to {1 + distance:.1f} times the songs'"
    if written is None or real is None:
        return Target(what, limit, None, None, None)
    if real.value == 0:  # of which there is no multiple
        return Target(what, limit, None, None, written.value == 0)
    times = Interval(*(x / real.value for x in written))
    return Target(what, limit, times.value, times, abs(times.value - 1) <= distance)


def _none(what: str, share: Interval | None) -> Target:
    value = None if share is None else share.value
    return Target(what, "none", value, share, None if value is None else value == 0)


def targets(name: str, generated: dict[str, Any], takes: dict[str, Any] | None) -> list[Target]:
    """The targets, and what a run reaches.

    The intervals of what is given as a multiple of the songs' are those of the run's mean alone.

    Args:
        generated: "generation metrics" of the report.
        takes: "long takes" of it, if there are any.
    """
    real, written, found = generated["real"], generated["written"][name], []
    for part, of_songs in real["parts"].items():
        for metric in HARMONY:
            value = written["parts"][part].get(metric)
            found.append(_beside(f"continuations: {metric}, {part}", value, of_songs.get(metric), NEAR))
    chord = f"continuations: one chord for over {LONGEST_CHORD} bars, and for longer than in the prompt"
    found.append(_none(chord, written["faults"]["one chord"]))
    told = (generated.get("classifier") or {}).get(name)
    area = told["area"] if told else None
    found.append(Target("continuations: area under the classifier's ROC curve", "", area and area.value, area, None))
    if takes is None:
        return found
    for kind in (WITHOUT, WITH):
        of_run, of_songs = takes["written"][name][kind], takes["songs"][kind]
        for share in (DENSE, LOOP):
            found.append(_none(f"long takes {kind}: {share}", of_run["shares"][share]))
        found.append(_beside(f"long takes {kind}: {RETURNS}", of_run[RETURNS], of_songs[RETURNS], RETURN))
        ends = of_run["ends in time"]
        met = None if ends is None else ends.value >= END
        what = f"long takes {kind}: end by themselves within twice the songs' median length"
        found.append(Target(what, f"at least {END:g}", ends and ends.value, ends, met))
    return found
