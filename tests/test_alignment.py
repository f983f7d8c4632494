"""The memory by alignment and its candidates."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_songs import RICH, random_notes, song_of

from midigen_jax import config as cfg
from midigen_jax import vocab
from midigen_jax.kernels import score
from midigen_jax.model import alignment, pointer
from midigen_jax.model.alignment import (
    HIGHEST,
    KEPT,
    LASTING,
    NO_TOKEN,
    ONE,
    begin_reading,
    end_reading,
    init_alignment,
    read_token,
    read_tokens,
)
from midigen_jax.vocab import NO_SONG, Scheme, Vocabulary

LAGS, K = 256, 16
FIELDS = "score", "token", "pitch_score", "shift", "lag", "bars", "length", "same_position"


@lru_cache
def reader(vocabulary=Vocabulary(), k=K, remembers=True):  # noqa: B008  (it is frozen)
    return jax.jit(partial(read_tokens, vocabulary=vocabulary, k=k, remembers=remembers))


def read(tokens, position=None, song=None, *, bar=None, lags=LAGS, memory=None, **options):
    """Candidates of each token of one lane or of several."""
    tokens = np.atleast_2d(tokens)
    bar, position, song = (np.zeros_like(tokens) if x is None else np.atleast_2d(x) for x in (bar, position, song))
    memory = init_alignment(len(tokens), lags) if memory is None else memory
    arrays = (jnp.asarray(x, jnp.int32) for x in (tokens, bar, position, song))
    memory, candidates = reader(**options)(memory, *arrays)
    return memory, jax.tree.map(np.asarray, candidates)


def is_note(token):
    return vocab.NOTE_0 <= token < vocab.DURATION_0


def by_definition(tokens, bar, position, lags, k):
    """For each token of a song without drums, by lag modulo k: the fields of `FIELDS`."""
    scores, pitch_scores, shifts, began = np.zeros((4, lags + 1), int)
    for t in range(len(tokens)):
        best = {}
        for lag in range(1, min(t, lags) + 1):
            now, then, after = tokens[t], tokens[t - lag], tokens[t - lag + 1]
            notes = is_note(now) and is_note(then)
            if scores[lag] < LASTING:
                began[lag] = bar[t]
            if now - then == shifts[lag] if notes else now == then:
                scores[lag] = min(scores[lag] + ONE, HIGHEST)
                if notes:
                    pitch_scores[lag] = min(pitch_scores[lag] + ONE, HIGHEST)
            else:
                scores[lag] = scores[lag] * KEPT // 8
                pitch_scores[lag] = pitch_scores[lag] * KEPT // 8
                if notes and pitch_scores[lag] < ONE // 2:
                    shifts[lag] = now - then
            if is_note(after):
                after = after + shifts[lag] if is_note(after + shifts[lag]) else NO_TOKEN
            if scores[lag] > best.get((lag - 1) % k, (0,))[0]:
                of_bars = bar[t] - bar[t - lag], bar[t] - began[lag], position[t] == position[t - lag]
                best[(lag - 1) % k] = (scores[lag], after, pitch_scores[lag], shifts[lag], lag, *of_bars)
        yield best


def check(candidates, expected, lane=0, begin=0):
    for t, best in enumerate(expected, begin):
        for i in range(K):
            found = tuple(getattr(candidates, name)[lane, t, i] for name in FIELDS)
            if i in best and best[i][1] != NO_TOKEN:
                assert found == best[i], (t, i)
            else:
                assert found[1] == NO_TOKEN, (t, i)


def random_song(n, seed=0, pitches=4):
    """Notes of few pitches and durations, so that much agrees by chance; with their bars and positions."""
    rng = np.random.default_rng(seed)
    tokens = np.empty(n, int)
    tokens[0::2] = vocab.NOTE_0 + 60 + rng.integers(0, pitches, len(tokens[0::2]))
    tokens[1::2] = vocab.DURATION_0 + rng.integers(1, 4, len(tokens[1::2]))
    rests = rng.random(len(tokens[0::2])) < 0.3
    tokens[0::2][rests] = vocab.SEP
    return tokens, np.sort(rng.integers(0, n // 8, n)), rng.integers(0, 4, n)


def test_candidates_are_those_of_the_definition():
    """With more tokens than lags, and pitches at both ends of the range."""
    tokens, bar, position = random_song(400)
    tokens[200:300][[is_note(x) for x in tokens[200:300]]] += 66 - 3  # up to the highest pitch
    _, candidates = read(tokens, position, bar=bar)
    check(candidates, by_definition(tokens, bar, position, LAGS, K))


def test_songs_are_kept_apart_and_padding_is_ignored():
    """Two songs in a lane; the second goes on in the next segment, after padding, as where a prompt has ended."""
    first, second = random_song(100), random_song(60, seed=1)
    padding = np.full(40, vocab.PAD)
    tokens, bar, position = (np.concatenate([x, y[:30], padding]) for x, y in zip(first, second, strict=True))
    expected = list(by_definition(*second, lags=LAGS, k=K))
    memory, candidates = read(tokens, position, np.repeat([0, 1, NO_SONG], [100, 30, 40]), bar=bar)
    check(candidates, expected[:30], begin=100)
    memory, _ = read(tokens, position, np.full(170, NO_SONG), bar=bar, memory=memory)
    tokens, bar, position = (x[30:] for x in second)
    _, candidates = read(tokens, position, np.ones(30, int), bar=bar, memory=memory)
    check(candidates, expected[30:])


def test_segments_and_single_tokens_are_read_alike():
    tokens, bar, position = (jnp.asarray(x, jnp.int32)[None] for x in random_song(96))
    song, whole = jnp.zeros_like(tokens), read(tokens, position, bar=bar)
    memory, parts = init_alignment(1, LAGS), []
    for begin in range(0, 96, 32):
        here = slice(begin, begin + 32)
        memory, found = read(tokens[:, here], position[:, here], bar=bar[:, here], memory=memory)
        parts.append(found)
    joined = [np.concatenate(x, 1) for x in zip(*parts, strict=True)]
    jax.tree.map(np.testing.assert_array_equal, (memory, type(parts[0])(*joined)), whole)
    one = jax.jit(partial(read_token, vocabulary=Vocabulary(), k=K))
    memory, parts = init_alignment(1, LAGS), []
    for begin in range(0, 96, 24):
        reading = begin_reading(memory, 32)  # more room than is needed
        for t in range(begin, begin + 24):
            reading, found = one(reading, tokens[:, t], bar[:, t], position[:, t], song[:, t])
            parts.append(found)
        memory = end_reading(reading)
    joined = [np.stack(x, 1) for x in zip(*parts, strict=True)]
    jax.tree.map(np.testing.assert_array_equal, (memory, type(parts[0])(*joined)), whole)


def test_no_candidate_depends_on_a_later_token():
    tokens, bar, position = random_song(96)
    _, candidates = read(tokens, position, bar=bar)
    for t in (1, 40, 95):
        changed = tokens.copy()
        changed[t:] = random_song(96, seed=2)[0][t:]
        _, others = read(changed, position, bar=bar)
        for name in candidates._fields:
            np.testing.assert_array_equal(getattr(others, name)[:, :t], getattr(candidates, name)[:, :t])


def in_keys(shifts, scheme):
    """The arguments of `read` for a song in several keys, a lane each, and of each token of a lane and of the one that
    may follow it, whether it is a note that has a key."""
    notes, lanes = random_notes(12, scheme), []
    has_key = (notes[:, 3] != vocab.DRUMS) | (not scheme.multi)
    for shift in shifts:
        moved = notes + shift * np.eye(5, dtype=np.int32)[2] * has_key[:, None]
        lanes.append(song_of(moved, Vocabulary(scheme)))
    tokens, bar, position = (np.stack(x) for x in zip(*lanes, strict=True))
    named = np.where(tokens[0] >= vocab.INSTRUMENT_0, tokens[0] - vocab.INSTRUMENT_0, -1)
    named[named >= vocab.N_INSTRUMENTS] = -1  # velocities
    last = np.maximum.accumulate(np.where(named >= 0, np.arange(len(named)), 0))
    return (tokens, position), bar, (named[last] != vocab.DRUMS) | (not scheme.multi)


@pytest.mark.parametrize("scheme", [Scheme(), RICH])
def test_a_song_in_another_key_has_the_same_candidates_in_that_key(scheme):
    """Those by lags and those by places, though drums stay where they are."""
    shifts = [0, -40, -1, 5, 40]
    arrays, bar, keyed = in_keys(shifts, scheme)
    _, candidates = read(*arrays, bar=bar, vocabulary=Vocabulary(scheme), lags=512)
    candidates = jax.tree.map(lambda x: np.where(candidates.token >= 0, x, NO_TOKEN), candidates)
    first = candidates.token[:1]
    transposed = first + np.reshape(shifts, (-1, 1, 1)) * (np.vectorize(is_note)(first) & keyed[None, :, None])
    np.testing.assert_array_equal(candidates.token, transposed)
    for name in candidates._fields[1:]:
        field = getattr(candidates, name)
        np.testing.assert_array_equal(field, np.broadcast_to(field[:1], field.shape))
    assert all((found >= 0).any(-1).mean() > 0.5 for found in (first[..., :K], first[..., K:]))


@pytest.mark.parametrize("scheme", [Scheme(), RICH])
def test_a_song_in_another_key_has_the_same_losses(scheme):
    """With a pointer of random weights, beside a decoder that holds all tokens alike: what it knows has a key."""
    arrays, bar, _ = in_keys([0, -40, -1, 5, 40], scheme)
    vocabulary, config, tokens = Vocabulary(scheme), cfg.Config(), arrays[0]
    graphdef, params = nnx.split(pointer.Pointer(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    weigh = nnx.merge(graphdef, jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape), params))
    hidden = jnp.asarray(rng.normal(size=(1, tokens.shape[1], config.model.width)), jnp.float32)
    logits = jnp.zeros((*tokens.shape, vocabulary.size))
    _, candidates = read(*arrays, bar=bar, vocabulary=vocabulary, lags=512)
    copies = weigh(
        jax.tree.map(jnp.asarray, candidates), jnp.broadcast_to(hidden, (*tokens.shape, hidden.shape[-1])), logits
    )
    nats = pointer.nats(logits[:, :-1], jax.tree.map(lambda x: x[:, :-1], copies), jnp.asarray(tokens[:, 1:]))
    assert nats[0].mean() < np.log(vocabulary.size) - 0.5
    np.testing.assert_allclose(nats[1:], np.broadcast_to(nats[0], nats[1:].shape), rtol=1e-5)


def theme_and_return(filler, shift, changed, *, notes=32, seed=0):
    """A theme of so many notes, a filler, and the theme again, transposed, with a share of its notes changed.

    Returns:
        The tokens, and which of those of the return are as they were.
    """
    rng = np.random.default_rng(seed)

    def melody(n):
        pitches, durations = rng.integers(40, 80, n), rng.integers(1, 9, n)
        return np.stack([vocab.NOTE_0 + pitches, vocab.DURATION_0 + durations], 1)

    theme = melody(notes)
    again, other = theme.copy(), rng.permutation(notes) < round(changed * notes)
    again[:, 0] += shift
    again[other, 0] += rng.choice([-2, -1, 1, 2], other.sum())
    kept = np.stack([~other, np.ones(notes, bool)], 1).ravel()
    return np.concatenate([theme.ravel(), melody(filler // 2).ravel(), again.ravel()]), kept


def found_in_returns(returns, lags):
    """For each return, a lane each, the share of its kept tokens after its first eight notes that the best candidate
    names. They are read by segments."""
    tokens, kept = (np.stack(x) for x in zip(*returns, strict=True))
    memory, best = init_alignment(len(tokens), lags), []
    for part in np.split(tokens, tokens.shape[1] // 32, 1):
        memory, candidates = read(part, memory=memory)
        scores = np.where(candidates.token >= 0, candidates.score, -1).argmax(-1)
        best.append(np.take_along_axis(candidates.token, scores[..., None], -1)[..., 0])
    begin = tokens.shape[1] - kept.shape[1] + 16
    right = np.concatenate(best, 1)[:, begin - 1 : -1] == tokens[:, begin:]
    return [row[here].mean() for row, here in zip(right, kept[:, 16:], strict=True)]


@pytest.mark.parametrize("filler", [0, 64, 128, 224, 320, 416])
def test_a_transposed_or_varied_passage_is_found_at_every_age(filler):
    """By 0 to 11 semitones and with up to 30 % of its notes changed, up to the age at which the memory is just long
    enough. Of the notes that are as they were, which and how long."""
    cases = [(changed, shift, seed) for changed in (0, 0.1, 0.2, 0.3) for shift in range(12) for seed in range(4)]
    returns = [theme_and_return(filler, shift, changed, seed=seed) for changed, shift, seed in cases]
    found = np.reshape(found_in_returns(returns, 480), (4, 12, 4)).mean(-1)
    assert (found >= np.array([1, 0.97, 0.93, 0.85])[:, None]).all(), found.min(1)


def test_a_passage_older_than_the_memory_is_not_found():
    (found,) = found_in_returns([theme_and_return(416, 0, 0)], 464)
    assert found < 0.2


def test_drums_have_no_key():
    """A melody with drums returns a fourth higher: the melody is shifted, the drums are not."""
    piano, drums = vocab.INSTRUMENT_0, vocab.INSTRUMENT_0 + vocab.DRUMS
    loud = vocab.velocity_0(RICH) + 20
    melody = np.random.default_rng(0).integers(40, 80, 20) + vocab.NOTE_0
    kick = [vocab.NOTE_0 + 36, loud, vocab.DURATION_0 + 1]
    rest = [vocab.SEP, vocab.DURATION_0 + 4]
    beats = [[piano, pitch, loud, vocab.DURATION_0 + 2, drums, *kick, *rest] for pitch in melody]
    theme = np.concatenate(beats).astype(np.uint16)
    again = score.transpose(theme, 5, RICH)
    tokens = np.concatenate([theme, again]).astype(int)
    _, candidates = read(tokens, vocabulary=Vocabulary(RICH), lags=400)
    at = np.arange(len(theme) + 40, len(tokens) - 1)
    here = candidates.lag[0, at] == len(theme)
    assert here.any(-1).all()
    assert (candidates.token[0, at][here] == tokens[at + 1]).all()


def test_merges_are_transposed_as_a_whole():
    note, rest = [vocab.NOTE_0 + 60, vocab.DURATION_0 + 2], [vocab.SEP, vocab.DURATION_0 + 2]
    higher = [vocab.NOTE_0 + 65, vocab.DURATION_0 + 2]
    merges = (tuple(note + rest), tuple(higher + rest), tuple(rest + note), tuple(note + higher))
    vocabulary = Vocabulary(Scheme(), merges)
    first = vocabulary.scheme.size
    tables = vocabulary.transposition
    classes = tables.token_class[0, first:]
    assert classes[0] == classes[1]
    assert len(set(classes.tolist())) == 3
    assert tables.pitch[0, first:].tolist() == [60, 65, 60, 60]
    assert tables.token[classes[0], [60, 65, 61]].tolist() == [first, first + 1, NO_TOKEN]


def test_a_merge_goes_on_in_another_key_if_it_is_there_too():
    """Of the passage A B A C, A and B have partners a fourth higher, and C has none."""
    pitches = 60, 62, 64, 65, 67
    vocabulary = Vocabulary(
        Scheme(), tuple((vocab.NOTE_0 + p, vocab.DURATION_0 + 2, vocab.SEP, vocab.DURATION_0 + 2) for p in pitches)
    )
    a, b, c, higher_a, higher_b = vocabulary.scheme.size + np.arange(5)
    _, candidates = read([a, b, a, c, higher_a, higher_b, higher_a], vocabulary=vocabulary)
    lag = 4
    assert candidates.lag[0, 5:, lag - 1].tolist() == [lag, lag]
    assert candidates.shift[0, 5:, lag - 1].tolist() == [5, 5]
    assert candidates.token[0, 5:, lag - 1].tolist() == [higher_a, NO_TOKEN]


@pytest.mark.parametrize("scheme", [Scheme(), RICH])
def test_transposition_agrees_with_the_kernel(scheme):
    """Tokens of one class are those that the kernel turns into each other; drums stay."""
    tables, size = Vocabulary(scheme).transposition, scheme.size
    tokens = np.arange(size, dtype=np.uint16)
    movable = tokens[tokens != vocab.DURATION_0 - 1]  # the highest pitch has none above it
    shifted = score.transpose(movable, 1, scheme)
    assert (shifted != movable).sum() == 127
    moved = shifted != movable
    assert (tables.pitch[0, movable[moved]] + 1 == tables.pitch[0, shifted[moved]]).all()
    assert (tables.token_class[0, movable] == tables.token_class[0, shifted]).all()
    for before in range(1 + scheme.multi):
        named = tables.token[tables.token_class[before], np.maximum(tables.pitch[before], 0)]
        np.testing.assert_array_equal(named, tokens)
    if scheme.multi:
        assert (tables.pitch[1] == -1).all()


def test_a_memory_that_does_not_remember_is_compared_with_only_what_it_held():
    """The song of another: its theme is found, the song's own is not."""
    theme, _ = theme_and_return(64, 0, 0)
    memory, _ = read(theme, lags=480)
    other = alignment.without_scores(memory)
    _, candidates = read(theme[:64], lags=480, memory=other, remembers=False)
    at = np.arange(16, 63)
    assert (candidates.token[0, at] == theme[at + 1, None]).any(-1).all()
    assert (candidates.token[0, :, K:] == NO_TOKEN).all()  # another song has no places in this one
    unknown = np.tile(theme_and_return(0, 0, 0, seed=9)[0][:16], 4)
    _, candidates = read(unknown, lags=480, memory=other, remembers=False)
    scores = np.where(candidates.token[0] >= 0, candidates.score[0], 0)
    assert scores[32:].max() < 4 * ONE


