"""Write one host's part of a trace: Arrow streams while open, Parquet segments when full.

Events collect in memory until a segment is full; then they are sorted by time and become
``events-000001.parquet``, in a thread, while the next collect in a second piece of memory.
`TraceWriter.flush`, once a second, appends what has come since to ``events-000001.arrows``, so
that a killed daemon loses a second and not a segment. The small tables go the same way.
Nothing here raises because the disk is full: what cannot be kept is counted.
``docs/trace-format.md`` says what a reader may rely on.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datacrumbs.errors import UserError
from datacrumbs.trace.schema import (
    EVENT_DTYPE,
    EVENTS,
    FUNCTIONS,
    INTERVALS,
    TABLES,
    arrow_schema,
    segment_name,
)

if TYPE_CHECKING:
    import pyarrow as pa

SPILL_ROWS = 8 * 1024
"""Rows of one batch of an open segment; larger ones compress no better and cost memory."""

ROW_GROUP_ROWS = 32 * 1024
"""Rows of one Parquet row group of events: the unit of min/max statistics and of memory."""

TABLE_SEGMENT_ROWS = 64 * 1024
"""Rows of one segment of a small table."""

INTERVAL_SEGMENT_ROWS = 256 * 1024
"""Rows of one segment of ``intervals``: a second of a busy node may have 100,000."""

STREAM_BATCHES = 3600
"""A segment is closed after this many batches, so that a quiet day does not leave one stream
with a day's worth of batch headers: at one flush a second, an hour."""

RETRY_S = 5.0
"""How long `TraceWriter.close` goes on turning streams that a full disk left into Parquet."""

_SORTED = {"ts": "DELTA_BINARY_PACKED", "dur": "DELTA_BINARY_PACKED", "offset": "PLAIN"}
_EVENT_OPTIONS: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 1,  # level 3 takes 9 % longer for the same size
    "use_dictionary": [n for n in EVENT_DTYPE.names or () if n not in _SORTED],
    "column_encoding": _SORTED,
    "write_statistics": True,
    "write_page_checksum": True,  # 2 % of the time: a damaged page is noticed
}
_ROW_OPTIONS: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 3,
    "write_page_checksum": True,
}


