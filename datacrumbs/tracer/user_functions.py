"""Functions of ELF files: uprobes, in one link for many where the kernel has that."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datacrumbs.errors import UserError
from datacrumbs.probes.elf_functions import function_starts
from datacrumbs.probes.elf_identity import elf_identity
from datacrumbs.probes.model import UserFunction, UserLayer
from datacrumbs.regular_file import open_regular
from datacrumbs.trace.schema import Op
from datacrumbs.tracer.libbpf import OBJECT_PATH, Object
from datacrumbs.tracer.plan import Plan

UPROBE_MULTI = 48  # enum bpf_attach_type
RETURN_FLAG = 1  # BPF_F_UPROBE_MULTI_RETURN
CLIENT_FUNCTION = "datacrumbs_start"

Numbered = tuple[int, UserFunction]


def kernel_has_uprobe_multi() -> bool:
    """Tried for real by loading a program of that type; libbpf 1.1 has no name for it."""
    trial = Object(OBJECT_PATH, log=lambda _: None)
    trial.only("user_enter")
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


def plan_user(layer: UserLayer, plan: Plan) -> list[Numbered]:
    """Number the layer's functions."""
    return [
        (plan.add(layer, function.name, "user", Op.OTHER, layer.binary), function)
        for function in layer.functions
    ]


def attach_user(
    bpf: Object,
    layer: UserLayer,
    functions: list[Numbered],
    plan: Plan,
    *,
    multi: bool,
) -> None:
    """Attach what can be attached; the plan says what, how, and why the rest could not be."""
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
        fd = open_regular(layer.binary)
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
