"""Functions of ELF files: uprobes, in one link for many where the kernel has that.

Three mechanisms, the first that this kernel takes: ``uprobe.session`` (one program for entry and
return, whose entry refuses the return for tasks that are not traced, so that they do not pay
for it), ``uprobe.multi`` (a link for the entries, one for the returns), ``uprobe`` (a perf event
for each). Functions that exceptions may pass have no return probe but probes at their exits;
`datacrumbs.tracer.placement` says why, and where in a function all these go.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from datacrumbs.acting import acting_as
from datacrumbs.errors import UserError
from datacrumbs.probes.elf_identity import elf_identity
from datacrumbs.probes.model import UsdtLayer, UserFunction, UserLayer
from datacrumbs.regular_file import open_regular
from datacrumbs.trace.schema import Op
from datacrumbs.tracer import layout
from datacrumbs.tracer.instructions import Exit
from datacrumbs.tracer.libbpf import UPROBE_MULTI, UPROBE_SESSION, Object, takes_links
from datacrumbs.tracer.placement import Code
from datacrumbs.tracer.plan import Plan

RETURN_FLAG = 1  # BPF_F_UPROBE_MULTI_RETURN
CLIENT_FUNCTION = "datacrumbs_start"

Numbered = tuple[int, UserFunction]


class Mechanism(StrEnum):
    """What a function's probes are attached by."""

    SESSION = "uprobe.session"
    MULTI = "uprobe.multi"
    SINGLE = "uprobe"


@dataclass(frozen=True, slots=True)
class Probe:
    """One function and where its probes go; with ``exits``, there instead of at the return.

    ``keep``: its arguments are kept.
    """

    func: int
    name: str
    place: int
    exits: tuple[Exit, ...] | None = None
    keep: bool = False

    @property
    def entry(self) -> tuple[int, int]:
        """Place and cookie of the entry probe."""
        return self.place, self.func | self.keep * layout.KEEP


def choose() -> Mechanism:
    """The best mechanism this kernel has, tried for real."""
    if takes_links(UPROBE_SESSION):
        return Mechanism.SESSION
    return Mechanism.MULTI if takes_links(UPROBE_MULTI) else Mechanism.SINGLE


def prepare(bpf: Object, mechanism: Mechanism | None) -> None:
    """Tell the programs, before they are loaded, what they will be attached by (None: nothing)."""
    if mechanism is Mechanism.SESSION:
        bpf.set_expected_attach_type("user_session", UPROBE_SESSION)
        bpf.leave_out("user_leave")
    else:
        bpf.leave_out("user_session")
    if mechanism is None:
        bpf.leave_out("user_enter", "user_leave", "user_exit")
    elif mechanism is not Mechanism.SINGLE:
        for name in ("user_enter", "user_leave", "user_exit"):
            bpf.set_expected_attach_type(name, UPROBE_MULTI)


def plan_user(layer: UserLayer, plan: Plan) -> list[Numbered]:
    """Number the layer's functions."""
    return [
        (
            plan.add(
                layer, function.name, "user", Op.OTHER, layer.binary, arguments=function.arguments
            ),
            function,
        )
        for function in layer.functions
    ]


def attach_user(
    bpf: Object, layer: UserLayer, functions: list[Numbered], plan: Plan, mechanism: Mechanism
) -> None:
    """Attach what can be attached; the plan says what, how, and why the rest could not be."""
    try:
        fd = open_pinned(layer, plan)
    except UserError as error:
        plan.skipped.append((layer.name, layer.binary, error.message))
        plan.mechanisms.append((layer.name, "uprobe", "none", 0))
        return
    try:
        probes, skipped = _place(Code(fd), functions, plan)
        plan.add_places(sum(1 + len(probe.exits or ()) for probe in probes))
        # the file that was checked, whatever the name says by now
        failed = dict(Attacher(bpf, Path(f"/proc/self/fd/{fd}"), mechanism).attach(probes))
    except UserError as error:
        probes, skipped, failed = [], [(layer.binary, error.message)], {}
    finally:
        os.close(fd)
    skipped += [(probe.name, reason) for probe, reason in failed.items()]
    plan.skipped += [(layer.name, name, reason) for name, reason in skipped]
    rows = [
        (
            layer.name,
            "uprobe",
            name,
            sum((p.exits is None) == returns and p not in failed for p in probes),
        )
        for returns, name in (
            (True, mechanism.value),
            (False, f"{without_returns(mechanism)}, exits"),
        )
    ]
    plan.mechanisms += [row for row in rows if row[3]] or rows[:1]


def without_returns(mechanism: Mechanism) -> Mechanism:
    """What probes without a return are attached by."""
    return Mechanism.MULTI if mechanism is Mechanism.SESSION else mechanism


