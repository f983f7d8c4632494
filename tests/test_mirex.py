"""Prompts and continuations of the MIREX task."""

import json

import numpy as np
import pytest
from small_models import build

from midigen_jax.cli import command, sample
from midigen_jax.errors import InputError
from midigen_jax.music import mirex
from midigen_jax.music.song import new_song
from midigen_jax.run import trained
from midigen_jax.run.trained import TrainedModel
from midigen_jax.vocab import DRUMS, FAITHFUL, Scheme, Vocabulary


def write(path, notes):
    path.write_text(json.dumps({"prompt": [dict(zip(("start", "pitch", "duration"), x, strict=True)) for x in notes]}))
    return path


@pytest.mark.parametrize("steps", [8, 12, 24])
def test_prompts_are_read_onto_any_grid(tmp_path, steps):
    """A pickup that is empty is no bar of the prompt."""
    sixteenth = steps // 4
    notes = [(79, 64, 4), (16, 60, 6), (16, 72, 6), (20, 61, 1)]
    song, end, _ = mirex.read_prompt(write(tmp_path / "a.json", notes), Scheme(steps))
    expected = [(0, 6, 72), (0, 6, 60), (4, 1, 61), (63, 4, 64)]
    assert song.notes[:, :3].tolist() == [[on * sixteenth, long * sixteenth, pitch] for on, long, pitch in expected]
    assert end == song.bar_start(4) == 64 * sixteenth
    song, end, _ = mirex.read_prompt(write(tmp_path / "b.json", [*notes, (12, 59, 4)]), Scheme(steps))
    assert song.notes[0, :3].tolist() == [12 * sixteenth, 4 * sixteenth, 59]
    assert end == song.bar_start(5)


def test_prompts_are_for_the_piano(tmp_path):
    song, *_ = mirex.read_prompt(write(tmp_path / "a.json", [(0, 60, 1)]), Scheme(multi=True))
    assert song.notes[:, 3].tolist() == [mirex.PIANO]


def test_bad_prompts_are_refused(tmp_path):
    path = tmp_path / "a.json"
    note = {"start": 16, "pitch": 60, "duration": 4}
    for content, message in (
        ("{", "no JSON file"),
        ("[" * 100_000, "no JSON file"),
        ("[]", "has no notes under the key prompt"),
        ('{"prompt": []}', "has no notes under the key prompt"),
        ('{"generation": [1]}', "has no notes under the key prompt"),
        (
            json.dumps({"prompt": [note, note | {"start": 80}]}),
            "note 2 has the start 80; give a whole number",
        ),
        (json.dumps({"prompt": [note | {"pitch": -1}]}), "note 1 has the pitch -1"),
        (json.dumps({"prompt": [note | {"duration": 0}]}), "note 1 has the duration 0"),
        (json.dumps({"prompt": [note | {"start": 1.5}]}), "note 1 has the start 1.5"),
        (json.dumps({"prompt": [note | {"start": True}]}), "note 1 has the start True"),
        (json.dumps({"prompt": [[16, 60, 4]]}), "note 1 has the start None"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=message) as error:
            mirex.read_prompt(path, Scheme())
        assert str(error.value).startswith(f"{path}: ")
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="No such file"):
        mirex.read_prompt(tmp_path / "missing.json", Scheme())
    with pytest.raises(InputError, match="none of its pitches"):
        mirex.read_prompt(write(path, [(0, 127, 1)]), FAITHFUL)


def test_continuations_are_on_sixteenths_and_end_with_the_task():
    """Of 24 steps a beat, six a sixteenth, after a prompt of four bars."""
    start = 4 * 96
    notes = [
        (start - 6, 99, 40, 0, 80),  # the prompt's
        (start, 6, 60, 0, 80),
        (start + 2, 20, 60, 0, 80),  # moves onto the one before, and is longer
        (start + 4, 1, 62, 0, 80),
        (start + 6, 6, 36, DRUMS, 80),
        (start + 191 * 6, 99, 64, 0, 80),
        (start + 191 * 6 + 4, 6, 65, 0, 80),  # its sixteenth is beyond the end
    ]
    song = new_song(Scheme(24, multi=True))._replace(notes=np.array(notes, np.int32))
    found = mirex.generation(song, start)
    assert list(found) == ["generation"]
    assert [tuple(note.values()) for note in found["generation"]] == [(80, 60, 3), (81, 62, 1), (271, 64, 1)]
    assert [list(note) for note in found["generation"]] == [["start", "pitch", "duration"]] * 3


def test_a_prompt_that_was_written_is_read_again(tmp_path):
    """Twelve bars from the prompt's beginning on, as a continuation."""
    notes = [(16 + 3 * i, 50 + i % 20, 1 + i % 5) for i in range(20)]
    song, *_ = mirex.read_prompt(write(tmp_path / "a.json", notes), Scheme())
    found = [tuple(note.values()) for note in mirex.generation(song, 0)["generation"]]
    assert found == [(start - 16 + 80, pitch, duration) for start, pitch, duration in notes]


def test_the_command_writes_the_set_of_a_prompt(small, tmp_path, monkeypatch, capsys):
    trained.export(tmp_path / "model", TrainedModel(small, build(small)[1], Vocabulary()))
    prompt = write(tmp_path / "prompt.json", [(16 + 4 * i, 60 + i, 4) for i in range(16)])
    out = tmp_path / "set"

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["sample", str(tmp_path / "model"), "--prompt", str(prompt), *arguments])
        command.run(sample.main)

    run("--num", "2", "--out", str(out))
    names = [f"sample_0{i}{kind}" for i in (1, 2) for kind in (".json", ".mid", ".png", ".wav")]
    assert sorted(path.name for path in out.iterdir()) == names
    for i in (1, 2):
        notes = json.loads((out / f"sample_0{i}.json").read_text())["generation"]
        assert notes
        assert all(80 <= note["start"] < 272 and note["start"] + note["duration"] <= 272 for note in notes)
    assert "sample_01.mid .png .wav .json: 12 bars" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run("--bars", "8")
    assert f"--bars: the task of {prompt} says how long it is" in capsys.readouterr().err
    prompt.write_text("{}")
    with pytest.raises(SystemExit):
        run()
    assert "has no notes under the key prompt" in capsys.readouterr().err
