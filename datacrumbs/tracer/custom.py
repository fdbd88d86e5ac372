"""Custom probes: a user's own BPF C, compiled by BCC in a process of its own.

The compiler is a million lines that read what a user wrote, and it crashes on some of it. So it
runs in a child (`datacrumbs.tracer.custom_host`) with a deadline, which can read nothing but
system directories and hands back descriptors: a ring of events, a counter of lost ones, and
what is attached. These end with the daemon as all others do. The child ends at once, and so
does the memory that the compiler took.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datacrumbs.errors import UserError
from datacrumbs.printable import printable
from datacrumbs.probes.kernel import has_tracefs
from datacrumbs.probes.model import CustomLayer
from datacrumbs.trace.schema import Op
from datacrumbs.tracer.plan import Plan

HEADER = Path(__file__).with_name("custom.h")
RING_BYTES = 4 << 20
DEADLINE_S = 12.0
"""For all custom layers of a run together: the unit has 20 s to start."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(slots=True)
class Custom:
    """What runs of a layer. ``fds``: everything that is attached."""

    ring_fd: int
    lost_fd: int
    fds: list[int]

    def detach(self) -> None:
        """End what is attached; the ring keeps what it has."""
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()

    def lost(self) -> memoryview:
        """The counter of events that found no room, as one 64-bit number."""
        view = memoryview(mmap.mmap(self.lost_fd, mmap.PAGESIZE, prot=mmap.PROT_READ)).cast("Q")
        os.close(self.lost_fd)
        return view


def plan_custom(layer: CustomLayer, plan: Plan) -> dict[str, int]:
    """Number the names that the program may use in DC_FUNCTION()."""
    numbers = {}
    for name in layer.functions:
        if _NAME.fullmatch(name):
            numbers[name] = plan.add(layer, name, "custom", Op.OTHER)
        else:
            plan.skipped.append((layer.name, name, "is no name in C"))
    return numbers


def attach_custom(
    layers: list[tuple[CustomLayer, dict[str, int]]],
    plan: Plan,
    *,
    allowed: bool,
    log: Callable[[str], None],
) -> list[Custom]:
    """Compile and attach each layer; the plan says which run, and why the others do not."""
    attached = []
    deadline = time.monotonic() + DEADLINE_S
    for layer, numbers in layers:
        count = 0
        try:
            if not allowed:
                raise UserError("policy.custom in this host's system.yaml does not allow it")
            attached.append(_compile(layer, numbers, plan.probes.uid, deadline, log))
            count = len(numbers)
        except UserError as error:
            plan.skipped.append((layer.name, "all", error.message))
        plan.mechanisms.append((layer.name, "custom", "bcc", count))
    return attached


def _source(layer: CustomLayer, numbers: dict[str, int], uid: int) -> str:
    namespace = os.stat("/proc/self/ns/pid")  # noqa: PTH116 (it is no file to speak of)
    known = {
        "DC_UID": uid,
        "DC_NS_DEV": namespace.st_dev,
        "DC_NS_INO": namespace.st_ino,
        "DC_RING_PAGES": RING_BYTES // mmap.PAGESIZE,
    } | {f"DC_FUNCTION_{name}": number for name, number in numbers.items()}
    lines = [f"#define {name} {value}" for name, value in known.items()]
    header = f'#line 1 "{HEADER.name}"\n{HEADER.read_text()}'
    return "\n".join([*lines, header, f'#line 1 "{layer.name}.c"', layer.source])


def _compile(
    layer: CustomLayer,
    numbers: dict[str, int],
    uid: int,
    deadline: float,
    log: Callable[[str], None],
) -> Custom:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-P", "-m", "datacrumbs.tracer.custom_host"]
        process = subprocess.Popen(
            [*command, str(theirs.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
        )
        request = json.dumps({"text": _source(layer, numbers, uid)}).encode()
        try:
            _, said = process.communicate(request, max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise UserError(f"was not compiled within {DEADLINE_S:.0f} s") from None
        theirs.close()
        answer, fds, _, _ = socket.recv_fds(ours, 4096, 253)
    lines = [
        printable(line.expandtabs())
        for line in said.decode(errors="replace").splitlines()
        if line.strip()
    ]
    for line in lines[:20]:
        log(f"{layer.name}: {line}")
    if process.returncode == 0 and len(fds) > 2:
        return Custom(fds[0], fds[1], fds[2:])
    for fd in fds:
        os.close(fd)
    if fds:
        raise UserError("has no probe that BCC attaches by its name")
    why = _first_error(lines, tracefs=has_tracefs())
    raise UserError(answer.decode() or why or f"the compiler ended: {process.returncode}")


def _first_error(lines: list[str], *, tracefs: bool) -> str:
    """What the compiler says first, or BCC last; of a crash, neither is of use."""
    if not tracefs and any("struct tracepoint__" in line for line in lines):
        return "TRACEPOINT_PROBE() needs tracefs: mount -t tracefs tracefs /sys/kernel/tracing"
    if any("Assertion" in line for line in lines):
        return ""
    return next((line for line in lines if "error:" in line), lines[-1] if lines else "")
