"""Traces with known answers, for the tests of the report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from trace_samples import run_info

from datacrumbs.trace.runfile import Counts, State, write_run_info
from datacrumbs.trace.schema import EVENT_DTYPE, arrow_schema
from datacrumbs.trace.writer import TraceWriter

FUNCTION_NAMES = {
    "read": ("syscalls", "syscall", "read"),
    "write": ("syscalls", "syscall", "write"),
    "pread64": ("syscalls", "syscall", "read"),
    "openat": ("syscalls", "syscall", "open"),
    "copy_file_range": ("syscalls", "syscall", "copy"),
    "renameat": ("syscalls", "syscall", "name"),
    "epoll_wait": ("syscalls", "syscall", "wait"),
    "futex": ("syscalls", "syscall", "other"),
    "fread": ("libc", "user", "read"),
    "solve": ("app", "user", "other"),
}
FUNC = {name: number for number, name in enumerate(FUNCTION_NAMES, 1)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One event. ``func`` is a name of `FUNCTION_NAMES`, or a number."""

    func: str | int
    ts: int
    dur: int
    ret: int = 0
    file: int = 0
    offset: int = -1
    pid: int = 100
    tid: int = 100
    flags: int = 0

    @property
    def end(self) -> int:
        return self.ts + self.dur


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """One row of ``intervals``; ``durations`` are those of its calls."""

    func: str
    ts: int
    durations: Sequence[int]
    dur: int = 1_000_000_000
    pid: int = 100
    errors: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One row of ``files``."""

    file: int
    path: str
    kind: str = "regular"
    fstype: str | None = "ext4"
    path_raw: bytes | None = None


def as_events(calls: Iterable[Call]) -> NDArray[Any]:
    """The calls as the daemon gets them: by their end."""
    ordered = sorted(calls, key=lambda call: call.end)
    events = np.zeros(len(ordered), EVENT_DTYPE)
    for at, call in enumerate(ordered):
        func = FUNC[call.func] if isinstance(call.func, str) else call.func
        row = (call.ts, call.dur, call.file, call.offset, -1, call.ret)
        events[at] = (*row, call.pid, call.tid, func, call.flags, -1)
    return events


def write_host(
    run: Path,
    calls: Iterable[Call],
    *,
    host: str = "n1",
    functions: Sequence[str] = tuple(FUNCTION_NAMES),
    files: Iterable[File] = (),
    processes: Iterable[tuple[int, int, str, str]] = ((0, 100, "start", "app"),),
    peers: Iterable[tuple[int, int, int]] = (),
    intervals: Sequence[Interval] = (),
    segment_events: int = 1000,
    state: State = State.COMPLETE,
    **changes: Any,
) -> TraceWriter:
    """Write one host's part of a trace below ``run``.

    ``processes`` are (ts, pid, what, comm), ``peers`` (ts, tid, file). A run that is not
    complete is flushed but left open.
    """
    directory = run / f"host={host}"
    directory.mkdir(parents=True)
    writer = TraceWriter(directory, segment_events=segment_events)
    write_tables(writer, functions, files, processes, peers)
    _write(writer, "intervals", [_interval_row(interval) for interval in intervals])
    events = as_events(calls)
    writer.write_events(events)
    if state is State.COMPLETE:
        writer.close()
        changes.setdefault("stopped_ns", 1_700_000_010_000_000_000)
    else:
        writer.flush()
    profiled = sum(len(interval.durations) for interval in intervals)
    changes.setdefault("counts", Counts(events=len(events), profiled=profiled))
    write_run_info(directory, run_info(state=state, **changes))
    return writer


def write_tables(
    writer: TraceWriter,
    functions: Sequence[str],
    files: Iterable[File],
    processes: Iterable[tuple[int, int, str, str]],
    peers: Iterable[tuple[int, int, int]],
) -> None:
    rows = [(FUNC[name], *_layer_name(name)) for name in functions]
    _write(writer, "functions", [(*row, None) for row in rows])
    _write(
        writer,
        "files",
        [(f.file, f.path, f.path_raw, f.kind, f.fstype, 1, f.file, 0, 0) for f in files],
    )
    rows_of = [(ts, pid, what, 1, comm, f"/bin/{comm}", 0) for ts, pid, what, comm in processes]
    _write(writer, "processes", rows_of)
    _write(writer, "peers", [(ts, tid, file, -1, -1) for ts, tid, file in peers])


def _interval_row(interval: Interval) -> tuple[Any, ...]:
    powers = [max(0, dur.bit_length() - 1) for dur in interval.durations]
    histogram = [powers.count(power) for power in range(max(powers) + 1)]
    who = (interval.ts, interval.dur, interval.pid, FUNC[interval.func])
    sums = (sum(interval.durations), max(interval.durations), interval.bytes, histogram)
    return (*who, len(powers), interval.errors, *sums)


def _layer_name(name: str) -> tuple[str, str, str, str]:
    layer, kind, op = FUNCTION_NAMES[name]
    return layer, name, kind, op


def _write(writer: TraceWriter, table: str, rows: list[tuple[Any, ...]]) -> None:
    if rows:
        columns = zip(*rows, strict=True)
        writer.write_rows(
            table, dict(zip(arrow_schema(table).names, map(list, columns), strict=True))
        )
