import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import random_notes, write_midi

from midigen_jax import vocab
from midigen_jax.cli import decode
from midigen_jax.data import describe, encode, file_batches, folders
from midigen_jax.data.corpus import SPLITS, open_corpus, split_of
from midigen_jax.data.file_batches import Batches
from midigen_jax.errors import InputError
from midigen_jax.music.song import tokens_of
from midigen_jax.vocab import FAITHFUL, Scheme, Vocabulary


def test_songs_of_a_folder(corpus, midi_folder):
    assert corpus.names == sorted(path.name for path in midi_folder.iterdir())
    assert len(corpus.offsets) == len(corpus.names) + 1
    assert isinstance(corpus.tokens, np.memmap)
    for i in range(len(corpus.names)):
        song = corpus.tokens[corpus.offsets[i] : corpus.offsets[i + 1]]
        assert song[0] == 0
        assert song[-1] == 1
        heads = song[1:-1:2]
        assert np.count_nonzero(heads != 3) == corpus.notes[i]
    assert sum(len(corpus.songs_of(split)) for split in SPLITS) == len(corpus.names)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_neither_workers_nor_batches_change_anything(midi_folder, tmp_path, monkeypatch):
    options = {"scheme": Scheme(12, multi=True), "vocabulary": 600, "transpose": 2}
    for workers, batch_files in ((1, 64), (3, 4)):
        monkeypatch.setattr(file_batches, "BATCH_FILES", batch_files)
        encode.encode_folder(midi_folder, tmp_path / str(workers), workers=workers, **options)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]  # no work is left behind


DYING = """
import os, signal, sys
from midigen_jax.cli import command, encode
from midigen_jax.data import file_batches

file_batches.BATCH_FILES, life = 2, int(sys.argv.pop(1))

def or_die(function):
    def call(*paths, **options):
        global life
        life -= 1
        if life == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        function(*paths, **options)
    return call

os.replace, os.unlink = or_die(os.replace), or_die(os.unlink)
command.run(encode.main)
"""


def test_a_killed_encoder_continues_to_the_same_corpus(midi_folder, tmp_path):
    """Killed while it encodes, before and between the renames that put the new corpus in the old one's place, and
    while it cleans up."""
    folder = tmp_path / "midi"
    for i in range(5):
        shutil.copytree(midi_folder, folder / str(i))

    def run(out, life, *options):
        command = [sys.executable, "-c", DYING, str(life), folder, "--out", out, "--workers", "1", *options]
        return subprocess.run(command, capture_output=True, text=True)

    options = ["--vocabulary", "500", "--transpose", "3"]
    assert run(tmp_path / "whole", 0, *options).returncode == 0
    assert run(tmp_path / "out", 0).returncode == 0
    whole, before, out = contents(tmp_path / "whole"), contents(tmp_path / "out"), tmp_path / "out"
    # Of 50 batches 19, 19 and the last 12. The 10 files of the unfinished corpus are removed, and the old one is moved
    # away. The 10 files again, the old one is restored, moved away, the new one moved in, the old one removed, and some
    # of the remaining files.
    for life, left, encoded in ((20, before, 0), (20, before, 38), (13, before, 76), (12, None, 100), (19, whole, 100)):
        killed = run(out, life, *options)
        assert killed.returncode == -9
        assert (f"continuing after {encoded} files" in killed.stdout) == (encoded > 0)
        assert (contents(out) if out.exists() else None) == left
    ended = run(out, 0, *options)
    assert (ended.stderr, ended.returncode, contents(out)) == ("", 0, whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["midi", "out", "whole"]


def test_batches_of_other_files_or_options_and_damaged_ones_are_encoded_again(midi_folder, tmp_path):
    folder = shutil.copytree(midi_folder, tmp_path / "midi")
    names = encode.midi_files(folder)

    def kept(scheme):
        with Batches(tmp_path / "work", folder, names, Vocabulary(scheme)) as batches:
            done = batches.is_done(0)
            batches.encode(1)
        return done

    assert [kept(scheme) for scheme in (Scheme(), Scheme(), Scheme(12), Scheme(12))] == [False, True, False, True]
    os.utime(folder / names[3], ns=(1, 1))
    assert not kept(Scheme(12))
    batch = tmp_path / "work" / "000000.npz"
    for damage in (b"", b"nonsense", batch.read_bytes()[:-50]):
        batch.write_bytes(damage)
        assert not kept(Scheme(12))


def test_existing_folders_are_kept(midi_folder, tmp_path):
    """Neither the user's own folder nor the work of another run is touched."""
    (tmp_path / ".a.encoding").mkdir()
    (tmp_path / ".a.encoding" / "mine").write_text("")
    with pytest.raises(InputError, match="was not made by midigen encode"):
        encode.encode_folder(midi_folder, tmp_path / "a")
    names = encode.midi_files(midi_folder)
    with (
        Batches(tmp_path / ".b.encoding", midi_folder, names, Vocabulary()),
        pytest.raises(InputError, match="another run is encoding here"),
    ):
        encode.encode_folder(midi_folder, tmp_path / "b")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "c")
    for _ in range(2):
        encode.encode_folder(midi_folder, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["c"]


def test_no_training_song_to_learn_merges_from(midi_folder, tmp_path):
    with pytest.raises(InputError, match="no song is in the training split"):
        encode.encode_folder(midi_folder, tmp_path / "corpus", vocabulary=500, fractions=(0, 0.5, 0.5))


def test_equal_songs_are_in_one_split_and_do_not_move_others(midi_folder, tmp_path):
    folder = tmp_path / "midi"
    for path in midi_folder.iterdir():
        for copy in ("a", "b"):
            (folder / copy).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / copy / path.name)
    encode.encode_folder(midi_folder, tmp_path / "once")
    encode.encode_folder(folder, tmp_path / "twice")
    once, twice = open_corpus(tmp_path / "once"), open_corpus(tmp_path / "twice")
    assert len(set(once.splits.tolist())) > 1
    assert twice.splits.tolist() == once.splits.tolist() * 2


