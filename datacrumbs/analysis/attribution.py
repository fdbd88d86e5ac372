"""One pass over a host's events: what the calls to be explained did, added up.

A *target* is a call to be explained: the outermost one on its thread of the functions that
were asked for. Its time is split among the *contexts* below it: a context is a function and the
context it was called from. All sums are kept by the length of the target (`bucket_of_length`),
so that any later split into fast and slow calls is a choice of buckets. Everything is integers,
so that parts can be added in any order to the same result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datacrumbs.analysis.causes import Grade, meaning
from datacrumbs.analysis.functions import MAX_FUNCTIONS, Flags, Functions
from datacrumbs.analysis.keys import (
    Index,
    KeyIndex,
    KeySums,
    Numbers,
    columns_of,
    distinct,
    grow,
    table,
)
from datacrumbs.analysis.later import Later
from datacrumbs.analysis.nesting import Nested
from datacrumbs.analysis.places import Cells
from datacrumbs.analysis.quantiles import bucket_of_length
from datacrumbs.analysis.traits import Trait, Traits
from datacrumbs.trace.schema import EventFlag

COLUMNS = ("file", "offset", "size", "ret")
"""What attribution needs of ``events`` beside what nesting does."""

MAX_CONTEXTS = 1 << 16
MAX_DEPTH = 256
"""Calls in more contexts than these, or deeper in their target, are part of the one around them."""

SLOWEST = 8
"""Targets of each function that are kept whole, the longest."""

_MANY_PARTS = 64
_BUCKET_BITS = 10
_FUNC_BITS = 16
_THREE = (_FUNC_BITS, _BUCKET_BITS)  # below the first part of a key


@dataclass(frozen=True, slots=True)
class Context:
    """A function below a target function. ``parent`` is the number of a context, -1: a target.

    ``entry`` is the function that gives the time here its cause: the outermost with the highest
    `Grade` below the target, or the function itself if none there has a cause.
    """

    parent: int
    func: int
    entry: int


@dataclass(frozen=True, slots=True)
class SlowCall:
    """One target, as the trace has it; ``ts`` is of the host's monotonic clock."""

    dur_ns: int
    ts: int
    func: int
    process: int
    pid: int
    tid: int
    file: int
    offset: int
    size: int
    ret: int


Counts = dict[tuple[int, int, int], int]
"""Targets by function, something else, and bucket of their length."""


@dataclass(slots=True)
class Attribution:
    """The sums of one host; functions, files and processes are its own numbers.

    ``cells`` are columns by context and bucket: count, and time (of targets their length, of
    others what they cover of the call around them). ``present`` by target function, entry and
    bucket: in how many targets. ``unfinished`` by function: count and time; ``stuck``: by
    function and the innermost unfinished one on the same thread, on how many threads. ``sums``:
    bytes, failed. ``later`` by target function, work and bucket: targets, pieces, time. ``work``
    by function of asynchronous work: count, time, how many of no known file. ``folded``: calls
    that are part of the one around them (`MAX_CONTEXTS`). ``untold``: targets of which it is not
    known whether they were the first on their region of a file.
    """

    contexts: list[Context]
    cells: tuple[Numbers, ...]
    present: Counts
    traits: dict[Trait, Counts]
    by_file: Cells
    by_process: Cells
    later: dict[tuple[int, int, int], tuple[int, int, int]]
    work: dict[int, tuple[int, int, int]]
    unfinished: dict[int, tuple[int, int]]
    stuck: dict[tuple[int, int], int]
    sums: dict[int, tuple[int, int]]
    slowest: dict[int, list[SlowCall]]
    events: int
    targets: int
    orphans: int
    overlapping: int
    folded: int
    untold: int


@dataclass(frozen=True, slots=True)
class Choice:
    """Which calls may be targets: of functions ``is_target``, and in ``fits``.

    ``files``: only on one of these, or with a call inside that is. That takes a pass of its own
    before (`marked_by_file`), which numbers the calls that may be targets and marks them.
    """

    is_target: Flags
    fits: Callable[[Nested, Index], Flags] = lambda _, rows: np.ones(len(rows), bool)
    files: NDArray[np.uint64] | None = None
    marked: Flags | None = None


