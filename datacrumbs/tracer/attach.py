"""From a verified probe list to loaded and attached BPF programs."""

from __future__ import annotations

import ctypes
import mmap
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datacrumbs.config import SystemConfig
from datacrumbs.errors import UserError
from datacrumbs.probes.model import (
    CustomLayer,
    KernelLayer,
    ProbeList,
    SyscallLayer,
    UsdtLayer,
    UserLayer,
)
from datacrumbs.tracer import arguments, io_uring, layout, libbpf, system_calls, usdt
from datacrumbs.tracer.custom import Custom, attach_custom, plan_custom
from datacrumbs.tracer.kernel_functions import attach_kernel, prepare_kernel
from datacrumbs.tracer.libbpf import OBJECT_PATH, Object
from datacrumbs.tracer.plan import Plan
from datacrumbs.tracer.ring_plan import RingPlan, plan_here, power_of_two
from datacrumbs.tracer.system_calls import attach_syscalls, plan_syscalls
from datacrumbs.tracer.user_functions import (
    Mechanism,
    Numbered,
    attach_client,
    attach_user,
    choose,
    plan_user,
    prepare,
)

MAP_ENTRY_BYTES = 300
"""Of a hash map in profile mode: key, value, the kernel's own 48 bytes, and a bucket's."""


@dataclass(frozen=True, slots=True)
class JobCgroup:
    """The cgroup of a job, for layers with ``select: job``.

    Either ``id``, the kernel's, of one of version 2 that exists; or ``name``, the last part of its
    path, of one in any hierarchy, which may come later.
    """

    id: int = 0
    name: str = ""


@dataclass(slots=True)
class Attached:
    """The loaded object, its rings' descriptors, the two iterators, custom programs."""

    object: Object
    plan: Plan
    rings: RingPlan
    ring_fds: list[int]
    strings_fd: int
    mark_job_fd: int
    unfinished_fd: int
    profile_fds: list[int]  # the two maps of profile mode; none without it
    profile_cells: int  # of each bank
    custom: list[Custom]

    def detach(self) -> None:
        """End all probes; what the rings hold stays."""
        self.object.detach()
        for custom in self.custom:
            custom.detach()


def tell_host(constants: layout.Config) -> None:
    """What the programs need to know of this host."""
    constants.ns_inum = Path("/proc/self/ns/pid").stat().st_ino
    constants.page_shift = mmap.PAGESIZE.bit_length() - 1


def attach(
    probes: ProbeList,
    *,
    config: SystemConfig,
    run_id: str,
    job: JobCgroup | None,
    log: Callable[[str], None],
) -> Attached:
    """Load and attach everything; as root. Raises `UserError` when nothing can be traced."""
    bpf = Object(OBJECT_PATH, log=log)
    constants = bpf.memory(".rodata.config", layout.Config)
    if constants.layout != layout.LAYOUT:
        raise UserError(f"{OBJECT_PATH}: layout {constants.layout}", hint="reinstall datacrumbs")
    constants.run_id, constants.uid = run_id.encode(), probes.uid
    constants.secret[:] = secrets.randbits(64), secrets.randbits(64)
    if job:
        constants.job_cgroup, constants.job_name = job.id, job.name.encode()
    tell_host(constants)
    rings = plan_here(config.ring)
    rings.tell(constants)
    plan = Plan(probes, constants, config.policy.binaries)
    users, points, programs = _plan_layers(plan)
    kernel = prepare_kernel(bpf, plan)
    system_calls.leave_out(bpf, plan)
    cells = profile_cells(config.profile.entries) if plan.profiles() else 1
    constants.cells = cells
    size_maps(bpf, rings, plan, cells=cells)
    mechanism = choose() if users or points else Mechanism.SINGLE
    prepare(bpf, mechanism if users else None)
    usdt.prepare(bpf, points, mechanism)
    io_uring.prepare(bpf, plan)
    arguments.reserve(bpf, plan.arguments)
    begins = "on_new_task" if libbpf.syscall_points_preempted() else "on_fork"
    bpf.leave_out(*({"on_fork", "on_new_task"} - {begins}))
    bpf.load()
    arguments.tell(bpf, plan.arguments)
    profile_fds = add_profiles(bpf, config.profile.entries) if plan.profiles() else []
    ring_fds = bpf.add_rings("rings", rings.count, rings.ring_bytes)
    for name in (begins, "on_exec", "on_exit", *(("on_cgroup",) if job else ())):
        bpf.attach(name)
    for layer, functions in users:
        attach_user(bpf, layer, functions, plan, mechanism)
    usdt.attach_usdt(bpf, points, plan, mechanism)
    attach_kernel(bpf, kernel, plan)
    custom = attach_custom(programs, plan, allowed=config.policy.custom, log=log)
    io_uring.attach_operations(bpf, plan)
    attach_syscalls(bpf, plan)
    if not any(count for *_, count in plan.mechanisms):
        raise UserError("no probe of the probe file can be attached on this host")
    attached = Attached(
        bpf,
        plan,
        rings,
        ring_fds,
        bpf.map_fd("strings"),
        bpf.iterator("mark_job"),
        bpf.iterator("unfinished"),
        profile_fds,
        cells,
        custom,
    )
    if job:
        read_all(attached.mark_job_fd)
    attach_client(bpf, config.client_library_path())
    return attached


