"""A running run, now: how fast events come, where they go, what is lost.

Only the trace's files are read; the daemon and the job notice nothing. How many events there
are comes from the files' metadata and is exact; what they are about is looked at in at most
`SAMPLE_EVENTS` of the newest, so that a run of millions of events a second costs no more to
watch than a quiet one. Of layers in profile mode, each host's last interval is shown.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from msgspec import Struct

from datacrumbs.trace.reader import HostTrace, Segment, Trace, read_segment
from datacrumbs.trace.runfile import State
from datacrumbs.trace.schema import INTERVALS

SAMPLE_EVENTS = 100_000
"""Events looked at for each host and picture."""

_COLUMNS = ("ts", "dur", "file", "ret", "func")


class LayerNow(Struct, frozen=True, kw_only=True):
    """One layer in the sample: its share of the events, mean length, bytes a second."""

    layer: str
    share: float
    mean_ns: int
    bytes_per_s: int


class FunctionNow(Struct, frozen=True, kw_only=True):
    """One function in the sample."""

    layer: str
    name: str
    share: float
    mean_ns: int


class FileNow(Struct, frozen=True, kw_only=True):
    """One path in the sample, and its share of the time spent on files."""

    path: str
    share: float
    bytes_per_s: int


class ProfiledNow(Struct, frozen=True, kw_only=True):
    """One function in profile mode, in the last interval of each host that has any."""

    layer: str
    name: str
    calls_per_s: float
    mean_ns: int
    bytes_per_s: int


class HostNow(Struct, frozen=True, kw_only=True):
    """One host. ``lost`` and ``filtered`` are as of the daemon's last note of them, once a minute.

    ``events_per_s`` is since the picture before this one; 0 in the first.
    """

    host: str
    state: State
    events: int
    events_per_s: float
    lost: int
    filtered: int


class Picture(Struct, frozen=True, kw_only=True):
    """All hosts; shares are of ``sampled_events``, which were made in ``sampled_ns``."""

    run_id: str
    hosts: list[HostNow]
    sampled_events: int
    sampled_ns: int
    layers: list[LayerNow]
    functions: list[FunctionNow]
    files: list[FileNow]
    profiled: list[ProfiledNow]


@dataclass(slots=True)
class Watch:
    """Makes pictures; keeps what the last one saw."""

    _events: dict[str, int]
    _at_s: float

    @classmethod
    def start(cls) -> Watch:
        return cls({}, 0.0)

    def picture(self, trace: Trace, now_s: float, *, top: int) -> Picture:
        """What is going on at ``now_s`` (monotonic seconds); lists of at most ``top``."""
        hosts, samples, intervals = [], [], []
        for host in trace.hosts:
            segments = host.segments()
            hosts.append(self._host(host, sum(segment.rows for segment in segments), now_s))
            samples.append(_sample(host, segments))
            intervals.append(_last_interval(host))
        self._at_s = now_s
        rows = pl.concat(samples)
        span_ns = max((_span_ns(sample) for sample in samples), default=0)
        return Picture(
            run_id=next((h.run.run_id for h in trace.hosts if h.run), trace.path.name),
            hosts=hosts,
            sampled_events=len(rows),
            sampled_ns=span_ns,
            layers=_layers(rows, span_ns)[:top],
            functions=_functions(rows)[:top],
            files=_files(rows, span_ns)[:top],
            profiled=_profiled(pl.concat(intervals))[:top],
        )

    def _host(self, host: HostTrace, events: int, now_s: float) -> HostNow:
        before = self._events.get(host.host, events)
        self._events[host.host] = events
        counts = host.run.counts if host.run else None
        return HostNow(
            host=host.host,
            state=host.state,
            events=events,
            events_per_s=(events - before) / max(now_s - self._at_s, 1e-3),
            lost=counts.lost if counts else 0,
            filtered=counts.filtered if counts else 0,
        )


def _sample(host: HostTrace, segments: list[Segment]) -> pl.DataFrame:
    """The newest events: `_COLUMNS`, ``layer``, ``name``, ``op``, ``path``."""
    parts: list[pl.DataFrame] = []
    for segment in reversed(segments):
        parts += [pl.DataFrame(batch) for batch in read_segment(segment.path, _COLUMNS)]
        if sum(map(len, parts)) >= SAMPLE_EVENTS:
            break
    rows = pl.concat(parts).sort("ts").tail(SAMPLE_EVENTS) if parts else _no_rows()
    functions = _polars(host, "functions").select("func", "layer", "name", "op")
    files = _polars(host, "files").select("file", "path").unique("file", keep="first")
    return rows.join(functions, on="func", how="left").join(files, on="file", how="left")


def _last_interval(host: HostTrace) -> pl.DataFrame:
    """Functions in profile mode: ``layer``, ``name``, and of each ``calls``, ``time`` (ns) and
    ``moved`` (bytes) in the interval, with calls and bytes also by second."""
    rows = pl.from_arrow(host.newest(INTERVALS))
    assert isinstance(rows, pl.DataFrame)
    functions = _polars(host, "functions").select("func", "layer", "name")
    second = pl.col("dur").clip(1).cast(pl.Float64) / 1e9  # 0 in a damaged trace
    return (
        rows.filter(pl.col("ts") == pl.col("ts").max())
        .join(functions, on="func", how="left")
        .select(
            pl.col("layer", "name").fill_null("unknown"),
            pl.col("count").cast(pl.Int64).alias("calls"),
            pl.col("time").cast(pl.Int64),
            (pl.col("count") / second).alias("calls_per_s"),
            (pl.col("bytes") / second).alias("bytes_per_s"),
        )
    )


def _profiled(rows: pl.DataFrame) -> list[ProfiledNow]:
    """Hosts and processes added up; the most calls first."""
    found = rows.group_by("layer", "name").sum().filter(pl.col("calls") > 0)
    return [
        ProfiledNow(
            layer=row["layer"],
            name=row["name"],
            calls_per_s=row["calls_per_s"],
            mean_ns=round(row["time"] / row["calls"]),
            bytes_per_s=round(row["bytes_per_s"]),
        )
        for row in found.sort("calls", "layer", "name", descending=[True, False, False]).to_dicts()
    ]


def _no_rows() -> pl.DataFrame:
    kinds = (pl.Int64, pl.Int64, pl.UInt64, pl.Int64, pl.UInt16)
    return pl.DataFrame(schema=dict(zip(_COLUMNS, kinds, strict=True)))


def _polars(host: HostTrace, table: str) -> pl.DataFrame:
    frame = pl.from_arrow(host.table(table))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _span_ns(rows: pl.DataFrame) -> int:
    if not len(rows):
        return 0
    ends = rows["ts"].to_numpy() + rows["dur"].to_numpy()
    return int(np.max(ends)) - int(rows["ts"].to_numpy().min())


_MOVED = (
    pl.when(pl.col("op").is_in(["read", "write", "copy"]) & (pl.col("ret") > 0))
    .then(pl.col("ret"))
    .otherwise(0)
)


def _per_second(moved: int, span_ns: int) -> int:
    return round(moved * 1e9 / span_ns) if span_ns else 0


def _grouped(rows: pl.DataFrame, *keys: str) -> Iterable[dict[str, Any]]:
    """By ``keys``: count, time, mean, bytes; the most events first."""
    return (
        rows.group_by(keys)
        .agg(
            pl.len().alias("count"),
            pl.col("dur").sum().alias("time"),
            pl.col("dur").mean().round().cast(pl.Int64).alias("mean"),
            _MOVED.sum().alias("moved"),
        )
        .sort("count", *keys, descending=[True, *[False] * len(keys)])
        .iter_rows(named=True)
    )


def _layers(rows: pl.DataFrame, span_ns: int) -> list[LayerNow]:
    return [
        LayerNow(
            layer=row["layer"] or "unknown",
            share=row["count"] / len(rows),
            mean_ns=row["mean"],
            bytes_per_s=_per_second(row["moved"], span_ns),
        )
        for row in _grouped(rows, "layer")
    ]


def _functions(rows: pl.DataFrame) -> list[FunctionNow]:
    return [
        FunctionNow(
            layer=row["layer"] or "unknown",
            name=row["name"] or "unknown",
            share=row["count"] / len(rows),
            mean_ns=row["mean"],
        )
        for row in _grouped(rows, "layer", "name")
    ]


def _files(rows: pl.DataFrame, span_ns: int) -> list[FileNow]:
    named = rows.filter(pl.col("path").is_not_null())
    total = max(int(named["dur"].sum()), 1)
    found = [
        FileNow(
            path=row["path"],
            share=row["time"] / total,
            bytes_per_s=_per_second(row["moved"], span_ns),
        )
        for row in _grouped(named, "path")
    ]
    return sorted(found, key=lambda file: (-file.share, file.path))
