"""The sums of all hosts, by name: what is known of the targets of one function.

Numbers of functions, files and processes are a host's own; here they have become names, so
that the parts of hosts add up. Everything that differs by the length of the target is an array
over the buckets of `bucket_of_length`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from datacrumbs.analysis.attribution import SLOWEST, Attribution, SlowCall
from datacrumbs.analysis.functions import Functions
from datacrumbs.analysis.keys import Numbers
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
    """All targets of one function on all hosts. ``slowest``: the longest, at most `SLOWEST`."""

    key: Key
    op: Op
    contexts: dict[Path, ContextSums] = field(default_factory=dict)
    present: dict[Key, Numbers] = field(default_factory=dict)
    traits: dict[tuple[Trait, int], Numbers] = field(default_factory=dict)
    files: Counter[tuple[str, int]] = field(default_factory=Counter)
    processes: Counter[tuple[Who, int]] = field(default_factory=Counter)
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

    def add(
        self,
        host: str,
        part: Attribution,
        functions: Functions,
        who: Callable[[int], Who],
        path_of: Callable[[int], str],
    ) -> None:
        """Add the sums of one host; ``who`` names its processes, ``path_of`` its files."""
        key_of = _Names(functions)
        self._add_contexts(part, key_of)
        for (func, entry, bucket), targets in part.present.items():
            present = self._target(key_of, func).present
            present.setdefault(key_of(entry), _zeros())[bucket] += targets
        for trait, counts in part.traits.items():
            for (func, value, bucket), count in counts.items():
                traits = self._target(key_of, func).traits
                traits.setdefault((trait, value), _zeros())[bucket] += count
        for (func, file, bucket), count in part.by_file.items():
            self._target(key_of, func).files[path_of(file), bucket] += count
        for (func, process, bucket), count in part.by_process.items():
            self._target(key_of, func).processes[who(process), bucket] += count
        for (func, work, bucket), sums in part.later.items():
            later = self._target(key_of, func).later.setdefault(key_of(work), LaterSums())
            for column, amount in zip(
                (later.targets, later.pieces, later.time_ns), sums, strict=True
            ):
                column[bucket] += amount
        self._add_sums(host, part, key_of, who)

    def _add_contexts(self, part: Attribution, key_of: _Names) -> None:
        places: list[tuple[int, Path]] = []  # of each context: its target function and path
        for context in part.contexts:
            if context.parent < 0:
                places.append((context.func, ()))
            else:
                target, above = places[context.parent]
                places.append((target, (*above, key_of(context.func))))
        for (number, bucket), (count, time_ns) in part.cells.items():
            context = part.contexts[number]
            target, path = places[number]
            contexts = self._target(key_of, target).contexts
            if path not in contexts:
                contexts[path] = ContextSums(key_of.op(context.func), key_of(context.entry))
            contexts[path].count[bucket] += count
            contexts[path].time_ns[bucket] += time_ns

    def _add_sums(
        self, host: str, part: Attribution, key_of: _Names, who: Callable[[int], Who]
    ) -> None:
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
            self.by_key[key] = Target(key, key_of.op(func))
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
