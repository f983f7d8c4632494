"""Bad input ends every command with one line that names it, and an exit status other than 0."""

from pathlib import Path

import pytest
from conftest import write_midi

from midigen_jax.cli import command, encode, evaluate, export, sample, train
from midigen_jax.errors import InputError
from midigen_jax.run import runtime

POP909 = Path(__file__).parent.parent / "configs" / "pop909.py"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with an empty folder, one of corrupt files, and one of music."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "corrupt").mkdir()
    (tmp_path / "corrupt" / "a.mid").write_bytes(b"this is no MIDI file")
    write_midi(tmp_path / "music" / "a.mid", [[(0, 1, 60)]])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (train.main, f"{POP909} --data missing --workdir run", "missing: no such folder"),
        (train.main, f"{POP909} --data empty --workdir run", "empty: holds no MIDI files"),
        (train.main, f"{POP909} --data corrupt --workdir run", "corrupt: none of its 1 MIDI files can be used"),
        (train.main, f"{POP909} --data music --workdir run --set model.depth=3", "unknown config key model.depth"),
        (train.main, f"{POP909} --data music --workdir run --distributed me:1,2", "give HOST:PORT,PROCESSES,INDEX"),
        (train.main, "nothing.py --data music --workdir run", "nothing.py: no such config file"),
        (encode.main, "missing --out corpus", "missing: no such folder"),
        (encode.main, "corrupt --out corpus", "a.mid: not a MIDI file"),
        (encode.main, "music --out corrupt", "corrupt: exists and is no corpus"),
        (encode.main, "music --out corpus --faithful --transpose 1", "--faithful: MIDIGen has"),
        (encode.main, "music --out corpus --workers 0", "--workers 0: give at least 1"),
        (encode.main, "music --out corpus --split 1 1 1", "give three shares that add up to 1"),
        (sample.main, "missing", "missing: no such run folder"),
        (sample.main, "empty", "empty: holds no checkpoint"),
        (sample.main, "empty --temperature 0", "temperature 0.0: give a number above 0"),
        (sample.main, "empty --top-p 0", "top-p 0.0: give a number above 0"),
        (sample.main, "empty --bars 0", "bars 0: give a number above 0"),
        (sample.main, "empty --bars 2 --seconds 3", "give bars or seconds, not both"),
        (sample.main, "empty --num 0", "--num 0: give a number above 0"),
        (sample.main, "empty --prompt-bars 2 --prompt-seconds 3", "give --prompt-bars or --prompt-seconds, not both"),
        (sample.main, "empty --prompt a.mid --load-state b", "give --load-state or --prompt, not both"),
        (sample.main, "empty --key H", "key H: no key"),
        (sample.main, "empty --instruments piano", "instruments piano: give programs from 0 to 127, and drums"),
        (sample.main, "empty --seconds nan", "seconds nan: give a number above 0"),
        (sample.main, "empty --bars 9 --min-bars -1 --eos", "min-bars -1: give at least 0"),
        (sample.main, "empty --prompt a.mid --prompt-seconds inf", "--prompt-seconds inf: give a number above 0"),
        (sample.main, "empty --prompt-bars 2", "--prompt-bars cuts a prompt; give --prompt FILE.mid too"),
        (sample.main, "music/a.mid --best-of 2 --stream", "--best-of chooses when all are done; leave out --stream"),
        (sample.main, "empty --best-of 0", "best-of 0: give how many to choose from, 1 or more"),
        (sample.main, "empty --loop-bars 99999", "loop-bars 99999: give 2 to 10000 bars, or 0"),
        (sample.main, "music/a.mid --device quantum", "--device quantum: no such device here; available: cpu"),
        (sample.main, "music/a.mid --device cuda", "--device cuda: no such device here; available: cpu"),
        (sample.main, "music/a.mid", "can't be read as a midigen_jax model file"),
        (export.main, "missing out", "missing: no such run folder"),
        (export.main, "empty out", "empty: holds no checkpoint"),
        (export.main, "music/a.mid out", "music/a.mid: is a file; give the folder of a run"),
        (export.main, "empty music", "music: is a folder; give the name of a file"),
        (evaluate.main, "empty --data music", "empty: holds no checkpoint"),
    ],
)
def test_bad_input(folder, monkeypatch, capsys, main, arguments, message):
    before = sorted(path.name for path in folder.iterdir())
    monkeypatch.setattr("sys.argv", ["command", *arguments.split()])
    with pytest.raises(SystemExit) as exit:
        command.run(main)
    assert exit.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("compiling the kernels")]
    assert len(errors) == 1
    assert message in errors[0]
    assert sorted(path.name for path in folder.iterdir()) == before  # nothing half-written is left


def test_a_device_that_the_environment_asks_for_in_vain(monkeypatch):
    def missing():
        raise RuntimeError

    monkeypatch.setattr("jax.default_backend", missing)
    monkeypatch.setenv("JAX_PLATFORMS", "quantum")
    with pytest.raises(InputError, match="JAX_PLATFORMS=quantum: no such device here"):
        runtime.enable_compilation_cache()