def test_near_duplicates_stay_together_and_the_report_says_so(tmp_path, capsys):
    random = np.random.default_rng(5)
    for i in range(12):
        notes = random_notes(random, 200, beats=90)
        write_midi(tmp_path / "midi" / f"{i:02}-a.mid", [notes])
        write_midi(tmp_path / "midi" / f"{i:02}-b.mid", [[(t, d, p + 3) for t, d, p in notes]], ticks_per_beat=96)
        write_midi(tmp_path / "midi" / f"{i:02}-c.mid", [[(2 * t, 2 * d, p) for t, d, p in notes]], tempo=250_000)
    encode.encode_folder(tmp_path / "midi", tmp_path / "corpus", fractions=(0.5, 0.25, 0.25))
    splits = open_corpus(tmp_path / "corpus").splits.reshape(12, 3)
    assert (splits == splits[:, :1]).all()
    assert len(set(splits[:, 0].tolist())) == 3
    assert "36 songs\n    in 12 groups, each kept on one side of the split" in capsys.readouterr().out


def test_the_split_of_a_song_does_not_depend_on_its_tokens(midi_folder, band_folder, tmp_path):
    folder = shutil.copytree(midi_folder, tmp_path / "midi")
    shutil.copytree(band_folder, folder / "band")
    splits = []
    for i, scheme in enumerate((Scheme(), Scheme(24, multi=True, velocities=True), FAITHFUL)):
        encode.encode_folder(folder, tmp_path / str(i), scheme=scheme)
        splits.append(open_corpus(tmp_path / str(i)).splits.tolist())
    assert splits[0] == splits[1] == splits[2]


def test_transposed_copies_of_training_songs(midi_folder, corpus, tmp_path):
    encode.encode_folder(midi_folder, tmp_path / "corpus", transpose=2, fractions=(0.7, 0.2, 0.1))
    more = open_corpus(tmp_path / "corpus")
    training = corpus.songs_of("train")
    assert len(more.names) == len(corpus.names) + 4 * len(training)
    assert set(more.splits[more.semitones != 0].tolist()) == {0}
    song = more.names.index(corpus.names[training[0]])
    assert more.semitones[song : song + 5].tolist() == [0, -1, 1, -2, 2]
    plain = more.tokens_of(song).astype(int)
    is_note = (plain >= vocab.NOTE_0) & (plain < vocab.DURATION_0)
    assert (more.tokens_of(song + 4) - plain).tolist() == (2 * is_note).tolist()


