"""Repeated bars: whether a bar's content occurred earlier in the song, and how many tokens ago."""

import numpy as np

from .. import config as cfg
from ..music.loops import bar_contents
from ..music.song import Song

NEW, NEAR, FAR, TRANSPOSED, SPARSE = "new", "near repeat", "far repeat", "far repeat, transposed", "sparse"
KINDS = (NEW, NEAR, FAR, TRANSPOSED, SPARSE)
FEWEST = 4  # notes in a bar; bars with fewer repeat by chance


def reach_of(config: cfg.Config) -> int:
    """The most tokens that one layer attends to directly: XL memory and a segment.

    A model without kNN memory can know of more: the keys and values in its XL memory depend on earlier tokens in turn,
    so that the receptive field of L layers is up to L times as long (Dai et al. 2019, "Transformer-XL", section 3.2).
    From beyond the reach, though, it has only what the layers passed on; none attends to those tokens themselves.
    """
    return config.memory.xl + config.data.segment


def kinds_of_bars(song: Song, bar_of_token: np.ndarray, reach: int) -> list[str]:
    """The kind of each bar up to the last one with notes.

    A bar repeats another if the same pitches begin at the same positions; transposed, if they do after a shift of all
    pitches. It is a far repeat if the latest such bar, transposed or not, ends more than `reach` tokens before it
    begins.

    Args:
        bar_of_token: int [N], the bar in which each token of the song begins.
        reach: in tokens (`reach_of`).
    """
    bars, kinds = bar_contents(song), []
    first = np.searchsorted(bar_of_token, np.arange(len(bars) + 1))  # each bar's first token
    seen = set()
    last: dict[object, int] = {}  # the latest bar of each content, in any key
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
            kinds.append(FAR if (length, notes) in seen else TRANSPOSED)
        seen.add((length, notes))
        last[in_any_key] = bar
    return kinds
