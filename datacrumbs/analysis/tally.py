"""Adding up the events of one host, batch by batch: exact integers, memory by what is distinct.

Every tally takes `Calls`, the events of one batch with what they mean worked out once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from datacrumbs.analysis.functions import MAX_FUNCTIONS, Flags, Functions
from datacrumbs.analysis.intervals import Union, Unions
from datacrumbs.analysis.keys import Index, KeyIndex, Numbers, firsts, grow, in_order_of
from datacrumbs.analysis.order import Columns
from datacrumbs.analysis.processes import ProcessIndex
from datacrumbs.analysis.profile import Profiled, ProfiledTime, profiled_of
from datacrumbs.analysis.quantiles import Histograms
from datacrumbs.trace.schema import EventFlag

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("ts", "dur", "file", "offset", "ret", "pid", "tid", "func", "flags")

SIZE_CLASSES = 63
"""Access sizes by power of two: class k holds 2**k up to 2**(k+1) - 1 bytes."""

MAX_STREAMS = 1 << 22
"""Of so many pairs of process and file it is known where the last access ended: of those used
last, when there are more. Half are forgotten at a time."""

_LONGEST_NS = 1 << 60  # 36 years: keeps sums of a damaged trace within int64


@dataclass(frozen=True, slots=True)
class Calls:
    """Some calls, by start. Arrays of one length, except ``functions``."""

    functions: Functions
    start: Numbers
    end: Numbers
    func: Index
    file: NDArray[np.uint64]
    offset: Numbers
    moved: Numbers  # bytes
    failed: Flags
    finished: Flags
    process: Index
    tid: NDArray[np.int32]
    flags: NDArray[np.uint16]

    def where(self, chosen: Flags) -> Calls:
        """Only those chosen."""
        if chosen.all():
            return self
        return Calls(
            self.functions,
            *(
                getattr(self, name)[chosen]
                for name in self.__dataclass_fields__
                if name != "functions"
            ),
        )


def calls_of(rows: Columns, functions: Functions, processes: ProcessIndex) -> Calls:
    """`Calls` from the `COLUMNS` of one batch."""
    func = rows["func"].astype(np.intp)
    ret, start = rows["ret"], rows["ts"]
    finished = rows["flags"] & EventFlag.UNFINISHED == 0
    moves = (functions.reads | functions.writes)[func] & finished & (ret > 0)
    return Calls(
        functions=functions,
        start=start,
        end=start + np.clip(rows["dur"], 0, _LONGEST_NS),
        func=func,
        file=rows["file"],
        offset=rows["offset"],
        moved=np.where(moves, ret, 0),
        failed=functions.syscall[func] & finished & (ret < 0),
        finished=finished,
        process=processes.numbers(rows["pid"], start),
        tid=rows["tid"],
        flags=rows["flags"],
    )


class Sums:
    """Named integer columns, added up by row number."""

    def __init__(self, *names: str) -> None:
        self._columns = {name: np.zeros(0, np.int64) for name in names}

    def add(self, name: str, rows: Index, values: Numbers | int = 1) -> None:
        """Add ``values[i]`` (or the one value) to row ``rows[i]``."""
        if len(rows):
            column = grow(self._columns[name], int(rows.max()) + 1)
            np.add.at(column, rows, values)
            self._columns[name] = column

    def columns(self, count: int) -> dict[str, Numbers]:
        """The first ``count`` rows of every column."""
        return {name: grow(values, count)[:count] for name, values in self._columns.items()}


class FunctionTally:
    """Per function: counts, time, bytes, and the durations for quantiles."""

    def __init__(self) -> None:
        self._sums = Sums(
            *("count", "profiled", "errors", "unfinished", "time_ns", "unfinished_ns", "bytes")
        )
        self._max_ns = np.zeros(MAX_FUNCTIONS, np.int64)
        self._row = np.full(MAX_FUNCTIONS, -1, np.intp)
        self._numbers: list[int] = []
        self.durations = Histograms()

    def add(self, calls: Calls) -> None:
        row = self._rows(calls.func)
        self._sums.add("count", row)
        self._sums.add("bytes", row, calls.moved)
        self._sums.add("errors", row[calls.failed])
        dur_ns = calls.end - calls.start
        open_ = ~calls.finished
        if open_.any():
            self._sums.add("unfinished", row[open_])
            self._sums.add("unfinished_ns", row[open_], dur_ns[open_])
            row, dur_ns = row[calls.finished], dur_ns[calls.finished]
        self._sums.add("time_ns", row, dur_ns)
        np.maximum.at(self._max_ns, row, dur_ns)
        self.durations.add(row, dur_ns)

    def add_profiled(self, rows: Profiled) -> None:
        row = self._rows(rows.func)
        self._sums.add("count", row, rows.count)
        self._sums.add("profiled", row, rows.count)
        self._sums.add("errors", row, rows.errors)
        self._sums.add("time_ns", row, rows.time_ns)
        self._sums.add("bytes", row, rows.moved)
        np.maximum.at(self._max_ns, row, rows.max_ns)
        self.durations.add_powers(row[rows.row], rows.powers, rows.calls)

    def result(self) -> tuple[list[int], dict[str, Numbers]]:
        """The functions seen, and their sums in the same order (also ``max_ns``)."""
        count = len(self._numbers)
        return self._numbers, self._sums.columns(count) | {"max_ns": self._max_ns[:count]}

    def _rows(self, func: Index) -> Index:
        rows = self._row[func]
        new = np.unique(func[rows < 0])
        if not len(new):
            return rows
        self._row[new] = np.arange(len(self._numbers), len(self._numbers) + len(new))
        self._numbers += new.tolist()
        return self._row[func]


class TimeTally:
    """Time in I/O and waiting: of threads, layers, and of the host as a whole.

    Unfinished calls have no time: what they were part of when the run ended is not known. Of
    profiled calls, it is not known which were part of which: where a layer's sum is more than
    what the traced calls of a process take together, it is that process's time.
    """

    def __init__(self, functions: Functions) -> None:
        self._functions = functions
        self._threads = KeyIndex(np.int64)
        self._io = Unions()
        self._wait = Unions()
        self._processes = Unions()
        self._layers = Unions()
        self._all = Union()
        self._profiled = ProfiledTime(functions)

    def add(self, calls: Calls) -> None:
        io = calls.where(self._functions.io[calls.func] & calls.finished)
        thread = self._thread(io)
        self._all.add(io.start, io.end)
        self._io.add(thread, io.start, io.end)
        self._processes.add(io.process, io.start, io.end)
        if len(self._functions.layers) > 2:  # one, and the unknown one
            layer = self._functions.layer[io.func]
            series = thread * len(self._functions.layers) + layer
            self._layers.add(series, io.start, io.end)
        waiting = self._functions.waits[calls.func] & calls.finished
        if waiting.any():
            wait = calls.where(waiting)
            self._wait.add(self._thread(wait), wait.start, wait.end)

    def add_profiled(self, rows: Profiled) -> None:
        self._profiled.add(rows)

    def _thread(self, calls: Calls) -> Index:
        return self._threads.numbers(
            calls.process.astype(np.int64) << 32 | calls.tid.view(np.uint32)
        )

    @property
    def unoverlapped_ns(self) -> int | None:
        """How long at least one thread was in I/O that was traced; None if all was profiled."""
        return self._all.total_ns or (None if self._profiled.seen else 0)

    def by_process(self, count: int) -> tuple[Numbers, Numbers]:
        """Time in I/O and waiting of each of ``count`` processes, summed over its threads."""
        process = (self._threads.seen() >> 32).astype(np.intp)
        io, wait = np.zeros((2, count), np.int64)
        np.add.at(io, process, self._io.totals(len(process)))
        np.add.at(wait, process, self._wait.totals(len(process)))
        profiled_io, profiled_wait = self._profiled.by_process(count)
        return np.maximum(io, profiled_io), wait + profiled_wait

    def unoverlapped_by_process(self, count: int) -> Numbers:
        """How long at least one thread of each of ``count`` processes was in I/O."""
        return self._processes.totals(count)

    def threads(self, count: int) -> Numbers:
        """How many threads of each of ``count`` processes were in traced I/O or waiting."""
        return np.bincount(self._threads.seen() >> 32, minlength=count)

    def by_layer(self) -> Numbers:
        """Time in I/O in each layer, summed over threads."""
        layers, threads = len(self._functions.layers), len(self._threads)
        if layers > 2:
            totals = self._layers.totals(threads * layers).reshape(threads, layers)
            return np.asarray(totals.sum(axis=0)) + self._profiled.by_layer()
        only = self._profiled.by_layer()
        only[0] += self._io.totals(threads).sum()
        return only


class Peers:
    """The second file of a call, by its start and thread."""

    def __init__(self, table: pa.Table) -> None:
        rows = table.select(["ts", "tid", "file"]).sort_by("ts")
        self._ts: Numbers = rows["ts"].to_numpy()
        self._tid = rows["tid"].to_numpy()
        self._file = rows["file"].to_numpy()

    def files(self, calls: Calls) -> NDArray[np.uint64]:
        """The second file of each call; 0 where the trace has none."""
        found = np.zeros(len(calls.start), np.uint64)
        low = np.searchsorted(self._ts, calls.start)
        ties = np.searchsorted(self._ts, calls.start, side="right") - low
        for step in range(int(ties.max(initial=0))):
            at = np.flatnonzero(step < ties)
            hit = self._tid[low[at] + step] == calls.tid[at]
            found[at[hit]] = self._file[low[at[hit]] + step]
        return found


class FileTally:
    """Per file: calls, bytes, time. What a copy reads and writes counts for either file."""

    NAMES = (
        "calls",
        "reads",
        "writes",
        "opens",
        "errors",
        "unfinished",
        "bytes_read",
        "bytes_written",
        "time_ns",
    )

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._sums = Sums(*self.NAMES)
        self._files = KeyIndex(np.uint64)

    def add(self, calls: Calls) -> Index:
        """``calls`` that name a file and count; returns the number of each one's file."""
        file = self._files.numbers(calls.file)
        means, add = calls.functions, self._sums.add
        add("calls", file)
        add("errors", file[calls.failed])
        add("unfinished", file[~calls.finished])
        add("opens", file[means.opens[calls.func]])
        add("time_ns", file[calls.finished], (calls.end - calls.start)[calls.finished])
        for chosen, count, moved in (
            (means.reads[calls.func], "reads", "bytes_read"),
            (means.writes[calls.func], "writes", "bytes_written"),
        ):
            add(count, file[chosen])
            add(moved, file[chosen], calls.moved[chosen])
        self._add_copies(calls.where(means.copies[calls.func]))
        return file

    def result(self) -> tuple[NDArray[np.uint64], dict[str, Numbers]]:
        """The keys of all files seen, and their sums in the same order."""
        return self._files.seen(), self._sums.columns(len(self._files))

    def _add_copies(self, copies: Calls) -> None:
        to = self._peers.files(copies)
        known = to != 0
        if known.any():
            target = self._files.numbers(to[known])
            self._sums.add("writes", target)
            self._sums.add("bytes_written", target, copies.moved[known])


