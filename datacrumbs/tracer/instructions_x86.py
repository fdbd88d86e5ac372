"""x86-64 instructions, decoded by iced-x86.

Uprobes emulate ``push``, ``nop``, ``jmp``, ``jcc`` and ``call`` (arch/x86/kernel/uprobes.c).
Instructions begin at any byte, so where branches are looked for, every byte is taken for an
opcode: none is missed, whatever the true boundaries are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datacrumbs.tracer.instructions import Exit, Instruction

ARGUMENTS = ("RDI", "RSI", "RDX", "RCX", "R8", "R9")

_EMULATED = re.compile(rb"\x41?[\x50-\x57]|\x90|[\x70-\x7f\xeb\xe8\xe9]|\x0f[\x80-\x8f]")
_INDIRECT = re.compile(rb"\xff[\x20-\x27\x60-\x67\xa0-\xa7\xe0-\xe7]")
_SHORT = np.isin(np.arange(256), [*range(0x70, 0x80), *range(0xE0, 0xE4), 0xEB])


class X86:
    """x86-64; without iced-x86 nothing is decoded."""

    def __init__(self) -> None:
        self._iced = _iced()
        if self._iced:
            access = self._iced.OpAccess
            self._reads = (access.READ, access.COND_READ, access.NO_MEM_ACCESS)
            self._arguments = {getattr(self._iced.Register, name) for name in ARGUMENTS}

    def decode(self, head: bytes) -> Iterator[Instruction]:
        if _EMULATED.match(head):  # as most functions begin: not worth the decoder
            yield Instruction(0, emulated=True)
        elif self._iced:
            for instruction in self._iced.Decoder(64, head):
                if instruction.is_invalid:
                    return
                if _EMULATED.match(head, instruction.ip):
                    yield Instruction(instruction.ip, emulated=True)
                    return
                yield self._described(instruction)

    def _described(self, instruction: Any) -> Instruction:
        iced = self._iced
        used = iced.InstructionInfoFactory().info(instruction)
        touched, changed = set(), set()
        for one in used.used_registers():
            whole = iced.RegisterExt.full_register(one.register)
            touched.add(whole)
            if one.access not in self._reads:
                changed.add(whole)
        stores = any(memory.access not in self._reads for memory in used.used_memory())
        return Instruction(
            instruction.ip,
            goes_on=instruction.flow_control == iced.FlowControl.NEXT,
            keeps_return=not instruction.is_stack_instruction and iced.Register.RSP not in touched,
            keeps_arguments=not stores and changed.isdisjoint(self._arguments),
        )

    def jumps_by_table(self, body: bytes) -> bool:
        return _INDIRECT.search(body) is not None

    def targets(self, code: bytes) -> NDArray[np.int64]:
        data = np.frombuffer(code, np.uint8)
        short = np.flatnonzero(_SHORT[data[:-1]])
        call_or_jump = np.flatnonzero((data == 0xE8) | (data == 0xE9))
        conditional = np.flatnonzero((data[:-1] == 0x0F) & (data[1:] & 0xF0 == 0x80)) + 1
        near = np.concatenate([call_or_jump, conditional])
        near = near[near + 5 <= len(data)]
        near_by = data[near[:, None] + np.arange(1, 5)].view("<i4")[:, 0]
        return np.concatenate([short + 2 + data[short + 1].view(np.int8), near + 5 + near_by])

    def exits(self, body: bytes) -> list[Exit] | None:
        if not self._iced:
            return None
        flow = self._iced.FlowControl
        found: list[Exit] = []
        boundaries, targets = set(), set()
        for instruction in self._iced.Decoder(64, body):
            if instruction.is_invalid:
                return None
            boundaries.add(instruction.ip)
            kind = instruction.flow_control
            if kind == flow.RETURN:
                found.append(Exit(instruction.ip, False))
            elif kind in (flow.UNCONDITIONAL_BRANCH, flow.CONDITIONAL_BRANCH):
                target = instruction.near_branch_target
                if target < len(body):
                    targets.add(target)
                elif kind == flow.UNCONDITIONAL_BRANCH:
                    found.append(Exit(instruction.ip, True))
            elif kind == flow.INDIRECT_BRANCH and not instruction.memory_index:
                # with an index: a jump table. Else a call in the last place, if the stack
                # pointer is then that of the entry, which the BPF program compares
                found.append(Exit(instruction.ip, True))
        return found if targets <= boundaries else None


def _iced() -> Any:
    """The module iced_x86, None where it is not installed."""
    try:
        import iced_x86
    except ImportError:
        return None
    return iced_x86
