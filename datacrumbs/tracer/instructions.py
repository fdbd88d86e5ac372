"""What placement asks of machine code, whatever the machine.

Offsets are those in the bytes that are given. `datacrumbs.tracer.instructions_x86` and
`datacrumbs.tracer.instructions_aarch64` answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a function's beginning.

    ``emulated``: the kernel carries it out itself when a probe lies on it, instead of stepping
    a copy. Of all others is known whether the next one always follows (``goes_on``), whether
    they ``keep_return`` (neither touch the stack pointer nor what says where the function
    returns to) and ``keep_arguments`` (the registers that pass some, and memory).
    """

    offset: int
    emulated: bool = False
    goes_on: bool = False
    keeps_return: bool = False
    keeps_arguments: bool = False


@dataclass(frozen=True, slots=True)
class Exit:
    """An instruction that leaves a function; ``tail``: by a jump into another one."""

    offset: int
    tail: bool


class InstructionSet(Protocol):
    """One machine's code."""

    def decode(self, head: bytes) -> Iterator[Instruction]:
        """The instructions from the first on; ends at one that is not known.

        Gives none where the disassembler is not installed.
        """

    def jumps_by_table(self, body: bytes) -> bool:
        """May there be a jump whose targets the instruction does not say?"""

    def targets(self, code: bytes) -> NDArray[np.int64]:
        """Where all direct branches lead that ``code`` may hold, in any order."""

    def exits(self, body: bytes) -> list[Exit] | None:
        """All instructions that leave the function; None when that is not certain."""
