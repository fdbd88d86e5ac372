"""Bytes and operations of each process over time: what a heatmap draws.

An *operation* is an I/O call, counted once where layers nest (`Functions.counts`), when it
starts. Its bytes are spread evenly over the time it took. All times are on the common clock of
the hosts; a host without clock pairs begins where the run does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from datacrumbs.analysis.functions import MAX_FUNCTIONS, Flags, Functions
from datacrumbs.analysis.keys import Index, KeySums, Numbers
from datacrumbs.analysis.nesting import Nested
from datacrumbs.trace.clocks import RealtimeClock
from datacrumbs.trace.schema import EventFlag, Op

BINS = 480
MOST_ROWS = 1_024
MOST_CELLS = 180_000
"""A drawing of more cells is made coarser: first by time, then by process."""

_PIECES_AT_ONCE = 1 << 20
_SUMS = ("operations", "bytes_read", "bytes_written")

Cells = dict[str, NDArray[Any]]
"""Columns of whole numbers, each of the narrowest type that holds them."""


@dataclass(frozen=True, slots=True)
class Axis:
    """`BINS` bins of ``bin_ns`` from ``begin_ns`` on, of CLOCK_REALTIME with a ``clock``."""

    begin_ns: int
    bin_ns: int
    clock: RealtimeClock | None

    def of(self, ts: Numbers) -> Numbers:
        """Time since the beginning."""
        return (self.clock.to_real_ns(ts) if self.clock else ts) - self.begin_ns


class Row(Struct, frozen=True, kw_only=True):
    """One process; or ``processes`` of them, of which it is the first."""

    host: str
    pid: int
    rank: int | None
    comm: str
    processes: int


class Timeline(Struct, frozen=True, kw_only=True):
    """Sums by process and time. ``begin_ns``: see `Axis`; ``of_day``: that is CLOCK_REALTIME.

    Each of the last three has the bins of the first row, then those of the second, and so on.
    Processes without operations have no row.
    """

    begin_ns: int
    of_day: bool
    bin_ns: int
    bins: int
    rows: list[Row]
    operations: NDArray[np.int64]
    bytes_read: NDArray[np.int64]
    bytes_written: NDArray[np.int64]


class TimelineTally:
    """Takes the `Nested` batches of a host. Memory grows with processes and their bins.

    Processes are numbered as in the batches; those from ``named`` on count as one.
    """

    def __init__(self, functions: Functions, axis: Axis, named: int) -> None:
        self._axis = axis
        self._named = named
        self._sums = KeySums(*_SUMS)
        self._operation = _operations(functions)
        self._reads = functions.reads & functions.counts
        self._writes = (functions.writes | functions.copies) & functions.counts

    def add(self, batch: Nested) -> None:
        """Add one batch."""
        new = np.arange(len(batch.kept), len(batch.parent))
        rows = batch.rows
        left_out = EventFlag.UNFINISHED | EventFlag.ASYNC
        chosen = new[self._operation[rows["func"][new]] & (rows["flags"][new] & left_out == 0)]
        if not len(chosen):
            return
        start = self._axis.of(rows["ts"][chosen])
        inside = (start >= 0) & (start < BINS * self._axis.bin_ns)
        chosen, start = chosen[inside], start[inside]
        func, moved = rows["func"][chosen], np.maximum(rows["ret"][chosen], 0)
        row = np.minimum(batch.process[chosen], self._named).astype(np.int64) * BINS
        read = np.where(self._reads[func], moved, 0)
        written = np.where(self._writes[func], moved, 0)
        dur = rows["dur"][chosen]
        first, last = self._bins(start, dur)
        long = (last > first) & (read + written > 0)
        self._sums.add(
            row + first,
            operations=1,
            bytes_read=np.where(long, 0, read),
            bytes_written=np.where(long, 0, written),
        )
        at = np.flatnonzero(long)
        for part in _parts(at, last[at] - first[at] + 1):
            self._spread(row[part], start[part], dur[part], read[part], written[part])

    def result(self) -> Cells:
        """``process``, ``bin`` and the sums, a value for each bin that has any."""
        keys, sums = self._sums.result()
        columns = {"process": keys // BINS, "bin": keys % BINS, **sums}
        return {name: _narrow(values) for name, values in columns.items()}

    def _bins(self, start: Numbers, dur: Numbers) -> tuple[Numbers, Numbers]:
        first = start // self._axis.bin_ns
        last = (start + np.maximum(dur, 1) - 1) // self._axis.bin_ns
        return first, np.minimum(last, BINS - 1)

    def _spread(
        self, row: Numbers, start: Numbers, dur: Numbers, read: Numbers, written: Numbers
    ) -> None:
        """A piece for each bin: the bytes up to its end less those up to its beginning."""
        first, last = self._bins(start, dur)
        count = last - first + 1
        of = np.repeat(np.arange(len(row)), count)
        step = np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)
        until = (first[of] + step + 1) * self._axis.bin_ns - start[of]
        until = np.where(step == count[of] - 1, dur[of], until)  # all of it, by the last bin
        share = until / dur[of]
        key = row[of] + first[of] + step
        sums = {}
        for name, moved in (("bytes_read", read), ("bytes_written", written)):
            done = np.rint(moved[of] * share).astype(np.int64)
            before = np.where(step == 0, 0, np.r_[0, done[:-1]])
            sums[name] = done - before
        self._sums.add(key, operations=0, **sums)


def _operations(functions: Functions) -> Flags:
    means_io = np.zeros(MAX_FUNCTIONS, bool)
    for number in functions.kinds():
        means_io[number] = functions[number].op not in (Op.OTHER, Op.WAIT)
    return means_io & functions.io & functions.counts


def _parts(rows: Index, pieces: Numbers) -> Iterator[Index]:
    """``rows`` so that each part has about `_PIECES_AT_ONCE` pieces, or is one row."""
    if not len(rows):
        return
    cut = np.flatnonzero(np.diff(np.cumsum(pieces) // _PIECES_AT_ONCE)) + 1
    yield from np.split(rows, cut)


def timeline_of(
    axes: Sequence[Axis],
    parts: Sequence[Cells],
    names: Sequence[Sequence[Row]],
) -> Timeline:
    """All hosts below each other: what `TimelineTally.result` gave, and who its processes are."""
    rows: list[Row] = []
    numbers: list[Numbers] = []  # of the row of each process of each host
    for part, known in zip(parts, names, strict=True):
        used = sorted(np.unique(part["process"]).tolist(), key=lambda n: _place(known[n], n))
        number = np.zeros(len(known), np.int64)
        number[used] = np.arange(len(rows), len(rows) + len(used))
        numbers.append(number)
        rows += [known[process] for process in used]
    group, step = _coarseness(len(rows))
    count, bins = -(-len(rows) // group), -(-BINS // step)
    sums = {name: np.zeros(count * bins, np.int64) for name in _SUMS}
    for part, number in zip(parts, numbers, strict=True):
        at = number[part["process"]] // group * bins + part["bin"] // step
        for name, values in sums.items():
            np.add.at(values, at, part[name])
    return Timeline(
        begin_ns=axes[0].begin_ns if axes else 0,
        of_day=bool(axes) and all(axis.clock is not None for axis in axes),
        bin_ns=(axes[0].bin_ns if axes else 1) * step,
        bins=bins,
        rows=[_grouped(rows[first : first + group]) for first in range(0, len(rows), group)],
        **sums,
    )


def _place(row: Row, number: int) -> tuple[bool, int, int]:
    """Ranks first, by rank; then the others as they came."""
    return row.rank is None, row.rank or 0, number


def _coarseness(rows: int) -> tuple[int, int]:
    """How many processes are one row, and how many bins one bin."""
    group = max(1, -(-rows // MOST_ROWS))
    step = next(
        s for s in (1, 2, 3, 4, 5) if s == 5 or -(-rows // group) * (BINS // s) <= MOST_CELLS
    )
    return group, step


def _narrow(values: Numbers) -> NDArray[Any]:
    """The same numbers in as few bytes as they fit: there may be many hosts."""
    for kind in (np.uint8, np.uint16, np.uint32):
        if values.min(initial=0) >= 0 and values.max(initial=0) <= np.iinfo(kind).max:
            return values.astype(kind)
    return values


def _grouped(rows: list[Row]) -> Row:
    first = rows[0]
    return Row(
        host=first.host, pid=first.pid, rank=first.rank, comm=first.comm, processes=len(rows)
    )
