"""Several hosts that train together: the same program on each, with a share of the lanes."""

import hashlib
import os
import sys
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from .cli import InputError

Result = TypeVar("Result")


def join(address: str) -> None:
    """Makes this process one of many that train together; must come before anything is computed.

    Args:
        address: "HOST:PORT,PROCESSES,INDEX" of the first process, of all and of this one; empty where JAX can ask the
            cluster (TPU pods, Slurm, Kubernetes, Open MPI).

    Raises:
        InputError: this is no such address, or JAX knows no such cluster.
    """
    try:
        if address:
            first, processes, index = address.split(",")
            if ":" not in first:
                raise ValueError("there is no port")
            jax.distributed.initialize(first, int(processes), int(index))
        else:
            jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        if not address:
            raise InputError("--distributed: JAX found no cluster; give HOST:PORT,PROCESSES,INDEX") from None
        raise InputError(f"--distributed {address}: give HOST:PORT,PROCESSES,INDEX ({error})") from None
    # On CPUs the hosts connect with the first that they do together, and wait for that no longer than 30 seconds; once
    # connected they wait as long as the first host encodes.
    on_any([False])
    if not is_first():
        # The first host speaks for all.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (open as long as the process)


def is_first() -> bool:
    return jax.process_index() == 0


def on_any(here: list[bool]) -> list[bool]:
    """Which of these are so on any of the hosts; all have to ask."""
    if jax.process_count() == 1:
        return here
    return multihost_utils.process_allgather(np.array(here)).reshape(-1, len(here)).any(0).tolist()


def first_then_all(make: Callable[[], Result]) -> Result:
    """Has the first host do it, and then the others, which find its files.

    Raises:
        InputError: on the others, where it failed on the first.
    """
    if jax.process_count() == 1:
        return make()
    if is_first():
        failed = True
        try:
            result = make()
            failed = False
        finally:
            on_any([failed])
        return result
    if on_any([False])[0]:
        raise InputError("the first host could not begin; what it says tells why")
    return make()


def check_alike(what: str) -> None:
    """Raises InputError on all hosts if this text is not the same on all."""
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.blake2b(what.encode(), digest_size=4).digest(), np.uint32)
    if len(np.unique(multihost_utils.process_allgather(digest))) > 1:
        raise InputError("the hosts have other settings or other music; give all the same command, but for the INDEX")
