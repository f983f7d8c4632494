"""What all benchmarks share: options, the files of their results, and processes of their own."""

import argparse
import importlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from midigen_jax import files
from midigen_jax.cli import command
from midigen_jax.errors import InputError

RESULTS = Path(__file__).parent / "results"


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark."""
    parser = command.parser(description)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="folder for the JSON file")
    return parser


def save(results: Path, name: str, result: dict[str, Any], *, usual: bool = True) -> None:
    """Writes a result to `name`.json.

    Args:
        usual: it was measured with the benchmark's own settings. Otherwise it is written only to another folder than
            the repository's.
    """
    if not usual and results == RESULTS:
        print("not saved, since the settings are not the benchmark's own; give another folder with --results")
        return
    files.write_text(results / f"{name}.json", json.dumps(result, indent=1, allow_nan=False) + "\n")


def has_defaults(parser: argparse.ArgumentParser, args: argparse.Namespace, *names: str) -> bool:
    """Whether these arguments have their default values."""
    return all(getattr(args, name) == parser.get_default(name) for name in names)


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function of a benchmark in a process of its own; arguments and result are JSON."""
    module = Path(inspect.getfile(function)).stem
    code = f"import json, sys, {module}; print(json.dumps({module}.{function.__name__}(*json.load(sys.stdin))))"
    # No empty entry, which would be the working folder: a library that looks for a package `kernels` would find ours.
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],  # -P: the working folder is not on the path
        input=json.dumps(arguments),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    return json.loads(done.stdout.splitlines()[-1])


def resident_megabytes() -> float:
    """Peak memory of this process; unlike that of `getrusage` it does not begin with that of the parent process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise InputError("the peak memory of a process is read from /proc; run this benchmark on Linux")


def need(module: str, command: str) -> ModuleType:
    """A module of an optional package.

    Args:
        command: installs it.

    Raises:
        InputError: it is not installed.
    """
    # transformers would take the repository's folder `kernels` for a package of that name.
    cast(Any, sys.modules).setdefault("kernels", None)
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{error}; install it: {command}") from error
