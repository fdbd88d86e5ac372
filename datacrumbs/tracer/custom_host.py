"""The child that compiles one custom program: request on stdin, descriptors on a socket.

python -m datacrumbs.tracer.custom_host SOCKET-FD
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import socket
import sys
from pathlib import Path
from typing import Any

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # landlock system calls
_READ_FILE, _READ_DIR = 4, 8
_EVERYTHING = (1 << 13) - 1  # all that Linux 5.13 tells apart
_PATH_BENEATH = 1


class _Beneath(ctypes.Structure):
    """struct landlock_path_beneath_attr."""

    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def confine() -> str:
    """Give up all files but system directories, to read; returns why not, or "".

    Else ``#include`` would read root's files into error messages that the user sees.
    """
    libc: Any = ctypes.CDLL(None, use_errno=True)
    handled = ctypes.c_uint64(_EVERYTHING)
    ruleset = libc.syscall(_CREATE_RULESET, ctypes.byref(handled), 8, 0)
    if ruleset < 0:
        return f"needs Landlock, which this kernel has not: {os.strerror(ctypes.get_errno())}"
    for path in (*_directories(), "/proc/version", "/proc/kallsyms"):
        if not Path(path).exists():
            continue
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        access = _READ_FILE | (_READ_DIR if Path(path).is_dir() else 0)
        rule = _Beneath(access, fd)
        if libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0):
            return f"Landlock: {path}: {os.strerror(ctypes.get_errno())}"
        os.close(fd)
    no_new_privileges = 38
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.syscall(_RESTRICT_SELF, ruleset, 0):
        return f"Landlock: {os.strerror(ctypes.get_errno())}"
    return ""


def _directories() -> list[str]:
    build = Path("/lib/modules", platform.release(), "build")
    given = os.environ.get("BCC_KERNEL_SOURCE")
    return ["/usr", "/lib", "/lib64", "/sys", str(build.resolve()), *([given] if given else [])]


def attached_fds(bpf: Any) -> list[int]:
    """Descriptors of what BCC attached by the names of the functions."""
    tables = (
        *("kprobe_fds", "uprobe_fds", "tracepoint_fds", "raw_tracepoint_fds"),
        *("kfunc_entry_fds", "kfunc_exit_fds", "lsm_fds"),
    )
    return [fd for table in tables for fd in _flat(getattr(bpf, table, {}))]


def _flat(table: dict[Any, Any]) -> list[int]:
    found = []
    for value in table.values():
        found += _flat(value) if isinstance(value, dict) else [int(value)]
    return found


def main() -> None:
    """Compile, attach, send; what the compiler says goes to stderr."""
    answer = socket.socket(fileno=int(sys.argv[1]))
    request = json.load(sys.stdin)
    try:
        from bcc import BPF
    except ImportError:
        answer.send(b"needs BCC: install python3-bpfcc")
        os._exit(1)
    if problem := confine():
        answer.send(problem.encode())
        os._exit(1)
    try:
        bpf = BPF(text=request["text"])
    except Exception as error:  # its own classes of exceptions say no more than this
        sys.stderr.write(f"{error}\n")
        sys.stderr.flush()
        os._exit(1)
    fds = [bpf["dc_ring"].map_fd, bpf["dc_lost"].map_fd, *attached_fds(bpf)]
    socket.send_fds(answer, [b"\0"], fds[:253])
    os._exit(0)  # BCC's own end would detach


if __name__ == "__main__":
    main()
