"""States that are kept, forked and exported."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_notes, write_midi
from small_models import BOTH, build, changed

from midigen_jax.cli import command, sample
from midigen_jax.errors import InputError
from midigen_jax.model import cache as caches
from midigen_jax.music import midi
from midigen_jax.music.quality import Fault
from midigen_jax.run import trained
from midigen_jax.run.trained import TrainedModel
from midigen_jax.sampling import continuation, note_order, prompts, recent_bars
from midigen_jax.sampling import session as sessions
from midigen_jax.sampling.decode_state import DecodeState
from midigen_jax.sampling.generation import Generation
from midigen_jax.sampling.programs import CHUNK
from midigen_jax.sampling.sampler import FIRST_CHUNK, Sampler
from midigen_jax.sampling.settings import Length
from midigen_jax.vocab import Scheme, Vocabulary


@pytest.fixture(scope="module")
def sampler(small):
    """A random model, whose ring wraps around within a few bars."""
    config = changed(small, **BOTH)
    return Sampler(TrainedModel(config, build(config)[1], Vocabulary()))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    notes = random_notes(np.random.default_rng(3), 60, beats=30)
    return write_midi(tmp_path_factory.mktemp("prompt") / "prompt.mid", [notes])


def tokens(takes):
    return [take.session.rows[take.row].tokens.tolist() for take in takes]


@pytest.fixture(scope="module")
def never_stopped(sampler, file):
    return sampler.continue_(file, prompt_bars=4, bars=72, num=3, seed=5)


def test_going_on_gives_the_tokens_of_never_stopping(sampler, file, never_stopped, tmp_path):
    """From memory and from a file, though the rows stopped at different tokens."""
    first = sampler.continue_(file, prompt_bars=4, bars=18, num=3, seed=5)
    drawn = first[0].session.state.decode.drawn
    assert len(set(drawn.tolist())) == 3
    first[0].session.save(tmp_path / "a.state")
    loaded = sampler.load_state(tmp_path / "a.state")
    for takes in (first, loaded, first):  # going on leaves a state as it was
        rest = sampler.continue_(takes, bars=54, seed=5)
        assert tokens(rest) == tokens(never_stopped)
        assert [take.start for take in rest] == [22 * 32] * 3
    same = zip(jax.tree.leaves(first[0].session.state), jax.tree.leaves(loaded[0].session.state), strict=True)
    assert all(np.array_equal(a, b) for a, b in same)


def test_a_fork_goes_different_ways_from_the_same_past(sampler, file, never_stopped):
    (first,) = sampler.continue_(file, prompt_bars=4, bars=9, seed=5)
    past = tokens([first])[0]
    forks = tokens(sampler.continue_(first, bars=63, num=3, seed=5))
    assert all(fork[: len(past)] == past for fork in forks)
    assert len({tuple(fork) for fork in forks}) == 3
    assert forks[0] == tokens(never_stopped)[0]


def test_a_row_that_goes_on_alone_or_first_of_its_forks_goes_on_as_ever(sampler, file, never_stopped, tmp_path):
    """From memory and from a file of its own, whatever place it has."""
    takes = sampler.continue_(file, prompt_bars=4, bars=9, num=3, seed=5)
    takes[2].save_state(tmp_path / "a.state")
    for start in (takes[2], sampler.load_state(tmp_path / "a.state")):
        forks = sampler.continue_(start, bars=63, num=4, seed=5)
        assert tokens(forks)[0] == tokens(never_stopped)[2]
        assert len({tuple(fork) for fork in tokens(forks)}) == 4
    backwards = sampler.continue_(takes[::-1], bars=63, seed=5)
    assert tokens(backwards) == tokens(never_stopped)[::-1]
    assert tokens(sampler.continue_(takes, bars=63, num=2, seed=5)) == tokens(never_stopped)[:2]


def test_the_best_of_several_is_kept(sampler, file, monkeypatch):
    """Of each prompt's own candidates; the faults are those of the new music."""
    monkeypatch.setattr(continuation, "find_faults", lambda new, before: [Fault("", "", float(len(new.notes) % 7))])
    before = sampler.continue_(file, prompt_bars=2, bars=2, num=3)
    chosen = sampler.continue_(before, bars=2, num=2, best_of=4)
    every = sampler.continue_(before[:2] * 4, bars=2)
    for i, take in enumerate(chosen):
        candidates = every[i::2]
        best = min(candidates, key=lambda x: (not x.faults, sum(fault.excess for fault in x.faults)))
        assert tokens([take]) == tokens([best])
    assert [len(take.song.notes) % 7 for take in every] != [0] * 8


