"""``make bench``: what tracing costs, everything in one invocation; as root.

Uses the installed commands of the environment it runs in, a site and a user of its own, and
removes both at the end. It prints two tables: ns per call next to other tools, and what is to
be reached next to what was measured. Nothing fails: machines differ.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import bench_growth, per_call
from bench.harness import HERE, bench_user, counts_and_size, daemon, full_speed, libc_layer
from kernel.tracing import TracedRun, site_for, traced_names

from datacrumbs.probes.model import SyscallLayer

STARTS = 5
WARM_UP_S = 20
WRITER_EVENTS = 20_000_000
GROWTH_EVENTS = (1_000_000, 10_000_000)
GROWTH_EVENTS_LARGE = (*GROWTH_EVENTS, 100_000_000)
DFANALYZER_EVENTS, DFANALYZER_EVENTS_LARGE = 1_000_000, 10_000_000
SLOWER = {
    "datacrumbs": "1 MiB pread+pwrite in the page cache, slower by",
    "empty pair": "  by an empty pair",
    "with the clock": "  by one that reads the clock",
}

Numbers = dict[str, float]


@dataclass(frozen=True, slots=True)
class Row:
    """One thing to reach: at most ``limit`` of ``unit`` (at least, if ``least``)."""

    what: str
    limit: float
    value: float
    unit: str = ""
    least: bool = False

    def line(self) -> str:
        holds = self.value >= self.limit if self.least else self.value <= self.limit
        limit = f"{'>=' if self.least else '<='} {self.limit:,.4g}"
        line = f"{self.what:<58}{limit:>10}{self.value:>12,.4g} {self.unit:<14}"
        return (line + ("" if holds else "NOT REACHED")).rstrip()


def at_full_speed(run: TracedRun, load: Path, seconds: float) -> Numbers:
    """Two processes that do nothing but 1-byte reads, and what became of their events."""
    with daemon(run) as measured:
        full_speed(run, load, seconds)
    counts, size = counts_and_size(run)
    return {
        "seconds": seconds,
        "events": counts["events"],
        "lost": counts["lost"],
        "events_per_s": counts["events"] / seconds,
        "events_per_daemon_cpu_s": counts["events"] / measured.cpu_s,
        "bytes_per_event": size / counts["events"],
        "stop_to_exit_ms": measured.stop_ms,
    }


def start(run: TracedRun) -> Numbers:
    """Start to ready with 60 system calls and 100 functions of the C library."""
    run.sign(SyscallLayer(name="syscall", functions=traced_names()[:60]), libc_layer(100))
    times = []
    for _ in range(STARTS):
        with daemon(run) as measured:
            pass
        times.append(measured.start_ms)
    return {"start_to_ready_ms": statistics.median(times), "worst_ms": max(times)}


def memory(run: TracedRun, load: Path, minutes: float) -> Numbers:
    """Resident memory of the daemon over a steady run, sampled each second."""
    samples = []
    with daemon(run) as measured:
        process = run.start(load, "steady", str(minutes * 60 + WARM_UP_S))
        time.sleep(WARM_UP_S)  # the first segments: buffers grow to their size
        while process.poll() is None:
            samples.append(measured.memory_bytes())
            time.sleep(1)
        if process.returncode:
            sys.exit("the load failed")
    tenth = max(len(samples) // 10, 1)
    return {
        "minutes": minutes,
        "events": counts_and_size(run)[0]["events"],
        "first_bytes": statistics.median(samples[:tenth]),
        "last_bytes": statistics.median(samples[-tenth:]),
        "max_bytes": max(samples),
    }


def script(name: str, *arguments: str) -> Any:
    """What another benchmark of this directory prints with ``--json``."""
    command = [sys.executable, "-P", HERE / name, "--json", *arguments]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def growth(large: bool) -> Any:
    """Report and explain by the number of events."""
    sizes = GROWTH_EVENTS_LARGE if large else GROWTH_EVENTS
    return script("bench_growth.py", *(f"--events={events}" for events in sizes))


def dfanalyzer(large: bool) -> Any:
    """DFTracer's analyzer and ours, for one number of events."""
    events = DFANALYZER_EVENTS_LARGE if large else DFANALYZER_EVENTS
    return script("bench_dfanalyzer.py", f"--events={events}")[0]


