"""Compiled kernels: plain loops over arrays, compiled by Numba.

The public functions of the package check their arguments before they call a kernel; a kernel distrusts only the
content of files. Every kernel releases the GIL, so that threads encode files in parallel.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

from .. import vocab

Function = TypeVar("Function", bound=Callable[..., Any])


def _digest() -> str:
    sources = (*sorted(Path(__file__).parent.glob("*.py")), Path(vocab.__file__))
    return hashlib.blake2b(b"".join(source.read_bytes() for source in sources), digest_size=4).hexdigest()


_VERSION = _digest()


def kernel(function: Function) -> Function:
    """Compiles a function at its first call and caches the machine code on disk.

    Numba recompiles when the function's own file has changed, but not when a kernel or constant that it uses has. So
    the cache key includes a digest of all sources. Division by zero gives infinity, as in NumPy, which saves the loops
    a check.
    """
    function.__qualname__ = f"{function.__qualname__}-{_VERSION}"
    return cast(Function, numba.njit(cache=True, nogil=True, error_model="numpy")(function))
