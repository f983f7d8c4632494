"""Songs that are the same music, found by their fingerprints (`kernels.fingerprint`).

A corpus keeps each group of them on one side of its split, else a model is tested on songs that it has learned.

Sources: Broder, "On the resemblance and containment of documents" (1997); Leskovec, Rajaraman and Ullman, "Mining of
Massive Datasets", chapter 3, for locality-sensitive hashing by bands.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .kernels.fingerprint import BINS, EMPTY

MIN_MATCHES = 8  # bins that two songs of one group share: a quarter of the melody, or more of a short one's
WINDOW = 8  # songs of its bucket that a song is compared with in each band


class Pair(NamedTuple):
    """Two songs and the share of their melodies that they have in common."""

    first: int
    second: int
    similarity: float  # estimated Jaccard similarity, 0 to 1


def _candidates(signatures: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of songs that agree in two neighbouring bins, as int64 [n] and int64 [n]; a pair may come more than once.

    Every bin opens a band of two. A band's songs are sorted by the next two bins as well: of a bucket with thousands of
    songs, which share no more than two common runs, the most alike come side by side, where WINDOW finds them.
    """
    bins = np.ascontiguousarray(signatures.T).astype(np.uint64)
    for band in range(BINS):
        first, second, third, fourth = (bins[(band + i) % BINS] for i in range(4))
        songs = np.flatnonzero((first != EMPTY) & (second != EMPTY))
        bucket = (first << np.uint64(32) | second)[songs]
        order = np.lexsort(((third << np.uint64(32) | fourth)[songs], bucket))
        songs, bucket = songs[order], bucket[order]
        for apart in range(1, WINDOW + 1):
            pairs = np.flatnonzero(bucket[apart:] == bucket[:-apart])
            if len(pairs) == 0:
                break
            yield songs[pairs], songs[pairs + apart]


def _matches(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """In how many bins signatures uint32 [n, BINS] agree, int64 [n]; bins that are empty in both say nothing."""
    return ((a == b) & (a != EMPTY)).sum(axis=1)


def _link(root: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """Joins the groups of songs `a` and `b`, pair by pair, in place: a root is the lowest song of its group."""
    while (root[a] != root[b]).any():
        np.minimum.at(root, np.maximum(root[a], root[b]), np.minimum(root[a], root[b]))
        while (root[root] != root).any():
            root[:] = root[root]


def groups(signatures: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Each song's group, named by the lowest index in it, int64 [songs]; a song unlike all others is its own.

    Args:
        signatures: uint32 [songs, BINS].
        hashes: [songs], equal for songs that are equal, which a short song's signature can't tell.
    """
    _, first, same = np.unique(hashes, return_index=True, return_inverse=True)
    root = first[same]
    for a, b in _candidates(signatures):
        apart = root[a] != root[b]
        a, b = a[apart], b[apart]
        alike = _matches(signatures[a], signatures[b]) >= MIN_MATCHES
        _link(root, a[alike], b[alike])
    return root


def nearest_apart(signatures: np.ndarray, labels: np.ndarray) -> Pair | None:
    """The pair of songs with different labels that agree in most bins; None if none agree in two neighbouring ones.

    Args:
        signatures: uint32 [songs, BINS].
        labels: int [songs], the songs' splits or groups.
    """
    nearest, most = None, 0
    for a, b in _candidates(signatures):
        apart = labels[a] != labels[b]
        a, b = a[apart], b[apart]
        matches = _matches(signatures[a], signatures[b])
        if matches.max(initial=0) > most:
            best = matches.argmax()
            most = matches[best]
            first, second = sorted((int(a[best]), int(b[best])))
            filled = ((signatures[first] != EMPTY) | (signatures[second] != EMPTY)).sum()
            nearest = Pair(first, second, float(most / filled))
    return nearest