class ProcessTally:
    """Per process: calls, errors, bytes."""

    def __init__(self) -> None:
        self._sums = Sums("count", "errors", "unfinished", "bytes_read", "bytes_written")

    def add(self, calls: Calls) -> None:
        self._sums.add("count", calls.process)
        self._sums.add("errors", calls.process[calls.failed])
        self._sums.add("unfinished", calls.process[~calls.finished])
        self._add_bytes(calls, calls.functions.reads, "bytes_read")
        self._add_bytes(calls, calls.functions.writes | calls.functions.copies, "bytes_written")

    def add_profiled(self, rows: Profiled) -> None:
        self._sums.add("count", rows.process, rows.count)
        self._sums.add("errors", rows.process, rows.errors)
        self._add_bytes(rows, rows.functions.reads, "bytes_read")
        self._add_bytes(rows, rows.functions.writes | rows.functions.copies, "bytes_written")

    def result(self, count: int) -> dict[str, Numbers]:
        return self._sums.columns(count)

    def _add_bytes(self, calls: Calls | Profiled, which: Flags, name: str) -> None:
        chosen = (which & calls.functions.counts)[calls.func]
        self._sums.add(name, calls.process[chosen], calls.moved[chosen])


class AccessTally:
    """Sizes of the accesses of one direction, and how many of them went forward in the file."""

    def __init__(self) -> None:
        self.counts = np.zeros(SIZE_CLASSES, np.int64)
        self.bytes = np.zeros(SIZE_CLASSES, np.int64)
        self.placed = self.sequential = self.consecutive = self.forgotten = 0
        self._streams = KeyIndex(np.int64)
        self._next = np.zeros(0, np.int64)
        self._used = np.zeros(0, np.int64)  # at which of the calls of `add_places`
        self._turn = 0

    def add(self, moved: Numbers) -> None:
        """The bytes that each call of this direction moved; those that moved none are no access."""
        moved = moved[moved > 0]
        size_class = (moved.astype(np.float64).view(np.int64) >> 52) - 1023
        np.minimum(size_class, SIZE_CLASSES - 1, out=size_class)
        np.add.at(self.counts, size_class, 1)
        np.add.at(self.bytes, size_class, moved)

    def add_places(self, file: Index, process: Index, offset: Numbers, moved: Numbers) -> None:
        """Compare the offset of each access with where the one before it ended.

        The one before it by the same process in the same file; the first is not compared.
        """
        if not len(file):
            return
        if len(self._streams) > MAX_STREAMS:
            self._forget()
        stream = self._streams.numbers(file << 32 | process)
        # `_next` holds the end plus one, so that 0 says: no access yet
        self._next = grow(self._next, len(self._streams))
        self._used = grow(self._used, len(self._streams))
        self._turn += 1
        self._used[stream] = self._turn
        order, first = _runs(stream)
        stream, offset, after = stream[order], offset[order], (offset + moved)[order] + 1
        before = np.empty_like(after)
        before[1:] = after[:-1]
        before[first] = self._next[stream[first]]
        self._next[stream] = after  # of several, numpy keeps the last
        self.placed += int(np.count_nonzero(before))
        self.sequential += int(np.count_nonzero((before > 0) & (offset + 1 >= before)))
        self.consecutive += int(np.count_nonzero(offset + 1 == before))

    def end(self) -> None:
        """There are no other accesses: what they would be compared with goes."""
        self._streams = KeyIndex(np.int64)
        self._next, self._used = np.zeros((2, 0), np.int64)

    def _forget(self) -> None:
        """Of the streams, those that were used least lately."""
        count = len(self._streams)
        stays = np.argsort(self._used[:count], kind="stable")[count - MAX_STREAMS // 2 :]
        self.forgotten += count - len(stays)
        keys, before, used = self._streams.seen()[stays], self._next[stays], self._used[stays]
        self._streams = KeyIndex(np.int64)
        number = self._streams.numbers(keys)
        self._next, self._used = np.zeros((2, len(keys)), np.int64)
        self._next[number], self._used[number] = before, used


def _runs(series: Index) -> tuple[Index, Index]:
    """Rows by series in the order they came, and where each series begins."""
    order = in_order_of(series)
    ordered = series[order]
    return order, firsts(ordered)


@dataclass(slots=True)
class HostTally:
    """All tallies of one host. ``first_ns`` and ``last_ns``: its first start and last end."""

    functions: Functions
    processes: ProcessIndex
    by_function: FunctionTally
    by_file: FileTally
    by_process: ProcessTally
    time: TimeTally
    reads: AccessTally
    writes: AccessTally
    events: int = 0
    profiled: int = 0
    first_ns: int = 0
    last_ns: int = 0

    @classmethod
    def of(cls, functions: pa.Table, processes: pa.Table, peers: pa.Table) -> HostTally:
        """Empty tallies, from the host's tables."""
        known = Functions(functions)
        return cls(
            functions=known,
            processes=ProcessIndex(processes),
            by_function=FunctionTally(),
            by_file=FileTally(Peers(peers)),
            by_process=ProcessTally(),
            time=TimeTally(known),
            reads=AccessTally(),
            writes=AccessTally(),
        )

    def add_calls(self, rows: Columns) -> Calls:
        """One batch of events with `COLUMNS`; batches come by start (`in_order`).

        What it returns goes to `add_files`, which may do so meanwhile for the batch before.
        """
        calls = calls_of(rows, self.functions, self.processes)
        self.first_ns = self.first_ns if self.events else int(calls.start[0])
        self.last_ns = max(self.last_ns, int(calls.end.max()))
        self.events += len(calls.start)
        self.by_function.add(calls)
        self.by_process.add(calls)
        self.time.add(calls)
        return calls

    def add_files(self, calls: Calls) -> None:
        """What `add_calls` gave, in the same order."""
        means, func = self.functions, calls.func
        counts = means.counts[func]
        self.reads.add(calls.moved[counts & means.reads[func]])
        self.writes.add(calls.moved[counts & (means.writes | means.copies)[func]])
        named = calls.where(counts & (calls.file != 0) & ~means.waits[func])
        self._add_places(named, self.by_file.add(named))

    def add_intervals(self, batch: pa.RecordBatch) -> None:
        """One batch of ``intervals``, after all events."""
        rows = profiled_of(batch, self.functions, self.processes)
        first, last = int(rows.start.min()), int(rows.end.max())
        empty = not self.events and not self.profiled
        self.first_ns = first if empty else min(first, self.first_ns)
        self.last_ns = max(self.last_ns, last)
        self.profiled += int(rows.count.sum())
        self.by_function.add_profiled(rows)
        self.by_process.add_profiled(rows)
        self.time.add_profiled(rows)

    def _add_places(self, calls: Calls, file: Index) -> None:
        placed = (calls.moved > 0) & (calls.offset >= 0)
        reads = placed & self.functions.reads[calls.func]  # a copy's offset is where it reads
        for tally, chosen in ((self.reads, reads), (self.writes, placed & ~reads)):
            tally.add_places(
                file[chosen], calls.process[chosen], calls.offset[chosen], calls.moved[chosen]
            )
