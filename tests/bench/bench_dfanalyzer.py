"""`datacrumbs_report` beside DFTracer's analyzer: the same events, to the same totals.

A trace (that of bench_report.py) is exported by `datacrumbs_export`. The analyzer reads the
export, `datacrumbs_report` the trace. Compared are calls, bytes and time of all system calls (POSIX
to DFTracer): calls and bytes have to be equal, times as far as the microseconds of the export go.

`make bench` and `make test` put the analyzer into an environment of its own, below the one that
this runs in.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

sys.path.insert(0, str(Path(__file__).parent))

from bench_report import CALLS, write_trace
from measured import Measured, main, measure, measure_ours

TOOLS = Path(sys.prefix, "dfanalyzer", "bin")
SIZES = (1_000_000, 10_000_000)
FILES = 1_000
TIMEOUT_S = 1_800
LIMIT = 10
"""So many times as fast."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Of all system calls; time to the microsecond."""

    calls: int
    bytes: int
    time_us: int


def ours(trace: Path) -> tuple[Totals, Measured]:
    """What `datacrumbs_report` says."""
    found = measure_ours("report", "--format", "json", trace)
    (layer,) = (row for row in json.loads(found.output)["layers"] if row["layer"] == "syscalls")
    return Totals(layer["count"], layer["bytes"], layer["time_ns"] // 1000), found


def theirs(exported: Path, scratch: Path, timeout_s: float) -> tuple[Totals, Measured]:
    """What the analyzer says; TimeoutError after ``timeout_s``."""
    scratch.mkdir()
    environment = {"PATH": f"{TOOLS}:/usr/bin:/bin", "HOME": str(scratch), "USER": "bench"}
    command = [
        TOOLS / "dfanalyzer",
        *("analyzer=dftracer", "analyzer/preset=posix", "output=json"),
        *(f"trace_path={exported}", f"hydra.run.dir={scratch}/out"),
    ]
    found = measure(command, environment=environment, cwd=scratch, timeout_s=timeout_s, quiet=True)
    (view,) = (scratch / "out" / "checkpoints").glob("_flat_view_proc_name*.parquet")
    sums = pl.read_parquet(view).select(
        pl.col("posix_count_sum", "posix_data_size_sum", "posix_time_sum").sum()
    )
    calls, moved, time_s = sums.row(0)
    return Totals(int(calls), int(moved), round(time_s * 1e6)), found


def agree(one: Totals, other: Totals) -> bool:
    """Each function's time is exported to the microsecond."""
    same = (one.calls, one.bytes) == (other.calls, other.bytes)
    return same and abs(one.time_us - other.time_us) <= len(CALLS)


def compared(events: int, timeout_s: float) -> dict[str, Any]:
    """One row of numbers; without those of the analyzer when it does not get done."""
    with tempfile.TemporaryDirectory(prefix="datacrumbs-bench-") as directory:
        top = Path(directory)
        trace, exported = top / "trace", top / "exported"
        exported.mkdir()
        write_trace(trace, events, FILES)
        path = exported / "bench.pfw.gz"
        export = measure_ours("export", "--quiet", trace, "-o", path)
        totals, report = ours(trace)
        row: dict[str, Any] = {
            "events": events,
            "export_bytes": path.stat().st_size,
            "totals": asdict(totals),
            "report": report.numbers(),
            "export": export.numbers(),
            "limit": LIMIT,
            "timeout_s": timeout_s,
        }
        try:
            found, analyzer = theirs(exported, top / "scratch", timeout_s)
        except TimeoutError:
            # what it took is more than this
            return row | {"dfanalyzer": None, "times_as_fast": timeout_s / report.s}
    if not agree(totals, found):
        raise SystemExit(f"the totals differ: {totals}, dfanalyzer: {found}")
    return row | {
        "dfanalyzer": analyzer.numbers(),
        "times_as_fast": analyzer.s / report.s,
        "times_less_cpu": analyzer.cpu_s / report.cpu_s,
    }


def run(sizes: tuple[int, ...], timeout_s: float) -> list[dict[str, Any]]:
    """One row for each size; SystemExit where the analyzer is not installed."""
    if not (TOOLS / "dfanalyzer").exists():
        raise SystemExit(f"{TOOLS}: no dfanalyzer (make bench installs it)")
    return [compared(events, timeout_s) for events in sizes]


def print_table(rows: list[dict[str, Any]]) -> None:
    print(f"{'':<20}{'wall':>10}{'CPU':>10}{'peak':>12}{'load':>7}")
    for row in rows:
        totals = row["totals"]
        print(
            f"{row['events'] / 1e6:.0f} M events: {totals['calls']:,} system calls, "
            f"{totals['bytes']:,} bytes, {totals['time_us'] / 1e6:,.3f} s"
            + ", the same from both"
            * (row["dfanalyzer"] is not None)
        )
        for name in ("report", "dfanalyzer", "export"):
            one = row[name]
            if one is None:
                print(f"    {name:<16}not done after {row['timeout_s']:.0f} s")
                continue
            print(
                f"    {name:<16}{one['s']:>8.1f} s{one['cpu_s']:>8.1f} s"
                f"{one['peak_bytes'] / 2**20:>8.0f} MiB{one['load']:>7.1f}"
            )
        less = f", {row['times_less_cpu']:.0f} times less CPU" if row["dfanalyzer"] else " or more"
        print(f"    {row['times_as_fast']:.0f} times as fast{less}")
    print(f"to reach: {LIMIT} times as fast as dfanalyzer")


if __name__ == "__main__":
    main(__doc__, SIZES, run, print_table, timeout_s=TIMEOUT_S)
