"""Which process an event belongs to, where the system has used a pid more than once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datacrumbs.analysis.keys import Index, KeyIndex, Numbers, distinct

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Process:
    """One process; ``comm`` and ``exe`` as its last exec left them, empty when not known."""

    pid: int
    ppid: int
    comm: str
    exe: str


class ProcessIndex:
    """The processes of one host, numbered densely.

    A pid begins anew with a fork row, or with any row after an exit. Events of pids
    that the table does not name get a process each, without a name.
    """

    def __init__(self, table: pa.Table) -> None:
        rows = table.select(["pid", "ts", "what", "ppid", "comm", "exe"])
        rows = rows.sort_by([("pid", "ascending"), ("ts", "ascending")])
        pid, ts = rows["pid"].to_numpy(), rows["ts"].to_numpy()
        first = np.flatnonzero(_begins(pid, rows["what"].to_numpy(zero_copy_only=False)))
        self._pid: NDArray[Any] = pid[first].astype(np.int64)
        self._begin: Numbers = ts[first]
        self._named = _processes(rows, first)
        self._unnamed = KeyIndex(np.int64)
        self._starts = np.sort(self._begin)
        self._key = self._composite(self._pid, self._begin)

    def __len__(self) -> int:
        return len(self._named) + len(self._unnamed)

    def numbers(self, pids: NDArray[Any], ts: Numbers) -> Index:
        """The process of each event by its pid and start."""
        values, which = distinct(pids.astype(np.int64))
        low = np.searchsorted(self._pid, values)
        uses = np.searchsorted(self._pid, values, side="right") - low
        self._name_missing(values, low, uses == 0)
        found: Index = low[which]
        again = np.flatnonzero(uses[which] > 1)
        if len(again):
            found[again] = self._latest(values[which[again]], ts[again], found[again])
        return found

    def processes(self) -> list[Process]:
        """All processes by number."""
        unnamed = (Process(int(pid), 0, "", "") for pid in self._unnamed.seen())
        return [*self._named, *unnamed]

    def begins(self) -> list[int]:
        """When each named process began (``ts``), by number: the first ones of `processes`."""
        begins: list[int] = self._begin.tolist()
        return begins

    def _name_missing(self, pids: NDArray[Any], low: Index, missing: NDArray[np.bool_]) -> None:
        if missing.any():
            low[missing] = len(self._named) + self._unnamed.numbers(pids[missing])

    def _latest(self, pids: NDArray[Any], ts: Numbers, first: Index) -> Index:
        """The last use of each pid that began at or before ``ts``, else its first."""
        at = np.searchsorted(self._key, self._composite(pids, ts), side="right") - 1
        return np.maximum(at, first)

    def _composite(self, pids: NDArray[Any], ts: Numbers) -> Numbers:
        """Sorts by pid, then by time; time as a rank among all begins, so that both fit."""
        rank = np.searchsorted(self._starts, ts, side="right")
        return pids * (len(self._starts) + 1) + rank


def _begins(pid: NDArray[Any], what: NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows, sorted by pid and time, are the first of a process."""
    begins = np.ones(len(pid), bool)
    begins[1:] = (pid[1:] != pid[:-1]) | (what[1:] == "fork") | (what[:-1] == "exit")
    return begins


def _processes(rows: pa.Table, first: Index) -> list[Process]:
    """One for each run of rows that starts at one of ``first``."""
    pids, ppids = rows["pid"].to_pylist(), rows["ppid"].to_pylist()
    comms, exes = rows["comm"].to_pylist(), rows["exe"].to_pylist()
    begins = first.tolist()
    return [
        Process(pid=pids[a], ppid=ppids[a], comm=_last(comms[a:b]), exe=_last(exes[a:b]))
        for a, b in zip(begins, [*begins, len(rows)][1:], strict=True)
    ]


def _last(names: list[str | None]) -> str:
    return next((name for name in reversed(names) if name), "")
