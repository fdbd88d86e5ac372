"""Operations of io_uring: what each did, to which file, where and how much."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

import pytest
from kernel.tracing import UNFINISHED, Trace, TracedRun

ASYNC = 4
SOURCE = Path(__file__).with_name("io_uring.c")


OPERATIONS = [
    ("openat", -1, -1, 0),
    ("write", 100, 4097, 4097),
    ("writev", 10000, -1, 3000),
    ("fsync", -1, -1, 0),
    ("read", 10000, 8000, 3000),
    ("read", 50, 60, 60),
    ("read", 7, 77, 77),  # of a registered file
    ("write", 20000, 55, 0),  # whose result nobody hears of
]
"""What `SOURCE` does to its file: operation, offset, size, result (0 for a descriptor)."""


def operations_on(trace: Trace, path: str) -> list[tuple[object, ...]]:
    """The operations on ``path`` in order, as in `OPERATIONS`."""
    result = "CASE name WHEN 'io_uring:openat' THEN least(ret, 0) ELSE ret END"
    return _rows(trace, f"substr(name, 10), pos, size, {result}", f"path = '{path}'")


@pytest.fixture
def ring_program(traced_run: TracedRun) -> Path:
    return traced_run.compile(SOURCE.read_text(), "-Wl,--no-as-needed", "-luring")


def _rows(trace: Trace, columns: str, where: str = "true") -> list[tuple[object, ...]]:
    return trace.calls(columns, f"starts_with(name, 'io_uring:') AND ({where})")


@pytest.mark.parametrize("how", ["plain", "polled"])
def test_every_operation_is_named(traced_run: TracedRun, ring_program: Path, how: str) -> None:
    with traced_run.daemon():
        assert traced_run.run(ring_program, how) == "waiting\n"
    trace = traced_run.trace()
    assert operations_on(trace, f"{traced_run.work}/ring.out") == OPERATIONS
    others = _rows(
        trace, "substr(name, 10), ret, kind", "path NOT LIKE '%/ring.out' OR path IS NULL"
    )
    assert others[:2] == [("read", -errno.EBADF, None), ("close", 0, None)]
    if how == "plain":  # else the program may end before the kernel has seen the last one
        assert others[2:] == [("read", -errno.ECANCELED, "pipe")]
    unheard = _rows(trace, "flags, dur", "size = 55")
    assert [flags for flags, _ in unheard] == [ASYNC | UNFINISHED]
    assert set(_rows(trace, "flags", "size <> 55")) == {(ASYNC,)}


def test_what_does_not_return(traced_run: TracedRun, ring_program: Path) -> None:
    with traced_run.daemon():
        process = traced_run.start(ring_program, "plain", "stay", stdout=subprocess.PIPE)
        assert process.stdout
        assert process.stdout.readline() == b"waiting\n"
    process.kill()
    process.wait(10)
    process.stdout.close()
    rows = _rows(traced_run.trace(), "kind, flags, dur > 0", "size = 4321")
    assert rows == [("pipe", ASYNC | UNFINISHED, True)]


def test_fio(traced_run: TracedRun) -> None:
    job = [
        "--name=j",
        "--ioengine=io_uring",
        "--iodepth=16",
        "--rw=randrw",
        "--bs=4k",
        "--size=4m",
        "--thread",
        "--numjobs=2",
        "--filename_format=fio.$jobnum",
        "--fallocate=none",
        "--output=fio.log",
    ]
    with traced_run.daemon():
        traced_run.run("fio", *job)
    trace = traced_run.trace()
    rows = _rows(trace, "size, ret, pos", "path LIKE '%/fio._'")
    assert [row[:2] for row in rows] == [(4096, 4096)] * 2048
    assert sorted(row[2] for row in rows) == sorted([*range(0, 4 << 20, 4096)] * 2)
