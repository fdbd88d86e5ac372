"""Kernel functions on a kernel without probes on them: its tracepoints stand in, exactly.

The tests of function probes are in tests/vm, which boots kernels that have them. Names of
tracepoints, ``group:event``, mean the same on every kernel.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Iterator

import pytest
from kernel.images import mounted
from kernel.tracing import UNFINISHED, Trace, TracedRun, traced_names

from datacrumbs.probes import model

pytestmark = pytest.mark.root

ASYNC = 4
WRITES, BYTES = 23, 4097
SPLIT = WRITES - 1 + WRITES  # all but the last page hold the end of one write and begin another
WRITER = f"""
import os, sys
fd = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR)
for i in range({WRITES}): os.write(fd, bytes({BYTES}))
if "sync" in sys.argv: os.fsync(fd)
os.close(fd)
"""


def kernel(*names: str) -> model.KernelLayer:
    functions = [model.KernelFunction(name=name) for name in names]
    return model.KernelLayer(name="kernel", functions=functions)


def system_calls() -> model.SyscallLayer:
    return model.SyscallLayer(name="syscall", functions=traced_names())


@pytest.fixture
def ext4_run(traced_run: TracedRun) -> Iterator[TracedRun]:
    """A run with an ext4 file system of its own at ``work/mnt``."""
    with mounted("ext4", traced_run.work / "mnt", traced_run.user):
        yield traced_run


def traced(run: TracedRun, *names: str, arguments: tuple[str, ...] = ("sync",)) -> Trace:
    """The trace of `WRITER` on a new file of the run's file system."""
    with run.daemon(system_calls(), kernel(*names)):
        run.python(WRITER, "mnt/out", *arguments)
    return run.trace()


def on_out(run: TracedRun) -> str:
    return f"path = '{run.work}/mnt/out'"


