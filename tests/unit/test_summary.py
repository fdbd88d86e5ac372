"""What a report says, for traces whose answers are known beforehand."""

from __future__ import annotations

import io
import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_traces import Call, File, write_host

from datacrumbs.analysis.model import FileSummary, FunctionSummary, Summary
from datacrumbs.analysis.quantiles import ERROR_BOUND
from datacrumbs.analysis.summary import summarise
from datacrumbs.report.text import write_text
from datacrumbs.trace.clocks import ClockPair
from datacrumbs.trace.reader import open_trace
from datacrumbs.trace.runfile import Counts, LostBy, Skipped, State

UNFINISHED, PEER = 1, 2
SYSCALLS = ("read", "write", "pread64", "openat", "copy_file_range", "epoll_wait", "futex")


def function(summary: Summary, name: str) -> FunctionSummary:
    (found,) = [f for f in summary.functions if f.name == name]
    return found


def file(summary: Summary, path: str) -> FileSummary:
    (found,) = [f for f in summary.files if f.path == path]
    return found


def test_23_writes_of_4097_bytes(tmp_path: Path) -> None:
    calls = [
        Call(func="write", ts=1000 * n, dur=100 + n, ret=4097, file=7, offset=4097 * n)
        for n in range(1, 24)
    ]
    write_host(tmp_path, calls, files=[File(file=7, path="/data/out")], functions=SYSCALLS)
    summary = summarise(open_trace(tmp_path))
    time_ns = sum(100 + n for n in range(1, 24))
    write = function(summary, "write")
    assert (write.layer, write.count, write.errors, write.unfinished) == ("syscalls", 23, 0, 0)
    assert (write.bytes, write.time_ns, write.max_ns) == (23 * 4097, time_ns, 123)
    assert write.mean_ns == round(time_ns / 23)
    assert write.bytes_per_s == round(23 * 4097 * 1e9 / time_ns)
    assert abs(write.p50_ns - 112) <= 112 * ERROR_BOUND
    assert abs(write.p99_ns - 123) <= 123 * ERROR_BOUND
    assert summary.files == [
        FileSummary(
            path="/data/out",
            kind="regular",
            fstype="ext4",
            calls=23,
            reads=0,
            writes=23,
            opens=0,
            errors=0,
            unfinished=0,
            bytes_read=0,
            bytes_written=23 * 4097,
            time_ns=time_ns,
        )
    ]
    (process,) = summary.processes
    assert (process.pid, process.comm, process.exe) == (100, "app", "/bin/app")
    assert (process.count, process.threads, process.io_ns) == (23, 1, time_ns)
    assert (process.bytes_read, process.bytes_written) == (0, 23 * 4097)
    (size,) = summary.writes.sizes
    assert (size.from_bytes, size.to_bytes, size.count, size.share) == (4096, 8191, 23, 1.0)
    assert (summary.writes.compared, summary.writes.consecutive) == (22, 22)
    assert (summary.events, summary.lost, summary.state) == (23, 0, State.COMPLETE)
    assert (summary.run_id, summary.user, summary.wall_ns) == ("4711", "alice", 10_000_000_000)
    assert summary.unoverlapped_share == time_ns / 10_000_000_000


def test_calls_of_two_layers_count_once(tmp_path: Path) -> None:
    """``fread`` from 100 to 1100 with two ``read`` of 300 ns and 4096 bytes in it."""
    calls = [
        Call(func="fread", ts=100, dur=1000, ret=50),
        Call(func="read", ts=200, dur=300, ret=4096, file=7, offset=0),
        Call(func="read", ts=600, dur=300, ret=4096, file=7, offset=4096),
    ]
    write_host(tmp_path, calls, files=[File(file=7, path="/data/in")])
    summary = summarise(open_trace(tmp_path))
    assert (summary.io_ns, summary.unoverlapped_ns) == (1000, 1000)
    assert summary.processes[0].io_ns == 1000
    assert {row.layer: row.io_ns for row in summary.layers} == {
        "syscalls": 600,
        "libc": 1000,
        "app": 0,
    }
    assert function(summary, "fread").bytes == 50
    assert summary.bytes_read == 8192
    assert summary.reads.count == 2
    assert file(summary, "/data/in").bytes_read == 8192


