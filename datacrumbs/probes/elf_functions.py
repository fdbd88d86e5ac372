"""Where functions begin in an ELF file: the only places a user may have probed.

A probe is a breakpoint that the kernel writes into the code of every process that maps the
file. Written into the middle of an instruction, it changes what a program of somebody else
does; in a function that looks at its own return address, the return probe does. So root takes
an offset from a user only if the file itself says that a function begins there, in a symbol
table or in the unwind table (`.eh_frame_hdr`), which stripped files keep, and only if that
function survives it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from datacrumbs.probes.elf_identity import Layout, NotElfError, read_at, read_layout
from datacrumbs.probes.unwind import unwind_entries

PT_LOAD = 1
PF_X = 1
SYMBOL_TABLES = (2, 11)  # SHT_SYMTAB, SHT_DYNSYM
STRING_TABLE = 3  # SHT_STRTAB
FUNCTION_TYPES = (2, 10)  # STT_FUNC, STT_GNU_IFUNC
TABLE_BYTES_MAX = 256 << 20
NAME_BYTES_MAX = 4096

UNSAFE = (
    (
        re.compile(r"_{0,2}(sig)?setjmp|savectx|getcontext|swapcontext"),
        "returns more than once: a return probe would kill the program",
    ),
    (
        re.compile(r"_Unwind_\w+|__cxa_(re)?throw|_ZSt\d+(__throw_|rethrow_exception)\w*"),
        "walks up the stack, which a return probe breaks",
    ),
    (
        re.compile(r"dlv?sym|dlm?open|_?mcount|__fentry__"),
        "depends on who calls it, which a return probe hides",
    ),
    (
        re.compile(r"_start|_dl_start\w*|_dl_runtime_\w+|__restore_rt|__start_context"),
        "is not entered by a call, so it has no return to probe",
    ),
    (
        re.compile(r".+\.cold(\.\d+)?"),
        "is a part of another function that is jumped to, not called",
    ),
)
"""Names of functions that a program does not survive being probed in, and why.

A return probe replaces the return address on the stack. Seen on Linux 6.18: a probed
`setjmp` or `getcontext` ends in SIGILL, `__cxa_throw` in std::terminate, and `dlsym` with
RTLD_NEXT finds nothing.
"""

_ANY_UNSAFE = re.compile(
    "|".join(f"(?:{pattern.pattern})" for pattern, _ in UNSAFE).encode(), re.DOTALL
)


class Section(NamedTuple):
    """One section header, sizes and offsets in bytes; ``name`` is an offset into a table."""

    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int


def unsafe_reason(name: str) -> str:
    """Why a function called ``name`` must not be probed; "" if nothing speaks against it."""
    return next((reason for pattern, reason in UNSAFE if pattern.fullmatch(name)), "")


def function_starts(fd: int) -> frozenset[int]:
    """The file offsets at which functions begin that may be probed, in executable segments.

    ``fd`` is a regular file, open for reading. Raises `NotElfError`.
    """
    return frozenset(start for start, probed in function_map(fd).items() if probed)


def function_map(fd: int) -> dict[int, bool]:
    """The file offsets at which code of a function begins, and whether it may be probed there.

    What may not be is still where the function before it ends. Raises `NotElfError`.
    """
    layout = read_layout(fd)
    code = [s for s in layout.segments if s.kind == PT_LOAD and s.flags & PF_X]
    found: dict[int, bool] = {}
    for address, called in unwind_entries(fd, layout):
        found[address] = found.get(address, False) or called
    unsafe = set()
    for address, name in _function_symbols(fd, layout):
        found[address] = True
        # without the version of a symbol (setjmp@GLIBC_2.2.5)
        if _ANY_UNSAFE.fullmatch(name.partition(b"@")[0]):
            unsafe.add(address)
    return {
        address - segment.address + segment.offset: probed and address not in unsafe
        for address, probed in found.items()
        for segment in code
        if 0 <= address - segment.address < segment.file_size
    }


def sections(fd: int, layout: Layout) -> list[Section]:
    """The section headers; none in a file without them."""
    entry = struct.Struct(layout.order + ("IIQQQQIIQQ" if layout.is_64 else "IIIIIIIIII"))
    if layout.section_size != entry.size:
        return []
    headers = _table(fd, layout.sections_offset, layout.section_count * entry.size)
    return [Section(*fields[:7]) for fields in entry.iter_unpack(headers)]


def _function_symbols(fd: int, layout: Layout) -> Iterator[tuple[int, bytes]]:
    """(address, name) of each defined function in the symbol tables."""
    entry = struct.Struct(layout.order + ("IBBHQQ" if layout.is_64 else "IIIBBH"))
    tables = sections(fd, layout)
    left = TABLE_BYTES_MAX
    for table in tables:
        if table.kind not in SYMBOL_TABLES:
            continue
        linked = tables[table.link] if 0 < table.link < len(tables) else None
        # many headers may name one table: what counts is what is read
        left -= table.size + (linked.size if linked else 0)
        if left < 0:
            raise NotElfError(f"symbol tables of more than {TABLE_BYTES_MAX} bytes")
        strings = _table(fd, linked.offset, linked.size) if linked else b""
        symbols = _table(fd, table.offset, table.size - table.size % entry.size)
        for fields in entry.iter_unpack(symbols):
            if layout.is_64:
                name, info, _, section, address, _ = fields
            else:
                name, address, _, info, _, section = fields
            if info & 15 in FUNCTION_TYPES and section != 0:
                # no longer ones: many symbols may share the end of one endless name
                end = strings.find(b"\0", name, name + NAME_BYTES_MAX)
                yield address, strings[name : max(end, name)]


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
