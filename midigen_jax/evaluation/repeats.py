"""Repeated bars: whether a bar's content occurred earlier in the song, and how many tokens ago."""

import numpy as np

from .. import config as cfg
from ..music.loops import bar_contents
from ..music.song import Song

NEW, VARIED, NEAR, FAR = "new", "varied", "near repeat", "far repeat"
TRANSPOSED, SPARSE = "far repeat, transposed", "sparse"
KINDS = (NEW, VARIED, NEAR, FAR, TRANSPOSED, SPARSE)
FEWEST = 4  # notes in a bar; bars with fewer repeat by chance
# A bar varies another if they share so much of their notes and of their onsets (Dice 1945: twice what is shared, over
# the sum of both).
SHARED_NOTES, SHARED_ONSETS = 0.5, 0.75

Bar = tuple[int, frozenset[tuple[int, int]]]  # its length in grid steps, and the onset and pitch of its notes


def reach_of(config: cfg.Config) -> int:
    """The most tokens that one layer attends to directly: XL memory and a segment.

    A model without kNN memory can know of more: the keys and values in its XL memory depend on earlier tokens in turn,
    so that the receptive field of L layers is up to L times as long (Dai et al. 2019, "Transformer-XL", section 3.2).
    From beyond the reach, though, it has only what the layers passed on; none attends to those tokens themselves.
    """
    return config.memory.xl + config.data.segment


def is_varied(bar: Bar, other: Bar) -> bool:
    """Whether two bars are of one length and share most of their rhythm and at least half of their notes."""

    def dice(one: frozenset, other: frozenset) -> float:
        return 2 * len(one & other) / max(len(one) + len(other), 1)

    def onsets(bar: Bar) -> frozenset:
        return frozenset(onset for onset, _ in bar[1])

    same_length = bar[0] == other[0]
    return same_length and dice(bar[1], other[1]) >= SHARED_NOTES and dice(onsets(bar), onsets(other)) >= SHARED_ONSETS


def kinds_of_bars(song: Song, bar_of_token: np.ndarray, reach: int) -> list[str]:
    """The kind of each bar up to the last one with notes.

    A bar repeats another if the same pitches begin at the same positions; transposed, if they do after a shift of all
    pitches. It is a far repeat if the latest such bar, transposed or not, ends more than `reach` tokens before it
    begins. A bar that repeats none, but resembles an earlier one in the same key (`is_varied`), is varied.

    Args:
        bar_of_token: int [N], the bar in which each token of the song begins.
        reach: in tokens (`reach_of`).
    """
    bars, kinds = bar_contents(song), []
    first = np.searchsorted(bar_of_token, np.arange(len(bars) + 1))  # each bar's first token
    seen: set[Bar] = set()
    last: dict[object, int] = {}  # the latest bar of each content, in any key
    for bar, (length, notes) in enumerate(bars):
        lowest = min((pitch for _, pitch in notes), default=0)
        in_any_key = (length, frozenset((onset, pitch - lowest) for onset, pitch in notes))
        if len(notes) < FEWEST:
            kinds.append(SPARSE)
        elif in_any_key not in last:
            kinds.append(VARIED if any(is_varied(bars[bar], earlier) for earlier in seen) else NEW)
        elif first[last[in_any_key] + 1] > first[bar] - reach:
            kinds.append(NEAR)
        else:
            kinds.append(FAR if (length, notes) in seen else TRANSPOSED)
        seen.add((length, notes))
        last[in_any_key] = bar
    return kinds


def kinds_of_tokens(song: Song, bar_of_token: np.ndarray, reach: int) -> np.ndarray:
    """The kind of the bar that each token but the first is in, [N - 1]; behind the last bar with notes they are sparse.

    Arguments as those of `kinds_of_bars`.
    """
    of_bars = np.array([*kinds_of_bars(song, bar_of_token, reach), SPARSE])
    return of_bars[np.minimum(bar_of_token[1:], len(of_bars) - 1)]
