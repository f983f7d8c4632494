import csv
from collections import defaultdict
from fractions import Fraction

import mido
import pytest

from midigen_jax.cli import command, music21
from midigen_jax.data import music21_corpus, music21_score
from midigen_jax.data.music21_corpus import build, convert, scores
from midigen_jax.data.music21_score import Bar, Note
from midigen_jax.errors import InputError

pytest.importorskip("music21")


def read(path):
    """Meters [(quarter, 'n/d')], and each named track's notes [(start, end, pitch)] in quarters."""
    song = mido.MidiFile(path)
    meters, parts = [], defaultdict(list)
    for track in song.tracks:
        tick, name, open_ = 0, "", {}
        for message in track:
            tick += message.time
            if message.type == "time_signature":
                meters.append((tick / song.ticks_per_beat, f"{message.numerator}/{message.denominator}"))
            elif message.type == "track_name":
                name = message.name
            elif message.type == "note_on" and message.velocity:
                assert message.note not in open_
                open_[message.note] = tick
            elif message.type in ("note_on", "note_off"):
                start = open_.pop(message.note)
                parts[name].append((start / song.ticks_per_beat, tick / song.ticks_per_beat, message.note))
        assert not open_
    return meters, {name: sorted(notes) for name, notes in parts.items()}


@pytest.fixture(scope="module")
def chorale(tmp_path_factory):
    """BWV 66.6: in F sharp minor, with an upbeat of a quarter; no repeats."""
    out = tmp_path_factory.mktemp("corpus")
    convert("bach/bwv66.6.mxl", out)
    (path,) = (out / "bach").iterdir()
    return read(path)


def test_parts_and_first_chords(chorale):
    _, parts = chorale
    assert list(parts) == ["Soprano", "Alto", "Tenor", "Bass"]
    sounding = [
        [next(pitch for start, end, pitch in notes if start <= at < end) for notes in parts.values()] for at in (0, 1)
    ]
    assert sounding == [[73, 64, 57, 57], [69, 66, 61, 54]]  # A major in first position, F sharp minor


def test_a_pickup_is_a_short_bar(chorale):
    meters, parts = chorale
    assert meters == [(0, "1/4"), (1, "4/4")]
    assert max(end for notes in parts.values() for _, end, _ in notes) == 36


def test_ties_are_merged(chorale):
    _, parts = chorale
    # The soprano's F sharp at the end of bar 8 is tied into bar 9.
    assert [note for note in parts["Soprano"] if 31 <= note[0] < 35] == [
        (31, 32, 66),
        (32, 34, 66),
        (34, 34.5, 66),
        (34.5, 35, 65),
    ]


def test_a_repeat_is_played_with_its_upbeat(tmp_path):
    """BWV 269, in 3/4: the first seven bars are repeated from the upbeat on."""
    convert("bach/bwv269.mxl", tmp_path)
    (path,) = (tmp_path / "bach").iterdir()
    meters, parts = read(path)
    assert meters == [(0, "1/4"), (1, "3/4")]
    for notes in parts.values():
        first = [(start + 21, end + 21, pitch) for start, end, pitch in notes if start < 21]
        assert first == [note for note in notes if 21 <= note[0] < 42]


def bar(length, *notes, meter=(4, 4)):
    return Bar(Fraction(length), meter, [[Note(*note) for note in notes]], [])


def test_tied_notes_cross_bars_and_only_tied_ones():
    bars = [bar(4, (0, 4, 60, False)), bar(4, (0, 1, 60, True), (1, 2, 60, False))]
    assert music21_score._notes(bars, 0) == [Note(0, 5, 60, False), Note(5, 6, 60, False)]


def test_unisons_within_a_part_do_not_overlap():
    bars = [bar(4, (0, 4, 60, False), (0, 1, 60, False), (2, 3, 60, False))]
    assert music21_score._notes(bars, 0) == [Note(0, 2, 60, False), Note(2, 3, 60, False)]


@pytest.mark.parametrize(
    ("lengths", "meters"),
    [
        ([4, 4], [(0, (4, 4))]),
        ([1, 4, 3], [(0, (1, 4)), (1, (4, 4))]),
        ([1, 4, 3, 1, 4, 3], [(0, (1, 4)), (1, (4, 4))]),  # a repeat: 3 and 1 are one bar
        ([4, 0.5, 4], [(0, (4, 4)), (4, (1, 8)), (4.5, (4, 4))]),
        ([4, 6, 4], [(0, (4, 4)), (4, (6, 4)), (10, (4, 4))]),
    ],
)
def test_meters(lengths, meters):
    assert music21_score._meters([bar(length) for length in lengths]) == meters


def test_build_skips_duplicates_and_continues(tmp_path, monkeypatch, capsys):
    names = ["bach/bwv20.11.mxl", "bach/bwv20.7.mxl"]
    monkeypatch.setattr(music21_corpus, "scores", lambda composers: names)
    assert build(tmp_path, 1) == 1
    first = (tmp_path / "bach" / "bwv20.11.mid").stat().st_mtime_ns
    assert build(tmp_path, 1) == 1
    assert (tmp_path / "bach" / "bwv20.11.mid").stat().st_mtime_ns == first
    assert [file.name for file in (tmp_path / "bach").iterdir()] == ["bwv20.11.mid"]
    with (tmp_path / "skipped.csv").open() as file:
        assert list(csv.reader(file))[1:] == [["bach/bwv20.7.mxl", "the same music as bach/bwv20.11.mxl"]]
    assert ": 1 piece; 1 skipped" in capsys.readouterr().out


def test_scores_has_the_chorales_once():
    names = scores(["bach"])
    assert len(names) > 400
    assert len({name.rpartition(".")[0] for name in names}) == len(names)
    assert "bach/bwv277.krn" in names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "FILE"], "FILE"),
        (["--out", "new", "--composers", "nobody"], "nobody"),
        (["--out", "new", "--workers", "0"], "--workers 0"),
    ],
)
def test_bad_input_gets_one_line(tmp_path, arguments, message, monkeypatch, capsys):
    (tmp_path / "FILE").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["midigen music21", *arguments])
    with pytest.raises(SystemExit) as caught:
        command.run(music21.main)
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert message in said
    assert said.count("\n") == 1


def test_music21_missing(monkeypatch):
    monkeypatch.setattr(music21_corpus.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install \"midigen_jax\[demo\]\""):
        music21_corpus.corpus_folder()
