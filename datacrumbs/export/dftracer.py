"""DFTracer's ``.pfw`` lines, as its version 2 writes and its tools read them.

System calls are of category ``POSIX`` under the names of the C library's functions, which is
what the tools count by; any other layer keeps its own name as category, so that a read is
counted once. Readers take whole microseconds only: durations are rounded so that the sum of
each function's is right.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import polars as pl

from datacrumbs.export.select import HostEvents
from datacrumbs.export.text import lines, quoted
from datacrumbs.trace.schema import EventFlag

# the kernel's name where the C library has another, or where one call serves for several
LIBC_NAMES = {
    "openat": "open",
    "openat2": "open",
    "creat": "open",
    "newfstatat": "fstatat",
    "statx": "stat",
    "newfstat": "fstat",
    "newstat": "stat",
    "newlstat": "lstat",
    "faccessat": "access",
    "faccessat2": "access",
    "getdents64": "readdir",
    "getdents": "readdir",
    "linkat": "link",
    "mkdirat": "mkdir",
    "readlinkat": "readlink",
    "renameat": "rename",
    "renameat2": "rename",
    "unlinkat": "unlink",
    "pread64": "pread",
    "preadv2": "preadv",
    "pwrite64": "pwrite",
    "pwritev2": "pwritev",
}


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).hexdigest()


class DftracerLines:
    """Turns one host's events into lines; made once per host, fed batch by batch, in order."""

    def __init__(self, events: HostEvents, first_id: int) -> None:
        self._events = events
        self._next_id = first_id
        self._host_hash = _hash(events.host.host)
        self._known: set[int] = set()  # files whose line is written
        self._strings: set[str] = set()
        self._left_ns = np.zeros(1 << 16, np.int64)  # of each function, not yet in a duration
        functions = events.functions
        posix = functions["kind"] == "syscall"
        names = functions["name"].replace(LIBC_NAMES)
        self._functions = functions.select(
            "func",
            _name=quoted(functions["name"].zip_with(~posix, names)),
            _cat=quoted(
                pl.Series("cat", ["POSIX"] * len(functions)).zip_with(posix, functions["layer"])
            ),
        )

    def head(self) -> bytes:
        """What comes before the host's first event: who it is, its processes."""
        out = [self._hash_line("HH", self._events.host.host, self._host_hash)]
        out.append(self._metadata("CM", "time_metric", "US", 0))
        for row in self._events.processes.iter_rows(named=True):
            out += self._process(row)
        return "".join(out).encode()

    def _metadata(self, name: str, key: str, value: str, pid: int) -> str:
        args = {"hhash": self._host_hash, "name": key, "value": value}
        line = {"name": name, "cat": "dftracer", "type": 1, "pid": pid, "tid": pid, "ph": 4}
        return json.dumps(line | {"args": args}, separators=(",", ":")) + "\n"

    def _hash_line(self, kind: str, text: str, value: str, pid: int = 0) -> str:
        return self._metadata(kind, text, value, pid)

    def _process(self, row: dict[str, object]) -> list[str]:
        """The line with which DFTracer begins a process, and the name it refers to."""
        if row["what"] not in ("start", "exec"):
            return []
        exe, pid = str(row["exe"] or row["comm"]), int(str(row["pid"]))
        out = [] if exe in self._strings else [self._hash_line("SH", exe, _hash(exe), pid)]
        self._strings.add(exe)
        at = self._events.real_ns(pl.Series([row["ts"]], dtype=pl.Int64))[0] // 1000
        args = {"hhash": self._host_hash, "ppid": row["ppid"], "exec_hash": _hash(exe)}
        line = {"id": self._id(1), "name": "start", "cat": "dftracer", "type": 1, "pid": pid}
        line |= {"tid": pid, "ts": at, "dur": 0, "ph": 1, "args": args}
        return [*out, json.dumps(line, separators=(",", ":")) + "\n"]

    def _id(self, count: int) -> int:
        first, self._next_id = self._next_id, self._next_id + count
        return first

    @property
    def next_id(self) -> int:
        return self._next_id

    def prepare(self, frame: pl.DataFrame) -> tuple[bytes, pl.DataFrame]:
        """What depends on the batches before: lines of new files, ids, and durations."""
        frame = frame.with_columns(
            pl.Series("_dur", self._whole_us(frame["func"].to_numpy(), frame["dur"].to_numpy())),
            pl.int_range(pl.len(), dtype=pl.Int64).alias("_id") + self._id(len(frame)),
        )
        return self._new_files(frame["file"].unique()), frame

    def _whole_us(self, func: np.ndarray, dur: np.ndarray) -> np.ndarray:
        """Durations in microseconds; what rounding leaves over goes to the function's next."""
        order = np.argsort(func, kind="stable")
        sorted_func, total = func[order], np.cumsum(dur[order])
        starts = np.flatnonzero(np.r_[True, sorted_func[1:] != sorted_func[:-1]][: len(func)])
        counts = np.diff(np.r_[starts, len(func)])
        before = total[starts] - dur[order][starts] if len(func) else total
        carried = self._left_ns[sorted_func[starts]] if len(func) else before
        running = total - np.repeat(before - carried, counts)
        whole = running // 1000
        out = np.empty(len(func), np.int64)
        out[order] = np.diff(whole, prepend=0)
        out[order[starts]] = whole[starts]
        ends = starts + counts - 1
        self._left_ns[sorted_func[ends]] = running[ends] % 1000
        return out

    def _new_files(self, ids: pl.Series) -> bytes:
        new = [file for file in ids.to_list() if file and file not in self._known]
        self._known.update(new)
        wanted = pl.DataFrame({"file": pl.Series(new, dtype=pl.UInt64)})
        rows = self._events.files.join(wanted, on="file", how="semi")
        return "".join(self._hash_line("FH", path, _hash(path)) for path in rows["path"]).encode()

    def render(self, frame: pl.DataFrame) -> memoryview:
        """The lines of a prepared batch; may run beside others."""
        files = self._events.files.join(frame.select("file").unique(), on="file", how="semi")
        hashes = pl.Series("_fhash", [_hash(path) for path in files["path"]], pl.String)
        frame = frame.join(
            files.select("file", hashes), on="file", how="left", maintain_order="left"
        ).join(self._functions, on="func", how="left", maintain_order="left")
        moved = pl.col("ret").cast(pl.String)
        flag = pl.col("flags")
        return lines(
            frame,
            '{"id":',
            pl.col("_id"),
            ',"name":',
            pl.col("_name").fill_null('"unknown"'),
            ',"cat":',
            pl.col("_cat").fill_null('"unknown"'),
            ',"type":3,"pid":',
            pl.col("pid"),
            ',"tid":',
            pl.col("tid"),
            ',"ts":',
            pl.col("time") // 1000,
            ',"dur":',
            pl.col("_dur"),
            ',"ph":1,"args":{"hhash":"' + self._host_hash + '","ret":',
            moved,
            _optional(',"count":', "size"),
            _optional(',"offset":', "offset"),
            pl.when(pl.col("_fhash").is_not_null()).then(
                pl.concat_str(pl.lit(',"fhash":"'), "_fhash", pl.lit('"'))
            ),
            pl.when(flag & EventFlag.UNFINISHED != 0).then(pl.lit(',"unfinished":1')),
            pl.when(flag & EventFlag.ASYNC != 0).then(pl.lit(',"async":1')),
            "}}",
        )


def _optional(key: str, column: str) -> pl.Expr:
    return pl.when(pl.col(column) >= 0).then(pl.concat_str(pl.lit(key), column))
