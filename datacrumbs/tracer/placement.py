"""Where in a function its probes go.

The kernel carries out some instructions itself when a probe lies on them (on x86-64 ``push``,
``nop``, ``jmp``, ``jcc``, ``call``) and steps a copy of all others through a debug exception,
which costs many times as much. So a probe may move from the function's first instruction to a
later one that the kernel emulates. That is done only if nothing can tell the difference:

- everything it moves past neither branches nor touches the stack pointer (the return address
  must still lie on top of the stack) nor, if arguments are captured, a register that passes one;
- nothing leads to an instruction between, or to the new one, except from the first: no other
  function begins there, no direct branch anywhere in the code goes there (every byte is taken
  for an opcode, so none is missed, whatever the true boundaries are), and the function has no
  indirect jump, whose targets are not known.

Otherwise the probe stays where it is.

A return probe exchanges the return address, and unwinders (C++ exceptions, Rust panics) stop
at it: the program ends. Functions of files that such may pass are probed at their exits
instead. `exits` finds them by decoding the whole function.

Who decodes: the daemon, as root, at attach. It could be the configurator, as the user, but then
root would have to trust an offset in the middle of a function, which is a breakpoint in
everybody's code; to check one is to decode all the same. Root reads a bounded number of bytes
at a place where the file says that a function begins, and hands them to iced-x86: Rust, without
I/O, and of all results only offsets within these bytes are used. Without iced-x86, and on
other machines than x86-64, probes stay at the first instruction.
"""

from __future__ import annotations

import platform
import re
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from datacrumbs.probes.elf_functions import PF_X, PT_LOAD, function_map, has_name
from datacrumbs.probes.elf_identity import Segment, read_at, read_layout

FUNCTION_BYTES_MAX = 64 << 10
PROLOGUE_BYTES = 64
SHORT_REACH = 130  # bytes from a short branch to where it leads, and its own length
CODE_BYTES_MAX = 16 << 20
"""Of files with more code, functions are not moved: it takes too long to look at all of it."""

UNWINDERS = (b"__gxx_personality_v0", b"rust_eh_personality", b"_Unwind_RaiseException")
"""Names in files whose functions an exception or a panic may pass."""

_PUSH = re.compile(rb"\x41?[\x50-\x57]")
_EMULATED = re.compile(rb"\x41?[\x50-\x57]|\x90|[\x70-\x7f\xeb\xe8\xe9]|\x0f[\x80-\x8f]")
_SHORT = re.compile(rb"(?=[\x70-\x7f\xeb\xe0-\xe3])")
_NEAR = re.compile(rb"[\xe8\xe9]|\x0f[\x80-\x8f]")
_INDIRECT = re.compile(rb"\xff[\x20-\x27\x60-\x67\xa0-\xa7\xe0-\xe7]")


@dataclass(frozen=True, slots=True)
class Exit:
    """An instruction that leaves a function; ``tail``: by a jump into another one."""

    offset: int
    tail: bool


