"""The votes of a blind listening test (`listening`): which of two continuations a listener preferred.

A file of votes is what the page lets its listener download: JSON with the votes of one listener,

    {"format_version": 1, "page": "…", "votes": [{"pair": 0, "song": "tune.mid",
     "compared": ["mine", "the song itself"], "preferred": "mine"}, …]}

where `preferred` is null if neither was. Light: imports no JAX.
"""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError
from .bootstrap import Interval
from .wilson import wilson

FORMAT_VERSION = 1


class Vote(NamedTuple):
    one: str  # the names of what was compared
    other: str
    preferred: str | None


class Preference(NamedTuple):
    """How often the one was preferred to the other."""

    one: str
    other: str
    preferred: int  # votes for the one
    votes: int  # for either
    undecided: int
    share: Interval | None  # of the votes for either


def read_votes(path: Path) -> list[Vote]:
    """Reads the votes of a file.

    Raises:
        InputError: it can't be read, or holds no votes.
    """
    again = "give a file that was downloaded from listening.html"
    try:
        content = json.loads(path.read_bytes())
        if content["format_version"] != FORMAT_VERSION:
            raise InputError(f"{path}: votes of another format version than {FORMAT_VERSION}; {again}")
        votes = [_vote(vote) for vote in content["votes"]]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; {again}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: no file of votes ({type(error).__name__}: {error}); {again}") from None
    if not votes:
        raise InputError(f"{path}: holds no votes; vote first")
    return votes


def _vote(vote: Any) -> Vote:
    (one, other), preferred = vote["compared"], vote["preferred"]
    if not (isinstance(one, str) and isinstance(other, str) and one != other):
        raise ValueError(f"compared {one!r} and {other!r}")
    if preferred not in (one, other, None):
        raise ValueError(f"preferred {preferred!r} of {one!r} and {other!r}")
    return Vote(one, other, preferred)


def preferences(votes: Iterable[Vote]) -> list[Preference]:
    """The result of each comparison; every vote counts by itself, whoever gave it."""
    counts: dict[tuple[str, str], Counter] = {}
    for one, other, preferred in votes:
        if (other, one) in counts:
            one, other = other, one
        counts.setdefault((one, other), Counter())[preferred] += 1
    found = []
    for (one, other), count in counts.items():
        decided = count[one] + count[other]
        found.append(Preference(one, other, count[one], decided, count[None], wilson(count[one], decided)))
    return found


def in_words(preference: Preference) -> str:
    """The result of a comparison in one line."""
    one, other, preferred, votes, undecided, share = preference
    text = f"{one} preferred to {other}: {preferred} of {votes} votes"
    if share is not None:
        text += f" ({share.value:.0%}, 95 % interval {share.low:.0%} to {share.high:.0%})"
    return text + (f"; no preference: {undecided}" if undecided else "")
