"""NFS on stock kernels: a client and its server on one machine, exact counts by each mechanism."""

from __future__ import annotations

import pytest
from kernel.tracing import UNFINISHED, Trace
from vm.conftest import NONE, Booted
from vm.test_kernels import ASYNC, BYTES, WRITES, traces

pytestmark = [pytest.mark.root, pytest.mark.timeout(700)]

REQUEST_BYTES = 16384
"""What guest.sh mounts with."""

REQUESTS = [
    (offset, min(REQUEST_BYTES, WRITES * BYTES - offset))
    for offset in range(0, WRITES * BYTES, REQUEST_BYTES)
]
"""Offset and size of each request for the whole file."""


def user_of(trace: Trace, path: str, call: str) -> int:
    """The process that made the system call on the file."""
    ((pid,),) = trace.sql(
        "SELECT DISTINCT pid FROM calls WHERE path = ? AND name = ? AND fd >= 0", path, call
    )
    return int(pid)


@pytest.mark.parametrize("kind", ["read", "write"])
def test_requests_to_the_server_carry_each_byte_once(booted: Booted, kind: str) -> None:
    """Whoever sends them; they end in a kernel thread. Of a file's last page, some
    kernels ask for more than there is."""
    for mechanism in booted.runs:
        trace = booted.trace(mechanism)
        for path in (f"/mnt/nfs/{mechanism}", f"/mnt/nfs/{mechanism}-later"):
            if (kind, path[-6:]) == ("read", "-later"):
                continue
            where = f"name = 'nfs:nfs_rq:{kind}' AND path = '{path}'"
            asked = "size" if kind == "write" else f"least(size, {WRITES * BYTES} - pos)"
            rows = trace.calls(f"pos, {asked}, ret, flags, pid", where)
            pid = user_of(trace, path, kind)
            expected = {(offset, size, size, ASYNC, pid) for offset, size in REQUESTS}
            unseen = expected - set(rows)
            assert len(unseen) <= booted.missed(mechanism), (mechanism, path, rows)
            # of some, the end alone was missed
            began = {(offset, size, 0, ASYNC | UNFINISHED, pid) for offset, size, *_ in unseen}
            assert set(rows) - expected <= began, (mechanism, path, rows)
            assert len(set(rows)) == len(rows), (mechanism, path, rows)
            assert all(dur > 0 for (dur,) in trace.calls("dur", where))


def test_what_was_written_is_committed(booted: Booted) -> None:
    """What an fsync() sends may be stable at once, and need no commit: the client decides."""
    for mechanism in booted.runs:
        trace = booted.trace(mechanism)
        for path, certain in ((f"/mnt/nfs/{mechanism}", 0), (f"/mnt/nfs/{mechanism}-later", 1)):
            rows = trace.calls("ret, flags, pid", f"name = 'nfs:nfs_rq:commit' AND path = '{path}'")
            writer = user_of(trace, path, "write")
            assert len(rows) + booted.missed(mechanism) >= certain, (mechanism, path)
            ends = {(0, ASYNC, writer)}
            if booted.missed(mechanism):
                ends |= {(0, ASYNC | UNFINISHED, writer)}
            assert set(rows) <= ends, (mechanism, path, rows)


def test_each_request_is_one_remote_procedure(booted: Booted) -> None:
    """For the same thread, inside the request. (A kernel thread outside of any call that is
    captured sends the commits.)"""
    for mechanism in booted.runs:
        rows = booted.trace(mechanism).sql(
            "SELECT count(DISTINCT r.ts), count(DISTINCT t.ts) FROM calls r, calls t "
            "WHERE r.name IN ('nfs:nfs_rq:read', 'nfs:nfs_rq:write') AND r.path = ? "
            "AND t.name = 'sunrpc:rpc_task' AND t.path = r.path AND r.tid = t.tid "
            "AND r.ts <= t.ts AND t.ts + t.dur <= r.ts + r.dur",
            f"/mnt/nfs/{mechanism}",
        )
        ((requests, procedures),) = rows
        assert requests == procedures, mechanism
        assert 0 <= 2 * len(REQUESTS) - requests <= booted.missed(mechanism), mechanism


