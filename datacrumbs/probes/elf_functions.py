"""Where functions begin in an ELF file: the only places a user may have probed.

A probe is a breakpoint that the kernel writes into the code of every process that maps the
file. Written into the middle of an instruction, it changes what a program of somebody else
does. So root takes an offset from a user only if the file itself says that a function begins
there: in a symbol table, or in the unwind table (`.eh_frame_hdr`), which stripped files keep.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from datacrumbs.probes.elf_identity import Layout, NotElfError, Segment, read_at, read_layout

PT_LOAD = 1
PT_GNU_EH_FRAME = 0x6474E550
PF_X = 1
STRING_TABLE = 3  # SHT_STRTAB
SYMBOL_TABLES = (2, 11)  # SHT_SYMTAB, SHT_DYNSYM
FUNCTION_TYPES = (2, 10)  # STT_FUNC, STT_GNU_IFUNC
TABLE_BYTES_MAX = 256 << 20


class Section(NamedTuple):
    """One section header, sizes and offsets in bytes; ``name`` is an offset into a table."""

    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int


def function_starts(fd: int) -> frozenset[int]:
    """The file offsets at which functions begin, all in executable segments.

    ``fd`` is a regular file, open for reading. Raises `NotElfError`.
    """
    layout = read_layout(fd)
    code = [s for s in layout.segments if s.kind == PT_LOAD and s.flags & PF_X]
    starts = set()
    for table in (_symbol_addresses(fd, layout), _unwind_addresses(fd, layout)):
        for address in table:
            for segment in code:
                if 0 <= address - segment.address < segment.file_size:
                    starts.add(address - segment.address + segment.offset)
    return frozenset(starts)


def _symbol_addresses(fd: int, layout: Layout) -> Iterator[int]:
    entry = struct.Struct(layout.order + ("IBBHQQ" if layout.is_64 else "IIIBBH"))
    left = TABLE_BYTES_MAX
    for table in sections(fd, layout):
        if table.kind not in SYMBOL_TABLES:
            continue
        left -= table.size  # many headers may name one table: what counts is what is read
        if left < 0:
            raise NotElfError(f"symbol tables of more than {TABLE_BYTES_MAX} bytes")
        symbols = _table(fd, table.offset, table.size - table.size % entry.size)
        for fields in entry.iter_unpack(symbols):
            if layout.is_64:
                _, info, _, section, address, _ = fields
            else:
                _, address, _, info, _, section = fields
            if info & 15 in FUNCTION_TYPES and section != 0:
                yield address


def sections(fd: int, layout: Layout) -> list[Section]:
    """The section headers; none in a file without them."""
    entry = struct.Struct(layout.order + ("IIQQQQIIQQ" if layout.is_64 else "IIIIIIIIII"))
    if layout.section_size != entry.size:
        return []
    headers = _table(fd, layout.sections_offset, layout.section_count * entry.size)
    return [Section(*fields[:7]) for fields in entry.iter_unpack(headers)]


def _unwind_addresses(fd: int, layout: Layout) -> Iterator[int]:
    """The first column of `.eh_frame_hdr`'s table, in the one encoding that linkers write.

    LSB Core, "Exception Frames": version 1, pcrel|sdata4, udata4, datarel|sdata4, then the
    4-byte pointer to .eh_frame, the count, and pairs of (first address, entry) relative to
    the header's own address.
    """
    for segment in layout.segments:
        if segment.kind == PT_GNU_EH_FRAME and segment.file_size >= 12:
            yield from _unwind_table(fd, layout.order, segment)


def _unwind_table(fd: int, order: str, segment: Segment) -> Iterator[int]:
    head = read_at(fd, segment.offset, 12)
    if head[:4] != b"\x01\x1b\x03\x3b":
        return
    (count,) = struct.unpack_from(order + "I", head, 8)
    if 12 + count * 8 <= segment.file_size:
        pairs = _table(fd, segment.offset + 12, count * 8)
        for first, _ in struct.iter_unpack(order + "ii", pairs):
            yield segment.address + first


def _table(fd: int, offset: int, size: int) -> bytes:
    if size > TABLE_BYTES_MAX:
        raise NotElfError(f"a table of {size} bytes, at most {TABLE_BYTES_MAX} are read")
    return read_at(fd, offset, size) if size else b""


def has_name(fd: int, names: tuple[bytes, ...]) -> bool:
    """Is one of ``names`` in a string table of the file? Raises `NotElfError`."""
    for table in sections(fd, read_layout(fd)):
        if table.kind == STRING_TABLE:
            strings = b"\0" + _table(fd, table.offset, table.size)
            if any(b"\0" + name + b"\0" in strings for name in names):
                return True
    return False
