"""USDT points of an ELF file: what its notes say (``readelf -n``, owner stapsdt).

Root reads files that users make with this too: bounded, by `pread`, nothing mapped.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from datacrumbs.probes.elf_functions import sections
from datacrumbs.probes.elf_identity import Layout, notes, read_at, read_layout

SHT_NOTE = 7
NT_STAPSDT = 3
OWNER = b"stapsdt\0"
NOTES_BYTES_MAX = 64 << 20

_ARGUMENT = re.compile(r"(-?)([1248])(f?)@(.+)")


@dataclass(frozen=True, slots=True)
class PointArgument:
    """An argument of a point: its size in bytes, and how the note says where it is."""

    size: int
    signed: bool
    is_float: bool
    place: str


@dataclass(frozen=True, slots=True)
class Point:
    """One place in the code; a point that a compiler copied has several.

    ``semaphore`` is the address of the counter that turns the point on; 0: it has none.
    """

    provider: str
    name: str
    address: int
    semaphore: int
    arguments: tuple[PointArgument, ...]


def usdt_points(fd: int) -> list[Point]:
    """All USDT points of the regular file ``fd``, in the file's order.

    Notes that contradict themselves are left out. Raises `NotElfError` for a file that is no
    ELF file or is damaged.
    """
    layout = read_layout(fd)
    return [point for value in _stapsdt_notes(fd, layout) if (point := _point(value, layout))]


def _stapsdt_notes(fd: int, layout: Layout) -> Iterator[bytes]:
    left = NOTES_BYTES_MAX
    for section in sections(fd, layout):
        if section.kind == SHT_NOTE and section.size <= left:
            left -= section.size
            data = read_at(fd, section.offset, section.size)
            for owner, kind, value in notes(data, layout.order, 4):
                if owner == OWNER and kind == NT_STAPSDT:
                    yield value


def _point(value: bytes, layout: Layout) -> Point | None:
    """Addresses of the point, of .stapsdt.base, of the semaphore, then three strings."""
    addresses = struct.Struct(layout.order + ("3Q" if layout.is_64 else "3I"))
    if len(value) < addresses.size:
        return None
    address, _, semaphore = addresses.unpack_from(value)
    strings = value[addresses.size :].split(b"\0")
    if len(strings) < 3:
        return None
    provider, name, arguments = (s.decode("utf-8", "backslashreplace") for s in strings[:3])
    if not (provider and name and (provider + name).isprintable()):
        return None
    return Point(provider, name, address, semaphore, parse_arguments(arguments))


def parse_arguments(text: str) -> tuple[PointArgument, ...]:
    """What a note says of its arguments (``8@%rdi -4@-4(%rbp) 8@$23``); () if it is nonsense.

    Each is SIZE@PLACE; a negative size is that of a signed number. Places hold no blanks,
    except that aarch64 writes ``[sp, 8]`` and ``[x0, w1, sxtw 3]``.
    """
    words = re.sub(r"\[[^]]*\]", lambda inside: "".join(inside[0].split()), text).split()
    found = []
    for word in words:
        match = _ARGUMENT.fullmatch(word)
        if match is None:
            return ()
        found.append(PointArgument(int(match[2]), match[1] == "-", match[3] == "f", match[4]))
    return tuple(found)
