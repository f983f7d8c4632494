"""How a sequence continued after earlier occurrences of what stands before each item."""

import numpy as np

from . import kernel

NONE = -1


@kernel
def count_matches(sequence, longest):
    """For each item but the first: where did what stands before it occur earlier, and what followed there?

    Every pair of positions is compared once, diagonal by diagonal, so the time is quadratic in the length.

    Args:
        sequence: int64 [N].
        longest: matches of up to this many items are counted.

    Returns:
        found: int64 [N - 1, longest + 1]; at L > 0, how many earlier positions have the same L items before them.
        right: int64 [N - 1, longest + 1]; after how many of these the same item followed as here.
        length: int64 [N - 1], of the longest match, however long; 0 where there is none.
        following: int64 [N - 1], what followed the most recent of the longest matches; NONE where there is none.
    """
    n = len(sequence)
    found, right = np.zeros((n - 1, longest + 1), np.int64), np.zeros((n - 1, longest + 1), np.int64)
    length, following = np.zeros(n - 1, np.int64), np.full(n - 1, NONE)
    for distance in range(1, n):  # the most recent first
        equal = 0  # items before i that are the same as those a distance before them
        for i in range(distance, n):
            same = sequence[i] == sequence[i - distance]
            if equal:
                here = min(equal, longest)
                found[i - 1, here] += 1
                right[i - 1, here] += same
                if equal > length[i - 1]:
                    length[i - 1], following[i - 1] = equal, sequence[i - distance]
            equal = equal + 1 if same else 0
    for here in range(longest - 1, 0, -1):  # a longer match is a shorter one too
        found[:, here] += found[:, here + 1]
        right[:, here] += right[:, here + 1]
    return found, right, length, following
