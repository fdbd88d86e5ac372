"""What io_uring carries out: its operations, as functions beside the system calls.

They come with the system call that submits them: a layer with ``io_uring_enter`` has them. Each
is a function ``io_uring:<operation>``; what it does is what the system call of that name does.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from datacrumbs.probes.btf import kernel_types
from datacrumbs.probes.model import SyscallLayer
from datacrumbs.probes.syscalls import NO_ROLES, ROLES, Roles
from datacrumbs.tracer import layout
from datacrumbs.tracer.libbpf import Object
from datacrumbs.tracer.plan import Function, Plan

ENTRY = "io_uring_enter"
KIND = "io_uring"
SUBMITTED, SUBMITTED_BEFORE = "io_uring_submit_req", "io_uring_submit_sqe"  # Linux 6.5
REQUEST = "io_kiocb"
PROGRAMS = ("uring_submit", "uring_complete", "uring_complete_parts")

OPCODES = (
    *("nop", "readv", "writev", "fsync", "read_fixed", "write_fixed", "poll_add", "poll_remove"),
    *("sync_file_range", "sendmsg", "recvmsg", "timeout", "timeout_remove", "accept"),
    *("async_cancel", "link_timeout", "connect", "fallocate", "openat", "close", "files_update"),
    *("statx", "read", "write", "fadvise", "madvise", "send", "recv", "openat2", "epoll_ctl"),
    *("splice", "provide_buffers", "remove_buffers", "tee", "shutdown", "renameat", "unlinkat"),
    *("mkdirat", "symlinkat", "linkat", "msg_ring", "fsetxattr", "setxattr", "fgetxattr"),
    *("getxattr", "socket", "uring_cmd", "send_zc", "sendmsg_zc", "read_multishot", "waitid"),
    *("futex_wait", "futex_wake", "futex_waitv", "fixed_fd_install", "ftruncate", "bind", "listen"),
    *("recv_zc", "epoll_wait", "readv_fixed", "writev_fixed", "pipe"),
)
"""By number: ``enum io_uring_op`` of linux/io_uring.h, whose values do not change."""

SYSCALLS = {
    "read_fixed": "read",
    "read_multishot": "read",
    "write_fixed": "write",
    "readv_fixed": "readv",
    "writev_fixed": "writev",
    "fadvise": "fadvise64",
    "send": "sendto",
    "send_zc": "sendto",
    "sendmsg_zc": "sendmsg",
    "recv": "recvfrom",
    "recv_zc": "recvfrom",
    "uring_cmd": "ioctl",
}
"""The system calls that do what operations of other names do."""

_OWN_DESCRIPTOR = {"close", "epoll_ctl"}
"""These keep their descriptor where no other operation has it."""


def operations() -> Iterator[tuple[int, str, Roles]]:
    """Opcode, name and roles of all operations that name a file or move bytes."""
    for opcode, name in enumerate(OPCODES):
        roles = ROLES.get(SYSCALLS.get(name, name), NO_ROLES)
        if roles is not NO_ROLES:
            yield opcode, name, roles


def plan_operations(layer: SyscallLayer, plan: Plan) -> None:
    """Number the operations and tell the BPF programs what to do about each."""
    for opcode, name, roles in operations():
        operation = plan.config.operations[opcode]
        operation.func = plan.add(layer, f"io_uring:{name}", KIND, roles.op)
        operation.bits = (
            (roles.fd >= 0 and name not in _OWN_DESCRIPTOR) * layout.URING_FILE
            | (name.startswith(("read", "write"))) * layout.URING_TRANSFER
            | (name.startswith(("readv", "writev"))) * layout.URING_VECTOR
            | (roles.returns_fd and roles.dirfd >= 0) * layout.URING_OPENS
        )


def _planned(plan: Plan) -> list[Function]:
    return [function for function in plan.functions if function.kind == KIND]


def prepare(bpf: Object, plan: Plan) -> None:
    """Before load: no programs for operations that nobody asked for."""
    if not _planned(plan):
        bpf.leave_out(*PROGRAMS)


def attach_operations(bpf: Object, plan: Plan) -> int:
    """Attach to submission and completion; 0 or an errno, which the plan then tells.

    ENOENT: this kernel has no such tracepoints.
    """
    planned = _planned(plan)
    if not planned:
        return 0
    layer = planned[0].layer  # the one that has the system call
    error = _attach_completion(bpf) or _attach_submission(bpf)
    if error:
        reason = f"tracepoints of io_uring: {os.strerror(error)}"
        plan.skipped.append((layer, "io_uring:*", reason))
    else:
        plan.mechanisms.append((layer, KIND, "raw_tp", len(planned)))
    return error


def _attach_completion(bpf: Object) -> int:
    # a later kernel hands over fewer arguments than the first program looks at, and refuses it
    if not bpf.attach_point("uring_complete_parts", "io_uring_complete"):
        return 0
    return bpf.attach_point("uring_complete", "io_uring_complete")


def _attach_submission(bpf: Object) -> int:
    error = bpf.attach_point("uring_submit", SUBMITTED)
    if error != errno.ENOENT:
        return error
    found = kernel_types().tracepoint(SUBMITTED_BEFORE)
    first = found[0].parameters[0][1].to if found else None
    if first is None or first.name != REQUEST:
        return errno.ENOENT
    return bpf.attach_point("uring_submit", SUBMITTED_BEFORE)
