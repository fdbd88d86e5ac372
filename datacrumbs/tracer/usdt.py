"""USDT points: places that a program's author marked, found by what the file's notes say.

Read here and not by libbpf, so that all places of a layer are one link and calls between two
points are told by the program that follows them. A place is probed only if a ``nop`` lies there,
as the macros of ``sys/sdt.h`` leave it: a note cannot put a breakpoint into an instruction.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from datacrumbs.errors import UserError
from datacrumbs.probes.elf_functions import PF_X, PT_LOAD
from datacrumbs.probes.elf_identity import Layout, NotElfError, read_at, read_layout
from datacrumbs.probes.model import Argument, UsdtLayer, UsdtPoint
from datacrumbs.probes.usdt import Point, PointArgument, usdt_points
from datacrumbs.trace.schema import Op
from datacrumbs.tracer import layout
from datacrumbs.tracer.libbpf import UPROBE_MULTI, Object
from datacrumbs.tracer.plan import Plan
from datacrumbs.tracer.user_functions import (
    Mechanism,
    attach_halving,
    open_pinned,
    without_returns,
)

PF_W = 2
NOPS = {"x86_64": (b"\x90", b"\x0f\x1f\x44\x00\x00"), "aarch64": (b"\x1f\x20\x03\xd5",)}
PROGRAMS = ("usdt_leave", "usdt_enter", "usdt_point")  # in the order they are attached

_X86_FRAME = [
    *("r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8"),
    *("ax", "cx", "dx", "si", "di", "orig_ax", "ip", "cs", "flags", "sp"),
]
_X86_REGISTER = re.compile(
    r"%(?:[re]?([abcd]x|[sd]i|[sb]p)|([sd]i|[sb]p)l|([abcd])l|(r(?:[89]|1[0-5]))[dwb]?)"
)
_NUMBER = r"-?(?:0x[0-9a-f]{1,16}|[1-9][0-9]{0,19}|0)"
_CONSTANT = re.compile(rf"\$?({_NUMBER})")
_MEMORY = re.compile(rf"({_NUMBER})?(\([^()]+\)|\[[^\[\]]+\])")
_SCALES = {"1": 0, "2": 1, "4": 2, "8": 3}  # (%rax,%rdx,8)
_EXTENSIONS = {"lsl": 0, "uxtw": 4, "sxtw": 12}  # [x0, w1, sxtw 3]; DC_INDEX_32, DC_INDEX_SIGNED
_SCALES |= {
    f"{name}{shift or ''}": bits | shift for name, bits in _EXTENSIONS.items() for shift in range(4)
}
_DISPLACED = re.compile(rf"#?({_NUMBER})")  # [sp, 8]

NO_INDEX = 0xFFFF
CONSTANT, REGISTER, MEMORY = 1, 2, 3  # DC_CONSTANT ... in bpf/datacrumbs.h


@dataclass(frozen=True, slots=True)
class Probe:
    """One place to attach a program to. ``semaphore``: file offset; 0: none."""

    func: int
    name: str
    program: str
    offset: int
    semaphore: int
    arguments: tuple[PointArgument, ...]


@dataclass(slots=True)
class Opened:
    """A layer, its file and where its points are; and which arguments each keeps."""

    layer: UsdtLayer
    fd: int
    probes: list[Probe]
    kept: dict[int, list[Argument]]


def open_usdt(layer: UsdtLayer, plan: Plan) -> Opened | None:
    """Number the layer's points and find them; the plan says which are not found, and why.

    A pair of points is one function with the name of the first.
    """
    kept, numbered = {}, []
    for point in layer.functions:
        # each place sends what it has in the order of these
        wanted = [msgspec.structs.replace(a, index=i) for i, a in enumerate(point.arguments)]
        func = plan.add(layer, _name(point), "usdt", Op.OTHER, layer.binary, arguments=wanted)
        kept[func] = point.arguments if func in plan.arguments else []
        numbered.append((func, point))
    try:
        fd = open_pinned(layer, plan)
        try:
            probes = list(_resolve(fd, layer, numbered, plan))
            plan.add_places(len(probes))
        except UserError:
            os.close(fd)
            raise
    except UserError as error:
        plan.skipped.append((layer.name, layer.binary, error.message))
        plan.mechanisms.append((layer.name, "usdt", "none", 0))
        return None
    return Opened(layer, fd, probes, kept)


def _name(point: UsdtPoint) -> str:
    return f"{point.provider}:{point.name}"


def _resolve(
    fd: int, layer: UsdtLayer, numbered: list[tuple[int, UsdtPoint]], plan: Plan
) -> Iterator[Probe]:
    elf, points = read_layout(fd), usdt_points(fd)
    for func, point in numbered:
        pair = [("usdt_enter" if point.returns else "usdt_point", point.name)]
        pair += [("usdt_leave", point.returns)] if point.returns else []
        found = []
        for program, name in pair:
            places = [p for p in points if (p.provider, p.name) == (point.provider, name)]
            here = [q for p in places if (q := _probe(fd, elf, p, func, program))]
            if not here:
                why = "is not where an instruction may be exchanged" if places else "is not in it"
                plan.skipped.append((layer.name, _name(point), f"{point.provider}:{name} {why}"))
                break
            found += here
        else:
            yield from found


def _probe(fd: int, elf: Layout, point: Point, func: int, program: str) -> Probe | None:
    """Where ``point`` is in the file; None if no ``nop`` lies there."""
    offset = _file_offset(elf, point.address, PF_X)
    semaphore = _file_offset(elf, point.semaphore, PF_W) if point.semaphore else 0
    if offset is None or semaphore is None:
        return None
    try:
        head = read_at(fd, offset, 4)
    except NotElfError:
        return None
    if not head.startswith(NOPS.get(platform.machine(), ())):
        return None
    name = f"{point.provider}:{point.name}"
    return Probe(func, name, program, offset, semaphore, point.arguments)


def _file_offset(elf: Layout, address: int, flag: int) -> int | None:
    for segment in elf.segments:
        inside = 0 <= address - segment.address < segment.file_size
        if segment.kind == PT_LOAD and segment.flags & flag and inside:
            return address - segment.address + segment.offset
    return None


def prepare(bpf: Object, opened: list[Opened], mechanism: Mechanism) -> None:
    """Before the programs are loaded: leave them out, or say what they will be attached by."""
    if not opened:
        bpf.leave_out(*PROGRAMS)
    elif mechanism is not Mechanism.SINGLE:
        for name in PROGRAMS:
            bpf.set_expected_attach_type(name, UPROBE_MULTI)
    bpf.set_entries("usdt_places", max(1, sum(len(o.probes) for o in opened)))


def attach_usdt(bpf: Object, opened: list[Opened], plan: Plan, mechanism: Mechanism) -> None:
    """Attach all layers; the plan says what, how, and why the rest could not be."""
    key, machine = 0, platform.machine()
    for one in opened:
        path = Path(f"/proc/self/fd/{one.fd}")
        failed: dict[int, str] = {}
        for program in PROGRAMS:
            cookies = []
            for probe in [p for p in one.probes if p.program == program]:
                keep = one.kept[probe.func] if program != "usdt_leave" else []
                if keep:
                    bpf.put("usdt_places", key, operands(probe.arguments, keep, machine))
                cookies.append((probe, probe.func | bool(keep) * layout.KEEP | key << 32))
                key += 1
            for (probe, _), error in attach_halving(bpf, cookies, _attacher(bpf, path, mechanism)):
                failed[probe.func] = error
                plan.skipped.append((one.layer.name, probe.name, error))
        os.close(one.fd)
        count = len({probe.func for probe in one.probes} - failed.keys())
        name = without_returns(mechanism).value
        plan.mechanisms.append((one.layer.name, "usdt", name, count))


def _attacher(
    bpf: Object, path: Path, mechanism: Mechanism
) -> Callable[[list[tuple[Probe, int]]], str]:
    def attach(probes: list[tuple[Probe, int]]) -> str:
        (program,) = {probe.program for probe, _ in probes}
        if mechanism is Mechanism.SINGLE:
            if len(probes) > 1:
                return "one at a time"
            ((probe, cookie),) = probes
            return bpf.attach_uprobe(
                program, path, probe.offset, cookie=cookie, semaphore=probe.semaphore
            )
        error = bpf.attach_uprobes(
            program,
            path,
            [probe.offset for probe, _ in probes],
            [cookie for _, cookie in probes],
            kind=UPROBE_MULTI,
            semaphores=[probe.semaphore for probe, _ in probes],
        )
        return os.strerror(error) if error else ""

    return attach


def operands(given: tuple[PointArgument, ...], kept: list[Argument], machine: str) -> layout.Place:
    """Where a place has the arguments to keep, for the BPF program of ``machine``."""
    place = layout.Place()
    for operand, argument in zip(place.list, kept, strict=False):
        if argument.index < len(given) and not given[argument.index].is_float:
            _fill(operand, given[argument.index], machine)
    return place


def _fill(operand: layout.Operand, given: PointArgument, machine: str) -> None:
    """Of a form that is not known, nothing is filled in: the argument reads as 0."""
    operand.bytes, operand.is_signed, operand.index = given.size, given.signed, NO_INDEX
    text = given.place.replace(" ", "")
    if match := _CONSTANT.fullmatch(text):
        operand.how, operand.value = CONSTANT, _signed(int(match[1], 0))
    elif (base := _register(text, machine)) is not None:
        operand.how, operand.base = REGISTER, base
    elif match := _MEMORY.fullmatch(text):
        displacement, inside = match[1] or "0", match[2].strip("()[]").split(",")
        if len(inside) == 2 and (number := _DISPLACED.fullmatch(inside[1])):
            displacement = number[1]
            inside.pop()
        registers = [_register(name, machine) for name in inside[:2]]
        scale = _SCALES.get(inside[2] if len(inside) > 2 else "1")
        if None not in registers and scale is not None:
            operand.how, operand.scale, operand.value = MEMORY, scale, int(displacement, 0)
            operand.base = registers[0] or 0
            operand.index = NO_INDEX if len(registers) == 1 else registers[1] or 0


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number


def _register(name: str, machine: str) -> int | None:
    """Its offset in ``struct pt_regs``."""
    if machine == "aarch64":
        if match := re.fullmatch(r"[xw]([0-9]{1,2})", name):
            return int(match[1]) * 8 if int(match[1]) <= 30 else None
        return 31 * 8 if name == "sp" else None
    match = _X86_REGISTER.fullmatch(name)
    if match is None:
        return None
    whole = match[1] or match[2] or match[4] or f"{match[3]}x"
    return _X86_FRAME.index(whole) * 8
