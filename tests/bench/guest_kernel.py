"""In a guest, as root: ``guest_kernel.py LOAD EMPTY_OBJECT MECHANISM...``; prints JSON.

What a read() of one byte costs, untraced, with empty programs on vfs_read(), and traced; and how
long it takes to attach and detach 2,000 functions, next to the bare system call.
"""

from __future__ import annotations

import ctypes
import json
import os
import pwd
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from kernel.tracing import LIBRARY, RUN_ID, TracedRun, site_for, wait_until

from datacrumbs.probes import model
from datacrumbs.tracer import kernel_functions as kf
from datacrumbs.tracer import layout, libbpf

DAEMON = Path(__file__).parents[1] / "vm/daemon.py"
FUNCTIONS, ROUNDS, READS = 2000, 5, "7"


def reads_ns(run: TracedRun, load: str, *, joined: bool) -> float:
    """ns of a one-byte read(), by the load's own clock."""
    env = {"LD_PRELOAD": str(LIBRARY)} if joined else {}
    return float(run.run(load, "read", READS, wrap=False, env=env))


def empty_ns(run: TracedRun, load: str, path: str) -> dict[str, float]:
    """With programs that do nothing on the function, for each kind that attaches."""
    library: Any = ctypes.CDLL("libbpf.so.1")
    for name in ("bpf_object__open_file", "bpf_object__find_program_by_name"):
        getattr(library, name).restype = ctypes.c_void_p
    library.bpf_program__attach.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(library.bpf_object__open_file(path.encode(), None))
    if library.bpf_object__load(handle):
        return {}
    found = {}
    for kind in ("kprobe", "fentry"):
        links = []
        for end in ("leave", "enter"):
            name = f"{kind}_{end}".encode()
            program = library.bpf_object__find_program_by_name(handle, name)
            links.append(library.bpf_program__attach(ctypes.c_void_p(program)))
        if all(links):
            found[f"empty {kind} pair"] = reads_ns(run, load, joined=False)
        for link in filter(None, links):
            library.bpf_link__destroy(ctypes.c_void_p(link))
    return found


def traced_ns(run: TracedRun, load: str, mechanism: str) -> dict[str, float]:
    """With the daemon tracing vfs_read() by that mechanism: a joined process, and another."""
    functions = [model.KernelFunction(name="vfs_read")]
    probes = run.sign(model.KernelLayer(name="kernel", functions=functions))
    command = [sys.executable, "-P", DAEMON, mechanism, probes, RUN_ID]
    ready = run.root / f"run/datacrumbs-{RUN_ID}.ready"
    with subprocess.Popen([*command, "--config", run.root / "system.yaml"]) as daemon:
        wait_until(ready.exists, "ready", timeout_s=60)
        found = {
            mechanism: reads_ns(run, load, joined=True),
            f"{mechanism}, not joined": reads_ns(run, load, joined=False),
        }
        daemon.terminate()
    return found


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
    bpf.set_expected_attach_type("kernel_session", kf.KPROBE_SESSION)
    bpf.memory(".rodata.config", layout.Config).cpus_per_ring = 64
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
    return libbpf.kprobe_link(bpf._c, program, every, cookies, kind=kf.KPROBE_SESSION, flags=0)


def _ours(bpf: libbpf.Object, functions: list[tuple[int, str]], kind: kf.Mechanism) -> list[Any]:
    return list(kf._attach_functions(bpf, functions, kind))


def _timed(action: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    start = time.monotonic()
    result = action(*arguments)
    return (time.monotonic() - start) * 1e3, result


def main() -> None:
    """Measure all and print it."""
    load, empty, *mechanisms = sys.argv[1:]
    with site_for(pwd.getpwnam("nobody")) as run:
        calls = {"untraced": reads_ns(run, load, joined=False)}
        calls |= empty_ns(run, load, empty)
        for mechanism in mechanisms:
            calls |= traced_ns(run, load, mechanism)
            (run.root / "traces" / RUN_ID).rename(run.root / f"traces/{mechanism}")
    session = kf.Mechanism.SESSION
    attached = attach_ms(session) if session in mechanisms else {}
    print("JSON" + json.dumps({"ns": calls, "ms": attached}))


if __name__ == "__main__":
    main()
