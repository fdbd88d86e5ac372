"""Events and run facts for the tests of traces."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datacrumbs.run import host_name
from datacrumbs.trace.clocks import take_pair
from datacrumbs.trace.reader import open_trace
from datacrumbs.trace.runfile import (
    Daemon,
    ProbeFileFacts,
    RingFacts,
    RunInfo,
    State,
    boot_id,
    start_ticks,
)
from datacrumbs.trace.schema import EVENT_DTYPE

FUNCTIONS: dict[str, list[Any]] = {
    "func": [1, 2, 3],
    "layer": ["posix", "posix", "app"],
    "name": ["read", "write", "solve"],
    "kind": ["syscall", "syscall", "user"],
    "op": ["read", "write", "other"],
    "binary": [None, None, "/opt/app/solve"],
}


def sample(count: int, *, first: int = 0) -> NDArray[Any]:
    """Events ``first`` to ``first + count``: ``offset`` numbers them, ``ts`` is out of order.

    By the end of the call, as the kernel hands them over; every field has odd values in it.
    """
    number = np.arange(first, first + count)
    events = np.zeros(count, EVENT_DTYPE)
    events["dur"] = 1 + number * 7919 % 9973
    events["ts"] = 10**15 + number * 1000 - events["dur"]
    events["file"] = (number % 5).astype(np.uint64) << np.uint64(61)
    events["offset"] = number
    events["size"] = np.where(number % 11, 4097, -1)
    events["ret"] = np.where(number % 13, 4097, -28)
    events["pid"], events["tid"] = 4711, 4711 + number % 7
    events["func"] = 1 + number % 3
    events["flags"] = number % 101 == 0
    events["fd"] = number % 23 - 1
    return events


def numbers(directory: Path) -> list[int]:
    """Which events of `sample` the trace of one host holds, in the order of the reader."""
    (host,) = open_trace(directory).hosts
    return [n for batch in host.events(["offset"]) for n in batch.column(0).to_pylist()]


def run_info(*, state: State = State.RUNNING, **changes: Any) -> RunInfo:
    """What this process would write if it were a daemon."""
    own = start_ticks(os.getpid())
    assert own is not None
    facts: dict[str, Any] = {
        "datacrumbs": "0.1.0",
        "run_id": "4711",
        "user": "alice",
        "uid": 1234,
        "host": host_name(),
        "kernel": "6.12.0",
        "machine": "x86_64",
        "boot_id": boot_id(),
        "cpus": 2,
        "probe_file": ProbeFileFacts(
            path="/home/alice/p.json.gz", sha256="ab" * 32, keyid="cd", created=1, expires=2
        ),
        "state": state,
        "started_ns": 1_700_000_000_000_000_000,
        "clocks": [take_pair()],
        "daemon": Daemon(pid=os.getpid(), start_ticks=own),
        "ring": RingFacts(count=1, bytes=1 << 20),
    }
    return RunInfo(**(facts | changes))


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """The kernel fails writes past ``size_bytes`` of a file, after taking what still fits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fork(work: Callable[[], None]) -> int:
    """Run ``work`` in a child of this process, which ends with it; returns its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(99)
    return pid
