"""Several hosts that train together: the same program on each, with a share of the lanes."""

import hashlib
import os
import sys
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from ..errors import InputError

Result = TypeVar("Result")


def join(address: str) -> None:
    """Makes this process one of several that train together; must come before any computation.

    Args:
        address: "HOST:PORT,PROCESSES,INDEX": the main process's address, the number of processes, and this one's
            index; empty where JAX can ask the cluster (TPU pods, Slurm, Kubernetes, Open MPI).

    Raises:
        InputError: this is no such address, or JAX knows no such cluster.
    """
    try:
        if address:
            main, processes, index = address.split(",")
            if ":" not in main:
                raise ValueError("there is no port")
            jax.distributed.initialize(main, int(processes), int(index))
        else:
            jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        if not address:
            raise InputError("--distributed: JAX found no cluster; give HOST:PORT,PROCESSES,INDEX") from None
        raise InputError(f"--distributed {address}: give HOST:PORT,PROCESSES,INDEX ({error})") from None
    # On CPUs the hosts connect at their first collective, for which they wait no longer than 30 seconds; after that
    # they wait as long as the main process encodes.
    any_host([False])
    if not is_main_process():
        # The main process speaks for all.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (open as long as the process)


def is_main_process() -> bool:
    return jax.process_index() == 0


def any_host(here: list[bool]) -> list[bool]:
    """Which of these are true on any host; all hosts have to call it."""
    if jax.process_count() == 1:
        return here
    return multihost_utils.process_allgather(np.array(here)).reshape(-1, len(here)).any(0).tolist()


def main_process_first(make: Callable[[], Result]) -> Result:
    """Calls `make` on the main process, then on the others, which find the files that it wrote.

    Raises:
        InputError: on the others, where it failed on the main process.
    """
    if jax.process_count() == 1:
        return make()
    if is_main_process():
        failed = True
        try:
            result = make()
            failed = False
        finally:
            any_host([failed])
        return result
    if any_host([False])[0]:
        raise InputError("the main process could not begin; its message tells why")
    return make()


def check_same_on_all_hosts(text: str) -> None:
    """Raises InputError on all hosts if this text is not the same on all."""
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=4).digest(), np.uint32)
    if len(np.unique(multihost_utils.process_allgather(digest))) > 1:
        raise InputError("the hosts differ in settings or music; give all the same command, except for the INDEX")
