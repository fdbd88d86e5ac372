"""Open a trace: a finished one, one still being written, or what a killed daemon left.

Reads in bounded memory: one segment's stream or one batch of a Parquet file at a time. A
reader takes each segment in one form, Parquet where that exists, so it sees every event once.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datacrumbs.errors import BadInputError
from datacrumbs.trace.runfile import RUN_FILE, RunInfo, State, read_run_info, run_state
from datacrumbs.trace.schema import EVENTS, TABLES, arrow_schema, segment_name

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 64 * 1024
"""The most rows of one batch of `HostTrace.events`."""

_LATEST_NS = 1 << 62
"""146 years after a boot: sums with damaged times beyond it would not fit."""

_HOST = "host="
_SEGMENT = re.compile(rf"({'|'.join(TABLES)})-([0-9]{{6,}})\.(arrows|parquet)")


@dataclass(frozen=True, slots=True)
class Segment:
    """One piece of a table. ``min_ts`` and ``max_ts`` (as ``events.ts``) are None if empty.

    ``closed``: it is Parquet, and will not change any more. Segments overlap in time, by the
    longest call: an event counts from its start and is written at its end.
    """

    number: int
    path: Path
    closed: bool
    rows: int
    min_ts: int | None
    max_ts: int | None


@dataclass(frozen=True, slots=True)
class HostTrace:
    """One host's part of a trace. ``run`` is None when ``run.json`` is missing."""

    host: str
    path: Path
    run: RunInfo | None
    state: State

    def events(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """All events (of ``columns``, in that order), segment by segment.

        By ``ts`` within a segment; at most `BATCH_ROWS` rows a batch, none of them empty.
        """
        names = list(columns) if columns is not None else arrow_schema(EVENTS).names
        for _, path in _list_segments(self.path, EVENTS):
            yield from read_segment(path, names)

    def count(self) -> int:
        """How many events there are."""
        return sum(segment.rows for segment in self.segments())

    def about(self) -> int:
        """About how many events there are, by ``run.json`` where there is one: without reading."""
        return self.run.counts.events if self.run else self.count()

    def segments(self) -> list[Segment]:
        """The segments of ``events`` with their rows and times, from metadata where closed."""
        return [_describe(number, path) for number, path in _list_segments(self.path, EVENTS)]

    def table(self, name: str) -> pa.Table:
        """A table other than ``events``, whole; ``intervals`` may be large: see `batches`."""
        import pyarrow as pa

        return pa.Table.from_batches(self.batches(name), schema=arrow_schema(name))

    def batches(self, name: str) -> Iterator[pa.RecordBatch]:
        """The rows of a table other than ``events``, in the order they were written.

        None of the batches is empty.
        """
        schema = arrow_schema(name)
        for _, path in _list_segments(self.path, name):
            yield from _batches(path, schema)

    def newest(self, name: str) -> pa.Table:
        """The rows of a table's last segment, the one that grows; without any, no rows."""
        import pyarrow as pa

        schema = arrow_schema(name)
        for _, path in _list_segments(self.path, name)[-1:]:
            return pa.Table.from_batches(_batches(path, schema), schema=schema)
        return schema.empty_table()


@dataclass(frozen=True, slots=True)
class Trace:
    """A run: the parts of its hosts, by host name."""

    path: Path
    hosts: tuple[HostTrace, ...]

    def about(self) -> int:
        """About how many events there are on all hosts."""
        return sum(host.about() for host in self.hosts)


def open_trace(path: Path) -> Trace:
    """Open a run directory (``<run-id>``) or one host's part of it (``host=<name>``).

    Raises `BadInputError` when there is nothing, no trace, or one of a later format.
    """
    try:
        parts = _host_directories(path)
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror}", hint="give a trace's directory") from error
    if not parts:
        raise BadInputError(f"{path}: not a trace", hint=_runs_hint(path))
    return Trace(path, tuple(_open_host(part) for part in parts))


def _host_directories(path: Path) -> list[Path]:
    if path.name.startswith(_HOST) or _is_host_directory(path):
        return [path] if _is_host_directory(path) else []
    return sorted(p for p in path.iterdir() if p.name.startswith(_HOST) and p.is_dir())


def _is_host_directory(path: Path) -> bool:
    names = [entry.name for entry in path.iterdir()]
    return RUN_FILE in names or any(_SEGMENT.fullmatch(name) for name in names)


def _runs_hint(path: Path) -> str:
    runs = sorted({found.parent.name for found in path.glob(f"*/{_HOST}*")})
    if not runs:
        return f"a trace is a directory <run-id>, with {_HOST}<name> directories in it"
    return f"it holds runs, give one of them: {', '.join(runs[:5])}{', ...' * (len(runs) > 5)}"


def _open_host(path: Path) -> HostTrace:
    run = read_run_info(path)
    state = State.CUT_OFF if run is None else run_state(path, run)
    fallback = run.host if run else path.name
    host = path.name.removeprefix(_HOST) if path.name.startswith(_HOST) else fallback
    return HostTrace(host, path, run, state)


