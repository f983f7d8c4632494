"""Byte-pair encoding over whole events: tokens for sequences of events that a corpus often repeats.

An event is all tokens up to and including the next duration, in the base vocabulary a (note, duration) or a
(rest, duration). A merged token stands for one event or for several successive ones; it never contains `sos` or `eos`,
so it never spans songs. Merge k has the token id base_size + k and expands to the base tokens
flat[offsets[k] : offsets[k + 1]].

The merges are learned greedily, as in Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units"
(ACL 2016), but applied by dynamic programming: a song is written with as few tokens as possible.
"""

from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np

from ..vocab import DURATION_0, MAX_DURATION, SEP
from . import kernel

ID_BITS = 16  # tokens are uint16
SEPARATOR = 0  # the symbol of positions that are never merged
_EMPTY = -1


class Trie(NamedTuple):
    """All expansions as one trie in a hash table: a node is the slot of its incoming edge, the root is len(key)."""

    key: np.ndarray  # int64 [slots], parent << ID_BITS | base token, or _EMPTY
    merge: np.ndarray  # int32 [slots], the merge that ends here, or _EMPTY


class _Corpus(NamedTuple):
    """Songs as symbols, and a linked list of the positions where each pair of neighbouring symbols begins.

    A position is an event or a separator. The first and the last position of a symbol have its number; those in
    between are never read.
    """

    symbol: np.ndarray  # int32 [positions]
    start: np.ndarray  # int32 [positions], the index of its first token
    where: np.ndarray  # int32 [symbols], a position at which the symbol begins
    span: np.ndarray  # int64 [symbols], the number of its positions
    cost: np.ndarray  # int64 [symbols], the tokens that it takes with the merges so far
    count: np.ndarray  # int64 [symbols], the number of its occurrences
    key: np.ndarray  # int64 [slots], a pair, left << 32 | right, or _EMPTY
    length: np.ndarray  # int32 [slots], the length of its list
    head: np.ndarray  # int32 [slots], the first position in it
    slot: np.ndarray  # int32 [positions], the slot of the pair that begins here, or _EMPTY
    before: np.ndarray  # int32 [positions], neighbours in the list, or _EMPTY
    after: np.ndarray  # int32 [positions]


@kernel
def _ends_event(token):
    return DURATION_0 < token <= DURATION_0 + MAX_DURATION


@kernel
def _find(keys, key):
    """The slot of a key in an open-addressing hash table, or the free slot where it belongs."""
    scattered = key * 0x1E3779B97F4A7C15 >> 32 & 0xFFFFFFFF
    slot = scattered * len(keys) >> 32
    while keys[slot] != key and keys[slot] != _EMPTY:
        slot += 1
        if slot == len(keys):
            slot = 0
    return slot


@kernel
def _events(tokens):
    """Divides songs into positions: events and separators.

    Returns:
        symbol: int32 [positions], the events numbered from 1 in the order of their first occurrence, equal for equal
            events; or SEPARATOR for `sos` and `eos`, which include the tokens of an incomplete event before them, and
            at both ends.
        start: int32 [positions], the index of the first token of each.
        where: int32 [symbols], a position of each symbol.
    """
    symbol = np.empty(len(tokens) + 2, np.int32)
    start = np.empty(len(tokens) + 2, np.int32)
    where = np.empty(len(tokens) + 1, np.int32)
    symbol[0] = start[0] = where[0] = 0
    n = n_symbols = 1
    keys = np.full(len(tokens) + 1, _EMPTY, np.int64)  # a trie of the events
    symbol_of = np.zeros(len(tokens) + 1, np.int32)
    node = root = len(keys)
    first = 0
    for i in range(len(tokens)):
        token = np.int64(tokens[i])
        if token < SEP:
            symbol[n] = SEPARATOR
        else:
            key = node << ID_BITS | token
            node = _find(keys, key)
            keys[node] = key
            if not _ends_event(token):
                continue
            if symbol_of[node] == 0:
                symbol_of[node] = n_symbols
                where[n_symbols] = n
                n_symbols += 1
            symbol[n] = symbol_of[node]
        start[n] = first
        n += 1
        first = i + 1
        node = root
    symbol[n] = SEPARATOR
    start[n] = first
    return symbol[: n + 1], start[: n + 1], where[:n_symbols]


@kernel
def _link(corpus, i):
    """Adds position i to the list of the pair that begins there."""
    left = np.int64(corpus.symbol[i])
    right = np.int64(corpus.symbol[i + corpus.span[left]])
    if left == SEPARATOR or right == SEPARATOR:
        return
    key = left << 32 | right
    slot = _find(corpus.key, key)
    if corpus.key[slot] == _EMPTY:
        corpus.key[slot] = key
        corpus.length[slot] = 0
        corpus.head[slot] = _EMPTY
    head = corpus.head[slot]
    if head != _EMPTY:
        corpus.before[head] = i
    corpus.slot[i] = slot
    corpus.before[i] = _EMPTY
    corpus.after[i] = head
    corpus.head[slot] = i
    corpus.length[slot] += 1


