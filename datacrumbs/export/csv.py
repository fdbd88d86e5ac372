"""Comma-separated values (RFC 4180), one line an event, for spreadsheets and scripts."""

from __future__ import annotations

import io

import polars as pl

from datacrumbs.export.select import HostEvents
from datacrumbs.trace.schema import EventFlag

COLUMNS = (
    *("host", "time_ns", "duration_ns", "pid", "tid", "layer", "name", "path", "fd", "offset"),
    *("size_bytes", "ret", "unfinished", "async"),
)
BEGIN = (",".join(COLUMNS) + "\n").encode()


class CsvLines:
    """Turns one host's events into lines. ``time_ns`` is the start, nanoseconds since 1970."""

    def __init__(self, events: HostEvents) -> None:
        self._events = events

    def head(self) -> bytes:
        return b""

    def prepare(self, frame: pl.DataFrame) -> tuple[bytes, pl.DataFrame]:
        return b"", frame

    def render(self, frame: pl.DataFrame) -> memoryview:
        """The lines of a batch; what a call has not got is empty."""
        files = self._events.files.join(frame.select("file").unique(), on="file", how="semi")
        rows = frame.join(files, on="file", how="left", maintain_order="left").select(
            pl.lit(self._events.host.host).alias("host"),
            pl.col("time").alias("time_ns"),
            pl.col("dur").alias("duration_ns"),
            *("pid", "tid", "layer", "name", "path"),
            *(_or_empty(name).alias(name) for name in ("fd", "offset")),
            _or_empty("size").alias("size_bytes"),
            "ret",
            (pl.col("flags") & EventFlag.UNFINISHED != 0).cast(pl.Int8).alias("unfinished"),
            (pl.col("flags") & EventFlag.ASYNC != 0).cast(pl.Int8).alias("async"),
        )
        out = io.BytesIO()
        rows.select(COLUMNS).write_csv(out, include_header=False)
        return out.getbuffer()


def _or_empty(column: str) -> pl.Expr:
    return pl.when(pl.col(column) >= 0).then(pl.col(column))
