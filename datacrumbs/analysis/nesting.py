"""Which call was made inside which: the calls of a thread as a tree.

A call's **parent** is, of the calls of the same thread that contain its interval (ends
included), the one that started last. So layers are ordered by how they nest, whatever they are.
What follows from that, and where more had to be decided:

- Two calls with the same start: the longer one is the parent. With the same end too: by kind,
  user function before system call before kernel function; then the one recorded later, because
  the inner call returns first.
- Calls that overlap without one containing the other (a clock that went back, damaged events)
  are siblings; the time both cover counts for the earlier one (`Nested.covered_ns`).
- A call whose parent was lost, or not traced, belongs to the next call further out.
- An unfinished call nests in unfinished calls only, and contains no finished ones: when it
  ended is not known, and it may have been left long ago, by an exception or longjmp.
- Events with `EventFlag.ASYNC` are part of no call: no parent, no children.

The calls of one batch are peeled level by level, each level in one pass of numpy: time is what
there is to sort, plus the sum of depths. Of what is nested deeper than `PEELED` levels each
call takes one step of Python, so that deep recursion costs linear time too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datacrumbs.analysis.functions import MAX_FUNCTIONS, Functions
from datacrumbs.analysis.keys import Index, KeyIndex, Numbers, in_order_of
from datacrumbs.analysis.order import Columns, Piece, in_order
from datacrumbs.analysis.processes import ProcessIndex
from datacrumbs.trace.reader import HostTrace
from datacrumbs.trace.schema import EventFlag

PEELED = 24
"""Levels that are found a level at a time; what is deeper, a call at a time."""

COLUMNS = ("ts", "dur", "pid", "tid", "func", "flags")
"""What nesting itself needs of ``events``."""

LONGEST_NS = 1 << 60
"""36 years: longer calls (a damaged trace) are cut, so that sums stay within int64."""

_ROOM = 1 << 62
_KINDS = ("user", "usdt", "custom", "syscall", "kernel")  # outermost first


@dataclass(frozen=True, slots=True)
class Forest:
    """Trees of calls that are sorted as `tree_order` says; arrays of one length.

    ``parent`` is a row, -1 for none; ``depth`` of a call without a parent is 0. ``covered_ns``
    is the time of its parent that a call covers: its length, less what the sibling before it
    covers already.
    """

    parent: Index
    depth: Index
    covered_ns: Numbers

    def self_ns(self, start: Numbers, end: Numbers) -> Numbers:
        """Of each call, the time that none of its children covers."""
        left: Numbers = end - start
        inner = np.flatnonzero(self.parent >= 0)
        np.subtract.at(left, self.parent[inner], self.covered_ns[inner])
        return left


def tree_order(
    series: Index, start: Numbers, end: Numbers, rank: NDArray[Any] | None = None
) -> Index:
    """Rows by series, start, end (falling), rank, and row (falling); parents come first.

    ``start`` is sorted already. ``rank``: which of two calls of the same interval is the
    outer one, the lower.
    """
    order = in_order_of(series)
    s, t = series[order], start[order]
    tied = np.zeros(len(order) + 1, bool)
    tied[1:-1] = (s[1:] == s[:-1]) & (t[1:] == t[:-1])
    at = np.flatnonzero(tied[1:] | tied[:-1])
    if len(at):
        rows = order[at]
        ranks = np.zeros(len(rows), np.int8) if rank is None else rank[rows]
        order[at] = rows[np.lexsort((-rows, ranks, -end[rows], t[at], s[at]))]
    return order


def nest(series: Index, start: Numbers, end: Numbers) -> Forest:
    """The trees of calls sorted by `tree_order`; calls of different ``series`` never nest."""
    count = len(start)
    forest = Forest(np.full(count, -1, np.intp), np.zeros(count, np.intp), end - start)
    left = np.arange(count)
    low, span = _extents(series, start, end)
    segment, owner = _numbered(series), np.full(len(low), -1, np.intp)
    for level in range(PEELED):
        if not len(left):
            return forest
        if float(span.sum(dtype=np.float64)) + len(span) > _ROOM:
            break  # does not fit on one line: years of calls on thousands of threads
        offset = np.cumsum(span + 1) - (span + 1) - low
        reach = end[left] + offset[segment]
        outer = np.ones(len(left), bool)
        outer[1:] = reach[1:] > np.maximum.accumulate(reach)[:-1]
        roots, mine = left[outer], segment[outer]
        forest.parent[roots] = owner[mine]
        forest.depth[roots] = level
        _subtract_overlaps(forest.covered_ns, roots, mine, start, end)
        segment = (np.cumsum(outer) - 1)[~outer]
        left = left[~outer]
        owner, low, span = roots, start[roots], end[roots] - start[roots]
    group = np.where(owner[segment] >= 0, owner[segment], -1 - series[left])
    _nest_one_by_one(forest, left, group, start, end)
    return forest


def _extents(series: Index, start: Numbers, end: Numbers) -> tuple[Numbers, Numbers]:
    """First start and, from there, the length of each series."""
    if not len(series):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    first = np.flatnonzero(np.r_[True, series[1:] != series[:-1]])
    low = start[first]
    return low, np.maximum.reduceat(end, first) - low


def _numbered(series: Index) -> Index:
    """Sorted ``series`` as 0, 1, 2, ... without gaps."""
    if not len(series):
        return series
    return np.cumsum(np.r_[False, series[1:] != series[:-1]])


def _subtract_overlaps(
    covered_ns: Numbers, siblings: Index, segment: Index, start: Numbers, end: Numbers
) -> None:
    """Siblings have rising ends: one can overlap with the one before it only from there."""
    both = end[siblings[:-1]] - start[siblings[1:]]
    at = np.flatnonzero((both > 0) & (segment[1:] == segment[:-1]))
    covered_ns[siblings[1:][at]] -= both[at]


def _nest_one_by_one(
    forest: Forest, rows: Index, group: Index, start: Numbers, end: Numbers
) -> None:
    """`nest` with a stack; rows of one group lie in that row, or below 0 in no row."""
    stack: list[int] = []
    last = None
    for row, inside in zip(rows.tolist(), group.tolist(), strict=True):
        if inside != last:
            last, stack = inside, []
            outer = max(inside, -1)
            base = int(forest.depth[outer]) + 1 if outer >= 0 else 0
        before = int(start[row])  # where the sibling before ends
        while stack and end[stack[-1]] < end[row]:
            before = int(end[stack.pop()])
        forest.parent[row] = stack[-1] if stack else outer
        forest.depth[row] = base + len(stack)
        forest.covered_ns[row] -= max(0, before - int(start[row]))
        stack.append(row)


@dataclass(frozen=True, slots=True)
class Nested:
    """One batch of the calls of a host (`nested`). Arrays have one row for each call.

    The first ``len(kept)`` rows are calls of earlier batches that last into this one: row i was
    row ``kept[i]`` of the batch before. They are here as parents only and were counted there.
    All other rows are new, by start, and come in one batch only.
    """

    rows: Columns  # the columns asked for and `COLUMNS`; dur is never negative here
    kept: Index
    process: Index  # number of the process, as `ProcessIndex` gives it
    thread: Index  # number of the thread on this host, from 0
    parent: Index  # row of this batch, or -1
    depth: Index  # 0 without a parent, -1 for ASYNC events
    covered_ns: Numbers  # of the parent's time; see `Forest`
    levels: list[Index]  # new rows but ASYNC ones, by depth, the lowest first

    @property
    def start(self) -> Numbers:
        return self.rows["ts"]

    @property
    def end(self) -> Numbers:
        return self.rows["ts"] + self.rows["dur"]

    @property
    def new(self) -> slice:
        """The rows that no batch before this one had."""
        return slice(len(self.kept), None)

    def carry(self, before: NDArray[Any] | None, fill: Any, dtype: Any = np.int64) -> NDArray[Any]:
        """A column for this batch: of kept rows what ``before``, that of the last batch, says.

        For what a call inherits from its parent: fill new rows in the order of `levels`.
        """
        column = np.full(len(self.parent), fill, dtype)
        if before is not None:
            column[: len(self.kept)] = before[self.kept]
        return column


def nested(
    host: HostTrace,
    columns: Sequence[str] = (),
    *,
    functions: Functions | None = None,
    processes: ProcessIndex | None = None,
    pieces: list[Piece] | None = None,
) -> Iterator[Nested]:
    """All calls of ``host`` with their parents, by start, a batch at a time.

    ``columns`` are those of ``events`` wanted in `Nested.rows` beside `COLUMNS`. Memory: one
    batch, the calls that are open, and what `in_order` keeps (see there for ``pieces``). The
    self time of any set of calls is the sum of their ``dur`` less that of ``covered_ns`` of
    their children, exactly, whichever batches those are in.
    """
    nester = Nester(
        functions or Functions(host.table("functions")),
        processes or ProcessIndex(host.table("processes")),
    )
    return nester.batches(in_order(host, column_names(columns), pieces))


def column_names(columns: Sequence[str]) -> list[str]:
    """What `nested` reads: `COLUMNS` and ``columns``."""
    return list(dict.fromkeys((*COLUMNS, *columns)))


class Nester:
    """Turns batches of events by start into `Nested` ones."""

    def __init__(self, functions: Functions, processes: ProcessIndex) -> None:
        self._processes = processes
        self._threads = KeyIndex(np.int64)
        self._rank = np.full(MAX_FUNCTIONS, len(_KINDS), np.int8)
        for number, kind in functions.kinds().items():
            if kind in _KINDS:
                self._rank[number] = _KINDS.index(kind)

    def batches(self, events: Iterable[Columns]) -> Iterator[Nested]:
        """``events`` are sorted by ``ts`` within and across batches (`in_order`)."""
        last: Nested | None = None
        for rows in _whole_instants(events):
            first = int(rows["ts"][0])
            kept = np.zeros(0, np.intp) if last is None else _open(last, first)
            last = self._nested(rows, kept, last)
            yield last

    def threads(self) -> tuple[Index, NDArray[np.int32]]:
        """Process and tid of each thread, by number."""
        keys = self._threads.seen()
        return (keys >> 32).astype(np.intp), (keys & 0xFFFFFFFF).astype(np.uint32).view(np.int32)

    def _nested(self, new: Columns, kept: Index, before: Nested | None) -> Nested:
        new = new | {"dur": np.clip(new["dur"], 0, LONGEST_NS)}
        process = self._processes.numbers(new["pid"], new["ts"])
        tid = new["tid"].view(np.uint32).astype(np.int64)
        thread = self._threads.numbers(process.astype(np.int64) << 32 | tid)
        if before is not None and len(kept):
            new = {name: np.concatenate([before.rows[name][kept], new[name]]) for name in new}
            process = np.concatenate([before.process[kept], process])
            thread = np.concatenate([before.thread[kept], thread])
        return self._in_trees(new, kept, process, thread)

    def _in_trees(self, rows: Columns, kept: Index, process: Index, thread: Index) -> Nested:
        flags = rows["flags"]
        sync = np.flatnonzero(flags & EventFlag.ASYNC == 0)
        start = rows["ts"][sync]
        end = start + rows["dur"][sync]
        series = thread[sync] * 2 + (flags[sync] & EventFlag.UNFINISHED)
        order = tree_order(series, start, end, self._rank[rows["func"][sync]])
        forest = nest(series[order], start[order], end[order])
        at = sync[order]
        parent = np.full(len(flags), -1, np.intp)
        parent[at] = np.where(forest.parent >= 0, at[forest.parent], -1)
        depth, covered_ns = np.full(len(flags), -1, np.intp), rows["dur"].copy()
        depth[at], covered_ns[at] = forest.depth, forest.covered_ns
        levels = _levels(at, forest.depth, len(kept))
        return Nested(rows, kept, process, thread, parent, depth, covered_ns, levels)


def _levels(at: Index, depth: Index, kept: int) -> list[Index]:
    """The rows from ``kept`` on by depth, sorted."""
    fresh = at >= kept
    depth, at = depth[fresh], at[fresh]
    order = in_order_of(depth)
    cuts = np.flatnonzero(np.diff(depth[order])) + 1
    return [np.sort(rows) for rows in np.split(at[order], cuts) if len(rows)]


def _open(batch: Nested, ts: int) -> Index:
    """The rows of calls that may contain one that starts at ``ts`` or later."""
    sync = batch.rows["flags"] & EventFlag.ASYNC == 0
    return np.flatnonzero((batch.end >= ts) & sync)


def _whole_instants(events: Iterable[Columns]) -> Iterator[Columns]:
    """The same rows, so cut that all events of one start are in one batch."""
    held: Columns | None = None
    for batch in events:
        rows = batch if held is None else _joined(held, batch)
        at = int(np.searchsorted(rows["ts"], rows["ts"][-1]))
        if at:
            yield {name: values[:at] for name, values in rows.items()}
        held = {name: values[at:].copy() for name, values in rows.items()}
    if held is not None:
        yield held


def _joined(first: Columns, second: Columns) -> Columns:
    return {name: np.concatenate([first[name], second[name]]) for name in first}
