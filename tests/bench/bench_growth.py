"""How `datacrumbs_report` and `datacrumbs_explain` grow with the events of a trace.

The trace is the worst there is for what both keep: 250 processes of 4 threads, 100,000 files, each
call on any of them at any place (that of bench_report.py). What to reach is for 100 M events on
two processors, and growth no worse than n log n: by 14 % a million events from 10 M to 100 M.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from bench_report import write_trace
from measured import main, measure_ours

SIZES = (1_000_000, 10_000_000, 100_000_000)
FILES = 100_000
RANKS = 250
LIMITS_S = {"report": 60, "explain": 120}
LIMIT_BYTES = 4 << 30


def run(sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """One row of numbers for each size and command."""
    rows = []
    for events in sizes:
        with tempfile.TemporaryDirectory(prefix="datacrumbs-bench-") as directory:
            write_trace(Path(directory), events, FILES, RANKS)
            for command in LIMITS_S:
                found = measure_ours(command, "--format", "json", directory)
                if json.loads(found.output)["events"] != events:
                    raise SystemExit(f"datacrumbs_{command}: not all events are there")
                rows.append(
                    {
                        "command": command,
                        "events": events,
                        "cpu_s_per_million": found.cpu_s / events * 1e6,
                        **found.numbers(),
                    }
                )
    return rows


def growth(rows: list[dict[str, Any]], command: str) -> float:
    """How much processor time grows from one size to the next, in n log n: the worst step."""
    mine = [row for row in rows if row["command"] == command]
    steps = []
    for small, large in pairwise(sorted(mine, key=lambda row: row["events"])):
        times = large["cpu_s"] / small["cpu_s"]
        n_log_n = [row["events"] * math.log(row["events"]) for row in (small, large)]
        steps.append(times * n_log_n[0] / n_log_n[1])
    return max(steps, default=0.0)


def print_table(rows: list[dict[str, Any]]) -> None:
    print(
        f"{'datacrumbs_':<12}{'events':>10}{'wall':>9}{'CPU':>9}{'peak':>11}"
        f"{'CPU per M':>12}{'load':>7}"
    )
    for command, limit_s in LIMITS_S.items():
        for row in rows:
            if row["command"] == command:
                print(
                    f"{command:<12}{row['events'] / 1e6:>8.0f} M{row['s']:>7.1f} s"
                    f"{row['cpu_s']:>7.1f} s{row['peak_bytes'] / 2**20:>7.0f} MiB"
                    f"{row['cpu_s_per_million']:>10.2f} s{row['load']:>7.1f}"
                )
        grown = growth(rows, command)
        print(f"    from one size to the next, CPU grows {grown:.2f} times as much as n log n")
        print(f"    to reach: 100 M events in {limit_s} s and {LIMIT_BYTES >> 20} MiB")


if __name__ == "__main__":
    main(__doc__, SIZES, run, print_table)
