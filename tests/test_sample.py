import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stages
from conftest import random_notes, slow, write_midi
from flax import nnx
from small_models import (
    BOTH,
    KINDS_AND_BOTH,
    MEMORIES,
    OPTIONS,
    SOME_MEMORIES,
    build,
    changed,
    logits_in_segments,
    some,
)

from midigen_jax import vocab
from midigen_jax.errors import InputError
from midigen_jax.evaluation.ablations import without_knn
from midigen_jax.kernels import meter, score
from midigen_jax.model import cache as caches
from midigen_jax.model import pointer
from midigen_jax.model.decode import attention_weights, decode_token
from midigen_jax.model.decoder import init_params
from midigen_jax.music import midi
from midigen_jax.music.song import Prompt, TokenSequence, cut, new_song, notes_of
from midigen_jax.run.trained import TrainedModel
from midigen_jax.sampling import decode_state, logits_processors, note_order, programs, recent_bars
from midigen_jax.sampling.continuation import write_sample
from midigen_jax.sampling.decode_state import NEVER, DecodeState
from midigen_jax.sampling.generation import make_timeline
from midigen_jax.sampling.programs import CHUNK
from midigen_jax.sampling.sampler import Sampler
from midigen_jax.sampling.settings import GenerationSettings, Length
from midigen_jax.vocab import FAITHFUL, Scheme, Vocabulary

CHANGEABLE = GenerationSettings(temperature=1.0, top_p=1.0, loop_bars=0)


@pytest.fixture(scope="module")
def sampler(small):
    """A random model."""
    _, params = build(small)
    return Sampler(TrainedModel(small, params, Vocabulary()))


@pytest.fixture
def prompt(tmp_path):
    path = write_midi(tmp_path / "prompt.mid", [random_notes(np.random.default_rng(3), 60, beats=30)], meter=(3, 4))
    return midi.read_song(path, Scheme())


@pytest.mark.parametrize(
    ("memory", "options"),
    [
        # All code is reached by some; all pairs with --thorough.
        (
            pytest.param
            if memory in SOME_MEMORIES and options == ("all options" if memory == "faiss" else "musical")
            else slow
        )(MEMORIES[memory], OPTIONS[options], id=f"{memory}, {options}")
        for memory in MEMORIES
        for options in OPTIONS
    ],
)
def test_token_by_token_equals_training_in_segments(two_layers, memory, options):
    """The same logits as reading the songs in segments, both memories included, wherever sampling takes over.

    Prompts of other lengths, among them of whole segments; all songs go on until the ring of 64 slots has wrapped
    around, one of them after it stood still for a while.
    """
    config = changed(two_layers, **memory, **{f"model__{name}": value for name, value in options.items()})
    graphdef, params = build(config)
    random, prompts, n = np.random.default_rng(0), [1, 16, 17, 40, 130], 160
    highs = {"tokens": 389, "bar": 99, "position": 96}
    songs = {name: random.integers(0, high, (5, n)) for name, high in highs.items()}
    batch = {name: jnp.asarray(x, jnp.int32) for name, x in songs.items()}
    expected, _ = logits_in_segments(
        graphdef,
        params,
        config,
        batch | {"song": jnp.zeros((5, n), jnp.int32), "targets": jnp.zeros((5, n), jnp.int32)},
    )

    beginnings = [TokenSequence(*(x[row, :end] for x in songs.values())) for row, end in enumerate(prompts)]
    cache = Sampler(TrainedModel(config, params, Vocabulary())).read(beginnings)
    decoder = nnx.merge(graphdef, params)
    weights = attention_weights(decoder)

    @jax.jit
    def decode(token, bar, position, cache, active):
        logits, copies, cache = decode_token(
            decoder, token, bar, position, weights, caches.begin_tokens(cache, 1), active
        )
        return logits, copies, caches.end_tokens(cache)

    at, rows = np.array(prompts) - 1, np.arange(5)
    for i in range(2 * n):
        active = (at < n) & ((rows != 2) | (i < 9) | (i > 20))
        if i == 21:
            cache = jax.jit(caches.align)(cache)
        here = np.minimum(at, n - 1)
        logits, copies, cache = decode(*(x[rows, here] for x in batch.values()), cache, jnp.asarray(active))
        if copies is not None:
            logits = jnp.log(pointer.mixture(jax.nn.softmax(logits), copies))
        np.testing.assert_allclose(logits[active], expected[rows, here][active], atol=2e-4)
        at += active
    assert (at == n).all()
    if config.memory.has_keys:
        assert (cache.cache_index.before_segment == 24 + 64).all()


