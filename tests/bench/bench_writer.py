"""What the trace writer costs: CPU time and disk per event, and memory.

    python tests/bench/bench_writer.py [--events N] [--segment-events N] [--json]

Two threads of one process read and write four files in turn, mostly 4 KiB after 4 KiB, with
some fsyncs, short transfers and 64 KiB requests; how long a call takes and what passes until
the next is lognormal. Batches come as the drain hands them over, with a flush every second.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datacrumbs.config import Segment
from datacrumbs.trace.schema import EVENT_DTYPE
from datacrumbs.trace.writer import TraceWriter

BLOCK_EVENTS = 256 * 1024
BATCH_EVENTS = 20_011
FILES = 4


def mix(count: int) -> NDArray[Any]:
    """``count`` events of the two threads, by the end of the call."""
    halves = [_thread(count // 2, 1), _thread(count - count // 2, 2)]
    both = np.concatenate(halves)
    return both[np.argsort(both["ts"] + both["dur"], kind="stable")]


def _thread(count: int, number: int) -> NDArray[Any]:
    random = np.random.default_rng(number)
    events = np.zeros(count, EVENT_DTYPE)
    dur = 80 + random.lognormal(np.log(600), 0.5, count).astype(np.int64)
    pause = 20 + random.lognormal(np.log(150), 0.4, count).astype(np.int64)
    func = random.choice([1, 2, 3], count, p=[0.55, 0.4, 0.05])
    sync = func == 3
    size = np.where(random.random(count) < 0.9, 4096, 65536)
    file = (np.arange(count) // 1000 + number) % FILES
    events["ts"] = 10**15 + np.cumsum(dur + pause) - dur
    events["dur"] = dur
    events["file"] = np.uint64(0x9E3779B97F4A7C15) * (file + 1).astype(np.uint64)
    events["offset"] = np.where(sync, -1, np.cumsum(size) - size)
    events["size"] = np.where(sync, -1, size)
    short = random.random(count) < 0.01
    events["ret"] = np.where(sync, 0, np.where(short, size // 3, size))
    events["pid"], events["tid"] = 4000, 4000 + number
    events["func"], events["fd"] = func, 3 + file
    return events


def measure(events: int, segment_events: int) -> dict[str, float]:
    """Write at least ``events`` events; memory is the process's peak without the input."""
    block = _block()
    with tempfile.TemporaryDirectory() as directory:
        writer = TraceWriter(Path(directory), segment_events=segment_events)
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        used_s, written = _write(writer, block, events)
        start = time.process_time()
        writer.close()
        close_s = time.process_time() - start
        on_disk = sum(entry.stat().st_size for entry in Path(directory).iterdir())
    assert writer.events_lost == 0, writer.problem
    return {
        "events": written,
        "segment_events": segment_events,
        "ns_per_event": (used_s + close_s) / written * 1e9,
        "bytes_per_event": on_disk / written,
        "close_ms": close_s * 1e3,
        "peak_rss_mib": (_peak_bytes() - block.nbytes) / (1 << 20),
    }


def _block() -> NDArray[Any]:
    """Made in a child, so that what it takes to make it does not count."""
    with tempfile.NamedTemporaryFile() as file:
        pid = os.fork()
        if pid == 0:
            mix(BLOCK_EVENTS).tofile(file.name)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        return np.fromfile(file.name, EVENT_DTYPE)


def _write(writer: TraceWriter, block: NDArray[Any], events: int) -> tuple[float, int]:
    """CPU seconds and events; the block again and again, later and further into the files."""
    later = int(block["ts"][-1] - block["ts"][0])
    further = int(block["offset"].max())
    used_s, written = 0.0, 0
    flush_at = time.monotonic() + 1
    while written < events:
        for first in range(0, len(block), BATCH_EVENTS):
            batch = block[first : first + BATCH_EVENTS]
            start = time.process_time()
            writer.write_events(batch)
            if time.monotonic() > flush_at:
                writer.flush()
                flush_at += 1
            used_s += time.process_time() - start
            written += len(batch)
        block["ts"] += later
        block["offset"][block["offset"] >= 0] += further
    return used_s, written


def _peak_bytes() -> int:
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found
    return int(found[1]) * 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--segment-events", type=int, default=Segment().events)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options.events, options.segment_events)
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:16} {value:14,.1f}")


if __name__ == "__main__":
    main()
