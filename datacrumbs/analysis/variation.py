"""Why some calls of a function take longer than others: fast and slow calls side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from datacrumbs.analysis.causes import Cause, Grade, meaning
from datacrumbs.analysis.explanation import Finding, Group, Variation
from datacrumbs.analysis.keys import Numbers
from datacrumbs.analysis.places import Placed
from datacrumbs.analysis.targets import Key, Path, Target
from datacrumbs.analysis.traits import Trait
from datacrumbs.trace.schema import Op

LEAST_CALLS = 20
"""Fewer calls than these are not compared."""

CLEAR = 0.75
"""Two groups are clear if the difference between them is this share of the variance of the
logarithms of lengths. One broad group reaches 0.64 (normal) to 0.75 (uniform)."""

LEAST_RATIO = 1.25
"""Slow calls take at least this much longer than fast ones, else there is nothing to explain."""

TELLING = 0.03
"""Of what calls did, findings with a smaller share of the difference are left out."""

TELLING_VARIANCE = 0.1
"""Of what calls are, and of marks, those with a smaller share of the variance."""

MOST = 0.5
"""A mark is in at least this share of the slow calls."""

TOLD_BY_OCCURRENCE = frozenset({Cause.PAGES, Cause.CACHE_MISS})
"""A page that has to be had costs time elsewhere too. Of other causes, what the function took is
all there is: a short balance_dirty_pages() did not throttle."""

Chosen = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Split:
    """Which buckets of length are fast calls, and which slow ones."""

    how: str
    fast: Chosen
    slow: Chosen


def variation_of(target: Target) -> Variation | None:
    """What tells slow targets from fast ones; None where they are few, or much alike."""
    own = target.own
    split = split_by_length(own.count, own.time_ns)
    if split is None:
        return None
    fast, slow = (_group(target, chosen) for chosen in (split.fast, split.slow))
    excess_ns = slow.time_ns - fast.mean_ns * slow.count
    whole_ns = max(1, target.time_ns)
    compared = _Compared(target, split, fast, slow)
    found = [f for f in compared.findings() if f.share >= _least(f.kind)]
    found.sort(key=lambda f: (f.kind == "own", -f.share, f.kind, f.name))
    return Variation(
        split=split.how,
        fast=fast,
        slow=slow,
        excess_ns=excess_ns,
        excess_share=excess_ns / whole_ns,
        findings=found,
    )


def _shows(finding: Finding) -> bool:
    """Whether it says something that slow calls have a cause that took next to no time."""
    told = not finding.slow_ns or finding.cause in TOLD_BY_OCCURRENCE
    return told and finding.slow_share >= MOST


def _least(kind: str) -> float:
    return TELLING if kind in ("inside", "own", "later") else TELLING_VARIANCE


def split_by_length(count: Numbers, time_ns: Numbers) -> Split | None:
    """Fast and slow of calls given by bucket of length; see `Variation.split`."""
    total = int(count.sum())
    if total < LEAST_CALLS:
        return None
    split = _groups(count, time_ns) or _tenths(count, total)
    if split is None:
        return None
    means = [time_ns[side].sum() / count[side].sum() for side in (split.fast, split.slow)]
    return split if means[1] >= LEAST_RATIO * max(means[0], 1.0) else None


def _groups(count: Numbers, time_ns: Numbers) -> Split | None:
    """The clearest of the two splits: counting each call once, and each by its length.

    By length too, because few calls may take most of the time, and many calls of no weight
    hide that there are two groups among the rest.
    """
    at = np.flatnonzero(count)
    mean = np.log(np.maximum(time_ns[at] / count[at], 1.0))
    best = max(
        (_clearest(mean, weight) for weight in (count[at], time_ns[at])), key=lambda found: found[0]
    )
    if best[0] < CLEAR:
        return None
    first_slow = at[best[1]]
    buckets = np.arange(len(count))
    return Split("groups", buckets < first_slow, buckets >= first_slow)


def _clearest(value: NDArray[np.float64], weight: Numbers) -> tuple[float, int]:
    """Otsu's threshold: share of the variance between the groups, first index of the upper."""
    share = weight / max(1, weight.sum())
    below, sums = np.cumsum(share)[:-1], np.cumsum(share * value)[:-1]
    mean = float((share * value).sum())
    variance = float((share * (value - mean) ** 2).sum())
    if len(below) == 0 or variance <= 0:
        return 0.0, 0
    inside = (below > 0) & (below < 1)
    between = np.zeros(len(below))
    between[inside] = (mean * below - sums)[inside] ** 2 / (below * (1 - below))[inside]
    best = int(np.argmax(between))
    return float(between[best]) / variance, best + 1