def test_bytes_of_user_functions_count_where_no_system_call_does(tmp_path: Path) -> None:
    calls = [Call(func="fread", ts=100, dur=10, ret=50)]
    write_host(tmp_path, calls, functions=("fread", "write"))
    summary = summarise(open_trace(tmp_path))
    assert (summary.bytes_read, summary.reads.count) == (50, 1)


def test_waiting_and_futexes_are_no_io(tmp_path: Path) -> None:
    calls = [
        Call(func="epoll_wait", ts=0, dur=5000, file=9),
        Call(func="futex", ts=6000, dur=700),
        Call(func="read", ts=7000, dur=30, ret=1),
    ]
    write_host(tmp_path, calls, files=[File(file=9, path="anon:[eventpoll]", kind="anon")])
    summary = summarise(open_trace(tmp_path))
    assert (summary.io_ns, summary.unoverlapped_ns, summary.wait_ns) == (30, 30, 5000)
    assert summary.processes[0].wait_ns == 5000
    assert function(summary, "epoll_wait").time_ns == 5000
    assert function(summary, "futex").time_ns == 700
    assert summary.files == []


def test_unfinished_and_failed_calls(tmp_path: Path) -> None:
    calls = [
        Call(func="read", ts=10, dur=50, ret=5, file=7),
        Call(func="read", ts=100, dur=20, ret=-11, file=7),
        Call(func="read", ts=200, dur=90_000, file=7, flags=UNFINISHED),
        Call(func="solve", ts=300, dur=10, ret=-1),
    ]
    write_host(tmp_path, calls, files=[File(file=7, path="/fifo", kind="pipe", fstype=None)])
    summary = summarise(open_trace(tmp_path))
    read = function(summary, "read")
    assert (read.count, read.errors, read.unfinished, read.bytes) == (3, 1, 1, 5)
    assert (read.time_ns, read.mean_ns, read.max_ns) == (70, 35, 50)
    assert read.unfinished_ns == 90_000
    assert summary.unfinished == 1
    assert (summary.io_ns, function(summary, "solve").errors) == (80, 0)
    found = file(summary, "/fifo")
    assert (found.reads, found.errors, found.unfinished, found.time_ns) == (3, 1, 1, 70)
    assert [(row.fstype, row.reads) for row in summary.filesystems] == [("pipe", 3)]


def test_a_copy_reads_one_file_and_writes_the_other(tmp_path: Path) -> None:
    """Two copies begin in the same nanosecond on two threads; a rename has a peer too."""
    copies = [
        Call(func="copy_file_range", ts=50, dur=9, ret=100, file=1, tid=100, flags=PEER),
        Call(func="copy_file_range", ts=50, dur=8, ret=30, file=2, tid=101, flags=PEER),
        Call(func="renameat", ts=70, dur=5, ret=0, file=1, flags=PEER),
    ]
    files = [File(file=n, path=f"/f{n}") for n in (1, 2, 3, 4)]
    peers = [(50, 101, 4), (50, 100, 3), (70, 100, 4)]
    write_host(tmp_path, copies, files=files, peers=peers)
    summary = summarise(open_trace(tmp_path))
    moved = {f.path: (f.reads, f.bytes_read, f.writes, f.bytes_written) for f in summary.files}
    assert moved == {
        "/f1": (1, 100, 0, 0),
        "/f2": (1, 30, 0, 0),
        "/f3": (0, 0, 1, 100),
        "/f4": (0, 0, 1, 30),
    }
    assert (summary.bytes_read, summary.bytes_written) == (130, 130)
    assert (summary.reads.count, summary.writes.count) == (2, 2)


def test_places_in_a_file_are_compared_per_process(tmp_path: Path) -> None:
    """Process 100 reads 0, 10, 20, then back at 5, then 40; process 200 is at 1000 meanwhile."""
    offsets = [0, 10, 20, 5, 40]
    calls = [
        Call(func="pread64", ts=100 * n, dur=1, ret=10, file=1, offset=offset)
        for n, offset in enumerate(offsets)
    ]
    calls += [
        Call(func="pread64", ts=50, dur=1, ret=7, file=1, offset=1000, pid=200, tid=200),
        Call(func="pread64", ts=150, dur=1, ret=7, file=1, offset=1007, pid=200, tid=200),
    ]
    write_host(tmp_path, calls, files=[File(file=1, path="/f")], segment_events=2)
    reads = summarise(open_trace(tmp_path)).reads
    assert (reads.compared, reads.consecutive, reads.sequential) == (5, 3, 4)


