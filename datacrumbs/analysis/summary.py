"""From a trace to what a report says (`datacrumbs.analysis.model`), in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from datacrumbs.analysis.ahead import ahead
from datacrumbs.analysis.files import (
    NEVER_OPENED,
    by_fstype,
    by_mount,
    merged_files,
    named_files,
    top_files,
)
from datacrumbs.analysis.functions import UNKNOWN_LAYER
from datacrumbs.analysis.hosts import (
    HostFacts,
    clocks_agree,
    host_facts,
    host_notes,
    missing_hosts,
)
from datacrumbs.analysis.keys import Numbers
from datacrumbs.analysis.model import (
    AccessSummary,
    FileSummary,
    FilesystemSummary,
    FunctionSummary,
    HostSummary,
    LayerSummary,
    MountSummary,
    ProcessSummary,
    SizeClass,
    Summary,
)
from datacrumbs.analysis.on_each import Cluster, Progress, on_each
from datacrumbs.analysis.order import in_order
from datacrumbs.analysis.quantiles import ERROR_BOUND, POWER_ERROR_BOUND, quantile
from datacrumbs.analysis.ranks import Ranks, by_host, ranks_of, told
from datacrumbs.analysis.tally import COLUMNS, SIZE_CLASSES, AccessTally, HostTally
from datacrumbs.trace.clocks import RealtimeClock
from datacrumbs.trace.reader import HostTrace, Trace
from datacrumbs.trace.runfile import Counts, FilteredBy, LostBy, Skipped, State
from datacrumbs.trace.schema import INTERVALS

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS_AT_ONCE = 10_000


def summarise(
    trace: Trace,
    *,
    top: int | None = None,
    progress: Progress | None = None,
    cluster: Cluster | None = None,
) -> Summary:
    """The summary of ``trace``; ``top`` cuts files and processes short.

    One pass over the events of each host, on ``cluster`` or here, in memory that grows with
    what is distinct (files, threads, functions), not with the number of events.
    """
    return summarise_with_durations(trace, top=top, progress=progress, cluster=cluster)[0]


def summarise_with_durations(
    trace: Trace,
    *,
    top: int | None = None,
    progress: Progress | None = None,
    cluster: Cluster | None = None,
) -> tuple[Summary, dict[tuple[str, str], Numbers]]:
    """`summarise`, and for each layer and name the histogram (`quantiles`) of its durations."""
    parts: list[_HostPart] = []
    functions, files = _Functions(), _Files()
    works = [partial(_read, ranks=r) for r in by_host(told(ranks_of(trace)), trace.hosts)]
    found = on_each(trace.hosts, works, progress, cluster)
    for host, (part, called, named) in zip(trace.hosts, found, strict=True):
        part.trace = host
        parts.append(part)
        functions.add(called)
        files.add(named)
    return _summary(trace, parts, functions, files.all(), top), functions.durations()


def _read(
    host: HostTrace, ranks: Ranks, progress: Progress
) -> tuple[_HostPart, _HostFunctions, pa.Table]:
    """All events of one host, added up: small beside them, it may come from elsewhere."""
    tally = HostTally.of(*(host.table(t) for t in ("functions", "processes", "peers")))
    for calls in ahead(map(tally.add_calls, ahead(in_order(host, COLUMNS)))):
        tally.add_files(calls)
        progress(len(calls.start))
    for batch in host.batches(INTERVALS):
        tally.add_intervals(batch)
    called = _HostFunctions(
        rows=_function_rows(tally),
        attached=tally.functions.attached(),
        io_ns=dict(zip(tally.functions.layers, tally.time.by_layer().tolist(), strict=True)),
    )
    named = named_files(tally.by_file, host.table("files"))
    return _HostPart(host, tally, ranks, called), called, named


@dataclass(frozen=True, slots=True)
class _HostFunctions:
    """The functions of one host, and the time in I/O of its layers, in the trace's order."""

    rows: dict[tuple[str, str], dict[str, Any]]
    attached: set[tuple[str, str]]
    io_ns: dict[str, int]


