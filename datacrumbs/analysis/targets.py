"""The sums of all hosts, by name: what is known of the targets of one function.

Numbers of functions, files and processes are a host's own; here they have become names, so
that the parts of hosts add up. Everything that differs by the length of the target is an array
over the buckets of `bucket_of_length`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datacrumbs.analysis.attribution import SLOWEST, Attribution, SlowCall
from datacrumbs.analysis.functions import MAX_FUNCTIONS, Functions
from datacrumbs.analysis.keys import Index, Numbers
from datacrumbs.analysis.places import Cells, NamedPlaces, Placed
from datacrumbs.analysis.quantiles import LENGTHS
from datacrumbs.analysis.traits import Trait
from datacrumbs.trace.schema import Op


class Key(NamedTuple):
    """A function by name."""

    layer: str
    name: str


Path = tuple[Key, ...]
"""The functions below a target down to the one meant; empty for the target itself."""


class Who(NamedTuple):
    """A process of a run."""

    host: str
    pid: int
    rank: int | None
    comm: str


def _zeros() -> Numbers:
    return np.zeros(LENGTHS, np.int64)


@dataclass(slots=True)
class ContextSums:
    """One context: calls and their time by the length of the target. ``entry``: `Context`."""

    op: Op
    entry: Key
    count: Numbers = field(default_factory=_zeros)
    time_ns: Numbers = field(default_factory=_zeros)


@dataclass(slots=True)
class LaterSums:
    """Overlap of targets with one kind of asynchronous work."""

    targets: Numbers = field(default_factory=_zeros)
    pieces: Numbers = field(default_factory=_zeros)
    time_ns: Numbers = field(default_factory=_zeros)


@dataclass(slots=True)
class Target:
    """All targets of one function on all hosts; ``number`` is its own among all such functions.

    ``slowest``: the longest, at most `SLOWEST`.
    """

    key: Key
    op: Op
    number: int
    all_files: NamedPlaces[str]
    all_processes: NamedPlaces[Who]
    contexts: dict[Path, ContextSums] = field(default_factory=dict)
    present: dict[Key, Numbers] = field(default_factory=dict)
    traits: dict[tuple[Trait, int], Numbers] = field(default_factory=dict)
    later: dict[Key, LaterSums] = field(default_factory=dict)
    moved: int = 0
    failed: int = 0
    unfinished: int = 0
    unfinished_ns: int = 0
    stuck: Counter[Key] = field(default_factory=Counter)
    slowest: list[tuple[str, Who, SlowCall]] = field(default_factory=list)

    @property
    def own(self) -> ContextSums:
        """The targets themselves."""
        return self.contexts[()] if () in self.contexts else ContextSums(self.op, self.key)

    @property
    def time_ns(self) -> int:
        return int(self.own.time_ns.sum())

    @property
    def files(self) -> Placed[str]:
        """Calls by file and bucket."""
        return self.all_files.of(self.number)

    @property
    def processes(self) -> Placed[Who]:
        """Calls by process and bucket."""
        return self.all_processes.of(self.number)

    def self_ns(self) -> dict[Path, Numbers]:
        """Of each context, what nothing below it covers, by bucket."""
        own = {path: sums.time_ns.copy() for path, sums in self.contexts.items()}
        for path, sums in self.contexts.items():
            if path:
                own[path[:-1]] -= sums.time_ns
        return own


class Targets:
    """Collects the parts of hosts."""

    def __init__(self) -> None:
        self.by_key: dict[Key, Target] = {}
        self.work: dict[Key, Numbers] = {}  # asynchronous: count, time, how many of no known file
        self.folded = self.untold = 0  # as in `Attribution`
        self.files: NamedPlaces[str] = NamedPlaces()
        self.processes: NamedPlaces[Who] = NamedPlaces()

    def add(
        self,
        host: str,
        part: Attribution,
        functions: Functions,
        who: Callable[[int], Who],
        paths_of: Callable[[NDArray[Any]], list[str]],
    ) -> None:
        """Add the sums of one host; ``who`` names its processes, ``paths_of`` its files."""
        key_of = _Names(functions)
        self._add_contexts(part, key_of)
        for (func, entry, bucket), targets in part.present.items():
            present = self._target(key_of, func).present
            present.setdefault(key_of(entry), _zeros())[bucket] += targets
        for trait, counts in part.traits.items():
            for (func, value, bucket), count in counts.items():
                traits = self._target(key_of, func).traits
                traits.setdefault((trait, value), _zeros())[bucket] += count

        def files(places: NDArray[Any]) -> list[str | None]:
            paths = zip(places.tolist(), paths_of(places), strict=True)
            return [path if file else None for file, path in paths]

        def processes(places: NDArray[Any]) -> list[Who | None]:
            return [who(process) if process >= 0 else None for process in places.tolist()]

        self.files.add(self._owners(key_of, part.by_file), part.by_file, files)
        self.processes.add(self._owners(key_of, part.by_process), part.by_process, processes)
        for (func, work, bucket), sums in part.later.items():
            later = self._target(key_of, func).later.setdefault(key_of(work), LaterSums())
            for column, amount in zip(
                (later.targets, later.pieces, later.time_ns), sums, strict=True
            ):
                column[bucket] += amount
        self._add_sums(host, part, key_of, who)

    def _owners(self, key_of: _Names, cells: Cells) -> Index:
        """The numbers of the functions that own ``cells``."""
        number = np.zeros(MAX_FUNCTIONS, np.intp)
        for func in np.unique(cells.owner).tolist():
            number[func] = self._target(key_of, func).number
        return number[cells.owner]

    def _add_contexts(self, part: Attribution, key_of: _Names) -> None:
        numbers, buckets, counts, times = part.cells
        cuts = np.searchsorted(numbers, np.arange(len(part.contexts) + 1)).tolist()
        places: list[tuple[int, Path]] = []  # of each context: its target function and path
        for context, (low, high) in zip(part.contexts, pairwise(cuts), strict=True):
            if context.parent < 0:
                places.append((context.func, ()))
            else:
                target, above = places[context.parent]
                places.append((target, (*above, key_of(context.func))))
            if low == high:
                continue
            target, path = places[-1]
            contexts = self._target(key_of, target).contexts
            if path not in contexts:
                contexts[path] = ContextSums(key_of.op(context.func), key_of(context.entry))
            # a bucket occurs once, so that this adds
            contexts[path].count[buckets[low:high]] += counts[low:high]
            contexts[path].time_ns[buckets[low:high]] += times[low:high]

    def _add_sums(
        self, host: str, part: Attribution, key_of: _Names, who: Callable[[int], Who]
    ) -> None:
        self.folded += part.folded
        self.untold += part.untold
        for func, sums in part.work.items():
            self.work.setdefault(key_of(func), np.zeros(3, np.int64))[:] += sums
        for func, (count, time_ns) in part.unfinished.items():
            self._target(key_of, func).unfinished += count
            self._target(key_of, func).unfinished_ns += time_ns
        for (func, innermost), threads in part.stuck.items():
            self._target(key_of, func).stuck[key_of(innermost)] += threads
        for func, (moved, failed) in part.sums.items():
            self._target(key_of, func).moved += moved
            self._target(key_of, func).failed += failed
        for func, calls in part.slowest.items():
            slowest = self._target(key_of, func).slowest
            slowest += [(host, who(call.process), call) for call in calls]
            slowest.sort(key=lambda found: (-found[2].dur_ns, found[0], found[2].ts))
            del slowest[SLOWEST:]

    def _target(self, key_of: _Names, func: int) -> Target:
        key = key_of(func)
        if key not in self.by_key:
            self.by_key[key] = Target(
                key, key_of.op(func), len(self.by_key), self.files, self.processes
            )
        return self.by_key[key]


class _Names:
    """Names of a host's function numbers."""

    def __init__(self, functions: Functions) -> None:
        self._functions = functions
        self._known: dict[int, Key] = {}

    def __call__(self, number: int) -> Key:
        if number not in self._known:
            function = self._functions[number]
            self._known[number] = Key(function.layer, function.name)
        return self._known[number]

    def op(self, number: int) -> Op:
        return self._functions[number].op


def children(paths: Iterable[Path]) -> dict[Path, list[Path]]:
    """The contexts directly below each."""
    found: dict[Path, list[Path]] = {}
    for path in paths:
        if path:
            found.setdefault(path[:-1], []).append(path)
    return found