@pytest.mark.parametrize("changes", some(KINDS_AND_BOTH, "context+alignment"))
def test_without_copying_the_knn_memory_is_not_used(small, changes):
    config = changed(small, **changes)
    graphdef, params = build(config)
    random = np.random.default_rng(0)
    song = TokenSequence(*(random.integers(0, high, 100) for high in (389, 99, 96)))
    cache = Sampler(TrainedModel(config, params, Vocabulary())).read([song])

    def log_probabilities(params, copy):
        decoder = nnx.merge(graphdef, params)
        token, bar, position = jnp.array([[7], [3], [5]])
        weights = attention_weights(decoder)
        begun = caches.begin_tokens(cache, 1)
        logits, copies, _ = decode_token(decoder, token, bar, position, weights, begun, jnp.array([True]), copy)
        own = jax.nn.softmax(logits)
        return jnp.log(own if copies is None else pointer.mixture(own, copies))

    without = log_probabilities(params, pointer.NONE)
    np.testing.assert_allclose(without, log_probabilities(without_knn(params), 0.0), atol=1e-5)
    assert jnp.abs(without - log_probabilities(params, 0.0)).max() > 1e-2


def same_notes(some, others):
    return all(np.array_equal(a.song.notes, b.song.notes) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("bars", [1, 20])
def test_continuations_begin_with_the_prompt_and_have_their_length(sampler, prompt, bars):
    end = 4 * 24
    takes = sampler.continue_(prompt, prompt_bars=4, bars=bars, num=3, seed=1)
    songs = [take.song for take in takes]
    heard = prompt.notes[prompt.notes[:, 0] < end][:, :3]
    for take, song in zip(takes, songs, strict=True):
        assert (take.start, take.stopped) == (end, "at the bar line")
        before = song.notes[song.notes[:, 0] < end][:, :3]
        assert before[:, [0, 2]].tolist() == heard[:, [0, 2]].tolist()
        assert (before[:, 1] <= heard[:, 1]).all()  # cut at most at the very end
        assert song.end <= end + bars * 24
        assert (song.notes[:, 0] >= end).any() or bars == 1  # a rest can be longer than a bar
    assert len({song.notes.tobytes() for song in songs}) == 3 or bars == 1


def test_the_seed_and_the_row_decide(sampler, prompt):
    one, two, other = (sampler.continue_(prompt, prompt_bars=4, bars=12, num=2, seed=seed) for seed in (7, 7, 8))
    assert same_notes(one, two)
    assert not same_notes(one, other)
    assert not np.array_equal(one[0].song.notes, one[1].song.notes)


def test_sampling_is_without_dropout(sampler, prompt):
    """Which the model was trained with."""
    assert sampler.config.model.dropout > 0
    without = Sampler(TrainedModel(changed(sampler.config, model__dropout=0.0), sampler.model.params, Vocabulary()))
    assert same_notes(*(x.continue_(prompt, prompt_bars=4, bars=12, num=2, seed=7) for x in (sampler, without)))


def test_a_faithful_prompt_is_as_long_as_its_tokens(small, tmp_path):
    """Which are silent about the part of a rest beyond 256 steps."""
    words = Vocabulary(FAITHFUL)
    path = write_midi(tmp_path / "a.mid", [[(0, 1, 60), (40, 1, 64)]])
    (take,) = Sampler(TrainedModel(small, build(small)[1], words)).continue_(path, prompt_bars=99, bars=2)
    assert take.song.notes[:2, 0].tolist() == [0, 256]
    assert take.start == 9 * 32
    assert take.song.notes[2:, 0].min(initial=take.start) >= take.start


def test_an_invention_has_no_prompt(sampler):
    (take,) = sampler.continue_(bars=3)
    assert take.song.notes[0, 0] == 0  # it begins at once
    assert take.song.end <= 3 * 32


def test_a_shorter_prompt_ends_at_its_last_bar_and_a_silent_one_is_refused(tmp_path):
    song = midi.read_song(write_midi(tmp_path / "a.mid", [[(5, 1, 60), (6, 4, 64)]]), Scheme())
    assert cut(song, 8)[1] == 2 * 32
    with pytest.raises(InputError, match="no note begins in the prompt's first 1 bars"):
        cut(song, 1)


def test_a_meter_change_ends_the_bar_that_it_falls_into(prompt):
    """A pickup of one beat, 4/4, and 3/4 from step 100 on, which is in the middle of bar 3."""
    song = prompt._replace(bars=np.array([[0, 8, 0], [8, 32, 1], [100, 24, 4], [500, 16, 21]]))
    for bars, end, meters in ((1, 8, 2), (3, 72, 2), (4, 100, 3), (5, 124, 3)):
        kept, prompt_end, _ = cut(song, bars)
        assert (prompt_end, len(kept.bars)) == (end, meters)


def test_sampled_tokens_have_the_positions_of_the_song(small, prompt, monkeypatch):
    """The bar and position that sampling gives the model are those that encoding the same notes would give."""
    seen = []
    decode = programs.decode_token

    def spy(decoder, token, bar, position, *rest):
        jax.debug.callback(lambda *x: seen.append([int(y[0]) for y in x]), token, bar, position, ordered=True)
        return decode(decoder, token, bar, position, *rest)

    monkeypatch.setattr(programs, "decode_token", spy)
    programs.programs.cache_clear()  # compiled without the spy
    _, params = build(small)
    bars = np.array([[0, 8, 0], [8, 32, 1], [100, 24, 4]])
    begun = cut(prompt._replace(bars=bars), 4)
    (take,) = Sampler(TrainedModel(small, params, Vocabulary())).generate(begun, length=Length(25)).finish()
    jax.effects_barrier()
    programs.programs.cache_clear()

    def notes_alone(rows):
        """Rests are left out: a random model may write two in a row, where encoding writes one."""
        return [row for row in rows if vocab.NOTE_0 <= row[0] < vocab.DURATION_0]

    tokens, times = stages.index_score(stages.position_score(take.song.notes, Scheme()), Scheme())
    expected = notes_alone(np.stack([tokens, *meter.bar_positions(times, bars)], 1).tolist())
    expected = expected[len(begun.song.notes) :]
    compared = len(expected) - 1  # sampling continues beyond the end
    assert compared > 10
    assert notes_alone(seen)[:compared] == expected[:compared]


@pytest.fixture(scope="module")
def rich():
    """Instruments, velocities and merges, of one event and of several, with and without a rest or an instrument."""
    scheme = Scheme(8, multi=True, velocities=True)
    loud, short = vocab.velocity_0(scheme) + 20, vocab.DURATION_0 + 2
    note, rest, instrument = (vocab.NOTE_0 + 60, loud, short), (vocab.SEP, short), (vocab.INSTRUMENT_0 + 40,)
    drums = (vocab.INSTRUMENT_0 + vocab.DRUMS,)
    runs = (note, rest, note + rest, rest + note, drums + note + rest, note + instrument + note)
    return Vocabulary(scheme, runs)


def drawn(sampler, prompt, n_rows, n_tokens, settings=CHANGEABLE):
    """The tokens [n_rows, n_tokens] that it draws after a prompt, and the time after them."""
    held = sampler.prefill([prompt] * n_rows)
    timeline = make_timeline(held, [NEVER] * n_rows)._replace(max_drawn=jnp.full(n_rows, n_tokens, jnp.int32))
    chunks = list(
        sampler.sample_chunks(held.state, timeline, logits_processors.make_setting_arrays(settings, sampler.vocabulary))
    )
    rows = np.concatenate([chunk.tokens for chunk in chunks]).T
    assert (rows[:, n_tokens:] == vocab.PAD).all()
    return rows[:, :n_tokens], chunks[-1].next_time


def test_a_random_model_writes_only_what_the_grammar_allows(small, rich, tmp_path):
    """Whatever is sampled decodes, no token is lost, time is what the grammar says, and the file holds the notes."""
    config = changed(small, **BOTH)
    _, params = init_params(config, rich, seed=0)
    sampler = Sampler(TrainedModel(config, params, rich))
    rows, now = drawn(sampler, Prompt(new_song(rich.scheme), 20), 40, 8 * CHUNK)
    (next_state, steps), parts = rich.grammar, set()
    for row, end in zip(rows.astype(np.uint16), now, strict=True):
        place, time, n_notes = vocab.START, 0, 0
        for token in row.tolist():
            time += steps[place, token]
            place = next_state[place, token]
            assert place not in (vocab.FORBIDDEN, vocab.END)
            base = rich.merges[token - rich.scheme.size] if token >= rich.scheme.size else (token,)
            n_notes += sum(vocab.NOTE_0 <= part < vocab.DURATION_0 for part in base)
        assert time == end
        notes = notes_of(row, rich)
        assert n_notes - 1 <= len(notes) <= n_notes  # the last one may wait for its duration
        assert notes[0, 0] >= 20
        parts |= set(notes[:, score.PART].tolist())
    assert vocab.DRUMS in parts
    song = sampler.continue_(bars=3)[0].song
    midi.write_song(tmp_path / "a.mid", song)
    written = midi.read_song(tmp_path / "a.mid", rich.scheme)
    assert {tuple(note) for note in written.notes.tolist()} <= {tuple(note) for note in song.notes.tolist()}


def test_every_sampled_token_is_one_that_may_follow(small, sampler):
    """From a random model, which would write nonsense if it could."""
    rows, now = drawn(sampler, Prompt(new_song(Scheme()), 300), 50, 400)
    heads, durations = rows[:, 0::2], rows[:, 1::2]
    assert ((heads >= vocab.SEP) & (heads < vocab.DURATION_0)).all()
    assert (durations > vocab.DURATION_0).all()
    onsets = np.concatenate([score.notes_from_tokens(row, Scheme())[:, 0] for row in rows])
    assert onsets.min() >= 300  # nothing before the prompt's end
    rests = np.where(heads == vocab.SEP, durations - vocab.DURATION_0, 0).cumsum(1)
    assert (now == rests[:, -1]).all()


def test_advance_and_allowed_tokens(sampler):
    words = Vocabulary(Scheme(), merges=((vocab.SEP, vocab.DURATION_0 + 8), (vocab.NOTE_0, vocab.DURATION_0 + 1)))
    prompt = Prompt(new_song(words.scheme), 10)
    timeline = make_timeline(sampler.prefill([prompt]), [NEVER])
    order, recent = note_order.init_note_order(jnp.array([0])), recent_bars.init_recent_bars(jnp.array([10]), Scheme())
    numbers = (vocab.SOS, vocab.START, vocab.NO_INSTRUMENT, 0, 0, 5, 0)
    place = DecodeState(*[*(jnp.array([x]) for x in numbers), order, recent])
    rules = logits_processors.make_setting_arrays(CHANGEABLE, words)

    def choices(timeline=timeline):
        entered, position = decode_state.enter_bar(place, timeline)
        return np.flatnonzero(decode_state.allowed_tokens(entered, timeline, position, rules, words)[0])

    def advanced(token):
        entered, position = decode_state.enter_bar(place, timeline)
        return decode_state.advance(entered, jnp.array([token]), position, words)

    assert choices().tolist() == [vocab.SEP]
    place = advanced(vocab.SEP)
    assert choices().tolist() == [vocab.DURATION_0 + i for i in range(10, 257)]
    place = advanced(vocab.DURATION_0 + 12)
    assert [int(x[0]) for x in place[:6]] == [
        vocab.DURATION_0 + 12,
        vocab.START,
        vocab.NO_INSTRUMENT,
        0,
        12,
        7,
    ]
    assert choices().tolist() == [*range(vocab.SEP, vocab.DURATION_0), 389, 390]
    place = advanced(vocab.NOTE_0 + 60)
    place = advanced(vocab.DURATION_0 + 4)
    assert (int(place.time[0]), int(place.next_time[0])) == (12, 12)  # a note does not move time
    assert vocab.EOS not in choices()
    ending = timeline._replace(eos_from=jnp.array([12]))
    assert vocab.EOS in choices(ending)
    place = advanced(389)
    assert (int(place.time[0]), int(place.next_time[0])) == (12, 20)  # a merge that holds a rest does


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, 4),
        ({"top_k": 2}, 2),
        ({"top_p": 0.5}, 1),
        ({"top_p": 0.51}, 2),
        ({"top_p": 1e-50}, 1),  # 0 in single precision
        ({"min_p": 0.4}, 2),
        ({"temperature": 0.1, "min_p": 0.01}, 1),
    ],
)
def test_controls_rule_tokens_out(settings, kept):
    settings = {"temperature": 1.0, "top_p": 1.0} | settings
    rules = logits_processors.make_setting_arrays(GenerationSettings(**settings), Vocabulary())
    if "top_k" not in settings:
        rules = rules._replace(top_k=jnp.int32(4))  # all that there are here
    logits = jnp.log(jnp.array([[0.05, 0.5, 0.15, 0.3]]))
    restricted = np.asarray(logits_processors.process_logits(logits, None, jnp.ones((1, 4), bool), rules))[0]
    order = [1, 3, 2, 0]
    assert np.isfinite(restricted[order]).tolist() == [True] * kept + [False] * (4 - kept)
    expected = logits[0][jnp.array(order[:kept])] / settings["temperature"]
    np.testing.assert_allclose(restricted[order[:kept]], expected, rtol=1e-6)


def test_files_of_a_prompt_with_a_dotted_name(sampler, tmp_path):
    (take,) = sampler.continue_(bars=2)
    write_sample(take.song, tmp_path / "bwv66.6-1", prompt_end=None, title="$a_b$ \udce9")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"bwv66.6-1.{x}" for x in ("mid", "png", "wav")]