class TraceWriter:
    """Writes into ``directory`` (``<run>/host=<name>``), which must hold no segments yet.

    Made after the daemon has become the run's user. ``segment_events`` events, 64 bytes each, stay
    in memory, and as many more while a segment becomes Parquet. It works on the directory's
    descriptor, so the user may move the run.
    """

    def __init__(self, directory: Path, *, segment_events: int) -> None:
        self._home = _Home(directory)
        self._events = _EventLog(self._home, segment_events)
        self._rows = {t: _RowLog(self._home, t) for t in TABLES if t != EVENTS}
        self._rows[FUNCTIONS].segment_rows = 1  # known at the start: Parquet from the start
        self._rows[INTERVALS].segment_rows = INTERVAL_SEGMENT_ROWS

    def write_events(self, raw: NDArray[Any]) -> None:
        """Append ``raw`` (`EVENT_DTYPE`, copied).

        Waits only when a segment is full before the one before it has become Parquet.
        """
        self._events.add(raw)

    def write_rows(self, table: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """Append rows, given by column (lists, numpy or Arrow arrays), to a table other than
        ``events``.
        """
        self._rows[table].add(columns)

    def flush(self) -> None:
        """Everything given so far is in the files, and readable should the daemon be killed.

        Not on stable storage: a node that loses power may lose what its kernel still held.
        Waits while `busy`.
        """
        self._events.flush()
        for log in self._rows.values():
            log.flush()

    def close(self) -> None:
        """Turn all that is open into Parquet."""
        self._events.finish()
        for log in self._rows.values():
            log.flush()
            log.roll()
            log.give_up()
        deadline = time.monotonic() + RETRY_S
        self._events.retry(deadline)
        for log in self._rows.values():
            log.retry(deadline)
        self._home.close()

    @property
    def busy(self) -> bool:
        """Whether a segment becomes Parquet just now."""
        return self._events.busy

    @property
    def events_lost(self) -> int:
        """Events lost for good: of segments of which the disk took neither form."""
        return self._events.lost

    @property
    def events(self) -> int:
        """Events taken so far and not lost."""
        return self._events.taken

    @property
    def bytes_written(self) -> int:
        """Size of the files of this trace now."""
        streams = [self._events.stream, *(log.stream for log in self._rows.values())]
        return self._home.kept_bytes + sum(stream.size for stream in streams)

    @property
    def rows_lost(self) -> int:
        """Rows of the small tables that a full disk cost, without those of ``intervals``."""
        return sum(log.lost for table, log in self._rows.items() if table != INTERVALS)

    @property
    def calls_lost(self) -> int:
        """Calls in the rows of ``intervals`` that a full disk cost."""
        return self._rows[INTERVALS].lost

    @property
    def problem(self) -> str:
        """Why the last write failed; empty when it went well."""
        return self._home.problem


class _Home:
    """The directory by descriptor, and what its disk said last."""

    def __init__(self, directory: Path) -> None:
        self.fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.problem = ""
        self.kept_bytes = 0  # closed segments
        held = [n for n in os.listdir(self.fd) if n.endswith((".arrows", ".parquet"))]
        if held:
            os.close(self.fd)
            raise UserError(f"{directory}: already holds a trace ({min(held)})")

    def create(self, name: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, 0o600, dir_fd=self.fd)

    def remove(self, name: str) -> None:
        """Remove a file whose contents are elsewhere; one that stays does no harm."""
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self.fd)

    def failed(self, name: str, error: Exception) -> None:
        self.problem = f"{name}: {getattr(error, 'strerror', None) or error}"

    def save_parquet(
        self, name: str, schema: pa.Schema, tables: Iterable[pa.Table], **options: Any
    ) -> int:
        """Write ``name`` whole, under a hidden name first; its bytes, 0 if the disk refused.

        ``tables`` may read from the same disk: its errors count alike.
        """
        import pyarrow as pa

        temporary = f".{name}.tmp"
        try:
            with open(self.create(temporary), "wb") as file:
                _write_parquet(file, schema, tables, options)
            size = os.stat(temporary, dir_fd=self.fd).st_size
            os.rename(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except (OSError, pa.ArrowException) as error:
            self.failed(name, error)
            self.remove(temporary)
            return 0
        self.problem = ""
        return size

    def close(self) -> None:
        os.close(self.fd)


def _write_parquet(
    file: Any, schema: pa.Schema, tables: Iterable[pa.Table], options: dict[str, Any]
) -> None:
    from pyarrow import parquet

    with parquet.ParquetWriter(file, schema, **options) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=max(1, len(table)))


class _Stream:
    """The open segment on disk: an Arrow IPC stream that always ends with a whole batch."""

    def __init__(self, home: _Home, table: str) -> None:
        self._home = home
        self._table = table
        self._fd = -1
        self.number = 1
        self.size = 0
        self.batches = 0
        self._left: list[tuple[int, int]] = []  # number and size of streams without Parquet

    def append(self, batch: pa.RecordBatch) -> bool:
        """Write one batch; False, and the file as before, if the disk refused."""
        import pyarrow as pa
        from pyarrow import ipc

        sink = pa.BufferOutputStream()
        options = ipc.IpcWriteOptions(compression="lz4", use_threads=False)
        ipc.new_stream(sink, batch.schema, options=options).write_batch(batch)
        data = sink.getvalue()  # schema and batch
        try:
            if self._fd < 0:
                self._fd = self._home.create(self.name("arrows"))
            return self._append(data if not self.size else data[batch.schema.serialize().size :])
        except OSError as error:
            self._home.failed(self.name("arrows"), error)
            if not self.size:
                self.finish(parquet_bytes=0)  # leaves no empty file
            return False

    def _append(self, data: pa.Buffer) -> bool:
        try:
            end = _pwrite_all(self._fd, data, self.size)
        except OSError:
            os.ftruncate(self._fd, self.size)
            raise
        self.size = end
        self.batches += 1
        self._home.problem = ""
        return True

    def name(self, suffix: str) -> str:
        return segment_name(self._table, self.number, suffix)

    def finish(self, *, parquet_bytes: int) -> None:
        """On to the next segment; ``parquet_bytes``: of the file that replaces this one, or 0.

        Numbers are never skipped: a segment of which nothing was kept gives its number back.
        """
        self._shut()
        if parquet_bytes or not self.size:
            self._home.remove(self.name("arrows"))
        else:
            self._left.append((self.number, self.size))
        self._home.kept_bytes += parquet_bytes or self.size
        self.number += parquet_bytes > 0 or self.size > 0
        self.size = self.batches = 0

    def _shut(self) -> None:
        if self._fd < 0:
            return
        try:
            os.close(self._fd)
        except OSError as error:  # network file systems tell here what a write failed to do
            self._home.failed(self.name("arrows"), error)
        self._fd = -1

    def stored(self, number: int) -> Iterator[pa.Table]:
        """The rows of stream ``number``, read back when asked for."""
        import pyarrow as pa
        from pyarrow import ipc

        name = segment_name(self._table, number, "arrows")
        with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._home.fd), "rb") as file:
            yield pa.Table.from_batches(ipc.open_stream(file), schema=arrow_schema(self._table))

    def retry(self, save: Callable[[int, Iterator[pa.Table]], int], deadline: float) -> None:
        """Have ``save`` make Parquet of the streams that had to stay behind."""
        for number, size in self._left:
            if time.monotonic() > deadline:
                return
            if parquet_bytes := save(number, self.stored(number)):
                self._home.remove(segment_name(self._table, number, "arrows"))
                self._home.kept_bytes += parquet_bytes - size


