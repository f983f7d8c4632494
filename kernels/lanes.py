"""Songs laid out on lanes."""

import numpy as np

from . import kernel


@kernel
def assign(lengths, ends):
    """Puts each song, in order, on the lane that ends first; of equal ones the lowest.

    Args:
        lengths: int64 [songs], in tokens.
        ends: int64 [lanes], where each lane's songs end so far; moved on.

    Returns:
        The lane of each song and where it begins there, int64 [songs] both.
    """
    lanes = np.empty(len(lengths), np.int64)
    starts = np.empty(len(lengths), np.int64)
    heap = np.argsort(ends, kind="mergesort")  # stable; sorted, so no lane ends before its parent in the heap
    for song in range(len(lengths)):
        lane = heap[0]
        lanes[song], starts[song] = lane, ends[lane]
        ends[lane] += lengths[song]
        place = 0
        while True:
            child = 2 * place + 1
            if child >= len(heap):
                break
            if child + 1 < len(heap) and _ends_first(ends, heap[child + 1], heap[child]):
                child += 1
            if _ends_first(ends, lane, heap[child]):
                break
            heap[place] = heap[child]
            place = child
        heap[place] = lane
    return lanes, starts


@kernel
def _ends_first(ends, one, other):
    return ends[one] < ends[other] or (ends[one] == ends[other] and one < other)
