from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from midigen_jax import vocab
from midigen_jax.kernels import merges

BASE_SIZE = 421  # 389 base tokens, then 32 for instruments


def random_songs(random, n_songs=4, n_events=60, kinds=6) -> np.ndarray:
    """Songs from few events of one to four tokens, with rows of one event, phrases that return and unfinished ends."""
    events = [
        [
            *random.integers(vocab.INSTRUMENT_0, BASE_SIZE, k),
            *random.choice([vocab.SEP, 64, 67], k),
            vocab.DURATION_0 + d,
        ]
        for k, d in zip(random.choice([0, 1, 1, 1, 2], kinds), random.integers(1, 4, kinds), strict=True)
    ]
    phrase = random.integers(0, kinds, 7)
    tokens: list[int] = []
    for _ in range(n_songs):
        chosen: list[int] = []
        while len(chosen) < n_events:
            chosen += random.choice([0, 1, 2]) * [*phrase]
            chosen += random.integers(1, 6) * [random.integers(0, kinds)]
        tokens += [vocab.SOS, *(token for e in chosen for token in events[e])]
        tokens += random.integers(0, 3) * [60]
        tokens += [vocab.EOS]
    return np.array(tokens, np.uint16)


def is_duration(token) -> bool:
    return vocab.DURATION_0 < token <= vocab.DURATION_0 + vocab.MAX_DURATION


def songs_of(tokens) -> list[list[tuple[int, ...]]]:
    """The whole events of each song."""
    songs, event = [[]], []
    for token in tokens.tolist():
        if token < vocab.SEP:
            songs.append([])
            event = []
            continue
        event.append(token)
        if is_duration(token):
            songs[-1].append(tuple(event))
            event = []
    return songs


def disjoint_pairs(songs) -> Counter:
    counts: Counter = Counter()
    for song in songs:
        used = {}  # where the last occurrence of a pair ended
        for i, pair in enumerate(pairwise(song)):
            if used.get(pair, 0) <= i:
                used[pair] = i + 2
                counts[pair] += 1
    return counts


def reference_learn(tokens, n_merges) -> list[tuple[int, ...]]:
    """`learn`, with all counts recomputed in each iteration."""
    numbers: dict[tuple, int] = {}
    songs = [[numbers.setdefault(event, len(numbers) + 1) for event in song] for song in songs_of(tokens)]
    spelling = {x: event for event, x in numbers.items()}
    merged: list[tuple] = []
    while len(merged) < n_merges:

        def cost(x):
            return 1 if spelling[x] in merged else len(spelling[x])

        counts = {(x, 0): (n, cost(x)) for x, n in Counter(x for song in songs for x in song).items()}
        counts |= {(x, y): (n, cost(x) + cost(y)) for (x, y), n in disjoint_pairs(songs).items()}
        savings = [(-n * (cost - 1), pair) for pair, (n, cost) in counts.items() if n > 1 and cost > 1]
        if not savings:
            break
        _, (x, y) = min(savings)
        if y == 0:
            merged.append(spelling[x])
            continue
        z = len(spelling) + 1
        spelling[z] = spelling[x] + spelling[y]
        merged.append(spelling[z])
        for s, song in enumerate(songs):
            joined, i = [], 0
            while i < len(song):
                both = song[i : i + 2] == [x, y]
                joined.append(z if both else song[i])
                i += 1 + both
            songs[s] = joined
    return merged


def expansions(flat, offsets) -> list[tuple[int, ...]]:
    return [tuple(flat[a:b].tolist()) for a, b in pairwise(offsets)]


def spellings(tokens, words):
    """All ways to write base tokens, each as a list of (minus the tokens covered, id). Only events make way."""
    if not tokens:
        yield []
        return
    event = next((i for i, token in enumerate(tokens, 1) if token < vocab.SEP or is_duration(token)), len(tokens))
    for rest in spellings(tokens[event:], words):
        yield [*((-1, token) for token in tokens[:event]), *rest]
    for k, word in enumerate(words):
        if tuple(tokens[: len(word)]) == word:
            for rest in spellings(tokens[len(word) :], words):
                yield [(-len(word), BASE_SIZE + k), *rest]


@pytest.mark.parametrize("seed", range(30))
def test_learn_agrees_with_plain_python(seed):
    random = np.random.default_rng(seed)
    songs = random_songs(random, kinds=random.integers(1, 9))
    learned = expansions(*merges.learn(songs, BASE_SIZE, 50))
    assert learned == reference_learn(songs, 50)
    assert len(set(learned)) == len(learned) > 0
    # A smaller vocabulary is the beginning of a larger one.
    assert expansions(*merges.learn(songs, BASE_SIZE, 5)) == learned[:5]


