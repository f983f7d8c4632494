import dataclasses
from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow
from small_models import build
from test_sample import CHANGEABLE, drawn, rich  # noqa: F401  (a fixture)

from midigen_jax import vocab
from midigen_jax.errors import InputError
from midigen_jax.kernels import score
from midigen_jax.model.decoder import init_params
from midigen_jax.music.loops import ALIKE, find_loops
from midigen_jax.music.pitches import parse_key, parse_pitch
from midigen_jax.music.song import Prompt, new_song, notes_of
from midigen_jax.run.trained import TrainedModel
from midigen_jax.sampling import logits_processors, recent_bars
from midigen_jax.sampling.decode_state import NEVER
from midigen_jax.sampling.generation import span
from midigen_jax.sampling.sampler import Sampler
from midigen_jax.sampling.settings import GenerationSettings, Length
from midigen_jax.vocab import Scheme, Vocabulary


@pytest.fixture(scope="module")
def sampler(small):
    return Sampler(TrainedModel(small, build(small)[1], Vocabulary()))


@pytest.mark.parametrize(("songs", "n_tokens"), [(100, 200), slow(500, 2000)])
def test_the_tokens_of_a_random_model_are_music(sampler, songs, n_tokens):
    """Up to a million: each is one that may follow, and they decode to the notes written."""
    tokens, now = drawn(sampler, Prompt(new_song(Scheme()), 0), songs, n_tokens)
    assert tokens.shape == (songs, n_tokens)
    next_state, steps = sampler.vocabulary.grammar
    state, time = np.full(len(tokens), vocab.START), np.zeros(len(tokens), int)
    for column in tokens.T:
        time += steps[state, column]
        state = next_state[state, column]
        assert (state != vocab.FORBIDDEN).all()
        assert (state != vocab.END).all()
    assert (time == now).all()
    notes = [len(notes_of(row.astype(np.uint16), sampler.vocabulary)) for row in tokens]
    heads = tokens[:, 0::2]
    written = ((heads >= vocab.NOTE_0) & (heads < vocab.DURATION_0)).sum(1)
    assert (notes == written).all()


def test_pitches_and_key_are_kept_to(sampler):
    settings = GenerationSettings(lowest=48, highest=72, key=parse_key("D minor"), loop_bars=0)
    tokens, _ = drawn(sampler, Prompt(new_song(Scheme()), 0), 20, 200, settings)
    notes = np.concatenate([score.notes_from_tokens(row.astype(np.uint16), Scheme()) for row in tokens])
    assert len(notes) > 500
    assert set(notes[:, 2] % 12) == {2, 4, 5, 7, 9, 10, 0}
    assert 48 <= notes[:, 2].min() <= notes[:, 2].max() <= 72


def test_only_the_instruments_that_are_wanted_play(small, rich):  # noqa: F811
    """With merges that name instruments, and those that go on with the one before."""
    sampler = Sampler(TrainedModel(small, init_params(small, rich, seed=0)[1], rich))
    for wanted in ((0, 40), (vocab.DRUMS,), (7, vocab.DRUMS)):
        settings = GenerationSettings(instruments=wanted, highest=59, temperature=1.0, top_p=1.0, loop_bars=0)
        tokens, _ = drawn(sampler, Prompt(new_song(rich.scheme), 0), 20, 200, settings)
        notes = np.concatenate([notes_of(row.astype(np.uint16), rich) for row in tokens])
        assert set(notes[:, score.PART]) == set(wanted)
        pitched = notes[notes[:, score.PART] != vocab.DRUMS]
        assert (pitched[:, 2] <= 59).all()
        if vocab.DRUMS in wanted:
            assert (notes[:, 2] > 59).any()  # drums have no pitch


BAR = 32  # grid steps


def after(notes, words, time):
    """The state in the bar of a time, after notes (onset, pitch) before it."""
    recent = recent_bars.init_recent_bars(jnp.array([0]), words.scheme)
    for onset, pitch in notes:
        recent = written(entered(recent, onset), vocab.NOTE_0 + pitch, onset, words)
    return entered(recent, time)


