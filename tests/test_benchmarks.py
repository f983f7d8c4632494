"""Every benchmark runs from beginning to end at toy size, and writes what its readers expect."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import _miditok
import _ngrams
import _shared
import numpy as np
import pytest
from _rivals import RIVALS, training_batches
from conftest import write_midi

from midigen_jax import config as cfg
from midigen_jax.data.corpus import Corpus
from midigen_jax.data.encode import encode_folder
from midigen_jax.errors import InputError
from midigen_jax.kernels.meter import bar_positions
from midigen_jax.model.decoder import init_params
from midigen_jax.music.song import TokenSequence, notes_of
from midigen_jax.run import runtime, trained
from midigen_jax.vocab import NO_TARGET, Vocabulary

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "pop909.py"
HAS_TORCH = importlib.util.find_spec("torch") is not None
TOY = [
    f"model.layers={4 if HAS_TORCH else 1}",  # the PyTorch baseline needs four
    *("model.width=32", "model.heads=2", "model.ff_width=32", "model.previous_tokens=1"),
    *("memory.xl=16", "memory.knn=64", "memory.knn_layer=1", "memory.top_k=4"),
    *("data.lanes=2", "data.segment=16", "train.warmup=1"),
]
SETTINGS = [part for setting in TOY for part in ("--set", setting)]

Run = Callable[..., dict[str, Any]]


def load_script(name: str) -> ModuleType:
    """A benchmark as a module; not by import, since train.py and sample.py are also scripts of the root folder."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """A function that calls a script's main with these arguments and returns the JSON that it wrote."""

    def run(script: ModuleType, *arguments: str) -> dict[str, Any]:
        assert script.__file__ is not None
        results = tmp_path / "results"
        monkeypatch.setattr(sys, "argv", [script.__file__, "--results", str(results), *arguments])
        script.main()
        (path,) = results.iterdir()
        return json.loads(path.read_text())

    return run