def test_a_pid_used_twice_is_two_processes(tmp_path: Path) -> None:
    processes = [
        (10, 100, "start", "first"),
        (20, 100, "exec", "renamed"),
        (300, 100, "exit", "renamed"),
        (500, 100, "fork", "second"),
        (5, 200, "start", "other"),
    ]
    calls = [
        Call(func="read", ts=30, dur=100, ret=1),
        Call(func="read", ts=510, dur=7, ret=2),
        Call(func="read", ts=520, dur=7, ret=2),
        Call(func="read", ts=400, dur=1, ret=4, pid=200, tid=200),
        Call(func="read", ts=400, dur=1, ret=8, pid=300, tid=300),
    ]
    write_host(tmp_path, calls, processes=processes)
    found = {(p.pid, p.comm): p.bytes_read for p in summarise(open_trace(tmp_path)).processes}
    assert found == {(100, "renamed"): 1, (100, "second"): 4, (200, "other"): 4, (300, ""): 8}


def test_files_of_one_path_are_one_line_and_unknown_ones_are_named(tmp_path: Path) -> None:
    """A path that was looked for, made, removed and made again; and a file without a row."""
    files = [
        File(file=1, path="/tmp/x", kind="name", fstype=None),
        File(file=2, path="/tmp/x"),
        File(file=3, path="/tmp/x"),
        File(file=4, path="/tmp/caf\\xe9", path_raw=b"/tmp/caf\xe9"),
        File(file=5, path="/tmp/caf\\xe9"),
        File(file=6, path="/never/called"),
    ]
    calls = [
        Call(func="openat", ts=100 * n, dur=1 << n, ret=3, file=key)
        for n, key in enumerate((1, 2, 3, 4, 5, 0xABC))
    ]
    write_host(tmp_path, calls, files=files)
    summary = summarise(open_trace(tmp_path))
    assert summary.files_total == 4
    found = file(summary, "/tmp/x")
    assert (found.opens, found.time_ns, found.kind, found.fstype) == (3, 7, "regular", "ext4")
    assert [f.time_ns for f in summary.files if f.path == "/tmp/caf\\xe9"] == [16, 8]
    assert file(summary, "<file abc>").kind == "unknown"
    systems = {row.fstype: row.files for row in summary.filesystems}
    assert systems == {"ext4": 3, "unknown": 1}


def test_functions_without_a_row_are_named_by_number(tmp_path: Path) -> None:
    write_host(tmp_path, [Call(func=999, ts=5, dur=6, ret=-3)])
    summary = summarise(open_trace(tmp_path))
    (found,) = summary.functions
    assert (found.layer, found.name, found.count, found.errors) == ("unknown", "function 999", 1, 0)
    assert [row.layer for row in summary.layers] == ["syscalls", "libc", "app", "unknown"]


def test_hosts_are_summed(tmp_path: Path) -> None:
    shared = File(file=1, path="/lustre/f", fstype="lustre")
    for n, host in enumerate(("n1", "n2", "n3"), 1):
        write_host(
            tmp_path,
            [Call(func="read", ts=100, dur=10 * n, ret=n, file=n)],
            host=host,
            files=[replace(shared, file=n)],
            started_ns=1_700_000_000_000_000_000 + n,
            counts=Counts(events=1, lost=n, filtered=2 * n),
            lost_by=LostBy(ring=n),
        )
    summary = summarise(open_trace(tmp_path))
    assert (summary.events, summary.lost, summary.filtered) == (3, 6, 12)
    assert summary.lost_by == LostBy(ring=6)
    assert [(h.host, h.io_ns, h.counts.lost) for h in summary.hosts] == [
        ("n1", 10, 1),
        ("n2", 20, 2),
        ("n3", 30, 3),
    ]
    read = function(summary, "read")
    assert (read.count, read.time_ns, read.max_ns, read.bytes) == (3, 60, 30, 6)
    assert abs(read.p50_ns - 20) <= 1
    assert (file(summary, "/lustre/f").reads, file(summary, "/lustre/f").bytes_read) == (3, 6)
    assert (summary.unoverlapped_ns, summary.io_ns) == (60, 60)
    assert summary.wall_ns == 10**10 - 1
    assert summary.host_wall_ns == 3 * 10**10 - 6
    assert len(summary.processes) == 3