def test_faults_are_named_in_the_summary(sampler, file):
    (take,) = sampler.continue_(file, prompt_bars=2, bars=4, temperature=3.0)
    take.__dict__["faults"] = [
        Fault("one chord", "one chord for 9 bars", 2.0),
        Fault("density", "45 notes a bar", 1.5),
    ]
    assert take.summary().endswith("; one chord for 9 bars; 45 notes a bar")


def test_streams_of_copies():
    """The first copy has the row's own, the others those that none has."""
    ints, keys = jnp.arange(2), jnp.zeros((6, 4, 2))
    cache = caches.Cache(
        (keys,), (keys,), None, None, jnp.zeros((2, 0), int), caches.CacheIndex(ints[0], ints[0], ints, ints, ints)
    )
    order, recent = note_order.init_note_order(ints), recent_bars.init_recent_bars(ints, Scheme())
    decode = DecodeState(ints, ints, ints, ints, ints, ints, jnp.array([1, 4]), order, recent)
    held = sessions.Session(sessions.SamplerState(cache, decode), ["a", "b"], "")
    taken = held.select([1, 1, 0, 1])
    assert taken.state.decode.stream.tolist() == [4, 0, 1, 2]
    assert taken.rows == ["b", "b", "a", "b"]
    assert held.select([1, 1]).state.decode.stream.tolist() == [4, 0]  # as if it had been saved alone


def test_stopping_keeps_what_there_is_and_going_on_is_as_ever(sampler, file, never_stopped):
    end = never_stopped[0].session.rows[0].end
    playing = sampler.generate(file, prompt_bars=4, length=Length(72), num=3, seed=5)
    takes = playing.finish(stopping=[2])
    assert all(take.stopped == "cut off (too many notes, or interrupted)" for take in takes)
    drawn = takes[0].session.state.decode.drawn.tolist()
    assert drawn == [FIRST_CHUNK + CHUNK] * 3
    rest = sampler.sample(takes[0].session, [end] * 3, seed=5).finish()
    assert tokens(rest) == tokens(never_stopped)
    assert repr(rest[0]).startswith("<Continuation: ")


def test_ctrl_c_writes_what_there_is(exported, tmp_path, monkeypatch, capsys):
    begin = Generation.__next__

    def interrupted(self):
        os.kill(os.getpid(), signal.SIGINT)
        monkeypatch.setattr(Generation, "__next__", begin)
        return begin(self)

    monkeypatch.setattr(Generation, "__next__", interrupted)
    said = run_command(
        monkeypatch, capsys, exported, "--out", tmp_path, "--bars", 99, "--save-state", tmp_path / "a"
    ).out
    assert said.count("cut off (too many notes, or interrupted)") == 4
    assert "4 songs to continue from" in said
    assert len(list(tmp_path.iterdir())) == 4 * 3 + 1


def test_what_was_heard_before_matters(sampler, file, tmp_path):
    other = write_midi(tmp_path / "other.mid", [random_notes(np.random.default_rng(4), 90, beats=40)])
    plain, after = (
        sampler.continue_(file, prompt_bars=1, bars=9, seed=5, context_song=heard) for heard in (None, other)
    )
    assert tokens(plain) != tokens(after)
    assert np.array_equal(plain[0].song.bars, after[0].song.bars)
    counts = [
        sampler.prefill([sampler.prompt(file, prompt_bars=1, context_song=x)]).state.cache.cache_index.before_segment
        for x in (None, other)
    ]
    assert counts[0] < counts[1]
    encoded = prompts.encode(sampler.prompt(file, prompt_bars=1, context_song=other), sampler.vocabulary)
    own = len(encoded.own.bar)
    assert (np.diff(encoded.read.bar) >= 0).all()
    assert (encoded.read.bar[-own:] == encoded.own.bar).all()
    assert encoded.read.bar[-own - 1] == -1  # the context song's bars come before the prompt's
    with pytest.raises(InputError, match="a continuation has its own context"):
        sampler.continue_(plain, context_song=other)