def test_merges_are_whole_events_of_one_song():
    songs = random_songs(np.random.default_rng(0))
    events = {event for song in songs_of(songs) for event in song}
    learned = expansions(*merges.learn(songs, BASE_SIZE, 50))
    assert max(map(len, learned)) > 8
    for word in learned:
        [whole] = songs_of(np.array(word))
        assert sum(whole, ()) == word
        assert set(whole) <= events


def test_nothing_to_learn():
    for tokens in ([], [0, 1], [0, 60, 1, 0, 60, 1], [0, 60, 133, 1, 0, 61, 133, 1]):
        flat, offsets = merges.learn(np.array(tokens, np.uint16), vocab.INSTRUMENT_0, 10)
        assert len(flat) == 0
        assert offsets.tolist() == [0]
    twice = np.array([0, 60, 133, 60, 133, 1], np.uint16)
    assert expansions(*merges.learn(twice, vocab.INSTRUMENT_0, 10)) == [(60, 133)]
    assert expansions(*merges.learn(twice, 1 << 16, 10)) == []
    assert expansions(*merges.learn(twice, vocab.INSTRUMENT_0, 0)) == []


def test_what_saves_most_comes_first():
    # The pair (note, rest) occurs 4 times and saves 3 tokens each, either event alone 4 times 1.
    songs = np.array([0, *4 * [60, 133, 3, 134], 1, 0, 61, 140, 1], np.uint16)
    assert expansions(*merges.learn(songs, vocab.INSTRUMENT_0, 9)) == [(60, 133, 3, 134), (60, 133, 3, 134) * 2]


@pytest.mark.parametrize("seed", range(20))
def test_merge_writes_the_fewest_tokens(seed):
    random = np.random.default_rng(seed)
    flat, offsets = merges.learn(random_songs(random, kinds=3), BASE_SIZE, 12)
    songs = random_songs(np.random.default_rng(seed), n_songs=2, n_events=4, kinds=3)[-28:]
    best = min(spellings(songs.tolist(), expansions(flat, offsets)), key=lambda spelling: (len(spelling), spelling))
    merged, starts = merges.merge(songs, merges.table(flat, offsets), BASE_SIZE)
    assert merged.tolist() == [token for _, token in best]
    assert starts.tolist() == np.cumsum([0, *(-length for length, _ in best[:-1])]).tolist()


@pytest.mark.parametrize("seed", range(10))
def test_expand_is_the_inverse(seed):
    random = np.random.default_rng(seed)
    flat, offsets = merges.learn(random_songs(random), BASE_SIZE, 40)
    trie = merges.table(flat, offsets)
    songs = np.concatenate([random_songs(random), random.integers(0, BASE_SIZE, 200, np.uint16)])
    merged, starts = merges.merge(songs, trie, BASE_SIZE)
    assert merges.expand(merged, flat, offsets, BASE_SIZE).tolist() == songs.tolist()
    assert songs[starts[merged < BASE_SIZE]].tolist() == merged[merged < BASE_SIZE].tolist()

    # Any tokens expand. Merged again they are in the one shortest spelling.
    for low in (0, BASE_SIZE):
        sampled = random.integers(low, BASE_SIZE + len(offsets) - 1, 500, np.uint16)
        base = merges.expand(sampled, flat, offsets, BASE_SIZE)
        assert (base < BASE_SIZE).all()
        merged, _ = merges.merge(base, trie, BASE_SIZE)
        assert low == 0 or len(merged) <= len(sampled)
        again, _ = merges.merge(merges.expand(merged, flat, offsets, BASE_SIZE), trie, BASE_SIZE)
        assert again.tolist() == merged.tolist()


def test_music_that_repeats_gets_much_shorter():
    bar = [60, 140, 64, 140, 67, 140, 3, 140]
    songs = np.array([0, *bar * 50, 1, 0, 62, 133, *bar * 30, 1], np.uint16)
    flat, offsets = merges.learn(songs, vocab.INSTRUMENT_0, 20)
    merged, _ = merges.merge(songs, merges.table(flat, offsets), vocab.INSTRUMENT_0)
    assert len(merged) * 20 < len(songs)
    assert (merged == vocab.SOS).sum() == (merged == vocab.EOS).sum() == 2


def test_without_merges_nothing_changes():
    songs = random_songs(np.random.default_rng(0))
    flat, offsets = merges.learn(songs, BASE_SIZE, 0)
    merged, starts = merges.merge(songs, merges.table(flat, offsets), BASE_SIZE)
    assert merged.tolist() == songs.tolist()
    assert starts.tolist() == list(range(len(songs)))
    assert merges.expand(songs, flat, offsets, BASE_SIZE).tolist() == songs.tolist()
