"""How long `datacrumbs_report` takes, and how much memory, for traces of many events.

The traces are written by the real writer: two layers (a user function around each second
system call), 16 threads of 4 processes or as many ranks as asked for, events handed over in the
order their calls return. Each call is on any file, at any place in it: the worst there is for what
is kept by file, process and place.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from measured import main, measure_ours

from datacrumbs.config import SystemConfig
from datacrumbs.trace.clocks import take_pair
from datacrumbs.trace.runfile import (
    Counts,
    Daemon,
    ProbeFileFacts,
    RingFacts,
    RunInfo,
    State,
    boot_id,
    write_run_info,
)
from datacrumbs.trace.schema import EVENT_DTYPE
from datacrumbs.trace.writer import TraceWriter

SIZES = (5_000_000, 50_000_000)
LIMIT_S = 60
LIMIT_BYTES = 2 << 30
AT_ONCE = 200_000
RANKS = 4
THREADS_OF_A_PROCESS = 4
CALLS = ("read", "write", "pread64", "pwrite64", "openat", "close", "lseek", "fstat")
OPS = ("read", "write", "read", "write", "open", "close", "seek", "stat")


def batches(events: int, files: int, threads: int) -> Iterator[Any]:
    """``events`` events, a batch at a time, by the end of their calls."""
    rng = np.random.default_rng(1)
    start = 1_000_000_000
    for first in range(0, events, AT_ONCE):
        count = min(AT_ONCE, events - first)
        batch = _batch(rng, count, files, threads, start)
        start = int((batch["ts"] + batch["dur"]).max())
        yield batch[np.argsort(batch["ts"] + batch["dur"], kind="stable")]


def _batch(rng: np.random.Generator, count: int, files: int, threads: int, start: int) -> Any:
    """Each third event is a user function, the next is the system call in it."""
    batch = np.zeros(count, EVENT_DTYPE)
    at = np.arange(count)
    user, inside = at % 3 == 0, at % 3 == 1
    call = rng.integers(1, len(CALLS) + 1, count)
    batch["tid"] = 1000 + at // 3 % threads
    batch["pid"] = batch["tid"] // THREADS_OF_A_PROCESS * THREADS_OF_A_PROCESS
    turn = at // (3 * threads) * 30_000
    batch["ts"] = start + turn + at % 3 * 9_000 + at // 3 % threads * 50
    batch["dur"] = rng.integers(300, 8_000, count)
    batch["dur"][user] = 17_500
    batch["func"] = np.where(user, len(CALLS) + 1, call)
    batch["file"] = np.where(user, 0, 1 + rng.integers(0, files, count))
    moves = ~user & (call <= 4)
    batch["ret"] = np.where(moves, 1 << rng.integers(9, 21, count), 0)
    batch["size"], batch["fd"] = batch["ret"], 5
    batch["offset"] = np.where(moves, rng.integers(0, 1 << 20, count) << 12, -1)
    batch["ts"][inside] += 20
    return batch


def write_trace(directory: Path, events: int, files: int, ranks: int = RANKS) -> int:
    """A complete trace of one host below ``directory``; returns the size of its files.

    ``ranks`` processes of 4 threads each.
    """
    host = directory / "host=bench"
    host.mkdir(parents=True)
    writer = TraceWriter(host, segment_events=SystemConfig().segment.events)
    writer.write_rows("functions", _functions())
    writer.write_rows("files", _files(files))
    writer.write_rows("processes", _processes(ranks))
    for batch in batches(events, files, ranks * THREADS_OF_A_PROCESS):
        writer.write_events(batch)
    writer.close()
    write_run_info(host, _run_info(events, writer.bytes_written))
    return writer.bytes_written


def _functions() -> dict[str, list[Any]]:
    count = len(CALLS)
    return {
        "func": list(range(1, count + 2)),
        "layer": [*["syscalls"] * count, "app"],
        "name": [*CALLS, "save_state"],
        "kind": [*["syscall"] * count, "user"],
        "op": [*OPS, "other"],
        "binary": [*[None] * count, "/opt/app"],
    }


def _files(count: int) -> dict[str, list[Any]]:
    numbers = list(range(1, count + 1))
    return {
        "file": numbers,
        "path": [f"/scratch/project/run-17/rank-{n % 64:03d}/part-{n:07d}.dat" for n in numbers],
        "path_raw": [None] * count,
        "kind": ["regular"] * count,
        "fstype": ["ext4"] * count,
        "dev": [1] * count,
        "ino": numbers,
        "generation": [0] * count,
        "ts": [0] * count,
    }


def _processes(ranks: int) -> dict[str, list[Any]]:
    pids = [1000 + THREADS_OF_A_PROCESS * n for n in range(ranks)]
    return {
        "ts": [0] * len(pids),
        "pid": pids,
        "what": ["start"] * len(pids),
        "ppid": [1] * len(pids),
        "comm": ["app"] * len(pids),
        "exe": ["/opt/app"] * len(pids),
        "exit_code": [0] * len(pids),
    }


def _run_info(events: int, size_bytes: int) -> RunInfo:
    pair = take_pair()
    return RunInfo(
        datacrumbs="0",
        run_id="bench",
        user="bench",
        uid=1000,
        host="bench",
        kernel="",
        machine="",
        boot_id=boot_id(),
        cpus=os.cpu_count() or 1,
        probe_file=ProbeFileFacts(path="", sha256="", keyid="", created=0, expires=0),
        state=State.COMPLETE,
        started_ns=pair.real_ns,
        stopped_ns=pair.real_ns + events * 700,
        clocks=[pair],
        counts=Counts(events=events, bytes_written=size_bytes),
        daemon=Daemon(pid=1, start_ticks=1),
        ring=RingFacts(count=1, bytes=1),
    )


def run(sizes: tuple[int, ...], files: int) -> list[dict[str, Any]]:
    """One row of numbers for each size."""
    rows = []
    for events in sizes:
        with tempfile.TemporaryDirectory(prefix="datacrumbs-bench-") as directory:
            begin = time.perf_counter()
            size_bytes = write_trace(Path(directory), events, files)
            write_s = time.perf_counter() - begin
            report = measure_ours("report", directory)
        rows.append(
            {
                "events": events,
                "files": files,
                "trace_bytes": size_bytes,
                "write_s": write_s,
                "report_s": report.s,
                "report_ns_per_event": report.s / events * 1e9,
                "peak_bytes": report.peak_bytes,
                "limit_s": LIMIT_S,
                "limit_bytes": LIMIT_BYTES,
            }
        )
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    print(f"{'datacrumbs_report':<20}{'files':>10}{'trace':>10}{'time':>10}{'peak':>10}")
    for row in rows:
        print(
            f"{row['events'] / 1e6:>8.1f} M events {row['files']:>12}"
            f"{row['trace_bytes'] / 1e6:>7.0f} MB{row['report_s']:>8.1f} s"
            f"{row['peak_bytes'] / 2**20:>6.0f} MiB"
        )
    print(f"to reach: {SIZES[-1] / 1e6:.0f} M events in {LIMIT_S} s and {LIMIT_BYTES >> 20} MiB")


if __name__ == "__main__":
    main(__doc__, SIZES, run, print_table, files=1000)