class Code:
    """The functions of one ELF file. Raises `NotElfError`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._iced = _disassembler()
        layout = read_layout(fd)
        self._segments = [s for s in layout.segments if s.kind == PT_LOAD and s.flags & PF_X]
        found = function_map(fd)
        self.starts = frozenset(start for start, probed in found.items() if probed)
        self._sorted = sorted(found)

    def passed_by_exceptions(self) -> bool:
        """May a C++ exception or a panic pass the file's functions?"""
        return has_name(self._fd, UNWINDERS)

    def places(self, functions: Iterable[tuple[int, bool]]) -> dict[int, int]:
        """Where the probe of each (start, are arguments captured) goes."""
        places, moved = {}, {}
        for start, captured in functions:
            places[start] = start
            place = self._candidate(start, captured)
            if place != start:
                moved[start] = place
        reached = self._reached(moved)
        return places | {start: place for start, place in moved.items() if start not in reached}

    def _end(self, start: int) -> int:
        """Where the function ends at the latest: the next one begins, or the segment ends."""
        following = bisect_right(self._sorted, start)
        if following < len(self._sorted):
            return self._sorted[following]
        segment = self._segment(start)
        return segment.offset + segment.file_size

    def _segment(self, start: int) -> Segment:
        return next(s for s in self._segments if s.offset <= start < s.offset + s.file_size)

    def _bytes(self, start: int, limit: int) -> bytes:
        return read_at(self._fd, start, min(self._end(start) - start, limit))

    def _candidate(self, start: int, captured: bool) -> int:
        """The first emulated instruction that the function alone lets the probe move to."""
        if not self._iced:
            return start
        head = self._bytes(start, PROLOGUE_BYTES)
        if _PUSH.match(head):
            return start
        for instruction in self._iced.Decoder(64, head, ip=start):
            place = instruction.ip
            if instruction.is_invalid:
                return start
            if _EMULATED.match(head[place - start :]):
                return place if self._alone(start, place) else start
            if not self._passable(instruction, captured):
                return start
        return start

    def _passable(self, instruction: Any, captured: bool) -> bool:
        iced = self._iced
        register = iced.Register
        if instruction.flow_control != iced.FlowControl.NEXT or instruction.is_stack_instruction:
            return False
        arguments = (register.RDI, register.RSI, register.RDX, register.RCX)
        guarded = {*arguments, register.R8, register.R9} if captured else set()
        for used in iced.InstructionInfoFactory().info(instruction).used_registers():
            whole = iced.RegisterExt.full_register(used.register)
            reads = used.access in (iced.OpAccess.READ, iced.OpAccess.COND_READ)
            if whole == register.RSP or (whole in guarded and not reads):
                return False
        return True

    def _alone(self, start: int, place: int) -> bool:
        """Does neither a jump table nor a short branch lead into (start, place]?"""
        if self._end(start) - start > FUNCTION_BYTES_MAX:
            return False
        if _INDIRECT.search(self._bytes(start, FUNCTION_BYTES_MAX)):
            return False
        segment = self._segment(start)
        low = max(segment.offset, start - SHORT_REACH)
        high = min(segment.offset + segment.file_size, place + SHORT_REACH)
        around = read_at(self._fd, low, high - low)
        for match in _SHORT.finditer(around[:-1]):
            distance = int.from_bytes(around[match.start() + 1 : match.start() + 2], signed=True)
            if start < low + match.start() + 2 + distance <= place:
                return False
        return True

    def _reached(self, moved: dict[int, int]) -> set[int]:
        """The functions of ``moved`` to which something else may lead between start and place."""
        if not moved:
            return set()
        starts = sorted(moved)
        if sum(s.file_size for s in self._segments) > CODE_BYTES_MAX:
            return set(starts)
        reached = set()
        for segment in self._segments:
            for target in _targets(read_at(self._fd, segment.offset, segment.file_size)):
                at = bisect_left(starts, target + segment.offset) - 1  # the last start before it
                if at >= 0 and target + segment.offset <= moved[starts[at]]:
                    reached.add(starts[at])
        return reached

    def exits(self, start: int) -> list[Exit] | None:
        """All instructions that leave the function; None when that is not certain."""
        if self._end(start) - start > FUNCTION_BYTES_MAX:
            return None
        body = self._bytes(start, FUNCTION_BYTES_MAX)
        if platform.machine() == "aarch64":
            return list(_exits_aarch64(body, start))
        return self._exits_x86(body, start) if self._iced else None

    def _exits_x86(self, body: bytes, start: int) -> list[Exit] | None:
        iced = self._iced
        flow = iced.FlowControl
        found: list[Exit] = []
        boundaries, targets = set(), set()
        for instruction in iced.Decoder(64, body, ip=start):
            if instruction.is_invalid:
                return None
            boundaries.add(instruction.ip)
            kind = instruction.flow_control
            if kind == flow.RETURN:
                found.append(Exit(instruction.ip, False))
            elif kind in (flow.UNCONDITIONAL_BRANCH, flow.CONDITIONAL_BRANCH):
                target = instruction.near_branch_target
                if start <= target < start + len(body):
                    targets.add(target)
                elif kind == flow.UNCONDITIONAL_BRANCH:
                    found.append(Exit(instruction.ip, True))
            elif kind == flow.INDIRECT_BRANCH and not instruction.memory_index:
                # with an index: a jump table. Else a call in the last place, if the stack
                # pointer is then that of the entry, which the BPF program compares
                found.append(Exit(instruction.ip, True))
        return found if targets <= boundaries else None


def _targets(code: bytes) -> Iterator[int]:
    """Where near branches would go if every byte were an opcode, relative to ``code``."""
    for match in _NEAR.finditer(code):
        end = match.end()
        if end + 4 <= len(code):
            yield end + 4 + struct.unpack_from("<i", code, end)[0]


def _exits_aarch64(body: bytes, start: int) -> Iterator[Exit]:
    """RET, RETAA, RETAB; B out of the function, BR."""
    words = len(body) // 4
    for at, (word,) in enumerate(struct.iter_unpack("<I", body[: words * 4])):
        if word & 0xFFFFFC1F == 0xD65F0000 or word in (0xD65F0BFF, 0xD65F0FFF):
            yield Exit(start + at * 4, False)
        elif word & 0xFC000000 == 0x14000000:
            distance = (word & 0x3FFFFFF) - ((word & 0x2000000) << 1)
            if not 0 <= at + distance < words:
                yield Exit(start + at * 4, True)
        elif word & 0xFFFFFC1F == 0xD61F0000:
            yield Exit(start + at * 4, True)


def _disassembler() -> Any:
    """The module iced_x86, on x86-64, if it is installed."""
    if platform.machine() != "x86_64":
        return None
    try:
        import iced_x86
    except ImportError:
        return None
    return iced_x86
