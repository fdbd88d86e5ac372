"""In a guest, as root: ``guest_kernel.py LOAD EMPTY_OBJECT MECHANISM...``; prints JSON.

What a read() of one byte costs, untraced, with empty programs of each kind, and traced; what it
takes to attach them, and what they miss; and how long it takes to attach and detach 2,000
functions, next to the bare system call.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from kernel.tracing import LIBRARY, RUN_ID, TracedRun, site_for, wait_until

from datacrumbs.probes import model
from datacrumbs.tracer import kernel_functions as kf
from datacrumbs.tracer import libbpf

DAEMON = Path(__file__).parents[1] / "vm/daemon.py"
FUNCTIONS, ROUNDS, READS, BUSY = 2000, 3, "7", 6


def reads_ns(run: TracedRun, load: str, *, joined: bool) -> float:
    """ns of a one-byte read(), by the load's own clock."""
    env = {"LD_PRELOAD": str(LIBRARY)} if joined else {}
    return float(run.run(load, "read", READS, wrap=False, env=env))


def empty(run: TracedRun, load: str, path: str, *, session: bool) -> dict[str, dict[str, float]]:
    """Programs that do nothing, on the system calls' tracepoints and on vfs_read().

    By kind: ``ns`` per call; of the first function, ``ms`` to attach and detach; ``missed``, how
    many runs more busy processes than CPUs were spared.
    """
    bpf = libbpf.Object(Path(path), log=print)
    if session:
        bpf.set_expected_attach_type("session", libbpf.KPROBE_SESSION)
    else:
        bpf.leave_out("session")
    bpf.load()
    found: dict[str, dict[str, float]] = {}
    for kind in ("tp_btf", "kprobe", "fentry", *(("session",) if session else ())):
        attach_times, detach_times, ns = [], [], []
        for _ in range(ROUNDS):
            attach_times.append(_timed(_attach_empty, bpf, kind)[0])
            ns.append(reads_ns(run, load, joined=False))
            detach_times.append(_timed(bpf.detach)[0])
        _attach_empty(bpf, kind)
        before = bpf.missed()
        busy = [run.start(load, "speed", "2", wrap=False) for _ in range(BUSY)]
        assert not any(process.wait() for process in busy)
        missed = bpf.missed() - before
        bpf.detach()
        found[kind] = {
            "ns": min(ns),
            "attach ms": min(attach_times),
            "detach ms": min(detach_times),
            "missed": missed,
        }
    return found


def _attach_empty(bpf: libbpf.Object, kind: str) -> None:
    if kind == "session":
        error = bpf.attach_kprobes(kind, ["vfs_read"], [0], kind=libbpf.KPROBE_SESSION, flags=0)
        assert not error, os.strerror(error)
        return
    for end in ("leave", "enter"):
        bpf.attach(f"{kind}_{end}")


def traced_ns(run: TracedRun, load: str, mechanism: str) -> dict[str, float]:
    """With the daemon tracing vfs_read() by that mechanism: a joined process, and another."""
    functions = [model.KernelFunction(name="vfs_read")]
    run.sign(model.KernelLayer(name="kernel", functions=functions))
    with _daemon(run, mechanism):
        return {
            mechanism: reads_ns(run, load, joined=True),
            f"{mechanism}, not joined": reads_ns(run, load, joined=False),
        }


@contextlib.contextmanager
def _daemon(run: TracedRun, mechanism: str, **variables: str) -> Iterator[None]:
    """The daemon for what was signed last; it leaves no trace."""
    command = [sys.executable, "-P", DAEMON, mechanism, run.root / "probes.json.gz", RUN_ID]
    command += ["--config", run.root / "system.yaml"]
    ready = run.root / f"run/datacrumbs-{RUN_ID}.ready"
    with subprocess.Popen(command, env=os.environ | variables) as daemon:
        wait_until(ready.exists, "ready", timeout_s=60)
        yield
        daemon.terminate()
    shutil.rmtree(run.root / "traces" / RUN_ID)


