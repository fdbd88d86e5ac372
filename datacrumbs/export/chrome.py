"""Chrome's trace event format (JSON), which Perfetto's viewer and chrome://tracing open.

Times are microseconds with three decimals, from the start of the run: nanoseconds since 1970 do
not fit the numbers of JSON. Processes of the second host on have their host's number in front.
"""

from __future__ import annotations

import json

import polars as pl

from datacrumbs.export.select import HostEvents
from datacrumbs.export.text import lines, quoted
from datacrumbs.trace.schema import EventFlag

BEGIN = (
    b'{"displayTimeUnit":"ns","traceEvents":[\n{"ph":"M","name":"datacrumbs","pid":0,"args":{}}\n'
)
END = b"]}\n"
PIDS = 10_000_000
"""More than a host's process numbers (Linux: at most 4,194,304)."""


def host_pid(host_number: int, pid: int) -> int:
    """A process number that is unique in the run; on the first host, its own."""
    return host_number * PIDS + pid


class ChromeLines:
    """Turns one host's events into lines, each with a comma in front."""

    def __init__(self, events: HostEvents, number: int) -> None:
        self._events = events
        self._number = number
        functions = events.functions
        self._functions = functions.select(
            "func", _name=quoted(functions["name"]), _cat=quoted(functions["layer"])
        )

    def head(self) -> bytes:
        """The processes' names."""
        names = {row["pid"]: row["comm"] for row in self._events.processes.iter_rows(named=True)}
        out = []
        for pid, comm in names.items():
            name = {"name": f"{comm} (pid {pid} on {self._events.host.host})"}
            line = {"ph": "M", "name": "process_name", "pid": host_pid(self._number, pid)}
            out.append("," + json.dumps(line | {"args": name}, separators=(",", ":")) + "\n")
        return "".join(out).encode()

    def prepare(self, frame: pl.DataFrame) -> tuple[bytes, pl.DataFrame]:
        return b"", frame

    def render(self, frame: pl.DataFrame) -> memoryview:
        """The lines of a batch. What was done later is no part of its thread: thread 0."""
        files = self._events.files.join(frame.select("file").unique(), on="file", how="semi")
        frame = frame.join(
            files.with_columns(quoted(files["path"]).alias("_path")),
            on="file",
            how="left",
            maintain_order="left",
        ).join(self._functions, on="func", how="left", maintain_order="left")
        later = pl.col("flags") & EventFlag.ASYNC != 0
        unfinished = pl.col("flags") & EventFlag.UNFINISHED != 0
        return lines(
            frame,
            ',{"ph":"X","name":',
            pl.col("_name").fill_null('"unknown"'),
            ',"cat":',
            pl.col("_cat").fill_null('"unknown"'),
            ',"pid":',
            pl.col("pid").cast(pl.Int64) + host_pid(self._number, 0),
            ',"tid":',
            pl.when(later).then(0).otherwise(pl.col("tid")),
            ',"ts":',
            *_microseconds(pl.col("time") - self._events.began_ns),
            ',"dur":',
            *_microseconds(pl.col("dur")),
            ',"args":{"ret":',
            pl.col("ret"),
            _where(pl.col("size") >= 0, ',"size":', "size"),
            _where(pl.col("offset") >= 0, ',"offset":', "offset"),
            _where(pl.col("_path").is_not_null(), ',"path":', "_path"),
            pl.when(unfinished).then(pl.lit(',"unfinished":true')),
            "}}",
        )


def _where(condition: pl.Expr, key: str, column: str) -> pl.Expr:
    return pl.when(condition).then(pl.concat_str(pl.lit(key), column))


def _microseconds(ns: pl.Expr) -> tuple[pl.Expr, pl.Expr, pl.Expr]:
    """``-1.5`` us is ``-1500`` ns: the sign, whole microseconds, and three decimals."""
    sign = pl.when(ns < 0).then(pl.lit("-")).otherwise(pl.lit(""))
    whole = (ns.abs() // 1000).cast(pl.String)
    return sign, whole, pl.concat_str(pl.lit("."), (ns.abs() % 1000).cast(pl.String).str.zfill(3))
