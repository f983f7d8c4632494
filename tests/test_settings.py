import dataclasses
from types import SimpleNamespace

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
from midigen_jax.music.pitches import parse_key, parse_pitch
from midigen_jax.music.song import Prompt, new_song, notes_of
from midigen_jax.run.trained import TrainedModel
from midigen_jax.sampling import logits_processors, repetition
from midigen_jax.sampling.decode_state import NEVER
from midigen_jax.sampling.generation import span
from midigen_jax.sampling.repetition import LAGS
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


def after(pairs, words):
    """The repetition state after a melody of notes (pitch, rest after it in grid steps), and the time."""
    repeated, now, state = repetition.init_repetition(jnp.array([0])), 0, vocab.START
    for pitch, rest in pairs:
        for token in (vocab.NOTE_0 + pitch, vocab.DURATION_0 + 1 + pitch % 7, vocab.SEP, vocab.DURATION_0 + rest):
            repeated = repetition.update(repeated, jnp.array([state]), jnp.array([token]), jnp.array([now]), words)
            now += int(words.grammar[1][state, token])
            state = int(words.grammar[0][state, token])
    return repeated, now


def ruled_out(repeated, now, words, state=vocab.EVENT, loop_bars=8):
    settings = logits_processors.make_setting_arrays(GenerationSettings(loop_bars=loop_bars), words)
    numbers = (jnp.array([x]) for x in (state, now, 32))
    mask = repetition.repetition_mask(*[repeated, *numbers, settings, words])
    return np.flatnonzero(mask[0]).tolist()


@pytest.mark.parametrize("period", [1, slow(2), 4])
def test_a_loop_of_some_bars_is_left_after_seven(period):
    words, random = Vocabulary(), np.random.default_rng(0)
    bars = [[(int(pitch), 8) for pitch in random.integers(40, 80, 4)] for _ in range(period)]
    melody = [note for _ in range(20) for bar in bars for note in bar]
    for n_bars in range(period, 12):
        repeated, now = after(melody[: 4 * n_bars], words)
        assert now == 32 * n_bars
        expected = [] if n_bars <= 7 else [vocab.NOTE_0 + melody[4 * n_bars][0]]
        assert ruled_out(repeated, now, words) == expected, n_bars
        assert ruled_out(repeated, now, words, loop_bars=0) == []
    # One note is another: half of what was repeated counts on.
    melody[4 * 8] = (5, 8)
    assert ruled_out(*[*after(melody[: 4 * 9], words), words]) == []
    assert ruled_out(*[*after(melody[: 4 * 14], words), words]) == [vocab.NOTE_0 + melody[4 * 14][0]]


def test_what_repeats_itself_more_slowly_is_no_loop():
    words, random = Vocabulary(), np.random.default_rng(0)
    melody = [(int(pitch), 8) for pitch in random.integers(40, 80, 5 * 4)] * 6
    assert ruled_out(*[*after(melody, words), words]) == []
    assert LAGS > 5 * 4 * 2


def test_silence_ends():
    words = Vocabulary()
    repeated, now = after([(60, 8)], words)
    rests = ruled_out(repeated, now, words, vocab.REST)
    assert rests == list(range(vocab.DURATION_0 + 8 * 32 - now + 1, vocab.DURATION_0 + vocab.MAX_DURATION + 1))
    assert ruled_out(repeated, 8 * 32, words) == [vocab.SEP]


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
