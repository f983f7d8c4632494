"""Compiled kernels: plain loops over arrays, compiled by Numba.

The public functions of the package check their input before they call these; inside a kernel only the data
of a file is doubted. Every kernel releases the GIL, so that threads encode files side by side.
"""

from functools import partial

from numba import njit

kernel = partial(njit, cache=True, nogil=True)
