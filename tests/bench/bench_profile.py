"""What profile mode and the filters cost per call, next to trace mode; as root.

    python tests/bench/bench_profile.py [--rounds N] [--json]

Every way runs in every round, so that what else the machine does hits all alike; of the rounds
the least is shown, for other work only adds. ``added`` is to the untraced run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.run import HERE, bench_user, daemon, per_call_ns
from kernel.tracing import TracedRun, io_calls, site_for

from datacrumbs.probes.model import Mode

CASES = ["read_1", "64_KiB"]
PROFILED = {"mode": Mode.PROFILE}
HERE_ONLY = {"include": ["/dev", "/memfd:data"]}
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # fields of the layer, of the list
    "traced": ({}, {}),
    "profiled": (PROFILED, {}),
    "traced, by path": ({}, HERE_ONLY),
    "profiled, by path": (PROFILED, HERE_ONLY),
    "traced, all short": ({"min_duration_ns": 10**9}, {}),
    "traced, 1000/s": ({"max_per_s": 1000}, {}),
}


def one_way(run: TracedRun, load: Path, layer: dict[str, Any], probes: dict[str, Any]) -> Any:
    """Nanoseconds per call of every case, traced as ``layer`` and ``probes`` say."""
    run.sign(io_calls(**layer), **probes)
    with daemon(run):
        return per_call_ns(run, load, wrap=True, cases=CASES)


def measure(run: TracedRun, rounds: int) -> dict[str, dict[str, float]]:
    """The least of ``rounds`` for the untraced run and each of `WAYS`, by case."""
    config = run.root / "system.yaml"  # the rings' default size, not the tests' small ones
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if not line.startswith("ring:")))
    load = run.root / "work" / "load"
    subprocess.run(["cc", "-O2", "-o", load, HERE / "load.c"], check=True)
    table: dict[str, list[dict[str, float]]] = {name: [] for name in ("untraced", *WAYS)}
    for _ in range(rounds):
        table["untraced"].append(per_call_ns(run, load, wrap=False, cases=CASES))
        for name, way in WAYS.items():
            table[name].append(one_way(run, load, *way))
    return {
        name: {case: min(times[case] for times in found) for case in CASES}
        for name, found in table.items()
    }


def show(table: dict[str, dict[str, float]]) -> None:
    """The table as text: ns per call, what is added, and its share of trace mode's."""
    base, traced = table["untraced"], table["traced"]
    print(f"{'ns per call':<20}" + "".join(f"{case:>12}{'added':>9}{'share':>8}" for case in CASES))
    for name, times in table.items():
        line = f"{name:<20}"
        for case in CASES:
            added, whole = times[case] - base[case], traced[case] - base[case]
            line += f"{times[case]:>12.0f}{added:>9.0f}{added / whole:>8.0%}"
        print(line)


def main() -> None:
    """Parse options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with bench_user() as user, site_for(user) as run:
        table = measure(run, options.rounds)
    if options.json:
        print(json.dumps(table, indent=2))
    else:
        show(table)


if __name__ == "__main__":
    main()
