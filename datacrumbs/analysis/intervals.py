"""How long anything was going on: the length of the union of intervals, as a stream.

Calls nest (``fread`` calls ``read``) and threads overlap, so summing durations counts time
twice; the union does not. Intervals come sorted by their start, across batches too
(`datacrumbs.analysis.order`), and none starts before 0; then all there is to remember is where
the union ends so far.
"""

from __future__ import annotations

import numpy as np

from datacrumbs.analysis.keys import Index, Numbers, grow, in_order_of

_ROOM = 1 << 62


def newly_covered(start: Numbers, end: Numbers) -> Numbers:
    """How much each interval, given sorted by start, adds to the union of those before it."""
    reach = np.maximum.accumulate(end)
    start = start.copy()
    np.maximum(start[1:], reach[:-1], out=start[1:])
    covered: Numbers = np.maximum(end - start, 0)
    return covered


class Union:
    """The union of all intervals: ``total_ns``."""

    def __init__(self) -> None:
        self.total_ns = 0
        self._end = 0

    def add(self, start: Numbers, end: Numbers) -> None:
        """Intervals sorted by start, none of which starts before one that was added earlier."""
        if not len(start):
            return
        start = np.maximum(start, self._end)
        self.total_ns += int(newly_covered(start, end).sum())
        self._end = max(self._end, int(end.max()))


class Unions:
    """One union for each of many series (threads), numbered densely: 16 bytes each."""

    def __init__(self) -> None:
        self._total = np.zeros(0, np.int64)
        self._end = np.zeros(0, np.int64)

    def add(self, series: Index, start: Numbers, end: Numbers) -> None:
        """As `Union.add`; interval i belongs to the series number ``series[i]``."""
        if not len(series):
            return
        self._total = grow(self._total, int(series.max()) + 1)
        self._end = grow(self._end, int(series.max()) + 1)
        self._add(series, np.maximum(start, self._end[series]), end)

    def totals(self, count: int) -> Numbers:
        """The length of the union of each of the first ``count`` series."""
        return grow(self._total, count)[:count]

    def _add(self, series: Index, start: Numbers, end: Numbers) -> None:
        """Lays the series out one after the other on one line, ``span`` apart."""
        order = in_order_of(series)
        ordered = series[order]
        line = np.cumsum(np.r_[False, ordered[1:] != ordered[:-1]])
        first = int(start.min())
        span = max(int(end.max()), int(start.max())) - first + 1
        # the line would be longer than an int64
        if (int(line[-1]) + 1) * span > _ROOM and len(series) > 1:
            self._add_halves(series, start, end)
            return
        shift = line * span - first
        covered = newly_covered(start[order] + shift, end[order] + shift)
        np.add.at(self._total, ordered, covered)
        np.maximum.at(self._end, series, end)

    def _add_halves(self, series: Index, start: Numbers, end: Numbers) -> None:
        middle = len(series) // 2
        self.add(series[:middle], start[:middle], end[:middle])
        self.add(series[middle:], start[middle:], end[middle:])
