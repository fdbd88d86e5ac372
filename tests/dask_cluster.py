"""A Dask cluster of real processes on this machine, for the tests of ``--scheduler``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DASK = Path(sys.executable).parent / "dask"
PATIENCE_S = 60.0


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """What ``condition`` gives when it gives something true."""
    end = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.05)
    return found


@dataclass(slots=True)
class DaskProcesses:
    """A scheduler and its workers. Logs and the scheduler's file are in ``home``."""

    home: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return self.home / "scheduler.json"

    @property
    def address(self) -> str:
        return str(json.loads(self.file.read_text())["address"])

    @property
    def workers(self) -> list[subprocess.Popen[bytes]]:
        return self.processes[1:]

    def start_scheduler(self, **more: str) -> None:
        self._start(
            *(DASK, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"),
            *("--scheduler-file", self.file),
            **more,
        )
        wait_until(self._is_there, "the scheduler is there")

    def start_worker(self, *before: str | Path, options: tuple[str, ...] = (), **more: str) -> None:
        """``before``: a command that runs the worker."""
        self._start(
            *(*before, DASK, "worker", "--scheduler-file", self.file, "--no-nanny"),
            *("--nthreads", "1", "--no-dashboard", "--local-directory", self.home),
            *options,
            **more,
        )

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()

    def _is_there(self) -> bool:
        return self.file.exists() and self.file.read_text().rstrip().endswith("}")

    def _start(self, *command: str | Path, **more: str) -> None:
        # so that workers find what tests let them do (`works`)
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)} | more
        mortal = ("setpriv", "--pdeathsig", "KILL", *command)  # when the tests are killed
        with open(self.home / "log", "ab") as log:
            self.processes.append(
                subprocess.Popen(
                    mortal, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
                )
            )


@contextmanager
def dask_processes(home: Path, *, workers: int = 0, **more: str) -> Iterator[DaskProcesses]:
    """A scheduler, with ``more`` in its environment, and ``workers``; they end with the block."""
    home.mkdir(parents=True, exist_ok=True)
    cluster = DaskProcesses(home)
    cluster.file.unlink(missing_ok=True)
    try:
        cluster.start_scheduler(**more)
        for _ in range(workers):
            cluster.start_worker()
        yield cluster
    finally:
        cluster.stop()