class _Files:
    """Files of all hosts, summed by path whenever those to add have become as many again."""

    def __init__(self) -> None:
        self._parts: list[pa.Table] = []

    def add(self, named: pa.Table) -> None:
        self._parts.append(named)
        if sum(map(len, self._parts[1:])) >= len(self._parts[0]):
            self._parts = [self.all()]

    def all(self) -> pa.Table:
        return merged_files(self._parts)


class _HostPart:
    """One host's numbers; the tally itself and the functions, which are large, are not kept."""

    trace: HostTrace  # known where the parts come together, so it is not sent there

    def __init__(
        self, trace: HostTrace, tally: HostTally, ranks: Ranks, called: _HostFunctions
    ) -> None:
        self.first_ns, self.last_ns = tally.first_ns, tally.last_ns
        self.events, self.profiled = tally.events, tally.profiled
        self.unfinished = sum(int(row["unfinished"]) for row in called.rows.values())
        self.started_ns, self.stopped_ns = _span(trace, tally)
        self.unoverlapped_ns = tally.time.unoverlapped_ns
        self.processes = _processes(trace.host, tally, ranks)
        self.accesses = (tally.reads, tally.writes)
        for access in self.accesses:
            access.end()

    def counts(self) -> Counts:
        """What the daemon counted, with the events that are in fact there."""
        said = self.trace.run.counts if self.trace.run else Counts()
        return Counts(
            events=self.events,
            profiled=self.profiled,
            lost=said.lost,
            filtered=said.filtered,
            unfinished=self.unfinished,
            bytes_written=said.bytes_written,
        )

    def facts(self) -> HostFacts:
        return host_facts(self.trace, self.events)

    def summary(self) -> HostSummary:
        wall_ns = self.stopped_ns - self.started_ns
        return HostSummary(
            host=self.trace.host,
            state=self.trace.state,
            kernel=self.trace.run.kernel if self.trace.run else "",
            clock_residual_ns=self.facts().clock_residual_ns,
            mechanisms=self.trace.run.mechanisms if self.trace.run else [],
            counts=self.counts(),
            first_call_ns=self.first_ns,
            last_return_ns=self.last_ns,
            wall_ns=wall_ns,
            unoverlapped_ns=self.unoverlapped_ns,
            unoverlapped_share=_known_share(self.unoverlapped_ns, wall_ns),
            **{
                name: sum(getattr(process, name) for process in self.processes)
                for name in ("io_ns", "wait_ns", "bytes_read", "bytes_written")
            },
        )


def _span(trace: HostTrace, tally: HostTally) -> tuple[int, int]:
    """Start and end of the run on one host, by CLOCK_REALTIME where it is known."""
    run = trace.run
    if run is None:
        return tally.first_ns, tally.last_ns
    if run.stopped_ns is not None:
        return run.started_ns, run.stopped_ns
    known = [run.started_ns, *(pair.real_ns for pair in run.clocks)]
    if run.clocks and (tally.events or tally.profiled):
        last = RealtimeClock(run.clocks).to_real_ns(np.array([tally.last_ns]))
        known.append(int(last[0]))
    return run.started_ns, max(known)


def _processes(host: str, tally: HostTally, ranks: Ranks) -> list[ProcessSummary]:
    found = tally.processes.processes()
    sums = tally.by_process.result(len(found))
    io_ns, wait_ns = tally.time.by_process(len(found))
    columns = sums | {
        "io_ns": io_ns,
        "wait_ns": wait_ns,
        "unoverlapped_ns": tally.time.unoverlapped_by_process(len(found)),
        "threads": tally.time.threads(len(found)),
    }
    return [
        ProcessSummary(
            host=host,
            pid=process.pid,
            rank=ranks.get((host, number)),
            ppid=process.ppid,
            comm=process.comm,
            exe=process.exe,
            **row,
        )
        for number, (process, row) in enumerate(zip(found, _rows(columns), strict=True))
    ]


def _rows(columns: dict[str, Numbers]) -> list[dict[str, int]]:
    """Columns to rows of Python integers."""
    lists = [values.tolist() for values in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]


