"""``make bench``: what tracing costs, everything in one invocation; as root.

Uses the installed commands of the environment it runs in, a site and a user of its own, and
removes both at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import platform
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from kernel.tracing import BIN, READY_S, RUN_ID, TracedRun, io_calls, site_for

HERE = Path(__file__).parent
CASES = {"read_1": "read", "4_KiB": "4096", "64_KiB": "65536", "1_MiB": "1048576"}
REPEATS, SLOW_REPEATS, PROCESSES = 100, 2, 3
TOOLS = {
    "strace": ["strace", "-f", "-o", "/dev/null"],
    "perf trace": ["perf", "trace", "-o", "/dev/null"],
    "bpftrace": [
        *("bpftrace", "-o", "/dev/null", "-e"),
        "tracepoint:raw_syscalls:sys_enter /pid == cpid/ { @at[tid] = nsecs; } "
        "tracepoint:raw_syscalls:sys_exit /@at[tid]/ "
        "{ @[args->id] = hist(nsecs - @at[tid]); delete(@at[tid]); }",
        "-c",
    ],
}


@contextlib.contextmanager
def bench_user() -> Iterator[pwd.struct_passwd]:
    """A user of this host while the benchmark runs."""
    name = f"dc-bench-{os.getpid()}"
    subprocess.run(["useradd", "-M", name], check=True)
    try:
        yield pwd.getpwnam(name)
    finally:
        subprocess.run(["userdel", name], check=True)


@dataclass(slots=True)
class Daemon:
    """A daemon under measurement: how long start and stop took, CPU time and memory."""

    start_ms: float = 0.0
    stop_ms: float = 0.0
    cpu_s: float = 0.0
    rss_bytes: int = 0


@contextlib.contextmanager
def daemon(run: TracedRun) -> Iterator[Daemon]:
    """Tracing while inside; the measurements are whole afterwards."""
    shutil.rmtree(run.root / "traces" / RUN_ID, ignore_errors=True)
    ready = run.root / f"run/datacrumbs-{RUN_ID}.ready"
    command = [BIN / "datacrumbs", run.root / "probes.json.gz", RUN_ID]
    measured, start = Daemon(), time.monotonic()
    with open(run.root / "daemon.log", "wb") as log:
        process = subprocess.Popen([*command, "--config", run.root / "system.yaml"], stderr=log)
    try:
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > start + READY_S:
                sys.exit((run.root / "daemon.log").read_text())
            time.sleep(0.002)
        measured.start_ms = (time.monotonic() - start) * 1e3
        recorder = ready.read_text().strip()
        time.sleep(1.0)  # the recorder loads its libraries
        yield measured
        measured.rss_bytes = _anonymous_bytes(recorder)
    finally:
        if process.returncode is None:
            stop = time.monotonic()
            process.send_signal(signal.SIGTERM)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            measured.stop_ms = (time.monotonic() - stop) * 1e3
            measured.cpu_s = usage.ru_utime + usage.ru_stime


def _anonymous_bytes(pid: str) -> int:
    """Resident memory beyond the mapped rings and files."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


@contextlib.contextmanager
def empty_pair(work: Path) -> Iterator[None]:
    """An empty program attached to the entry and one to the exit of every system call."""
    target = work / "empty.bpf.o"
    include = f"/usr/include/{platform.machine()}-linux-gnu"
    flags = ["-target", "bpf", "-O2", "-g", "-idirafter", include]
    subprocess.run(["clang", *flags, "-c", HERE / "empty.bpf.c", "-o", target], check=True)
    libbpf: Any = ctypes.CDLL("libbpf.so.1")
    for name in ("open_file", "find_program_by_name"):
        getattr(libbpf, f"bpf_object__{name}").restype = ctypes.c_void_p
    libbpf.bpf_program__attach.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(libbpf.bpf_object__open_file(os.fsencode(target), None))
    if libbpf.bpf_object__load(handle):
        sys.exit("the empty pair does not load")
    links = []
    try:
        for name in (b"enter", b"leave"):
            program = ctypes.c_void_p(libbpf.bpf_object__find_program_by_name(handle, name))
            links.append(ctypes.c_void_p(libbpf.bpf_program__attach(program)))
        yield
    finally:
        for link in links:
            libbpf.bpf_link__destroy(link)
        libbpf.bpf_object__close(handle)