def test_missing_hosts_and_clocks_are_told(tmp_path: Path) -> None:
    call = Call(func="write", ts=10, dur=5)
    steady = [ClockPair(t, 10**18 + t) for t in (0, 10**9, 2 * 10**9)]
    for host in ("n1", "n2"):
        write_host(tmp_path, [call], host=host, clocks=steady, nodes=["n1.site", "n2.site", "n3"])
    summary = summarise(open_trace(tmp_path))
    assert summary.missing_hosts == ["n3"]
    assert summary.hosts[0].clock_residual_ns == 0
    assert summary.notes == ["Nothing here from n3, which the job ran on too."]
    shutil.rmtree(tmp_path / "host=n2")
    stepped = [steady[0], ClockPair(10**9, 10**18 + 2 * 10**9), steady[2]]
    write_host(tmp_path, [call], host="n2", clocks=stepped)
    summary = summarise(open_trace(tmp_path))
    assert summary.hosts[1].clock_residual_ns == 10**9
    assert any("clock of n2 was set during the run" in note for note in summary.notes)


YEAR_NS = 365 * 24 * 3600 * 10**9


@pytest.mark.parametrize(
    ("late_ns", "said", "wall_s"),
    [
        (3 * YEAR_NS, "n2 began 1095 d 00 h after n1, when a host had ended", 20),
        (30 * 10**9, "n2 began 30.0 s after n1, when a host had ended", 20),
        (5 * 10**9, "", 25),
    ],
)
def test_clocks_that_cannot_be_right_are_told(
    tmp_path: Path, late_ns: int, said: str, wall_s: int
) -> None:
    _host_of_20_s(tmp_path, "n1", 0)
    _host_of_20_s(tmp_path, "n2", late_ns)
    summary = summarise(open_trace(tmp_path))
    assert summary.wall_ns == wall_s * 10**9
    assert summary.clocks_agree == (not said)
    assert [said in note for note in summary.notes] == [True] * bool(said)
    page = io.StringIO()
    write_text(summary, page, top=8)
    text = " ".join(page.getvalue().split())
    assert ("Clocks of the hosts DISAGREE." in text) == bool(said)


def _host_of_20_s(run: Path, host: str, late_ns: int, seconds: int = 20, **facts: Any) -> None:
    started_ns = 10**18 + late_ns
    write_host(
        run,
        [Call(func="write", ts=10**9, dur=5)],
        host=host,
        started_ns=started_ns,
        stopped_ns=started_ns + seconds * 10**9,
        clocks=[ClockPair(0, started_ns)],
        **facts,
    )


def test_a_host_that_began_minutes_later_is_told_though_it_may_have(tmp_path: Path) -> None:
    _host_of_20_s(tmp_path, "n1", 0, seconds=3600)
    _host_of_20_s(tmp_path, "n2", 600 * 10**9, seconds=3600)
    summary = summarise(open_trace(tmp_path))
    assert summary.wall_ns == 4200 * 10**9 and summary.clocks_agree
    (note,) = summary.notes
    assert note.startswith("By their clocks n2 began 10 min 00 s after n1: if they began together")


def test_hosts_of_a_run_that_still_goes_on_disagree_only_by_much(tmp_path: Path) -> None:
    for host, late_ns in (("n1", 0), ("n2", 3 * 10**9)):
        started_ns = 10**18 + late_ns
        clocks = [ClockPair(0, started_ns)]
        writer = write_host(
            tmp_path,
            [Call(func="write", ts=10, dur=5)],
            host=host,
            started_ns=started_ns,
            clocks=clocks,
            state=State.RUNNING,
        )
        writer.close()
    assert summarise(open_trace(tmp_path)).clocks_agree


def test_the_lives_of_a_requeued_job_are_apart_with_good_clocks(tmp_path: Path) -> None:
    _host_of_20_s(tmp_path, "n1", 0, nodes=["n1"])
    _host_of_20_s(tmp_path, "n2", 10**12, nodes=["n2"])
    summary = summarise(open_trace(tmp_path))
    assert summary.clocks_agree and summary.wall_ns == 1020 * 10**9


def test_a_folded_node_list_is_unfolded(tmp_path: Path) -> None:
    for host in ("n1", "n3"):
        write_host(tmp_path, [Call(func="read", ts=1, dur=1)], host=host, nodes=["n[1-3],login"])
    assert summarise(open_trace(tmp_path)).missing_hosts == ["login", "n2"]
    part = summarise(open_trace(tmp_path / "host=n1"))
    assert (part.missing_hosts, part.notes) == ([], [])