def _function_rows(tally: HostTally) -> dict[tuple[str, str], dict[str, Any]]:
    """Sums and the histogram of each function that was called, by layer and name."""
    numbers, sums = tally.by_function.result()
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for at, (number, row) in enumerate(zip(numbers, _rows(sums), strict=True)):
        function = tally.functions[number]
        whole = row | {"durations": tally.by_function.durations.counts(at)}
        _add_function(found, (function.layer, function.name), whole)
    return found


def _add_function(
    found: dict[tuple[str, str], dict[str, Any]], key: tuple[str, str], row: dict[str, Any]
) -> None:
    old = found.get(key)
    if old is None:
        found[key] = dict(row)
        return
    for name, value in row.items():
        old[name] = max(old[name], value) if name == "max_ns" else old[name] + value


class _Functions:
    """Functions and layers of all hosts."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], dict[str, Any]] = {}
        self._io_ns: dict[str, int] = {}
        self._attached: set[tuple[str, str]] = set()

    def add(self, host: _HostFunctions) -> None:
        for key, row in host.rows.items():
            _add_function(self._rows, key, row)
        self._attached |= host.attached
        for layer, io_ns in host.io_ns.items():
            self._io_ns[layer] = self._io_ns.get(layer, 0) + io_ns

    def functions(self) -> list[FunctionSummary]:
        summaries = (_function_summary(*key, row) for key, row in self._rows.items())
        return sorted(summaries, key=lambda f: (-f.time_ns, f.layer, f.name))

    def layers(self) -> list[LayerSummary]:
        """Layers in the trace's order; the unknown one only if it has calls."""
        called = self.functions()
        names = [n for n in self._io_ns if n != UNKNOWN_LAYER]
        names += [UNKNOWN_LAYER] * any(f.layer == UNKNOWN_LAYER for f in called)
        return [self._layer(n, [f for f in called if f.layer == n]) for n in names]

    def durations(self) -> dict[tuple[str, str], Numbers]:
        return {key: row["durations"] for key, row in self._rows.items()}

    def attached(self) -> int:
        return len(self._attached)

    def _layer(self, name: str, called: list[FunctionSummary]) -> LayerSummary:
        attached = self._attached | {(f.layer, f.name) for f in called}
        sums = {
            key: sum(getattr(f, key) for f in called)
            for key in ("count", "profiled", "errors", "unfinished", "time_ns", "bytes")
        }
        return LayerSummary(
            layer=name,
            functions=sum(layer == name for layer, _ in attached),
            called=len(called),
            io_ns=self._io_ns[name],
            bytes_per_s=_per_second(sums["bytes"], sums["time_ns"]),
            **sums,
        )


def _function_summary(layer: str, name: str, row: dict[str, Any]) -> FunctionSummary:
    sums = {key: value for key, value in row.items() if key != "durations"}
    durations, max_ns = row["durations"], row["max_ns"]
    return FunctionSummary(
        layer=layer,
        name=name,
        mean_ns=round(row["time_ns"] / max(1, row["count"] - row["unfinished"])),
        p50_ns=quantile(durations, 0.50, largest=max_ns),
        p99_ns=quantile(durations, 0.99, largest=max_ns),
        bytes_per_s=_per_second(row["bytes"], row["time_ns"]),
        **sums,
    )