def entered(recent, time):
    return enter_bar(recent, jnp.array([time // BAR]), jnp.array([BAR]))


def written(recent, token, time, words):
    return update(words)(recent, *(jnp.array([x]) for x in (token, vocab.EVENT, time, time % BAR)))


enter_bar = jax.jit(recent_bars.enter_bar)


@cache
def update(words):
    return jax.jit(partial(recent_bars.update, vocabulary=words))


def ruled_out(recent, time, words, grammar=vocab.EVENT, max_notes=NEVER, loop_bars=8):
    settings = logits_processors.make_setting_arrays(GenerationSettings(loop_bars=loop_bars), words)
    numbers = (jnp.array([x]) for x in (grammar, time, time % BAR, max_notes))
    return np.flatnonzero(recent_bars.excluded_tokens(*[recent, *numbers, settings, words])[0]).tolist()


def bars_of(n_bars, period, changed=0, per_bar=5):
    """Notes (onset, pitch) of random bars that come back after a period, each time with others at their end."""
    random = np.random.default_rng(0)
    bars = random.integers(40, 80, (period, per_bar))
    found = []
    for bar in range(n_bars):
        pitches = bars[bar % period].copy()
        pitches[per_bar - changed :] = random.integers(80, 127, changed)
        found += [(BAR * bar + 2 * i, int(pitch)) for i, pitch in enumerate(pitches)]
    return found


@pytest.mark.parametrize("period", [1, slow(2), 4])
@pytest.mark.parametrize(("changed", "per_bar"), [(0, 5), (1, 12)])
def test_a_loop_is_left_after_eight_bars_also_if_a_note_changes(period, changed, per_bar):
    """In the ninth bar some of the notes may come again, not most of them."""
    words, notes = Vocabulary(), bars_of(20, period, changed, per_bar)
    most = int(per_bar * recent_bars.MOST_SHARED)
    for n_bars in (max(period, 5), 7, 8):
        for more in (0, most - 1, most):  # notes of the next bar
            upcoming, pitch = notes[per_bar * n_bars + more]
            recent = after(notes[: per_bar * n_bars + more], words, upcoming)
            leaves = n_bars >= 8 and more == most
            assert ruled_out(recent, upcoming, words) == [vocab.NOTE_0 + pitch] * leaves, (n_bars, more)
            assert ruled_out(recent, upcoming, words, loop_bars=0) == []


def test_the_sampled_bars_agree_with_what_finds_loops():
    """A loop as long as it may be is none for `find_loops`; with another bar it is one."""
    words = Vocabulary()
    for n_bars in (8, 9):
        notes = [[onset, 2, pitch, 0, 80] for onset, pitch in bars_of(n_bars, 2)]
        song = new_song(words.scheme)._replace(notes=np.array(notes, np.int32))
        assert bool(find_loops(song, similarity=ALIKE)) == (n_bars == 9)
    assert after(bars_of(8, 2), words, BAR * 8).alike[0].tolist() == [0, 6, 0, 4]


def test_bars_that_differ_or_come_back_later_are_no_loop():
    words = Vocabulary()
    silent = [(onset + 2 * BAR * (onset >= 7 * BAR), pitch) for onset, pitch in bars_of(9, 1)]
    for notes in (bars_of(20, 1, changed=2), bars_of(20, 5), silent):
        recent = after(notes[:-2], words, notes[-2][0])
        assert ruled_out(recent, notes[-2][0], words) == []


def test_a_bar_takes_no_more_notes_than_it_may():
    words = Vocabulary(Scheme(multi=True), merges=((vocab.NOTE_0, vocab.DURATION_0 + 4),))
    recent = after([(0, 60), (0, 64), (8, 60), (8, 60)], words, 16)  # the same note twice counts once
    assert ruled_out(recent, 16, words, max_notes=4) == []
    excluded = set(ruled_out(recent, 16, words, max_notes=3))
    assert {vocab.NOTE_0, vocab.NOTE_0 + 127, vocab.INSTRUMENT_0, vocab.INSTRUMENT_0 + 128, words.size - 1} <= excluded
    assert not excluded & {vocab.SEP, vocab.EOS, vocab.DURATION_0 + 4}
    assert ruled_out(entered(recent, BAR), BAR, words, max_notes=3) == []


def test_notes_within_merges_are_counted():
    part = (vocab.NOTE_0 + 60, vocab.DURATION_0 + 4, vocab.SEP, vocab.DURATION_0 + 8)
    words = Vocabulary(Scheme(), merges=((*part, *part), part[:2]))
    recent = entered(recent_bars.init_recent_bars(jnp.array([0]), words.scheme), 0)
    recent = written(recent, 389, 0, words)
    assert recent.sizes[0, 0] == 2
    assert np.flatnonzero(recent.notes[0, :, 60]).tolist() == [0, 8]
    recent = written(entered(recent, 28), 389, 28, words)
    assert recent.sizes[0, 0] == 3  # its second note is in the next bar


def test_silence_ends():
    words = Vocabulary()
    recent = after([(0, 60)], words, 8)
    rests = ruled_out(recent, 8, words, vocab.REST)
    assert rests == list(range(vocab.DURATION_0 + 8 * BAR - 8 + 1, vocab.DURATION_0 + vocab.MAX_DURATION + 1))
    assert ruled_out(entered(recent, 8 * BAR), 8 * BAR, words) == [vocab.SEP]


def test_lengths():
    song = new_song(Scheme())._replace(
        bars=np.array([[0, 32, 0], [64, 24, 2]]), tempos=np.array([[0, 500_000], [64, 1_000_000]], np.int32)
    )
    assert span(Length(), song, 32) == (NEVER, 64 + 15 * 24)
    assert span(Length(bars=3), song, 32) == (NEVER, 64 + 2 * 24)
    assert span(Length(seconds=2.0), song, 32) == (NEVER, 64)  # one bar of 4/4 at 120
    assert span(Length(seconds=2.1), song, 32) == (NEVER, 64 + 24)
    assert span(Length(seconds=5.0), song, 32) == (NEVER, 64 + 24)  # and one of 3/4 at 60
    assert span(Length(bars=9, eos=True, min_bars=2), song, 32) == (64 + 24, 64 + 8 * 24)
    assert span(Length(bars=9, eos=True, min_seconds=3.5), song, 32) == (64 + 12, 64 + 8 * 24)
    for tempos in ([[0, 500_000], [64, 1_000_000]], [[64, 1_000_000]], []):  # 120 beats a minute before the first
        song = song._replace(tempos=np.array(tempos, np.int32).reshape(-1, 2))
        assert [song.time_at(song.seconds_at(step)) for step in range(200)] == list(range(200))


def test_music_may_end_by_itself(small):
    """A model that wants nothing but to end does so as soon as it may."""
    _, params = build(small)
    params["output_bias"] = params["output_bias"].at[vocab.EOS].add(100)
    sampler = Sampler(TrainedModel(small, params, Vocabulary()))
    (take,) = sampler.continue_(bars=20, eos=True, min_bars=3)
    assert take.stopped == "ended by itself"
    assert take.session.rows[0].tokens[-1] == vocab.EOS
    assert 3 * 32 <= take.session.rows[0].next_time < 13 * 32
    assert sampler.continue_(bars=20)[0].stopped == "at the bar line"
    more = sampler.continue_(take, bars=5, eos=True)[0]
    assert more.summary() == "0 bars, 0 notes in 0.0 s (0.0 per second), ended by itself"
    assert len(sampler.continue_(take, bars=5)[0].song.notes) == len(take.song.notes)  # over is over


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature 0.0: give a number above 0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"temperature": float("inf")}, "temperature inf"),
        ({"top_p": 0.0}, "top-p 0.0: give a number above 0"),
        ({"top_k": -1}, "top-k -1"),
        ({"phrase_bars": -1}, "phrase-bars -1: give up to 128 bars, or 0 for none"),
        ({"top_k": 500}, "top-k 500: the vocabulary has 389 tokens"),
        ({"min_p": 2.0}, "min-p 2"),
        ({"loop_bars": 1}, "loop-bars 1"),
        ({"max_density": -1.0}, r"max-density -1\.0: give a number from 0, no limit, to 1000"),
        ({"loop_bars": 99_999}, "loop-bars 99999: give 2 to 10000 bars"),
        ({"key": "H"}, "key H: no key"),
        ({"key": (12,)}, r"key \(12,\): give pitch classes from 0 to 11"),
        ({"lowest": "Q"}, "lowest Q: no pitch"),
        ({"instruments": (129,)}, r"instruments \(129,\): give programs from 0 to 127"),
        ({"num": 0}, "num 0: give a number from 1 to 4096"),
        ({"seed": 1 << 32}, "seed 4294967296: give a whole number from 0"),
        ({"prompt": []}, r"can't continue \[\]"),
        ({"seconds": float("inf")}, "the song would be longer than 1,048,575 grid steps"),
        ({"seconds": 1e9}, "the song would be longer"),
        ({"bars": 4, "eos": True, "min_seconds": 9.0}, "min-bars or min-seconds: the song stops earlier"),
        ({"lowest": 61, "highest": 61, "key": parse_key("C major")}, "no pitch from 61 to 61 is in the key"),
        ({"lowest": 84, "highest": 48}, "lowest 84 is above highest 48; swap them"),
        ({"warmth": 3}, "warmth: no such setting; there are temperature, copy, top_k,"),
        ({"prompt_bars": 0}, "prompt_bars 0: give a number above 0"),
        ({"num": 5000}, "num 5000: give a number from 1 to 4096"),
        ({"instruments": (0,)}, "instruments: this model knows none"),
        ({"bars": 0}, "bars 0: give a number above 0"),
        ({"bars": 2, "seconds": 2.0}, "not both"),
        ({"min_bars": 2}, "min-bars 2: only with eos"),
    ],
)
def test_misuse_is_named(sampler, settings, message):
    with pytest.raises(InputError, match=message):
        sampler.continue_(**settings)


