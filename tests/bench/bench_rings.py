"""What the rings are good for: bursts, CPUs that share one, and 128 of them; as root.

    python tests/bench/bench_rings.py [--bursts N] [--json]

As many processes as CPUs do nothing but 1-byte reads. A burst is 1,000,000 by each after half a
second of silence; at full speed they read for some seconds, and a read takes, on its CPU, the
time of all CPUs over the number of reads.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.harness import HERE, bench_user, counts_and_size, daemon
from kernel.tracing import TracedRun, io_calls, site_for

from datacrumbs.config import Ring
from datacrumbs.tracer.libbpf import OBJECT_PATH, Object

CPUS = os.cpu_count() or 1
BURST_REPEATS = 100  # of 10,000 reads
SILENCE_S = 0.5
SECONDS = 5.0
SHARED = f"{CPUS} CPUs share one"
WAYS = {  # how, and what is between the braces of `ring:` in system.yaml
    "1 MiB each": "max_ring_bytes: 1048576, min_ring_bytes: 1048576",
    "4 MiB each": "max_ring_bytes: 4194304",
    "default": "",
    f"{SHARED}, 1 MiB": f"total_bytes: 1048576, cpus_per_ring: {CPUS}",
    f"{SHARED}, 4 MiB": f"total_bytes: 4194304, cpus_per_ring: {CPUS}",
}
PLACED, PLACEMENTS = 128, 3

Numbers = dict[str, float]


def set_rings(run: TracedRun, rings: str) -> None:
    """Give the run's system.yaml other rings."""
    config = run.root / "system.yaml"
    lines = config.read_text().splitlines(keepends=True)
    others = [line for line in lines if not line.startswith("ring:")]
    config.write_text("".join([*others, f"ring: {{{rings}}}\n"]))


def on_every_cpu(run: TracedRun, load: Path, *arguments: str) -> None:
    """The load, as often at once as there are CPUs, to its end."""
    every = [run.start(load, *arguments, stdout=subprocess.DEVNULL) for _ in range(CPUS)]
    if max(process.wait() for process in every):
        sys.exit("the load failed")


def lost_percent(run: TracedRun) -> float:
    """Of the calls of the stopped run."""
    counts, _ = counts_and_size(run)
    return 100 * counts["lost"] / (counts["events"] + counts["lost"])


def one_way(run: TracedRun, load: Path, rings: str, bursts: int) -> Numbers:
    """What is lost of bursts and at full speed, and what a read takes then."""
    set_rings(run, rings)
    with daemon(run):
        for _ in range(bursts):
            time.sleep(SILENCE_S)
            on_every_cpu(run, load, "read", str(BURST_REPEATS))
    found = {"burst_lost_percent": lost_percent(run)}
    with daemon(run):
        on_every_cpu(run, load, "speed", str(SECONDS))
    counts, _ = counts_and_size(run)
    reads = counts["events"] + counts["lost"]
    found["lost_percent"] = lost_percent(run)
    found["ns_per_read"] = CPUS * SECONDS * 1e9 / reads
    return found


def placed_ms(size_bytes: int) -> float:
    """To put `PLACED` rings of ``size_bytes`` in place; the best of some times."""
    times: list[float] = []
    for _ in range(PLACEMENTS):
        with closing(Object(OBJECT_PATH, log=print)) as bpf:
            bpf.only("on_fork")
            bpf.set_entries("rings", PLACED)
            bpf.load()
            start = time.perf_counter()
            fds = bpf.add_rings("rings", PLACED, size_bytes)
            times.append((time.perf_counter() - start) * 1e3)
        for fd in fds:
            os.close(fd)
    return min(times)


def measure(run: TracedRun, bursts: int, ways: Iterable[str] = WAYS) -> dict[str, Numbers]:
    """The numbers of each way."""
    load = run.work / "load"
    subprocess.run(["cc", "-O2", "-o", load, HERE / "load.c"], check=True)
    run.sign(io_calls())
    return {way: one_way(run, load, WAYS[way], bursts) for way in ways}


def main() -> None:
    """Parse options, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bursts", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--way", action="append", choices=WAYS, help="default: all")
    options = parser.parse_args()
    with bench_user() as user, site_for(user) as run:
        ways = measure(run, options.bursts, options.way or WAYS)
    placed = placed_ms(Ring().min_ring_bytes)
    if options.json:
        print(json.dumps({"ways": ways, "placed_ms": placed}, indent=2))
        return
    print(f"{'rings':<28}{'of bursts lost':>16}{'at full speed lost':>20}{'ns per read':>14}")
    for way, numbers in ways.items():
        burst, lost = numbers["burst_lost_percent"], numbers["lost_percent"]
        print(f"{way:<28}{burst:>14.2f} %{lost:>18.2f} %{numbers['ns_per_read']:>14.0f}")
    print(f"{PLACED} rings of {Ring().min_ring_bytes >> 20} MiB in place: {placed:.0f} ms")


if __name__ == "__main__":
    main()
