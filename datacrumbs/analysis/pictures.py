"""What the pictures of a report show, beside the numbers of its summary.

One pass over the events of each host, with their nesting, that of `datacrumbs_explain`: the
explanation of the slowest functions comes from the same pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from msgspec import Struct

from datacrumbs.analysis.attribution import Attribution
from datacrumbs.analysis.explain import attribute, explanation_of
from datacrumbs.analysis.explanation import Explanation
from datacrumbs.analysis.flame import Flame, FlameTally, PathSums, flame_of
from datacrumbs.analysis.functions import Functions
from datacrumbs.analysis.hosts import clock_of, clocks_agree
from datacrumbs.analysis.keys import Numbers
from datacrumbs.analysis.model import Summary
from datacrumbs.analysis.nesting import Nested
from datacrumbs.analysis.on_each import Cluster, Progress, on_each
from datacrumbs.analysis.processes import ProcessIndex
from datacrumbs.analysis.quantiles import bucket_of
from datacrumbs.analysis.ranks import Ranks, by_host, natural, ranks_of, told
from datacrumbs.analysis.selection import Selection
from datacrumbs.analysis.timeline import (
    BINS,
    Axis,
    Cells,
    Row,
    Timeline,
    TimelineTally,
    timeline_of,
)
from datacrumbs.trace.reader import HostTrace, Trace

FUNCTIONS_EXPLAINED = 6

LATENCY_EDGES = (0, 1, 2, 3, *(n << power for power in range(61) for n in (4, 5, 6, 7)), 1 << 63)
"""Where classes of latency begin: four for each power of two."""


class Latency(Struct, frozen=True, kw_only=True):
    """How many calls of a function took from ``from_ns`` up to below ``to_ns``, by class."""

    layer: str
    name: str
    from_ns: list[int]
    to_ns: list[int]
    count: list[int]


class Pictures(Struct, frozen=True, kw_only=True):
    """All of them. ``latencies`` are in the order of `Summary.functions`."""

    timeline: Timeline
    flame: Flame
    latencies: list[Latency]
    explanation: Explanation


def draw(
    trace: Trace,
    summary: Summary,
    durations: Mapping[tuple[str, str], Numbers],
    *,
    progress: Progress | None = None,
    cluster: Cluster | None = None,
) -> Pictures:
    """The pictures of ``trace``; ``summary`` and ``durations`` as `summarise_with_durations`
    gave them. The events are read on ``cluster``, or here.
    """
    ranks, selection = ranks_of(trace), Selection()
    hosts = sorted(trace.hosts, key=lambda host: natural(host.host))
    axes = _axes(hosts, summary)
    works = [
        partial(_read, selection=selection, ranks=mine, axis=axes[host.host])
        for host, mine in zip(hosts, by_host(ranks, hosts), strict=True)
    ]
    paths = PathSums("", "")
    cells: list[Cells] = []

    def parts() -> Iterator[Attribution]:
        for part, flame, timeline in on_each(hosts, works, progress, cluster):
            flame.add_to(paths)
            cells.append(timeline)
            yield part

    explanation = explanation_of(trace, hosts, parts(), selection, ranks, top=FUNCTIONS_EXPLAINED)
    return Pictures(
        timeline=timeline_of(
            [axes[host.host] for host in hosts],
            cells,
            [_rows(host, told(ranks)) for host in hosts],
        ),
        flame=flame_of(paths),
        latencies=[
            _latency(f.layer, f.name, durations[f.layer, f.name]) for f in summary.functions
        ],
        explanation=explanation,
    )


def _read(
    host: HostTrace,
    progress: Progress | None = None,
    *,
    selection: Selection,
    ranks: Ranks,
    axis: Axis,
) -> tuple[Attribution, FlameTally, Cells]:
    """What the pictures need of one host: small beside its events, it may come from elsewhere."""
    functions = Functions(host.table("functions"))
    flame = FlameTally(functions)
    timeline = TimelineTally(functions, axis, len(ProcessIndex(host.table("processes"))))

    def watch(batch: Nested) -> None:
        flame.add(batch)
        timeline.add(batch)

    part = attribute(host, selection, ranks, progress, watch=watch)
    flame.end()
    return part, flame, timeline.result()


def _axes(hosts: Sequence[HostTrace], summary: Summary) -> dict[str, Axis]:
    """The same bins for all hosts, from the first call to the last return; from the first of
    each host where clocks disagree.
    """
    spans = {host.host: (host.first_call_ns, host.last_return_ns) for host in summary.hosts}
    agree = clocks_agree(hosts)
    clocks = {host.host: clock_of(host) if agree else None for host in hosts}
    real = {}
    for host, (first_ns, last_ns) in spans.items():
        clock = clocks[host]
        if clock and last_ns:
            real[host] = clock.to_real_ns(np.array([first_ns, last_ns])).tolist()
    lone = [last - first for host, (first, last) in spans.items() if host not in real]
    begin_ns = min((first for first, _ in real.values()), default=0)
    span_ns = max([last - begin_ns for _, last in real.values()] + lone, default=0)
    bin_ns = max(1, -(-(span_ns + 1) // BINS))
    return {
        host: Axis(begin_ns, bin_ns, clocks[host])
        if host in real
        else Axis(spans[host][0], bin_ns, None)
        for host in spans
    }


def _rows(host: HostTrace, ranks: Ranks) -> list[Row]:
    """Who the host's processes are, by number; at the end one for all not in the table."""
    known = ProcessIndex(host.table("processes")).processes()
    rows = [
        Row(
            host=host.host,
            pid=process.pid,
            rank=ranks.get((host.host, number)),
            comm=process.comm,
            processes=1,
        )
        for number, process in enumerate(known)
    ]
    return [*rows, Row(host=host.host, pid=0, rank=None, comm="", processes=1)]


def _latency(layer: str, name: str, counts: Numbers) -> Latency:
    """The histogram in coarser classes, without the empty ones."""
    edges = LATENCY_EDGES
    first = bucket_of(np.array(edges[:-1], np.int64))
    sums = np.add.reduceat(counts, first)
    used = np.flatnonzero(sums).tolist()
    return Latency(
        layer=layer,
        name=name,
        from_ns=[edges[k] for k in used],
        to_ns=[edges[k + 1] for k in used],
        count=[int(sums[k]) for k in used],
    )
