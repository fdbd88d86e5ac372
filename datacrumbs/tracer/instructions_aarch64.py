"""aarch64 instructions; what those at a function's beginning use, capstone says.

Uprobes carry out branches, ``adr`` and ``adrp`` themselves, and refuse what does not work from
another place, such as reads of literals and of system registers
(arch/arm64/kernel/probes/decode-insn.c). ``nop`` is among the first since Linux 6.13 only, so
it counts as stepped.

The return address is in x30. Past what saves it (``stp x29, x30, [sp, #-16]!``) or signs it
(``paciasp``) a return probe comes too late.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datacrumbs.tracer.instructions import Exit, Instruction

Pattern = tuple[int, int]
"""A mask, and what is left of a word under it."""

B_BL: Pattern = (0x7C000000, 0x14000000)
B: Pattern = (0xFC000000, 0x14000000)
B_COND: Pattern = (0xFE000000, 0x54000000)
CBZ_CBNZ: Pattern = (0x7E000000, 0x34000000)
TBZ_TBNZ: Pattern = (0x7E000000, 0x36000000)
CB: Pattern = (0x7E000000, 0x74000000)  # compares and branches, since Armv9.6
ADR_ADRP: Pattern = (0x1F000000, 0x10000000)
BR: Pattern = (0xFFFFFC1F, 0xD61F0000)
BLR: Pattern = (0xFFFFFC1F, 0xD63F0000)
RET: Pattern = (0xFFFFFC1F, 0xD65F0000)
RETAA_RETAB: Pattern = (0xFFFFFBFF, 0xD65F0BFF)
BR_SIGNED_OR_NOT: Pattern = (0xFEE00000, 0xD6000000)
LOAD_STORE: Pattern = (0x0A000000, 0x08000000)

EMULATED = (B_BL, (0xFF000010, 0x54000000), CBZ_CBNZ, TBZ_TBNZ, ADR_ADRP, BR, BLR, RET)
"""What uprobes carry out; of conditional branches not the newer ``bc.cond``."""

PASSABLE = (
    (0x1C000000, 0x10000000),  # data processing with an immediate
    (0x0E000000, 0x0A000000),  # data processing of registers
    (0x0E000000, 0x0E000000),  # floating point, SIMD
    LOAD_STORE,
    (0xFFFFFFFF, 0xD503201F),  # nop
    (0xFFFFFF3F, 0xD503241F),  # bti
    (0xFFFFFFE0, 0xD53BD040),  # mrs of tpidr_el0, the thread pointer
)
EXCLUSIVE: Pattern = (0x3F000000, 0x08000000)
"""A breakpoint between an exclusive load and its store makes the store fail for ever."""

STP_X29_X30: Pattern = (0xFFC07FFF, 0xA9807BFD)
"""Saves the return address, as most functions begin: not worth the decoder."""

COMPARES = ("cmp", "cmn", "tst", "ccmp", "ccmn")
"""What writes no register. Of all else the first operand counts as written, whatever capstone 5
says: it takes ``cmp`` for one that writes it and ``adds`` for one that reads it."""

LOADS = ("ldr", "ldp", "ldur")
"""What certainly does not write memory."""

REACH = ((B_BL, 0, 26), (B_COND, 5, 19), (CBZ_CBNZ, 5, 19), (TBZ_TBNZ, 5, 14), (CB, 5, 9))
"""Of each branch the lowest bit and the number of bits of its distance, which counts words."""


class Aarch64:
    """aarch64; without capstone nothing is decoded that needs to be understood."""

    def __init__(self) -> None:
        self._capstone = _capstone()
        if self._capstone:
            self._decoder = self._capstone.Cs(self._capstone.CS_ARCH_ARM64, 0)
            self._decoder.detail = True
            self._arguments = self._numbers(f"{size}{n}" for size in "XW" for n in range(8))
            self._return = self._numbers(("LR", "W30", "SP", "WSP"))

    def _numbers(self, names: Iterable[str]) -> set[int]:
        return {getattr(self._capstone.arm64, f"ARM64_REG_{name}") for name in names}

    def decode(self, head: bytes) -> Iterator[Instruction]:
        if not self._capstone:
            return
        for at, word in enumerate(_words(head).tolist()):
            if any(word & mask == rest for mask, rest in EMULATED):
                yield Instruction(at * 4, emulated=True)
                return
            if not _passable(word):
                yield Instruction(at * 4)
                return
            decoded = next(self._decoder.disasm(head[at * 4 : at * 4 + 4], 0), None)
            if decoded is None:
                return
            yield self._described(at * 4, word, decoded)

    def _described(self, offset: int, word: int, decoded: Any) -> Instruction:
        """Whatever is not known of it, is taken to be at its worst."""
        read, written = map(set, decoded.regs_access())
        for number, operand in enumerate(decoded.operands):
            reads = number > 0 and operand.access == self._capstone.CS_AC_READ
            if operand.type == self._capstone.CS_OP_REG and not reads:
                written.add(operand.reg)
        changed = set() if decoded.mnemonic in COMPARES else written
        accesses = word & LOAD_STORE[0] == LOAD_STORE[1]
        return Instruction(
            offset,
            goes_on=True,
            keeps_return=self._return.isdisjoint(read | written),
            keeps_arguments=self._arguments.isdisjoint(changed)
            and (not accesses or decoded.mnemonic.startswith(LOADS)),
        )

    def jumps_by_table(self, body: bytes) -> bool:
        return bool(_are(_words(body), BR_SIGNED_OR_NOT).any())

    def targets(self, code: bytes) -> NDArray[np.int64]:
        words = _words(code)
        found = []
        for pattern, low, bits in REACH:
            at = np.flatnonzero(_are(words, pattern))
            found.append((at + _signed(words[at], low, bits)) * 4)
        return np.concatenate(found)

    def exits(self, body: bytes) -> list[Exit]:
        words = _words(body)
        at = np.arange(len(words))
        to = at + _signed(words, 0, 26)
        tails = _are(words, BR) | (_are(words, B) & ((to < 0) | (to >= len(words))))
        returns = _are(words, RET) | _are(words, RETAA_RETAB)
        return [Exit(int(n) * 4, bool(tails[n])) for n in np.flatnonzero(tails | returns)]


def _passable(word: int) -> bool:
    """Is it of a kind that may be moved past, whatever registers it uses?"""
    known = any(word & mask == rest for mask, rest in PASSABLE)
    return known and not any(word & mask == rest for mask, rest in (EXCLUSIVE, STP_X29_X30))


def _words(code: bytes) -> NDArray[np.uint32]:
    return np.frombuffer(code, "<u4", len(code) // 4)


def _are(words: NDArray[np.uint32], pattern: Pattern) -> NDArray[np.bool_]:
    mask, rest = pattern
    found: NDArray[np.bool_] = (words & np.uint32(mask)) == np.uint32(rest)
    return found


def _signed(words: NDArray[np.uint32], low: int, bits: int) -> NDArray[np.int64]:
    """The number in the ``bits`` from bit ``low`` on."""
    value = (words.astype(np.int64) >> low) & ((1 << bits) - 1)
    return value - ((value >> (bits - 1)) << bits)


def _capstone() -> Any:
    """The module capstone, None where it is not installed."""
    try:
        import capstone
    except ImportError:
        return None
    return capstone
