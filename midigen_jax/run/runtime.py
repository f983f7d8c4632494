"""The JAX process: its device, its allocator and its compilation cache."""

import contextlib
import ctypes
import os
from pathlib import Path

import jax

from ..errors import InputError


def choose_device(name: str | None) -> None:
    """Makes JAX use a kind of device; None leaves the choice to JAX.

    Raises:
        InputError: there is no such device.
    """
    if name is None:
        return
    platform, before = {"gpu": "cuda"}.get(name, name), jax.config.jax_platforms  # type: ignore[attr-defined]
    jax.config.update("jax_platforms", platform)
    try:
        jax.devices(platform)
    except (RuntimeError, AssertionError):  # the latter where JAX has no such plugin
        jax.config.update("jax_platforms", before)
        found = ", ".join(sorted({device.platform for device in jax.devices()}))
        raise InputError(f"--device {name}: no such device here; available: {found}") from None


def retain_freed_memory() -> None:
    """Makes the process's allocator keep the memory that XLA frees on the CPU.

    XLA allocates its temporary memory anew in every step, and glibc returns such large blocks to the kernel at once,
    which clears each page when it is touched again: 100,000 page faults in a step of `configs/pop909.py`, an eighth of
    its time. Where there is no glibc nothing happens.
    """
    max_mmaps, trim_threshold, max_arenas = -4, -1, -8  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX of malloc.h
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((max_mmaps, 0), (trim_threshold, 2**31 - 1), (max_arenas, 1)):
            mallopt(option, value)


def enable_compilation_cache() -> None:
    """Lets the next process on an accelerator reuse what this one compiles.

    The cache is in ~/.cache/midigen_jax unless JAX_COMPILATION_CACHE_DIR says otherwise. There is none on the CPU,
    where compiling takes seconds, programs that call Faiss can't be cached, and jax 0.10 rejects its own cache on some
    processors.

    Raises:
        InputError: the device that JAX_PLATFORMS asks for can't be used.
    """
    try:
        backend = jax.default_backend()
    except (RuntimeError, AssertionError):  # the latter where JAX has no such plugin
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise InputError(f"JAX_PLATFORMS={asked}: no such device here; unset it, or set it to cpu") from None
    if backend != "cpu" and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "midigen_jax" / "xla"))