def _list_segments(directory: Path, table: str) -> list[tuple[int, Path]]:
    """One file per segment, by number.

    A listing that the writer's rename overtakes may show neither form of a segment. Numbers
    have no gaps, so what is missing between or behind the listed ones is looked for by name.
    """
    found = _list_once(directory, table)
    last = max(found, default=0)
    for number in itertools.count(1):
        if number not in found and (path := _find(directory, table, number)):
            found[number] = path
        elif number > last:
            return sorted(found.items())
    raise AssertionError("unreachable")


def _find(directory: Path, table: str, number: int) -> Path | None:
    """Segment ``number`` by name. The stream first: it goes only when the Parquet is there."""
    stream, parquet = (directory / segment_name(table, number, s) for s in ("arrows", "parquet"))
    there = stream.exists()
    if parquet.exists():
        return parquet
    return stream if there else None


def _list_once(directory: Path, table: str) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for name in sorted(entry.name for entry in directory.iterdir()):  # .arrows before .parquet
        match = _SEGMENT.fullmatch(name)
        if match and match[1] == table:
            found[int(match[2])] = directory / name
    return found


def read_segment(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The events of one segment (`Segment.path`) by ``ts``, as `HostTrace.events` gives them."""
    import pyarrow as pa

    whole = arrow_schema(EVENTS)
    if path.suffix == ".arrows":
        rows = _read_stream(path, whole)
        if rows is not None:
            batches = rows.sort_by("ts").select(columns).to_batches(max_chunksize=BATCH_ROWS)
            yield from (batch for batch in batches if len(batch))
            return
        path = path.with_suffix(".parquet")
    yield from _read_parquet(path, pa.schema([whole.field(name) for name in columns]))


def _batches(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    if path.suffix == ".arrows":
        rows = _read_stream(path, schema)
        if rows is not None:
            yield from (batch for batch in rows.to_batches() if len(batch))
            return
        path = path.with_suffix(".parquet")
    yield from _read_parquet(path, schema)


def _describe(number: int, path: Path) -> Segment:
    import pyarrow.compute as pc

    if path.suffix == ".arrows":
        rows = _read_stream(path, arrow_schema(EVENTS))
        if rows is not None:
            span = pc.min_max(rows["ts"]).as_py()
            return Segment(number, path, False, len(rows), span["min"], span["max"])
        path = path.with_suffix(".parquet")
    with _parquet(path) as file:
        low, high = _time_span(file.metadata)
        return Segment(number, path, True, file.metadata.num_rows, low, high)


def _time_span(metadata: Any) -> tuple[int | None, int | None]:
    """First and last ``ts`` by the file's statistics."""
    columns = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    if "ts" not in columns:
        raise ValueError("no column 'ts'")
    ts, groups = columns.index("ts"), range(metadata.num_row_groups)
    found = [metadata.row_group(group).column(ts).statistics for group in groups]
    if not all(one and one.has_min_max and isinstance(one.min, int) for one in found):
        raise ValueError("no least and greatest 'ts'")
    return min((one.min for one in found), default=None), max(
        (one.max for one in found), default=None
    )


def _read_parquet(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    with _parquet(path) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=schema.names, use_threads=False):
            if len(batch):
                yield _conforming(batch, schema)


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    """The open file. What goes wrong while it is read is the file's fault, and said of it."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _conforming(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The columns of ``schema``, of those that there are. ValueError for what is no such batch."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for field in schema:
        at = batch.schema.get_field_index(field.name)
        if at < 0:
            raise ValueError(f"no column {field.name!r}")
        kind = batch.schema.field(at).type
        if pa.types.is_primitive(field.type) and kind != field.type:
            raise ValueError(f"column {field.name!r} is {kind}, not {field.type}")
    if not batch.schema.equals(schema):  # as a later version wrote it, or somebody else
        table = pa.Table.from_batches([batch]).select(schema.names).cast(schema)
        batch = table.combine_chunks().to_batches()[0]
    batch.validate(full=True)
    if "ts" in schema.names:
        span = pc.min_max(batch["ts"]).as_py()
        if not -_LATEST_NS < span["min"] <= span["max"] < _LATEST_NS:
            raise ValueError("column 'ts' has a time that no clock shows")
    return batch


def _unreadable(path: Path, error: Exception) -> BadInputError:
    if isinstance(error, OSError) and error.errno:
        return BadInputError(f"{path}: {os.strerror(error.errno)}")
    reason = str(error).split("\n", 1)[0]
    return BadInputError(
        f"{path}: {reason}", hint="the file is damaged; without it the rest can be read"
    )


def _read_stream(path: Path, schema: pa.Schema) -> pa.Table | None:
    """The whole batches of an open segment; None when the writer has just made Parquet of it."""
    import pyarrow as pa

    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror}") from error
    try:
        batches = [_conforming(batch, schema) for batch in _whole_batches(data) if len(batch)]
    except (ValueError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error
    return pa.Table.from_batches(batches, schema=schema)


def _whole_batches(data: bytes) -> Iterator[pa.RecordBatch]:
    """Up to the first that is not there in full: the daemon was killed, or is writing it now."""
    import pyarrow as pa
    from pyarrow import ipc

    try:
        yield from ipc.open_stream(io.BytesIO(data))
    except (OSError, ValueError, pa.ArrowException):
        return
