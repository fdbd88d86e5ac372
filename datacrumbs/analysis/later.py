"""What the kernel did for a file while calls on that file ran: writeback, readahead, block I/O.

Such events (`EventFlag.ASYNC`) are part of no call: they run on a thread of the kernel's or in
an interrupt, for whoever caused them. What is known is the file and the time. So the time of a
target during which asynchronous work on its file went on is counted, for each function of such
work, once however many pieces of it overlap. A target that names no file itself has the file of
the first call inside it that does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datacrumbs.analysis.intervals import newly_covered
from datacrumbs.analysis.keys import Index, KeySums, Numbers
from datacrumbs.analysis.nesting import Nested
from datacrumbs.analysis.quantiles import bucket_of_length
from datacrumbs.trace.schema import EventFlag

_ROOM = 1 << 62
Files = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Spans:
    """Intervals on files; ``func`` and ``label`` say what of. Arrays of one length."""

    file: Files
    start: Numbers
    end: Numbers
    func: Index
    label: Index

    @classmethod
    def none(cls) -> Spans:
        empty = np.zeros(0, np.int64)
        return cls(np.zeros(0, np.uint64), empty, empty, empty, empty)

    def where(self, chosen: NDArray[np.bool_] | Index) -> Spans:
        """Those chosen."""
        return Spans(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    def and_(self, other: Spans) -> Spans:
        """These and those of ``other``."""
        both = (
            np.concatenate([getattr(self, name), getattr(other, name)])
            for name in self.__dataclass_fields__
        )
        return Spans(*both)


class Later:
    """Overlaps of targets with asynchronous work, and what such work there was."""

    def __init__(self) -> None:
        # by target function (16 bits), work (16 bits) and bucket (10 bits)
        self.overlaps = KeySums("targets", "pieces", "time_ns")
        self.work = KeySums("count", "time_ns", "alone")
        self._targets = Spans.none()
        self._row = np.zeros(0, np.intp)  # of each of `_targets`, in the last batch
        self._work = Spans.none()

    def add(self, batch: Nested, own: Index, root: Index, inside: Index) -> None:
        """``own`` are the new targets, ``inside`` the new rows in targets, ``root`` theirs."""
        rows = batch.rows
        late = np.flatnonzero(rows["flags"] & EventFlag.ASYNC != 0)
        if len(late):
            self._add_work(batch, late)
        self._row = self._moved(batch)
        new = Spans(
            rows["file"][own],
            rows["ts"][own],
            batch.end[own],
            rows["func"][own].astype(np.intp),
            bucket_of_length(rows["dur"][own]),
        )
        self._targets = self._targets.and_(new)
        self._row = np.concatenate([self._row, own])
        self._find_files(batch, root, inside)
        self._settle(int(rows["ts"][-1]))

    def finish(self) -> None:
        """No more batches."""
        self._settle(None)

    def _add_work(self, batch: Nested, late: Index) -> None:
        rows = batch.rows
        func = rows["func"][late].astype(np.intp)
        new = Spans(rows["file"][late], rows["ts"][late], batch.end[late], func, func)
        self._work = self._work.and_(new.where(new.file != 0))
        alone = (new.file == 0).astype(np.int64)
        self.work.add(func, count=1, time_ns=rows["dur"][late], alone=alone)

    def _moved(self, batch: Nested) -> Index:
        """Where the rows of pending targets are in this batch; -1 for those that ended."""
        at = np.searchsorted(batch.kept, self._row)
        there = at < len(batch.kept)
        there[there] = batch.kept[at[there]] == self._row[there]
        return np.where(there, at, -1)

    def _find_files(self, batch: Nested, root: Index, inside: Index) -> None:
        missing = (self._targets.file == 0) & (self._row >= 0)
        if not missing.any():
            return
        file = batch.rows["file"]
        named = inside[file[inside] != 0][::-1]  # of several, numpy keeps the last: the first
        found = np.zeros(len(root), np.uint64)
        found[root[named]] = file[named]
        self._targets.file[missing] = found[self._row[missing]]

    def _settle(self, now: int | None) -> None:
        """Count the targets that have ended, and forget what no other one can need."""
        done = np.ones(len(self._row), bool) if now is None else self._targets.end < now
        if len(self._work.start):
            self._count(self._targets.where(done & (self._targets.file != 0)))
        self._targets, self._row = self._targets.where(~done), self._row[~done]
        if now is not None and len(self._work.start):
            self._work = self._work.where(self._work.end >= self._needed_from(now))

    def _needed_from(self, now: int) -> Numbers:
        """Of each piece of work, when the first target began that it may be beside."""
        pending, work = self._targets, self._work
        files, which = np.unique(pending.file, return_inverse=True)
        begin = np.full(len(files) + 1, now)
        np.minimum.at(begin, which, pending.start)
        unnamed = int(begin[0]) if len(files) and not files[0] else now  # it may be any file
        at = np.searchsorted(files, work.file)
        mine = np.append(files, np.uint64(0))[at] == work.file
        return np.where(mine, np.minimum(begin[at], unnamed), unnamed)

    def _count(self, targets: Spans) -> None:
        for func in np.unique(self._work.func).tolist():
            work = self._work.where(self._work.func == func)
            which, pieces, time_ns = overlaps(targets, work)
            key = (targets.func[which] << 16 | func) << 10 | targets.label[which]
            self.overlaps.add(key, targets=1, pieces=pieces, time_ns=time_ns)


def overlaps(targets: Spans, work: Spans) -> tuple[Index, Numbers, Numbers]:
    """Which ``targets`` overlap with ``work`` on the same file; with how many, and how long."""
    files = np.unique(work.file)
    number = np.searchsorted(files, targets.file)
    candidates = np.flatnonzero(number < len(files))
    candidates = candidates[files[number[candidates]] == targets.file[candidates]]
    if not len(candidates) or not len(work.start):
        return np.zeros(0, np.intp), np.zeros(0, np.int64), np.zeros(0, np.int64)
    first = min(int(targets.start[candidates].min()), int(work.start.min()))
    last = max(int(targets.end[candidates].max()), int(work.end.max()))
    span = last - first + 2
    if len(files) * span > _ROOM and len(candidates) > 1:
        return _overlaps_in_halves(targets, work, candidates)
    shift = number[candidates] * span - first
    start, end = targets.start[candidates] + shift, targets.end[candidates] + shift
    shift = np.searchsorted(files, work.file) * span - first
    from_, to = work.start + shift, work.end + shift
    order = np.argsort(from_, kind="stable")
    from_, to = from_[order], to[order]
    pieces = np.searchsorted(from_, end) - np.searchsorted(np.sort(to), start, side="right")
    time_ns = _covered_before(end, from_, to) - _covered_before(start, from_, to)
    hit = (pieces > 0) & (time_ns > 0)
    return candidates[hit], pieces[hit], time_ns[hit]


def _overlaps_in_halves(
    targets: Spans, work: Spans, candidates: Index
) -> tuple[Index, Numbers, Numbers]:
    """By files, so that all of them fit on one line."""
    middle = np.sort(targets.file[candidates])[len(candidates) // 2]
    low = targets.file[candidates] < middle
    if not low.any():
        low = targets.file[candidates] <= middle
    halves = []
    for half, some in (
        (candidates[low], work.where(work.file < middle)),
        (candidates[~low], work.where(work.file >= middle)),
    ):
        which, pieces, time_ns = overlaps(targets.where(half), some)
        halves.append((half[which], pieces, time_ns))
    a, b, c = (np.concatenate(column) for column in zip(*halves, strict=True))
    return a, b, c


def _covered_before(at: Numbers, start: Numbers, end: Numbers) -> Numbers:
    """How much of the union of intervals, sorted by start, lies before each of ``at``."""
    covered = newly_covered(start, end)
    reach = np.maximum.accumulate(end)
    total = np.cumsum(covered)
    last = np.searchsorted(start, at) - 1
    before = np.where(last >= 0, total[last] - np.maximum(0, reach[last] - at), 0)
    # only as far back as the last interval that added something can `at` cut into the union
    result: Numbers = np.maximum(before, 0)
    return result
