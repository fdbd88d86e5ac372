"""Kernel functions on the stock kernels that sites run: exact counts, by each mechanism."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from kernel.test_io_uring import OPERATIONS, operations_on
from kernel.tracing import Trace, TracedRun
from vm.conftest import (
    BUSY_CALLS,
    BUSY_THREADS,
    CROWD_CALLS,
    CROWD_THREADS,
    FUNCTIONS,
    MISSING,
    NONE,
    OFFERS,
    POINTS,
    PROFILED,
    PROFILED_BY_USER,
    SYSTEM_CALLS,
    WITH_ARGUMENTS,
    Booted,
    missed,
)

pytestmark = [pytest.mark.root, pytest.mark.timeout(700)]

ASYNC = 4
WRITES, BYTES, PAGE = 23, 4097, 4096
ON_DISK = -(-WRITES * BYTES // PAGE) * PAGE

EVERY_WRITE = {
    "ext4": ("ksys_write", "vfs_write", "ext4_file_write_iter", "ext4_buffered_write_iter"),
    "xfs": ("ksys_write", "vfs_write", "xfs_file_write_iter", "iomap_file_buffered_write"),
    "nfs": ("ksys_write", "vfs_write", "nfs_file_write"),
}
"""From the system call down: called once for each write, each by the one before it."""

EVERY_FSYNC = {"ext4": "ext4_sync_file", "xfs": "xfs_file_fsync", "nfs": "nfs_file_fsync"}


def traces(booted: Booted) -> Iterator[tuple[str, Trace]]:
    """The run of each mechanism with probes on functions."""
    for mechanism in booted.runs:
        if mechanism != NONE:
            yield mechanism, booted.trace(mechanism)


def test_the_first_mechanism_is_the_one_the_kernel_offers(booted: Booted) -> None:
    for mechanism, run in booted.runs.items():
        rows = run.info()["mechanisms"]
        found = {(m["layer"], m["mechanism"]): m["functions"] for m in rows}
        calls = [(m["mechanism"], m["functions"]) for m in rows if m["kind"] == "syscalls"]
        assert [name for name, _ in calls] == [SYSTEM_CALLS[booted.kernel]]
        assert calls[0][1] > 100
        if mechanism != NONE:
            assert found["kernel", mechanism] == len(FUNCTIONS) + 1
            assert found["kernel", NONE] == len(POINTS)
            assert found["sums", mechanism] == 1


def test_more_busy_threads_than_cpus_lose_no_call_uncounted(booted: Booted) -> None:
    """Exact counts of what the system calls' programs saw, and of sums over the same calls."""
    for mechanism in booted.runs:
        trace, missed = booted.trace(mechanism), booted.missed(mechanism)
        ((calls, threads),) = trace.sql(
            "SELECT count(*), count(DISTINCT tid) FROM calls "
            "WHERE name = 'pread64' AND path = '/dev/zero' AND ret = 1"
        )
        assert threads == BUSY_THREADS, mechanism
        assert 0 <= BUSY_THREADS * BUSY_CALLS - calls <= missed, mechanism
        assert _summed(trace, PROFILED_BY_USER) == BUSY_CALLS, mechanism
        if mechanism != NONE:
            ((reads,),) = trace.sql("SELECT count(*) FROM calls WHERE name IN ('read', 'pread64')")
            assert abs(_summed(trace, PROFILED) - reads) <= missed, mechanism


def test_a_crowd_s_calls_of_a_user_function_are_all_there(booted: Booted) -> None:
    """Of more threads than CPUs and of short ones, while others map memory."""
    _lost_none(booted.crowd, missed(booted.kernel, booted.crowd))


def test_nor_is_one_lost_where_the_kernel_preempts_our_programs(preempted: TracedRun) -> None:
    _lost_none(preempted)


def _lost_none(crowd: TracedRun, ends_missed: int = 0) -> None:
    """``ends_missed``: how often 7.2 did not tell that a thread ended, which is no call."""
    made = int((crowd.root / "made").read_text())
    assert made > CROWD_THREADS * CROWD_CALLS
    trace = crowd.trace(lost=ends_missed)
    assert trace.sql("SELECT name, count(*) FROM calls GROUP BY name") == [("step", made)]


def _summed(trace: Trace, name: str) -> int:
    """Calls of a function in profile mode."""
    ((count,),) = trace.sql(
        "SELECT sum(count)::BIGINT FROM intervals JOIN functions USING (func) WHERE name = ?", name
    )
    return int(count)


def test_every_call_is_there_once(booted: Booted) -> None:
    for mechanism, trace in traces(booted):
        for fs, functions in EVERY_WRITE.items():
            for name in (functions[1], functions[2], EVERY_FSYNC[fs]):
                where = f"name = '{name}' AND path = '/mnt/{fs}/{mechanism}'"
                rows = trace.calls("size, ret, pos, flags & 4", where)
                if name == EVERY_FSYNC[fs]:
                    assert [row[1:2] for row in rows] == [(0,)], (mechanism, name)
                    continue
                expected = [(BYTES, BYTES, i * BYTES, 0) for i in range(WRITES)]
                assert rows == expected, (mechanism, name)