def _tenths(count: Numbers, total: int) -> Split | None:
    below = np.cumsum(count)
    half = int(np.searchsorted(below, 0.5 * total))
    tenth = int(np.searchsorted(below, 0.9 * total))
    buckets = np.arange(len(count))
    return Split("tenths", buckets <= half, buckets >= tenth) if tenth > half else None


def _group(target: Target, chosen: Chosen) -> Group:
    own = target.own
    count, time_ns = int(own.count[chosen].sum()), int(own.time_ns[chosen].sum())
    there = np.flatnonzero(chosen & (own.count > 0))
    ends = [round(int(own.time_ns[b]) / int(own.count[b])) for b in (there[0], there[-1])]
    return Group(
        count=count,
        time_ns=time_ns,
        mean_ns=round(time_ns / count),
        from_ns=ends[0],
        to_ns=ends[1],
    )


@dataclass(frozen=True, slots=True)
class _Compared:
    """Fast and slow targets of one function."""

    target: Target
    split: Split
    fast: Group
    slow: Group

    def findings(self) -> Iterator[Finding]:
        yield from self._inside()
        yield from self._later()
        yield from self._traits()
        sizes = self._size()
        if sizes:
            yield sizes
        target = self.target
        processes = target.processes
        yield from self._places("file", target.files)
        yield from self._places("process", processes, _process_name)
        yield from self._places("host", processes.named(lambda who: who.host))

    def _means(self, values: Numbers) -> tuple[float, float]:
        """Of fast and of slow targets, the sum of ``values`` for each."""
        split = self.split
        fast, slow = int(values[split.fast].sum()), int(values[split.slow].sum())
        return fast / self.fast.count, slow / self.slow.count

    def _share(self, fast_ns: float, slow_ns: float) -> float:
        """Of the difference between a slow call and a fast one."""
        return (slow_ns - fast_ns) / max(1, self.slow.mean_ns - self.fast.mean_ns)

    def _inside(self) -> Iterator[Finding]:
        """What slow calls did more of: self times by entry add up to the whole difference."""
        own = self.target.self_ns()
        fast_ns, slow_ns = self._means(own[()])
        itself = Finding(
            kind="own",
            share=self._share(fast_ns, slow_ns),
            name=self.target.key.name,
            layer=self.target.key.layer,
            slow_ns=round(slow_ns),
            fast_ns=round(fast_ns),
            slow_share=1.0,
            fast_share=1.0,
        )
        found = [self._entry(entry, paths, own) for entry, paths in self._by_entry().items()]
        known = sum(f.share for f, grade in found if grade > Grade.WEAK)
        yield itself
        for finding, grade in found:
            if finding.share >= TELLING or grade <= Grade.WEAK:
                yield finding
            elif _shows(finding):
                yield self._mark(finding, max(0.0, 1.0 - known))

    def _by_entry(self) -> dict[Key, list[Path]]:
        by_entry: dict[Key, list[Path]] = {}
        for path, sums in self.target.contexts.items():
            if path:
                by_entry.setdefault(sums.entry, []).append(path)
        return by_entry

    def _entry(
        self, entry: Key, paths: list[Path], own: dict[Path, Numbers]
    ) -> tuple[Finding, Grade]:
        """What is inside of the function ``entry``, and the grade of its cause."""
        contexts = self.target.contexts
        time_ns = np.sum([own[path] for path in paths], axis=0)
        heads = [path for path in paths if path[-1] == entry]
        calls = np.sum([contexts[path].count for path in heads], axis=0)
        main = max(heads, key=lambda path: int(contexts[path].time_ns.sum()))
        fast_ns, slow_ns = self._means(time_ns)
        fast_count, slow_count = self._means(np.asarray(calls))
        fast_share, slow_share = self._means(self.target.present[entry])
        finding = Finding(
            kind="inside",
            share=self._share(fast_ns, slow_ns),
            name=entry.name,
            layer=entry.layer,
            cause=cause_in(self.target, main),
            via=[key.name for key in main[:-1]],
            slow_ns=round(slow_ns),
            fast_ns=round(fast_ns),
            slow_share=slow_share,
            fast_share=fast_share,
            slow_count=slow_count,
            fast_count=fast_count,
        )
        return finding, meaning(entry.name, contexts[main].op).grade

    def _mark(self, finding: Finding, rest: float) -> Finding:
        """A cause without time of its own (a tracepoint): how well it tells slow calls.

        It can stand for no more than ``rest``, the share of the difference that no cause has.
        """
        sides = ((self.fast.count, finding.fast_share), (self.slow.count, finding.slow_share))
        (f, fast), (s, slow) = ((round(n * share), n) for n, share in sides)
        more = f * slow < s * fast
        share = rest * variance_share([(f, s), (fast - f, slow - s)]) if more else 0.0
        return replace(finding, kind="mark", share=share)

    def _later(self) -> Iterator[Finding]:
        for work, sums in self.target.later.items():
            fast_ns, slow_ns = self._means(sums.time_ns)
            fast_share, slow_share = self._means(sums.targets)
            yield Finding(
                kind="later",
                share=min(1.0, self._share(fast_ns, slow_ns)),
                name=work.name,
                layer=work.layer,
                slow_ns=round(slow_ns),
                fast_ns=round(fast_ns),
                slow_share=slow_share,
                fast_share=fast_share,
            )

    def _traits(self) -> Iterator[Finding]:
        for trait, (low, high) in _OPPOSITES.items():
            values = {v: n for (t, v), n in self.target.traits.items() if t is trait and v > 0}
            no = values.get(1, np.zeros(1, np.int64))
            yes = sum((n for v, n in values.items() if v > 1), np.zeros_like(self.split.fast, int))
            if len(no) == 1:
                no = np.zeros_like(yes)
            counts = {low: self._pair(no), high: self._pair(yes)}
            yield from self._most(counts, "trait")

    def _size(self) -> Finding | None:
        values = {
            v: self._pair(n)
            for (t, v), n in self.target.traits.items()
            if t is Trait.SIZE and v > 0
        }
        if len(values) < 2:
            return None
        fast, slow = (_median({v: pair[side] for v, pair in values.items()}) for side in (0, 1))
        if not fast or not slow or fast == slow:
            return None
        return Finding(
            kind="size",
            share=variance_share(list(values.values())),
            name="larger" if slow > fast else "smaller",
            slow_bytes=1 << slow - 1,
            fast_bytes=1 << fast - 1,
        )

    def _places(
        self, kind: str, placed: Placed[Any], name: Callable[[Any], str] = str
    ) -> Iterator[Finding]:
        pairs = placed.pairs(self.split.fast, self.split.slow)
        if len(pairs) > 1:
            yield from self._most(pairs, kind, name)

    def _most(
        self, counts: dict[Any, tuple[int, int]], kind: str, name: Any = str
    ) -> Iterator[Finding]:
        """The value that slow calls have most often beyond what fast ones have.

        None is no value: it stands for many.
        """
        fast, slow = (sum(pair[side] for pair in counts.values()) for side in (0, 1))
        if not fast or not slow:
            return
        best = max(
            (value for value in counts if value is not None),
            key=lambda value: counts[value][1] / slow - counts[value][0] / fast,
        )
        yield Finding(
            kind=kind,
            share=variance_share(list(counts.values())),
            name=name(best),
            slow_share=counts[best][1] / slow,
            fast_share=counts[best][0] / fast,
        )

    def _pair(self, values: Numbers) -> tuple[int, int]:
        return int(values[self.split.fast].sum()), int(values[self.split.slow].sum())


