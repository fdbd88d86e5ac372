"""What the pictures of a report are drawn from, against answers known beforehand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from generate.calls import LAYER_OF, OP_OF, Call, breakdown, stack_of
from generate.runs import BEGIN_NS, Host, random_hosts, write_run
from report_traces import Call as FlatCall
from report_traces import File
from report_traces import write_host as write_flat_host

from datacrumbs.analysis import flame, on_each, timeline
from datacrumbs.analysis.flame import Flame
from datacrumbs.analysis.model import Summary
from datacrumbs.analysis.pictures import LATENCY_EDGES, Pictures, draw
from datacrumbs.analysis.summary import summarise_with_durations
from datacrumbs.analysis.timeline import BINS, Timeline
from datacrumbs.trace.clocks import ClockPair
from datacrumbs.trace.reader import open_trace

S = 1_000_000_000


def drawn(trace: Path) -> tuple[Summary, Pictures]:
    opened = open_trace(trace)
    summary, durations = summarise_with_durations(opened)
    return summary, draw(opened, summary, durations)


def paths(found: Flame) -> dict[tuple[str, ...], tuple[int, int, int]]:
    """Count, time and self time by the names from the outermost call on."""
    at: list[tuple[str, ...]] = []
    rows = {}
    for frame in found.frames:
        at.append((*(at[frame.parent] if frame.parent >= 0 else ()), frame.name))
        rows[at[-1]] = (frame.count, frame.time_ns, frame.self_ns)
    return rows


def outermost_io(tree: Call) -> Iterator[Call]:
    """Where the thread enters I/O: not in calls that wait, or do none."""
    if tree.func == "futex" or OP_OF[tree.func] == "wait":
        for inner in tree.inner:
            yield from outermost_io(inner)
    else:
        yield tree


@pytest.mark.parametrize("seed", range(4))
def test_the_flame_is_the_breakdown_of_all_trees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(flame, "MOST_FRAMES", 1 << 30)
    monkeypatch.setattr(flame, "LEAST_SHARE", 0.0)
    hosts = random_hosts(seed, hosts=2, threads=4, calls=60)
    write_run(tmp_path / "run", hosts, segment_events=97)
    summary, pictures = drawn(tmp_path / "run")
    found = pictures.flame
    counted = [call for host in hosts for tree in host.calls() for call in outermost_io(tree)]
    wanted = {
        path: (sums.count, sums.time_ns, sums.self_ns) for path, sums in breakdown(counted).items()
    }
    assert paths(found) == wanted
    assert found.time_ns == sum(call.dur for call in counted) == summary.io_ns
    assert found.frames_total == len(wanted)
    assert {frame.name: frame.layer for frame in found.frames}.items() <= LAYER_OF.items()


def test_hosts_side_by_side_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "run", random_hosts(6, hosts=3, threads=4, calls=40))
    _, one = drawn(tmp_path / "run")
    monkeypatch.setattr(on_each, "WORTH_WORKERS", 0)
    _, side_by_side = drawn(tmp_path / "run")
    assert side_by_side.flame == one.flame
    assert side_by_side.explanation == one.explanation
    for name in ("operations", "bytes_read", "bytes_written"):
        assert np.array_equal(getattr(side_by_side.timeline, name), getattr(one.timeline, name))


def test_a_cut_flame_says_what_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flame, "MOST_FRAMES", 12)
    write_run(tmp_path / "run", random_hosts(5, threads=4, calls=60))
    found = drawn(tmp_path / "run")[1].flame
    assert 0 < len(found.frames) <= 12 < found.frames_total
    below = Counter[int]()
    for frame in found.frames:
        below[frame.parent] += frame.time_ns
    for number, frame in enumerate(found.frames):
        assert frame.time_ns == frame.self_ns + frame.left_out_ns + below[number]
        assert frame.parent < number


def test_unfinished_and_waiting_calls_are_no_time_in_io(tmp_path: Path) -> None:
    io = stack_of(
        Call(func="H5Dread", start=0, dur=0),
        Call(func="pread64", start=BEGIN_NS + 5_000, dur=900, file=1, ret=8),
    )
    wait = Call(func="epoll_wait", start=BEGIN_NS + 10_000, dur=50_000)
    stuck = Call(func="read", start=BEGIN_NS + 70_000, dur=10_000, flags=1)
    host = Host(name="n1", threads={(100, 100): [io, wait, stuck]}, files={1: "/f"})
    write_run(tmp_path / "run", [host])
    found = drawn(tmp_path / "run")[1].flame
    assert paths(found) == {("H5Dread",): (1, 1_100, 200), ("H5Dread", "pread64"): (1, 900, 900)}


def cells(found: Timeline, name: str) -> np.ndarray:
    values: np.ndarray = getattr(found, name).reshape(len(found.rows), found.bins)
    return values


@pytest.mark.parametrize("seed", range(4))
def test_the_timeline_has_every_byte_and_operation(tmp_path: Path, seed: int) -> None:
    hosts = random_hosts(seed, hosts=3, threads=5, calls=80)
    write_run(tmp_path / "run", hosts, segment_events=97)
    summary, pictures = drawn(tmp_path / "run")
    found = pictures.timeline
    assert int(found.bytes_read.sum()) == summary.bytes_read
    assert int(found.bytes_written.sum()) == summary.bytes_written
    syscalls = {OP_OF[name] for name in OP_OF if LAYER_OF[name] == "syscall"} - {"other", "wait"}
    expected = Counter[tuple[str, int]]()
    for host in hosts:
        for (pid, _), trees in host.threads.items():
            for tree in trees:
                for _, call in tree.walk():
                    if LAYER_OF[call.func] == "syscall" and OP_OF[call.func] in syscalls:
                        expected[host.name, pid] += 1
    rows = cells(found, "operations").sum(axis=1).tolist()
    got = {(row.host, row.pid): n for row, n in zip(found.rows, rows, strict=True)}
    assert got == expected
    assert [row.rank for row in found.rows] == sorted(row.rank or 0 for row in found.rows)


def test_bytes_are_spread_over_the_time_a_call_takes(tmp_path: Path) -> None:
    """48 s of run, so a bin is 100 ms; a call of 2.5 s moves 25 parts of its bytes."""
    calls = [
        FlatCall(func="write", ts=0, dur=1000, ret=7, file=1),
        FlatCall(func="read", ts=10 * S, dur=2 * S + S // 2, ret=25_000_000, file=1),
        FlatCall(func="write", ts=48 * S - 1_000, dur=999, ret=9, file=1),
    ]
    write_flat_host(tmp_path / "run", calls, files=[File(file=1, path="/f")])
    found = drawn(tmp_path / "run")[1].timeline
    assert (found.bin_ns, found.bins) == (S // 10, BINS)
    read = cells(found, "bytes_read")[0]
    assert np.flatnonzero(read).tolist() == list(range(100, 125))
    assert read[100:125].tolist() == [1_000_000] * 25
    written = cells(found, "bytes_written")[0]
    assert {int(i): int(written[i]) for i in np.flatnonzero(written)} == {0: 7, 479: 9}
    assert np.flatnonzero(cells(found, "operations")[0]).tolist() == [0, 100, 479]


def test_hosts_share_one_axis(tmp_path: Path) -> None:
    """Clocks that differ by hours; the second host begins in the middle."""
    hosts = [
        Host(
            name=f"n{n}",
            threads={
                (100, 100): [
                    Call(func="write", start=BEGIN_NS + (n + k) * S, dur=1_000, file=1, ret=5)
                    for k in (0, 1)
                ]
            },
            files={1: "/f"},
            clock_offset_ns=BEGIN_NS - (n + 1) * 3_600 * S,
        )
        for n in (1, 2)
    ]
    write_run(tmp_path / "run", hosts)
    found = drawn(tmp_path / "run")[1].timeline
    assert (found.begin_ns, found.of_day) == (BEGIN_NS + S, True)
    used = [np.flatnonzero(row).tolist() for row in cells(found, "operations")]
    assert used == [[0, 239], [239, 479]]


def test_many_processes_become_fewer_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "MOST_ROWS", 10)
    monkeypatch.setattr(timeline, "MOST_CELLS", 2_000)
    calls = [
        FlatCall(func="write", ts=100 * n, dur=50, ret=n + 1, file=1, pid=100 + n, tid=100 + n)
        for n in range(35)
    ]
    processes = [(0, 100 + n, "start", "app") for n in range(35)]
    write_flat_host(tmp_path / "run", calls, processes=processes)
    found = drawn(tmp_path / "run")[1].timeline
    assert [row.processes for row in found.rows] == [4] * 8 + [3]
    assert [row.pid for row in found.rows] == [100 + 4 * n for n in range(9)]
    assert found.bins == BINS // 3
    assert int(found.bytes_written.sum()) == sum(range(1, 36))


def test_processes_that_the_trace_does_not_name_are_one_line(tmp_path: Path) -> None:
    calls = [
        FlatCall(func="write", ts=n, dur=1, ret=1, file=1, pid=pid, tid=pid)
        for n, pid in enumerate((100, 777, 888))
    ]
    write_flat_host(tmp_path / "run", calls)
    found = drawn(tmp_path / "run")[1].timeline
    assert [(row.pid, row.comm) for row in found.rows] == [(100, "app"), (0, "")]
    assert cells(found, "operations").sum(axis=1).tolist() == [1, 2]


def test_latencies_are_counted_in_their_classes(tmp_path: Path) -> None:
    lengths = [0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 1023, 1024, 1279, 1280, 10**9]
    calls = [FlatCall(func="write", ts=n, dur=dur) for n, dur in enumerate(lengths)]
    write_flat_host(tmp_path / "run", calls)
    (found,) = drawn(tmp_path / "run")[1].latencies
    edges = np.array(LATENCY_EDGES[:-1], np.int64)
    wanted = Counter(int(edges[edges <= dur].max()) for dur in lengths)
    assert dict(zip(found.from_ns, found.count, strict=True)) == wanted
    assert list(LATENCY_EDGES) == sorted(set(LATENCY_EDGES))


def test_ranks_and_unoverlapped_time_of_processes(tmp_path: Path) -> None:
    """Two threads of one process side by side count once; another process stands alone."""
    calls = [
        FlatCall(func="write", ts=0, dur=100, pid=100, tid=100),
        FlatCall(func="write", ts=50, dur=100, pid=100, tid=101),
        FlatCall(func="write", ts=120, dur=10, pid=200, tid=200),
    ]
    processes = [(0, 100, "start", "app"), (1, 200, "start", "app")]
    write_flat_host(tmp_path / "run", calls, processes=processes)
    summary, _ = drawn(tmp_path / "run")
    rows = [(p.pid, p.rank, p.io_ns, p.unoverlapped_ns) for p in summary.processes]
    assert rows == [(100, 0, 200, 150), (200, 1, 10, 10)]
    assert (summary.hosts[0].first_call_ns, summary.hosts[0].last_return_ns) == (0, 150)


@pytest.mark.parametrize(
    ("names", "under"),
    [
        (["/data/a", "/data/b/c"], "/data"),
        (["/data/run.x", "/data/run/y"], "/data"),
        (["/a", "/b"], "/"),
        (["/a/b"], "/a"),
        (["one", "two"], ""),
    ],
)
def test_mounts_are_named_by_the_directory_of_their_files(
    tmp_path: Path, names: list[str], under: str
) -> None:
    files = [File(file=n, path=path) for n, path in enumerate(names, 1)]
    calls = [FlatCall(func="write", ts=f.file, dur=5, ret=3, file=f.file) for f in files]
    write_flat_host(tmp_path / "run", calls, files=files)
    (mount,) = drawn(tmp_path / "run")[0].mounts
    assert (mount.fstype, mount.device, mount.under) == ("ext4", "0:1", under)
    assert (mount.files, mount.bytes_written) == (len(names), 3 * len(names))


def test_what_is_on_no_file_system_goes_by_its_kind(tmp_path: Path) -> None:
    files = [
        File(file=1, path="pipe:[1]", kind="pipe", fstype=None),
        File(file=2, path="pipe:[2]", kind="pipe", fstype=None),
        File(file=3, path="/x/y"),
    ]
    calls = [FlatCall(func="write", ts=f.file, dur=f.file, ret=3, file=f.file) for f in files]
    write_flat_host(tmp_path / "run", calls, files=files)
    mounts = drawn(tmp_path / "run")[0].mounts
    assert [(m.fstype, m.device, m.files) for m in mounts] == [("ext4", "0:1", 1), ("pipe", "", 2)]


def test_hosts_whose_clocks_disagree_begin_together_in_the_timeline(tmp_path: Path) -> None:
    hosts = []
    for number in (1, 2):
        call = Call(func="write", start=BEGIN_NS, dur=S, ret=4096)
        host = Host(name=f"n{number}", threads={(1, 1): [call]})
        began_ns = BEGIN_NS + number * 100 * 24 * 3600 * S
        host.facts = {
            "started_ns": began_ns,
            "stopped_ns": began_ns + S,
            "clocks": [ClockPair(host.mono_ns(BEGIN_NS), began_ns)],
        }
        hosts.append(host)
    _, pictures = drawn(write_run(tmp_path, hosts))
    found = pictures.timeline
    assert not found.of_day
    assert found.bins * found.bin_ns < 2 * S
    assert found.operations.reshape(2, -1)[:, 0].tolist() == [1, 1]
