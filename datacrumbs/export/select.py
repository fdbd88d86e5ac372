"""Which events of a trace are wanted, and those events with their names, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from datacrumbs.errors import BadInputError
from datacrumbs.trace.clocks import RealtimeClock
from datacrumbs.trace.reader import HostTrace, Trace
from datacrumbs.trace.schema import arrow_schema


@dataclass(frozen=True, slots=True)
class Selection:
    """Events that meet all of it; an empty tuple and None leave nothing out.

    ``start_ns`` and ``end_ns`` are nanoseconds after the first host's start: a call counts if
    it is going on at any time between the two.
    """

    hosts: tuple[str, ...] = ()
    pids: tuple[int, ...] = ()
    layers: tuple[str, ...] = ()
    start_ns: int | None = None
    end_ns: int | None = None


@dataclass(frozen=True)
class HostEvents:
    """One host's events that a selection takes, with their names.

    ``began_ns`` is CLOCK_REALTIME: when the run began, on the host where it began first.
    """

    host: HostTrace
    selection: Selection
    began_ns: int

    @cached_property
    def files(self) -> pl.DataFrame:
        """``file``, ``path``: one row each."""
        return _polars(self.host, "files").select("file", "path").unique("file", keep="first")

    @cached_property
    def functions(self) -> pl.DataFrame:
        """``func``, ``layer``, ``name``, ``kind``, ``op``."""
        return _polars(self.host, "functions").select("func", "layer", "name", "kind", "op")

    @cached_property
    def processes(self) -> pl.DataFrame:
        """All rows of the table ``processes`` that are selected, by time."""
        rows = _polars(self.host, "processes").sort("ts")
        return (
            rows.filter(pl.col("pid").is_in(self.selection.pids)) if self.selection.pids else rows
        )

    @cached_property
    def clock(self) -> RealtimeClock | None:
        """None without clock pairs: times then are those of the host since its boot."""
        run = self.host.run
        return RealtimeClock(run.clocks) if run and run.clocks else None

    def real_ns(self, ts: pl.Series) -> pl.Series:
        """``ts`` as CLOCK_REALTIME."""
        if self.clock is None:
            return ts
        return pl.Series(ts.name, self.clock.to_real_ns(ts.to_numpy()))

    def batches(self) -> Iterator[tuple[int, pl.DataFrame]]:
        """How many events were read, and those of them that are selected.

        The columns of ``events``, ``time`` (CLOCK_REALTIME of the start, ns) and those of
        `functions`.
        """
        for batch in self.host.events():
            frame = pl.DataFrame(batch)
            yield len(frame), self._selected(frame)

    def _selected(self, frame: pl.DataFrame) -> pl.DataFrame:
        chosen = self.selection
        frame = frame.with_columns(self.real_ns(frame["ts"]).alias("time"))
        if chosen.pids:
            frame = frame.filter(pl.col("pid").is_in(chosen.pids))
        if chosen.start_ns is not None:
            frame = frame.filter(pl.col("time") + pl.col("dur") >= self.began_ns + chosen.start_ns)
        if chosen.end_ns is not None:
            frame = frame.filter(pl.col("time") <= self.began_ns + chosen.end_ns)
        frame = frame.join(self.functions, on="func", how="left", maintain_order="left")
        return frame.filter(pl.col("layer").is_in(chosen.layers)) if chosen.layers else frame


def _polars(host: HostTrace, table: str) -> pl.DataFrame:
    frame = pl.from_arrow(host.table(table))
    assert isinstance(frame, pl.DataFrame)
    return frame


def select(trace: Trace, selection: Selection) -> list[HostEvents]:
    """The hosts to read; `BadInputError` names a host or layer that the trace has not got."""
    _check("host", selection.hosts, [host.host for host in trace.hosts])
    began_ns = min((host.run.started_ns for host in trace.hosts if host.run), default=0)
    chosen = [
        HostEvents(host, selection, began_ns)
        for host in trace.hosts
        if not selection.hosts or host.host in selection.hosts
    ]
    layers = {layer for part in chosen for layer in part.functions["layer"]}
    _check("layer", selection.layers, sorted(layers))
    return chosen


def _check(what: str, asked: tuple[str, ...], there: list[str]) -> None:
    for name in asked:
        if name not in there:
            raise BadInputError(
                f"no {what} {name!r} in this trace", hint=f"it has: {', '.join(there)}"
            )


def empty_events() -> pl.DataFrame:
    """No events, with the columns of `HostEvents.batches`."""
    schema = arrow_schema("events")
    frame = pl.from_arrow(schema.empty_table())
    assert isinstance(frame, pl.DataFrame)
    return frame.with_columns(pl.Series("time", np.zeros(0, np.int64)))
