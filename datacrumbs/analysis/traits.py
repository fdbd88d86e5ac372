"""What kind of call each target is: its size, alignment, result, file, and what ran beside it.

Counted by trait, target function and bucket of length, so that fast and slow calls can be
compared afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from datacrumbs.analysis.functions import Functions
from datacrumbs.analysis.keys import Index, KeyIndex, Numbers, distinct, grow, in_order_of
from datacrumbs.analysis.nesting import Nested
from datacrumbs.analysis.places import Cells, Places

REGION_BITS = 22
"""First touch is told by regions of 4 MiB."""

MAX_WORDS = 1 << 22
"""Of so many times 64 regions next to each other (256 MiB) it is known which were touched."""

PAGE_BYTES = 4096

_BUCKET_BITS, _FUNC_BITS = 10, 16
_ROOM = 1 << 62


class Trait(IntEnum):
    """A property of a call. Values are numbers, 0 where a call has none."""

    SIZE = 0  # 1 + floor(log2(bytes)) of what was moved, else asked for
    ALIGNED = 1  # offset and size multiples of a page: 1 no, 2 yes
    FAILED = 2  # a system call that returned an error: 1 no, 2 yes
    SHORT = 3  # moved less than asked for: 1 no, 2 yes
    FIRST = 4  # first call of this run to touch that region of the file: 1 no, 2 yes
    SHARED = 5  # 1 + other targets in flight on the same file at its start, in powers of two
    BUSY = 6  # 1 + other targets in flight on the host


_WIDTHS = {
    Trait.SIZE: 7,
    Trait.ALIGNED: 2,
    Trait.FAILED: 2,
    Trait.SHORT: 2,
    Trait.FIRST: 2,
    Trait.SHARED: 5,
    Trait.BUSY: 5,
}


# each value of each trait has a column, those of one trait side by side
_FIRST_OF = {trait: sum(1 << _WIDTHS[t] for t in Trait if t < trait) for trait in Trait}
_COLUMNS = sum(1 << width for width in _WIDTHS.values())


class Traits:
    """The traits of one host's targets."""

    def __init__(self, functions: Functions) -> None:
        self._functions = functions
        self._rows = KeyIndex(np.int64)  # target function and bucket
        self._counts = np.zeros((0, _COLUMNS), np.int64)
        self._by_file = Places()
        self._by_process = Places()
        self._files = KeyIndex(np.uint64)
        self._touched = Touched()

    def add(self, batch: Nested, own: Index, bucket: Index, open_: Index) -> None:
        """New targets ``own``, with ``bucket`` of their lengths; ``open_``: older ones, open."""
        func = batch.rows["func"][own].astype(np.int64)
        low = func << _BUCKET_BITS | bucket
        file = batch.rows["file"][own]
        number = self._files.numbers(file)
        packed = np.zeros(len(own), np.int64)
        for trait, values in self._values(batch, own, number, open_):
            packed = packed << _WIDTHS[trait] | values
        self._add_traits(packed << _BUCKET_BITS + _FUNC_BITS | low)
        named = file != 0
        self._by_file.add(func[named], number[named] + 1, bucket[named])
        self._by_process.add(func, batch.process[own] + 1, bucket)

    def _add_traits(self, keys: Numbers) -> None:
        """Each combination of traits once: there are far fewer than calls."""
        keys, which = distinct(keys)
        count = np.bincount(which, minlength=len(keys))
        row = self._rows.numbers(keys & (1 << _BUCKET_BITS + _FUNC_BITS) - 1)
        self._counts = grow(self._counts, len(self._rows))
        packed = keys >> _BUCKET_BITS + _FUNC_BITS
        for trait in reversed(Trait):
            column = (packed & (1 << _WIDTHS[trait]) - 1) + _FIRST_OF[trait]
            np.add.at(self._counts.reshape(-1), row * _COLUMNS + column, count)
            packed = packed >> _WIDTHS[trait]

    def _values(
        self, batch: Nested, own: Index, number: Index, open_: Index
    ) -> Iterator[tuple[Trait, Numbers]]:
        rows = batch.rows
        func = rows["func"][own].astype(np.intp)
        size, ret, offset = (rows[name][own] for name in ("size", "ret", "offset"))
        moves = (self._functions.reads | self._functions.writes)[func]
        moved = np.where(moves & (ret > 0), ret, 0)
        bytes_ = np.where(moved > 0, moved, np.maximum(size, 0))
        placed = (offset >= 0) & (bytes_ > 0)
        yield Trait.SIZE, np.where(bytes_ > 0, _log2(bytes_) + 1, 0)
        aligned = ((offset | bytes_) & (PAGE_BYTES - 1)) == 0
        yield Trait.ALIGNED, np.where(placed, 1 + aligned, 0)
        syscall = self._functions.syscall[func]
        yield Trait.FAILED, np.where(syscall, 1 + (ret < 0), 0)
        yield Trait.SHORT, np.where(moves & (size > 0), 1 + ((ret >= 0) & (ret < size)), 0)
        named = rows["file"][own] != 0
        yield Trait.FIRST, self._first(number, offset, placed & named)
        starts, ends = rows["ts"][own], batch.end
        zeros = np.zeros(len(own), np.intp), np.zeros(len(open_), np.intp)
        busy = in_flight(zeros[0], starts, ends[own], zeros[1], ends[open_])
        shared = np.zeros(len(own), np.int64)
        some = np.flatnonzero(named & (busy > 0))
        if len(some):  # else no two targets at any time
            shared[named] = self._shared(batch, own[named], number[named], open_)
        yield Trait.SHARED, shared
        yield Trait.BUSY, 1 + _log2_of_count(busy)

    def _shared(self, batch: Nested, own: Index, number: Index, open_: Index) -> Numbers:
        theirs = batch.rows["file"][open_]
        others = open_[theirs != 0]
        older = self._files.numbers(batch.rows["file"][others])
        count = in_flight(number, batch.rows["ts"][own], batch.end[own], older, batch.end[others])
        return 1 + _log2_of_count(count)

    def _first(self, number: Index, offset: Numbers, known: NDArray[np.bool_]) -> Numbers:
        found = np.zeros(len(number), np.int64)
        region = np.minimum(offset[known] >> REGION_BITS, (1 << 32) - 1)
        found[known] = self._touched.touch(number[known], region)
        return found

    @property
    def untold(self) -> int:
        """Of how many targets it is not known whether they were the first on their region."""
        return self._touched.untold

    def by_trait(self) -> dict[Trait, dict[tuple[int, int, int], int]]:
        """For each trait, calls by target function, value and bucket."""
        keys = self._rows.seen()
        func, bucket = keys >> _BUCKET_BITS, keys & (1 << _BUCKET_BITS) - 1
        result: dict[Trait, dict[tuple[int, int, int], int]] = {}
        for trait, first in _FIRST_OF.items():
            counts = self._counts[: len(keys), first : first + (1 << _WIDTHS[trait])]
            row, value = np.nonzero(counts)
            columns = (func[row], value, bucket[row], counts[row, value])
            rows = zip(*(column.tolist() for column in columns), strict=True)
            result[trait] = {(f, v, b): count for f, v, b, count in rows}
        return result

    def by_file(self) -> Cells:
        """Calls by target function, file and bucket; file 0: other files."""
        cells = self._by_file.cells()
        return cells.at(np.r_[np.zeros(1, np.uint64), self._files.seen()][cells.place])

    def by_process(self) -> Cells:
        """Calls by target function, number of the process and bucket; -1: other processes."""
        cells = self._by_process.cells()
        return cells.at(cells.place - 1)


