"""What was played at the same place some bars earlier."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_songs import BAR, RICH, in_order, random_notes, song_of

from midigen_jax import vocab
from midigen_jax.model.alignment import init_alignment, read_tokens
from midigen_jax.model.places import DISTANCES, NO_TOKEN
from midigen_jax.vocab import NO_SONG, Scheme, Vocabulary

LAGS, K = 2048, 16
NOTHING = -1, -1  # sorts before every rank
LATER = np.array([8 * BAR, 0, 0, 0, 0])  # by 8 bars


def candidates_of(tokens, bar, position, vocabulary, lags=LAGS, song=None):
    song = np.zeros_like(tokens) if song is None else song
    arrays = [jnp.asarray(x, jnp.int32)[None] for x in (tokens, bar, position, song)]
    read = jax.jit(partial(read_tokens, vocabulary=vocabulary, k=K))
    _, candidates = read(init_alignment(1, lags), *arrays)
    return jax.tree.map(lambda x: np.asarray(x)[0, :, K:], candidates)


def ranks_of(tokens, scheme):
    """Of each token: its time, its rank, a pair, and how many steps it moves time on."""
    instrument, time, rank, found = -1, 0, NOTHING, []
    for before, token in zip([vocab.SOS, *tokens], tokens, strict=False):
        passed = 0
        if token == vocab.SEP:
            rank = (vocab.N_INSTRUMENTS, 0)
        elif vocab.NOTE_0 <= token < vocab.DURATION_0:
            rank = (max(instrument, 0), 3 * (128 - (token - vocab.NOTE_0)))
        elif vocab.INSTRUMENT_0 <= token < vocab.velocity_0(scheme):
            instrument = token - vocab.INSTRUMENT_0
            rank = (instrument, 0)
        else:
            rank = (rank[0], rank[1] + 1)
            passed = token - vocab.DURATION_0 if before == vocab.SEP else 0
        found.append((time, rank, passed))
        time += passed
        if passed:
            rank = NOTHING
    return found


def by_definition(tokens, bar, position, scheme, t, distance):
    """The candidate after token t, or NO_TOKEN."""
    places = ranks_of(tokens, scheme)
    starts = [places[j][0] - position[j] for j in range(t + 1) if bar[j] == bar[t] - distance]
    if not starts:
        return NO_TOKEN
    _, rank, passed = places[t]
    time = starts[0] + position[t] + passed
    rests = tokens[t] == vocab.SEP
    rank = (vocab.N_INSTRUMENTS, 1) if rests else NOTHING if passed else rank
    later = [j for j in range(t + 1) if places[j][:2] > (time, rank)]
    if not later:
        return NO_TOKEN
    j = later[0]
    same_time = places[j][0] == time
    if rests:
        return vocab.DURATION_0 + min(places[j][0] - time, vocab.MAX_DURATION)
    is_note = vocab.NOTE_0 <= tokens[j] < vocab.DURATION_0
    named = [x - vocab.INSTRUMENT_0 for x in tokens[: t + 1] if vocab.INSTRUMENT_0 <= x < vocab.velocity_0(scheme)]
    drums = vocab.DRUMS in named[-1:]
    if same_time and is_note and drums != (places[j][1][0] == vocab.DRUMS):
        return NO_TOKEN  # the same token, but not the same note
    if vocab.INSTRUMENT_0 <= tokens[t] < vocab.velocity_0(scheme):
        return tokens[j] if same_time and places[j][1][0] == rank[0] else NO_TOKEN
    if vocab.NOTE_0 <= tokens[t] < vocab.DURATION_0 or vocab.velocity_0(scheme) <= tokens[t] < scheme.size:
        return tokens[j] if same_time and places[j][1] == (rank[0], rank[1] + 1) else NO_TOKEN
    return tokens[j] if same_time else vocab.SEP


@pytest.mark.parametrize("scheme", [Scheme(), RICH])
@pytest.mark.parametrize("meters", [((0, 4, 4),), ((0, 3, 4), (24 * 5, 4, 4))])
def test_candidates_are_those_of_the_definition(scheme, meters):
    vocabulary = Vocabulary(scheme)
    tokens, bar, position = song_of(random_notes(10, scheme), vocabulary, meters)
    found = candidates_of(tokens, bar, position, vocabulary).token
    expected = [
        [by_definition(tokens, bar, position, scheme, t, distance) for distance in DISTANCES]
        for t in range(len(tokens))
    ]
    np.testing.assert_array_equal(found, expected)
    assert (found[:, :4] >= 0).mean() > 0.3


def test_a_phrase_that_returns_is_offered_from_its_first_token_on():
    """Eight bars, and again: nothing but the place tells what comes first."""
    notes = random_notes(8, Scheme())
    again = notes + LATER
    tokens, bar, position = song_of(np.concatenate([notes, again]), Vocabulary())
    found = candidates_of(tokens, bar, position, Vocabulary())
    at = np.flatnonzero(bar[:-2] >= 8)
    np.testing.assert_array_equal(found.token[at, DISTANCES.index(8)], tokens[at + 1])
    assert (found.bars == DISTANCES).all()
    assert (np.diff(found.score[at[:40], DISTANCES.index(8)]) > 0).all()


@pytest.mark.parametrize("change", ["added", "left out", "other"])
def test_a_note_that_is_changed_moves_nothing_else(change):
    """All other notes of the return are still offered, each at its time."""
    notes = random_notes(8, Scheme())
    again = notes + LATER
    changed = len(again) // 2
    if change == "added":
        again = np.insert(again, changed, again[changed] + [0, 0, 12, 0, 0], 0)
    elif change == "left out":
        again = np.delete(again, changed, 0)
    else:
        again[changed, 2] -= 25
    tokens, bar, position = song_of(np.concatenate([notes, in_order(again)]), Vocabulary())
    found = candidates_of(tokens, bar, position, Vocabulary()).token[:, DISTANCES.index(8)]
    at = np.flatnonzero(bar[:-2] >= 8)
    wrong = found[at] != tokens[at + 1]
    assert 0 < wrong.sum() <= 4


def test_nothing_is_offered_from_before_the_memory():
    notes = random_notes(8, Scheme())
    tokens, bar, position = song_of(np.concatenate([notes, notes + LATER]), Vocabulary())
    found = candidates_of(tokens, bar, position, Vocabulary(), lags=128)
    assert (found.lag[found.token >= 0] <= 128).all()
    assert (found.token[:, DISTANCES.index(8)] == NO_TOKEN).all()
    assert (found.token[:, 0] >= 0).any()


def test_songs_are_kept_apart_and_no_candidate_depends_on_what_comes_later():
    """Two songs in a lane, the first with padding behind it, as when each is read alone up to any of its tokens."""
    vocabulary, padding = Vocabulary(RICH), 20
    first, second = (song_of(random_notes(6, RICH, seed), vocabulary) for seed in (0, 1))
    lengths = len(first[0]), padding, len(second[0])
    lane = [np.concatenate([x, np.zeros(padding, int), y]) for x, y in zip(first, second, strict=True)]
    together = candidates_of(*lane, vocabulary=vocabulary, song=np.repeat([0, NO_SONG, 1], lengths))
    for one, begin, end in ((first, 0, lengths[0]), (second, lengths[0] + padding, len(lane[0]))):
        for read in (end - begin, (end - begin) // 2):
            alone = candidates_of(*(np.pad(x[:read], (0, len(lane[0]) - read)) for x in one), vocabulary=vocabulary)
            found, expected = (
                [np.where(x.token[at] >= 0, y[at], NO_TOKEN) for y in x]
                for x, at in ((together, slice(begin, begin + read)), (alone, slice(read)))
            )
            np.testing.assert_array_equal(found, expected)
            assert (found[0] >= 0).any(-1).mean() > 0.3


def test_bars_of_a_song_that_never_ends():
    """Those beyond 16 bits are as far from each other as the first."""
    tokens, bar, position = song_of(random_notes(10, Scheme()))
    first, later = (candidates_of(tokens, bar + before, position, Vocabulary()) for before in (0, (1 << 15) - 5))
    jax.tree.map(np.testing.assert_array_equal, later, first)


def test_merged_tokens_have_places_too():
    """Of one merge of a note and its rest: the phrase that returns is offered as the same tokens."""
    note = vocab.NOTE_0 + 60, vocab.DURATION_0 + 4
    vocabulary = Vocabulary(Scheme(), ((*note, vocab.SEP, vocab.DURATION_0 + 8),))
    time = np.arange(0, 16 * BAR, 8)
    notes = np.stack([time, 0 * time + 4, 60 + 0 * time, 0 * time, 0 * time + 80], 1).astype(np.int32)
    tokens, bar, position = song_of(notes, vocabulary)
    assert (tokens[1:-4] == vocabulary.scheme.size).all()
    found = candidates_of(tokens, bar, position, vocabulary)
    at = np.flatnonzero(bar[:-5] >= 1)
    assert (found.token[at, 0] == vocabulary.scheme.size).all()
    assert (found.lag[at, 0] == 4).all()