def test_calls_nest_from_the_system_call_to_the_file_system(booted: Booted) -> None:
    for mechanism, trace in traces(booted):
        for fs, functions in EVERY_WRITE.items():
            chain = ("write", *functions)
            for outer, inner in pairwise(chain):
                assert _inside(trace, fs, mechanism, outer, inner) == WRITES, (outer, inner)


def _inside(trace: Trace, fs: str, mechanism: str, outer: str, inner: str) -> int:
    """How many calls of ``inner`` are inside one of ``outer``, in a write to the file."""
    ((count,),) = trace.sql(
        "SELECT count(*) FROM calls w, calls o, calls i "
        "WHERE w.name = 'write' AND w.path = ? AND o.name = ? AND i.name = ? "
        "AND w.tid = o.tid AND w.ts <= o.ts AND o.ts + o.dur <= w.ts + w.dur "
        "AND o.tid = i.tid AND o.ts <= i.ts AND i.ts + i.dur <= o.ts + o.dur",
        *(f"/mnt/{fs}/{mechanism}", outer, inner),
    )
    return int(count)


def test_an_fsync_leads_down_to_the_block_layer(booted: Booted) -> None:
    for mechanism, trace in traces(booted):
        path = f"/mnt/ext4/{mechanism}"
        for inner in ("ext4_sync_file", "do_writepages", "ext4_writepages", "blk_mq_submit_bio"):
            ((count,),) = trace.sql(
                "SELECT count(*) FROM calls s, calls i WHERE s.name = 'fsync' AND s.path = ? "
                "AND i.name = ? AND i.path = ? AND s.tid = i.tid "
                "AND s.ts <= i.ts AND i.ts + i.dur <= s.ts + s.dur",
                *(path, inner, path),
            )
            assert count >= 1, (mechanism, inner)


def test_requests_carry_all_bytes_of_the_file(booted: Booted) -> None:
    for mechanism in booted.runs:
        trace = booted.trace(mechanism)
        for path in (f"/mnt/ext4/{mechanism}", f"/mnt/ext4/{mechanism}-later"):
            where = f"name = 'block:block_rq:write' AND path = '{path}'"
            rows = trace.calls("size, flags, pid, ret", where)
            assert sum(size for size, *_ in rows) == ON_DISK, mechanism
            assert {(flags, ret == size) for size, flags, _, ret in rows} == {(ASYNC, True)}
            writers = trace.sql("SELECT DISTINCT pid FROM calls WHERE path = ? AND fd >= 0", path)
            assert {(row[2],) for row in rows} == set(writers)


def test_work_of_kernel_threads_is_linked_to_who_dirtied_the_file(booted: Booted) -> None:
    for mechanism, trace in traces(booted):
        path = f"/mnt/ext4/{mechanism}-later"
        ((pid,),) = trace.sql("SELECT DISTINCT pid FROM calls WHERE path = ? AND fd >= 0", path)
        rows = trace.calls("flags, pid", f"name = 'ext4_writepages' AND path = '{path}'")
        assert rows and set(rows) == {(ASYNC, pid)}, mechanism


def test_operations_of_io_uring(booted: Booted) -> None:
    for mechanism in booted.runs:
        assert operations_on(booted.trace(mechanism), "/mnt/ext4/ring.out") == OPERATIONS, mechanism


def test_arguments_are_kept(booted: Booted) -> None:
    for mechanism, trace in traces(booted):
        rows = trace.sql(
            "SELECT a.name, a.value, count(*) FROM arguments a JOIN calls c USING (ts, tid) "
            "WHERE c.name = ? AND c.flags & 8 > 0 AND c.path LIKE '/mnt/%' "
            "GROUP BY ALL ORDER BY a.name",
            WITH_ARGUMENTS[0],
        )
        assert rows == [("count", BYTES, 5 * WRITES)], mechanism


def test_functions_that_cannot_be_probed_are_named_and_the_rest_goes_on(booted: Booted) -> None:
    for mechanism, run in booted.runs.items():
        rows = [row for row in run.info()["skipped"] if row["layer"] == "kernel"]
        skipped = {row["name"]: row["reason"] for row in rows}
        if mechanism != NONE:
            assert set(skipped) == MISSING
            assert skipped["no_such_function"] == "this kernel has no such function"
            assert "functions of this kernel have this name" in skipped["type_show"]


def test_a_kernel_without_probes_on_functions_uses_tracepoints(booted: Booted) -> None:
    if NONE not in OFFERS[booted.kernel]:
        return
    run = booted.runs[NONE]
    rows = booted.trace(NONE).calls(
        "ret, flags", f"name = 'ext4_sync_file' AND path = '/mnt/ext4/{NONE}'"
    )
    assert rows == [(0, 0)]
    skipped = {row["name"] for row in run.info()["skipped"]}
    assert "vfs_write" in skipped and "ext4_sync_file" not in skipped
