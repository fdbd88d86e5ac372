"""DataCrumbs in Python: traces as tables, and the analyses of the commands as functions.

    import datacrumbs

    run = datacrumbs.open_trace("~/datacrumbs/4711")
    run.events(["ts", "dur", "func"]).polars()
    run.report().functions[0].time_ns

Columns and their units are those of docs/trace-format.md; every table has besides the column
``host``. Times are nanoseconds, sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from datacrumbs.trace import reader
from datacrumbs.trace.runfile import RunInfo
from datacrumbs.trace.schema import (
    ARGUMENTS,
    EVENTS,
    FILES,
    FUNCTIONS,
    INTERVALS,
    PEERS,
    PROCESSES,
    arrow_schema,
)

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow as pa

    from datacrumbs.analysis.compare import Comparison
    from datacrumbs.analysis.explanation import Explanation
    from datacrumbs.analysis.model import Summary


@dataclass(frozen=True, slots=True)
class Table:
    """One table of a run, all hosts; converted without copying where the library allows it."""

    arrow: pa.Table

    def polars(self) -> polars.DataFrame:
        """As a Polars data frame."""
        import polars

        frame = polars.from_arrow(self.arrow)
        assert isinstance(frame, polars.DataFrame)
        return frame

    def pandas(self) -> pandas.DataFrame:
        """As a pandas data frame; pandas has to be installed."""
        return self.arrow.to_pandas()

    def __len__(self) -> int:
        return len(self.arrow)


@dataclass(frozen=True, slots=True)
class Run:
    """One run: `open_trace` makes it."""

    trace: reader.Trace

    @property
    def hosts(self) -> list[str]:
        """The hosts' names."""
        return [host.host for host in self.trace.hosts]

    @property
    def facts(self) -> dict[str, RunInfo | None]:
        """``run.json`` of each host; None where it is missing."""
        return {host.host: host.run for host in self.trace.hosts}

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[tuple[str, pa.RecordBatch]]:
        """Host and events, at most 262,144 at a time: for what does not fit into memory."""
        for host in self.trace.hosts:
            for batch in host.events(columns):
                yield host.host, batch

    def events(self, columns: Sequence[str] | None = None) -> Table:
        """All events in memory: 64 bytes each, or 8 and less for each of ``columns``."""
        import pyarrow as pa

        schema = arrow_schema(EVENTS)
        chosen = schema if columns is None else pa.schema([schema.field(c) for c in columns])
        parts = [
            _with_host(pa.Table.from_batches(host.events(columns), schema=chosen), host.host)
            for host in self.trace.hosts
        ]
        return Table(pa.concat_tables(parts))

    def functions(self) -> Table:
        """What ``events.func`` means."""
        return self._small(FUNCTIONS)

    def files(self) -> Table:
        """What ``events.file`` means."""
        return self._small(FILES)

    def processes(self) -> Table:
        """Who joined, forked, executed and ended."""
        return self._small(PROCESSES)

    def peers(self) -> Table:
        """Second files of events that have two."""
        return self._small(PEERS)

    def arguments(self) -> Table:
        """Arguments of events that have some."""
        return self._small(ARGUMENTS)

    def intervals(self) -> Table:
        """Profile mode: calls added up."""
        return self._small(INTERVALS)

    def report(self, *, top: int | None = None, scheduler: str | None = None) -> Summary:
        """What ``datacrumbs_report --format json`` says; ``scheduler`` as its option."""
        from datacrumbs.analysis.cluster import connected
        from datacrumbs.analysis.summary import summarise

        with connected(scheduler) as cluster:
            return summarise(self.trace, top=top, cluster=cluster)

    def html(
        self, out: str | Path, *, top: int | None = None, scheduler: str | None = None
    ) -> None:
        """Write what ``datacrumbs_report --html`` does; ``~`` is the home directory.

        ``top``: of files and processes, 10,000 if not given. ``out`` is there when it is
        complete. Raises `datacrumbs.errors.UserError` when it cannot be written.
        """
        from datacrumbs.analysis.cluster import connected
        from datacrumbs.report import HTML_TOP
        from datacrumbs.report.html import write_page

        with connected(scheduler) as cluster:
            write_page(self.trace, Path(out).expanduser(), top=top or HTML_TOP, cluster=cluster)

    def explain(
        self,
        call: str | None = None,
        *,
        layer: str | None = None,
        path: str | None = None,
        pids: Iterable[int] = (),
        ranks: Iterable[int] = (),
        hosts: Iterable[str] = (),
        top: int | None = None,
        scheduler: str | None = None,
    ) -> Explanation:
        """What ``datacrumbs_explain --format json`` says; arguments are those of its options.

        Raises `datacrumbs.errors.BadInputError` for what is not in the trace.
        """
        from datacrumbs.analysis.cluster import connected
        from datacrumbs.analysis.explain import explain
        from datacrumbs.analysis.selection import Selection

        selection = Selection(
            call=call,
            layer=layer,
            path=path,
            pids=frozenset(pids),
            ranks=frozenset(ranks),
            hosts=frozenset(hosts),
        )
        with connected(scheduler) as cluster:
            return explain(self.trace, selection, top=top, cluster=cluster)

    def compare(
        self, other: Run, *, top: int | None = None, scheduler: str | None = None
    ) -> Comparison:
        """What ``datacrumbs_compare`` says of this run (first) and ``other`` (second)."""
        from datacrumbs.analysis.cluster import connected
        from datacrumbs.analysis.compare import compare

        with connected(scheduler) as cluster:
            return compare(self.trace, other.trace, top=top, cluster=cluster)

    def _small(self, table: str) -> Table:
        import pyarrow as pa

        parts = [_with_host(host.table(table), host.host) for host in self.trace.hosts]
        return Table(pa.concat_tables(parts))


def _with_host(table: pa.Table, host: str) -> pa.Table:
    import numpy as np
    import pyarrow as pa

    column = pa.DictionaryArray.from_arrays(np.zeros(len(table), np.int32), [host])
    return table.append_column("host", column)


def open_trace(path: str | Path) -> Run:
    """Open a run directory, or one host's part of it; ``~`` is the home directory.

    Raises `datacrumbs.errors.BadInputError` when there is no trace, or one of a later version.
    A running trace is seen as far as it is when a method reads it.
    """
    return Run(reader.open_trace(Path(path).expanduser()))
