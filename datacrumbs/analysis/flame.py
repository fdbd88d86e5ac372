"""Time by call path: the breakdown of a whole run, layer by layer, that an icicle draws.

What counts is what `datacrumbs.analysis.model` calls time in I/O, summed over threads, to the
nanosecond: a frame is outermost where a thread enters I/O. Calls that wait (poll, select, epoll)
or do no I/O are frames only inside others; unfinished ones, and what the kernel does later
(ASYNC), are none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from datacrumbs.analysis.functions import Functions
from datacrumbs.analysis.keys import Index, KeyIndex, KeySums
from datacrumbs.analysis.nesting import Nested
from datacrumbs.trace.schema import EventFlag

MAX_PATHS = 1 << 17
"""Calls on more paths than these are part of the call around them."""

MOST_FRAMES = 3_000
LEAST_SHARE = 0.0002
"""Frames drawn at most, and the share of all time that one has at least."""

_FUNC_BITS = 16
_OUTSIDE = -1


class Frame(Struct, frozen=True, kw_only=True):
    """Calls of one function on one path. ``parent`` is the number of a frame, -1 for none.

    ``time_ns`` is the time of the frame around it that they cover; ``self_ns`` is what is left
    of it by the frames inside, those too small to be here (``left_out_ns``) taken off as well.
    """

    parent: int
    layer: str
    name: str
    count: int
    time_ns: int
    self_ns: int
    left_out_ns: int


class Flame(Struct, frozen=True, kw_only=True):
    """``frames``: each before those inside it; siblings by time, falling. ``time_ns`` of all."""

    time_ns: int
    frames: list[Frame]
    frames_total: int


@dataclass(slots=True)
class PathSums:
    """One call path, and those one call further in."""

    layer: str
    name: str
    count: int = 0
    time_ns: int = 0
    inner: dict[tuple[str, str], PathSums] | None = None

    def child(self, layer: str, name: str) -> PathSums:
        if self.inner is None:
            self.inner = {}
        return self.inner.setdefault((layer, name), PathSums(layer, name))


class FlameTally:
    """Takes the `Nested` batches of a host, one after the other."""

    def __init__(self, functions: Functions) -> None:
        self._functions = functions
        self._paths = KeyIndex(np.int64)
        self._sums = KeySums("count", "time_ns")
        self._path: NDArray[Any] | None = None

    def add(self, batch: Nested) -> None:
        """Add one batch."""
        path = batch.carry(self._path, _OUTSIDE, np.intp)
        func = batch.rows["func"].astype(np.intp)
        counts = self._functions.io[func]
        counts &= batch.rows["flags"] & EventFlag.UNFINISHED == 0
        drawn = np.zeros(len(path), bool)
        for level in batch.levels:
            up = batch.parent[level]
            caller = np.where(up >= 0, path[up], _OUTSIDE)
            inside = (caller >= 0) | counts[level]
            rows, caller = level[inside], caller[inside]
            number = self._number(func[rows], caller)
            drawn[rows] = number >= 0
            path[rows] = np.where(number >= 0, number, caller)
        self._path = path
        chosen = np.flatnonzero(drawn)
        self._sums.add(path[chosen].astype(np.int64), count=1, time_ns=batch.covered_ns[chosen])

    def end(self) -> None:
        """There is no other batch: what was kept for it goes."""
        self._path = None

    def add_to(self, whole: PathSums) -> None:
        """Add all there is, by name, to the paths of other hosts."""
        keys = self._paths.seen().tolist()
        found: list[PathSums] = []
        for key in keys:  # callers have lower numbers than those they call
            function = self._functions[key & 0xFFFF]
            caller = (key >> _FUNC_BITS) - 1
            parent = whole if caller < 0 else found[caller]
            found.append(parent.child(function.layer, function.name))
        numbers, sums = self._sums.result()
        rows = zip(numbers.tolist(), *(sums[n].tolist() for n in ("count", "time_ns")), strict=True)
        for number, count, time_ns in rows:
            found[number].count += count
            found[number].time_ns += time_ns

    def _number(self, func: Index, caller: Index) -> Index:
        """The path of each call; -1 where it is one too many."""
        number = np.zeros(len(func), np.intp)
        key = (caller + 1).astype(np.int64) << _FUNC_BITS | func
        for some, limit in ((caller < 0, None), (caller >= 0, MAX_PATHS)):
            number[some] = self._paths.numbers(key[some], limit=limit)
        return number


def flame_of(whole: PathSums) -> Flame:
    """The largest frames of ``whole``, to which the tallies of all hosts were added."""
    outermost = list((whole.inner or {}).values())
    whole.time_ns = sum(path.time_ns for path in outermost)
    total = _count(whole) - 1
    least = _least(whole)
    frames: list[Frame] = []
    waiting = [(path, -1) for path in _by_time(outermost, least)]
    while waiting:
        path, parent = waiting.pop()
        inner = list((path.inner or {}).values())
        drawn = _by_time(inner, least)
        inside_ns, drawn_ns = (sum(p.time_ns for p in paths) for paths in (inner, drawn))
        frames.append(
            Frame(
                parent=parent,
                layer=path.layer,
                name=path.name,
                count=path.count,
                time_ns=path.time_ns,
                self_ns=max(0, path.time_ns - inside_ns),
                left_out_ns=inside_ns - drawn_ns,
            )
        )
        waiting += [(p, len(frames) - 1) for p in drawn]
    return Flame(time_ns=whole.time_ns, frames=frames, frames_total=total)


def _by_time(paths: list[PathSums], least_ns: int) -> list[PathSums]:
    """Those of ``least_ns`` and more, by time, rising: the last one is taken first."""
    chosen = [path for path in paths if path.time_ns >= least_ns]
    return sorted(chosen, key=lambda path: (path.time_ns, path.layer, path.name))


def _all(whole: PathSums) -> Iterable[PathSums]:
    waiting = [whole]
    while waiting:
        path = waiting.pop()
        yield path
        waiting += (path.inner or {}).values()


def _count(whole: PathSums) -> int:
    return sum(1 for _ in _all(whole))


def _least(whole: PathSums) -> int:
    """The time that a path needs to be drawn."""
    least = int(whole.time_ns * LEAST_SHARE)
    times = sorted((path.time_ns for path in _all(whole)), reverse=True)
    if len(times) > MOST_FRAMES + 1:
        least = max(least, times[MOST_FRAMES] + 1)
    return least