def marked_by_file(batches: Iterable[Nested], choice: Choice) -> Flags:
    """The marks of calls on ``choice.files``, for a second pass over the same batches."""
    assert choice.files is not None
    placer = Placer(choice)
    marked = np.zeros(0, bool)
    for batch in batches:
        root = placer.place(batch)
        marked = grow(marked, placer.count)
        found = (root >= 0) & np.isin(batch.rows["file"], choice.files)
        marked[placer.number[root[found]]] = True
    return grow(marked, placer.count)


class Placer:
    """Finds the target that each call is in."""

    def __init__(self, choice: Choice) -> None:
        self.count = 0  # calls that might be targets
        self.number: NDArray[Any] = np.zeros(0, np.intp)  # of those, for the last batch
        self._choice = choice
        self._root: NDArray[Any] | None = None

    def place(self, batch: Nested) -> Index:
        """The row of the target that each row is in, itself for a target; -1 for none."""
        root = batch.carry(self._root, -1, np.intp)
        kept = root[: len(batch.kept)]
        kept[kept >= 0] = np.searchsorted(batch.kept, kept[kept >= 0])
        target = self._targets(batch)
        for rows in batch.levels:
            up = batch.parent[rows]
            above = np.where(up >= 0, root[up], -1)
            root[rows] = np.where((above < 0) & target[rows], rows, above)
        self._root = root
        return root

    def _targets(self, batch: Nested) -> Flags:
        choice = self._choice
        target: Flags = choice.is_target[batch.rows["func"]]
        target &= batch.rows["flags"] & EventFlag.UNFINISHED == 0
        target[: len(batch.kept)] = False
        rows = np.flatnonzero(target)
        self.number = batch.carry(self.number if len(batch.kept) else None, -1, np.intp)
        self.number[rows] = np.arange(self.count, self.count + len(rows))
        self.count += len(rows)
        target[rows] = choice.fits(batch, rows)
        if choice.marked is not None:
            target[rows] &= choice.marked[self.number[rows]]
        return target