def test_a_prompt_that_is_too_long_is_named(sampler, monkeypatch):
    monkeypatch.setattr("midigen_jax.sampling.prompts.MAX_PROMPT_TOKENS", 100)
    notes = np.array([[8 * i, 8, 60 + i % 7, 0, 80] for i in range(99)], np.int32)
    with pytest.raises(InputError, match=r"the prompt has 3\d\d tokens, more than 100; give fewer bars"):
        sampler.continue_(new_song(Scheme())._replace(notes=notes), prompt_bars=99)


def test_settings_in_words():
    words = GenerationSettings.parse(lowest="C3", highest="C6", key="D minor", instruments="0, 32,drums", top_k=3)
    assert words == GenerationSettings(
        lowest=48, highest=84, key=parse_key("D minor"), instruments=(0, 32, 128), top_k=3
    )


def test_names_of_pitches_and_keys():
    assert [parse_pitch(x) for x in ("0", "127", "C4", "c-1", "F#3", "Bb2", "G9")] == [0, 127, 60, 0, 54, 46, 127]
    assert parse_key("C") == parse_key("c major") == (0, 2, 4, 5, 7, 9, 11) == parse_key("A minor")
    assert parse_key("A harmonic minor") == (0, 2, 4, 5, 8, 9, 11)
    assert parse_key("Eb major") == parse_key("C minor") == (0, 2, 3, 5, 7, 8, 10)
    for wrong in ("H4", "128", "C", "G#9", "-3", ""):
        with pytest.raises(InputError, match="no pitch"):
            parse_pitch(wrong)
    for wrong in ("H major", "C dorian", "", "C#x"):
        with pytest.raises(InputError, match="no key"):
            parse_key(wrong)


@pytest.mark.parametrize("settings", [{"bars": "8"}, {"bars": 1.5}, {"seconds": "8"}, {"min_bars": "8", "eos": True}])
def test_lengths_that_are_no_numbers_are_refused(settings):
    """As a user's call does; here the type checks of the tests would refuse them first."""
    with pytest.raises(InputError, match="give a"):
        Length.__post_init__(SimpleNamespace(**dataclasses.asdict(Length()) | settings))


@pytest.mark.parametrize(
    "settings", [{"temperature": "hot"}, {"top_k": None}, {"top_k": 1.5}, {"top_p": "0.9"}, {"copy": "0.5"}]
)
def test_settings_that_are_no_numbers_are_refused(settings):
    with pytest.raises(InputError, match=r"give a (whole )?number"):
        GenerationSettings.__post_init__(SimpleNamespace(**dataclasses.asdict(GenerationSettings()) | settings))
