"""System calls: one pair of programs for all, told what to do with each by its number.

They are on the kernel's two tracepoints of system calls. Where programs there can be preempted,
calls of other threads on that CPU pass them by unseen meanwhile; if the kernel has
``kprobe.session``, whose programs cannot, one on the functions of the system calls takes over.
"""

from __future__ import annotations

import functools
import os
import platform

from datacrumbs.probes.model import SyscallLayer
from datacrumbs.probes.syscalls import NO_ROLES, ROLES, Roles, available, entry_points
from datacrumbs.tracer import io_uring, layout, libbpf
from datacrumbs.tracer.kernel_functions import TRIAL_FUNCTION, Mechanism, traceable
from datacrumbs.tracer.libbpf import KPROBE_SESSION, Object
from datacrumbs.tracer.plan import Plan, select_bits

TRACEPOINT, SYSCALL = "tp_btf", "syscall"


def _fill_call(call: layout.Call, func: int, roles: Roles, select: int, *, lean: bool) -> None:
    call.func, call.select = func, select
    call.bits = (
        roles.uses_pos * layout.USES_POS
        | roles.returns_fd * layout.RETURNS_FD
        | roles.changes_dir * layout.CHANGES_DIR
        | lean * layout.LEAN
    )
    for name, *_ in layout.Call._fields_[3:]:
        setattr(call, name, getattr(roles, name))


@functools.cache
def functions_to_probe() -> dict[str, str]:
    """The kernel's functions that are to be probed for system calls, by the calls' names.

    None where the tracepoints see every call, or where nothing would be better.
    """
    if not libbpf.syscall_points_preempted():
        return {}
    if libbpf.try_kprobe_link(TRIAL_FUNCTION, kind=KPROBE_SESSION):
        return {}
    return entry_points(traceable() or (), platform.machine())


def plan_syscalls(layer: SyscallLayer, plan: Plan) -> None:
    """Number the layer's system calls and fill in what the programs do about each."""
    numbers, functions = available(platform.machine()), functions_to_probe()
    for name in layer.functions:
        number = numbers.get(name)
        if number is None or number >= layout.SYSCALLS:
            plan.skipped.append((layer.name, name, "this kernel has no such system call"))
        elif plan.config.calls[number].func:
            plan.skipped.append((layer.name, name, "already traced by an earlier layer"))
        else:
            roles = ROLES.get(name, NO_ROLES)
            func = plan.add(layer, name, SYSCALL, roles.op)
            call, select = plan.config.calls[number], select_bits(layer.select)
            _fill_call(call, func, roles, select, lean=plan.lean(layer))
            if name in functions:
                call.bits |= layout.PROBED
                plan.entries[number] = functions[name]
            if name == io_uring.ENTRY:
                io_uring.plan_operations(layer, plan)


def leave_out(bpf: Object, plan: Plan) -> None:
    """Before load: only what the plan needs, with the right attach types."""
    if plan.entries:
        bpf.set_expected_attach_type("call_session", KPROBE_SESSION)
    else:
        bpf.leave_out("call_session")
    if not _at_points(plan):
        bpf.leave_out("sys_enter", "sys_exit")


def attach_syscalls(bpf: Object, plan: Plan) -> None:
    """Attach what the plan has of system calls; it then says on what each layer's ended up."""
    if _at_points(plan):
        bpf.attach("sys_exit")
        bpf.attach("sys_enter")
    error = 0
    if plan.entries:
        error = bpf.attach_kprobes(
            "call_session",
            list(plan.entries.values()),
            list(plan.entries),
            kind=KPROBE_SESSION,
            flags=0,
        )
    for layer in plan.probes.layers:
        if isinstance(layer, SyscallLayer):
            _tell(layer, plan, error)


def _at_points(plan: Plan) -> bool:
    return any(call.func and not call.bits & layout.PROBED for call in plan.config.calls)


def _tell(layer: SyscallLayer, plan: Plan, error: int) -> None:
    """Add the layer to the plan's mechanisms; ``error``: why its functions have no probes."""
    bits = {call.func: call.bits for call in plan.config.calls if call.func}
    ours = [one for one in plan.functions if one.layer == layer.name and one.kind == SYSCALL]
    probed = [function for function in ours if bits[function.func] & layout.PROBED]
    if probed and error:
        plan.skipped += [(layer.name, one.name, os.strerror(error)) for one in probed]
    elif probed:
        plan.mechanisms.append((layer.name, "syscalls", str(Mechanism.SESSION), len(probed)))
    if len(ours) > len(probed) or not ours:
        plan.mechanisms.append((layer.name, "syscalls", TRACEPOINT, len(ours) - len(probed)))