def test_a_job_requeued_to_other_nodes_is_told(tmp_path: Path) -> None:
    for host, nodes, started_ns in (("n3", "n[1,3]", 1), ("n1", "n[1-2]", 2), ("n2", "n[1-2]", 3)):
        write_host(
            tmp_path,
            [Call(func="read", ts=1, dur=1)],
            host=host,
            nodes=[nodes],
            started_ns=10**18 + started_ns,
        )
    summary = summarise(open_trace(tmp_path))
    assert summary.missing_hosts == []
    (note,) = summary.notes
    assert note.startswith("The job was requeued: what n3 wrote is of its earlier life")


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ("10.0.0.[1-3]", ["Nothing here from 1 of the 3 hosts that the job ran on."]),
        ("10.0.0.[1-2]", []),
        ("n[1-", []),
        ("n[1-999999999]", []),
    ],
)
def test_of_nodes_with_other_names_only_the_number_is_known(
    tmp_path: Path, nodes: str, said: list[str]
) -> None:
    for host in ("n1", "n2"):
        write_host(tmp_path, [Call(func="read", ts=1, dur=1)], host=host, nodes=[nodes])
    summary = summarise(open_trace(tmp_path))
    assert (summary.missing_hosts, summary.notes) == ([], said)


def test_one_host_of_a_run(tmp_path: Path) -> None:
    for host in ("n1", "n2"):
        write_host(tmp_path, [Call(func="read", ts=1, dur=1, ret=1)], host=host)
    summary = summarise(open_trace(tmp_path / "host=n2"))
    assert ([h.host for h in summary.hosts], summary.events) == (["n2"], 1)


def test_a_running_and_a_cut_off_trace(tmp_path: Path) -> None:
    calls = [Call(func="read", ts=100 * n, dur=10, ret=1) for n in range(25)]
    write_host(tmp_path / "now", calls, state=State.RUNNING, segment_events=10)
    running = summarise(open_trace(tmp_path / "now"))
    assert (running.state, running.events, running.stopped_ns) == (State.RUNNING, 25, None)
    (tmp_path / "now" / "host=n1" / "run.json").unlink()
    cut = summarise(open_trace(tmp_path / "now"))
    assert (cut.state, cut.events, cut.run_id) == (State.CUT_OFF, 25, "now")
    assert (cut.wall_ns, cut.unoverlapped_ns, cut.user) == (2410, 250, "")


def test_missing_files_of_a_complete_trace_are_noticed(tmp_path: Path) -> None:
    calls = [Call(func="read", ts=100 * n, dur=10, ret=1) for n in range(25)]
    write_host(tmp_path, calls, segment_events=10)
    (tmp_path / "host=n1" / "events-000002.parquet").unlink()
    (note,) = summarise(open_trace(tmp_path)).notes
    assert "25" in note
    assert "15" in note


def test_why_a_trace_is_empty(tmp_path: Path) -> None:
    skipped = [Skipped(layer="libc", name="read", reason="not in the file")]
    write_host(tmp_path / "a", [], functions=(), skipped=skipped)
    write_host(tmp_path / "b", [], processes=())
    write_host(tmp_path / "c", [])
    notes = {
        name: " ".join(summarise(open_trace(tmp_path / name)).notes) for name in ("a", "b", "c")
    }
    write_host(tmp_path / "young", [], functions=(), processes=(), state=State.RUNNING)
    assert summarise(open_trace(tmp_path / "young")).notes == []
    assert "No function was attached" in notes["a"]
    assert "datacrumbs_wrap" in notes["b"]
    assert "called none of the 10 traced functions" in notes["c"]


@pytest.mark.parametrize("top", [1, 3, 7])
def test_top_keeps_the_slowest_and_the_largest_files(tmp_path: Path, top: int) -> None:
    """File n takes n ns; the bytes fall as n grows."""
    calls = [
        Call(func="read", ts=100 * n, dur=n, ret=1000 - n, file=n, pid=n, tid=n)
        for n in range(1, 51)
    ]
    files = [File(file=n, path=f"/f{n}") for n in range(1, 51)]
    write_host(tmp_path, calls, files=files)
    summary = summarise(open_trace(tmp_path), top=top)
    slowest = [f"/f{n}" for n in range(50, 50 - top, -1)]
    largest = [f"/f{n}" for n in range(top, 0, -1)]
    assert [f.path for f in summary.files] == slowest + largest
    assert [p.pid for p in summary.processes] == [50 - n for n in range(top)]
    # the one of `write_host`'s table has no calls
    assert (summary.files_total, summary.processes_total) == (50, 51)
    everything = summarise(open_trace(tmp_path))
    assert [f.path for f in everything.files] == [f"/f{n}" for n in range(50, 0, -1)]


