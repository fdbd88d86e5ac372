"""Where functions begin according to the unwind tables, which stripped files keep.

`.eh_frame_hdr` is a sorted table of (first address, entry in `.eh_frame`). Not every entry is
a function: a compiler gives the part of a function that it moved elsewhere (``.cold``) an
entry of its own, and that part is jumped to with the stack already in use. A return probe
there would overwrite whatever lies on top of the stack. What tells them apart is the state
that the entry begins with: a function begins with nothing but the return address on the stack.

LSB Core 5, "Exception Frames"; DWARF 4, 6.4.2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from datacrumbs.probes.elf_identity import Layout, NotElfError, Segment, read_at

PT_LOAD = 1
PT_GNU_EH_FRAME = 0x6474E550
FRAMES_BYTES_MAX = 256 << 20
ENTRIES_MAX = 1 << 21
ENTRY_BYTES_MAX = 1 << 12
"""What is read of one entry: the rest of it cannot matter for its beginning."""

_HEADER = b"\x01\x1b\x03\x3b"
"""Version 1, pcrel|sdata4, udata4, datarel|sdata4: the one encoding that linkers write."""

_INITIAL = (b"\x0c\x07\x08\x90\x01", b"\x0c\x1f\x00")
"""The state at a function's entry: x86-64 the frame at rsp+8 and the return address just below it,
aarch64 the frame at sp. `_start`, which has no caller, goes on to say that."""

_POINTER_SIZE = {0x0: 8, 0x2: 2, 0x3: 4, 0x4: 8, 0xA: 2, 0xB: 4, 0xC: 8}


def unwind_entries(fd: int, layout: Layout) -> Iterator[tuple[int, bool]]:
    """The addresses at which, by the unwind tables, code begins, and whether that is called.

    Raises `NotElfError` for tables that lie outside the file.
    """
    for segment in layout.segments:
        if segment.kind == PT_GNU_EH_FRAME and segment.file_size >= 12:
            yield from _entries(fd, layout, segment)


def _entries(fd: int, layout: Layout, segment: Segment) -> Iterator[tuple[int, bool]]:
    head = read_at(fd, segment.offset, 12)
    if head[:4] != _HEADER:
        return
    frames_at, count = struct.unpack(layout.order + "iI", head[4:])
    if count > ENTRIES_MAX or 12 + count * 8 > segment.file_size:
        return
    table = read_at(fd, segment.offset + 12, count * 8) if count else b""
    pairs = list(struct.iter_unpack(layout.order + "ii", table))
    end = max((entry for _, entry in pairs), default=0) + ENTRY_BYTES_MAX
    frames = _frames(fd, layout, segment.address + 4 + frames_at, segment.address + end)
    if frames is not None:
        for first, entry in pairs:
            yield segment.address + first, frames.is_function(segment.address + entry)


def _frames(fd: int, layout: Layout, address: int, end: int) -> _Frames | None:
    """`.eh_frame` from ``address`` to ``end``, or to the end of its segment."""
    for segment in layout.segments:
        if segment.kind == PT_LOAD and 0 <= address - segment.address < segment.file_size:
            skipped = address - segment.address
            size = min(segment.file_size - skipped, max(end - address, 0), FRAMES_BYTES_MAX)
            return _Frames(read_at(fd, segment.offset + skipped, size), address, layout.order)
    return None


class _Frames:
    """The bytes of `.eh_frame` from ``address`` on; its common entries are read once."""

    def __init__(self, data: bytes, address: int, order: str) -> None:
        self.data = data
        self.address = address
        self.word = struct.Struct(order + "I")
        self.common: dict[int, int | None] = {}

    def is_function(self, entry: int) -> bool:
        """Whether the entry at address ``entry`` begins with a function's first state."""
        at = entry - self.address
        try:
            length, back = self._word(at), self._word(at + 4)
            if length in (0, 0xFFFFFFFF) or back == 0:
                return False
            where = at + 4 - back
            if where not in self.common:
                self.common[where] = self._common(where)
            pointer_size = self.common[where]
            if pointer_size is None:
                return False
            extra, begin = self._uleb(at + 8 + 2 * pointer_size)
            return self._keeps_state(begin + extra, at + min(4 + length, ENTRY_BYTES_MAX))
        except (IndexError, struct.error, NotElfError):
            return False

    def _word(self, at: int) -> int:
        if at < 0:
            raise NotElfError("an entry before its table")
        (value,) = self.word.unpack_from(self.data, at)
        return int(value)

    def _common(self, at: int) -> int | None:
        """Size of code pointers of the entries that refer to this one; None: no functions'."""
        length, zero = self._word(at), self._word(at + 4)
        version = self.data[at + 8]
        end = self.data.find(b"\0", at + 9, at + 9 + 16)
        augmentation = self.data[at + 9 : end]
        if (
            zero
            or end < 0
            or version not in (1, 3)
            or augmentation[:1] != b"z"
            or b"S" in augmentation
        ):
            return None
        _, here = self._uleb(end + 1)  # code alignment
        _, here = self._uleb(here)  # data alignment: signed, but as long
        _, here = self._uleb(here)  # the return address's register
        size, here = self._uleb(here)
        initial = self.data[here + size : at + 4 + length]
        plain = initial.rstrip(b"\0") in (_INITIAL[0], _INITIAL[1].rstrip(b"\0"))
        return self._pointer_size(augmentation, here) if plain else None

    def _pointer_size(self, augmentation: bytes, at: int) -> int | None:
        for letter in augmentation[1:]:
            if letter == ord("R"):
                return _POINTER_SIZE.get(self.data[at] & 0xF)
            if letter == ord("P"):
                at += 1 + (_POINTER_SIZE.get(self.data[at] & 0xF) or 0)
            elif letter == ord("L"):
                at += 1
        return 8

    def _uleb(self, at: int) -> tuple[int, int]:
        """An unsigned LEB128 number and where it ends."""
        value = shift = 0
        while True:
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value, at
            if shift > 63:
                raise NotElfError("a number that does not end")

    def _keeps_state(self, at: int, end: int) -> bool:
        """Whether nothing changes before the first instruction has been run."""
        while at < end:
            operation = self.data[at]
            at += 1
            if operation >> 6 == 1 or operation in (1, 2, 3, 4):  # DW_CFA_*advance_loc*, set_loc
                return True
            if operation == 0x2E:  # DW_CFA_GNU_args_size
                _, at = self._uleb(at)
            elif operation not in (0x00, 0x0A):  # DW_CFA_nop, remember_state
                return False
        return True
