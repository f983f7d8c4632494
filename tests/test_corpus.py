import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import random_notes, write_midi

from midigen_jax import decode, encode, vocab
from midigen_jax.cli import InputError
from midigen_jax.corpus import SPLITS, open_corpus, split_of
from midigen_jax.song import tokens_of
from midigen_jax.vocab import Scheme, Vocabulary


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
    for workers, batch in ((1, 256), (3, 4)):
        monkeypatch.setattr(encode, "BATCH_FILES", batch)
        encode.encode_folder(midi_folder, tmp_path / str(workers), workers=workers, **options)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]  # no work is left behind


def test_a_killed_encoder_goes_on_to_the_same_corpus(midi_folder, tmp_path):
    """Killed three times at moments spread over its run; what is there under the final name is always whole."""
    program = "from midigen_jax import cli, encode; encode.BATCH_FILES = 2; cli.run(encode.main)"
    folder = tmp_path / "midi"
    for i in range(10):
        shutil.copytree(midi_folder, folder / str(i))

    def start(out):
        options = ["--workers", "2", "--vocabulary", "500", "--transpose", "3"]
        return subprocess.Popen([sys.executable, "-c", program, folder, "--out", out, *options], stdout=subprocess.PIPE)

    whole, out = tmp_path / "whole", tmp_path / "out"
    began = time.monotonic()
    process = start(whole)
    process.communicate()
    assert process.returncode == 0
    seconds = time.monotonic() - began
    partial = tmp_path / "out.partial"
    for share in (0.3, 0.7, 0.9):
        process = start(out)
        time.sleep(share * seconds)
        process.kill()
        process.communicate()
        assert not out.exists() or contents(out) == contents(whole)
    n_done = len(list(partial.glob("*.npz"))) if partial.exists() else 0
    process = start(out)
    said = process.communicate()[0].decode()
    assert process.returncode == 0
    assert (f"going on after {2 * n_done}" in said) == (n_done > 0)
    assert contents(out) == contents(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["midi", "out", "whole"]


def test_changed_files_or_options_start_anew(midi_folder, tmp_path):
    folder = shutil.copytree(midi_folder, tmp_path / "midi")
    names = encode.midi_files(folder)
    work = encode._Work(tmp_path / "work", folder, names, Scheme())
    work.encode(0)
    assert encode._Work(tmp_path / "work", folder, names, Scheme()).is_done(0)
    assert not encode._Work(tmp_path / "work", folder, names, Scheme(12)).is_done(0)
    work.encode(0)
    os.utime(folder / names[3], ns=(1, 1))
    assert not encode._Work(tmp_path / "work", folder, names, Scheme(12)).is_done(0)


def test_equal_songs_never_part_and_others_stay_where_they_are(midi_folder, tmp_path):
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
    assert "36 songs, in groups (12) that are on one side of the split each" in capsys.readouterr().out


def test_a_song_has_its_split_whatever_its_tokens(midi_folder, band_folder, tmp_path):
    folder = shutil.copytree(midi_folder, tmp_path / "midi")
    shutil.copytree(band_folder, folder / "band")
    splits = []
    for i, scheme in enumerate((Scheme(), Scheme(24, multi=True, velocities=True), Scheme(faithful=True))):
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
        for got, expected in zip(tokens_of(corpus.song(i), merged.vocabulary), (merged.tokens_of(i),), strict=False):
            assert got.tolist() == expected.tolist()


def test_decoding_a_corpus_gives_back_its_tokens(band_folder, tmp_path, monkeypatch, capsys):
    """Every song to a MIDI file and back: meters, tempos, instruments and velocities too."""
    scheme = Scheme(12, multi=True, velocities=True)
    encode.encode_folder(band_folder, tmp_path / "one", scheme=scheme)
    monkeypatch.setattr("sys.argv", ["decode", str(tmp_path / "one"), "--midi", str(tmp_path / "midi")])
    decode.main()
    encode.encode_folder(tmp_path / "midi", tmp_path / "two", scheme=scheme)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    for name in ("tokens.npy", "bar.npy", "step.npy", "meters.npy", "tempos.npy"):
        assert one[name] == two[name]


def test_what_a_song_says(tmp_path, monkeypatch, capsys):
    write_midi(tmp_path / "midi" / "a.mid", [[(0, 1.5, 60), (0, 0.25, 64), (3.25, 1, 61)]], meter=(3, 4), tempo=400_000)
    encode.encode_folder(tmp_path / "midi", tmp_path / "corpus")
    corpus = open_corpus(tmp_path / "corpus")
    assert decode.describe(corpus.song(0)) == [
        "bar 1, 3/4, 150 quarters a minute",
        "  beat 1       E4 for 1/4, C4 for 1 1/2",
        "bar 2, 3/4, 150 quarters a minute",
        "  beat 1 1/4   C#4 for 1",
    ]
    assert len(decode.describe(corpus.song(0), bars=1)) == 2
    assert [decode.find_song(corpus, song) for song in ("a.mid", "0")] == [0, 0]
    with pytest.raises(InputError, match="b: no such song in"):
        decode.find_song(corpus, "b")
    monkeypatch.setattr("sys.argv", ["decode", str(tmp_path / "corpus"), "a.mid", "--tokens"])
    capsys.readouterr()
    decode.main()
    assert capsys.readouterr().out.splitlines()[1] == "sos n64 d2 n60 d12 sep d26 n61 d8 eos"


def test_words_of_a_vocabulary_are_checked():
    with pytest.raises(KeyError):
        Vocabulary.from_json({})
    assert Vocabulary.from_json(Vocabulary(Scheme(24, True)).to_json()).scheme == Scheme(24, True)


def test_split_shares():
    counts = np.bincount([split_of(str(i), (0.8, 0.15, 0.05)) for i in range(4000)], minlength=3) / 4000
    assert counts == pytest.approx([0.8, 0.15, 0.05], abs=0.03)


def test_what_is_no_music_is_skipped_with_its_reason(tmp_path, capsys):
    folder = tmp_path / "midi"
    write_midi(folder / "good.mid", [random_notes(np.random.default_rng(0), 30)])
    write_midi(folder / "silent.mid", [[]])
    write_midi(folder / "knock.mid", [[(i, 1, 60) for i in range(9)]])
    write_midi(folder / "far.mid", [[(0, 1, 60), (40_000, 1, 64)]])
    (folder / "huge.mid").write_bytes(bytes(encode.MAX_BYTES + 1))
    (folder / "broken.mid").write_bytes(b"this is no MIDI file")
    (folder / "notes.txt").write_text("not looked at")
    latin1 = os.fsdecode(b"caf\xe9.mid")  # names need not be UTF-8
    shutil.copy(folder / "good.mid", folder / latin1)
    encode.encode_folder(folder, tmp_path / "corpus")
    assert open_corpus(tmp_path / "corpus").names == [latin1, "good.mid"]
    lines = (tmp_path / "corpus" / "skipped.csv").read_text().splitlines()
    assert lines[1:] == [
        "broken.mid,not a MIDI file: it has no MThd header",
        'far.mid,"absurd length: over 32,768 beats"',
        "huge.mid,absurd length: over 2 MB",
        "knock.mid,no music: one note repeated",
        'silent.mid,"holds no notes (drums aside, unless instruments are kept apart)"',
    ]
    said = capsys.readouterr().out
    assert "    1: no music: one note repeated" in said


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
    with pytest.raises(InputError, match="disagree in length"):
        open_corpus(path)
