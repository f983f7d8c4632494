"""Checkpoints: what was saved comes back to the bit or not at all."""

import contextlib
import gc
import logging
import os
import re
import resource
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow, thorough
from jax.sharding import NamedSharding, PartitionSpec
from test_train import ENVIRONMENT, equal

from midigen_jax.errors import InputError
from midigen_jax.run import checkpoint
from midigen_jax.run.checkpoint import Checkpoints, SaveFailed, checksums

META = {"format_version": checkpoint.FORMAT_VERSION, "config": {"a": 1}}


def items_of(step: int):
    """Arrays of several types that differ from step to step."""
    random = np.random.default_rng(step)
    array = jnp.asarray(random.normal(size=(60, 50)), jnp.float32)
    return {
        "params": {"layer": {"kernel": array, "scale": array[0].astype(jnp.bfloat16)}},
        "optimizer": ({"count": jnp.asarray(step, jnp.int32)}, {"mu": array + 1}),
        "memory": {"song": jnp.arange(40, dtype=jnp.int32) - 1, "of no slots": (jnp.zeros((3, 0)), array[1])},
        "rest": {"step": jnp.asarray(step, jnp.int32), "key": jax.random.key_data(jax.random.key(step))},
    }


def shapes(meta):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), items_of(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A run with checkpoints at steps 1 and 2."""
    run = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(run, keep=2)
    for step in (1, 2):
        checkpoints.save(step, items_of(step), META, loss=4.0 - step)
        checkpoints.wait()
    checkpoints.close()
    return run


def test_what_is_saved_comes_back(saved):
    found = checkpoint.open_run(saved).newest(shapes)
    assert found.step == 2
    assert found.meta["config"] == META["config"]
    assert equal(found.items, items_of(2))
    assert jax.tree.map(lambda x: x.dtype, found.items) == jax.tree.map(lambda x: x.dtype, items_of(2))


def test_an_item_that_holds_nothing_comes_back(tmp_path):
    """As the memories of a model without any."""
    items = items_of(1) | {"memory": (jnp.zeros((3, 0)), None)}
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, items, META)
    checkpoints.wait()
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), items)
    assert equal(checkpoints.newest(lambda meta: abstract).items, items)
    checkpoints.close()


def test_any_changed_character_of_meta_is_seen(saved, tmp_path):
    """Even one that leaves JSON of the same shape: another step, corpus or setting."""
    run = shutil.copytree(saved, tmp_path / "run")
    path = run / "checkpoints" / "2" / "meta" / "metadata"
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert checkpoint.open_run(run).newest(shapes).step == 1, place


def test_a_failed_save_costs_no_checkpoint(tmp_path):
    """Orbax forgets those that the failed one would have replaced."""
    checkpoints = Checkpoints(tmp_path, keep=2)

    def save(step, loss):
        checkpoints.save(step, items_of(step), META, loss)
        checkpoints.wait()

    save(1, 1.0)
    save(2, 3.0)
    for step in (3, 4):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
        try:
            with pytest.raises(SaveFailed, match="File too large"):
                save(step, 2.0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert checkpoints.steps() == [2, 1]
    save(7, 2.0)
    assert checkpoints.steps() == [7, 2, 1]
    save(8, 2.0)
    assert checkpoints.steps() == [8, 7, 1]
    checkpoints.close()
    assert checkpoint.open_run(tmp_path).newest(shapes, best=True).step == 1


def test_what_is_saved_is_what_the_arrays_held(tmp_path):
    """Later steps write into the same buffers while it is saved."""
    checkpoints, state = Checkpoints(tmp_path, keep=9), {"x": jnp.zeros(2_000_000)}
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    for i in range(1, 7):
        state = step(state)
        if i % 2 == 0:
            checkpoints.wait()
            checkpoints.save(i, {"params": state}, META)
    checkpoints.wait()
    abstract = jax.eval_shape(lambda: {"params": state})
    for i in (2, 4, 6):
        assert (checkpoints.read(i, lambda meta: abstract).items["params"]["x"] == i).all()
    checkpoints.close()


@pytest.mark.parametrize("how", ["missing", "a bit", slow("cut"), slow("flipped")])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(saved, tmp_path, capsys, how):
    """Whatever file of it was damaged, what is read is what was saved."""
    files = sorted(path for path in (saved / "checkpoints" / "2").rglob("*") if path.is_file())
    assert len(files) > 20
    n_found = 0
    for i, file in enumerate(files if thorough() else files[::2]):
        run = shutil.copytree(saved, tmp_path / str(i))
        path, content = run / file.relative_to(saved), bytearray(file.read_bytes())
        if how == "missing":
            path.unlink()
        elif how == "flipped":
            for place in range(0, len(content), max(len(content) // 8, 1)):
                content[place] ^= 0x55
            path.write_bytes(content)
        elif how == "a bit":
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        else:
            path.write_bytes(content[: len(content) // 2])
        checkpoints = Checkpoints(run, keep=2)
        found = checkpoints.newest(shapes)
        assert equal(found.items, items_of(found.step)), path
        said = capsys.readouterr().out
        if found.step == 1:
            n_found += 1
            assert f"{run / 'checkpoints' / '2'}: damaged checkpoint (" in said, path
            assert said.endswith("; using that of step 1\n")
            # It says in a line which file, array or item, and why.
            assert said.count("\n") == 1
            assert len(said) < len(str(run)) + 300, path
            item = file.relative_to(saved / "checkpoints" / "2").parts[0]
            assert re.search(rf"\(({item}|its metadata).* (is missing|can't be read: .|is not what)", said), path
            # It makes room for the step to be saved again, and is not lost.
            assert (run / "damaged" / "2").is_dir()
            if n_found == 1:
                checkpoints.save(2, items_of(2), META)
                checkpoints.wait()
                assert Checkpoints(run).newest(shapes).step == 2
        else:
            assert said == "", path
        checkpoints.close()
        shutil.rmtree(run)
    assert n_found > i / 5


def settings_of_the_process():
    levels = [logging.getLogger(name).level for name in ("absl", "asyncio")]
    return levels, sys.unraisablehook, list(warnings.filters)


def test_the_process_is_left_as_it_was(saved, tmp_path, capsys):
    """Loggers, hooks and warnings, also after a failure, of which nothing is reported later."""
    before = settings_of_the_process()
    run = shutil.copytree(saved, tmp_path / "run")
    for file in (run / "checkpoints" / "2" / "params").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with contextlib.closing(checkpoint.open_run(run)) as checkpoints:
        assert checkpoints.newest(shapes).step == 1
    assert settings_of_the_process() == before
    capsys.readouterr()
    gc.collect()
    assert capsys.readouterr().err == ""


def test_losses_on_other_songs_are_not_compared(tmp_path):
    """The best is the best of those that were validated like the newest one."""
    with contextlib.closing(Checkpoints(tmp_path, keep=1)) as checkpoints:
        for step, songs, loss in ((1, 0, 1.0), (2, 20, 3.0), (3, 20, 4.0), (4, 20, 5.0)):
            meta = META | {"config": {"train.validation_songs": songs}}
            checkpoints.save(step, {"rest": items_of(step)["rest"]}, meta, loss)
            checkpoints.wait()
        assert checkpoints.steps() == [4, 2]
    assert checkpoint.open_run(tmp_path).newest(lambda meta: {}, best=True).step == 2


def test_if_none_can_be_read_the_run_ends(saved, tmp_path):
    run = shutil.copytree(saved, tmp_path / "run")
    for path in (run / "checkpoints").glob("*/params"):
        shutil.rmtree(path)
    before = sorted(run.rglob("*"))
    for checkpoints in (checkpoint.open_run(run), Checkpoints(run, keep=2)):
        with pytest.raises(InputError, match="none of its checkpoints can be read"):
            checkpoints.newest(shapes)
        assert sorted(run.rglob("*")) == before


def test_a_checksum_tells_any_change_and_depends_on_no_device():
    tree = {"a": jnp.arange(1000, dtype=jnp.float32), "b": jnp.ones((3, 5), jnp.bfloat16), "c": jnp.asarray(7)}
    tree["d"] = jnp.array([True, False])
    sums = checksums(tree)
    assert sums.keys() == {"a", "b", "c", "d"}
    for place in (0, 1, 999):
        for change in (1, 1 << 31):
            bits = np.asarray(tree["a"]).view(np.uint32).copy()
            bits[place] ^= change
            assert checksums({"a": bits.view(np.float32)})["a"] != sums["a"]
    assert checksums({"b": tree["b"].at[2, 4].set(1.0078125)})["b"] != sums["b"]
    assert checksums({"d": ~tree["d"]})["d"] != sums["d"]
    assert checksums({"a": tree["a"][::-1]})["a"] != sums["a"]
    mesh = jax.make_mesh((1,), ("lanes",))
    placed = jax.device_put(tree["a"], NamedSharding(mesh, PartitionSpec("lanes")))
    assert checksums({"a": placed})["a"] == sums["a"]


FULL_DISK = """
import resource, sys
from pathlib import Path
import jax, jax.numpy as jnp
from midigen_jax.run.checkpoint import Checkpoints, SaveFailed
if __name__ == "__main__":
    run, limit = Path(sys.argv[1]), int(sys.argv[2])
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    checkpoints = Checkpoints(run, keep=9)
    for step, size in ((1, 1000), (2, 1_000_000), (3, 1000)):
        try:
            checkpoints.save(step, {"params": {"x": jax.random.normal(jax.random.key(0), (size,))}}, {})
            checkpoints.wait()
            print(step, "saved")
        except SaveFailed as error:
            print(step, "failed:", error)
        print(sorted(path.name for path in checkpoints.path.iterdir()))
    checkpoints.close()
"""


@pytest.mark.parametrize("limit", ["quota", "tmpfs"])
def test_a_save_that_finds_no_room_leaves_nothing_behind(tmp_path, limit):
    if limit == "tmpfs":
        mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", tmp_path]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("only root can mount a small disk")
    try:
        command = [sys.executable, "-c", FULL_DISK, tmp_path / "run", "0" if limit == "tmpfs" else str(1 << 20)]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    finally:
        if limit == "tmpfs":
            subprocess.run(["umount", tmp_path], check=True)
    reason = "it may need 4.0 MB, and " if limit == "tmpfs" else "File too large"
    said = done.stdout.splitlines()
    assert reason in said[2]
    assert said == ["1 saved", "['1']", said[2], "['1']", "3 saved", "['1', '3']"]
    assert said[2].startswith("2 failed: ")
    assert len(said[2]) < 200
    assert "Traceback" not in done.stderr
