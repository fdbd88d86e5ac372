"""Write a trace in somebody else's format: in bounded memory, whole or not at all."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, Protocol

import polars as pl

from datacrumbs.export import chrome, csv, perfetto
from datacrumbs.export.chrome import ChromeLines
from datacrumbs.export.csv import CsvLines
from datacrumbs.export.dftracer import DftracerLines
from datacrumbs.export.select import HostEvents, Selection, select
from datacrumbs.export.text import pieces
from datacrumbs.trace.reader import Trace
from datacrumbs.whole_file import whole_file

WORKERS = min(4, os.cpu_count() or 1)
GZIP_LEVEL = 1  # of isal: as small as zlib's 3, seven times as fast


class Format(StrEnum):
    """What can be written."""

    DFTRACER = "dftracer"
    CHROME = "chrome"
    CSV = "csv"
    PERFETTO = "perfetto"


SUFFIXES = {
    ".pfw": Format.DFTRACER,
    ".json": Format.CHROME,
    ".csv": Format.CSV,
    ".pftrace": Format.PERFETTO,
}
_BEGIN = {Format.DFTRACER: b"[\n", Format.CHROME: chrome.BEGIN, Format.CSV: csv.BEGIN}
_END = {Format.CHROME: chrome.END}


class HostWriter(Protocol):
    """One host's events in one format."""

    def head(self) -> bytes:
        """What comes before the first event."""

    def prepare(self, frame: pl.DataFrame) -> tuple[bytes, pl.DataFrame]:
        """In order: what comes before a batch, and the batch as `render` wants it."""

    def render(self, frame: pl.DataFrame) -> memoryview:
        """The batch; several at once, in threads."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: events, and bytes on disk."""

    events: int
    bytes: int


def format_of(out: Path) -> tuple[Format | None, bool]:
    """The format that a file's name asks for, and whether it asks for gzip."""
    zipped = out.suffix == ".gz"
    suffix = out.with_suffix("").suffix if zipped else out.suffix
    return SUFFIXES.get(suffix), zipped


def export(
    trace: Trace,
    out: Path,
    form: Format,
    *,
    gzip: bool = False,
    selection: Selection | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Exported:
    """Write the selected events of ``trace`` to ``out`` (``-``: standard output).

    ``advance`` is told how many events were read, now and then. The file is there when it is
    complete; what was there before stays until then. Raises `BadInputError` for a selection
    that names what the trace has not got, `UserError` when it cannot be written.
    """
    hosts = select(trace, selection or Selection())
    with whole_file(out) as file:
        sink = _Gzip(file) if gzip else _Plain(file)
        sink.write(memoryview(_BEGIN.get(form, b"")))
        events = 0
        for writer, part in _writers(form, hosts, trace):
            sink.write(memoryview(writer.head()))
            events += _write_host(writer, part, sink, advance)
        sink.write(memoryview(_END.get(form, b"")))
        return Exported(events, sink.bytes)


def _writers(
    form: Format, hosts: list[HostEvents], trace: Trace
) -> Iterator[tuple[HostWriter, HostEvents]]:
    next_id = 1
    for part in hosts:
        number = trace.hosts.index(part.host)
        match form:
            case Format.DFTRACER:
                made = DftracerLines(part, next_id)
                yield made, part
                next_id = made.next_id
            case Format.CHROME:
                yield ChromeLines(part, number), part
            case Format.CSV:
                yield CsvLines(part), part
            case Format.PERFETTO:
                yield perfetto.PerfettoPackets(part, number), part


def _write_host(
    writer: HostWriter, part: HostEvents, sink: _Plain | _Gzip, advance: Callable[[int], None]
) -> int:
    """Batches are rendered beside each other and written in order."""
    events = 0
    waiting: deque[tuple[bytes, Future[list[bytes | memoryview]], int]] = deque()

    def finish() -> None:
        before, rendered, read = waiting.popleft()
        sink.write(memoryview(before))
        for piece in rendered.result():
            sink.put(piece)
        advance(read)

    with ThreadPoolExecutor(WORKERS) as pool:
        for read, frame in part.batches():
            if not len(frame):
                advance(read)
                continue
            events += len(frame)
            before, ready = writer.prepare(frame)
            waiting.append((before, pool.submit(_packed, writer, ready, sink), read))
            if len(waiting) > WORKERS:
                finish()
        while waiting:
            finish()
    return events


def _packed(
    writer: HostWriter, frame: pl.DataFrame, sink: _Plain | _Gzip
) -> list[bytes | memoryview]:
    return [sink.pack(piece) for piece in pieces(writer.render(frame))]


class _Plain:
    """A file, and how much went into it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.bytes = 0

    def pack(self, piece: memoryview) -> bytes | memoryview:
        return piece

    def put(self, packed: bytes | memoryview) -> None:
        self._file.write(packed)
        self.bytes += len(packed)

    def write(self, text: memoryview) -> None:
        for piece in pieces(text):
            self.put(self.pack(piece))


class _Gzip(_Plain):
    """The same, a gzip member for each piece."""

    def pack(self, piece: memoryview) -> bytes | memoryview:
        from isal import igzip

        return bytes(igzip.compress(piece, GZIP_LEVEL))
