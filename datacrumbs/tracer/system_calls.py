"""System calls: one pair of programs for all, told what to do with each by its number."""

from __future__ import annotations

import platform

from datacrumbs.probes.model import SyscallLayer
from datacrumbs.probes.syscalls import NO_ROLES, ROLES, Roles, available
from datacrumbs.tracer import io_uring, layout
from datacrumbs.tracer.libbpf import Object
from datacrumbs.tracer.plan import Plan, select_bits


def _fill_call(call: layout.Call, func: int, roles: Roles, select: int, *, lean: bool) -> None:
    call.func, call.select = func, select
    call.bits = (
        roles.uses_pos * layout.USES_POS | roles.returns_fd * layout.RETURNS_FD | lean * layout.LEAN
    )
    for name, *_ in layout.Call._fields_[3:]:
        setattr(call, name, getattr(roles, name))


def plan_syscalls(layer: SyscallLayer, plan: Plan) -> None:
    """Number the layer's system calls and fill in what the programs do about each."""
    numbers = available(platform.machine())
    count = 0
    for name in layer.functions:
        number = numbers.get(name)
        if number is None or number >= layout.SYSCALLS:
            plan.skipped.append((layer.name, name, "this kernel has no such system call"))
        elif plan.config.calls[number].func:
            plan.skipped.append((layer.name, name, "already traced by an earlier layer"))
        else:
            roles = ROLES.get(name, NO_ROLES)
            func = plan.add(layer, name, "syscall", roles.op)
            call, select = plan.config.calls[number], select_bits(layer.select)
            _fill_call(call, func, roles, select, lean=plan.lean(layer))
            count += 1
            if name == io_uring.ENTRY:
                io_uring.plan_operations(layer, plan)
    plan.mechanisms.append((layer.name, "syscalls", "tp_btf", count))


def attach_syscalls(bpf: Object, plan: Plan) -> None:
    """Attach the pair, if the plan has system calls."""
    if any(function.kind == "syscall" for function in plan.functions):
        bpf.attach("sys_exit")
        bpf.attach("sys_enter")