def test_a_row_depends_on_no_other(sampler, file, tmp_path):
    """To the bit, whatever is beside it: another prompt, a longer one, one whose ring is full."""
    other = write_midi(tmp_path / "other.mid", [random_notes(np.random.default_rng(4), 200, beats=60)])
    a, b, c = (sampler.prompt(path, prompt_bars=n) for path, n in ((file, 4), (other, 15), (file, 2)))
    results = []
    for rows in ([a, b], [a, c], [a, a]):
        held = sampler.prefill(rows)
        playing = sampler.sample(held, [prompt.end + 12 * 32 for prompt in rows], seed=3)
        takes = playing.finish()
        results.append(tokens(takes)[0])
    assert results[0] == results[1] == results[2]
    assert len(results[0]) > 100


def test_a_state_is_refused_where_it_does_not_belong(small, sampler, file, tmp_path):
    (take,) = sampler.continue_(file, bars=1)
    take.save_state(tmp_path / "a.state")
    other = Sampler(TrainedModel(small, build(small, seed=1)[1], Vocabulary()))
    with pytest.raises(InputError, match=r"a\.state: a state of another model"):
        other.load_state(tmp_path / "a.state")
    with pytest.raises(InputError, match="of another model"):
        other.continue_(take)
    with pytest.raises(InputError, match="no such file"):
        sampler.load_state(tmp_path / "b.state")
    content = (tmp_path / "a.state").read_bytes()
    (tmp_path / "a.state").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="can't be read as a midigen_jax state file"):
        sampler.load_state(tmp_path / "a.state")
    flipped = bytearray(content)
    flipped[-1000] ^= 1
    (tmp_path / "a.state").write_bytes(flipped)
    with pytest.raises(InputError, match=r"a\.state: damaged, its content is not what was written"):
        sampler.load_state(tmp_path / "a.state")
    trained.export(tmp_path / "model", TrainedModel(small, sampler.model.params, Vocabulary()))
    with pytest.raises(InputError, match="is not a midigen_jax state file but a midigen_jax model file"):
        sampler.load_state(tmp_path / "model")


@pytest.mark.parametrize("retrieval", ["context+alignment", "attention"])
def test_states_of_a_bfloat16_model(small, file, tmp_path, retrieval):
    config = changed(small, model__dtype="bfloat16", memory__dtype="bfloat16", memory__retrieval=retrieval)
    sampler = Sampler(TrainedModel(config, build(config)[1], Vocabulary()))
    (take,) = sampler.continue_(file, prompt_bars=4, bars=4)
    take.save_state(tmp_path / "a.state")
    loaded = sampler.load_state(tmp_path / "a.state")
    assert tokens(sampler.continue_(loaded, bars=4)) == tokens(sampler.continue_(take, bars=4))


def test_an_exported_model_is_one_file_that_samples_the_same(sampler, file, tmp_path):
    model = dataclasses.replace(sampler.model, step=7, corpus="abc")
    trained.export(tmp_path / "model.safetensors", model)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    exported = Sampler.load(tmp_path / "model.safetensors")
    assert (exported.config, exported.vocabulary) == (sampler.config, Vocabulary())
    assert (exported.model.step, exported.model.corpus) == (7, "abc")
    assert exported.model.fingerprint == sampler.model.fingerprint
    assert tokens(exported.continue_(file, bars=2)) == tokens(sampler.continue_(file, bars=2))


def test_an_export_of_half_the_size_has_rounded_parameters(sampler, tmp_path):
    trained.export(tmp_path / "whole", sampler.model)
    trained.export(tmp_path / "half", sampler.model, half=True)
    whole, half = (trained.load(tmp_path / name) for name in ("whole", "half"))
    assert (tmp_path / "half").stat().st_size < 0.6 * (tmp_path / "whole").stat().st_size
    for x, rounded in zip(jax.tree.leaves(whole.params), jax.tree.leaves(half.params), strict=True):
        assert rounded.dtype == x.dtype
        np.testing.assert_allclose(rounded, x, rtol=2**-11, atol=2**-25)


def test_a_damaged_export_is_refused(sampler, tmp_path):
    path = tmp_path / "model"
    wider = changed(sampler.config, model__ff_width=128)
    trained.export(path, TrainedModel(wider, sampler.model.params, Vocabulary()))
    with pytest.raises(InputError, match="damaged model file; export it again"):
        Sampler.load(path)
    path.write_text("not a model")
    with pytest.raises(InputError, match="can't be read as a midigen_jax model file"):
        Sampler.load(path)


def test_an_exported_model_has_no_best_checkpoint(exported):
    with pytest.raises(InputError, match="an exported model is one checkpoint"):
        Sampler.load(exported, best=True)