_OPPOSITES = {
    Trait.ALIGNED: ("unaligned", "aligned"),
    Trait.FAILED: ("returned", "failed"),
    Trait.SHORT: ("full", "short"),
    Trait.FIRST: ("touched", "first touch"),
    Trait.SHARED: ("alone on the file", "shared file"),
    Trait.BUSY: ("alone on the host", "busy host"),
}
"""What a trait's value of 1 is called, and what the higher ones are."""


def variance_share(counts: list[tuple[int, int]]) -> float:
    """How much of the variance of "is slow" a property explains, given (fast, slow) by value.

    Cramer's V squared, less what as many values explain by chance.
    """
    fast, slow = (sum(pair[side] for pair in counts) for side in (0, 1))
    total, used = fast + slow, [pair for pair in counts if sum(pair)]
    if not fast or not slow or len(used) < 2:
        return 0.0
    within = sum(f * s / (f + s) for f, s in used)
    explained = 1 - within * total / (fast * slow)
    by_chance = (len(used) - 1) / max(1, total - 1)
    return max(0.0, min(1.0, (explained - by_chance) / max(1e-9, 1 - by_chance)))


def cause_in(target: Target, path: Path) -> str:
    """The cause of the time of the context ``path``, whose entry it is."""
    if not path:
        return Cause.NONE
    cause = meaning(path[-1].name, target.contexts[path].op).cause
    # a page that a read adds to the page cache was not there
    return Cause.CACHE_MISS if cause is Cause.PAGES and target.op is Op.READ else cause


def _median(counts: dict[int, int]) -> int:
    """The value in the middle; 0 if there is none."""
    middle, seen = sum(counts.values()) / 2, 0
    for value in sorted(counts):
        seen += counts[value]
        if seen and seen >= middle:
            return value
    return 0


def _process_name(who: Any) -> str:
    rank = f"rank {who.rank}, " if who.rank is not None else ""
    return f"{rank}{who.comm or '?'} {who.pid} on {who.host}"