def test_a_corpus_with_merges_holds_the_same_songs(midi_folder, corpus, tmp_path):
    encode.encode_folder(midi_folder, tmp_path / "corpus", vocabulary=700, fractions=(0.7, 0.2, 0.1))
    merged = open_corpus(tmp_path / "corpus")
    assert merged.vocabulary.size == 700
    assert merged.splits.tolist() == corpus.splits.tolist()
    assert len(merged.tokens) < 0.7 * len(corpus.tokens)
    for i in range(len(corpus.names)):
        assert merged.song(i).notes.tolist() == corpus.song(i).notes.tolist()
        here = slice(merged.offsets[i], merged.offsets[i + 1])
        expected = tokens_of(corpus.song(i), merged.vocabulary)
        for array, values in zip((merged.tokens, merged.bar, merged.position), expected, strict=True):
            assert array[here].tolist() == values.tolist()


def test_decoding_a_corpus_gives_back_its_tokens(band_folder, tmp_path, monkeypatch, capsys):
    """Every song to a MIDI file and back: meters, tempos, instruments and velocities too."""
    scheme = Scheme(12, multi=True, velocities=True)
    encode.encode_folder(band_folder, tmp_path / "one", scheme=scheme)
    monkeypatch.setattr("sys.argv", ["decode", str(tmp_path / "one"), "--midi", str(tmp_path / "midi")])
    decode.main()
    encode.encode_folder(tmp_path / "midi", tmp_path / "two", scheme=scheme)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    for name in ("tokens.npy", "bar.npy", "position.npy", "meters.npy", "tempos.npy"):
        assert one[name] == two[name]


def test_a_song_in_words(tmp_path, monkeypatch, capsys):
    write_midi(
        tmp_path / "midi" / "a.mid",
        [[(0, 1.5, 60), (0, 0.25, 64), (3.25, 1, 61), (12, 1, 60)]],
        meter=(3, 4),
        tempo=400_000,
    )
    encode.encode_folder(tmp_path / "midi", tmp_path / "corpus")
    corpus = open_corpus(tmp_path / "corpus")
    assert describe.describe(corpus.song(0)) == [
        "bar 1, 3/4, 150 quarter notes per minute",
        "  beat 1       E4 for 1/4, C4 for 1 1/2",
        "bar 2, 3/4, 150 quarter notes per minute",
        "  beat 1 1/4   C♯4 for 1",
        "bars 3 to 4: no note begins",
        "bar 5, 3/4, 150 quarter notes per minute",
        "  beat 1       C4 for 1",
    ]
    assert len(describe.describe(corpus.song(0), bars=1)) == 2
    assert [describe.find_song(corpus, song) for song in ("a.mid", "a", "0")] == [0, 0, 0]
    with pytest.raises(InputError, match="b: no such song in"):
        describe.find_song(corpus, "b")
    named = corpus._replace(names=["a.mid", "a.kar", "../b.mid"], semitones=np.array([-1, 0, 0]))
    paths = [describe.midi_path(named, i, tmp_path).name for i in (0, 1)]
    assert paths == ["a.mid-1.mid", "a.kar.mid"]
    assert describe.find_song(named, "a.mid-1") == 0
    with pytest.raises(InputError, match="leads out of"):
        describe.midi_path(named, 2, tmp_path)
    (tmp_path / "a.kar.mid").write_text("an original")
    with pytest.raises(InputError, match=r"a\.kar\.mid: exists"):
        describe.midi_path(named, 1, tmp_path)
    monkeypatch.setattr("sys.argv", ["decode", str(tmp_path / "corpus"), "a.mid", "--tokens", "--bars", "2"])
    capsys.readouterr()
    decode.main()
    assert capsys.readouterr().out.splitlines()[1] == "sos n64 d2 n60 d12 sep d26 n61 d8 sep d70"