def test_repetitions_are_counted_for_all_who_name_the_token():
    """A passage of 4 bars that has gone on for 12 was played again three times."""
    token, bars, length = (jnp.asarray(x)[None] for x in ([5, 5, 6, NO_TOKEN], [4, 8, 0, 1], [12, 3, 1, 9]))
    zeros = jnp.zeros_like(token)
    candidates = alignment.Candidates(token, zeros, zeros, zeros, zeros + 1, bars, length, zeros > 0)
    same = (token[..., None, :] == token[..., :, None]) & (token >= 0)[..., None, :]
    np.testing.assert_array_equal(pointer._repetitions(candidates, same), [[3, 3, 1, 0]])


def test_a_passage_that_is_played_again_and_again_is_less_and_less_likely_to_go_on():
    """Two bars, ten times, by a pointer that has learned nothing yet."""
    theme, _ = theme_and_return(0, 0, 0, notes=16)
    theme = theme[: len(theme) // 2]
    tokens, bar = np.tile(theme, 10), np.arange(10 * len(theme)) // (len(theme) // 2)
    _, candidates = read(tokens, bar=bar)
    logits = jnp.zeros((*candidates.token.shape[:2], Vocabulary().size))
    config = cfg.Config()
    untrained = pointer.Pointer(config, rngs=nnx.Rngs(0))
    copies = untrained(
        jax.tree.map(jnp.asarray, candidates), jnp.zeros((*logits.shape[:2], config.model.width)), logits
    )
    goes_on = np.where(candidates.token == np.roll(tokens, -1)[:, None], pointer.shares(copies.log_odds), 0).sum(-1)
    shares = goes_on[0].reshape(10, -1).mean(1)
    assert shares[1] > 0.5
    assert (np.diff(shares[1:6]) < 0).all()
    assert shares[-1] < 0.01