def test_the_package_loads_without_jax():
    """Which the loader's processes count on."""
    done = subprocess.run(
        [sys.executable, "-c", "import midigen_jax, sys; sys.exit('jax' in sys.modules)"], check=False
    )
    assert done.returncode == 0


@pytest.fixture(scope="module")
def exported(small, sampler, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "model.safetensors"
    trained.export(path, TrainedModel(small, sampler.model.params, Vocabulary()))
    return path


def run_command(monkeypatch, capsys, *arguments):
    """What sample.py says."""
    monkeypatch.setattr("sys.argv", ["sample.py", *map(str, arguments)])
    with contextlib.suppress(SystemExit):
        command.run(sample.main)
    return capsys.readouterr()


def test_the_command_continues_holds_and_goes_on(exported, file, tmp_path, monkeypatch, capsys):
    out, state = tmp_path / "out", tmp_path / "a.state"
    common = (exported, "--out", out, "--bars", 3)
    said = run_command(monkeypatch, capsys, *common, "--prompt", file, "--prompt-seconds", 5, "--num", 1).out
    assert "3 bars, " in said
    assert "at the bar line" in said
    assert "; longest common excerpt: " in said
    run_command(monkeypatch, capsys, *common, "--prompt", file, "--num", 2, "--save-state", state)
    longer = (*common[:-1], 12)  # a rest may fill three bars
    said = run_command(monkeypatch, capsys, *longer, "--load-state", state, "--num", 3, "--stream").out
    assert said.count("12 bars, ") == 3
    names = [f"prompt-{i}" for i in (1, 2)] + [f"a-{i}" for i in (1, 2, 3)]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        f"{n}.{x}" for n in names for x in ("mid", "png", "wav")
    )
    one, two = (midi.read_song(out / f"a-{i}.mid", Scheme()) for i in (1, 3))
    begins = one.bar_start(11)
    assert np.array_equal(
        *(song.notes[song.notes[:, 0] < begins][:, [0, 2]] for song in (one, two))
    )  # the same song ...
    assert not np.array_equal(one.notes, two.notes)  # ... and two ways on


def test_files_that_cannot_be_written_are_named_before_anything_is_sampled(exported, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(Generation, "__next__", lambda self: pytest.fail("it has begun"))
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "invention-1.mid").mkdir(parents=True)
    out, state = ("--out", tmp_path / "file" / "out"), ("--out", tmp_path, "--save-state", tmp_path / "folder")
    assert "Not a directory" in run_command(monkeypatch, capsys, exported, *out).err
    assert (
        "invention-1.mid: Is a directory"
        in run_command(monkeypatch, capsys, exported, "--out", tmp_path / "folder").err
    )
    assert "--save-state" in (said := run_command(monkeypatch, capsys, exported, *state).err)
    assert f"can't be written ({tmp_path / 'folder'}: Is a directory); give another" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--instruments 3", "instruments: this model knows none; train one on a corpus encoded with --tracks multi"),
        ("--top-k 999", "top-k 999: the vocabulary has 389 tokens; give fewer, or 0"),
        ("--prompt nothing.mid", "--prompt nothing.mid: no such file"),
        ("--context-song nothing.mid", "--context-song nothing.mid: no such file"),
        ("--load-state nothing", "--load-state nothing: no such file"),
        ("--port nowhere", "--port nowhere: no "),
        ("--data nothing", "nothing: no such folder"),
        ("--seed -1", "seed -1: give a whole number from 0 to 4294967295"),
        ("--bars 99999", "the song would be longer than 1,048,575 grid steps"),
        ("--bars 99999999999999999999999", "the song would be longer than 1,048,575 grid steps"),
        ("--bars 3 --eos --min-bars 3", "min-bars or min-seconds: the song stops earlier"),
    ],
)
def test_misuse_of_the_command_is_one_line(exported, monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    said = run_command(monkeypatch, capsys, exported, *arguments.split())
    assert said.err.startswith(f"error: {message}")
    assert len(said.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_rows_of_a_model_without_previous_tokens_can_be_taken():
    ints, keys = jnp.arange(2), jnp.arange(48.0).reshape(6, 4, 2)  # two rows of three heads
    place = caches.CacheIndex(ints[0], ints[0], ints, ints, ints)
    taken = caches.select_rows(
        caches.Cache((keys,), (keys,), None, None, jnp.zeros((2, 0), int), place), jnp.array([1, 1, 0])
    )
    assert taken.previous.shape == (3, 0)
    np.testing.assert_array_equal(taken.keys[0], jnp.concatenate([keys[3:], keys[3:], keys[:3]]))