def _summary(
    trace: Trace,
    parts: list[_HostPart],
    functions: _Functions,
    files: pa.Table,
    top: int | None,
) -> Summary:
    hosts = [part.summary() for part in parts]
    runs = [part.trace.run for part in parts if part.trace.run]
    processes = [process for part in parts for process in part.processes]
    processes.sort(key=lambda p: (-p.io_ns, -p.count, p.host, p.pid))
    counts = [host.counts for host in hosts]
    totals = {
        name: sum(getattr(host, name) for host in hosts)
        for name in ("io_ns", "wait_ns", "bytes_read", "bytes_written")
    }
    unoverlapped_ns = _unoverlapped_ns(hosts)
    layers = functions.layers()
    profiled = sum(c.profiled for c in counts)
    host_wall_ns = sum(host.wall_ns for host in hosts)
    started_ns = min((run.started_ns for run in runs), default=None)
    return Summary(
        run_id=runs[0].run_id if runs else trace.path.name,
        user=runs[0].user if runs else "",
        state=_state(hosts),
        events=sum(c.events for c in counts),
        profiled=profiled,
        profiled_layers=[layer.layer for layer in layers if layer.profiled],
        lost=sum(c.lost for c in counts),
        lost_by=_added(LostBy, [run.lost_by for run in runs]),
        filtered_by=_added(FilteredBy, [run.filtered_by for run in runs]),
        filtered=sum(c.filtered for c in counts),
        unfinished=sum(c.unfinished for c in counts),
        bytes_on_disk=_bytes_on_disk(trace),
        started=_iso(started_ns),
        started_ns=started_ns,
        stopped_ns=_stopped_ns(parts),
        wall_ns=_wall_ns(parts),
        host_wall_ns=host_wall_ns,
        unoverlapped_ns=unoverlapped_ns,
        unoverlapped_share=_known_share(unoverlapped_ns, host_wall_ns),
        quantile_error=POWER_ERROR_BOUND if profiled else ERROR_BOUND,
        notes=host_notes(trace, [part.facts() for part in parts])
        + _notes(parts, functions, processes),
        missing_hosts=missing_hosts(trace),
        clocks_agree=clocks_agree(trace.hosts),
        skipped=_skipped(parts),
        hosts=hosts,
        layers=layers,
        functions=functions.functions(),
        processes_total=len(processes),
        processes=processes[:top],
        files_total=len(files),
        files=_file_summaries(top_files(files, top)),
        filesystems=[FilesystemSummary(**row) for row in by_fstype(files).to_pylist()],
        mounts=[MountSummary(**row) for row in by_mount(files)],
        reads=_access([part.accesses[0] for part in parts]),
        writes=_access([part.accesses[1] for part in parts]),
        **totals,
    )


_Numbers = TypeVar("_Numbers", LostBy, FilteredBy)


def _added(kind: type[_Numbers], parts: list[_Numbers]) -> _Numbers:
    """The sums of all fields."""
    return kind(**{name: sum(getattr(p, name) for p in parts) for name in kind.__struct_fields__})


def _unoverlapped_ns(hosts: list[HostSummary]) -> int | None:
    """The sum over hosts; None when it is not known of one."""
    known = [host.unoverlapped_ns for host in hosts if host.unoverlapped_ns is not None]
    return sum(known) if len(known) == len(hosts) else None


def _state(hosts: list[HostSummary]) -> State:
    """The least good state of any host."""
    states = {host.state for host in hosts}
    for state in (State.CUT_OFF, State.RUNNING):
        if state in states:
            return state
    return State.COMPLETE


def _bytes_on_disk(trace: Trace) -> int:
    total = 0
    for host in trace.hosts:
        for entry in host.path.iterdir():
            try:
                total += entry.stat().st_size
            except FileNotFoundError:
                continue  # a running daemon renames and removes
    return total


def _stopped_ns(parts: list[_HostPart]) -> int | None:
    """When the last host stopped; None while one has not."""
    stops = [part.trace.run.stopped_ns if part.trace.run else None for part in parts]
    known = [stop for stop in stops if stop is not None]
    return max(known) if known and len(known) == len(stops) else None


def _wall_ns(parts: list[_HostPart]) -> int:
    """From the first start to the last end; a host without ``run.json`` has its own clock, and
    so have all whose clocks disagree."""
    agree = clocks_agree([part.trace for part in parts])
    known = [part for part in parts if part.trace.run and agree]
    longest = max((part.stopped_ns - part.started_ns for part in parts), default=0)
    if not known:
        return longest
    span = max(part.stopped_ns for part in known) - min(part.started_ns for part in known)
    return max(span, longest)


def _skipped(parts: list[_HostPart]) -> list[Skipped]:
    """What could not be probed on any host, each once."""
    every = [skipped for part in parts if part.trace.run for skipped in part.trace.run.skipped]
    return list({(s.layer, s.name, s.reason): s for s in every}.values())


