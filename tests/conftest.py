"""Shared by all tests: run-time shape checks, and small songs made on the spot."""

import os
from importlib.metadata import version

# Expected values are those of a CPU; the tests marked gpu say how to run them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The models are tiny: compiling them takes longer than running them. `make test-all` compiles as users do.
FAST_COMPILATION = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1"
if FAST_COMPILATION and version("jaxlib").startswith("0.10."):  # in half the time; later versions have no such switch
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"

import jaxtyping  # noqa: E402

# Checks every annotated shape of these packages while the tests run.
CHECKED = ("model", "run", "sampling", "training")
MANY_MAPPINGS = 15_000  # of 65,530
jaxtyping.install_import_hook([f"midigen_jax.{name}" for name in CHECKED], "beartype.beartype")

import dataclasses  # noqa: E402
import functools  # noqa: E402
from pathlib import Path  # noqa: E402  (the hook has to come before anything imports the package)
from typing import Any  # noqa: E402

import jax  # noqa: E402
import mido  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from midigen_jax import config as cfg  # noqa: E402
from midigen_jax.data.corpus import Corpus, open_corpus  # noqa: E402
from midigen_jax.data.encode import encode_folder  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--mutations", type=int, default=1000, help="number of damaged files in test_fuzz.py")
    parser.addoption("--thorough", action="store_true", help="slow tests too, and five times as many random examples")


def pytest_configure(config):
    if config.getoption("--thorough"):
        os.environ["THOROUGH"] = "1"


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--thorough"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: run with --thorough"))


def slow(*values: Any, id: str | None = None) -> Any:
    """Parameters that are tried with --thorough only."""
    return pytest.param(*values, id=id, marks=pytest.mark.slow)


def thorough() -> bool:
    return bool(os.environ.get("THOROUGH"))


def examples(number: int) -> int:
    """How many random examples a test takes."""
    return 5 * number if thorough() else number


