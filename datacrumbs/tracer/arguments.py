"""Arguments of calls: what the BPF programs are told to keep, and what they send."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence

from datacrumbs.probes.model import Argument, ArgumentType
from datacrumbs.tracer import layout
from datacrumbs.tracer.libbpf import Object

_LENGTH = struct.Struct("=q")


def reserve(bpf: Object, arguments: Mapping[int, Sequence[Argument]]) -> None:
    """Make room for what `tell` will tell; before the programs are loaded."""
    bpf.set_entries("arguments", max(len(arguments), 1))


def tell(bpf: Object, arguments: Mapping[int, Sequence[Argument]]) -> None:
    """Tell the loaded programs which arguments of which function to keep."""
    for func, wanted in arguments.items():
        entry = layout.Arguments(count=len(wanted))
        for one, argument in zip(entry.list, wanted, strict=False):
            one.index, one.bytes = argument.index, argument.bytes
            one.type = layout.ARGUMENT_TYPES.index(argument.type)
        bpf.put("arguments", func, entry)


def values(
    text: bytes, wanted: Sequence[Argument]
) -> Iterator[tuple[str, int | None, bytes | None]]:
    """(name, number, bytes) of each argument in a record; neither if it could not be read."""
    at = 0
    for argument in wanted:
        (length,) = _LENGTH.unpack_from(text, at)
        raw = text[at + 8 : at + 8 + length] if length >= 0 else None
        at += 8 + (max(length, 0) + 7) // 8 * 8
        if raw is not None and argument.type in (ArgumentType.INT, ArgumentType.UINT):
            yield argument.name, _number(raw, argument), None
        else:
            yield argument.name, None, raw


def _number(raw: bytes, argument: Argument) -> int:
    """Of the register's 8 bytes, those that the argument has; 2**63 and more become negative."""
    signed = argument.type is ArgumentType.INT or argument.bytes >= 8
    return int.from_bytes(raw[: argument.bytes], "little", signed=signed)