def _file_summaries(files: pa.Table) -> list[FileSummary]:
    names = FileSummary.__struct_fields__
    found = []
    for batch in files.select(names).to_batches(max_chunksize=_ROWS_AT_ONCE):
        for row in batch.to_pylist():
            found.append(FileSummary(**(row | {"kind": row["kind"] or NEVER_OPENED})))
    return found


def _access(parts: list[AccessTally]) -> AccessSummary:
    counts: Numbers = np.sum([part.counts for part in parts], axis=0)
    moved: Numbers = np.sum([part.bytes for part in parts], axis=0)
    total = int(counts.sum())
    compared = sum(part.placed for part in parts)
    sequential = sum(part.sequential for part in parts)
    consecutive = sum(part.consecutive for part in parts)
    return AccessSummary(
        count=total,
        bytes=int(moved.sum()),
        compared=compared,
        sequential=sequential,
        consecutive=consecutive,
        sequential_share=_share(sequential, compared),
        consecutive_share=_share(consecutive, compared),
        sizes=[
            SizeClass(
                from_bytes=1 << k,
                to_bytes=(2 << k) - 1,
                count=int(counts[k]),
                bytes=int(moved[k]),
                share=_share(int(counts[k]), total),
            )
            for k in range(SIZE_CLASSES)
            if counts[k]
        ],
    )


def _notes(
    parts: list[_HostPart], functions: _Functions, processes: list[ProcessSummary]
) -> list[str]:
    """What the reader should know before the numbers, in whole sentences."""
    if any(part.events or part.profiled for part in parts):
        return [*_disagreements(parts), *_of_profiles(functions), *_forgotten(parts)]
    if not functions.attached():
        if any(part.trace.state is State.RUNNING for part in parts):
            return []  # a daemon that is ready has attached some: their names are on the way
        return ["No function was attached: see what was skipped, and datacrumbs_doctor."]
    if not processes:
        return [
            "No process joined the run. Start programs with datacrumbs_wrap, as the run's user, "
            "with the run's id, after the daemon is ready.",
            "Static and setuid programs cannot be joined by preloading: use `select: job`.",
        ]
    return [
        f"{len(processes)} processes joined but called none of the {functions.attached()} traced "
        "functions: check layers, regex and binary in the capture config.",
    ]


def _disagreements(parts: list[_HostPart]) -> list[str]:
    """Complete traces that hold less than the daemon wrote: files are missing."""
    notes = []
    for part in parts:
        if part.trace.run and part.trace.state is State.COMPLETE:
            said = part.trace.run.counts
            for what, wrote, found in (
                ("events", said.events, part.events),
                ("profiled calls", said.profiled, part.profiled),
            ):
                if wrote != found:
                    notes.append(
                        f"{part.trace.host}: the daemon wrote {wrote} {what}, "
                        f"{found} are here: files of the trace are missing."
                    )
    return notes


def _forgotten(parts: list[_HostPart]) -> list[str]:
    """Where there were too many streams of accesses to follow each."""
    count = sum(access.forgotten for part in parts for access in part.accesses)
    return [
        f"{count} times a process left a file alone for so long, among so many others, that its "
        "next access there counts as its first: it is neither in order nor out of order."
    ] * bool(count)


def _of_profiles(functions: _Functions) -> list[str]:
    """What is not known of layers in profile mode."""
    layers = [layer.layer for layer in functions.layers() if layer.profiled]
    if not layers:
        return []
    return [
        f"Profile mode ({', '.join(layers)}): calls were added up, so their files, access sizes, "
        f"threads and order are not known; p50 and p99 are to within {POWER_ERROR_BOUND:.0%}."
    ]


def _iso(real_ns: int | None) -> str | None:
    if real_ns is None:
        return None
    return datetime.fromtimestamp(real_ns // 1_000_000_000, UTC).isoformat()


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _known_share(part: int | None, whole: int) -> float | None:
    return None if part is None else _share(part, whole)


def _per_second(size_bytes: int, time_ns: int) -> int:
    return round(size_bytes * 1e9 / time_ns) if time_ns else 0
