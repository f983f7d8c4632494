"""Bars that come back: how far back they were heard last, if ever."""

import numpy as np

from .loops import bar_contents
from .song import Song

NEW, NEAR, FAR, TRANSPOSED, SPARSE = "new", "near repeat", "far repeat", "far repeat, transposed", "sparse"
KINDS = (NEW, NEAR, FAR, TRANSPOSED, SPARSE)
FEWEST = 4  # notes in a bar; those with fewer come back by chance


def kinds_of_bars(song: Song, bar_of_token: np.ndarray, reach: int) -> list[str]:
    """What each bar that holds notes, or lies between such, is.

    A bar is the same as another if the same pitches begin at the same steps; transposed, if they do after a shift of
    all pitches. It is a far repeat if it was heard before, but not within `reach` tokens before it begins, neither as
    it is nor transposed.

    Args:
        bar_of_token: int [N], the bar in which each token of the song begins.
        reach: the tokens that a model without long memory may see.
    """
    bars, kinds = bar_contents(song), []
    first = np.searchsorted(bar_of_token, np.arange(len(bars) + 1))  # a bar's first token
    heard = set()
    last: dict[object, int] = {}  # bar of each content in any key
    for bar, (length, notes) in enumerate(bars):
        lowest = min((pitch for _, pitch in notes), default=0)
        in_any_key = (length, frozenset((onset, pitch - lowest) for onset, pitch in notes))
        if len(notes) < FEWEST:
            kinds.append(SPARSE)
        elif in_any_key not in last:
            kinds.append(NEW)
        elif first[last[in_any_key] + 1] > first[bar] - reach:
            kinds.append(NEAR)
        else:
            kinds.append(FAR if (length, notes) in heard else TRANSPOSED)
        heard.add((length, notes))
        last[in_any_key] = bar
    return kinds
