"""Where in a function its probes go.

The kernel carries out some instructions itself when a probe lies on them (on x86-64 ``push``,
``nop``, ``jmp``, ``jcc``, ``call``; on aarch64 branches, ``adr`` and ``adrp``) and steps a copy
of all others through a debug exception, which costs many times as much. So a probe may move
from the function's first instruction to a later one that the kernel emulates. That is done only
if nothing can tell the difference:

- everything it moves past neither branches nor touches the stack pointer nor where the return
  address is (x86-64: on top of the stack; aarch64: in x30), because a return probe exchanges
  it, nor, if arguments are captured, a register that passes one, or memory, where one may lead;
- nothing leads to an instruction between, or to the new one, except from the first: no other
  function begins there, no direct branch anywhere in the code goes there, and the function has
  no indirect jump, whose targets are not known.

Otherwise the probe stays where it is. What a machine's instructions are is told by
`datacrumbs.tracer.instructions_x86` and `datacrumbs.tracer.instructions_aarch64`.

A return probe exchanges the return address, and unwinders (C++ exceptions, Rust panics) stop
at it: the program ends. Functions of files that such may pass are probed at their exits
instead. `Code.exits` finds them by looking at the whole function.

Who decodes: the daemon, as root, at attach. It could be the configurator, as the user, but then
root would have to trust an offset in the middle of a function, which is a breakpoint in
everybody's code; to check one is to decode all the same. Root reads a bounded number of bytes
at a place where the file says that a function begins, and hands them to a disassembler without
I/O (x86-64: iced-x86, which is written in Rust, eight times as fast as capstone; aarch64:
capstone, because iced-x86 knows one machine); of all results only offsets within these bytes
are used. Without it, and on other machines, probes stay at the first instruction.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable

import numpy as np

from datacrumbs.probes.elf_functions import PF_X, PT_LOAD, function_map, has_name
from datacrumbs.probes.elf_identity import Segment, read_at, read_layout
from datacrumbs.tracer.instructions import Exit, InstructionSet
from datacrumbs.tracer.instructions_aarch64 import Aarch64
from datacrumbs.tracer.instructions_x86 import X86

FUNCTION_BYTES_MAX = 64 << 10
PROLOGUE_BYTES = 64
CODE_BYTES_MAX = 16 << 20
"""Of files with more code, functions are not moved: it takes too long to look at all of it."""

UNWINDERS = (b"__gxx_personality_v0", b"rust_eh_personality", b"_Unwind_RaiseException")
"""Names in files whose functions an exception or a panic may pass."""

MACHINES: dict[int, Callable[[], InstructionSet]] = {62: X86, 183: Aarch64}
"""By EM_X86_64, EM_AARCH64."""


class Code:
    """The functions of one ELF file. Raises `NotElfError`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        layout = read_layout(fd)
        machine = MACHINES.get(layout.machine)
        self._instructions = machine() if machine else None
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
        if self._instructions is None:
            return start
        for instruction in self._instructions.decode(self._bytes(start, PROLOGUE_BYTES)):
            place = start + instruction.offset
            if instruction.emulated:
                return place if place == start or self._looked_through(start) else start
            if not (instruction.goes_on and instruction.keeps_return):
                return start
            if captured and not instruction.keeps_arguments:
                return start
        return start

    def _looked_through(self, start: int) -> bool:
        """Is the function small, and without jumps that may lead anywhere?"""
        assert self._instructions is not None
        size = self._end(start) - start
        return size <= FUNCTION_BYTES_MAX and not self._instructions.jumps_by_table(
            self._bytes(start, size)
        )

    def _reached(self, moved: dict[int, int]) -> set[int]:
        """The functions of ``moved`` to which something else may lead between start and place."""
        if not moved or self._instructions is None:
            return set()
        if sum(s.file_size for s in self._segments) > CODE_BYTES_MAX:
            return set(moved)
        starts, places = np.array(sorted(moved.items())).T
        reached: set[int] = set()
        for segment in self._segments:
            code = read_at(self._fd, segment.offset, segment.file_size)
            targets = self._instructions.targets(code) + segment.offset
            before = np.searchsorted(starts, targets) - 1  # the last start before each
            between = (before >= 0) & (targets <= places[before])
            reached.update(starts[before[between]].tolist())
        return reached

    def exits(self, start: int) -> list[Exit] | None:
        """All instructions that leave the function; None when that is not certain."""
        size = self._end(start) - start
        if self._instructions is None or size > FUNCTION_BYTES_MAX:
            return None
        found = self._instructions.exits(self._bytes(start, size))
        if found is None:
            return None
        return [Exit(start + leave.offset, leave.tail) for leave in found]
