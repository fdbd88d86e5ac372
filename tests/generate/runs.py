"""Write generated calls as the trace of one host or of many, by the real writer.

A trace is what the daemon would have left: events by the end of the calls, on the host's own
monotonic clock, ``func`` numbers of the host's own, clock pairs in ``run.json``.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from trace_samples import run_info

from datacrumbs.trace.clocks import ClockPair
from datacrumbs.trace.runfile import Counts, LostBy, State, write_run_info
from datacrumbs.trace.schema import EVENT_DTYPE, arrow_schema
from datacrumbs.trace.writer import TraceWriter
from generate.calls import KIND_OF, LAYER_OF, OP_OF, Call, random_thread

Thread = tuple[int, int]
"""Process and thread."""

BEGIN_NS = 1_700_000_000_000_000_000
"""The common clock's time at which runs start: CLOCK_REALTIME."""


@dataclass(slots=True, kw_only=True)
class Host:
    """One host's part of a run.

    ``threads`` are the trees of each (pid, tid); ``later`` events that the kernel did for a
    thread (ASYNC). The host's monotonic clock shows ``real - clock_offset_ns``, and gains
    ``clock_drift`` of a nanosecond each nanosecond against the common one.
    """

    name: str
    threads: dict[Thread, list[Call]]
    later: dict[Thread, list[Call]] = field(default_factory=dict)
    files: dict[int, str] = field(default_factory=dict)  # path by number
    comm: str = "app"
    clock_offset_ns: int = BEGIN_NS - 5_000_000_000
    clock_drift: float = 0.0
    lost: int = 0
    state: State = State.COMPLETE
    run_file: bool = True
    facts: dict[str, Any] = field(default_factory=dict)  # more of run.json

    def calls(self) -> list[Call]:
        """The outermost calls of all threads."""
        return [call for trees in self.threads.values() for call in trees]

    def mono_ns(self, real_ns: int) -> int:
        """What the host's monotonic clock shows at ``real_ns`` of the common clock."""
        mono = real_ns - self.clock_offset_ns
        return mono + round((real_ns - BEGIN_NS) * self.clock_drift) if self.clock_drift else mono


def write_run(directory: Path, hosts: Iterable[Host], *, segment_events: int = 1000) -> Path:
    """Write the trace of a run below ``directory``; returns it."""
    for host in hosts:
        write_host(directory, host, segment_events=segment_events)
    return directory


def write_host(directory: Path, host: Host, *, segment_events: int = 1000) -> None:
    """Write one host's part of a run."""
    home = directory / f"host={host.name}"
    home.mkdir(parents=True)
    numbers = function_numbers(host)
    events = events_of(host, numbers)
    writer = TraceWriter(home, segment_events=segment_events)
    write_tables(writer, host, numbers)
    writer.write_events(events)
    if host.state is State.COMPLETE:
        writer.close()
    else:
        writer.flush()
    if host.run_file:
        write_run_file(home, host, len(events))


def function_numbers(host: Host) -> dict[str, int]:
    """Numbers of the functions on this host, in an order of its own."""
    names = sorted(LAYER_OF)
    random.Random(host.name).shuffle(names)
    return {name: number for number, name in enumerate(names, 1)}


def events_of(host: Host, numbers: dict[str, int]) -> NDArray[Any]:
    """The host's events in the order in which the calls returned; inner ones first."""
    rows: list[tuple[Any, ...]] = []
    for (pid, tid), trees in host.threads.items():
        for tree in trees:
            found = [(call, pid, tid, call.flags) for _, call in tree.walk()]
            rows += reversed(found)
    for (pid, tid), calls in host.later.items():
        rows += [(call, pid, tid, call.flags | 4) for call in calls]
    rows.sort(key=lambda row: row[0].end)
    events = np.zeros(len(rows), EVENT_DTYPE)
    for at, (call, pid, tid, flags) in enumerate(rows):
        start, end = host.mono_ns(call.start), host.mono_ns(call.end)
        what = (start, end - start, call.file, call.offset, call.size, call.ret)
        events[at] = (*what, pid, tid, numbers[call.func], flags, 3 if call.file else -1)
    return events


def write_tables(writer: TraceWriter, host: Host, numbers: dict[str, int]) -> None:
    write_rows(
        writer,
        "functions",
        [(number, LAYER_OF[n], n, KIND_OF[n], OP_OF[n], None) for n, number in numbers.items()],
    )
    write_rows(
        writer,
        "files",
        [(n, path, None, "regular", "ext4", 1, n, 0, 0) for n, path in host.files.items()],
    )
    write_rows(
        writer,
        "processes",
        [(0, pid, "start", 1, host.comm, f"/bin/{host.comm}", 0) for pid in pids(host)],
    )


def pids(host: Host) -> list[int]:
    """The host's processes, by number."""
    return sorted({pid for pid, _ in (*host.threads, *host.later)})


def write_rows(writer: TraceWriter, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Append rows, given as tuples in the schema's order."""
    if rows:
        columns = map(list, zip(*rows, strict=True))
        writer.write_rows(table, dict(zip(arrow_schema(table).names, columns, strict=True)))


def write_run_file(home: Path, host: Host, events: int) -> None:
    """``run.json`` of the host's part in ``home``, which holds ``events`` events."""
    last = max((call.end for call in host.calls()), default=BEGIN_NS)
    times = [BEGIN_NS, *range(BEGIN_NS + 60_000_000_000, last, 60_000_000_000), last + 1]
    facts: dict[str, Any] = {
        "host": host.name,
        "started_ns": BEGIN_NS,
        "stopped_ns": last if host.state is State.COMPLETE else None,
        "clocks": [ClockPair(host.mono_ns(real), real) for real in times],
        "counts": Counts(events=events, lost=host.lost),
        "lost_by": LostBy(ring=host.lost),
    }
    write_run_info(home, run_info(state=host.state, **(facts | host.facts)))


def random_hosts(seed: int, *, hosts: int = 1, threads: int = 3, calls: int = 20) -> list[Host]:
    """Hosts with random trees, two threads to a process, clocks that differ by hours."""
    rng = random.Random(seed)
    return [
        Host(
            name=f"n{number}",
            threads={
                (100 + 10 * (t // 2), 100 + 10 * (t // 2) + t % 2): random_thread(
                    rng, calls, BEGIN_NS + rng.randrange(1_000_000)
                )
                for t in range(threads)
            },
            files={n: f"/data/{number}/file-{n}" for n in range(1, 6)},
            clock_offset_ns=BEGIN_NS - rng.randrange(1, 50_000) * 1_000_000_000,
        )
        for number in range(1, hosts + 1)
    ]
