"""Byte-pair encoding over whole events: tokens for what the songs of a corpus often repeat.

An event is all tokens up to and including the next duration, in the base vocabulary a (note, duration) or a
(rest, duration). A merged token stands for one event or for several in a row; it never holds `sos` or `eos`, so it
never reaches across songs. Token k of the merges has the id base_size + k and expands to the base tokens
flat[offsets[k] : offsets[k + 1]].

The merges are learned greedily, as in Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units"
(ACL 2016), but they are applied by dynamic programming: a song gets the fewest tokens that spell it.
"""

from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np

from ..vocab import DURATION_0, MAX_DURATION, SEP
from . import kernel

ID_BITS = 16  # tokens are uint16
SEPARATOR = 0  # the symbol of what never merges
_EMPTY = -1


class Trie(NamedTuple):
    """All expansions as one trie in a hash table: a node is the slot that its edge lies in, len(key) is the root."""

    key: np.ndarray  # int64 [slots], parent << ID_BITS | base token, or _EMPTY
    merge: np.ndarray  # int32 [slots], the merge that ends here, or _EMPTY


class _Corpus(NamedTuple):
    """Songs as symbols, and a linked list of the positions where each pair of neighbouring symbols begins.

    A position is an event, or what separates events. Both ends of a symbol carry its number; what lies between is
    never looked at.
    """

    symbol: np.ndarray  # int32 [positions]
    start: np.ndarray  # int32 [positions], the first token of each
    where: np.ndarray  # int32 [symbols], a position where the symbol begins
    span: np.ndarray  # int64 [symbols], its positions
    cost: np.ndarray  # int64 [symbols], tokens that it is written with so far
    count: np.ndarray  # int64 [symbols], its occurrences
    key: np.ndarray  # int64 [slots], a pair, left << 32 | right, or _EMPTY
    length: np.ndarray  # int32 [slots], positions in its list
    head: np.ndarray  # int32 [slots], the first of them
    slot: np.ndarray  # int32 [positions], of the pair that begins here, or _EMPTY
    before: np.ndarray  # int32 [positions], neighbours in the list, or _EMPTY
    after: np.ndarray  # int32 [positions]


@kernel
def _ends_event(token):
    return DURATION_0 < token <= DURATION_0 + MAX_DURATION


@kernel
def _find(keys, key):
    """The slot of an open-addressing hash table that holds the key or, if none does, is free for it."""
    scattered = key * 0x1E3779B97F4A7C15 >> 32 & 0xFFFFFFFF
    slot = scattered * len(keys) >> 32
    while keys[slot] != key and keys[slot] != _EMPTY:
        slot += 1
        if slot == len(keys):
            slot = 0
    return slot


@kernel
def _events(tokens):
    """Cuts songs into positions: an event each, or what separates events.

    Returns:
        symbol: int32 [positions], equal for equal events, numbered from 1 as they first occur, or SEPARATOR: `sos`
            and `eos`, with the tokens of an unfinished event before them, and both ends.
        start: int32 [positions], the first token of each.
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
    """Puts position i into the list of the pair that begins there."""
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
    """Takes position i out of its list, if it is in one."""
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
    """A corpus with room for the symbols of n_merges merges, and the number of symbols so far."""
    symbol, start, first = _events(tokens)
    n_symbols = len(first)
    # At first a pair for each position at most, then two more for each place where symbols are joined.
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
    """How often the pair (x, x) occurs without overlap: of three x in a row the third is left over."""
    n = 0
    i = np.int64(corpus.head[slot])
    while i != _EMPTY:
        if corpus.symbol[i - 1] != x:  # a row starts here
            row = 0
            while corpus.symbol[i + row * corpus.span[x]] == x:
                row += 1
            n += row // 2
        i = np.int64(corpus.after[i])
    return n


@kernel
def _saving(corpus, x, y):
    """How many tokens a candidate of `learn` saves."""
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
    """The heap's entry of a pair. It may promise too much for (x, x), of which some overlap."""
    x = corpus.key[slot] >> 32
    y = corpus.key[slot] & 0xFFFFFFFF
    return -corpus.length[slot] * (corpus.cost[x] + corpus.cost[y] - 1), x, y


@kernel
def _join(corpus, x, y, z, joined):
    """Writes symbol z for every (x, y), in a row of one symbol from the left; lists where, and returns how many."""
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
    """Greedy byte-pair encoding: each step takes what saves the most tokens.

    A candidate is an event of several tokens, (x, 0), or a pair of neighbouring symbols, (x, y). It saves its
    occurrences that do not overlap, at least 2, times the tokens that it is written with so far less one: a symbol
    that has a token counts one, an event without one as many as it holds. Among equals the lower x, then the lower y
    goes first; events are numbered from 1 as they first occur, later symbols as they are merged. No two merges expand
    alike: no merge ever crosses an end of a symbol, so equal events within two of them were merged equally.

    Args:
        tokens: uint16 [n], songs in a row.
        base_size: ids below it are base tokens.
        n_merges: how many to learn; they are fewer if nothing more saves or uint16 is exhausted.

    Returns:
        flat: uint16 [total], offsets: int64 [m + 1], the expansions.
    """
    n_merges = min(n_merges, (1 << ID_BITS) - base_size)
    corpus, n_symbols = _read(tokens, n_merges)
    start, where = corpus.start, corpus.where
    joined = np.empty(len(corpus.symbol), np.int32)
    # A heap by what a candidate saves, the most first. That only shrinks, so an entry never promises too little.
    heap = [(0, 0, 0)]
    for x in range(1, n_symbols):  # in a list comprehension over corpus Numba 0.68 loses what is written to it later
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
                # The pairs of the new symbol, once each: the head of its list pushes a pair.
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
    """Writes songs with the fewest tokens that spell them.

    Of spellings equally short it is the one with the longer token at the first difference, so that the result depends
    on the base tokens alone.

    Args:
        tokens: uint16 [n], base tokens.
        trie: of `table`.

    Returns:
        merged: uint16 [m].
        starts: int64 [m], the first base token of each.
    """
    n = len(tokens)
    fewest = np.empty(n + 1, np.int32)  # tokens that the rest takes
    choice = np.empty(n, np.int32)  # the merge that begins here, or _EMPTY
    length = np.ones(n, np.int32)
    fewest[n] = 0
    for i in range(n - 1, -1, -1):
        fewest[i] = fewest[i + 1] + 1
        choice[i] = _EMPTY
        if i > 0 and tokens[i - 1] >= SEP and not _ends_event(tokens[i - 1]):
            continue  # within an event
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
    """The base tokens, uint16, that any tokens below base_size + m stand for; the inverse of `merge`."""
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
