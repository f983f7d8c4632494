"""The longest common substring of two sequences, by a suffix automaton (Blumer et al. 1985)."""

import numpy as np

from . import kernel

NONE = -1


@kernel
def build(sequence):
    """The suffix automaton of a sequence, int64 [n].

    A state is the set of substrings that end at the same positions. Its transitions are a linked list, since a
    substring of music has few continuations.

    Returns:
        longest, link: int64 [states], the length of a state's longest substring, and the state of its longest suffix
            that ends at more positions.
        head, following, label, target: the first transition of each state; for each transition the next one of its
            state, the item that it reads and the state that it leads to.
    """
    n = len(sequence)
    longest, link = np.zeros(2 * n + 1, np.int64), np.full(2 * n + 1, NONE)
    head = np.full(2 * n + 1, NONE)
    following, label, target = (
        np.zeros(4 * n + 1, np.int64),
        np.zeros(4 * n + 1, np.int64),
        np.zeros(4 * n + 1, np.int64),
    )
    n_states, n_edges, last = 1, 0, 0
    for i in range(n):
        item = sequence[i]
        state = n_states
        n_states += 1
        longest[state] = longest[last] + 1
        p = last
        while p != NONE and _edge(head, following, label, p, item) == NONE:
            following[n_edges], label[n_edges], target[n_edges] = head[p], item, state
            head[p] = n_edges
            n_edges += 1
            p = link[p]
        link[state] = 0
        if p != NONE:
            q = target[_edge(head, following, label, p, item)]
            if longest[p] + 1 == longest[q]:
                link[state] = q
            else:
                clone = n_states
                n_states += 1
                longest[clone], link[clone] = longest[p] + 1, link[q]
                edge = head[q]
                while edge != NONE:
                    following[n_edges], label[n_edges], target[n_edges] = head[clone], label[edge], target[edge]
                    head[clone] = n_edges
                    n_edges += 1
                    edge = following[edge]
                while p != NONE:
                    edge = _edge(head, following, label, p, item)
                    if edge == NONE or target[edge] != q:
                        break
                    target[edge] = clone
                    p = link[p]
                link[q] = link[state] = clone
        last = state
    return longest, link, head, following, label, target


@kernel
def _edge(head, following, label, state, item):
    edge = head[state]
    while edge != NONE and label[edge] != item:
        edge = following[edge]
    return edge


@kernel
def longest_shared(automaton, other):
    """The length of the longest substring that another sequence, int64 [m], shares with the automaton's."""
    longest, link, head, following, label, target = automaton
    state, length, best = 0, 0, 0
    for i in range(len(other)):
        edge = _edge(head, following, label, state, other[i])
        while edge == NONE and link[state] != NONE:
            state = link[state]
            length = longest[state]
            edge = _edge(head, following, label, state, other[i])
        if edge != NONE:
            state, length = target[edge], length + 1
        best = max(best, length)
    return best
