"""A command's time, processor time and memory; and what benchmarks of traces are programs by."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Measured:
    """``cpu_s`` has the processes it waited for; ``peak_bytes`` is of the largest process.

    ``load`` is the machine's load average at its end: with other work going on, trust ``cpu_s``.
    ``output`` is what it wrote to its standard output.
    """

    s: float
    cpu_s: float
    peak_bytes: int
    load: float
    output: bytes

    def numbers(self) -> dict[str, float]:
        """All but the output."""
        return {n: getattr(self, n) for n in ("s", "cpu_s", "peak_bytes", "load")}


def measure_ours(command: str, *arguments: str | Path) -> Measured:
    """`datacrumbs_<command>`, as it is installed in the environment this runs in."""
    return measure([Path(sys.executable).with_name(f"datacrumbs_{command}"), *arguments])


def measure(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float = 24 * 3600,
    quiet: bool = False,
) -> Measured:
    """Run ``command`` to its end. Raises SystemExit if it fails, TimeoutError after ``timeout_s``,
    when it has been ended with all of its processes.

    ``quiet``: its standard error is part of the output, and seen only if it fails.
    """
    with tempfile.TemporaryFile() as output:
        begin = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT if quiet else None,
            env=environment,
            cwd=cwd,
            start_new_session=True,
        )
        with _ended_after(timeout_s, process.pid) as late:
            _, status, usage = os.wait4(process.pid, 0)
        took_s = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        if late.is_set():
            raise TimeoutError(f"{Path(command[0]).name}: not done after {timeout_s:.0f} s")
        output.seek(0)
        said = output.read()
        if process.returncode:
            end = said[-2000:].decode(errors="replace") if quiet else ""
            raise SystemExit(f"{Path(command[0]).name} failed: {process.returncode}\n{end}".strip())
        return Measured(
            s=took_s,
            cpu_s=usage.ru_utime + usage.ru_stime,
            peak_bytes=usage.ru_maxrss * 1024,
            load=os.getloadavg()[0],
            output=said,
        )


@contextmanager
def _ended_after(timeout_s: float, group: int) -> Iterator[threading.Event]:
    """Ends all processes of ``group`` after a time; the event says that it had to."""
    late = threading.Event()

    def end() -> None:
        late.set()
        os.killpg(group, signal.SIGKILL)

    timer = threading.Timer(timeout_s, end)
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def main(
    description: str | None,
    sizes: tuple[int, ...],
    run: Callable[..., list[dict[str, Any]]],
    print_table: Callable[[list[dict[str, Any]]], None],
    **options: int,
) -> None:
    """The program of a benchmark: ``run(sizes)`` makes rows of numbers, printed as JSON or a table.

    ``options`` are further arguments of ``run``, and what each is if it is not given.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true")
    default = " and ".join(f"{size / 1e6:.0f} M" for size in sizes)
    parser.add_argument("--events", type=int, action="append", help=f"default: {default}")
    for name, value in options.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=value, help=f"default: {value}"
        )
    given = parser.parse_args()
    rows = run(tuple(given.events or sizes), **{name: getattr(given, name) for name in options})
    if given.json:
        json.dump(rows, sys.stdout, indent=1)
    else:
        print_table(rows)