def per_call_ns(run: TracedRun, load: Path, *, wrap: bool, cases: list[str]) -> dict[str, float]:
    """The load's own time per call, as the run's user."""
    command = [str(load)]
    return {case: float(run.run(*command, CASES[case], str(REPEATS), wrap=wrap)) for case in cases}


def with_tool(tool: str, load: Path) -> dict[str, float]:
    """The same loads under another tracer, as root; none if it is missing or fails."""
    if not shutil.which(TOOLS[tool][0]):
        return {}
    times = {}
    for case, argument in CASES.items():
        words = [str(load), argument, str(SLOW_REPEATS)]
        command = [*TOOLS[tool], *([" ".join(words)] if tool == "bpftrace" else words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not done.stdout.strip():
            print(f"{tool}: {done.stderr.strip()[:200]}", file=sys.stderr)
            return {}
        times[case] = float(done.stdout.split()[-1])
    return times


def full_speed(run: TracedRun, load: Path, seconds: float) -> dict[str, float]:
    """Two processes that do nothing but 1-byte reads, and what became of their events."""
    with daemon(run) as measured:
        both = [run.start(load, "speed", str(seconds)) for _ in range(2)]
        if any(process.wait() for process in both):
            sys.exit("the load failed")
    (host,) = (run.root / "traces" / RUN_ID).glob("host=*")
    counts = json.loads((host / "run.json").read_text())["counts"]
    size = sum(path.stat().st_size for path in host.iterdir())
    return {
        "events": counts["events"],
        "lost": counts["lost"],
        "events_per_s": counts["events"] / seconds,
        "events_per_daemon_cpu_s": counts["events"] / measured.cpu_s,
        "bytes_per_event": size / counts["events"],
        "start_to_ready_ms": measured.start_ms,
        "stop_to_exit_ms": measured.stop_ms,
        "daemon_rss_bytes": measured.rss_bytes,
    }


def measure(run: TracedRun, seconds: float) -> dict[str, dict[str, float]]:
    """Everything: a row for each way to run the loads, and the row ``full_speed``."""
    config = run.root / "system.yaml"  # the rings' default size, not the tests' small ones
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if not line.startswith("ring:")))
    run.sign(io_calls())
    load = run.root / "work" / "load"
    subprocess.run(["cc", "-O2", "-o", load, HERE / "load.c"], check=True)
    every, read = list(CASES), ["read_1"]
    table = {"untraced": per_call_ns(run, load, wrap=False, cases=every)}
    with empty_pair(run.root):
        table["empty pair"] = per_call_ns(run, load, wrap=False, cases=read)
    with daemon(run):
        table["traced"] = per_call_ns(run, load, wrap=True, cases=every)
        table["not joined"] = per_call_ns(run, load, wrap=False, cases=read)
        other = subprocess.run(
            [load, "read", str(REPEATS)], capture_output=True, text=True, check=True
        )
        table["other user"] = {"read_1": float(other.stdout)}
    table |= {tool: with_tool(tool, load) for tool in TOOLS}
    return table | {"full_speed": full_speed(run, load, seconds)}


def show(table: dict[str, dict[str, float]]) -> None:
    """The table as text: ns per call and the ratio to the untraced run; then full speed."""
    base = table["untraced"]
    pair = table["empty pair"]["read_1"] - base["read_1"]
    print(f"{'ns per call':<12}" + "".join(f"{case:>20}" for case in CASES) + "   added / pair")
    for name, times in table.items():
        if name == "full_speed" or not times:
            continue
        cells = [f"{times[c]:.0f} ({times[c] / base[c]:.3f})" if c in times else "" for c in CASES]
        added = (times["read_1"] - base["read_1"]) / pair
        print(f"{name:<12}" + "".join(f"{cell:>20}" for cell in cells) + f"{added:15.2f}")
    for key, value in table["full_speed"].items():
        print(f"{key:<26}{value:>16,.1f}")


def main() -> None:
    """Parse options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--long", action="store_true", help="30 s at full speed, not 10 s")
    options = parser.parse_args()
    with bench_user() as user, site_for(user) as run:
        table = measure(run, 30.0 if options.long else 10.0)
    if options.json:
        print(json.dumps(table, indent=2))
    else:
        show(table)


if __name__ == "__main__":
    main()
