"""The trace's tables, once: columns, units, flags. ``docs/trace-format.md`` explains them.

Kernel words and user words differ: what the kernel calls *tgid* is ``pid`` here and what it
calls *pid* is ``tid``, as users know them. The BPF program translates; nobody else does.
"""

from __future__ import annotations

from enum import IntFlag, StrEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
"""Version of the trace's layout; a reader refuses a higher one by name."""

EVENT_DTYPE = np.dtype(
    [
        ("ts", "<i8"),  # start of the call, CLOCK_MONOTONIC, nanoseconds
        ("dur", "<i8"),  # length of the call, nanoseconds
        ("file", "<u8"),  # key of `files`; 0: the call names no file
        (
            "offset",
            "<i8",
        ),  # file position the transfer began at, bytes; -1: none or unknown
        (
            "size",
            "<i8",
        ),  # bytes asked for (count, length); -1: the call has no such argument
        ("ret", "<i8"),  # what the call returned; -errno when a system call failed
        ("pid", "<i4"),  # process, as the daemon's PID namespace numbers it
        ("tid", "<i4"),  # thread
        ("func", "<u2"),  # key of `functions`
        ("flags", "<u2"),  # EventFlag
        ("fd", "<i4"),  # file descriptor; -1: the call has none
    ]
)
"""One event as the kernel hands it over (64 bytes, ``struct dc_event`` in bpf/datacrumbs.h)."""


class EventFlag(IntFlag):
    """Bits of ``flags``."""

    UNFINISHED = 1  # the call had not returned when the process or the run ended
    PEER = 2  # the call involves a second file: see table `peers`
    ASYNC = 4  # done later, by the kernel, for whoever caused it: no part of a call of `tid`
    ARGUMENTS = 8  # arguments were kept: see table `arguments`


class Op(StrEnum):
    """What a function does with data; in READ, WRITE and COPY a positive ret is bytes moved."""

    READ = "read"
    WRITE = "write"
    COPY = "copy"
    OPEN = "open"
    CLOSE = "close"
    SYNC = "sync"
    SEEK = "seek"
    STAT = "stat"
    MAP = "map"
    NAME = "name"
    WAIT = "wait"
    OTHER = "other"


SYSCALL_KINDS = ("syscall", "io_uring")
"""Kinds of functions that a program asks the kernel for: results below 0 are errors."""

EVENTS = "events"
FUNCTIONS = "functions"
FILES = "files"
PROCESSES = "processes"
PEERS = "peers"
ARGUMENTS = "arguments"
INTERVALS = "intervals"
TABLES = (EVENTS, FUNCTIONS, FILES, PROCESSES, PEERS, ARGUMENTS, INTERVALS)


def segment_name(table: str, number: int, suffix: str) -> str:
    """``events-000001.parquet``: the file of segment ``number``, which counts from 1."""
    return f"{table}-{number:06d}.{suffix}"


def arrow_schema(table: str) -> pa.Schema:
    """The Arrow schema of ``table``, one of `TABLES`."""
    import pyarrow as pa

    def event_field(name: str) -> pa.Field:
        return pa.field(name, pa.from_numpy_dtype(EVENT_DTYPE[name]), nullable=False)

    def need(name: str, kind: pa.DataType) -> pa.Field:
        return pa.field(name, kind, nullable=False)

    match table:
        case "events":
            assert EVENT_DTYPE.names
            fields = [event_field(name) for name in EVENT_DTYPE.names]
        case "functions":
            fields = [
                need("func", pa.uint16()),
                need("layer", pa.string()),
                need("name", pa.string()),
                need("kind", pa.string()),  # syscall | io_uring | user | kernel | usdt | custom
                need("op", pa.string()),  # Op
                pa.field("binary", pa.string()),  # the ELF file of a user function
            ]
        case "files":
            fields = [
                need("file", pa.uint64()),  # an inode under one of its names
                need("path", pa.string()),  # bytes that are not UTF-8 stand as \xNN
                pa.field("path_raw", pa.binary()),  # the path's bytes, where `path` is not exact
                need("kind", pa.string()),  # regular directory symlink pipe socket char block
                #                             memfd anon (epoll, eventfd, ...) name (never opened)
                pa.field("fstype", pa.string()),  # ext4, xfs, tmpfs, ...
                need("dev", pa.uint32()),  # kernel's dev_t: major << 20 | minor
                need("ino", pa.uint64()),
                need("generation", pa.uint32()),
                need("ts", pa.int64()),  # when first seen, as events.ts
            ]
        case "processes":
            fields = [
                need("ts", pa.int64()),
                need("pid", pa.int32()),
                need("what", pa.string()),  # start (joined) | fork | exec | exit
                need("ppid", pa.int32()),
                need("comm", pa.string()),
                pa.field("exe", pa.string()),  # path of the executable
                need("exit_code", pa.int32()),  # wait status of an exit, else 0
            ]
        case "peers":
            fields = [  # the second file of one event, found by (ts, tid)
                need("ts", pa.int64()),
                need("tid", pa.int32()),
                need("file", pa.uint64()),
                need("fd", pa.int32()),
                need("offset", pa.int64()),
            ]
        case "arguments":
            fields = [  # arguments of one event, found by (ts, tid, func)
                need("ts", pa.int64()),
                need("tid", pa.int32()),
                need("func", pa.uint16()),
                need("name", pa.string()),
                pa.field("value", pa.int64()),  # of a number
                pa.field("text", pa.string()),  # of a string; bytes as in files.path
            ]
        case "intervals":
            fields = [  # profile mode: calls of a function by a process that ended in an interval
                need("ts", pa.int64()),  # start of the interval, as events.ts
                need("dur", pa.int64()),  # its length
                need("pid", pa.int32()),
                need("func", pa.uint16()),
                need("count", pa.uint64()),
                need("errors", pa.uint64()),  # system calls that failed
                need("time", pa.int64()),  # sum of the calls' dur
                need("max", pa.int64()),  # the longest call's
                need("bytes", pa.int64()),  # moved, in functions that read, write or copy
                # calls by dur: element i counts those of 2**i up to 2**(i+1) ns; trailing
                # zeros are left out
                need("histogram", pa.list_(pa.uint64())),
            ]
        case _:
            raise KeyError(table)
    return pa.schema(fields)
