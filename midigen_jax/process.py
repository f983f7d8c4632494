"""What a process keeps, so that it need not be made again: freed memory, and compiled programs."""

import contextlib
import ctypes
import os
from pathlib import Path

import jax

from .cli import InputError


def keep_freed_memory() -> None:
    """Lets the allocator keep what XLA frees on the CPU, for the whole process.

    XLA asks malloc for its temporary memory anew in every step, and glibc gives such large blocks back to the kernel at
    once, which clears each page again when it is touched: 100,000 page faults a step of `configs/pop909.py`, an eighth
    of its time. Where there is no glibc nothing happens.
    """
    max_mmaps, trim_threshold, max_arenas = -4, -1, -8  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX of malloc.h
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((max_mmaps, 0), (trim_threshold, 2**31 - 1), (max_arenas, 1)):
            mallopt(option, value)


def keep_programs() -> None:
    """Lets the next process on an accelerator find what this one compiles, in ~/.cache/midigen_jax unless
    JAX_COMPILATION_CACHE_DIR says otherwise.

    Not on the CPU, where compiling takes seconds, a program that calls Faiss can't be kept, and jax up to 0.10 at least
    refuses what it kept on some processors.

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
