"""Votes of listeners, from their files."""

import json

import pytest

from midigen_jax.cli import command, votes
from midigen_jax.errors import InputError
from midigen_jax.evaluation.votes import in_words, preferences, read_votes
from midigen_jax.evaluation.wilson import wilson

SONG = "the song itself"


def write(path, *votes, **changes):
    rows = [{"pair": i, "song": "a.mid", "compared": [*vote[:2]], "preferred": vote[2]} for i, vote in enumerate(votes)]
    path.write_text(json.dumps({"format_version": 1, "page": "x", "votes": rows} | changes))
    return path


def test_each_comparison_has_its_own_result(tmp_path):
    one = write(tmp_path / "1", ("mine", SONG, "mine"), ("mine", SONG, SONG), ("mine", "other", None))
    two = write(tmp_path / "2", (SONG, "mine", SONG), ("mine", SONG, None))
    found = preferences([vote for path in (one, two) for vote in read_votes(path)])
    assert found == [("mine", SONG, 1, 3, 1, wilson(1, 3)), ("mine", "other", 0, 0, 1, None)]
    assert in_words(found[0]) == (
        f"mine preferred to {SONG}: 1 of 3 votes (33%, 95 % interval 6% to 79%); no preference: 1"
    )
    assert in_words(found[1]) == "mine preferred to other: 0 of 0 votes; no preference: 1"


def test_the_command_prints_a_line_for_each(tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "1", ("mine", SONG, "mine"))
    monkeypatch.setattr("sys.argv", ["votes", str(path), str(path)])
    votes.main()
    assert capsys.readouterr().out.startswith(f"mine preferred to {SONG}: 2 of 2 votes (100%, 95 % interval 34% to")


def test_bad_files_are_reported_in_a_line(tmp_path, monkeypatch, capsys):
    path = tmp_path / "votes.json"
    for text, message in (
        ("", "no file of votes"),
        ("[1]", "no file of votes"),
        ("[" * 100_000, "no file of votes"),
        (json.dumps({"format_version": 2}), "votes of another format version than 1"),
        (json.dumps({"format_version": 1, "votes": []}), "holds no votes"),
        (json.dumps({"format_version": 1, "votes": [{"compared": ["a"], "preferred": "a"}]}), "no file of votes"),
        (json.dumps({"format_version": 1, "votes": [{"compared": ["a", "b"], "preferred": "c"}]}), "preferred 'c'"),
        (json.dumps({"format_version": 1, "votes": [{"compared": ["a", 1], "preferred": "a"}]}), "compared 'a' and 1"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message) as error:
            read_votes(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
    monkeypatch.setattr("sys.argv", ["votes", str(tmp_path / "missing")])
    with pytest.raises(SystemExit):
        command.run(votes.main)
    assert "missing: No such file" in capsys.readouterr().err
