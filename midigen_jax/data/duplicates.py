"""Finds near-duplicates: songs that are the same music, by their fingerprints (`kernels.fingerprint`).

A corpus keeps each group of them on one side of its split; else a model would be tested on songs of its training.

Sources: Broder, "On the resemblance and containment of documents" (1997); Leskovec, Rajaraman and Ullman, "Mining of
Massive Datasets", chapter 3, for locality-sensitive hashing by bands.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..kernels.fingerprint import BINS, EMPTY

MIN_MATCHES = 8  # equal bins of two songs of one group: a quarter of the melody, or more if it is short
WINDOW = 8  # the number of songs of its bucket that a song is compared with, in each band


class Pair(NamedTuple):
    """Two songs, and the share of their melodies that they have in common."""

    first: int
    second: int
    similarity: float  # estimated Jaccard similarity, 0 to 1


def _candidates(signatures: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of songs that agree in two neighbouring bins, as int64 [n] and int64 [n]; pairs may occur repeatedly.

    Each bin and the next one form a band. Within a bucket songs are sorted by the next two bins as well: in a bucket of
    thousands of songs that share two common runs only, the most similar ones become neighbours, where WINDOW finds
    them.
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
    """The number of equal bins of signatures uint32 [n, BINS], without bins that are empty in both: int64 [n]."""
    return ((a == b) & (a != EMPTY)).sum(axis=1)


def _link(root: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """Joins the groups of songs `a` and `b`, pair by pair, in place; a root is the lowest song of its group."""
    while (root[a] != root[b]).any():
        np.minimum.at(root, np.maximum(root[a], root[b]), np.minimum(root[a], root[b]))
        while (root[root] != root).any():
            root[:] = root[root]


def groups(signatures: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """The group of each song, numbered by the lowest song in it, int64 [songs].

    Args:
        signatures: uint32 [songs, BINS].
        hashes: [songs], equal for equal songs, which the signatures of short songs do not show.
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
    """The most similar pair of songs with different labels; None if no pair agrees in two neighbouring bins.

    Args:
        signatures: uint32 [songs, BINS].
        labels: int [songs], splits or groups.
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