def size_maps(bpf: Object, rings: RingPlan, plan: Plan, *, cells: int) -> None:
    """The maps whose sizes are this run's."""
    bpf.set_entries("rings", rings.count)
    bpf.set_entries("strings", rings.strings_bytes)
    bpf.set_entries("rates", plan.rate_entries())
    bpf.set_entries("cells", 2 * cells)


def profile_bytes(entries: int) -> int:
    """Kernel memory of profile mode: two maps, and two banks of cells."""
    cells = 2 * profile_cells(entries) * ctypes.sizeof(layout.Cell)
    return 2 * entries * MAP_ENTRY_BYTES + cells


def profile_cells(entries: int) -> int:
    """Cells of one bank of profile mode, a power of two: one for eight entries of a map."""
    return power_of_two(max(entries // 8, 1))


def _plan_layers(
    plan: Plan,
) -> tuple[
    list[tuple[UserLayer, list[Numbered]]],
    list[usdt.Opened],
    list[tuple[CustomLayer, dict[str, int]]],
]:
    """Number the functions of all layers but the kernel's, in the order of the probe list."""
    users, points, programs = [], [], []
    for layer in plan.probes.layers:
        if isinstance(layer, SyscallLayer):
            plan_syscalls(layer, plan)
        elif isinstance(layer, UserLayer):
            users.append((layer, plan_user(layer, plan)))
        elif isinstance(layer, UsdtLayer):
            opened = usdt.open_usdt(layer, plan)
            points += [opened] if opened else []
        elif isinstance(layer, CustomLayer):
            programs.append((layer, plan_custom(layer, plan)))
        elif not isinstance(layer, KernelLayer):
            plan.skipped.append((layer.name, "all", "this version cannot attach such a layer"))
    return users, points, programs


def add_profiles(bpf: Object, entries: int) -> list[int]:
    """The two maps that calls are added up in by turns; the first is in use."""
    sizes = ctypes.sizeof(layout.ProfileKey), ctypes.sizeof(layout.Profile)
    fds = [bpf.new_hash("dc_profile", *sizes, entries) for _ in range(2)]
    bpf.put("profiles", 0, ctypes.c_uint32(fds[0]))
    return fds


def check_profiles(attached: Attached) -> None:
    """Change the maps once, as the run's user; raises `UserError` if the kernel forbids it."""
    try:
        for fd in attached.profile_fds[:1]:
            attached.object.put("profiles", 0, ctypes.c_uint32(fd))
    except UserError as error:
        raise UserError(
            f"mode profile: {error.message}",
            hint="this kernel keeps users from their own BPF maps: mode trace, or Linux 5.19",
        ) from error


def read_all(fd: int) -> None:
    """Run an iterator program to its end."""
    while os.read(fd, 4096):
        pass