def test_vocabularies_are_checked():
    values = Vocabulary(Scheme()).to_json()
    with pytest.raises(KeyError):
        Vocabulary.from_json({})
    for change in ({"steps_per_beat": 0}, {"multi": 1}, {"merges": [[4]]}, {"merges": [[4, 133, 3]]}):
        with pytest.raises(ValueError, match=r"unknown|whole events"):
            Vocabulary.from_json(values | change)
    assert Vocabulary.from_json(Vocabulary(Scheme(24, True)).to_json()).scheme == Scheme(24, True)


def test_split_shares():
    counts = np.bincount([split_of(str(i), (0.8, 0.15, 0.05)) for i in range(4000)], minlength=3) / 4000
    assert counts == pytest.approx([0.8, 0.15, 0.05], abs=0.03)


def test_files_that_are_not_music_are_skipped_with_the_reason(tmp_path, capsys):
    folder = tmp_path / "midi"
    write_midi(folder / "good.mid", [random_notes(np.random.default_rng(0), 30)])
    write_midi(folder / "silent.mid", [[]])
    write_midi(folder / "knock.mid", [[(i, 1, 60) for i in range(9)]])
    write_midi(folder / "far.mid", [[(0, 1, 60), (40_000, 1, 64)]])
    (folder / "huge.mid").write_bytes(bytes(folders.MAX_BYTES + 1))
    (folder / "broken.mid").write_bytes(b"this is no MIDI file")
    (folder / "notes.txt").write_text("not looked at")
    latin1 = os.fsdecode(b"caf\xe9.mid")  # names need not be UTF-8
    shutil.copy(folder / "good.mid", folder / latin1)
    encode.encode_folder(folder, tmp_path / "corpus")
    assert open_corpus(tmp_path / "corpus").names == [latin1, "good.mid"]
    lines = (tmp_path / "corpus" / "skipped.csv").read_text().splitlines()
    assert lines[1:] == [
        "broken.mid,not a MIDI file: it has no MThd header",
        'far.mid,"too long: over 32,768 beats"',
        "huge.mid,too long: over 2 MB",
        "knock.mid,not music: one note repeated",
        "silent.mid,holds no notes (drums count only if instruments are kept apart)",
    ]
    said = capsys.readouterr().out
    assert "    1: not music: one note repeated" in said


def test_nothing_to_encode(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        encode.encode_folder(tmp_path / "missing", tmp_path / "corpus")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no MIDI files"):
        encode.encode_folder(tmp_path / "empty", tmp_path / "corpus")
    (tmp_path / "empty" / "a.mid").write_bytes(b"MThd")
    with pytest.raises(InputError, match=r"none of its 1 MIDI files.*a\.mid: not a MIDI file"):
        encode.encode_folder(tmp_path / "empty", tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_damaged_corpora_are_named(corpus, tmp_path):
    with pytest.raises(InputError, match="no corpus"):
        open_corpus(tmp_path)

    def damaged(name):
        return shutil.copytree(corpus.path, tmp_path / name)

    path = damaged("version")
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**meta, "format_version": 99}))
    with pytest.raises(InputError, match="format version 99"):
        open_corpus(path)
    (path / "meta.json").write_text(json.dumps({**meta, "format_version": 2}))
    (path / "position.npy").rename(path / "step.npy")  # as version 2 had it
    with pytest.raises(InputError, match=r"format version 2, but .* reads version 4; encode it again: midigen encode"):
        open_corpus(path)
    path = damaged("vocabulary")
    (path / "meta.json").write_text(json.dumps({**meta, "vocabulary": {**meta["vocabulary"], "merges": [[1, 999]]}}))
    with pytest.raises(InputError, match=r"damaged corpus.*unknown tokens"):
        open_corpus(path)
    path = damaged("cut")
    (path / "tokens.npy").write_bytes((path / "tokens.npy").read_bytes()[:100])
    with pytest.raises(InputError, match="damaged corpus"):
        open_corpus(path)
    path = damaged("lengths")
    np.save(path / "bar.npy", corpus.bar[:-1])
    with pytest.raises(InputError, match="differ in type or length"):
        open_corpus(path)
