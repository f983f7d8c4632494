import os
import signal
import subprocess
import sys

from midigen_jax.run.signals import stop_signals

# A window that is resized, a timer or a profiler may be handled by the program too.
OTHER_SIGNALS = """
import os, signal, time
from midigen_jax.run.signals import stop_signals
signal.signal(signal.SIGUSR1, lambda *_: None)
with stop_signals() as received:
    for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
        os.kill(os.getpid(), number)
        time.sleep(0.1)
    assert received == [signal.SIGTERM], received
print("finished")
"""


def test_other_signals_do_not_count():
    done = subprocess.run([sys.executable, "-c", OTHER_SIGNALS], capture_output=True, text=True, check=True)
    assert done.stdout == "finished\n"
    assert done.stderr.count("finishing and saving") == 1


def test_handlers_are_restored():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stop_signals() as received:
        os.kill(os.getpid(), signal.SIGINT)
        assert received == [signal.SIGINT]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
