"""Folders of MIDI files: which files are found, and whether they are still those that a corpus was encoded from."""

import errno
import os
import shutil
import subprocess
import sys

import pytest

from midigen_jax.data import encode, folders
from midigen_jax.data.corpus import encoded_files
from midigen_jax.data.encode import open_or_encode
from midigen_jax.errors import InputError


def test_a_run_s_corpus_is_encoded_once(midi_folder, tmp_path):
    corpus = open_or_encode(midi_folder, tmp_path)
    written = (tmp_path / "corpus" / "meta.json").stat().st_mtime_ns
    assert open_or_encode(midi_folder, tmp_path).fingerprint == corpus.fingerprint
    assert open_or_encode(corpus.path, tmp_path / "other").fingerprint == corpus.fingerprint
    assert (tmp_path / "corpus" / "meta.json").stat().st_mtime_ns == written


def test_a_file_that_was_replaced_under_its_name_is_refused(midi_folder, tmp_path):
    """Even by one of the same size; but one that was only copied or touched is the same."""
    folder = shutil.copytree(midi_folder, tmp_path / "midi")
    (folder / "broken.mid").write_bytes(b"this is no MIDI file")
    (folder / "huge.mid").write_bytes(bytes(folders.MAX_BYTES + 1))
    (folder / "nowhere.mid").symlink_to(tmp_path / "nowhere")
    corpus = open_or_encode(folder, tmp_path)
    stamps = encoded_files(corpus.path)
    assert sorted(stamps) == folders.midi_files(folder)
    assert stamps["nowhere.mid"] == (-1, -1, -1)
    for path in folder.glob("[hs]*.mid"):
        os.utime(path, ns=(1, 1))
    assert open_or_encode(folder, tmp_path).fingerprint == corpus.fingerprint
    path = folder / "song03.mid"
    content = path.read_bytes()
    for changed in (content[:-9], content[:40] + bytes([content[40] ^ 1]) + content[41:]):
        path.write_bytes(changed)
        with pytest.raises(InputError, match=r"song03\.mid: has changed since .*; to go on with the old ones"):
            open_or_encode(folder, tmp_path)
    path.write_bytes(content)
    assert open_or_encode(folder, tmp_path).fingerprint == corpus.fingerprint
    (folder / "broken.mid").write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.mid: has changed"):
        open_or_encode(folder, tmp_path)
    (corpus.path / "files.csv").write_text("file,size\na.mid,many\n")
    with pytest.raises(InputError, match="damaged corpus"):
        open_or_encode(folder, tmp_path)


@pytest.mark.parametrize("command", ["encode missing --out corpus", "decode missing", "music21 --out midi --workers 0"])
def test_bad_arguments_are_reported_without_loading_numba(tmp_path, command):
    code = """
import sys
from midigen_jax.cli import main
from midigen_jax.errors import InputError
try:
    main.dispatch()
except InputError as error:
    print(error)
assert not {"jax", "numba", "mido", "music21", "tqdm"} & set(sys.modules)
"""
    command = [sys.executable, "-c", code, *command.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    assert "give" in done.stdout or "make one with" in done.stdout


def test_files_that_vanish_and_circular_links(midi_folder, tmp_path, monkeypatch):
    folder = tmp_path / "midi"
    shutil.copytree(midi_folder, folder / "a")
    (folder / "b").symlink_to(folder / "a")
    (folder / "a" / "up").symlink_to(folder)
    names = encode.midi_files(folder)
    assert names == [f"a/{name}" for name in sorted(path.name for path in midi_folder.iterdir())]
    (folder / "nowhere.mid").symlink_to(tmp_path / "nowhere")
    names = encode.midi_files(folder)
    monkeypatch.setattr(encode, "midi_files", lambda folder: [*names, "zone.mid"])
    (tmp_path / "corpus").mkdir()  # an empty folder is no obstacle
    encode.encode_folder(folder, tmp_path / "corpus")
    skipped = (tmp_path / "corpus" / "skipped.csv").read_text().splitlines()[1:]
    assert skipped == [f"{name}.mid,can't be read: No such file or directory" for name in ("nowhere", "zone")]


def test_a_file_that_could_not_be_read_has_not_changed(midi_folder, tmp_path, monkeypatch):
    """A run whose folder has such a file can resume; once it can be read it has changed."""
    folder = shutil.copytree(midi_folder, tmp_path / "midi")
    unreadable, open_file = "song03.mid", os.open

    def refuse(path, *args, **options):
        if str(path).endswith(unreadable):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open_file(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        fingerprint = open_or_encode(folder, tmp_path / "run").fingerprint
        assert open_or_encode(folder, tmp_path / "run").fingerprint == fingerprint
    with pytest.raises(InputError, match=rf"{unreadable}: has changed since"):
        open_or_encode(folder, tmp_path / "run")
