"""Large traces with known answers: a piece of generated calls, written again and again."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from datacrumbs.config import SystemConfig
from datacrumbs.trace.writer import TraceWriter
from generate.calls import Call
from generate.causes import BETWEEN_NS, delayed, read_stack, write_stack
from generate.runs import BEGIN_NS, Host, events_of, function_numbers, write_run_file, write_tables

FILES = 1000
THREADS = 16


def piece(*, calls: int = 1_000) -> Host:
    """``calls`` I/O calls of each of 16 threads of 4 processes, 5 events a call on average.

    Most are pwrite64 in fwrite, and pread64, down to the file system; one in 50 waits for a
    commit, one in 20 misses the page cache.
    """
    rng = random.Random(1)
    threads = {}
    for t in range(THREADS):
        trees, at = [], BEGIN_NS + t * 50
        for _ in range(calls):
            trees.append(_call(rng, at))
            at = trees[-1].end + BETWEEN_NS
        threads[1000 + t // 4 * 4, 1000 + t] = trees
    files = {n: f"/scratch/project/rank-{n % 64:03d}/part-{n:07d}.dat" for n in range(1, FILES + 1)}
    return Host(name="bench", threads=threads, files=files)


def _call(rng: random.Random, at: int) -> Call:
    what = {"file": rng.randrange(1, FILES + 1), "offset": rng.randrange(1 << 18) << 12}
    if rng.random() < 0.4:
        tree = read_stack(at, **what)
        if rng.random() < 0.05:
            delayed(tree, 2, Call(func="page_cache_ra_unbounded", start=0, dur=80_000))
        return tree
    tree = write_stack(at + 500, **what)
    if rng.random() < 0.02:
        delayed(tree, 2, Call(func="jbd2_log_wait_commit", start=0, dur=400_000))
    return Call(func="fwrite", start=at, dur=tree.dur + 1_000, inner=[tree])


def write_bulk(directory: Path, host: Host, events: int) -> tuple[int, int]:
    """The calls of ``host`` one after the other until there are ``events`` events or more.

    Returns how many times, and how many events that are.
    """
    home = directory / f"host={host.name}"
    home.mkdir(parents=True)
    writer = TraceWriter(home, segment_events=SystemConfig().segment.events)
    numbers = function_numbers(host)
    write_tables(writer, host, numbers)
    once = events_of(host, numbers)
    span = int((once["ts"] + once["dur"]).max() - once["ts"].min()) + BETWEEN_NS
    times = -(-events // len(once))
    for _ in range(times):
        writer.write_events(once)
        once["ts"] += np.int64(span)
    writer.close()
    write_run_file(home, host, times * len(once))
    return times, times * len(once)
