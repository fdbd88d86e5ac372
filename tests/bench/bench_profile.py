"""What profile mode and the filters cost per call, next to trace mode; as root.

    python tests/bench/bench_profile.py [--rounds N] [--modes] [--json]

Every way runs in every round, so that the machine's moods hit all alike; shown is the least of
the rounds, for other work only adds. The empty pair is what any tracer adds that sees every
system call by its entry and exit, and with the clock any that takes the time: they are in all
the others' numbers. The second table is of a node whose CPUs are all busy with such calls: there
the daemon's time is the program's as well.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.harness import HERE, bench_user, counts_and_size, daemon, empty_pair, full_speed
from bench.per_call import EMPTY_PAIRS, Times, as_user
from kernel.tracing import TracedRun, io_calls, site_for

from datacrumbs.probes.model import Mode

CASES = ["read_1", "64_KiB"]
SECONDS, CPUS = 5.0, os.cpu_count() or 1
PROFILED = {"mode": Mode.PROFILE}
WAYS: dict[str, dict[str, Any]] = {  # fields of the layer; `include`: with path rules
    "traced": {},
    "profiled": PROFILED,
    "traced, include": {"include": True},
    "profiled, include": PROFILED | {"include": True},
    "all too short": {"min_duration_ns": 10**9},
    "1000 a second": {"max_per_s": 1000},
}

Numbers = dict[str, float]


def one_way(run: TracedRun, load: Path, way: dict[str, Any]) -> Times:
    """Nanoseconds per call of every case, traced as ``way`` says."""
    layer = {name: value for name, value in way.items() if name != "include"}
    include = ["/dev", str(run.work)] if "include" in way else []
    run.sign(io_calls(**layer), include=include)
    with daemon(run):
        return as_user(run, load, wrap=True, cases=CASES)


def busy_node(run: TracedRun, load: Path, rounds: int, modes: list[str]) -> dict[str, Numbers]:
    """Every CPU makes nothing but 1-byte reads: what a call costs the node, untraced and in modes.

    ``ns`` is the CPU time of all CPUs by calls made, so that the daemon's is in it; of the
    least costly round also what was lost, and what the daemon and the disk had to do.
    """
    found: dict[str, list[Numbers]] = {name: [] for name in ("untraced", *modes)}
    for _ in range(rounds):
        calls = full_speed(run, load, SECONDS, processes=CPUS, wrap=False)
        found["untraced"].append({"ns": CPUS * SECONDS * 1e9 / calls})
        for mode in modes:
            run.sign(io_calls(**WAYS[mode]))
            with daemon(run) as measured:
                calls = full_speed(run, load, SECONDS, processes=CPUS)
            counts, size = counts_and_size(run)
            numbers = {"ns": CPUS * SECONDS * 1e9 / calls, "calls": calls, "lost": counts["lost"]}
            found[mode].append(numbers | {"daemon_cpu_s": measured.cpu_s, "bytes_on_disk": size})
    return {name: min(each, key=lambda numbers: numbers["ns"]) for name, each in found.items()}


def prepare(run: TracedRun) -> Path:
    """The load; and the rings' default size, not the tests' small ones."""
    config = run.root / "system.yaml"
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if not line.startswith("ring:")))
    load = run.root / "work" / "load"
    subprocess.run(["cc", "-O2", "-o", load, HERE / "load.c"], check=True)
    return load


def measure(run: TracedRun, load: Path, rounds: int, ways: list[str]) -> dict[str, Times]:
    """The least of ``rounds`` for the untraced run, the empty pairs and ``ways`` of `WAYS`."""
    names = ("untraced", *EMPTY_PAIRS, *ways)
    found: dict[str, list[Times]] = {name: [] for name in names}
    for _ in range(rounds):
        found["untraced"].append(as_user(run, load, wrap=False, cases=CASES))
        for name, clock in EMPTY_PAIRS.items():
            with empty_pair(run.root, clock=clock):
                found[name].append(as_user(run, load, wrap=False, cases=CASES))
        for name in ways:
            found[name].append(one_way(run, load, WAYS[name]))
    return {
        name: {case: min(times[case] for times in rounds_of) for case in CASES}
        for name, rounds_of in found.items()
    }


def lines(table: dict[str, Times]) -> list[str]:
    """The table: ns per call, what is added, and that as a share of what trace mode adds."""
    base, traced = table["untraced"], table["traced"]
    rows = [
        f"{'ns per call':<18}" + "".join(f"{c:>10}{'added':>8}{'of traced':>11}" for c in CASES)
    ]
    for name, times in table.items():
        row = f"{name:<18}"
        for case in CASES:
            added, whole = times[case] - base[case], traced[case] - base[case]
            row += f"{times[case]:>10.0f}{added:>8.0f}{added / whole:>11.0%}"
        rows.append(row)
    return rows


def main() -> None:
    """Parse options, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--modes", action="store_true", help="only the two modes")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    modes = ["traced", "profiled"]
    with bench_user() as user, site_for(user) as run:
        load = prepare(run)
        table = measure(run, load, options.rounds, modes if options.modes else list(WAYS))
        busy = busy_node(run, load, options.rounds, modes)
    added = {mode: busy[mode]["ns"] - busy["untraced"]["ns"] for mode in modes}
    if options.json:
        found = {"per_call": table, "busy_node": busy, "added_on_busy_node_ns": added}
        print(json.dumps(found, indent=2))
        return
    print("\n".join(lines(table)), end="\n\n")
    share = added["profiled"] / added["traced"]
    print(f"a busy node: profile mode costs {share:.0%} of trace mode, the daemon's time included")
    for name, numbers in busy.items():
        print(f"{name:<18}" + ", ".join(f"{what} {n:,.2f}" for what, n in numbers.items()))


if __name__ == "__main__":
    main()