def test_100_000_files(tmp_path: Path) -> None:
    count = 100_000
    calls = [
        Call(func="write", ts=10 * n, dur=5, ret=n, file=n << 40, offset=0)
        for n in range(1, count + 1)
    ]
    files = [File(file=n << 40, path=f"/data/part-{n}") for n in range(1, count + 1)]
    write_host(tmp_path, calls, files=files, segment_events=30_000)
    summary = summarise(open_trace(tmp_path))
    assert summary.files_total == len(summary.files) == count
    assert {f.path: f.bytes_written for f in summary.files} == {
        f"/data/part-{n}": n for n in range(1, count + 1)
    }


def _tree(rng: random.Random, start: int, end: int, depth: int, **who: int) -> list[Call]:
    """A call and the calls in it, none of which overlap."""
    names = ["solve", "fread", "read", "write"][depth:]
    ret = rng.choice([0, rng.randrange(1, 1 << 20), -5])
    call = Call(
        func=rng.choice(names), ts=start, dur=end - start, ret=ret, file=rng.randrange(6), **who
    )
    calls, at = [call], start
    while depth < 3 and at < end and rng.random() < 0.7:
        a = rng.randint(at, end)
        b = rng.randint(a, end)
        calls += _tree(rng, a, b, depth + 1, **who)
        at = b + 1
    return calls


def _forest(seed: int) -> list[Call]:
    """Threads of three processes, each with calls one after the other; some last very long."""
    rng = random.Random(seed)
    calls = []
    for thread in range(7):
        at = rng.randrange(1000)
        for _ in range(40):
            dur = rng.choice([10, 500, 2000, 60_000])
            calls += _tree(rng, at, at + rng.randint(0, dur), 0, pid=100 + thread // 3, tid=thread)
            at = max(call.end for call in calls if call.tid == thread) + rng.randrange(1, 800)
    return calls


def _length(calls: list[Call]) -> int:
    """Length of the union: sweep over all begins and ends."""
    total, open_, since = 0, 0, 0
    for at, step in sorted([(c.ts, 1) for c in calls] + [(c.end, -1) for c in calls]):
        total += at - since if open_ else 0
        open_, since = open_ + step, at
    return total


@pytest.mark.parametrize("seed", range(6))
def test_nested_calls_of_many_threads_against_a_slow_reference(tmp_path: Path, seed: int) -> None:
    """Segments of 50 events, which long calls overlap by far."""
    calls = _forest(seed)
    files = [File(file=n, path=f"/f{n}") for n in range(1, 6)]
    processes = [(0, pid, "start", "app") for pid in (100, 101, 102)]
    write_host(tmp_path, calls, files=files, processes=processes, segment_events=50)
    summary = summarise(open_trace(tmp_path))
    assert summary.unoverlapped_ns == _length(calls)
    for process in summary.processes:
        threads = {c.tid for c in calls if c.pid == process.pid}
        own = [[c for c in calls if c.tid == tid] for tid in threads]
        assert process.io_ns == sum(_length(thread) for thread in own)
        assert (process.threads, process.count) == (len(threads), sum(map(len, own)))
    for layer, names in (("app", {"solve"}), ("libc", {"fread"}), ("syscalls", {"read", "write"})):
        chosen = [c for c in calls if c.func in names]
        (row,) = [row for row in summary.layers if row.layer == layer]
        assert row.io_ns == sum(_length([c for c in chosen if c.tid == t]) for t in range(7))
        assert (row.count, row.time_ns) == (len(chosen), sum(c.dur for c in chosen))
    counts = Counter(c.func for c in calls)
    assert {f.name: f.count for f in summary.functions} == counts
    for row in summary.files:
        own_calls = [c for c in calls if f"/f{c.file}" == row.path and c.func in ("read", "write")]
        moved = Counter[str]()
        for call in own_calls:
            moved[str(call.func)] += max(0, call.ret)
        assert (row.bytes_read, row.bytes_written) == (moved["read"], moved["write"])
        assert row.time_ns == sum(c.dur for c in own_calls)
