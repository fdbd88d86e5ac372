"""What an ELF file is: its build-id, else the digest of its contents.

Root runs this on files that users make. So it reads the few bytes it needs with `pread`, at
offsets checked against the file's size, a bounded number of them, and never maps the file
(a mapping of a file that shrinks kills the process).
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from datacrumbs.errors import BadInputError

PT_NOTE = 4
NT_GNU_BUILD_ID = 3
BUILD_ID_MAX = 32
PROGRAM_HEADERS_MAX = 1024
NOTES_BYTES_MAX = 1 << 20


class NotElfError(BadInputError):
    """The file is not an ELF file, or is one that contradicts itself."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One program header. ``kind`` and ``flags`` are PT_* and PF_*; the rest is in bytes."""

    kind: int
    flags: int
    offset: int
    address: int
    file_size: int
    align: int


@dataclass(frozen=True, slots=True)
class Layout:
    """What the ELF header says: 64 or 32 bit, byte order ('<' or '>'), where the tables are.

    ``machine`` is one of EM_*.
    """

    is_64: bool
    order: str
    machine: int
    segments: tuple[Segment, ...]
    sections_offset: int
    section_size: int
    section_count: int


def elf_identity(fd: int) -> tuple[str | None, str | None]:
    """``(build_id, None)`` for an ELF file with a GNU build-id note, else ``(None, digest)``.

    The build-id is in lower-case hexadecimal, the digest is ``sha256:`` and 64 digits. ``fd``
    is a regular file, open for reading; its position is not used. Raises `NotElfError`.
    """
    layout = read_layout(fd)
    build_id = _build_id(fd, layout)
    return (build_id, None) if build_id else (None, _digest(fd))


def read_layout(fd: int) -> Layout:
    """The ELF header and program headers of ``fd``. Raises `NotElfError`."""
    head = read_at(fd, 0, 64)
    if head[:4] != b"\x7fELF" or head[4] not in (1, 2) or head[5] not in (1, 2):
        raise NotElfError("not an ELF file")
    is_64, order = head[4] == 2, "<" if head[5] == 1 else ">"
    (machine,) = struct.unpack_from(order + "H", head, 18)
    fields = struct.unpack_from(
        order + ("QQIHHHHH" if is_64 else "IIIHHHHH"), head, 32 if is_64 else 28
    )
    ph_offset, sh_offset, _, _, ph_size, ph_count, sh_size, sh_count = fields
    wanted = 56 if is_64 else 32
    if ph_count and (ph_size != wanted or ph_count > PROGRAM_HEADERS_MAX):
        raise NotElfError(f"ELF header: {ph_count} program headers of {ph_size} bytes")
    table = read_at(fd, ph_offset, ph_count * wanted) if ph_count else b""
    segments = tuple(_segments(table, is_64, order))
    return Layout(is_64, order, machine, segments, sh_offset, sh_size, sh_count)


def read_at(fd: int, offset: int, size: int) -> bytes:
    """Exactly ``size`` bytes at ``offset``. Raises `NotElfError` if the file has not got them."""
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise NotElfError("not a regular file")
        if size < 0 or offset < 0 or offset + size > status.st_size:
            raise NotElfError(f"not an ELF file, or truncated: no {size} bytes at {offset}")
        data = b""
        while len(data) < size:
            piece = os.pread(fd, size - len(data), offset + len(data))
            if not piece:
                raise NotElfError("truncated while it was read")
            data += piece
    except OSError as error:
        raise NotElfError(f"cannot be read: {error.strerror}") from error
    return data


def _segments(table: bytes, is_64: bool, order: str) -> Iterator[Segment]:
    for fields in struct.iter_unpack(order + ("IIQQQQQQ" if is_64 else "IIIIIIII"), table):
        if is_64:
            kind, flags, offset, address, _, file_size, _, align = fields
        else:
            kind, offset, address, _, file_size, _, flags, align = fields
        yield Segment(kind, flags, offset, address, file_size, align)


def _build_id(fd: int, layout: Layout) -> str | None:
    left = NOTES_BYTES_MAX
    for segment in layout.segments:
        if segment.kind == PT_NOTE and segment.file_size <= left:
            left -= segment.file_size
            data = read_at(fd, segment.offset, segment.file_size)
            for name, kind, value in notes(data, layout.order, 8 if segment.align == 8 else 4):
                if name == b"GNU\0" and kind == NT_GNU_BUILD_ID and 0 < len(value) <= BUILD_ID_MAX:
                    return value.hex()
    return None


def notes(data: bytes, order: str, align: int) -> Iterator[tuple[bytes, int, bytes]]:
    """(name, type, value) of each note that lies within ``data``."""
    at = 0
    while at + 12 <= len(data):
        name_size, value_size, kind = struct.unpack_from(order + "III", data, at)
        value_at = _aligned(at + 12 + name_size, align)
        end = value_at + value_size
        if end > len(data):
            return
        yield data[at + 12 : at + 12 + name_size], kind, data[value_at:end]
        at = _aligned(end, align)


def _aligned(offset: int, align: int) -> int:
    return (offset + align - 1) & -align


def _digest(fd: int) -> str:
    """SHA-256 of the first ``st_size`` bytes (no more: a file may grow faster than we read)."""
    digest, at, size = hashlib.sha256(), 0, os.fstat(fd).st_size
    while at < size:
        piece = read_at(fd, at, min(1 << 20, size - at))
        digest.update(piece)
        at += len(piece)
    return f"sha256:{digest.hexdigest()}"
