"""What the benchmarks share: a user, a daemon under measurement, the cheapest possible tracer."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernel.tracing import BIN, READY_S, RUN_ID, TracedRun

from datacrumbs.probes.elf import find_binary, read_functions
from datacrumbs.probes.elf_identity import elf_identity
from datacrumbs.probes.model import UserLayer

HERE = Path(__file__).parent


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
    """A daemon under measurement; ``stop_ms`` and ``cpu_s`` are known when it has stopped."""

    pid: int
    recorder: int
    start_ms: float
    stop_ms: float = 0.0
    cpu_s: float = 0.0

    def memory_bytes(self) -> int:
        """Resident memory of both halves beyond the rings; what they share counts once."""
        private = _resident(self.pid, ("Private_Clean", "Private_Dirty"))
        return _resident(self.recorder, ("Rss",)) + private


def _resident(pid: int, fields: tuple[str, ...]) -> int:
    total, ring = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
            ring = "bpf-map" in line
        elif name in fields and not ring:
            total += int(value.split()[0]) * 1024
    return total


@contextlib.contextmanager
def daemon(run: TracedRun) -> Iterator[Daemon]:
    """Tracing while inside; the measurements are whole afterwards."""
    shutil.rmtree(run.root / "traces" / RUN_ID, ignore_errors=True)
    ready, log = run.root / f"run/datacrumbs-{RUN_ID}.ready", run.root / "daemon.log"
    command = [BIN / "datacrumbs", run.root / "probes.json.gz", RUN_ID]
    start = time.monotonic()
    with log.open("wb") as errors:
        process = subprocess.Popen([*command, "--config", run.root / "system.yaml"], stderr=errors)
    measured = Daemon(process.pid, 0, 0.0)
    try:
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > start + READY_S:
                sys.exit(log.read_text())
            time.sleep(0.002)
        measured.start_ms = (time.monotonic() - start) * 1e3
        measured.recorder = int(ready.read_text())
        time.sleep(1.0)  # the recorder loads its libraries
        yield measured
    finally:
        if process.returncode is None:
            stop = time.monotonic()
            process.send_signal(signal.SIGTERM)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            measured.stop_ms = (time.monotonic() - stop) * 1e3
            measured.cpu_s = usage.ru_utime + usage.ru_stime
    if process.returncode:
        sys.exit(log.read_text())


def full_speed(
    run: TracedRun, load: Path, seconds: float, *, processes: int = 2, wrap: bool = True
) -> int:
    """Processes that do nothing but 1-byte reads for so long; how many reads they made."""
    settings: dict[str, Any] = {"stdout": subprocess.PIPE, "wrap": wrap}
    every = [run.start(load, "speed", str(seconds), **settings) for _ in range(processes)]
    made = [process.communicate()[0] for process in every]
    if any(process.returncode for process in every):
        sys.exit("the load failed")
    return sum(map(int, made))


def counts_and_size(run: TracedRun) -> tuple[dict[str, int], int]:
    """The counts of the stopped run, and the bytes its trace has on disk."""
    (host,) = (run.root / "traces" / RUN_ID).glob("host=*")
    counts: dict[str, int] = json.loads((host / "run.json").read_text())["counts"]
    return counts, sum(path.stat().st_size for path in host.iterdir())


def libc_layer(functions: int) -> UserLayer:
    """So many functions of the C library, those that have to do with files first."""
    machine = platform.machine()
    path = find_binary("libc.so.6", machine)
    found = read_functions(path, re.compile("f.*|open.*|read.*|write.*|p.*"), machine).functions
    fd = os.open(path, os.O_RDONLY)
    build_id, digest = elf_identity(fd)
    os.close(fd)
    return UserLayer(
        name="libc",
        binary=str(path),
        functions=list(found)[:functions],
        build_id=build_id,
        digest=digest,
    )


@contextlib.contextmanager
def empty_pair(work: Path, *, clock: bool = False) -> Iterator[None]:
    """An empty program attached to the entry and one to the exit of every system call.

    With ``clock`` each reads the clock, and does nothing with it.
    """
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
        for name in (b"clock_enter", b"clock_leave") if clock else (b"enter", b"leave"):
            program = ctypes.c_void_p(libbpf.bpf_object__find_program_by_name(handle, name))
            links.append(ctypes.c_void_p(libbpf.bpf_program__attach(program)))
        yield
    finally:
        for link in links:
            libbpf.bpf_link__destroy(link)
        libbpf.bpf_object__close(handle)