def measure(run: TracedRun, options: argparse.Namespace) -> dict[str, Any]:
    """Everything, by the name of its part."""
    config = run.root / "system.yaml"  # the rings' default size, not the tests' small ones
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if not line.startswith("ring:")))
    load = run.work / "load"
    subprocess.run(["cc", "-O2", "-Wall", "-o", load, HERE / "load.c"], check=True)
    everything = SyscallLayer(name="syscall", functions=traced_names())
    result: dict[str, Any] = {"start": start(run)}
    run.sign(everything)
    parts = {
        "per_call": lambda: per_call.measure(run, load),
        "full_speed": lambda: at_full_speed(run, load, options.seconds),
        "memory": lambda: memory(run, load, options.minutes),
        "rings": lambda: script("bench_rings.py", "--way", "default"),
        "client": lambda: script("bench_client.py"),
        "writer": lambda: script("bench_writer.py", "--events", str(WRITER_EVENTS)),
        "hooks": lambda: script("bench_hooks.py"),
        "flux_hooks": lambda: script("bench_flux_hooks.py"),
        "profile": lambda: script("bench_profile.py", "--modes", "--rounds", "3"),
        "growth": lambda: growth(options.large),
        "dfanalyzer": lambda: dfanalyzer(options.large),
    }
    for name, part in parts.items():
        print(f"measuring: {name}", file=sys.stderr)
        result[name] = part()
    return result


def of_traced(times: dict[str, Numbers], way: str) -> float:
    """What ``way`` adds to a 1-byte read, in per cent of what trace mode adds."""
    added = {name: row["read_1"] - times["untraced"]["read_1"] for name, row in times.items()}
    return added[way] / added["traced"] * 100


def rows(result: dict[str, Any]) -> list[Row]:
    """What is to be reached and what was measured."""
    calls, speed, memory = result["per_call"], result["full_speed"], result["memory"]
    writer, hooks = result["writer"], result["hooks"]
    bare = f"beside {hooks['true_ms']:.1f} of /bin/true"
    flux, modes = result["flux_hooks"], result["profile"]["per_call"]
    busy = result["profile"]["added_on_busy_node_ns"]
    asked = flux["prolog_ms"] - flux["question_ms"]
    untraced = max(per_call.added_per_pair(calls, f"  {n}") for n in ("not joined", "other user"))
    both = f"two processes at full speed, {speed['seconds']:.0f} s"
    stop = f"stop to exit, after {speed['events'] / 1e6:.1f} M events"
    steady = f"daemon's memory without the rings, {memory['minutes']:g} min"
    grown = (memory["last_bytes"] / memory["first_bytes"] - 1) * 100
    return [
        Row(
            "added to a traced 1-byte read",
            4,
            per_call.added_per_pair(calls, "datacrumbs"),
            "empty pairs",
        ),
        Row("added to one that is not traced (worst of two)", 1.6, untraced, "empty pairs"),
        *(
            Row(what, 1, per_call.slower_percent(calls, name, "1_MiB"), "%")
            for name, what in SLOWER.items()
        ),
        Row(
            "profile mode, of what trace mode costs a busy node",
            60,
            busy["profiled"] / busy["traced"] * 100,
            "%",
        ),
        Row(
            "  of what it adds to that read itself",
            60,
            of_traced(modes, "profiled"),
            "%",
        ),
        Row(
            "  of that the empty pair and the clock, twice",
            60,
            of_traced(modes, "with the clock"),
            "%",
        ),
        Row(
            "64 KiB pread+pwrite, profile mode, slower by",
            0.3,
            (modes["profiled"]["64_KiB"] / modes["untraced"]["64_KiB"] - 1) * 100,
            "%",
        ),
        Row(both, 1.5, speed["events_per_s"] / 1e6, "M events/s", least=True),
        Row(f"{both}: lost", 0, speed["lost"], "events"),
        *_ring_rows(result["rings"]),
        Row(
            "drain and write, per CPU second of the daemon",
            4,
            speed["events_per_daemon_cpu_s"] / 1e6,
            "M events",
            least=True,
        ),
        Row("trace on disk, per event, realistic mix", 10, writer["bytes_per_event"], "bytes"),
        Row("trace on disk, per event, full speed", 10, speed["bytes_per_event"], "bytes"),
        Row(
            "start to ready, 60 system calls and 100 libc functions",
            600,
            result["start"]["start_to_ready_ms"],
            "ms",
        ),
        Row(
            "client library at a process's start", 5, result["client"]["constructor_ns"] / 1e3, "us"
        ),
        Row(stop, 500, speed["stop_to_exit_ms"], "ms"),
        Row(f"{steady}: most", 150, memory["max_bytes"] / 1e6, "MB"),
        Row(f"{steady}: grown", 2, grown, "%"),
        Row(f"prolog of a job without metadata, {bare}", 5, hooks["prolog_ms"], "ms"),
        Row(f"epilog of a job without metadata, {bare}", 5, hooks["epilog_ms"], "ms"),
        Row("Flux: the same prolog, less what flux job info takes", 5, asked, "ms"),
        Row("Flux: the same epilog", 5, flux["epilog_ms"], "ms"),
        Row("prolog of a traced job, until ready", 700, hooks["traced_prolog_ms"], "ms"),
        Row("epilog of a traced job, until closed", 700, hooks["traced_epilog_ms"], "ms"),
        *_analysis_rows(result["growth"], result["dfanalyzer"]),
    ]


