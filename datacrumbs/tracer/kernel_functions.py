"""Functions of the kernel: the cheapest kind of probe that this kernel has, tried for real.

``kprobe.session`` (one link for all, entry and return in one program), ``kprobe.multi`` (one
link for all entries, one for all returns), ``kprobe`` (two perf events for each function), and
where there is none of these the tracepoints of `datacrumbs.tracer.points`.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from datacrumbs.probes.btf import KernelTypes, kernel_types
from datacrumbs.probes.model import ArgumentType, KernelFunction, KernelLayer
from datacrumbs.tracer import layout, points
from datacrumbs.tracer.kernel_roles import NO_ROLES, op_of, roles_of, tell_nfs
from datacrumbs.tracer.libbpf import (
    KPROBE_MULTI,
    KPROBE_SESSION,
    Object,
    try_kprobe,
    try_kprobe_link,
)
from datacrumbs.tracer.plan import Plan

RETURN_FLAG = 1  # BPF_F_KPROBE_MULTI_RETURN
TRIAL_FUNCTION = "vfs_fsync_range"
"""Exported, called by other files of the kernel, and there since 2.6.29."""

KALLSYMS = Path("/proc/kallsyms")
TRACEABLE = (
    Path("/sys/kernel/tracing/available_filter_functions"),
    Path("/sys/kernel/debug/tracing/available_filter_functions"),
)
NUMBERS = (ArgumentType.INT, ArgumentType.UINT)
"""Arguments that may be kept: what a pointer of the kernel leads to is not for users."""

PROGRAMS = ("kernel_session", "kernel_enter", "kernel_leave")
Numbered = tuple[int, str]


class Mechanism(StrEnum):
    """What kernel functions are probed with; `NONE`: this kernel has only tracepoints."""

    SESSION = "kprobe.session"
    MULTI = "kprobe.multi"
    KPROBE = "kprobe"
    NONE = "tracepoint"


_USED = {
    Mechanism.SESSION: ("kernel_session",),
    Mechanism.MULTI: ("kernel_enter", "kernel_leave"),
    Mechanism.KPROBE: ("kernel_enter", "kernel_leave"),
    Mechanism.NONE: (),
}
_KINDS = {Mechanism.SESSION: KPROBE_SESSION, Mechanism.MULTI: KPROBE_MULTI}


def works(mechanism: Mechanism) -> int:
    """Try a mechanism: probe a function with a program that does nothing. 0 or an errno."""
    if mechanism is Mechanism.KPROBE:
        return try_kprobe(TRIAL_FUNCTION)
    return try_kprobe_link(TRIAL_FUNCTION, kind=_KINDS[mechanism])


def mechanism() -> Mechanism:
    """The first, which is the cheapest, that works on this kernel."""
    tried = (Mechanism.SESSION, Mechanism.MULTI, Mechanism.KPROBE)
    return next((kind for kind in tried if not works(kind)), Mechanism.NONE)


def _set_kind(bpf: Object, mechanism: Mechanism, programs: tuple[str, ...]) -> None:
    if mechanism in _KINDS:
        for name in programs:
            bpf.set_expected_attach_type(name, _KINDS[mechanism])


@dataclass(slots=True)
class KernelProbes:
    """The kernel functions and tracepoints of all layers."""

    mechanism: Mechanism = Mechanism.NONE
    layers: list[tuple[KernelLayer, list[Numbered], list[points.Used]]] = field(
        default_factory=list
    )
    dirt_event: str | None = None
    slots: int = 0
    taken: dict[str, str] = field(default_factory=dict)
    """Functions and tracepoints in use, and the name that uses each. Two numbers for one function
    would end in the order in which they began, which is no nesting."""

    def programs(self) -> set[str]:
        """The BPF programs that are needed; the others of this concern are not loaded."""
        if not self.layers:
            return set()
        functions = any(functions for _, functions, _ in self.layers)
        needed = set(_USED[self.mechanism]) if functions else set()
        needed |= {points.program(slot) for slot in range(self.slots)}
        return needed | ({"on_dirty"} if self.dirt_event else set())


def plan_kernel(layers: list[KernelLayer], plan: Plan) -> KernelProbes:
    """Number all functions of the layers and tell the BPF programs what each is about."""
    probes = KernelProbes()
    if not layers:
        return probes
    types = kernel_types()
    names = [function.name for layer in layers for function in layer.functions]
    if any(not points.is_point(name) for name in names):
        probes.mechanism = mechanism()
    for layer in layers:
        _plan_layer(layer, plan, probes, types)
    probes.dirt_event = points.dirt_event(types)
    if _asks_servers(probes, plan.config):
        tell_nfs(plan.config, types)
    return probes


def _asks_servers(probes: KernelProbes, config: layout.Config) -> bool:
    """Whether something is traced that is about requests to NFS servers."""
    about = [config.functions[func] for _, functions, _ in probes.layers for func, _ in functions]
    points_used = config.points[: probes.slots]
    about += [point.roles for point in points_used]
    answers = any(point.part == layout.Part.REPLY for point in points_used)
    kinds = {one.kind for one in about}
    return answers or not kinds.isdisjoint({layout.Subject.NFS_IO, layout.Subject.NFS_COMMIT})


def _plan_layer(layer: KernelLayer, plan: Plan, probes: KernelProbes, types: KernelTypes) -> None:
    functions: list[Numbered] = []
    used: list[points.Used] = []
    for function in layer.functions:
        name = function.name
        probed = probes.mechanism is not Mechanism.NONE and not points.is_point(name)
        found = None if probed else points.find(name, types)
        if reason := _refused(name, found, probes):
            plan.skipped.append((layer.name, name, reason))
        elif isinstance(found, points.Found):
            used.append(points.fill(layer, found, plan, probes.slots))
            probes.slots += len(found.events)
        else:
            functions.append((_plan_function(layer, function, plan, types), name))
    probes.layers.append((layer, functions, used))


def _refused(name: str, found: points.Found | str | None, probes: KernelProbes) -> str:
    """Why a function is not traced; empty if it is, and then what it needs is taken."""
    if isinstance(found, str):
        return found
    needs = [event for event, *_ in found.events] if found else [f"function {name}"]
    if other := next((probes.taken[need] for need in needs if need in probes.taken), ""):
        return "already traced" if other == name else f"already traced, as {other}"
    if found and probes.slots + len(needs) > points.SLOTS:
        return f"more than {points.SLOTS} tracepoints"
    probes.taken |= dict.fromkeys(needs, name)
    return ""


def _plan_function(
    layer: KernelLayer, function: KernelFunction, plan: Plan, types: KernelTypes
) -> int:
    found = types.function(function.name.split(".", 1)[0])
    prototype = found[0] if found else None
    # the compiler may have moved or dropped arguments of a clone (foo.isra.0, foo.constprop.0)
    reshaped = "." in function.name
    op = op_of(function.name, prototype)
    kept = [] if reshaped else [a for a in function.arguments if a.type in NUMBERS]
    func = plan.add(layer, function.name, "kernel", op, arguments=kept)
    roles = roles_of(*found) if found and not reshaped else NO_ROLES
    roles.fill(plan.config.functions[func])
    plan.config.functions[func].how |= layout.KEEPS if func in plan.arguments else 0
    if len(kept) < len(function.arguments):
        why = "the compiler may have moved them" if reshaped else "only numbers are kept"
        plan.skipped.append((layer.name, f"{function.name}: arguments", why))
    return func


def prepare_kernel(bpf: Object, plan: Plan) -> KernelProbes:
    """Plan the kernel layers of the probe list, and load nothing that they do not need."""
    probes = plan_kernel([x for x in plan.probes.layers if isinstance(x, KernelLayer)], plan)
    leave_out(bpf, probes)
    return probes


def leave_out(bpf: Object, probes: KernelProbes) -> None:
    """Before load: only what the plan needs, with the right attach types."""
    everything = {*PROGRAMS, "on_dirty", *(points.program(slot) for slot in range(points.SLOTS))}
    bpf.leave_out(*(everything - probes.programs()))
    if not probes.layers:
        bpf.without_maps("dirty", "devices")
    _set_kind(bpf, probes.mechanism, _USED[probes.mechanism])


def attach_kernel(bpf: Object, probes: KernelProbes, plan: Plan) -> None:
    """Attach what can be attached; the plan says what, how, and why the rest could not be."""
    if probes.dirt_event and (error := bpf.attach_point("on_dirty", probes.dirt_event)):
        plan.skipped.append(("kernel", probes.dirt_event, os.strerror(error)))
    # all at once: the more functions a link has, the more calls older kernels can follow
    every = [one for _, functions, _ in probes.layers for one in functions]
    reasons = dict(_attach_functions(bpf, every, probes.mechanism))
    for layer, functions, used in probes.layers:
        failed = [one for one in functions if one in reasons]
        plan.skipped += [(layer.name, name, reasons[func, name]) for func, name in failed]
        if functions:
            count = len(functions) - len(failed)
            plan.mechanisms.append((layer.name, "kprobe", str(probes.mechanism), count))
        if used:
            count = len(used) - points.attach(bpf, layer, used, plan)
            plan.mechanisms.append((layer.name, "kprobe", "tracepoint", count))
        if not functions and not used:
            plan.mechanisms.append((layer.name, "kprobe", "none", 0))


def _attach_functions(
    bpf: Object, functions: list[Numbered], kind: Mechanism
) -> Iterator[tuple[Numbered, str]]:
    """Attach; what failed and why. A whole batch first, then without those known to be at fault,
    then by halves."""
    if not functions:
        return
    if kind is Mechanism.KPROBE:
        yield from _attach_pairs(bpf, functions)
        return
    if not _attach_multi(bpf, functions, kind):
        return
    reasons = why_not([name for _, name in functions])
    yield from (((func, name), reasons[name]) for func, name in functions if name in reasons)
    yield from _bisect(bpf, [one for one in functions if one[1] not in reasons], kind)


def _bisect(
    bpf: Object, functions: list[Numbered], kind: Mechanism
) -> Iterator[tuple[Numbered, str]]:
    error = _attach_multi(bpf, functions, kind) if functions else 0
    if not error:
        return
    if len(functions) == 1:
        yield functions[0], os.strerror(error)
        return
    half = len(functions) // 2
    yield from _bisect(bpf, functions[:half], kind)
    yield from _bisect(bpf, functions[half:], kind)


def _attach_multi(bpf: Object, functions: list[Numbered], kind: Mechanism) -> int:
    names = [name for _, name in functions]
    cookies = [func for func, _ in functions]
    if kind is Mechanism.SESSION:
        return bpf.attach_kprobes("kernel_session", names, cookies, kind=KPROBE_SESSION, flags=0)
    mark = bpf.attached()
    # the return first: an entry without its return would leave a frame behind
    error = bpf.attach_kprobes("kernel_leave", names, cookies, kind=KPROBE_MULTI, flags=RETURN_FLAG)
    if error:
        return error
    error = bpf.attach_kprobes("kernel_enter", names, cookies, kind=KPROBE_MULTI, flags=0)
    if error:
        bpf.detach(mark)
    return error


def _attach_pairs(bpf: Object, functions: list[Numbered]) -> Iterator[tuple[Numbered, str]]:
    # of several functions with one name, kernels before 6.6 take the first that comes
    reasons = why_not([name for _, name in functions], ftrace=False)
    for func, name in functions:
        if name in reasons:
            yield (func, name), reasons[name]
            continue
        mark = bpf.attached()
        error = bpf.attach_kprobe("kernel_leave", name, cookie=func, retprobe=True)
        error = error or bpf.attach_kprobe("kernel_enter", name, cookie=func)
        if error:
            bpf.detach(mark)
            yield (func, name), os.strerror(error)


def why_not(names: list[str], *, ftrace: bool = True) -> dict[str, str]:
    """Of these functions, those that this kernel cannot probe by name, with the reason.

    ``ftrace``: the probes are ftrace's, which take fewer functions than kprobes do.
    """
    wanted = set(names)
    counts: Counter[str] = Counter()
    with open(KALLSYMS) as symbols:
        for line in symbols:
            name = line.split(maxsplit=3)[2]
            if name in wanted:
                counts[name] += 1
    known = traceable() if ftrace else None
    reasons = {}
    for name in wanted:
        if not counts[name]:
            reasons[name] = "this kernel has no such function"
        elif counts[name] > 1:
            reasons[name] = f"{counts[name]} functions of this kernel have this name"
        elif known is not None and name not in known:
            reasons[name] = "the kernel allows no probe there"
    return reasons


def traceable() -> set[str] | None:
    """What ftrace takes; None where the kernel does not tell."""
    for path in TRACEABLE:
        with contextlib.suppress(OSError), open(path) as lines:
            return {line.split(maxsplit=1)[0] for line in lines}
    return None
