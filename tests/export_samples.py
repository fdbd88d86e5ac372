"""A run of two hosts for the tests of exports, and its events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from trace_samples import FUNCTIONS, run_info, sample

from datacrumbs.trace.clocks import ClockPair
from datacrumbs.trace.runfile import State, write_run_info
from datacrumbs.trace.writer import TraceWriter

COUNT = 5003
START = 1_700_000_000_000_000_000
ODD = '/data/a "b"\\c\n.bin'
PATHS = [ODD, "/scratch/x", "/scratch/y", "/scratch/\u00fc"]
FILES = [1 << 61, 2 << 61, 3 << 61, 4 << 61]


def write_run(
    run: Path,
    hosts: tuple[str, ...] = ("n1", "n2"),
    count: int = COUNT,
    segment_events: int = 1024,
    names: tuple[list[str], ...] = (),
) -> Path:
    """A run whose hosts' clocks differ by a minute; ``names``: of each host's functions."""
    for number, name in enumerate(hosts):
        directory = run / f"host={name}"
        directory.mkdir(parents=True)
        writer = TraceWriter(directory, segment_events=segment_events)
        writer.write_rows("functions", FUNCTIONS | ({"name": names[number]} if names else {}))
        writer.write_rows(
            "files",
            {
                **{"file": FILES, "path": PATHS, "path_raw": [None] * 4, "kind": ["regular"] * 4},
                **{"fstype": ["ext4"] * 4, "dev": [1] * 4, "ino": [1, 2, 3, 4]},
                **{"generation": [0] * 4, "ts": [0] * 4},
            },
        )
        writer.write_rows(
            "processes",
            {
                **{"ts": [10**15], "pid": [4711], "what": ["start"], "ppid": [1]},
                **{"comm": ["solve"], "exe": ["/opt/app/solve"], "exit_code": [0]},
            },
        )
        writer.write_events(sample(count, first=number))
        writer.close()
        clocks = [ClockPair(10**15 + number * 60 * 10**9, START + number * 60 * 10**9)]
        info = run_info(state=State.COMPLETE, host=name, clocks=clocks, started_ns=START)
        write_run_info(directory, info)
    return run


def both_hosts() -> Any:
    """The events of `write_run`'s two hosts."""
    return np.concatenate([sample(COUNT, first=number) for number in range(2)])