@pytest.fixture
def in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a benchmark measures in processes of their own is measured here, once for each function."""
    measured: dict[str, Any] = {}

    def in_this_process(function: Callable[..., Any], *arguments: Any) -> Any:
        if function.__name__ not in measured:
            measured[function.__name__] = function(*json.loads(json.dumps(arguments)))
        return json.loads(json.dumps(measured[function.__name__]))

    monkeypatch.setattr(_shared, "in_new_process", in_this_process)
    monkeypatch.setattr(runtime, "retain_freed_memory", lambda: None)  # it would last


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """The file of a toy model with keys and alignment."""
    config = cfg.override(cfg.load(CONFIG), [*TOY, "memory.retrieval=context+alignment"])
    model = trained.TrainedModel(config, init_params(config, Vocabulary(), seed=0)[1], Vocabulary())
    trained.export(tmp_path / "toy.safetensors", model)
    return tmp_path / "toy.safetensors"


pytestmark = [
    pytest.mark.usefixtures("in_one_process"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),  # by x-transformers
]


def on_corpus(corpus: Corpus) -> list[str]:
    return ["--data", str(corpus.path), "--config", str(CONFIG), *SETTINGS]


def assert_describes_the_run(result: dict[str, Any], corpus: Corpus | None = None) -> None:
    assert result["config"]["model.width"] == 32
    assert {"device", "processor", "versions", "commit"} <= result["environment"].keys()
    if corpus is not None:
        assert result["corpus"]["fingerprint"] == corpus.fingerprint


def test_train(run, corpus, capsys, monkeypatch):
    script = load_script("train")
    monkeypatch.setattr(script, "BACKENDS", ("xla", "none"))
    arguments = ["--steps", "2", "--warmup", "1", "--rings", "32", "--ring-steps", "1", "--product", "64"]
    result = run(script, *on_corpus(corpus), *arguments, "--set", "memory.retrieval=context+alignment")
    assert_describes_the_run(result, corpus)
    assert script.KEYS in result["contestants"]
    own = result["contestants"][script.OURS]
    assert {"milliseconds_per_step", "tokens_per_second", "first_step_seconds", "peak_megabytes"} <= own.keys()
    assert {"knn_cost", "flops_per_step", "peak_flops", "utilisation"} <= result.keys()
    (ring,) = result["full_rings"]
    assert ring["backend"] == "xla"
    assert ring["valid"] == ring["slots"] == 32
    output = capsys.readouterr().out
    assert "32 slots, none: " in output  # a backend that can't be used is left out
    for name in script.CONTESTANTS:
        assert name in result["contestants"] or f"{name} is left out" in output
    assert not HAS_TORCH or script.BASELINE in result["contestants"]


def test_sample(run, corpus, capsys, monkeypatch, exported):
    script = load_script("sample")
    for name, value in {"PAUSE": 0.0, "FIRST_NOTE_TOKENS": 60, "MUSIC_BARS": 2}.items():
        monkeypatch.setattr(script, name, value)
    arguments = ["--rows", "1", "--slices", "1", "--lengths", "60", "--first-notes", "1", "--run", str(exported)]
    result = run(script, *on_corpus(corpus), *arguments)
    assert_describes_the_run(result, corpus)
    for name in (script.EMPTY, script.FULL, script.KEYS):
        figures = result["rows"]["1"][name]
        assert figures["tokens_per_second"] == pytest.approx(1000 / figures["milliseconds_per_token"])
        assert figures["peak_megabytes"] > 0
    ((length, figures),) = result["lengths"].items()
    assert 40 < int(length) < 80
    assert figures["valid_slots"] == 32  # in whole segments, beyond the 16 of XL memory
    assert result["first_note_seconds"] > 0
    assert result["music"]["1"].keys() == {"music_seconds_per_second", "notes_per_second"}
    output = capsys.readouterr().out
    for name in script.CONTESTANTS:
        assert name in result["rows"]["1"] or f"{name}, 1 rows: left out" in output
    assert not HAS_TORCH or script.BASELINE in result["rows"]["1"]


@pytest.fixture
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, rival in RIVALS.items():
        monkeypatch.setitem(RIVALS, name, rival._replace(window=64, learning_rate=1e-3))


@pytest.mark.usefixtures("short_windows")
def test_learning(run, corpus, capsys, monkeypatch, tmp_path):
    script = load_script("learning")
    for name, value in {"WARM_TOKENS": 16, "TIMED": 1, "POINTS": (0.5, 1)}.items():
        monkeypatch.setattr(script, name, value)
    small = ["--workdir", str(tmp_path), "--tokens", "160", "--songs", "1"]
    first = run(script, *on_corpus(corpus), *small, "--only", script.OURS)
    result = run(script, *on_corpus(corpus), *small)
    assert_describes_the_run(result, corpus)
    assert 0 < result["floors"]["n-grams"]["bits_per_note"] < 100
    rows, output = result["contestants"], capsys.readouterr().out
    assert rows[script.OURS] == first["contestants"][script.OURS]  # what is in the file is not trained again
    (own,) = rows[script.OURS]["runs"]
    assert own["equal"] == ["tokens", "seconds", "notes"]
    for name in script.NEEDS:
        assert name in rows or f"{name} is left out" in output
    assert (script.BASELINE in rows) == HAS_TORCH
    for row in rows.values():
        assert sorted(budget for run in row["runs"] for budget in run["equal"]) == sorted(script.BUDGETS)
        for budget, trained_on in zip(row["budgets"], row["runs"], strict=True):
            start, end = trained_on["curve"]
            assert start["tokens"] < budget["tokens"] <= end["tokens"]
            assert 0 < start["seconds"] < end["seconds"]
            assert 0 < start["notes"] < end["notes"]
            assert all(0 < x["bits_per_note"] < 100 for x in (start, end, trained_on["test"]))
    by_tokens = rows[script.OURS]["budgets"][0]["tokens"]
    for name in {"x-transformers, REMI"} & rows.keys():
        budgets = {budget: x["tokens"] for x in rows[name]["budgets"] for budget in x["equal"]}
        assert budgets["tokens"] == by_tokens != budgets["notes"]
    assert trained.load(tmp_path / "learning-this-project-tokens-seconds-notes.safetensors").step == 5
    with pytest.raises(InputError, match="another config or corpus"):
        run(script, *on_corpus(corpus), *small, "--set", "model.width=64")
    with pytest.raises(InputError, match="give another folder"):
        run(script, *on_corpus(corpus), "--tokens", "64", "--results", str(_shared.RESULTS))


def test_time_to_a_loss_is_read_from_the_curve():
    script = load_script("learning")
    curve = [{"seconds": x, "bits_per_note": y} for x, y in ((10, 12.0), (20, 10.0), (30, 10.5), (40, 6.0))]
    assert script.seconds_to(curve, 12.0) == "below 10"
    assert script.seconds_to(curve, 11.0) == "15"
    assert script.seconds_to(curve, 8.0) == "36"
    assert script.seconds_to(curve, 5.0) == "not reached"


def test_budgets_are_tokens():
    script = load_script("learning")
    own, other = script.Pace(10.0, 0.001), script.Pace(0.0, 0.002)
    assert script.budgets_of(1000, own, own, 3.0, 3.0) == {1000: ["tokens", "seconds", "notes"]}
    assert script.budgets_of(1000, other, own, 1.5, 3.0) == {1000: ["tokens"], 5500: ["seconds"], 500: ["notes"]}


def test_ngrams_count_training_songs_and_the_song_so_far(corpus):
    training, songs = corpus.songs_of("train"), corpus.songs_of("test")
    counts = _ngrams.Counts(corpus, training)
    sequence = corpus.tokens_of(int(songs[0])).astype(np.int64)[:60]
    others = [corpus.tokens_of(song).tolist() for song in training.tolist()]
    levels, n = counts.levels(sequence), len(_ngrams.LENGTHS)
    assert len(levels) == 2 * n
    for level, length in enumerate(_ngrams.LENGTHS.tolist()[:4]):
        for i in range(1, len(sequence)):
            context = sequence[i - length : i].tolist() if i >= length else None
            for which, (found_in, end) in enumerate(((others, None), ([sequence.tolist()], i))):
                after = [
                    x[j]
                    for x in found_in
                    for j in range(length, len(x) if end is None else end)
                    if x[j - length : j] == context
                ]
                predicted = levels[level + n * which]
                assert (predicted.bucket[i - 1] >= 0) == (len(after) > 0)
                if after:
                    expected = np.mean([x == sequence[i] for x in after])
                    assert predicted.probability[i - 1] == pytest.approx(expected)
    nats = _ngrams.nats(corpus, corpus.songs_of("validation"), songs)
    assert [len(x) + 1 for x in nats] == np.diff(corpus.offsets)[songs].tolist()
    assert all(np.isfinite(x).all() and (x > 0).all() for x in nats)


@pytest.mark.parametrize("window", [7, 64, 4096])
def test_rivals_learn_every_token_once_an_epoch(corpus, window):
    config = cfg.override(cfg.load(CONFIG), [*TOY, "data.transpose=0", "data.modulate=0"])
    songs = corpus.songs_of("train")
    expected = np.concatenate([corpus.tokens_of(song)[1:] for song in songs.tolist()])
    taught: list[np.ndarray] = []
    for batch in training_batches(corpus, config, window):
        counted = batch["targets"] != NO_TARGET
        taught += [row[which] for row, which in zip(batch["targets"], counted, strict=True)]
        assert batch["tokens"].shape[1] <= window
        inside = counted[:, :-1]
        np.testing.assert_array_equal(batch["targets"][:, :-1][inside], batch["tokens"][:, 1:][inside])
        if sum(map(len, taught)) >= len(expected):
            break
    epoch = np.concatenate(taught)[: len(expected)]
    np.testing.assert_array_equal(np.sort(epoch), np.sort(expected))


def test_trials(run, corpus, capsys, tmp_path):
    script = load_script("trials")
    small = ["--steps", "8", "--songs", "1", "--only", "kNN memory"]
    first = run(script, *on_corpus(corpus), *small, "--seeds", "1", "--timed-steps", "0")
    assert "ms per step" not in capsys.readouterr().out
    result = run(script, *on_corpus(corpus), *small, "--seeds", "2", "--timed-steps", "1")
    assert_describes_the_run(result, corpus)
    assert result["variants"].keys() == {"base", "kNN memory"}
    for name, row in result["variants"].items():
        assert row["bits_per_note"][:1] == first["variants"][name]["bits_per_note"]  # it resumed
        assert len(row["bits_per_note"]) == len(row["nats"]) == 2
        assert row["milliseconds_per_step"] > 0
    assert "| kNN memory" in capsys.readouterr().out
    with pytest.raises(InputError, match="another config; remove the file"):
        run(script, *on_corpus(corpus), *small, "--set", "model.width=64")


def test_memories(run, corpus, capsys, tmp_path):
    script = load_script("memories")
    few = ["--workdir", str(tmp_path), "--set", "train.steps=2", "--set", "data.segment=32", "--only"]
    run(script, *on_corpus(corpus), *few, "XL", script.BEST)
    run(script, *on_corpus(corpus), *few, "context")
    result = run(script, *on_corpus(corpus), *few, "context", "--trained")
    assert_describes_the_run(result, corpus)
    assert result["memories"].keys() == {"XL", script.BEST, "context"}  # those measured before are kept
    songs, counts = len(corpus.songs_of("test")), result["counts"]
    assert sum(counts["all"]) == sum(sum(counts[kind]) for kind in script.repeats.KINDS)
    for memory in result["memories"].values():
        nats = memory["nats"]
        assert {len(x) for x in nats.values()} == {songs}
        assert sum(nats["all"]) == pytest.approx(sum(sum(nats[kind]) for kind in script.repeats.KINDS), rel=1e-3)
        assert {"all + copier", "all + n-grams of the song"} <= nats.keys()
    assert result["memories"]["XL"]["nats"]["no memory"] != result["memories"]["XL"]["nats"]["all"]
    assert trained.load(tmp_path / "memory-XL.safetensors").config.memory.knn == 0
    assert f"difference from {script.BEST}" in capsys.readouterr().out
    with pytest.raises(InputError, match="give another folder"):
        run(script, *on_corpus(corpus), "--results", str(_shared.RESULTS))


def test_beats(run, midi_folder, tmp_path):
    """The folder's notes are random, on a grid of 32nds, so that nothing is found in them; a march's beats are."""
    march = [(4 * bar + beat, 1, 48 + 7 * (bar % 2) + 12 * (beat % 2)) for bar in range(60) for beat in range(4)]
    chords = [(4 * bar, 4, 60 + 7 * (bar % 2) + x) for bar in range(60) for x in (0, 4, 7)]
    write_midi(tmp_path / "music" / "march.mid", [march + chords])
    (tmp_path / "music" / "random.mid").write_bytes(next(iter(sorted(midi_folder.iterdir()))).read_bytes())
    result = run(load_script("beats"), "--data", str(tmp_path / "music"))
    counts = result["counts"]
    assert counts["files"] == 2
    assert counts["beat"] == counts["bar"] == 1
    assert "moved as they are" not in counts


def test_recipes(run, midi_folder, capsys, tmp_path):
    """Two kinds of music; a recipe that merges instruments and one that does not."""
    script, music = load_script("recipes"), tmp_path / "music"
    for i, path in enumerate(sorted(midi_folder.iterdir())):
        target = music / ("pop", "games")[i % 2] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    small = ["--data", str(music), "--config", str(CONFIG), *SETTINGS, "--workdir", str(tmp_path / "work")]
    small += ["--steps", "2", "--timed-steps", "1", "--tokens", "100", "--only"]
    run(script, *small, "base")
    result = run(script, *small, "instruments merged")
    assert result["recipes"].keys() == {"base", "instruments merged"}  # what was measured before is kept
    for row in result["recipes"].values():
        assert_describes_the_run(row)
        assert {"all"} < row["bits_per_note"].keys() <= {"games", "pop", "all"}
        assert all(bits > 0 for bits in row["bits_per_note"].values())
        assert row["tokens"] == 2 * 16 * row["steps"] > 0
        assert row["relative_time"] > 0
    assert result["recipes"]["base"]["corpus"] != result["recipes"]["instruments merged"]["corpus"]
    assert "| instruments merged" in capsys.readouterr().out


def test_attention_memory(run, corpus, tmp_path):
    script = load_script("attention_memory")
    arguments = ["--workdir", str(tmp_path), "--set", "train.steps=8", "--set", "train.learning_rate=0.01"]
    result = run(script, *on_corpus(corpus), *arguments)
    assert_describes_the_run(result, corpus)
    assert [x["step"] for x in result["moments"]] == [2, 4, 6, 8]
    moment = result["moments"][-1]
    (age, newest), *_, (_, oldest) = moment["cosine_by_age"]
    assert age == 1
    assert -1 <= oldest < newest < 1.001
    assert len(set(moment["nats"].values())) == 3
    assert {len(x) for x in result["answers"].values()} == {2}  # heads
    assert trained.load(tmp_path / "memory-attention.safetensors").config.memory.retrieval == "attention"


needs_x_transformers = pytest.mark.skipif(
    not HAS_TORCH or importlib.util.find_spec("x_transformers") is None, reason="x-transformers is not installed"
)


@needs_x_transformers
@pytest.mark.usefixtures("short_windows")
def test_a_rival_of_memories(run, corpus, tmp_path, monkeypatch):
    script = load_script("memories")
    monkeypatch.setattr(script, "TIMED", 1)
    few = ["--workdir", str(tmp_path), "--set", "train.steps=2", "--set", "data.segment=32", "--only"]
    result = run(script, *on_corpus(corpus), *few, script.RIVAL)
    row = result["memories"][script.RIVAL]
    assert result["tokens"] <= row["tokens"] < result["tokens"] + 128
    assert row["relative_speed"] > 0
    assert {"all + copier", script.SHIFTED} <= row["nats"].keys()
    assert np.isfinite(row["nats"]["all"]).all()


@pytest.mark.parametrize("name", [name for name, rival in RIVALS.items() if not rival.tokenizer])
@pytest.mark.usefixtures("short_windows")
def test_a_rival_learns_and_reads_a_song_window_by_window(corpus, tmp_path, name):
    for module in ("torch", *RIVALS[name].needs):
        pytest.importorskip(module, reason=f"{module} is not installed", exc_type=ImportError)
    windowed = pytest.importorskip("_windowed")
    config = cfg.override(cfg.load(CONFIG), [*TOY, "train.steps=10"])
    side = windowed.Learner(name, config, corpus.vocabulary)
    batch = next(training_batches(corpus, config, 64))
    losses = [side.step(batch, 0.5) for _ in range(40)]
    assert losses[-1] < 0.95 * losses[0]
    sequence = corpus.sequence_of(0)
    n = len(sequence.tokens)
    assert n > 120
    (nats,) = side.nats([sequence])
    (start,) = side.nats([TokenSequence(*(x[:65] for x in sequence))])
    (other_end,) = side.nats([sequence._replace(tokens=np.where(np.arange(n) < 110, sequence.tokens, 0))])
    assert nats.shape == (n - 1,)
    np.testing.assert_allclose(nats[:64], start, rtol=1e-4)
    np.testing.assert_allclose(nats[:109], other_end[:109], rtol=1e-4)  # no token sees a later one
    side.save(tmp_path / "rival.safetensors", corpus)
    loaded = windowed.Learner.load(tmp_path / "rival.safetensors")
    assert loaded.corpus == corpus.fingerprint
    np.testing.assert_allclose(loaded.nats([sequence])[0], nats, rtol=1e-5)


@pytest.mark.parametrize("decoder", ["XTransformers", "GPT2", "MusicTransformer"])
def test_a_cache_gives_the_logits_of_the_whole_window(decoder):
    (needs,) = {rival.needs[:1] for rival in RIVALS.values() if rival.decoder == decoder}
    for module in ("torch", *needs):
        pytest.importorskip(module, reason=f"{module} is not installed", exc_type=ImportError)
    import torch

    windowed = pytest.importorskip("_windowed")
    model = cfg.Model(layers=2, width=64, heads=2, ff_width=64)
    side = windowed.DECODERS[decoder](model, Vocabulary(), 16, musical=True).eval()
    random = torch.Generator().manual_seed(0)
    batch = {name: torch.randint(0, 40, (2, 12), generator=random) for name in ("tokens", "bar", "position")}
    with torch.inference_mode():
        whole, _ = side(batch)
        part, cache = side({name: x[:, :5] for name, x in batch.items()})
        torch.testing.assert_close(part, whole[:, :5], rtol=0, atol=1e-5)
        for i in range(5, 12):
            logits, cache = side({name: x[:, i : i + 1] for name, x in batch.items()}, cache)
            torch.testing.assert_close(logits[:, 0], whole[:, i], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["REMI", "TSD"])
def test_miditok_says_the_same_notes(corpus, name):
    pytest.importorskip("miditok", reason="MidiTok is not installed", exc_type=ImportError)
    found = _miditok.retokenized(corpus, name)
    np.testing.assert_array_equal(found.notes, corpus.notes)
    np.testing.assert_allclose(found.beats, corpus.beats)
    assert len(found.offsets) == len(corpus.offsets)
    assert found.offsets[-1] == len(found.tokens) == len(found.bar) == len(found.position)
    finer = found.vocabulary.scheme.steps_per_beat // corpus.vocabulary.scheme.steps_per_beat
    assert finer == 2
    for song in range(3):
        notes = notes_of(found.tokens_of(song), found.vocabulary)
        expected = corpus.song(song).notes
        assert sorted(map(tuple, notes[:, :3])) == sorted((finer * a, finer * b, c) for a, b, c, *_ in expected)
    with pytest.raises(InputError, match="already"):
        _miditok.retokenized(found, name)


@needs_x_transformers
def test_time_moves_on_as_tokens_are_sampled(corpus):
    continuing = pytest.importorskip("_continuing")
    sequence, song = corpus.sequence_of(0), corpus.song(0)
    timeline = continuing.Timeline(corpus.vocabulary)
    times = np.array([timeline.advance(token) for token in sequence.tokens[:-1].tolist()])
    bar, position = bar_positions(times, song.bars)
    np.testing.assert_array_equal(bar[1:], sequence.bar[1:-1])
    np.testing.assert_array_equal(position[1:], sequence.position[1:-1])


@needs_x_transformers
@pytest.mark.usefixtures("short_windows")
def test_rivals_continue_songs(run, corpus, capsys, monkeypatch, exported, tmp_path):
    windowed, script = pytest.importorskip("_windowed"), load_script("continuations")
    monkeypatch.setattr(script, "TEMPERATURES", ())
    monkeypatch.setattr(script, "COPIES", ())
    name, path = "x-transformers, 1,024 tokens", tmp_path / "rival.safetensors"
    windowed.Learner(name, cfg.override(cfg.load(CONFIG), TOY), corpus.vocabulary).save(path, corpus)
    few = ["--songs", "2", "--prompt-bars", "2", "--bars", "2", "--model", str(exported)]
    result = run(script, "--data", str(corpus.path), *few, "--rivals", str(path), str(path))
    assert result["settings"].keys() == {script.REAL, name, f"{name} (rival)"}
    assert 0 <= result["settings"][name]["share with a loop"] <= 1
    assert f"| {name} |" in capsys.readouterr().out
    windowed.Learner(name, cfg.override(cfg.load(CONFIG), TOY), corpus.vocabulary).save(
        path, corpus._replace(fingerprint="another")
    )
    with pytest.raises(InputError, match="leave it out"):
        run(script, "--data", str(corpus.path), *few, "--rivals", str(path))


def test_continuations(run, corpus, capsys, monkeypatch, exported):
    script = load_script("continuations")
    monkeypatch.setattr(script, "TEMPERATURES", (1.0,))
    monkeypatch.setattr(script, "COPIES", ())
    few = ["--songs", "1", "--prompt-bars", "2", "--bars", "2"]
    run(script, *on_corpus(corpus), *few, "--set", "train.steps=1", "--split", "validation")
    result = run(script, "--data", str(corpus.path), "--model", str(exported), *few)
    assert_describes_the_run(result, corpus)
    assert result["songs"] == 1
    assert result["settings"].keys() == {script.REAL, "temperature 1.0"}
    row, real = result["settings"]["temperature 1.0"], result["settings"][script.REAL]
    assert len(row["self-similarity"]) == len(real["self-similarity"]) == 16
    assert 0 <= row["share with a loop"] <= row["share with a varied loop"] <= 1
    assert "| temperature 1.0 |" in capsys.readouterr().out


def test_returns_are_compared_with_other_distances():
    script = load_script("continuations")

    def described(curve):
        curve = [x if x is None else script.Interval(x, 0, 1) for x in curve]
        return {"self-similarity": curve, "metrics": {}}

    written = described([0.4 if lag in (4, 8, 16) else 0.2 for lag in range(1, 17)])
    row = script.summary(written, described([0.3] * 15 + [None]))
    assert row["returns"] == pytest.approx(2)
    assert row["error"] == pytest.approx(0.1)
    nothing = described([None] * 16)
    assert script.summary(nothing, written)["returns"] is None
    assert script.summary(written, nothing)["error"] is None


def test_loop(run, corpus):
    script = load_script("loop")
    short = ["--seconds", "0.02", "--workers", "0", "--steps", "2", "--windows", "1", "--window-steps", "1"]
    result = run(script, *on_corpus(corpus), *short)
    assert_describes_the_run(result, corpus)
    assert result["loading"].keys() == {f"{location}, no processes" for location in script.LOCATIONS}
    assert all(result["training"][f"{location}, tokens per second"] > 0 for location in script.LOCATIONS)
    assert result["saving"]["megabytes"] > 0
    assert result["resuming, seconds"]["restore and check"] > 0


def test_memory(run):
    result = run(load_script("memory"), *SETTINGS)
    assert_describes_the_run(result)
    assert result["gigabytes"].keys() == {"arguments", "temporary", "not in place"}
    assert 0 < result["gigabytes"]["arguments"] < 0.1


def test_recall(run, capsys):
    result = run(load_script("recall"), "--steps", "2", "--batches", "10")
    assert len(result["ablations"]) == 4
    for figures in result["ablations"].values():
        assert 0 <= figures["accuracy"] <= 1
        assert figures["nats"] > 0
        assert figures["notes"] > 0
    assert len({figures["nats"] for figures in result["ablations"].values()}) == 4  # each reads something else
    assert "chance: 3.18 nats, 4.2%" in capsys.readouterr().out


def test_recall_says_that_too_few_batches_hold_nothing_to_recall():
    script = load_script("recall")

    def read(memory, batch, ring):
        return memory, 0 * batch["tokens"], batch["tokens"] > 0

    with pytest.raises(InputError, match="give at least 10"):
        script.score_ring(read, script.make_config(knn=True, steps=1), 1, script.OWN)


def test_encode(run, midi_folder, monkeypatch, capsys):
    script = load_script("encode")
    # Compiling all kernels again takes half a minute.
    monkeypatch.setattr(script, "run_encoder", lambda folder, out, kernels: encode_folder(folder, out))
    arguments = ["--files", "24", "--rounds", "1", "--copies", "4", "8", "--vocabulary", "400"]
    result = run(script, "--data", str(midi_folder), *arguments)
    own = result["readers"]["midigen_jax: tokens, 1 thread"]
    assert own["files"] == 24
    assert own["relative_time"] == 1
    assert own["memory"]["peak"] >= own["memory"]["imports"] > 0
    assert result["readers"]["mido: parse, 1 thread"]["files"] == 1
    assert [row["files"] for row in result["builder"][::2]] == [4, 8]
    assert result["merges"]["with"]["vocabulary"] == 400
    assert result["merges"]["with"]["tokens_per_song"] < result["merges"]["without"]["tokens_per_song"]
    assert len(result["start_up"]["seconds_each_run"]) == 2
    assert "per 1,000 more files" in capsys.readouterr().out


def test_damaged(run, midi_folder, monkeypatch):
    script = load_script("damaged")
    monkeypatch.setattr(script, "MALICIOUS", dict(list(script.MALICIOUS.items())[:2]))
    result = run(script, "--data", str(midi_folder), "--mutations", "20")
    assert result["mutations"] == 20
    assert result["slowest_seconds"]["read"] > 0
    assert result["malicious_seconds"].keys() == script.MALICIOUS.keys()


@pytest.mark.slow
def test_kills(run, corpus):
    result = run(load_script("kills"), "--data", str(corpus.path), "--kills", "1", "--steps", "100")
    assert result["kills"] == 1
    assert len(result["steps resumed from"]) == 2
    assert result["arrays"] > 20
    assert result["arrays that differ"] == result["validations that differ"] == 0
    assert result["incomplete files left"] == []


def test_a_function_is_called_in_a_process_of_its_own(monkeypatch):
    monkeypatch.undo()
    assert 1 < _shared.in_new_process(_shared.resident_megabytes) < _shared.resident_megabytes()


def test_unusual_settings_do_not_replace_the_results(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_shared, "RESULTS", tmp_path)
    _shared.save(tmp_path, "toy", {"figure": 1}, usual=False)
    assert list(tmp_path.iterdir()) == []
    assert "--results" in capsys.readouterr().out
    _shared.save(tmp_path / "mine", "toy", {"figure": 1}, usual=False)
    _shared.save(tmp_path, "toy", {"figure": 2})
    assert json.loads((tmp_path / "mine" / "toy.json").read_text()) == {"figure": 1}
    assert json.loads((tmp_path / "toy.json").read_text()) == {"figure": 2}


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "benchmarks").glob("[a-z]*.py")))
def test_every_benchmark_has_a_test_and_help(name, monkeypatch, capsys):
    assert f"test_{name}" in globals()
    script = load_script(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        script.main()
    assert "--results" in capsys.readouterr().out


def test_a_new_process_imports_nothing_from_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.undo()
    (tmp_path / "argparse.py").write_text("raise ImportError")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert _shared.in_new_process(_shared.resident_megabytes) > 1