@kernel
def _unlink(corpus, i):
    """Removes position i from its list, if it is in one."""
    slot = corpus.slot[i]
    if slot == _EMPTY:
        return
    before = corpus.before[i]
    after = corpus.after[i]
    if before == _EMPTY:
        corpus.head[slot] = after
    else:
        corpus.after[before] = after
    if after != _EMPTY:
        corpus.before[after] = before
    corpus.slot[i] = _EMPTY
    corpus.length[slot] -= 1


@kernel
def _read(tokens, n_merges):
    """A corpus with space for the symbols of n_merges merges, and the number of symbols so far."""
    symbol, start, first = _events(tokens)
    n_symbols = len(first)
    # At most one pair per position at first, then two more wherever symbols are joined.
    slots = 3 * len(symbol)
    corpus = _Corpus(
        symbol,
        start,
        np.zeros(n_symbols + n_merges, np.int32),
        np.ones(n_symbols + n_merges, np.int64),
        np.ones(n_symbols + n_merges, np.int64),
        np.zeros(n_symbols + n_merges, np.int64),
        np.full(slots, _EMPTY, np.int64),
        np.empty(slots, np.int32),
        np.empty(slots, np.int32),
        np.full(len(symbol), _EMPTY, np.int32),
        np.empty(len(symbol), np.int32),
        np.empty(len(symbol), np.int32),
    )
    for x in range(1, n_symbols):
        corpus.where[x] = first[x]
        corpus.cost[x] = start[first[x] + 1] - start[first[x]]
    for i in range(len(symbol) - 1):
        corpus.count[symbol[i]] += 1
        _link(corpus, i)
    return corpus, n_symbols


@kernel
def _twins(corpus, slot, x):
    """The number of occurrences of (x, x) that do not overlap: three successive x hold one."""
    n = 0
    i = np.int64(corpus.head[slot])
    while i != _EMPTY:
        if corpus.symbol[i - 1] != x:  # a run of x starts here
            row = 0
            while corpus.symbol[i + row * corpus.span[x]] == x:
                row += 1
            n += row // 2
        i = np.int64(corpus.after[i])
    return n


@kernel
def _saving(corpus, x, y):
    """The number of tokens that a candidate of `learn` saves."""
    if y == SEPARATOR:
        n = corpus.count[x]
        tokens = corpus.cost[x]
    else:
        slot = _find(corpus.key, x << 32 | y)
        n = _twins(corpus, slot, x) if x == y else np.int64(corpus.length[slot])
        tokens = corpus.cost[x] + corpus.cost[y]
    return n * (tokens - 1) if n > 1 else 0


@kernel
def _entry(corpus, slot):
    """The heap entry of a pair. It may overestimate the saving of (x, x), whose occurrences may overlap."""
    x = corpus.key[slot] >> 32
    y = corpus.key[slot] & 0xFFFFFFFF
    return -corpus.length[slot] * (corpus.cost[x] + corpus.cost[y] - 1), x, y


@kernel
def _join(corpus, x, y, z, joined):
    """Replaces every (x, y) by z, in a run of one symbol from the left; lists the positions, returns their number."""
    symbol, span = corpus.symbol, corpus.span
    slot = _find(corpus.key, x << 32 | y)
    n = 0
    while corpus.head[slot] != _EMPTY:
        i = np.int64(corpus.head[slot])
        if x == y:
            while symbol[i - 1] == x:
                i -= span[x]
        while symbol[i] == x and symbol[i + span[x]] == y:
            previous = i - span[symbol[i - 1]]
            following = i + span[z]
            _unlink(corpus, previous)
            _unlink(corpus, i)
            _unlink(corpus, i + span[x])
            symbol[i] = symbol[following - 1] = z
            _link(corpus, previous)
            _link(corpus, i)
            joined[n] = i
            n += 1
            i = following
    corpus.count[x] -= n
    corpus.count[y] -= n
    corpus.count[z] += n
    return n


