"""Rows of ``intervals``: calls that the kernel has added up, ready for the tallies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from datacrumbs.analysis.functions import Functions
from datacrumbs.analysis.keys import Index, Numbers
from datacrumbs.analysis.processes import ProcessIndex

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Profiled:
    """Some rows of ``intervals``. Arrays of one length, but for the last three.

    Histograms are flat: ``powers[i]`` and ``calls[i]`` belong to row ``row[i]``.
    """

    functions: Functions
    start: Numbers
    end: Numbers
    func: Index
    process: Index
    count: Numbers
    errors: Numbers
    time_ns: Numbers
    max_ns: Numbers
    moved: Numbers  # bytes
    row: Index
    powers: Index
    calls: Numbers


def profiled_of(batch: pa.RecordBatch, functions: Functions, processes: ProcessIndex) -> Profiled:
    """`Profiled` from one batch of the table.

    A pid means the process that had it last when the interval ended.
    """
    import pyarrow.compute as pc

    def column(name: str) -> Numbers:
        return np.asarray(batch.column(name).to_numpy(), np.int64)

    start = column("ts")
    end = start + column("dur")
    histogram = batch.column("histogram")
    row = pc.list_parent_indices(histogram).to_numpy().astype(np.intp)
    first = np.searchsorted(row, row)  # where the row's list begins
    return Profiled(
        functions=functions,
        start=start,
        end=end,
        func=column("func").astype(np.intp),
        process=processes.numbers(batch.column("pid").to_numpy(), end),
        count=column("count"),
        errors=column("errors"),
        time_ns=column("time"),
        max_ns=column("max"),
        moved=column("bytes"),
        row=row,
        powers=np.arange(len(row)) - first,
        calls=pc.list_flatten(histogram).to_numpy().astype(np.int64),
    )


class ProfiledTime:
    """Time in I/O and waiting, by process and layer. Sums: starts and ends are not known."""

    def __init__(self, functions: Functions) -> None:
        self._functions = functions
        self._layers = len(functions.layers)
        self._io_ns = np.zeros((0, self._layers), np.int64)
        self._wait_ns = np.zeros(0, np.int64)
        self.seen = False  # any calls in I/O

    def add(self, rows: Profiled) -> None:
        """Add rows of which processes and layers may be new."""
        count = int(rows.process.max(initial=-1)) + 1
        self._grow(count)
        io, waits = self._functions.io[rows.func], self._functions.waits[rows.func]
        layer = self._functions.layer[rows.func]
        np.add.at(self._io_ns, (rows.process[io], layer[io]), rows.time_ns[io])
        np.add.at(self._wait_ns, rows.process[waits], rows.time_ns[waits])
        self.seen = self.seen or bool(io.any())

    def _grow(self, count: int) -> None:
        missing = count - len(self._wait_ns)
        if missing > 0:
            more = max(missing, len(self._wait_ns) // 2)
            self._io_ns = np.pad(self._io_ns, ((0, more), (0, 0)))
            self._wait_ns = np.pad(self._wait_ns, (0, more))

    def by_process(self, count: int) -> tuple[Numbers, Numbers]:
        """Time in I/O of each of ``count`` processes, of the layer that has most (the calls of
        one contain those of another), and time waiting.
        """
        self._grow(count)
        return self._io_ns[:count].max(axis=1), self._wait_ns[:count]

    def by_layer(self) -> Numbers:
        """Time in I/O in each layer."""
        totals: Numbers = self._io_ns.sum(axis=0)
        return totals
