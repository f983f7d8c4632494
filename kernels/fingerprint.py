"""A song's fingerprints: one equal for equal notes, one alike for music in another key, at another tempo, saved anew.

For the second the song's top line (the highest pitch of each chord) becomes intervals, every run of INTERVALS of them
a hash, and the set of hashes a MinHash signature, of which two sets with Jaccard similarity J share a fraction J on
average.

Sources: Downie, "Evaluating a simple approach to music information retrieval: conceiving melodic n-grams as text"
(1999); Uitdenbogerd and Zobel, "Melodic matching techniques for large music databases" (1999), for the top line;
Broder, "On the resemblance and containment of documents" (1997); Li, Owen and Zhang, "One permutation hashing" (2012).
"""

import numpy as np

from . import kernel, smf
from .meter import to_step

GRID = 8  # steps a beat
BINS = 32  # a power of two
INTERVALS = 6  # in a run: seven pitches; at most eight fit one integer
EMPTY = np.uint32(0xFFFFFFFF)  # a bin that no run fell into
LONGEST_GAP = 96  # steps; a longer silence counts as this much in the mean gap

_RUN_BITS = np.uint64((1 << 8 * INTERVALS) - 1)
_BIN_SHIFT = np.uint64(64 - BINS.bit_length() + 1)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@kernel
def _mix(value):
    """Spreads 64 bits over 64 bits one to one: the finalizer of SplitMix64 (Steele, Lea and Flood, 2014)."""
    value = (value ^ (value >> np.uint64(30))) * _MIX_1
    value = (value ^ (value >> np.uint64(27))) * _MIX_2
    return value ^ (value >> np.uint64(31))


@kernel
def signature(onsets, pitches):
    """MinHash signature of a song's melody, by one permutation hashing.

    Onsets up to a third of the song's mean gap apart are one chord, which takes in spread chords, jitter and grace
    notes at any tempo and on any grid. A pitch that repeats says nothing, so that a note repeated for ever has no runs.

    Args:
        onsets: int32 [n], steps on any grid, ascending; without drums.
        pitches: int32 [n], in any order within one onset.

    Returns:
        uint32 [BINS], the smallest hash of each bin, or EMPTY: all of them are where the line has under
        INTERVALS + 1 pitches.
    """
    bins = np.full(BINS, EMPTY, np.uint32)
    n = len(onsets)
    if n == 0:
        return bins
    n_gaps = 1
    time = 0
    for i in range(1, n):
        gap = onsets[i] - onsets[i - 1]
        n_gaps += gap > 0
        time += min(gap, LONGEST_GAP)
    chord_gap = time // (3 * n_gaps)

    run = np.uint64(0)
    n_pitches = 0
    last = -1
    top = pitches[0]
    for i in range(1, n + 1):
        if i < n and onsets[i] - onsets[i - 1] <= chord_gap:
            top = max(top, pitches[i])
            continue
        if top != last:
            run = (run << np.uint64(8) | np.uint64((top - last) & 0xFF)) & _RUN_BITS
            last = top
            n_pitches += 1
            if n_pitches > INTERVALS:
                mixed = _mix(run)
                b = mixed >> _BIN_SHIFT
                bins[b] = min(bins[b], np.uint32(mixed & np.uint64(0xFFFFFFFF)))
        if i < n:
            top = pitches[i]
    return bins


@kernel
def note_hash(notes, division):
    """A hash of when which pitches begin, uint64: equal for equal songs, whatever their names, tempos or instruments.

    It is a sum over notes, so that their order and their parts don't count, and on a grid of its own, so that a song
    keeps its fingerprint, and with it its place in the split, however it is written as tokens.

    Args:
        notes: int32 [N, 7] of `read_smf`, drums included.
    """
    total = np.uint64(0)
    for i in range(len(notes)):
        onset = to_step(notes[i, smf.ONSET], division, GRID)
        drums = notes[i, smf.CHANNEL] == smf.DRUM_CHANNEL
        total += _mix(np.uint64(onset << 8 | drums << 7 | notes[i, smf.PITCH]))
    return _mix(total)