class Attributor:
    """Takes the `Nested` batches of a host, one after the other."""

    def __init__(self, functions: Functions, choice: Choice) -> None:
        self.functions = functions
        self.traits = Traits(functions)
        self.later = Later()
        self._choice = choice
        self._placer = Placer(choice)
        self._contexts = KeyIndex(np.int64)
        self._entry = _Entries(functions)
        self._cells = KeySums("count", "time_ns")
        self._present = KeySums("targets")
        self._pairs = np.zeros(0, np.int64)  # target row and entry, of open targets
        self._context: NDArray[Any] | None = None
        self._unfinished = _Unfinished(choice)
        self._sums = KeySums("moved", "failed")
        self._slowest = _Slowest()
        self.events = self.targets = self.orphans = self.overlapping = self.folded = 0
        self._kernel = np.zeros(MAX_FUNCTIONS, bool)
        kinds = functions.kinds()
        self._kernel[[number for number, kind in kinds.items() if kind == "kernel"]] = True

    def add(self, batch: Nested) -> None:
        """Add one batch; returns nothing, keeps what the next one needs."""
        root = self._placer.place(batch)
        context, folded = self._contexts_of(batch, root)
        self._context = context
        self.folded += int(np.count_nonzero(folded))
        fresh = np.arange(len(batch.kept), len(root))
        flags = batch.rows["flags"][fresh]
        self.events += len(fresh)
        inside = fresh[root[fresh] >= 0]
        counted = inside[~folded[inside]]
        if len(counted):
            self._add_cells(batch, counted, root, context)
        own = inside[root[inside] == inside]
        self.targets += len(own)
        self._add_presence(batch, counted, root, context)
        self._add_targets(batch, own, root)
        self._unfinished.add(batch, fresh)
        alone = (batch.parent[fresh] < 0) & (flags & EventFlag.ASYNC == 0)
        self.orphans += int(np.count_nonzero(alone & self._kernel[batch.rows["func"][fresh]]))
        cut = batch.covered_ns[fresh] < batch.rows["dur"][fresh]
        self.overlapping += int(np.count_nonzero(cut & (batch.depth[fresh] >= 0)))
        self.later.add(batch, own, root, inside)

    def result(self) -> Attribution:
        """What was added up; to be called once, at the end."""
        self.later.finish()
        return Attribution(
            contexts=self._entry.contexts(self._contexts),
            cells=columns_of(self._cells, _BUCKET_BITS),
            present={key: n for key, (n,) in table(self._present, *_THREE).items()},
            traits=self.traits.by_trait(),
            by_file=self.traits.by_file(),
            by_process=self.traits.by_process(),
            later=table(self.later.overlaps, *_THREE),
            work={func: sums for (func,), sums in table(self.later.work).items()},
            unfinished={func: sums for (func,), sums in table(self._unfinished.sums).items()},
            stuck=self._unfinished.stuck(),
            sums={func: sums for (func,), sums in table(self._sums).items()},
            slowest=self._slowest.result(),
            events=self.events,
            targets=self.targets,
            orphans=self.orphans,
            overlapping=self.overlapping,
            folded=self.folded,
            untold=self.traits.untold,
        )

    def _contexts_of(self, batch: Nested, root: Index) -> tuple[Index, Flags]:
        """The context of every row, -1 outside of targets; and which rows are folded into it."""
        context = batch.carry(self._context, -1, np.intp)
        folded = np.zeros(len(root), bool)
        func = batch.rows["func"].astype(np.intp)
        for level in batch.levels:
            rows = level[root[level] >= 0]
            begins = root[rows] == rows
            targets, rows = rows[begins], rows[~begins]
            if len(targets):
                context[targets] = self._contexts.numbers(func[targets])
            if len(rows):
                caller = context[batch.parent[rows]]
                number = np.full(len(rows), -1, np.intp)
                near = batch.depth[rows] - batch.depth[root[rows]] <= MAX_DEPTH
                keys = (caller[near] + 1) << _FUNC_BITS | func[rows[near]]
                number[near] = self._contexts.numbers(keys, limit=MAX_CONTEXTS)
                context[rows] = np.where(number >= 0, number, caller)
                folded[rows] = number < 0
        return context, folded

    def _add_cells(self, batch: Nested, inside: Index, root: Index, context: Index) -> None:
        dur_ns = batch.rows["dur"]
        bucket = bucket_of_length(dur_ns[root[inside]])
        time_ns = np.where(root[inside] == inside, dur_ns[inside], batch.covered_ns[inside])
        key = context[inside].astype(np.int64) << _BUCKET_BITS | bucket
        self._cells.add(key, count=1, time_ns=time_ns)

    def _add_presence(self, batch: Nested, inside: Index, root: Index, context: Index) -> None:
        """Count each entry once in each target, also where that lasts over many batches."""
        entry = self._entry.of(self._contexts)
        nested = inside[root[inside] != inside]
        pairs = root[nested].astype(np.int64) << _FUNC_BITS | entry[context[nested]]
        pairs = distinct(pairs)[0]
        row = self._pairs >> _FUNC_BITS
        at = np.searchsorted(batch.kept, row)
        still = at < len(batch.kept)
        still[still] = batch.kept[at[still]] == row[still]
        earlier = at[still] << _FUNC_BITS | self._pairs[still] & 0xFFFF
        if len(earlier):
            pairs = pairs[~np.isin(pairs, earlier)]
        target = (pairs >> _FUNC_BITS).astype(np.intp)
        bucket = bucket_of_length(batch.rows["dur"][target])
        func = batch.rows["func"][target].astype(np.int64)
        key = (func << _FUNC_BITS | pairs & 0xFFFF) << _BUCKET_BITS | bucket
        self._present.add(key, targets=1)
        last = int(batch.rows["ts"][-1])
        self._pairs = np.concatenate([earlier, pairs[batch.end[target] >= last]])

    def _add_targets(self, batch: Nested, own: Index, root: Index) -> None:
        if not len(own):
            return
        rows = batch.rows
        func = rows["func"][own].astype(np.intp)
        ret = rows["ret"][own]
        moves = (self.functions.reads | self.functions.writes)[func] & (ret > 0)
        failed = self.functions.syscall[func] & (ret < 0)
        self._sums.add(func, moved=np.where(moves, ret, 0), failed=failed.astype(np.int64))
        bucket = bucket_of_length(rows["dur"][own])
        before = np.unique(root[: len(batch.kept)])
        self.traits.add(batch, own, bucket, before[before >= 0])
        self._slowest.add(batch, own)


