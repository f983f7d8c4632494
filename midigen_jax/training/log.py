"""The log of a run: run.json, metrics.jsonl and TensorBoard event files."""

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from .. import config as cfg
from .. import files
from ..run import hosts
from ..run.environment import environment

PACKAGES = (
    *("midigen_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "numba"),
    *("faiss-cpu", "faiss-gpu"),
)


class Log:
    """Written by the main process."""

    def __init__(self, run: Path, step: int, config: cfg.Config):
        """Removes the lines of steps after the checkpoint, since they will be repeated."""
        self.silent = not hosts.is_main_process()
        if self.silent:
            return
        path, kept = run / "metrics.jsonl", []
        if path.exists():
            for line in path.read_text().splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # a line cut short by a crash
                    if json.loads(line)["step"] <= step:
                        kept.append(line + "\n")
            files.write_text(path, "".join(kept))
        self._record_start(run / "run.json", step, config)
        self.file = open(path, "a")  # noqa: SIM115  (open as long as the run)
        # Not through SummaryWriter: the thread in which it writes ends on a full disk, and then the run hangs.
        (run / "tensorboard").mkdir(exist_ok=True)
        self.board = EventsWriter(str(run / "tensorboard" / "events"))
        self._add(step + 1, session_log=SessionLog(status=SessionLog.START))  # TensorBoard drops what came after

    def _record_start(self, path: Path, step: int, config: cfg.Config) -> None:
        """The resolved config, and for each start the command, the versions and the commit."""
        starts = json.loads(path.read_text())["starts"] if path.exists() else []
        device = f"{jax.device_count()} {jax.devices()[0].device_kind}"
        starts.append({"step": step, "command": sys.argv, "device": device, **environment(PACKAGES)})
        files.write_text(path, json.dumps({"config": cfg.flatten(config), "starts": starts}, indent=1) + "\n")

    def write(self, step: int, values: dict[str, float]) -> None:
        if self.silent:
            return
        with contextlib.suppress(OSError):  # a full disk, which saves report; the lines wait in the buffer
            self.file.write(json.dumps({"step": step, **values}) + "\n")
            self.file.flush()
        for name, value in values.items():
            self._add(step, summary=summary.scalar(name, value))

    def _add(self, step: int, **what: Any) -> None:
        with contextlib.suppress(OSError):
            self.board.write_event(Event(wall_time=time.time(), step=step, **what))
            self.board.flush()

    def picture(self, step: int, name: str, path: Path) -> None:
        """A PNG file, shown by TensorBoard as well."""
        from matplotlib.image import imread

        if not self.silent:
            self._add(step, summary=summary.image(name, imread(path)[..., :3], dataformats="HWC"))

    def close(self) -> None:
        for file in () if self.silent else (self.file, self.board):
            with contextlib.suppress(OSError):
                file.close()
