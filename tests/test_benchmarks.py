"""Every benchmark runs from beginning to end at toy size, and writes what its readers expect."""

import importlib.util
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import _shared
import numpy as np
import pytest
from conftest import write_midi
from toy_sizes import CONFIG, HAS_TORCH, ROOT, TOY, needs_x_transformers

from midigen_jax import config as cfg
from midigen_jax.data.corpus import Corpus
from midigen_jax.data.encode import encode_folder
from midigen_jax.errors import InputError
from midigen_jax.model.decoder import init_params
from midigen_jax.run import runtime, trained
from midigen_jax.vocab import Vocabulary

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
            curve = trained_on["curve"]
            assert len(curve) in (1, 2)  # one where a step passes both points, as in a short budget of seconds
            assert curve[-1]["tokens"] >= budget["tokens"] > max([0, *(x["tokens"] for x in curve[:-1])])
            for name in ("seconds", "notes"):
                amounts = [0, *(x[name] for x in curve)]
                assert all(before < after for before, after in pairwise(amounts))
            assert all(0 < x["bits_per_note"] < 100 for x in (*curve, trained_on["test"]))
    assert len(own["curve"]) == 2
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