@pytest.fixture(autouse=True, scope="module")
def few_mappings():
    """Frees compiled programs before a process has as many memory mappings as Linux allows, where XLA would crash."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > MANY_MAPPINGS:
        jax.clear_caches()


@pytest.fixture(scope="session")
def two_layers(small) -> cfg.Config:
    """The same with a plain layer below the kNN layer."""
    model, memory = dataclasses.replace(small.model, layers=2), dataclasses.replace(small.memory, knn_layer=2)
    return dataclasses.replace(small, model=model, memory=memory)


@pytest.fixture(scope="session", autouse=True)
def programs_compiled_once():
    """Runs of the training loop whose programs are the same share them."""
    from midigen_jax.training import loop

    def program(config: cfg.Config) -> cfg.Config:
        """The config with the defaults of all that its train step does not depend on."""
        schedule = ("steps", "learning_rate", "warmup", "decay", "final_learning_rate")
        names = (*schedule, "weight_decay", "beta2", "clip", "remat")
        train = cfg.Train(**{name: getattr(config.train, name) for name in names})
        data = cfg.Data(lanes=config.data.lanes, segment=config.data.segment, segments=config.data.segments)
        return dataclasses.replace(config, train=train, data=data)

    def shared(make):
        cached = functools.lru_cache(make)
        return lambda graphdef, config, mesh: cached(graphdef, program(config), mesh)

    abstract_decoder = loop.abstract_decoder  # which keeps the config too
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "abstract_decoder", lambda config, words: abstract_decoder(program(config), words))
        for name in ("make_train_step", "make_loss"):
            patch.setattr(loop, name, shared(getattr(loop, name)))
        yield


def write_midi(path: Path, tracks, *, ticks_per_beat=480, meter=(4, 4), tempo=500_000) -> Path:
    """Writes notes (onset, duration, pitch) in beats, one list per track, with mido."""
    file = mido.MidiFile(ticks_per_beat=ticks_per_beat)
    head = mido.MidiTrack()
    head.append(mido.MetaMessage("time_signature", numerator=meter[0], denominator=meter[1]))
    head.append(mido.MetaMessage("set_tempo", tempo=tempo))
    file.tracks.append(head)
    for notes in tracks:
        events = []
        for onset, duration, pitch in notes:
            events.append((round(onset * ticks_per_beat), 1, pitch))
            events.append((round((onset + duration) * ticks_per_beat), 0, pitch))
        track, now = mido.MidiTrack(), 0
        for tick, on, pitch in sorted(events):
            kind = "note_on" if on else "note_off"
            track.append(mido.Message(kind, note=pitch, velocity=64, time=tick - now))
            now = tick
        file.tracks.append(track)
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save(path)
    return path


def random_notes(random: np.random.Generator, n: int, beats: int = 64) -> list[tuple[float, float, int]]:
    """A melody over chords on a grid of 8 steps per beat, without overlapping notes of one pitch."""
    notes = {
        (int(onset), int(pitch)): int(duration)
        for onset, pitch, duration in zip(
            random.integers(0, 8 * beats, n),
            random.integers(40, 80, n),
            random.integers(1, 9, n),
            strict=True,
        )
    }
    busy = dict.fromkeys(range(128), 0)
    kept = []
    for (onset, pitch), duration in sorted(notes.items()):
        if busy[pitch] <= onset:
            busy[pitch] = onset + duration
            kept.append((onset / 8, duration / 8, pitch))
    return kept


@pytest.fixture(scope="session")
def midi_folder(tmp_path_factory) -> Path:
    """Twenty songs of different lengths."""
    folder = tmp_path_factory.mktemp("midi")
    random = np.random.default_rng(0)
    for i in range(20):
        write_midi(folder / f"song{i:02}.mid", [random_notes(random, 40 + 12 * i, beats=16 + 4 * i)])
    return folder


@pytest.fixture(scope="session")
def band_folder(tmp_path_factory) -> Path:
    """Three songs of a riff for twenty programs and drums, with overlapping notes of one pitch."""
    folder = tmp_path_factory.mktemp("band")
    random = np.random.default_rng(7)
    for song in range(3):
        file = mido.MidiFile(ticks_per_beat=96)
        for part in range(21):
            channel = 9 if part == 20 else (part % 15) + (part % 15 >= 9)
            track = mido.MidiTrack([mido.Message("program_change", channel=channel, program=5 * part)])
            if part == 0:
                track.append(mido.MetaMessage("time_signature", numerator=7, denominator=8))
                track.append(mido.MetaMessage("set_tempo", tempo=600_000, time=200))
                track.append(mido.MetaMessage("set_tempo", tempo=400_000, time=123))
            for pitch in random.permutation([40, 40, 47, 52]).tolist() * 4:
                velocity = int(random.integers(1, 128))
                track.append(mido.Message("note_on", channel=channel, note=pitch, velocity=velocity, time=24))
                if random.random() < 0.9:
                    track.append(mido.Message("note_off", channel=channel, note=40, time=int(random.integers(0, 99))))
            file.tracks.append(track)
        file.save(folder / f"band{song}.mid")
    return folder


@pytest.fixture(scope="session")
def corpus(midi_folder, tmp_path_factory) -> Corpus:
    out = tmp_path_factory.mktemp("corpus") / "corpus"
    encode_folder(midi_folder, out, fractions=(0.7, 0.2, 0.1))
    return open_corpus(out)


@pytest.fixture(scope="session")
def small() -> cfg.Config:
    """A config that compiles and runs in seconds: one layer, which is the kNN layer."""
    return cfg.Config(
        model=cfg.Model(layers=1, width=32, heads=2, ff_width=64, qk_norm=False, previous_tokens=2, dropout=0.1),
        memory=cfg.Memory(xl=24, knn=64, retrieval="context", knn_layer=1, top_k=4),
        data=cfg.Data(lanes=3, segment=16, segments=2),
        train=cfg.Train(
            steps=12, warmup=2, learning_rate=3e-3, log_every=4, validate_every=6, save_every=6, sample_minutes=0.0
        ),
    )


@pytest.fixture
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks' rivals read windows of 64 tokens."""
    from _rivals import RIVALS

    for name, rival in RIVALS.items():
        monkeypatch.setitem(RIVALS, name, rival._replace(window=64, learning_rate=1e-3))