def test_functions_become_their_tracepoints_with_exact_counts(ext4_run: TracedRun) -> None:
    names = ("ext4_sync_file", "ext4_da_write_begin", "ext4_writepages", "filemap_add_folio")
    trace = traced(ext4_run, *names)
    found = dict(
        trace.sql(
            "SELECT name, count(*) FROM calls JOIN functions USING (name) "
            f"WHERE functions.kind = 'kernel' AND {on_out(ext4_run)} GROUP BY name"
        )
    )
    pages = -(-WRITES * BYTES // os.sysconf("SC_PAGESIZE"))
    assert found["ext4_sync_file"] == 1
    assert found["ext4_writepages"] == 1
    # a kernel with large folios adds fewer of them, and takes a write in one piece
    assert found["ext4_da_write_begin"] in (WRITES, WRITES + pages - 1)
    assert 1 <= found["filemap_add_folio"] <= pages
    mechanisms = {(m["layer"], m["mechanism"]): m["functions"] for m in _mechanisms(ext4_run)}
    assert mechanisms["kernel", "tracepoint"] == len(names)


def _mechanisms(run: TracedRun) -> list[dict[str, object]]:
    return list(run.info()["mechanisms"])


def test_pieces_of_a_write_have_its_offsets_and_add_up(ext4_run: TracedRun) -> None:
    trace = traced(ext4_run, "ext4:ext4_da_write_end")
    rows = trace.calls("pos, size, dur", f"name = 'ext4:ext4_da_write_end' AND {on_out(ext4_run)}")
    assert sum(size for _, size, _ in rows) == WRITES * BYTES
    ends = [pos + size for pos, size, _ in rows]
    assert [pos for pos, *_ in rows] == [0, *ends[:-1]]
    assert {dur for *_, dur in rows} == {0}


def test_calls_nest_in_the_system_call_that_made_them(ext4_run: TracedRun) -> None:
    names = ("ext4_sync_file", "ext4_writepages", "ext4_da_write_begin", "block:block_bio_queue")
    trace = traced(ext4_run, *names)
    outside = """
        SELECT inner_.name FROM calls inner_ JOIN functions f USING (name)
        WHERE f.kind = 'kernel' AND NOT EXISTS (
            SELECT 1 FROM calls o WHERE o.name = ? AND o.tid = inner_.tid
            AND o.ts <= inner_.ts AND inner_.ts + inner_.dur <= o.ts + o.dur)
        AND inner_.name = ?"""
    for inner, outer in (
        ("ext4_da_write_begin", "write"),
        ("ext4_sync_file", "fsync"),
        ("ext4_writepages", "ext4_sync_file"),
    ):
        assert trace.sql(outside, outer, inner) == [], (inner, outer)
    queued = f"name = 'block:block_bio_queue' AND {on_out(ext4_run)}"
    ((bytes_queued,),) = trace.sql(f"SELECT sum(size) FROM calls WHERE {queued}")
    page = os.sysconf("SC_PAGESIZE")
    assert bytes_queued == -(-WRITES * BYTES // page) * page


def test_requests_of_the_device_are_linked_to_the_file(ext4_run: TracedRun) -> None:
    trace = traced(ext4_run, "block:block_rq", "jbd2_journal_commit_transaction")
    rows = trace.calls(
        "pos, size, ret, flags, dur, pid",
        f"name = 'block:block_rq:write' AND {on_out(ext4_run)}",
    )
    page = os.sysconf("SC_PAGESIZE")
    assert sum(size for _, size, *_ in rows) == -(-WRITES * BYTES // page) * page
    assert [(ret, flags) for _, _, ret, flags, *_ in rows] == [(row[1], ASYNC) for row in rows]
    assert rows[0][0] == 0 and min(dur for *_, dur, _ in rows) > 0
    ((pid,),) = trace.sql("SELECT DISTINCT pid FROM calls WHERE name = 'fsync'")
    assert {row[-1] for row in rows} == {pid}
    find = ["findmnt", "-no", "SOURCE", ext4_run.work / "mnt"]
    device = subprocess.run(find, check=True, capture_output=True, text=True).stdout.strip()
    # the journal's thread, for the file system as a whole
    others = trace.sql(
        "SELECT DISTINCT path, kind, flags FROM calls WHERE name LIKE 'block:block_rq:%' "
        f"AND NOT {on_out(ext4_run)}"
    )
    assert others == [(device, "block", ASYNC)]
    commits = trace.calls("path, flags, pid", "name = 'jbd2_journal_commit_transaction'")
    assert commits and set(commits) == {(device, ASYNC, 0)}


def test_what_kernel_threads_write_later_is_linked_to_who_dirtied_it(ext4_run: TracedRun) -> None:
    names = ("ext4_writepages", "writeback:writeback_single_inode", "block:block_rq")
    with ext4_run.daemon(system_calls(), kernel(*names)):
        ext4_run.python(WRITER, "mnt/out")
        subprocess.run(["sync"], check=True)  # root's: the flusher thread does the work
    trace = ext4_run.trace()
    rows = trace.sql(
        "SELECT name, flags, pid, count(*), sum(size) FILTER (size > 0) FROM calls "
        f"WHERE {on_out(ext4_run)} AND (name LIKE '%:%' OR name = 'ext4_writepages') "
        "GROUP BY ALL ORDER BY name"
    )
    ((pid,),) = trace.sql("SELECT DISTINCT pid FROM calls WHERE name = 'write'")
    assert {(flags, who) for _, flags, who, *_ in rows} == {(ASYNC, pid)}
    page = os.sysconf("SC_PAGESIZE")
    moved = {name: size for name, *_, size in rows}
    assert moved["block:block_rq:write"] == -(-WRITES * BYTES // page) * page
    counts = {name: count for name, _, _, count, _ in rows}
    assert counts["writeback:writeback_single_inode"] >= 1 and counts["ext4_writepages"] >= 1


def test_other_users_writing_to_the_same_device_are_not_recorded(
    ext4_run: TracedRun, other_user: pwd.struct_passwd
) -> None:
    (ext4_run.work / "mnt").chmod(0o777)
    with ext4_run.daemon(kernel("ext4_writepages", "ext4_da_write_begin", "filemap_add_folio")):
        ext4_run.run("dd", "if=/dev/zero", "of=mnt/own", "bs=4096", "count=7", "conv=fsync")
        ext4_run.run(
            *("dd", "if=/dev/zero", "of=mnt/theirs", "bs=4096", "count=9", "conv=fsync"),
            user=other_user,
        )
        subprocess.run(["sync"], check=True)
    trace = ext4_run.trace()
    paths = {path for (path,) in trace.sql("SELECT DISTINCT path FROM calls")}
    assert f"{ext4_run.work}/mnt/own" in paths
    assert f"{ext4_run.work}/mnt/theirs" not in paths
    assert trace.sql("SELECT path FROM files WHERE path LIKE '%theirs%'") == []


def test_xfs_functions_have_files_though_their_tracepoints_name_the_inode(
    traced_run: TracedRun,
) -> None:
    with mounted("xfs", traced_run.work / "mnt", traced_run.user):
        trace = traced(traced_run, "xfs:xfs_file_buffered_write", "xfs:xfs_file_fsync")
    rows = trace.sql(
        f"SELECT name, count(*), min(size), max(pos) FROM calls WHERE {on_out(traced_run)} "
        "AND name LIKE 'xfs:%' GROUP BY name ORDER BY name"
    )
    assert rows == [
        ("xfs:xfs_file_buffered_write", WRITES, BYTES, (WRITES - 1) * BYTES),
        ("xfs:xfs_file_fsync", 1, -1, -1),
    ]


def test_calls_whose_end_the_kernel_does_not_tell_are_counted_as_lost(ext4_run: TracedRun) -> None:
    unbalanced = """
from datacrumbs.tracer import points
points.STANDS_FOR["unbalanced"] = ("ext4_da_write_begin", "ext4_unlink_exit")
from datacrumbs.cli.daemon import main
main()
"""
    program = (sys.executable, "-P", "-c", unbalanced)
    with ext4_run.daemon(system_calls(), kernel("unbalanced"), program=program):
        ext4_run.python(
            "import os\n"
            "fd = os.open('mnt/out', os.O_CREAT | os.O_WRONLY)\n"
            "for i in range(5): os.write(fd, bytes(4096))\n"
        )
    trace = ext4_run.trace(lost=4)  # the system call after each says that it is over
    assert trace.calls("flags", "name = 'unbalanced'") == [(UNFINISHED,)]


def test_what_has_no_tracepoint_is_named_and_the_rest_goes_on(ext4_run: TracedRun) -> None:
    trace = traced(ext4_run, "no_such_function", "ext4:no_such_event", "ext4:ext4_sync_file")
    skipped = {row["name"]: row["reason"] for row in ext4_run.info()["skipped"]}
    assert set(skipped) == {"no_such_function", "ext4:no_such_event"}
    assert skipped["ext4:no_such_event"] == "this kernel has no such tracepoint"
    assert trace.sql("SELECT count(*) FROM calls WHERE name = 'ext4:ext4_sync_file'") == [(1,)]
