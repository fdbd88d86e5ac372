"""How often the calls to be explained were in each of many places: files, processes.

Places may be as many as calls, and each has lengths of its own. So memory is bounded: where
there is too much, the places with fewest calls become one, the *other* places. What is known
of those that stay is exact then, if they always had more calls than those that went.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from datacrumbs.analysis.keys import Index, Numbers, distinct, firsts

MAX_CELLS = 1 << 22
"""Counts that are kept, at most: 16 bytes each, and some five times that while they are sorted."""

OTHERS = 0
"""The place of all that are not told apart."""

_BUCKET_BITS, _PLACE_BITS = 10, 34
_OWNER = _BUCKET_BITS + _PLACE_BITS
_PENDING = 1 << 18
_MANY_NAMES = 1 << 20

T = TypeVar("T")
Keys = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Cells:
    """Counts by owner (a function), place, and bucket of length. Arrays of one length."""

    owner: Numbers
    place: Keys
    bucket: Numbers
    count: Numbers

    def at(self, place: Keys) -> Cells:
        """The same with other names for the places."""
        return Cells(self.owner, place, self.bucket, self.count)


class Places:
    """Adds up calls by owner, place (numbers from 1) and bucket, in bounded memory."""

    def __init__(self) -> None:
        self._keys = np.zeros(0, np.int64)
        self._counts = np.zeros(0, np.int64)
        self._pending: list[tuple[Keys, Numbers]] = []
        self._waiting = 0

    def add(self, owner: Index, place: Index, bucket: Index, count: Numbers | None = None) -> None:
        """Add one call, or ``count`` of them, to each."""
        key = owner.astype(np.int64) << _OWNER | place.astype(np.int64) << _BUCKET_BITS | bucket
        self._pending.append(_counted(key) if count is None else _summed(key, count))
        self._waiting += len(self._pending[-1][0])
        if self._waiting > max(_PENDING, len(self._keys) // 2):
            self._merge()

    def cells(self) -> Cells:
        """All there is, by owner, place and bucket."""
        self._merge()
        place = self._keys >> _BUCKET_BITS & (1 << _PLACE_BITS) - 1
        bucket = self._keys & (1 << _BUCKET_BITS) - 1
        return Cells(self._keys >> _OWNER, place, bucket, self._counts)

    def _merge(self) -> None:
        """What waits joins the rest: when it is half as much, so that each is sorted few times."""
        if not self._pending:
            return
        parts = [(self._keys, self._counts), *self._pending]
        self._pending, self._waiting = [], 0
        self._keys, self._counts = _summed(*(np.concatenate(p) for p in zip(*parts, strict=True)))
        if len(self._keys) > MAX_CELLS:
            self._forget()

    def _forget(self) -> None:
        """Half of the cells stay: those of the places with most calls, each by owner."""
        place = self._keys >> _BUCKET_BITS
        first = firsts(place)
        calls = np.add.reduceat(self._counts, first)
        cells = np.diff(np.append(first, len(place)))
        order = np.argsort(-calls, kind="stable")
        gone = np.zeros(len(first), bool)
        gone[order] = np.cumsum(cells[order]) > MAX_CELLS // 2
        keys = self._keys.copy()
        keys[np.repeat(gone, cells)] &= ~(((1 << _PLACE_BITS) - 1) << _BUCKET_BITS)  # `OTHERS`
        self._keys, self._counts = _summed(keys, self._counts)


def _counted(keys: Keys) -> tuple[Numbers, Numbers]:
    """Each key once, sorted, and how often it is there."""
    keys = np.sort(keys)
    first = firsts(keys)
    return keys[first], np.diff(np.append(first, len(keys)))


def _summed(keys: Keys, counts: Numbers) -> tuple[Numbers, Numbers]:
    """Each key once, sorted, and the sum of its ``counts``."""
    order = np.argsort(keys, kind="stable")  # linear where parts are sorted
    keys = keys[order]
    first = firsts(keys)
    return keys[first], np.add.reduceat(counts[order], first) if len(keys) else counts


@dataclass(frozen=True, slots=True)
class Placed(Generic[T]):
    """Calls by place and bucket, sorted by place: an index into ``names``; None: other places."""

    names: list[T | None]
    place: Index
    bucket: Index
    count: Numbers

    def named(self, name: Callable[[T], Any]) -> Placed[Any]:
        """The same by what ``name`` makes of each place."""
        names: dict[Any, int] = {}
        number = [names.setdefault(None if n is None else name(n), len(names)) for n in self.names]
        place = np.array(number, np.intp)[self.place]
        order = np.argsort(place, kind="stable")
        return Placed(list(names), place[order], self.bucket[order], self.count[order])

    def pairs(
        self, fast: NDArray[np.bool_], slow: NDArray[np.bool_]
    ) -> dict[T | None, tuple[int, int]]:
        """How many fast and slow calls each place has, given which buckets are which."""
        if not len(self.place):
            return {}
        first = firsts(self.place)
        columns = (
            np.add.reduceat(np.where(side[self.bucket], self.count, 0), first).tolist()
            for side in (fast, slow)
        )
        names = [self.names[place] for place in self.place[first].tolist()]
        return dict(zip(names, zip(*columns, strict=True), strict=True))


class NamedPlaces(Generic[T]):
    """The places of all hosts by name, of many owners."""

    def __init__(self) -> None:
        self._places = Places()
        self._numbers: dict[T | None, int] = {None: OTHERS}
        self._forget_at = _MANY_NAMES
        self._found: tuple[Cells, list[T | None]] | None = None

    def add(self, owner: Index, cells: Cells, names: Callable[[Keys], list[T | None]]) -> None:
        """Add ``cells`` of one host, whose ``owner`` are numbered by the caller.

        ``names`` says what its places are, None of `OTHERS`.
        """
        places, which = distinct(cells.place)
        numbers = [self._numbers.setdefault(n, len(self._numbers)) for n in names(places)]
        number = np.array(numbers, np.intp)[which]
        self._places.add(owner, number, cells.bucket.astype(np.intp), cells.count)
        self._found = None
        if len(self._numbers) > self._forget_at:
            self._forget_names()

    @property
    def others(self) -> int:
        """How many calls are on places that are not told apart."""
        cells = self._all()[0]
        return int(cells.count[cells.place == OTHERS].sum())

    def of(self, owner: int) -> Placed[T]:
        """The places of one owner."""
        cells, names = self._all()
        low, high = np.searchsorted(cells.owner, [owner, owner + 1])
        place = cells.place[low:high].astype(np.intp)
        return Placed(names, place, cells.bucket[low:high], cells.count[low:high])

    def _all(self) -> tuple[Cells, list[T | None]]:
        self._found = self._found or (self._places.cells(), list(self._numbers))
        return self._found

    def _forget_names(self) -> None:
        """Of places that are no longer told apart."""
        cells, names = self._places.cells(), list(self._numbers)
        used = np.union1d([OTHERS], cells.place).astype(np.intp)
        self._numbers = {names[old]: new for new, old in enumerate(used.tolist())}
        self._forget_at = max(_MANY_NAMES, 2 * len(used))
        self._places = Places()
        number = np.searchsorted(used, cells.place)
        self._places.add(cells.owner, number, cells.bucket, cells.count)
