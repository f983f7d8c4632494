"""Compiled kernels: plain loops over arrays, compiled by Numba.

The public functions of the package check their input before they call these; inside a kernel only the data
of a file is doubted. Every kernel releases the GIL, so that threads encode files side by side.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def kernel(function: Function) -> Function:
    """Compiles a function at its first call and keeps the machine code on disk."""
    return cast(Function, numba.njit(cache=True, nogil=True)(function))
