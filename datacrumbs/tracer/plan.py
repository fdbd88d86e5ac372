"""From a verified probe list to loaded and attached BPF programs."""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datacrumbs.config import SystemConfig
from datacrumbs.errors import UserError
from datacrumbs.probes.elf_functions import function_starts
from datacrumbs.probes.elf_identity import elf_identity
from datacrumbs.probes.model import ProbeList, Select, SyscallLayer, UserFunction, UserLayer
from datacrumbs.probes.syscalls import NO_ROLES, ROLES, Roles, available
from datacrumbs.trace.schema import Op
from datacrumbs.tracer import layout
from datacrumbs.tracer.libbpf import Object

OBJECT_PATH = Path(__file__).with_name("datacrumbs.bpf.o")
UPROBE_MULTI = 48  # enum bpf_attach_type
RETURN_FLAG = 1  # BPF_F_UPROBE_MULTI_RETURN
CLIENT_FUNCTION = "datacrumbs_start"


@dataclass(frozen=True, slots=True)
class Function:
    """One row of the trace's table ``functions``."""

    func: int
    layer: str
    name: str
    kind: str
    op: Op
    binary: str | None


@dataclass(slots=True)
class Plan:
    """What is traced in the end, and what is not and why."""

    functions: list[Function] = field(default_factory=list)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)  # layer, name, reason
    mechanisms: list[tuple[str, str, str, int]] = field(default_factory=list)
    #                            layer, kind, mechanism, how many functions

    def add(self, layer: str, name: str, kind: str, op: Op, binary: str | None = None) -> int:
        """Number a function; numbers count from 1."""
        func = len(self.functions) + 1
        self.functions.append(Function(func, layer, name, kind, op, binary))
        return func


@dataclass(slots=True)
class Attached:
    """The loaded object, its rings' descriptors and the two iterators."""

    object: Object
    plan: Plan
    ring_fds: list[int]
    ring_bytes: int
    strings_fd: int
    mark_job_fd: int
    unfinished_fd: int


def _select(kind: Select) -> int:
    return layout.IN_JOB | layout.JOINED if kind is Select.JOB else layout.JOINED


def _fill_call(call: layout.Call, func: int, roles: Roles, select: int) -> None:
    call.func, call.select = func, select
    call.bits = roles.uses_pos * layout.USES_POS | roles.returns_fd * layout.RETURNS_FD
    for name, *_ in layout.Call._fields_[3:]:
        setattr(call, name, getattr(roles, name))


def _plan_syscalls(layer: SyscallLayer, plan: Plan, config: layout.Config) -> None:
    numbers = available(platform.machine())
    count = 0
    for name in layer.functions:
        number = numbers.get(name)
        if number is None or number >= layout.SYSCALLS:
            plan.skipped.append((layer.name, name, "this kernel has no such system call"))
        elif config.calls[number].func:
            plan.skipped.append((layer.name, name, "already traced by an earlier layer"))
        else:
            roles = ROLES.get(name, NO_ROLES)
            func = plan.add(layer.name, name, "syscall", roles.op)
            _fill_call(config.calls[number], func, roles, _select(layer.select))
            count += 1
    plan.mechanisms.append((layer.name, "syscalls", "tp_btf", count))


def power_of_two(size: int) -> int:
    """The largest power of two that is no larger than ``size``."""
    return 1 << max(size.bit_length() - 1, 0)


