"""Assigns songs to the lanes of a batch."""

import numpy as np

from . import kernel


@kernel
def assign(lengths, ends):
    """Appends each song, in order, to the shortest lane so far; among equally short ones to the lowest.

    Args:
        lengths: int64 [songs], in tokens.
        ends: int64 [lanes], the length of each lane so far; updated in place.

    Returns:
        The lane of each song and its offset there, both int64 [songs].
    """
    lanes = np.empty(len(lengths), np.int64)
    starts = np.empty(len(lengths), np.int64)
    heap = np.argsort(ends, kind="mergesort")  # stable; sorted, so no lane ends before its parent in the heap
    for song in range(len(lengths)):
        lane = heap[0]
        lanes[song], starts[song] = lane, ends[lane]
        ends[lane] += lengths[song]
        node = 0
        while True:
            child = 2 * node + 1
            if child >= len(heap):
                break
            if child + 1 < len(heap) and _ends_first(ends, heap[child + 1], heap[child]):
                child += 1
            if _ends_first(ends, lane, heap[child]):
                break
            heap[node] = heap[child]
            node = child
        heap[node] = lane
    return lanes, starts


@kernel
def _ends_first(ends, one, other):
    return ends[one] < ends[other] or (ends[one] == ends[other] and one < other)