def _pwrite_all(fd: int, data: pa.Buffer, offset: int) -> int:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written
    return offset


class _EventLog:
    """One segment of events in memory, of which the first ``_spilled`` are also on disk.

    The one before it may still be on its way into a Parquet file: a thread does that, for which
    numpy and Arrow let go of the interpreter nearly all of the time.
    """

    def __init__(self, home: _Home, segment_events: int) -> None:
        self._home = home
        self._buffer = _new_buffer(segment_events)
        self._fill = 0
        self._spilled = 0
        self._thread = ThreadPoolExecutor(1)
        self._closing: Future[int] | None = None
        self._at_risk = 0  # events of the segment being closed that its stream has not
        self.stream = _Stream(home, EVENTS)
        self.taken = self.lost = 0

    def add(self, raw: NDArray[Any]) -> None:
        if not self.busy:
            self._settle()
        plain = f"V{EVENT_DTYPE.itemsize}"  # copied as 64 bytes, not field by field
        source = raw.view(plain)
        while len(source):
            room = min(len(source), len(self._buffer) - self._fill)
            self._buffer.view(plain)[self._fill : self._fill + room] = source[:room]
            self._fill += room
            self.taken += room
            source = source[room:]
            if self._fill == len(self._buffer):
                self._roll()

    @property
    def busy(self) -> bool:
        return self._closing is not None and not self._closing.done()

    def flush(self) -> None:
        """What the disk does not take stays in memory, for the next flush or the Parquet file."""
        self._settle()
        for start in range(self._spilled, self._fill, SPILL_ROWS):
            end = min(start + SPILL_ROWS, self._fill)
            if not self.stream.append(_batch(self._buffer[start:end])):
                return
            self._spilled = end
        if self.stream.batches >= STREAM_BATCHES:
            self._roll()  # loses nothing: the stream has it all

    def _roll(self) -> None:
        """Begin to close the segment, and another."""
        self._settle()
        rows = self._buffer[: self._fill]
        self._closing = self._thread.submit(self._save, self.stream.number, _row_groups(rows))
        self._at_risk = self._fill - self._spilled
        self._buffer = _new_buffer(len(self._buffer))
        self._fill = self._spilled = 0

    def _settle(self) -> None:
        """Wait until the segment before this one is closed; count what neither form holds."""
        if not self._closing:
            return
        parquet_bytes = self._closing.result()
        self._closing = None
        self.stream.finish(parquet_bytes=parquet_bytes)
        if not parquet_bytes:
            self.taken -= self._at_risk
            self.lost += self._at_risk

    def finish(self) -> None:
        """Close the last segment."""
        if self._fill:
            self._roll()
        self._settle()
        self._thread.shutdown()

    def retry(self, deadline: float) -> None:
        self.stream.retry(lambda number, stored: self._save(number, self._again(stored)), deadline)

    def _again(self, stored: Iterator[pa.Table]) -> Iterator[pa.Table]:
        for table in stored:
            rows = self._buffer[: len(table)]
            for column in table.column_names:
                rows[column] = table[column].to_numpy()
            yield from _row_groups(rows)

    def _save(self, number: int, tables: Iterator[pa.Table]) -> int:
        name = segment_name(EVENTS, number, "parquet")
        return self._home.save_parquet(name, arrow_schema(EVENTS), tables, **_EVENT_OPTIONS)