def _place(
    code: Code, functions: list[Numbered], plan: Plan
) -> tuple[list[Probe], list[tuple[str, str]]]:
    """Where the probes go; the functions that have none, and why."""
    sound: dict[int, Numbered] = {}
    failed = []
    for func, function in functions:
        # a breakpoint inside an instruction would break the program for everybody on the node
        if function.offset not in code.starts:
            failed.append((function.name, "no function begins there"))
        elif function.offset in sound:
            failed.append((function.name, f"is {sound[function.offset][1].name} by another name"))
        else:
            sound[function.offset] = (func, function)
    places = code.places((start, func in plan.arguments) for start, (func, _) in sound.items())
    thrown = code.passed_by_exceptions()
    probes = []
    for start, (func, function) in sound.items():
        exits = code.exits(start) if thrown else None
        if thrown and exits is None:
            failed.append((function.name, "exceptions may pass it, and its exits are not certain"))
        else:
            found = None if exits is None else tuple(exits)
            keep = func in plan.arguments
            probes.append(Probe(func, function.name, places[start], found, keep=keep))
    return probes, failed


def open_pinned(layer: UserLayer | UsdtLayer, plan: Plan) -> int:
    """A descriptor of the layer's binary, if it is still the one that was signed.

    Opened with the rights of the run's user: root learns of no other file for them. A build-id
    is what a file says of itself, so where its name leads now counts as it did when it was signed.
    """
    user = pwd.getpwuid(plan.probes.uid)
    try:
        with acting_as(user.pw_name, user.pw_uid, user.pw_gid):
            fd = open_regular(layer.binary)
    except OSError as error:
        raise UserError(f"{layer.binary}: {error.strerror}") from error
    try:
        path = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115
        if not any(fnmatchcase(path, pattern) for pattern in plan.binaries):
            raise UserError(f"{layer.binary}: policy.binaries of this host does not allow {path}")
        identity = elf_identity(fd)
        if identity != (layer.build_id, layer.digest):
            raise UserError(f"{layer.binary}: not the file the probe file was made for")
    except UserError:
        os.close(fd)
        raise
    return fd


T = TypeVar("T")


def attach_halving(
    bpf: Object, probes: list[T], attach: Callable[[list[T]], str]
) -> Iterator[tuple[T, str]]:
    """Attach with ``attach``, which gives an error or "".

    A batch that fails is halved until those at fault are alone; gives these, and why.
    """
    if not probes:
        return
    before = bpf.attached()
    error = attach(probes)
    if not error:
        return
    bpf.detach(before)
    if len(probes) == 1:
        yield probes[0], error
        return
    half = len(probes) // 2
    yield from attach_halving(bpf, probes[:half], attach)
    yield from attach_halving(bpf, probes[half:], attach)


@dataclass(frozen=True, slots=True)
class Attacher:
    """Attaches probes of one file."""

    bpf: Object
    path: Path
    mechanism: Mechanism

    def attach(self, probes: list[Probe]) -> Iterator[tuple[Probe, str]]:
        """Attach; gives the functions that cannot be probed, and why."""
        returning = [p for p in probes if p.exits is None]
        yield from attach_halving(self.bpf, returning, self._returning)
        leaving = [p for p in probes if p.exits is not None]
        yield from attach_halving(self.bpf, leaving, self._leaving)

    def _returning(self, probes: list[Probe]) -> str:
        places = [probe.entry for probe in probes]
        match self.mechanism:
            case Mechanism.SESSION:
                return self._link("user_session", places, kind=UPROBE_SESSION)
            case Mechanism.MULTI:
                # the return first: an entry without its return would leave a frame behind
                return self._link("user_leave", places, flags=RETURN_FLAG) or self._link(
                    "user_enter", places
                )
            case _ if len(probes) > 1:
                return "one at a time"
        return self._single("user_leave", places, retprobe=True) or self._single(
            "user_enter", places
        )

    def _leaving(self, probes: list[Probe]) -> str:
        places = [probe.entry for probe in probes]
        exits = [
            (leave.offset, probe.func | leave.tail * layout.TAIL)
            for probe in probes
            for leave in probe.exits or ()
        ]
        if self.mechanism is not Mechanism.SINGLE:
            return (self._link("user_exit", exits) if exits else "") or self._link(
                "user_enter", places
            )
        if len(probes) > 1:
            return "one at a time"
        return self._single("user_exit", exits) or self._single("user_enter", places)

    def _link(
        self, program: str, places: list[tuple[int, int]], kind: int = UPROBE_MULTI, flags: int = 0
    ) -> str:
        offsets, cookies = zip(*places, strict=True)
        error = self.bpf.attach_uprobes(
            program, self.path, list(offsets), list(cookies), kind=kind, flags=flags
        )
        return os.strerror(error) if error else ""

    def _single(
        self, program: str, places: list[tuple[int, int]], *, retprobe: bool = False
    ) -> str:
        for offset, cookie in places:
            error = self.bpf.attach_uprobe(
                program, self.path, offset, cookie=cookie, retprobe=retprobe
            )
            if error:
                return error
        return ""


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
