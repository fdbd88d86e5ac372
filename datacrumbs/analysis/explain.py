"""From a trace to what `datacrumbs_explain` says (`datacrumbs.analysis.explanation`).

One pass over the events of each host (two where calls are chosen by file), hosts side by side
on the machine's processors or on a cluster (`on_each`). Memory grows with what is distinct, not
with the number of events.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from datacrumbs.analysis import attribution
from datacrumbs.analysis.ahead import ahead
from datacrumbs.analysis.attribution import (
    COLUMNS,
    Attribution,
    Attributor,
    Choice,
    marked_by_file,
)
from datacrumbs.analysis.causes import Cause
from datacrumbs.analysis.explanation import (
    AsyncWork,
    Explained,
    Explanation,
    Inner,
    LaterWork,
    Part,
    SlowCall,
    Stuck,
)
from datacrumbs.analysis.functions import Flags, Functions
from datacrumbs.analysis.hosts import (
    clock_of,
    clocks_agree,
    host_facts,
    host_notes,
    missing_hosts,
    profile_notes,
)
from datacrumbs.analysis.keys import Index, Numbers
from datacrumbs.analysis.nesting import Nested, column_names, nested
from datacrumbs.analysis.on_each import Cluster, Progress, on_each
from datacrumbs.analysis.one_call import calls_inside
from datacrumbs.analysis.order import pieces_of
from datacrumbs.analysis.paths import Paths
from datacrumbs.analysis.processes import Process, ProcessIndex
from datacrumbs.analysis.ranks import Ranks, by_host, ranks_of
from datacrumbs.analysis.ranks import told as told_ranks
from datacrumbs.analysis.selection import Selection, check_selection
from datacrumbs.analysis.targets import Key, Path, Target, Targets, Who, children
from datacrumbs.analysis.variation import cause_in, variation_of
from datacrumbs.trace.reader import HostTrace, Trace
from datacrumbs.trace.runfile import State

QUANTILE_ERROR = 0.06
"""Quantiles are the mean of a bucket of lengths, whose ends are 9 to 12 % apart."""

SLOWEST_SHOWN = 3
"""The longest calls of each function, looked at one by one."""


def explain(
    trace: Trace,
    selection: Selection,
    *,
    top: int | None = None,
    progress: Progress | None = None,
    cluster: Cluster | None = None,
) -> Explanation:
    """Explain the calls of ``trace`` that ``selection`` means; of the ``top`` functions only.

    The events are read on ``cluster``, or here. Raises `BadInputError` for a selection that
    names what is not in the trace.
    """
    ranks = ranks_of(trace)
    hosts = check_selection(selection, trace, ranks)
    works = [partial(attribute, selection=selection, ranks=r) for r in by_host(ranks, hosts)]
    parts = on_each(hosts, works, progress, cluster)
    return explanation_of(trace, hosts, parts, selection, ranks, top=top)


def explanation_of(
    trace: Trace,
    hosts: Sequence[HostTrace],
    parts: Iterable[Attribution],
    selection: Selection,
    ranks: Ranks,
    *,
    top: int | None = None,
) -> Explanation:
    """The same from what `attribute` gave for each of ``hosts``."""
    homes: list[_Home] = []
    targets = Targets()
    for host, part in zip(hosts, parts, strict=True):
        home = _Home.of(host, part, ranks)
        home.add_to(targets, part)
        homes.append(home.light(part))
    return _explanation(trace, homes, targets, selection, top)


@dataclass(frozen=True, slots=True)
class _Home:
    """A host, what its numbers stand for, and of its sums the few that are about all of it."""

    trace: HostTrace
    counts: dict[str, int]
    processes: list[Process]
    paths: Paths
    ranks: Ranks

    @classmethod
    def of(cls, host: HostTrace, part: Attribution, ranks: Ranks) -> _Home:
        processes = ProcessIndex(host.table("processes")).processes()
        counts = {name: getattr(part, name) for name in _COUNTS}
        paths = Paths.of(host.table("files"))
        return cls(host, counts, processes, paths, ranks)

    def light(self, part: Attribution) -> _Home:
        """With the paths of the slowest calls only: there may be many hosts."""
        slow = {call.file for calls in part.slowest.values() for call in calls}
        return replace(self, paths=self.paths.only(slow))

    def add_to(self, targets: Targets, part: Attribution) -> None:
        functions = Functions(self.trace.table("functions"))  # large: not one for each host
        targets.add(self.trace.host, part, functions, self.who, self.paths.names)

    def who(self, number: int) -> Who:
        host = self.trace.host
        if number >= len(self.processes):  # not in the table; all of those are one
            return Who(host, 0, None, "")
        process = self.processes[number]
        rank = told_ranks(self.ranks).get((host, number))
        return Who(host, process.pid, rank, process.comm)


_COUNTS = ("events", "orphans", "overlapping", "targets")


def attribute(
    host: HostTrace,
    selection: Selection,
    ranks: Ranks,
    progress: Progress | None = None,
    *,
    watch: Callable[[Nested], None] = lambda batch: None,
) -> Attribution:
    """The sums of one host, the only one that ``ranks`` has to have.

    ``watch`` is shown every batch, once, in order.
    """
    functions = Functions(host.table("functions"))
    processes = ProcessIndex(host.table("processes"))
    pieces = pieces_of(host, column_names(COLUMNS))

    def batches() -> Iterator[Nested]:
        found = nested(host, COLUMNS, functions=functions, processes=processes, pieces=pieces)
        return ahead(found)

    choice = _choice(host, selection, functions, ranks)
    if choice.files is not None:
        choice = replace(choice, marked=marked_by_file(batches(), choice))
    attributor = Attributor(functions, choice)
    for batch in batches():
        attributor.add(batch)
        watch(batch)
        if progress:
            progress(len(batch.parent) - len(batch.kept))
    return attributor.result()


def _choice(host: HostTrace, selection: Selection, functions: Functions, ranks: Ranks) -> Choice:
    pids = np.array(sorted(selection.pids), np.int64)
    processes = selection.processes(host.host, ranks)
    ranked = np.array(sorted(processes or ()), np.int64)

    def fits(batch: Nested, rows: Index) -> Flags:
        chosen = np.ones(len(rows), bool)
        if len(pids):
            chosen &= np.isin(batch.rows["pid"][rows], pids)
        if processes is not None:
            chosen &= np.isin(batch.process[rows], ranked)
        return chosen

    files = selection.files(host)
    keys = None if files is None else np.array(sorted(files), np.uint64)
    return Choice(selection.functions(functions), fits, keys)


def _explanation(
    trace: Trace, homes: list[_Home], targets: Targets, selection: Selection, top: int | None
) -> Explanation:
    runs = [home.trace.run for home in homes if home.trace.run]
    facts = [host_facts(home.trace, home.counts["events"]) for home in homes]
    ordered = sorted(targets.by_key.values(), key=lambda t: (-t.time_ns, t.key))
    whole_ns = sum(target.time_ns for target in ordered)
    by_name = {home.trace.host: home for home in homes}
    sums = {name: sum(home.counts[name] for home in homes) for name in _COUNTS}
    lost = sum(run.counts.lost for run in runs)
    work = _work(targets)
    return Explanation(
        run_id=runs[0].run_id if runs else trace.path.name,
        user=runs[0].user if runs else "",
        state=_state([home.trace for home in homes]),
        selection=selection.text(),
        lost=lost,
        filtered=sum(run.counts.filtered for run in runs),
        missing_hosts=missing_hosts(trace),
        clocks_agree=clocks_agree(trace.hosts),
        hosts=facts,
        notes=[
            *host_notes(trace, facts),
            *profile_notes(trace),
            *_notes(lost, sums, len(ordered)),
            *_fileless(work),
            *_limits(targets),
        ],
        time_ns=whole_ns,
        functions=len(ordered),
        quantile_error=QUANTILE_ERROR,
        later=work,
        explained=[_explained(target, whole_ns, by_name) for target in ordered[:top]],
        **sums,
    )


def _state(hosts: list[HostTrace]) -> State:
    """The least good state of any host."""
    states = {host.state for host in hosts}
    return next(s for s in (State.CUT_OFF, State.RUNNING, State.COMPLETE) if s in states)


def _notes(lost: int, sums: dict[str, int], found: int) -> list[str]:
    notes = []
    orphans, overlapping = sums["orphans"], sums["overlapping"]
    if sums["events"] and not found:
        notes.append("No call of the trace is among those asked for.")
    if not sums["events"]:
        notes.append("There are no calls in the trace: see datacrumbs_report.")
    if lost:
        notes.append(
            f"{lost} events were lost: where one is missing, the time of its call counts for the "
            "call around it, and calls inside it count as that one's."
            + f" {orphans} kernel functions stand alone."
            * bool(orphans)
        )
    if overlapping:
        notes.append(
            f"{overlapping} calls overlap with the one before them on their thread without being "
            "inside it: a damaged trace, or a clock that went back."
        )
    return notes


def _work(targets: Targets) -> list[AsyncWork]:
    found = []
    for key, sums in sorted(targets.work.items()):
        count, time_ns, fileless = sums.tolist()
        found.append(
            AsyncWork(
                layer=key.layer, name=key.name, count=count, time_ns=time_ns, fileless=fileless
            )
        )
    return found


def _fileless(work: list[AsyncWork]) -> list[str]:
    return [
        f"{w.name} ({w.layer}): of {w.count} pieces of asynchronous work {w.fileless} are of no "
        "known file, and count for no call."
        for w in work
        if w.fileless
    ]


def _limits(targets: Targets) -> list[str]:
    """What was more than is kept."""
    notes = []
    if targets.folded:
        notes.append(
            f"{targets.folded} calls are deeper than {attribution.MAX_DEPTH} calls, or on more "
            f"call paths than {attribution.MAX_CONTEXTS}: they are part of the call around them."
        )
    if targets.untold:
        notes.append(
            f"Of {targets.untold} calls it is not known whether they were the first on their part "
            "of a file: too many parts were touched."
        )
    for what, places in (("files", targets.files), ("processes", targets.processes)):
        if places.others:
            notes.append(
                f"{places.others} calls are on {what} with few calls, which are not told apart "
                "where fast and slow calls are compared."
            )
    return notes


def _explained(target: Target, whole_ns: int, homes: dict[str, _Home]) -> Explained:
    own, time_ns = target.own, target.time_ns
    count = int(own.count.sum())
    self_ns = {path: int(values.sum()) for path, values in target.self_ns().items()}
    return Explained(
        layer=target.key.layer,
        name=target.key.name,
        count=count,
        failed=target.failed,
        unfinished=target.unfinished,
        unfinished_ns=target.unfinished_ns,
        stuck_in=[
            Stuck(layer=key.layer, name=key.name, threads=threads)
            for key, threads in target.stuck.most_common()
        ],
        time_ns=time_ns,
        share=_share(time_ns, whole_ns),
        mean_ns=round(_share(time_ns, count)),
        p50_ns=_quantile(own.count, own.time_ns, 0.5),
        p99_ns=_quantile(own.count, own.time_ns, 0.99),
        max_ns=target.slowest[0][2].dur_ns if target.slowest else 0,
        bytes=target.moved,
        inside=_inner(target, self_ns),
        layers=_parts_by(lambda path: (path or (target.key,))[-1].layer, self_ns, time_ns),
        causes=_parts_by(lambda path: _cause(target, path), self_ns, time_ns),
        later=_later(target, time_ns),
        variation=variation_of(target),
        slowest=[_slow_call(target.key, *found, homes) for found in target.slowest[:SLOWEST_SHOWN]],
    )


def _inner(target: Target, self_ns: dict[Path, int]) -> list[Inner]:
    """The contexts of a target, each before those it called."""
    time_ns = {path: int(sums.time_ns.sum()) for path, sums in target.contexts.items()}
    below = children(target.contexts)
    whole = time_ns.get((), 0)
    found: list[Inner] = []
    waiting: list[Path] = [()] if () in target.contexts else []
    while waiting:
        path = waiting.pop()
        key = path[-1] if path else target.key
        found.append(
            Inner(
                depth=len(path),
                layer=key.layer,
                name=key.name,
                cause=_cause(target, path),
                count=int(target.contexts[path].count.sum()),
                time_ns=time_ns[path],
                self_ns=self_ns[path],
                share=_share(time_ns[path], whole),
                self_share=_share(self_ns[path], whole),
            )
        )
        # the last one waiting comes next
        waiting += sorted(below.get(path, []), key=lambda inner: (time_ns[inner], inner))
    return found


def _cause(target: Target, path: Path) -> str:
    """The cause of the time in a context: that of its entry."""
    if not path:
        return Cause.NONE
    entry = target.contexts[path].entry
    return cause_in(target, path[: path.index(entry) + 1])


def _parts_by(name: Callable[[Path], str], self_ns: dict[Path, int], whole_ns: int) -> list[Part]:
    sums: dict[str, int] = {}
    for path, own_ns in self_ns.items():
        sums[name(path)] = sums.get(name(path), 0) + own_ns
    parts = [Part(name=n, self_ns=ns, share=_share(ns, whole_ns)) for n, ns in sums.items()]
    return sorted(parts, key=lambda part: (-part.self_ns, part.name))


def _later(target: Target, whole_ns: int) -> list[LaterWork]:
    found = [
        LaterWork(
            layer=key.layer,
            name=key.name,
            calls=int(sums.targets.sum()),
            pieces=int(sums.pieces.sum()),
            time_ns=int(sums.time_ns.sum()),
            share=_share(int(sums.time_ns.sum()), whole_ns),
        )
        for key, sums in target.later.items()
    ]
    return sorted(found, key=lambda work: (-work.time_ns, work.layer, work.name))


def _slow_call(
    key: Key, host: str, who: Who, call: attribution.SlowCall, homes: dict[str, _Home]
) -> SlowCall:
    """One call with all that was inside it, read again."""
    home = homes[host]
    alone = Targets()
    home.add_to(alone, calls_inside(home.trace, call))
    found = alone.by_key.get(key)
    clock = clock_of(home.trace)
    self_ns = {p: int(values.sum()) for p, values in found.self_ns().items()} if found else {}
    return SlowCall(
        host=host,
        pid=call.pid,
        tid=call.tid,
        rank=who.rank,
        start_ns=int(clock.to_real_ns(np.array([call.ts]))[0]) if clock else None,
        ts=call.ts,
        dur_ns=call.dur_ns,
        path=home.paths.names(np.array([call.file], np.uint64))[0] if call.file else None,
        offset=call.offset,
        size=call.size,
        ret=call.ret,
        inside=_inner(found, self_ns) if found else [],
    )


def _quantile(count: Numbers, time_ns: Numbers, share: float) -> int:
    """The mean of the bucket that the nearest rank falls in; 0 of nothing."""
    total = int(count.sum())
    if not total:
        return 0
    at = int(np.searchsorted(np.cumsum(count), max(1, math.ceil(share * total))))
    return round(int(time_ns[at]) / int(count[at]))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