def _ring_rows(rings: dict[str, Any]) -> Iterator[Row]:
    lost = rings["ways"]["default"]["burst_lost_percent"]
    yield Row("bursts of 1 M reads by each CPU: lost", 0.1, lost, "%")
    yield Row("128 rings of 2 MiB in place", 200, rings["placed_ms"], "ms")


def _analysis_rows(growth: list[dict[str, Any]], beside: dict[str, Any]) -> Iterator[Row]:
    for command, limit_s in bench_growth.LIMITS_S.items():
        mine = [row for row in growth if row["command"] == command]
        last = mine[-1]
        what = f"datacrumbs_{command}, {last['events'] / 1e6:.0f} M events, 100,000 files"
        yield Row(f"{what}: time", limit_s, last["s"], "s")
        limit_bytes = bench_growth.LIMIT_BYTES
        yield Row(f"{what}: memory", limit_bytes >> 20, last["peak_bytes"] / (1 << 20), "MiB")
        grown = bench_growth.growth(growth, command)
        since = f"datacrumbs_{command}, CPU from {mine[0]['events'] / 1e6:.0f} M events on"
        yield Row(since, 1, grown, "times n log n")
    events = f"{beside['events'] / 1e6:.0f} M events"
    faster = beside["times_as_fast"]
    yield Row(f"dfanalyzer / datacrumbs_report, {events}", beside["limit"], faster, "times", True)


def main() -> None:
    """Parse options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--seconds", type=float, default=30, help="at full speed")
    parser.add_argument("--minutes", type=float, default=1, help="of watching memory")
    parser.add_argument(
        "--large", action="store_true", help="analyse 100 M events, 10 M beside dfanalyzer"
    )
    options = parser.parse_args()
    with bench_user() as user, site_for(user) as run:
        result = measure(run, options)
    reached = rows(result)
    if options.json:
        print(json.dumps(result | {"rows": [asdict(row) for row in reached]}, indent=2))
        return
    print("\n".join(per_call.table(result["per_call"])), end="\n\n")
    print(f"{'':<58}{'to reach':>10}{'measured':>12}")
    print("\n".join(row.line() for row in reached))


if __name__ == "__main__":
    main()
