"""How fast `datacrumbs_export` writes each format, and with how much memory.

python tests/bench/bench_export.py [--events N] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from bench_report import write_trace

NAMES = ("out.pfw.gz", "out.json.gz", "out.csv.gz", "out.pftrace")
TO_REACH = 1_000_000
SLOW_EVENTS = 500_000  # of the format that makes an object for each event


def measure(trace: Path, out: Path, events: int) -> dict[str, float]:
    """One export: events a second, bytes an event on disk, peak memory."""
    command = [Path(sys.executable).with_name("datacrumbs_export"), "--quiet", trace, "-o", out]
    begin = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{out.name}: exit code {process.returncode}")
    seconds = time.perf_counter() - begin
    return {
        "events": events,
        "events_per_s": events / seconds,
        "events_per_cpu_s": events / (usage.ru_utime + usage.ru_stime),
        "bytes_per_event": out.stat().st_size / events,
        "peak_bytes": usage.ru_maxrss * 1024,
    }


def main() -> None:
    """Write traces, export each, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory(prefix="datacrumbs-bench-") as directory:
        for name in NAMES:
            events = SLOW_EVENTS if name.endswith(".pftrace") else options.events
            trace = Path(directory, str(events))
            if not trace.exists():
                write_trace(trace, events, 1000)
            rows[name] = measure(trace, Path(directory, name), events)
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'datacrumbs_export':<18}{'events/s':>14}{'per CPU s':>14}{'B/event':>9}{'peak':>10}")
    for name, row in rows.items():
        print(
            f"{name:<18}{row['events_per_s']:>14,.0f}{row['events_per_cpu_s']:>14,.0f}"
            f"{row['bytes_per_event']:>9.1f}{row['peak_bytes'] / 2**20:>6.0f} MiB"
        )
    print(f"to reach: {TO_REACH:,} events/s for .pfw.gz")


if __name__ == "__main__":
    main()
