import json
import os
import shutil

import numpy as np
import pytest
from conftest import random_notes, write_midi

from midigen_jax import encode
from midigen_jax.cli import InputError
from midigen_jax.corpus import SPLITS, open_corpus, split_of


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


def test_the_number_of_workers_changes_nothing(midi_folder, tmp_path):
    for workers in (1, 3):
        encode.encode_folder(midi_folder, tmp_path / str(workers), workers=workers)
    for file in sorted((tmp_path / "1").iterdir()):
        assert file.read_bytes() == (tmp_path / "3" / file.name).read_bytes()


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


def test_split_shares():
    counts = np.bincount([split_of(str(i), (0.8, 0.15, 0.05)) for i in range(4000)], minlength=3) / 4000
    assert counts == pytest.approx([0.8, 0.15, 0.05], abs=0.03)


def test_bad_files_are_skipped_with_their_reason(tmp_path):
    folder = tmp_path / "midi"
    write_midi(folder / "good.mid", [random_notes(np.random.default_rng(0), 30)])
    write_midi(folder / "silent.mid", [[]])
    (folder / "broken.mid").write_bytes(b"this is no MIDI file")
    (folder / "notes.txt").write_text("not looked at")
    latin1 = os.fsdecode(b"caf\xe9.mid")  # names need not be UTF-8
    shutil.copy(folder / "good.mid", folder / latin1)
    encode.encode_folder(folder, tmp_path / "corpus")
    assert open_corpus(tmp_path / "corpus").names == [latin1, "good.mid"]
    lines = (tmp_path / "corpus" / "skipped.csv").read_text().splitlines()
    assert lines[1:] == [
        "broken.mid,not a MIDI file: it has no MThd header",
        "silent.mid,holds no notes (drums aside)",
    ]


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
    (path / "meta.json").write_text(json.dumps({**meta, "vocabulary": ["a"]}))
    with pytest.raises(InputError, match="another vocabulary"):
        open_corpus(path)
    path = damaged("cut")
    (path / "tokens.npy").write_bytes((path / "tokens.npy").read_bytes()[:100])
    with pytest.raises(InputError, match="damaged corpus"):
        open_corpus(path)
    path = damaged("lengths")
    np.save(path / "bar.npy", corpus.bar[:-1])
    with pytest.raises(InputError, match="disagree in length"):
        open_corpus(path)
