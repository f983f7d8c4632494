import pytest

from midigen_jax.files import atomic_write, check_writable, write_text


def test_a_file_gets_its_name_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
    assert path.read_text() == "half"
    write_text(path, "other")
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"]
    assert path.read_text() == "other"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_old_file_stays_if_writing_fails(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("before")

    def write_half():
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "before"


@pytest.mark.parametrize("attempt", [lambda path: write_text(path, "text"), check_writable])
def test_errors_name_the_file(tmp_path, attempt):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "folder", tmp_path / "file" / "a.txt"):
        with pytest.raises(OSError, match=r"irectory|exists") as caught:
            attempt(path)
        assert caught.value.filename in (str(path), str(path.parent))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
