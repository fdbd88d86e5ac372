"""How long `datacrumbs_explain` takes, and how much memory, and how both grow with the trace.

The traces are written by the real writer from generated trees of calls, five levels deep, of
which every sum is known; a run whose totals differ fails.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from bench_growth import LIMIT_BYTES, LIMITS_S
from generate.bulk import piece, write_bulk
from generate.calls import breakdown
from measured import main, measure_ours

SIZES = (1_000_000, 10_000_000, 100_000_000)
LIMIT_S = LIMITS_S["explain"]
TARGETS = ("fwrite", "pread64")


def check(said: Any, times: int, events: int) -> None:
    """Every context has ``times`` what it has in one piece."""
    answer = breakdown(piece().calls())
    found = {}
    for explained in said["explained"]:
        path: list[str] = []
        for inner in explained["inside"]:
            path[inner["depth"] :] = [inner["name"]]
            found[tuple(path)] = (inner["count"], inner["time_ns"], inner["self_ns"])
    wanted = {p: (times * s.count, times * s.time_ns, times * s.self_ns) for p, s in answer.items()}
    if said["events"] != events or found != wanted:
        raise SystemExit("datacrumbs_explain: the sums are not those of the trace")
    for explained in said["explained"]:
        first = explained["variation"]["findings"][0]
        causes = {"fwrite": "journal", "pread64": "cache miss"}
        if first["cause"] != causes[explained["name"]]:
            raise SystemExit(f"datacrumbs_explain: {explained['name']}: {first}")


def run(sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """One row of numbers for each size."""
    rows = []
    for wanted in sizes:
        with tempfile.TemporaryDirectory(prefix="datacrumbs-bench-") as directory:
            times, events = write_bulk(Path(directory), piece(), wanted)
            found = measure_ours("explain", "--format", "json", directory)
        check(json.loads(found.output), times, events)
        rows.append(
            {
                "events": events,
                "explain_s": found.s,
                "cpu_s": found.cpu_s,
                "ns_per_event": found.s / events * 1e9,
                "peak_bytes": found.peak_bytes,
                "limit_s": LIMIT_S,
                "limit_bytes": LIMIT_BYTES,
            }
        )
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    print(f"{'datacrumbs_explain':<20}{'time':>10}{'CPU':>10}{'an event':>12}{'peak':>12}")
    for row in rows:
        print(
            f"{row['events'] / 1e6:>8.1f} M events{row['explain_s']:>11.1f} s{row['cpu_s']:>8.1f} s"
            f"{row['ns_per_event']:>9.0f} ns{row['peak_bytes'] / 2**20:>8.0f} MiB"
        )
    print(f"to reach: {SIZES[-1] / 1e6:.0f} M events in {LIMIT_S} s and {LIMIT_BYTES >> 20} MiB")


if __name__ == "__main__":
    main(__doc__, SIZES, run, print_table)
