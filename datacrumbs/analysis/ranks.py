"""Which process is which rank of a parallel program.

The trace does not say; MPI's own ranks are not in it. A *rank* here is a number in an order
that is MPI's own wherever ranks are placed in blocks, as launchers do by default: the
processes of the program, by host (numbers in names count as numbers), then by start. The
program is what most processes of the run execute; of several with as many processes, the one
furthest down in the tree of processes, so that a shell around each rank does not count.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from datacrumbs.analysis.processes import Process, ProcessIndex
from datacrumbs.trace.reader import HostTrace, Trace

if TYPE_CHECKING:
    import pyarrow as pa

Ranks = dict[tuple[str, int], int]
"""Rank by host and number of the process (as `ProcessIndex` gives it)."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    host: str
    number: int
    process: Process
    parent: Process | None
    depth: int


def ranks_of(trace: Trace) -> Ranks:
    """The ranks of a run; empty if its hosts left no table of processes."""
    found = [c for host in trace.hosts for c in _candidates(host.host, host.table("processes"))]
    program = _program(found)
    mine = [c for c in found if _exe(c.process) == program and not _same(c.parent, program)]
    mine.sort(key=lambda c: natural(c.host))  # of one host they stay in the order of their starts
    return {(c.host, c.number): rank for rank, c in enumerate(mine)}


def told(ranks: Ranks) -> Ranks:
    """Those to tell people of: none where the program has one process only."""
    return ranks if len(ranks) > 1 else {}


def by_host(ranks: Ranks, hosts: Sequence[HostTrace]) -> list[Ranks]:
    """Those of each host: what work on it, which may be done elsewhere, needs of them."""
    found: dict[str, Ranks] = {host.host: {} for host in hosts}
    for (host, number), rank in ranks.items():
        if host in found:
            found[host][host, number] = rank
    return [found[host.host] for host in hosts]


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts ``n2`` before ``n10``."""
    return [
        (int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)
    ]


def _candidates(host: str, table: pa.Table) -> list[_Candidate]:
    """The processes of a host by start, each with the one that was its parent then."""
    index = ProcessIndex(table)
    processes, begins = index.processes(), index.begins()
    order = sorted(range(len(processes)), key=lambda n: (begins[n], processes[n].pid))
    alive: dict[int, tuple[Process, int]] = {}
    found = []
    for number in order:
        process = processes[number]
        parent, depth = alive.get(process.ppid, (None, -1))
        alive[process.pid] = (process, depth + 1)
        found.append(_Candidate(host, number, process, parent, depth + 1))
    return found


def _program(found: list[_Candidate]) -> str:
    counts = Counter(_exe(c.process) for c in found)
    depth: dict[str, int] = {}
    for c in found:
        depth[_exe(c.process)] = max(depth.get(_exe(c.process), 0), c.depth)
    known = [exe for exe in counts if exe]
    return max(known, key=lambda exe: (counts[exe], depth[exe], exe), default="")


def _exe(process: Process) -> str:
    return process.exe or process.comm


def _same(parent: Process | None, program: str) -> bool:
    return parent is not None and _exe(parent) == program
