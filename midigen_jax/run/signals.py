"""Ctrl-C and SIGTERM as requests to stop at the next good moment."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator

STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, so that the work at hand can be finished and saved; a second one ends the process.

    Python calls a signal handler when the main thread returns from native code, and compiling may take a minute. So a
    thread answers, which waits for the numbers that Python writes to a socket for every signal it handles.
    """
    received: list[int] = []
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def answer() -> None:
        count = 0
        with reader:
            while number := reader.recv(1):  # empty once the writer is closed
                if number[0] not in STOPPING:  # some other signal that the program handles
                    continue
                count += 1
                if count == 1:
                    os.write(2, b"\nfinishing and saving; press Ctrl-C again to quit at once\n")
                else:
                    os._exit(128 + number[0])  # waits for no thread; half-written files are removed at the next start

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in STOPPING}
    before_fd = signal.set_wakeup_fd(writer.fileno())
    try:
        yield received
    finally:
        signal.set_wakeup_fd(before_fd)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()
        thread.join()
