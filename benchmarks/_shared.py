"""Where all benchmarks keep their figures."""

import json
from pathlib import Path
from typing import Any

from midigen_jax import files
from midigen_jax.cli import InputError

RESULTS = Path(__file__).parent / "results"


def save(name: str, result: dict[str, Any], *, otherwise: bool = False) -> None:
    """Whole or not at all.

    Args:
        otherwise: it was measured in another way than the scripts do by themselves, so it does not replace what they
            found.
    """
    if otherwise:
        print(f"not kept in {RESULTS}, since it was measured with other settings than usual")
        return
    files.write_text(RESULTS / f"{name}.json", json.dumps(result, indent=1, allow_nan=False) + "\n")


def resident_megabytes() -> float:
    """Peak of this process; what `getrusage` gives begins with that of the process which started it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise InputError("the peak memory of a process is read from /proc, which Linux has")