class _Unfinished:
    """Calls that did not return: of the functions asked for, and where they were.

    A call that an exception or longjmp left is no place where a thread still is: what its
    thread did afterwards tells it from one that hangs.
    """

    def __init__(self, choice: Choice) -> None:
        self.sums = KeySums("count", "time_ns")
        self._choice = choice
        self._open: list[tuple[Index, Index, Numbers, Flags]] = []
        self._latest = np.zeros(0, np.int64)  # start of the last call of each thread

    def add(self, batch: Nested, fresh: Index) -> None:
        """The new rows of ``batch``, of which those that are unfinished count."""
        flags, thread = batch.rows["flags"], batch.thread[fresh]
        sync = flags[fresh] & EventFlag.ASYNC == 0
        self._latest = grow(self._latest, int(thread.max(initial=-1)) + 1)
        self._latest[thread[sync]] = batch.rows["ts"][fresh[sync]]  # of several, the last
        rows = fresh[flags[fresh] & EventFlag.UNFINISHED != 0]
        if not len(rows):
            return
        func = batch.rows["func"][rows].astype(np.intp)
        asked: Flags = self._choice.is_target[func]
        asked &= self._choice.fits(batch, rows)
        if self._choice.files is not None:
            asked &= np.isin(batch.rows["file"][rows], self._choice.files)
        self.sums.add(func[asked], count=1, time_ns=batch.rows["dur"][rows[asked]])
        self._open.append((batch.thread[rows], func, batch.end[rows], asked))
        if len(self._open) >= _MANY_PARTS:
            self._open = [self._still_open()]

    def stuck(self) -> dict[tuple[int, int], int]:
        """How many threads are in a function asked for, by it and the innermost one there."""
        if not self._open:
            return {}
        thread, func, _, asked = self._still_open()
        innermost = np.zeros(len(self._latest), np.intp)
        innermost[thread] = func  # by start, so that the last one stands
        pairs = np.unique(np.stack([thread[asked], func[asked]]), axis=1)
        return dict(Counter(zip(pairs[1].tolist(), innermost[pairs[0]].tolist(), strict=True)))

    def _still_open(self) -> tuple[Index, Index, Numbers, Flags]:
        """Those after whose end so far their thread made no call."""
        thread, func, end, asked = (np.concatenate(part) for part in zip(*self._open, strict=True))
        still = end >= self._latest[thread]
        return thread[still], func[still], end[still], asked[still]


class _Entries:
    """Which function gives a context its cause; contexts by number, as they come."""

    def __init__(self, functions: Functions) -> None:
        self._functions = functions
        self._found: list[Context] = []
        self._grade: list[Grade] = []
        self._entry = np.zeros(0, np.int64)

    def of(self, contexts: KeyIndex) -> Numbers:
        """The entry of each context there is."""
        if len(contexts) > len(self._found):
            for key in contexts.seen()[len(self._found) :].tolist():
                self._add((key >> _FUNC_BITS) - 1, key & 0xFFFF)
            self._entry = np.array([context.entry for context in self._found], np.int64)
        return self._entry

    def contexts(self, contexts: KeyIndex) -> list[Context]:
        """All of them, by number."""
        self.of(contexts)
        return self._found

    def _add(self, parent: int, func: int) -> None:
        grade, entry = Grade.PLAIN, func
        if parent >= 0:
            function = self._functions[func]
            grade = meaning(function.name, function.op).grade
            if self._grade[parent] >= max(grade, Grade.WEAK):
                grade, entry = self._grade[parent], self._found[parent].entry
        self._found.append(Context(parent, func, entry))
        self._grade.append(grade)


@dataclass(slots=True)
class _Slowest:
    """The longest targets of each function."""

    _found: dict[int, list[SlowCall]] = field(default_factory=dict)
    _least: Numbers = field(default_factory=lambda: np.full(MAX_FUNCTIONS, -1, np.int64))

    def add(self, batch: Nested, own: Index) -> None:
        rows = batch.rows
        func = rows["func"][own].astype(np.intp)
        own = own[rows["dur"][own] > self._least[func]]
        for number in np.unique(rows["func"][own]).tolist():
            these = own[rows["func"][own] == number]
            best = these[np.argsort(-rows["dur"][these], kind="stable")[:SLOWEST]]
            calls = self._found.get(number, []) + [_slow_call(batch, row) for row in best.tolist()]
            calls.sort(key=lambda call: (-call.dur_ns, call.ts))
            self._found[number] = calls[:SLOWEST]
            if len(calls) >= SLOWEST:
                self._least[number] = calls[SLOWEST - 1].dur_ns

    def result(self) -> dict[int, list[SlowCall]]:
        return self._found


def _slow_call(batch: Nested, row: int) -> SlowCall:
    rows = batch.rows
    facts = {name: int(rows[name][row]) for name in ("ts", "func", "pid", "tid", *COLUMNS)}
    return SlowCall(dur_ns=int(rows["dur"][row]), process=int(batch.process[row]), **facts)