class Touched:
    """Which regions of files were touched: a bit each, 24 bytes for 64 of them."""

    def __init__(self) -> None:
        self.untold = 0
        self._index = KeyIndex(np.int64)
        self._words = np.zeros(0, np.uint64)

    def touch(self, file: Index, region: Numbers) -> Numbers:
        """Of each touch, in their order: 2 if it is the first, 1 if not, 0 if that is not known."""
        if not len(file):
            return np.zeros(0, np.int64)
        word = self._index.numbers(file.astype(np.int64) << 26 | region >> 6, limit=MAX_WORDS)
        self._words = grow(self._words, len(self._index))
        bit = np.uint64(1) << (region & 63).astype(np.uint64)
        new = np.flatnonzero((word >= 0) & (self._words[word] & bit == 0))
        new = new[np.unique(word[new] << 6 | region[new] & 63, return_index=True)[1]]
        np.bitwise_or.at(self._words, word[new], bit[new])
        told = (word >= 0).astype(np.int64)
        self.untold += len(told) - int(told.sum())
        told[new] = 2
        return told


def in_flight(
    series: Index, start: Numbers, end: Numbers, older: Index, older_end: Numbers
) -> Numbers:
    """How many intervals of the same series go on when each starts, without itself.

    Sorted by ``start``; the ``older`` ones start before all of them. Series are laid out one
    after the other on a line; what started and what ended before a point on it cancels out, but
    for what goes on there.
    """
    if not len(series):
        return np.zeros(0, np.int64)
    ends, lines = np.concatenate([end, older_end]), np.concatenate([series, older])
    began, ends = start - start[0] + 1, np.clip(ends - start[0], 0, start[-1] - start[0] + 1)
    if (int(lines.max()) + 1) * (int(began[-1]) + 2) > _ROOM:  # days of a sparse trace
        times = np.sort(ends)
        began, ends = np.searchsorted(times, began), np.searchsorted(times, ends)
    span = max(int(began.max()), int(ends.max())) + 1
    order = in_order_of(series)
    grouped = series[order]
    ended: Numbers = np.searchsorted(np.sort(lines * span + ends), grouped * span + began[order])
    counts = np.zeros(len(series), np.int64)
    counts[order] = np.arange(len(series)) - ended
    if len(older):
        counts[order] += np.searchsorted(np.sort(older), grouped, side="right")
    counts += end == start
    return np.maximum(counts, 0)


def _log2(values: Numbers) -> Numbers:
    """floor(log2) of positive numbers, exact up to 2**53."""
    return (np.maximum(values, 1).astype(np.float64).view(np.int64) >> 52) - 1023


def _log2_of_count(counts: Numbers) -> Numbers:
    """0 for none, else 1 + floor(log2)."""
    return np.where(counts > 0, _log2(counts) + 1, 0)