def test_a_read_from_the_server_goes_down_through_all_layers(booted: Booted) -> None:
    for mechanism, trace in traces(booted):
        path = f"/mnt/nfs/{mechanism}"
        rows = trace.calls("size, ret, pos, flags", f"name = 'nfs_file_read' AND path = '{path}'")
        assert rows == [(BYTES, BYTES, i * BYTES, 0) for i in range(WRITES)], mechanism
        for outer, inner in (
            ("read", "nfs_file_read"),
            ("nfs_file_read", "nfs_readahead"),
            ("nfs_readahead", "nfs_initiate_pgio"),
            ("nfs_initiate_pgio", "rpc_run_task"),
        ):
            assert _pairs(trace, path, outer, inner) >= 1, (mechanism, outer, inner)
        assert _pairs(trace, path, "nfs_readahead", "nfs_initiate_pgio") == len(REQUESTS), mechanism


def test_an_fsync_sends_what_is_dirty(booted: Booted) -> None:
    for mechanism, trace in traces(booted):
        path = f"/mnt/nfs/{mechanism}"
        for outer, inner in (("fsync", "nfs_file_fsync"), ("nfs_file_fsync", "nfs_writepages")):
            assert _pairs(trace, path, outer, inner) == 1, (mechanism, outer, inner)
        assert _pairs(trace, path, "nfs_writepages", "nfs_initiate_pgio") == len(REQUESTS)


def _pairs(trace: Trace, path: str, outer: str, inner: str) -> int:
    """How many calls of ``inner`` are inside one of ``outer``, both on the file.

    A call that has no file of its own (``rpc_run_task``) counts, too.
    """
    ((count,),) = trace.sql(
        "SELECT count(*) FROM calls o, calls i WHERE o.name = ? AND i.name = ? AND o.path = ? "
        "AND coalesce(i.path, o.path) = o.path AND o.tid = i.tid AND o.flags & 4 = 0 "
        "AND o.ts <= i.ts AND i.ts + i.dur <= o.ts + o.dur",
        *(outer, inner, path),
    )
    return int(count)


def test_what_kernel_threads_send_later_is_linked_to_who_wrote_it(booted: Booted) -> None:
    """The writer held the file open, so that not its close sent the data."""
    for mechanism, trace in traces(booted):
        path = f"/mnt/nfs/{mechanism}-later"
        pid = user_of(trace, path, "write")
        for name in ("nfs_writepages", "nfs_initiate_pgio"):
            rows = trace.calls("flags, pid", f"name = '{name}' AND path = '{path}'")
            assert rows and set(rows) == {(ASYNC, pid)}, (mechanism, name)


def test_without_probes_on_functions_tracepoints_stand_for_those_of_nfs(booted: Booted) -> None:
    if NONE not in booted.runs:
        return
    path = f"/mnt/nfs/{NONE}"
    rows = booted.trace(NONE).calls(
        "name, ret, flags", f"name IN ('nfs_file_fsync', 'nfs_readahead') AND path = '{path}'"
    )
    assert rows[0] == ("nfs_file_fsync", 0, 0)
    assert {name for name, *_ in rows[1:]} == {"nfs_readahead"}


def test_the_example_finds_all_layers(booted: Booted) -> None:
    names = booted.example
    assert {"read", "write", "fsync", "openat"} <= set(names["syscall"])
    expected = {"nfs_file_read", "nfs_file_write", "nfs_file_fsync", "nfs4_file_open"}
    expected |= {"nfs_writepages", "nfs_readahead", "nfs_initiate_pgio", "nfs_getattr"}
    assert expected <= set(names["nfs"])
    assert names["rpc"] == ["rpc_run_task", "rpc_wait_bit_killable"]
    assert names["server"] == ["nfs:nfs_rq"]
