"""What tracing adds to one call, next to other tools that see the same calls."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from bench.harness import daemon, empty_pair
from kernel.tracing import TracedRun

CASES = {
    "read_1": "read",
    "read_cold": "cold",
    "4_KiB": "4096",
    "64_KiB": "65536",
    "1_MiB": "1048576",
}
"""What ``load`` is told for each."""
ROUNDS, REPEATS, TOOL_REPEATS = 9, 50, 10
EMPTY_PAIRS = {"empty pair": False, "with the clock": True}
"""What any tracer of system calls adds at least, and any that takes the time; in all others."""
DFTRACER = Path(sys.prefix, "bench", "dftracer")
"""Where `make bench` puts DFTracer's wheel."""

BPFTRACE = (
    "tracepoint:raw_syscalls:sys_enter /pid == cpid/ { @at[tid] = nsecs; } "
    "tracepoint:raw_syscalls:sys_exit /@at[tid]/ "
    "{ @[args->id] = hist(nsecs - @at[tid]); delete(@at[tid]); }"
)
TOOLS = {
    "strace -f": ["strace", "-f", "-o", "/dev/null"],
    "perf trace": ["perf", "trace", "-o", "/dev/null"],
    "bpftrace": ["bpftrace", "-o", "/dev/null", "-e", BPFTRACE, "-c"],
}

Times = dict[str, float]
"""Nanoseconds per call, by case."""


def measure(run: TracedRun, load: Path) -> dict[str, Times]:
    """A row for each way to run the loads."""
    rounds = [_round(run, load) for _ in range(ROUNDS)]
    return {
        **{row: _best([times[row] for times in rounds]) for row in rounds[0]},
        **{tool: _with_tool(words, run, load) for tool, words in TOOLS.items()},
        "DFTracer": _with_dftracer(run, load, metadata=False),
        "  + metadata": _with_dftracer(run, load, metadata=True),
    }


def _round(run: TracedRun, load: Path) -> dict[str, Times]:
    """Without a tracer and with ours, one after the other: the machine's moods hit both."""
    every, read = list(CASES), ["read_1"]
    times = {"untraced": as_user(run, load, wrap=False, cases=every)}
    for name, clock in EMPTY_PAIRS.items():
        with empty_pair(run.root, clock=clock):
            times[name] = as_user(run, load, wrap=False, cases=every)
    with daemon(run):
        times["datacrumbs"] = as_user(run, load, wrap=True, cases=every)
        times["  not joined"] = as_user(run, load, wrap=False, cases=read)
        times["  other user"] = {"read_1": _time([load, "read", str(REPEATS)], run.work)}
    return times


def _best(rounds: list[Times]) -> Times:
    return {case: min(times[case] for times in rounds) for case in rounds[0]}


def as_user(run: TracedRun, load: Path, *, wrap: bool, cases: list[str]) -> Times:
    """The load's own times, as the run's user."""
    return {
        case: float(run.run(load, CASES[case], str(REPEATS), wrap=wrap).split()[-1])
        for case in cases
    }


def _time(command: list[str | Path], work: Path, **variables: str) -> float:
    """What the load prints last; raises `OSError` or `ValueError` when it does not run."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=work,
        env=os.environ | variables,
    )
    if done.returncode or not done.stdout.split():
        raise ValueError(f"{command[0]}: {done.stderr.strip()[:200]}")
    return float(done.stdout.split()[-1])


def _with_tool(tool: list[str], run: TracedRun, load: Path) -> Times:
    """The same loads under another tracer, as root; none if it is missing or fails."""
    times = {}
    if not shutil.which(tool[0]):
        return {}
    for case, argument in CASES.items():
        words = [str(load), argument, str(TOOL_REPEATS)]
        try:
            times[case] = _time(
                [*tool, *([shlex.join(words)] if tool[-1] == "-c" else words)], run.work
            )
        except (OSError, ValueError) as error:
            print(error, file=sys.stderr)
            return {}
    return times


def _with_dftracer(run: TracedRun, load: Path, *, metadata: bool) -> Times:
    """The same under DFTracer's preload library; none if its wheel is not there.

    A case of which it left no trace has no time.
    """
    library = DFTRACER / "dftracer" / "lib64" / "libdftracer_preload.so"
    if not library.exists():
        return {}
    times = {}
    for case, argument in CASES.items():
        log = run.root / f"dftracer-{case}-{metadata:d}"
        times[case] = _time(
            [load, argument, str(TOOL_REPEATS)],
            run.work,
            LD_PRELOAD=str(library),
            DFTRACER_ENABLE="1",
            DFTRACER_INIT="PRELOAD",
            DFTRACER_DATA_DIR="all",
            DFTRACER_INC_METADATA=f"{metadata:d}",
            DFTRACER_LOG_FILE=str(log),
        )
        traces = list(log.parent.glob(f"{log.name}*"))
        if not traces:
            print(f"DFTracer: no trace of {case}", file=sys.stderr)
            del times[case]
        for trace in traces:
            trace.unlink()
    return times


def table(rows: dict[str, Times]) -> list[str]:
    """The lines of the table: ns per call, the ratio to the untraced run, added per empty pair."""
    base = rows["untraced"]
    lines = [f"{'ns per call':<14}" + "".join(f"{case:>17}" for case in CASES) + "   added/pair"]
    for name, times in rows.items():
        if not times:
            lines.append(f"{name:<14}" + "not installed, or it failed".rjust(36))
            continue
        cells = [f"{times[c]:.0f} ({times[c] / base[c]:.3f})" if c in times else "" for c in CASES]
        added = f"{added_per_pair(rows, name):13.2f}" if "read_1" in times else ""
        lines.append(f"{name:<14}" + "".join(f"{cell:>17}" for cell in cells) + added)
    return lines


def slower_percent(rows: dict[str, Times], name: str, case: str) -> float:
    """By how many per cent ``name`` makes ``case`` slower than it is untraced."""
    return (rows[name][case] / rows["untraced"][case] - 1) * 100


def added_per_pair(rows: dict[str, Times], name: str) -> float:
    """What ``name`` adds to a 1-byte read, as a multiple of what the empty pair adds."""
    base = rows["untraced"]["read_1"]
    return (rows[name]["read_1"] - base) / (rows["empty pair"]["read_1"] - base)
