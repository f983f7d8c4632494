"""Two fingerprints of a song: a hash of its notes, and a signature that survives transposition and changes of tempo.

The signature is that of the top line (the highest pitch of each chord): every run of INTERVALS successive intervals is
hashed, and the set of hashes gives a MinHash signature. Two sets with Jaccard similarity J agree in a share J of their
bins on average.

Sources: Downie, "Evaluating a simple approach to music information retrieval: conceiving melodic n-grams as text"
(1999); Uitdenbogerd and Zobel, "Melodic matching techniques for large music databases" (1999), for the top line;
Broder, "On the resemblance and containment of documents" (1997); Li, Owen and Zhang, "One permutation hashing" (2012).
"""

import numpy as np

from . import kernel, smf
from .meter import to_grid

GRID = 8  # steps per beat
BINS = 32  # a power of two
INTERVALS = 6  # in a run: seven pitches; at most eight fit one integer
EMPTY = np.uint32(0xFFFFFFFF)  # a bin that no run fell into
MAX_GAP = 96  # grid steps; a longer silence counts as this much in the mean gap

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

    Onsets at most a third of the song's mean gap apart form one chord. This covers spread chords, jitter and grace
    notes at any tempo and on any grid. Repeated pitches count once, so a single repeated note has no runs.

    Args:
        onsets: int32 [n], times on any grid, ascending; without drums.
        pitches: int32 [n], in any order within one onset.

    Returns:
        uint32 [BINS], the smallest hash of each bin, or EMPTY. All bins are empty if the line has at most INTERVALS
        pitches.
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
        time += min(gap, MAX_GAP)
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
    """A hash of onsets and pitches, uint64: equal for equal songs, whatever their names, tempos or instruments.

    It is a sum over notes, so their order and parts do not matter. It uses a fixed grid, so a song keeps its
    fingerprint, and therefore its split, whatever the scheme of its tokens.

    Args:
        notes: int32 [N, 7] of `read_smf`, drums included.
    """
    total = np.uint64(0)
    for i in range(len(notes)):
        onset = to_grid(notes[i, smf.ONSET], division, GRID)
        drums = notes[i, smf.CHANNEL] == smf.DRUM_CHANNEL
        total += _mix(np.uint64(onset << 8 | drums << 7 | notes[i, smf.PITCH]))
    return _mix(total)
