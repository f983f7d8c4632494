"""What all commands share: how they parse arguments and how they report bad input. Light: imports no JAX."""

import argparse
import os
import sys
from collections.abc import Callable

from ..errors import InputError


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults where there are any, and the description as written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, []) else super()._get_help_string(action)


def parser(description: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=description, formatter_class=_Formatter)


def run(main: Callable[[], None]) -> None:
    """Runs a command's main function; bad input ends it with one line and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # file names need not be UTF-8
    try:
        main()
    except InputError as error:
        sys.exit(_fail(str(error)))
    except BrokenPipeError:  # the reader of the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # such as a folder that can't be written; the operating system names it
        sys.exit(_fail(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def option(name: str) -> str:
    """An argument's name as it is written in a command."""
    return f"--{name.replace('_', '-')}"


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2
