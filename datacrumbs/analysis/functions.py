"""What the numbers in column ``func`` mean, and which calls count towards what.

- **Waiting is not I/O.** Functions of op ``wait`` (poll, select, epoll) add to waiting time, not
  to time in I/O. Nor do system calls that neither name a file nor move bytes (futex, nanosleep).
- **Bytes count once.** ``fread`` and the ``read`` inside it move the same bytes. Where system
  calls of an op are traced, user functions of that op do not count for files, processes and
  access sizes; they have their own lines in the table of functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from datacrumbs.probes.syscalls import NO_ROLES, ROLES
from datacrumbs.trace.schema import SYSCALL_KINDS, Op

if TYPE_CHECKING:
    import pyarrow as pa

MAX_FUNCTIONS = 1 << 16
UNKNOWN_LAYER = "unknown"
"""Layer of functions whose row is not in the trace (cut off, or lost to a full disk)."""

Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Function:
    """One row of the table ``functions``."""

    layer: str
    name: str
    op: Op
    kind: str

    @property
    def syscall(self) -> bool:
        """A system call, or what io_uring carries out in place of one."""
        return self.kind in SYSCALL_KINDS


class Functions:
    """The table ``functions`` as arrays by ``func``, for whole batches at a time."""

    def __init__(self, table: pa.Table) -> None:
        self._by_number = {row["func"]: _function(row) for row in table.to_pylist()}
        known = self._by_number.values()
        self.layers = [*dict.fromkeys(f.layer for f in known), UNKNOWN_LAYER]
        self.layer = np.full(MAX_FUNCTIONS, len(self.layers) - 1, np.intp)
        for number, function in self._by_number.items():
            self.layer[number] = self.layers.index(function.layer)
        ops_by_syscall = {f.op for f in known if f.syscall}
        self.syscall = self._flags(lambda f: f.syscall)
        self.io = self._flags(_is_io)
        self.waits = self._flags(lambda f: f.op == Op.WAIT)
        self.opens = self._flags(lambda f: f.op == Op.OPEN)
        self.reads = self._flags(lambda f: f.op in (Op.READ, Op.COPY))
        self.writes = self._flags(lambda f: f.op == Op.WRITE)
        self.copies = self._flags(lambda f: f.op == Op.COPY)
        self.counts = self._flags(lambda f: f.syscall or f.op not in ops_by_syscall)

    def __getitem__(self, number: int) -> Function:
        unknown = Function(UNKNOWN_LAYER, f"function {number}", Op.OTHER, "unknown")
        return self._by_number.get(number, unknown)

    def kinds(self) -> dict[int, str]:
        """The kind of every function in the table, by number."""
        return {number: function.kind for number, function in self._by_number.items()}

    def attached(self) -> set[tuple[str, str]]:
        """Layer and name of every function in the table."""
        return {(f.layer, f.name) for f in self._by_number.values()}

    def _flags(self, holds: Callable[[Function], bool]) -> Flags:
        flags = np.zeros(MAX_FUNCTIONS, bool)
        flags[[number for number, f in self._by_number.items() if holds(f)]] = True
        return flags


def _function(row: dict[str, str]) -> Function:
    known = row["op"] in set(Op)  # a later version may know more
    op = Op(row["op"]) if known else Op.OTHER
    return Function(row["layer"], row["name"], op, row["kind"])


def _is_io(function: Function) -> bool:
    if function.op == Op.WAIT:
        return False
    return function.kind != "syscall" or ROLES.get(function.name, NO_ROLES) is not NO_ROLES