def calls_ns(run: TracedRun, load: str) -> dict[str, float]:
    """With the daemon tracing read(), or another call, by each of the ways to see calls."""
    times: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for way, points in (("tp_btf", "safe"), ("kprobe.session", "preempted")):
            run.sign(model.SyscallLayer(name="syscall", functions=["read"]))
            with _daemon(run, kf.Mechanism.SESSION, SYSTEM_CALLS=points):
                for name, joined in (("traced", True), ("not traced", False)):
                    took = reads_ns(run, load, joined=joined)
                    times.setdefault(f"read() by {way}, {name}", []).append(took)
            run.sign(model.SyscallLayer(name="syscall", functions=["pwrite64"]))
            with _daemon(run, kf.Mechanism.SESSION, SYSTEM_CALLS=points):
                took = reads_ns(run, load, joined=True)
                times.setdefault(f"pwrite() by {way}, read()", []).append(took)
    return {name: min(took) for name, took in times.items()}


def names() -> list[str]:
    """Functions with a name of their own, evenly spread over the kernel."""
    lines = Path("/sys/kernel/tracing/available_filter_functions").read_text().splitlines()
    counts = Counter(line.split(maxsplit=1)[0] for line in lines)
    every = [name for name, count in counts.items() if count == 1 and "." not in name]
    return every[:: len(every) // FUNCTIONS][:FUNCTIONS]


def attach_ms(mechanism: kf.Mechanism) -> dict[str, float]:
    """Attaching and detaching many functions, by us and by the bare system call: the best of
    some rounds, because what else goes on only ever adds."""
    bpf = libbpf.Object(libbpf.OBJECT_PATH, log=print)
    bpf.only("kernel_session")
    bpf.set_expected_attach_type("kernel_session", libbpf.KPROBE_SESSION)
    bpf.load()
    chosen = names()
    reasons = kf.why_not(chosen)
    functions = [(at + 1, name) for at, name in enumerate(chosen) if name not in reasons]
    times: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        took, fd = _timed(_bare, bpf, functions)
        times.setdefault("attach, bare", []).append(took)
        times.setdefault("detach, bare", []).append(_timed(os.close, fd)[0])
        took, failed = _timed(_ours, bpf, functions, mechanism)
        assert not failed and len(bpf._fds) == 1, failed
        times.setdefault("attach", []).append(took)
        times.setdefault("detach", []).append(_timed(bpf.detach)[0])
    found = {key: min(values) for key, values in times.items()}
    return {"functions": float(len(functions)), **found}


def _bare(bpf: libbpf.Object, functions: list[tuple[int, str]]) -> int:
    program = int(bpf._c.bpf_program__fd(bpf.program("kernel_session")))
    every, cookies = [name for _, name in functions], [func for func, _ in functions]
    return libbpf.kprobe_link(bpf._c, program, every, cookies, kind=libbpf.KPROBE_SESSION, flags=0)


def _ours(bpf: libbpf.Object, functions: list[tuple[int, str]], kind: kf.Mechanism) -> list[Any]:
    return list(kf._attach_functions(bpf, functions, kind))


def _timed(action: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    start = time.monotonic()
    result = action(*arguments)
    return (time.monotonic() - start) * 1e3, result


def main() -> None:
    """Measure all and print it."""
    load, object_path, *mechanisms = sys.argv[1:]
    with site_for(pwd.getpwnam("nobody")) as run:
        calls = {"untraced": reads_ns(run, load, joined=False)}
        empties = empty(run, load, object_path, session=kf.Mechanism.SESSION in mechanisms)
        calls |= {f"empty {kind}": found.pop("ns") for kind, found in empties.items()}
        for mechanism in mechanisms:
            calls |= traced_ns(run, load, mechanism)
        if kf.Mechanism.SESSION in mechanisms:
            calls |= calls_ns(run, load)
    session = kf.Mechanism.SESSION
    attached = attach_ms(session) if session in mechanisms else {}
    print("JSON" + json.dumps({"ns": calls, "ms": attached, "empty": empties}))


if __name__ == "__main__":
    main()