@kernel
def learn(tokens, base_size, n_merges):
    """Greedy byte-pair encoding: each iteration takes the candidate that saves the most tokens.

    A candidate is an event of several tokens, (x, 0), or a pair of neighbouring symbols, (x, y). It saves the number
    of its occurrences without overlap, at least 2, times its cost less one; the cost of a symbol that has a token is 1,
    of an event without one the number of its tokens. Ties go to the lower x, then the lower y; events are numbered
    from 1 in the order of their first occurrence, merged symbols after them. No two merges have the same expansion:
    no merge ever crosses the end of a symbol, so equal events in two of them were merged alike.

    Args:
        tokens: uint16 [n], concatenated songs.
        base_size: ids below it are base tokens.
        n_merges: how many to learn; fewer are learned if nothing more saves tokens or uint16 is exhausted.

    Returns:
        flat: uint16 [total], offsets: int64 [m + 1], the expansions.
    """
    n_merges = min(n_merges, (1 << ID_BITS) - base_size)
    corpus, n_symbols = _read(tokens, n_merges)
    start, where = corpus.start, corpus.where
    joined = np.empty(len(corpus.symbol), np.int32)
    # A heap of candidates, the largest saving first. Savings only shrink, so an entry never underestimates one.
    heap = [(0, 0, 0)]
    for x in range(1, n_symbols):  # with a list comprehension over corpus Numba 0.68 loses later writes to it
        heappush(heap, (-_saving(corpus, x, 0), x, 0))
    for slot in range(len(corpus.key)):
        if corpus.key[slot] != _EMPTY and corpus.length[slot] > 1:
            heappush(heap, _entry(corpus, slot))

    merged = np.empty(n_merges, np.int64)  # the symbols that have a token
    offsets = np.zeros(n_merges + 1, np.int64)
    m = 0
    while m < n_merges and len(heap) > 0:
        entry, x, y = heappop(heap)
        saving = _saving(corpus, x, y)
        if saving == 0:
            continue
        if saving < -entry:
            heappush(heap, (-saving, x, y))
            continue

        z = x
        n = 0
        if y != SEPARATOR:
            z = n_symbols
            n_symbols += 1
            where[z] = corpus.head[_find(corpus.key, x << 32 | y)]
            corpus.span[z] = corpus.span[x] + corpus.span[y]
            n = _join(corpus, x, y, z, joined)
        merged[m] = z
        offsets[m + 1] = offsets[m] + start[where[z] + corpus.span[z]] - start[where[z]]
        m += 1
        corpus.cost[z] = 1
        for i in joined[:n]:
            for j in (np.int64(i), i - corpus.span[corpus.symbol[i - 1]]):
                slot = corpus.slot[j]
                # Push each pair of the new symbol once: at the head of its list.
                if slot != _EMPTY and corpus.head[slot] == j and corpus.length[slot] > 1:
                    heappush(heap, _entry(corpus, slot))

    flat = np.empty(offsets[m], np.uint16)
    for k in range(m):
        first = start[where[merged[k]]]
        flat[offsets[k] : offsets[k + 1]] = tokens[first : first + offsets[k + 1] - offsets[k]]
    return flat, offsets[: m + 1]


@kernel
def table(flat, offsets):
    """The trie of the expansions of `learn`."""
    slots = 2 * len(flat) + 1
    trie = Trie(np.full(slots, _EMPTY, np.int64), np.full(slots, _EMPTY, np.int32))
    for k in range(len(offsets) - 1):
        node = slots
        for token in flat[offsets[k] : offsets[k + 1]]:
            key = np.int64(node) << ID_BITS | np.int64(token)
            node = _find(trie.key, key)
            trie.key[node] = key
        trie.merge[node] = k
    return trie


@kernel
def merge(tokens, trie, base_size):
    """Writes songs with as few tokens as possible.

    Of equally short results it is the one with the longer token at the first difference, so the result depends only on
    the base tokens.

    Args:
        tokens: uint16 [n], base tokens.
        trie: that of `table`.

    Returns:
        merged: uint16 [m].
        starts: int64 [m], the index of the first base token of each.
    """
    n = len(tokens)
    fewest = np.empty(n + 1, np.int32)  # tokens needed from here to the end
    choice = np.empty(n, np.int32)  # the merge that begins here, or _EMPTY
    length = np.ones(n, np.int32)
    fewest[n] = 0
    for i in range(n - 1, -1, -1):
        fewest[i] = fewest[i + 1] + 1
        choice[i] = _EMPTY
        if i > 0 and tokens[i - 1] >= SEP and not _ends_event(tokens[i - 1]):
            continue  # inside an event
        node = len(trie.key)
        for j in range(i, n):
            node = _find(trie.key, np.int64(node) << ID_BITS | np.int64(tokens[j]))
            if trie.key[node] == _EMPTY:
                break
            if trie.merge[node] != _EMPTY and fewest[j + 1] + 1 <= fewest[i]:
                fewest[i] = fewest[j + 1] + 1
                choice[i] = trie.merge[node]
                length[i] = j + 1 - i
    merged = np.empty(fewest[0], np.uint16)
    starts = np.empty(fewest[0], np.int64)
    i = 0
    for m in range(len(merged)):
        merged[m] = tokens[i] if choice[i] == _EMPTY else base_size + choice[i]
        starts[m] = i
        i += length[i]
    return merged, starts


@kernel
def expand(tokens, flat, offsets, base_size):
    """The base tokens, uint16, of any tokens below base_size + m; the inverse of `merge`."""
    n = 0
    for token in tokens:
        k = np.int64(token) - base_size
        n += 1 if k < 0 else offsets[k + 1] - offsets[k]
    base = np.empty(n, np.uint16)
    n = 0
    for token in tokens:
        k = np.int64(token) - base_size
        if k < 0:
            base[n] = token
            n += 1
        else:
            base[n : n + offsets[k + 1] - offsets[k]] = flat[offsets[k] : offsets[k + 1]]
            n += offsets[k + 1] - offsets[k]
    return base
