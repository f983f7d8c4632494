"""Compiled kernels: plain loops over arrays, compiled by Numba.

The public functions of the package check their input before they call these; inside a kernel only the data
of a file is doubted. Every kernel releases the GIL, so that threads encode files side by side.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

from .. import vocab

Function = TypeVar("Function", bound=Callable[..., Any])


def kernel(function: Function) -> Function:
    """Compiles a function at its first call and keeps the machine code on disk.

    Division by zero gives infinity, as in NumPy, which spares the loops a check.
    """
    return cast(Function, numba.njit(cache=True, nogil=True, error_model="numpy")(function))


def _drop_stale_machine_code() -> None:
    """Numba compiles anew when a function's own file changed, but not when a kernel or constant that it uses did."""
    folder = Path(__file__).parent
    changed = max(path.stat().st_mtime for path in (*folder.glob("*.py"), Path(vocab.__file__)))
    for index in folder.glob("__pycache__/*.nbi"):
        try:
            if index.stat().st_mtime < changed:
                index.unlink()
        except OSError:  # gone already, or not ours to remove
            pass


_drop_stale_machine_code()