def ring_sizes(config: SystemConfig, cpus: int) -> tuple[int, int]:
    """How many rings, and the bytes of each (a power of two, at least 1 MiB)."""
    count = -(-cpus // config.ring.cpus_per_ring)
    return count, max(power_of_two(config.ring.total_bytes // count), 1 << 20)


def possible_cpus() -> int:
    """CPUs the kernel may number; ``/sys/devices/system/cpu/possible`` ends with the last."""
    text = Path("/sys/devices/system/cpu/possible").read_text()
    return int(text.strip().replace(",", "-").split("-")[-1]) + 1


def attach(
    probes: ProbeList,
    *,
    config: SystemConfig,
    run_id: str,
    job_cgroup: int,
    log: Callable[[str], None],
) -> Attached:
    """Load and attach everything; as root. Raises `UserError` when nothing can be traced."""
    plan = Plan()
    bpf = Object(OBJECT_PATH, log=log)
    constants = bpf.memory(".rodata.config", layout.Config)
    if constants.layout != layout.LAYOUT:
        raise UserError(f"{OBJECT_PATH}: layout {constants.layout}", hint="reinstall datacrumbs")
    constants.run_id = run_id.encode()
    constants.uid = probes.uid
    constants.job_cgroup = job_cgroup
    constants.ns_inum = Path("/proc/self/ns/pid").stat().st_ino
    constants.cpus_per_ring = config.ring.cpus_per_ring
    users: list[tuple[UserLayer, list[tuple[int, UserFunction]]]] = []
    for layer in probes.layers:
        if isinstance(layer, SyscallLayer):
            _plan_syscalls(layer, plan, constants)
        else:
            users.append((layer, _plan_user(layer, plan, constants)))
    rings, ring_bytes = ring_sizes(config, possible_cpus())
    bpf.set_entries("rings", rings)
    bpf.set_entries("strings", power_of_two(config.ring.strings_bytes))
    multi = load(bpf)
    ring_fds = [bpf.add_ring("rings", i, ring_bytes) for i in range(rings)]
    for name in ("on_fork", "on_exec", "on_exit", *(("on_cgroup",) if job_cgroup else ())):
        bpf.attach(name)
    for layer, functions in users:
        _attach_user(bpf, layer, functions, plan, multi=multi)
    if not any(count for *_, count in plan.mechanisms):
        raise UserError("no probe of the probe file can be attached on this host")
    if any(f.kind == "syscall" for f in plan.functions):
        bpf.attach("sys_exit")
        bpf.attach("sys_enter")
    attached = Attached(
        bpf,
        plan,
        ring_fds,
        ring_bytes,
        bpf.map_fd("strings"),
        bpf.iterator("mark_job"),
        bpf.iterator("unfinished"),
    )
    if job_cgroup:
        read_all(attached.mark_job_fd)
    attach_client(bpf, config.client_library_path())
    return attached


def read_all(fd: int) -> None:
    """Run an iterator program to its end."""
    while os.read(fd, 4096):
        pass


def load(bpf: Object) -> bool:
    """Load with uprobe.multi programs if this kernel has them; says whether it has."""
    multi = _kernel_has_uprobe_multi()
    if multi:
        bpf.set_expected_attach_type("user_enter", UPROBE_MULTI)
        bpf.set_expected_attach_type("user_leave", UPROBE_MULTI)
    bpf.load()
    return multi


def _kernel_has_uprobe_multi() -> bool:
    """Tried for real by loading a program of that type; libbpf 1.1 has no name for it."""
    trial = Object(OBJECT_PATH, log=lambda _: None)
    names = ("sys_enter", "sys_exit", "user_leave", "client_start", "on_fork", "on_exec")
    for name in (*names, "on_exit", "on_cgroup", "mark_job", "unfinished"):
        trial.skip(name)
    trial.set_expected_attach_type("user_enter", UPROBE_MULTI)
    trial.set_entries("strings", 1 << 16)
    try:
        trial.load()
        error = trial.attach_uprobes(
            "user_enter", Path("/proc/self/exe"), [0], [0], kind=UPROBE_MULTI, flags=0
        )
    except UserError:
        return False
    finally:
        trial.detach()
    return error != errno.EINVAL


def _plan_user(
    layer: UserLayer, plan: Plan, config: layout.Config
) -> list[tuple[int, UserFunction]]:
    numbered = []
    for function in layer.functions:
        func = plan.add(layer.name, function.name, "user", Op.OTHER, layer.binary)
        config.user_select[func] = _select(layer.select)
        numbered.append((func, function))
    return numbered


def _attach_user(
    bpf: Object,
    layer: UserLayer,
    functions: list[tuple[int, UserFunction]],
    plan: Plan,
    *,
    multi: bool,
) -> None:
    try:
        fd = open_pinned(layer)
    except UserError as error:
        plan.skipped.append((layer.name, layer.binary, error.message))
        plan.mechanisms.append((layer.name, "uprobe", "none", 0))
        return
    path = Path(f"/proc/self/fd/{fd}")  # the file that was checked, whatever the name says by now
    # a breakpoint inside an instruction would break the program for everybody on the node
    starts = function_starts(fd)
    sound = [(func, f) for func, f in functions if f.offset in starts]
    failed = [((n, f), "no function begins there") for n, f in functions if f.offset not in starts]
    failed += _attach_batch(bpf, path, sound, multi=multi)
    os.close(fd)
    for (_, function), reason in failed:
        plan.skipped.append((layer.name, function.name, reason))
    mechanism = "uprobe.multi" if multi else "uprobe"
    plan.mechanisms.append((layer.name, "uprobe", mechanism, len(functions) - len(failed)))


def open_pinned(layer: UserLayer) -> int:
    """A descriptor of the layer's binary, if it is still the one that was signed."""
    try:
        fd = os.open(layer.binary, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"{layer.binary}: {error.strerror}") from error
    try:
        identity = elf_identity(fd)
        if identity != (layer.build_id, layer.digest):
            raise UserError(f"{layer.binary}: not the file the probe file was made for")
    except UserError:
        os.close(fd)
        raise
    return fd


Numbered = tuple[int, UserFunction]


def _attach_batch(
    bpf: Object, path: Path, functions: list[Numbered], *, multi: bool
) -> Iterator[tuple[Numbered, str]]:
    """Attach; a batch that fails is halved until the functions at fault are alone."""
    if not functions:
        return
    error = (_attach_multi if multi else _attach_one)(bpf, path, functions)
    if not error:
        return
    if len(functions) == 1:
        yield functions[0], error
        return
    half = len(functions) // 2
    yield from _attach_batch(bpf, path, functions[:half], multi=multi)
    yield from _attach_batch(bpf, path, functions[half:], multi=multi)


def _attach_multi(bpf: Object, path: Path, functions: list[Numbered]) -> str:
    offsets = [function.offset for _, function in functions]
    cookies = [func for func, _ in functions]
    # the return first: an entry without its return would leave a frame behind
    for name, flags in (("user_leave", RETURN_FLAG), ("user_enter", 0)):
        error = bpf.attach_uprobes(name, path, offsets, cookies, kind=UPROBE_MULTI, flags=flags)
        if error:
            return os.strerror(error)
    return ""


def _attach_one(bpf: Object, path: Path, functions: list[Numbered]) -> str:
    if len(functions) > 1:
        return "one at a time"
    func, function = functions[0]
    return bpf.attach_uprobe(
        "user_leave", path, function.offset, cookie=func, retprobe=True
    ) or bpf.attach_uprobe("user_enter", path, function.offset, cookie=func)


def attach_client(bpf: Object, library: Path) -> None:
    """Watch `CLIENT_FUNCTION` of the client library; raises `UserError`."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        with open(library, "rb") as file:
            elf = ELFFile(file)
            table: Any = elf.get_section_by_name(".dynsym")
            (symbol,) = table.get_symbol_by_name(CLIENT_FUNCTION)
            (offset,) = elf.address_offsets(symbol["st_value"])
    except (OSError, ELFError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{library}: no {CLIENT_FUNCTION} in it: {error}",
            hint="reinstall datacrumbs, or set client_library in system.yaml",
        ) from error
    error_text = bpf.attach_uprobe("client_start", library, offset)
    if error_text:
        raise UserError(f"{library}: cannot watch {CLIENT_FUNCTION}: {error_text}")
