"""What every command shares: how it takes arguments and how it reports bad input."""

import argparse
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator


class InputError(ValueError):
    """Something the user gave is wrong; the message names it and the mend in one line."""


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults where there are any, and the description as it was written."""

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
    except BrokenPipeError:  # who reads the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # such as a folder that can't be written, which the operating system names
        sys.exit(_fail(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, so that what is at hand is saved; the second one ends the process at once.

    Python calls a signal's handler when the main thread is back from what it calls, and compiling may take it a minute.
    So a thread, which waits for the bytes that signals leave in a socket, answers.
    """
    received: list[int] = []
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def answer() -> None:
        with reader:
            if reader.recv(1):
                os.write(2, b"\nfinishing and saving; the next Ctrl-C leaves at once\n")
            if number := reader.recv(1):
                os._exit(128 + number[0])  # waits for no thread; what is half-written is removed at the next start

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    before = {
        number: signal.signal(number, lambda number, _: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    before_fd = signal.set_wakeup_fd(writer.fileno())
    try:
        yield received
    finally:
        signal.set_wakeup_fd(before_fd)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()
        thread.join()


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2