def _new_buffer(events: int) -> NDArray[Any]:
    """Room for so many; the system has it back when nobody uses it: malloc would keep it."""
    memory = mmap.mmap(-1, events * EVENT_DTYPE.itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(memory, EVENT_DTYPE)


def _row_groups(rows: NDArray[Any]) -> Iterator[pa.Table]:
    """``rows`` by time, the columns of one row group at a time."""
    import pyarrow as pa

    order = np.argsort(rows["ts"], kind="stable")  # nearly sorted: 5 ns an event
    words = rows.view(np.int64).reshape(len(rows), -1)
    part = np.empty((min(ROW_GROUP_ROWS, len(rows)), words.shape[1]), np.int64)
    for start in range(0, len(rows), ROW_GROUP_ROWS):
        which = order[start : start + ROW_GROUP_ROWS]
        ordered = words.take(which, axis=0, out=part[: len(which)], mode="clip")
        yield pa.Table.from_batches([_batch(ordered.view(EVENT_DTYPE)[:, 0])])


def _batch(rows: NDArray[Any]) -> pa.RecordBatch:
    import pyarrow as pa

    columns = [pa.array(np.ascontiguousarray(rows[n])) for n in EVENT_DTYPE.names or ()]
    return pa.RecordBatch.from_arrays(columns, schema=arrow_schema(EVENTS))


class _RowLog:
    """A small table: rows wait in batches until a flush writes them."""

    def __init__(self, home: _Home, table: str) -> None:
        self._home = home
        self._table = table
        self._schema = arrow_schema(table)
        self._waiting: list[pa.RecordBatch] = []
        self._rows = 0  # in the open stream
        self.segment_rows = TABLE_SEGMENT_ROWS
        self.stream = _Stream(home, table)
        self.lost = 0  # rows; of a table that counts calls, those

    def add(self, columns: Mapping[str, Any]) -> None:
        import pyarrow as pa

        counts = {len(values) for values in columns.values()}
        if set(columns) != set(self._schema.names) or len(counts) != 1:
            raise ValueError(f"{self._table}: needs {self._schema.names}, of one length")
        self._waiting.append(pa.RecordBatch.from_pydict(columns, schema=self._schema))
        if self._count() >= max(self.segment_rows, TABLE_SEGMENT_ROWS):
            self.flush()
            self.give_up()

    def flush(self) -> None:
        """Rows that the disk does not take wait for the next flush."""
        if not self._count():
            return
        if not self.stream.append(_joined(self._waiting)):
            return
        self._rows += self._count()
        self._waiting.clear()
        if self._rows >= self.segment_rows or self.stream.batches >= STREAM_BATCHES:
            self.roll()

    def roll(self) -> None:
        if self.stream.size:
            number = self.stream.number
            self.stream.finish(parquet_bytes=self._save(number, self.stream.stored(number)))
            self._rows = 0

    def retry(self, deadline: float) -> None:
        self.stream.retry(self._save, deadline)

    def give_up(self) -> None:
        """Count what waits still, and let it go: a full disk has kept it waiting too long."""
        counts = "count" in self._schema.names
        self.lost += sum(
            sum(batch["count"].to_pylist()) if counts else batch.num_rows for batch in self._waiting
        )
        self._waiting.clear()

    def _save(self, number: int, tables: Iterator[pa.Table]) -> int:
        name = segment_name(self._table, number, "parquet")
        return self._home.save_parquet(name, self._schema, tables, **_ROW_OPTIONS)

    def _count(self) -> int:
        return sum(batch.num_rows for batch in self._waiting)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    import pyarrow as pa

    if len(batches) == 1:
        return batches[0]
    (whole,) = pa.Table.from_batches(batches).combine_chunks().to_batches()
    return whole
