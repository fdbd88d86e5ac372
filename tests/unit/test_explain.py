"""What explain says of traces whose answer is known: exactly, and naming the cause."""

from __future__ import annotations

import itertools
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from generate.calls import LAYER_OF, OP_OF, Call, Sums
from generate.causes import FAST_NS, delayed, mixed, read_stack, write_stack
from generate.runs import BEGIN_NS, Host, random_hosts, write_run
from hypothesis import given, settings
from hypothesis import strategies as st

from datacrumbs.analysis.causes import Cause
from datacrumbs.analysis.explain import explain
from datacrumbs.analysis.explanation import Explained, Explanation, Finding, Inner
from datacrumbs.analysis.selection import Selection
from datacrumbs.errors import BadInputError
from datacrumbs.report.sentences import sentence
from datacrumbs.run import host_name
from datacrumbs.trace.clocks import ClockPair
from datacrumbs.trace.reader import open_trace
from datacrumbs.trace.runfile import State

Places = dict[tuple[str, ...], Sums]


def explained(
    directory: Path, run: list[Host], *, segment_events: int = 1000, **selection: Any
) -> Explanation:
    write_run(directory, run, segment_events=segment_events)
    return explain(open_trace(directory), Selection(**selection))


def one(directory: Path, calls: list[Call], **selection: Any) -> Explained:
    """What is said of the only function explained, of calls of one thread."""
    files = {n: f"/data/file-{n}" for n in range(1, 10)}
    host = Host(name="n1", threads={(100, 100): calls}, files=files)
    (found,) = explained(directory, [host], **selection).explained
    return found


def outermost(calls: list[Call], wanted: Callable[[str], bool]) -> Iterator[Call]:
    for call in calls:
        if wanted(call.func):
            yield call
        else:
            yield from outermost(call.inner, wanted)


def does_io(func: str) -> bool:
    return OP_OF[func] not in ("other", "wait")


def known(hosts: list[Host], wanted: Callable[[str], bool]) -> dict[str, Places]:
    """By target function, the sums by path from the target."""
    found: dict[str, Places] = defaultdict(dict)
    for host in hosts:
        for target in outermost(host.calls(), wanted):
            for path, call in target.walk():
                sums = found[target.func].setdefault(path, Sums())
                sums.count += 1
                sums.time_ns += call.dur
                sums.self_ns += call.self_ns
    return dict(found)


def by_path(inside: list[Inner]) -> Places:
    found: Places = {}
    path: list[str] = []
    for inner in inside:
        path[inner.depth :] = [inner.name]
        found[tuple(path)] = Sums(inner.count, inner.time_ns, inner.self_ns)
    return found


@settings(max_examples=25)
@given(st.integers(0, 10**9), st.sampled_from([7, 100_000]), st.integers(1, 60))
def test_every_time_is_exact(seed: int, segment_events: int, batch_rows: int) -> None:
    """Of the outermost I/O calls, however the events are cut into segments and batches."""
    hosts = random_hosts(seed, calls=8)
    with (
        tempfile.TemporaryDirectory() as directory,
        mock.patch("datacrumbs.trace.reader.BATCH_ROWS", batch_rows),
    ):
        found = explained(Path(directory), hosts, segment_events=segment_events)
    answer = known(hosts, does_io)
    assert {e.name: by_path(e.inside) for e in found.explained} == answer
    for e in found.explained:
        assert sum(part.self_ns for part in e.layers) == e.time_ns
        assert sum(part.self_ns for part in e.causes) == e.time_ns
        assert (e.count, e.time_ns) == (
            answer[e.name][e.name,].count,
            answer[e.name][e.name,].time_ns,
        )
    times = [e.time_ns for e in found.explained]
    assert times == sorted(times, reverse=True)
    assert found.time_ns == sum(times)
    assert found.targets == sum(e.count for e in found.explained)


@pytest.mark.parametrize("worth_workers", [0, 1_000_000])
def test_hosts_add_up_whatever_their_numbers_and_clocks(tmp_path: Path, worth_workers: int) -> None:
    """Three hosts, each with function numbers of its own; by workers, and without."""
    hosts = random_hosts(7, hosts=3)
    with mock.patch("datacrumbs.analysis.on_each.WORTH_WORKERS", worth_workers):
        found = explained(tmp_path, hosts)
    assert {e.name: by_path(e.inside) for e in found.explained} == known(hosts, does_io)
    alone = explain(open_trace(tmp_path), Selection(hosts=frozenset({"n2"})))
    assert {e.name: by_path(e.inside) for e in alone.explained} == known(hosts[1:2], does_io)


@pytest.mark.parametrize(
    ("selection", "wanted"),
    [
        ({"call": "fwrite"}, lambda func: func == "fwrite"),
        ({"call": "p*64"}, lambda func: func in ("pread64", "pwrite64")),
        ({"layer": "fs"}, lambda func: LAYER_OF[func] == "fs"),
        ({"layer": "vfs", "call": "vfs_w*"}, lambda func: func == "vfs_write"),
        ({"call": "down_write"}, lambda func: func == "down_write"),
    ],
)
def test_calls_are_chosen_by_name_and_layer(
    tmp_path: Path, selection: dict[str, str], wanted: Callable[[str], bool]
) -> None:
    hosts = random_hosts(11, threads=4, calls=60)
    found = explained(tmp_path, hosts, **selection)
    answer = known(hosts, wanted)
    assert answer
    assert {e.name: by_path(e.inside) for e in found.explained} == answer


def test_calls_are_chosen_by_process(tmp_path: Path) -> None:
    (host,) = random_hosts(3, threads=4)
    found = explained(tmp_path, [host], pids=frozenset({110}))
    mine = Host(name="x", threads={t: c for t, c in host.threads.items() if t[0] == 110})
    assert {e.name: by_path(e.inside) for e in found.explained} == known([mine], does_io)


@pytest.mark.parametrize("batch_rows", [5, 100_000])
def test_calls_are_chosen_by_file_also_of_a_call_inside(tmp_path: Path, batch_rows: int) -> None:
    hosts = random_hosts(13, threads=2, calls=40)
    for path in ("/data/1/file-3", "file-3", "*/file-[3]"):
        directory = tmp_path / path.replace("/", "_")
        with mock.patch("datacrumbs.trace.reader.BATCH_ROWS", batch_rows):
            found = explained(directory, hosts, segment_events=64, path=path)
        chosen = [
            target
            for target in outermost(hosts[0].calls(), does_io)
            if any(call.file == 3 for _, call in target.walk())
        ]
        answer = known([Host(name="x", threads={(1, 1): chosen})], does_io)
        assert {e.name: by_path(e.inside) for e in found.explained} == answer


def test_ranks_are_the_programs_processes_by_host_and_start(tmp_path: Path) -> None:
    """n2 comes before n10, whatever the pids; a call of each rank is as long as its rank says."""
    hosts = []
    for name, lengths in (("n10", (30, 40)), ("n2", (10, 20))):
        threads = {
            (pid, pid): [Call(func="write", start=BEGIN_NS, dur=dur)]
            for pid, dur in zip((7, 9), lengths, strict=True)
        }
        hosts.append(Host(name=name, threads=threads))
    write_run(tmp_path, hosts)
    for rank, dur in enumerate((10, 20, 30, 40)):
        found = explain(open_trace(tmp_path), Selection(ranks=frozenset({rank})))
        assert [(e.count, e.time_ns) for e in found.explained] == [(1, dur)]
        assert found.explained[0].slowest[0].rank == rank


# --- why some calls are slow --------------------------------------------------------------------


def waits(func: str, dur: int) -> Call:
    return Call(func=func, start=0, dur=dur)


def in_ext4(start: int, *inner: Call, **what: int) -> Call:
    return delayed(write_stack(start, **what), 2, *inner)


Make = Callable[[int], Call]

CAUSES: dict[str, tuple[Make, Make, Cause, str]] = {
    "journal": (
        write_stack,
        lambda at: in_ext4(
            at,
            Call(
                func="jbd2_log_wait_commit",
                start=0,
                dur=500_000,
                inner=[Call(func="io_schedule", start=1_000, dur=490_000)],
            ),
        ),
        Cause.JOURNAL,
        "jbd2_log_wait_commit",
    ),
    "throttling": (
        write_stack,
        lambda at: in_ext4(at, waits("balance_dirty_pages", 300_000)),
        Cause.THROTTLING,
        "balance_dirty_pages",
    ),
    # the paper's: the same write, 40 % longer
    "allocation": (
        write_stack,
        lambda at: in_ext4(at, waits("ext4_da_get_block_prep", 4_000)),
        Cause.SPACE,
        "ext4_da_get_block_prep",
    ),
    "pages": (
        write_stack,
        lambda at: in_ext4(at, waits("filemap_add_folio", 4_000)),
        Cause.PAGES,
        "filemap_add_folio",
    ),
    "inode lock": (
        lambda at: in_ext4(at, waits("down_write", 100)),
        lambda at: in_ext4(at, waits("down_write", 900_000)),
        Cause.LOCK,
        "down_write",
    ),
    "cache miss": (
        read_stack,
        lambda at: delayed(
            read_stack(at),
            2,
            Call(
                func="page_cache_ra_unbounded",
                start=0,
                dur=80_000,
                inner=[Call(func="filemap_add_folio", start=500, dur=20_000)],
            ),
        ),
        Cause.CACHE_MISS,
        "page_cache_ra_unbounded",
    ),
    "page of a read": (
        read_stack,
        lambda at: delayed(read_stack(at), 2, waits("filemap_add_folio", 30_000)),
        Cause.CACHE_MISS,
        "filemap_add_folio",
    ),
    "block": (
        read_stack,
        lambda at: delayed(read_stack(at), 2, waits("io_schedule", 200_000)),
        Cause.BLOCK,
        "io_schedule",
    ),
}


@pytest.mark.parametrize("name", CAUSES)
@pytest.mark.parametrize("batch_rows", [3, 100_000])
def test_the_cause_is_named_first(tmp_path: Path, name: str, batch_rows: int) -> None:
    """90 fast calls and 30 slow ones, or 3 slow ones in 1000."""
    make_fast, make_slow, cause, func = CAUSES[name]
    fast, slow = make_fast(0), make_slow(0)
    for counts in ((90, 30), (1000, 3) if batch_rows > 3 else (50, 2)):
        calls = mixed(5, *counts, make_fast, make_slow)
        with mock.patch("datacrumbs.trace.reader.BATCH_ROWS", batch_rows):
            found = one(tmp_path / f"{counts}", calls)
        variation = found.variation
        assert variation is not None
        assert variation.split == "groups"
        assert (variation.fast.count, variation.fast.mean_ns) == (counts[0], fast.dur)
        assert (variation.slow.count, variation.slow.mean_ns) == (counts[1], slow.dur)
        assert variation.excess_ns == counts[1] * (slow.dur - fast.dur)
        first = variation.findings[0]
        assert (first.kind, first.cause, first.name) == ("inside", cause, func)
        assert first.share == pytest.approx(1)
        assert first.slow_ns - first.fast_ns == slow.dur - fast.dur
        assert (first.slow_share, first.fast_share) == (1, float(name == "inode lock"))
        assert func in sentence(first)
        assert found.slowest[0].dur_ns == slow.dur
        assert func in [inner.name for inner in found.slowest[0].inside]


def test_a_cause_inside_of_fsync_stands_over_fsync(tmp_path: Path) -> None:
    """save_state fsyncs at times: the fsync is named, and in it what the kernel waited for."""

    def save(at: int, *more: Call) -> Call:
        write = Call(func="write", start=at + 100, dur=5_000, file=1, offset=0, size=1, ret=1)
        tree = Call(func="save_state", start=at, dur=6_000, inner=[write])
        return delayed(tree, 0, *more)

    commit = Call(func="jbd2_log_wait_commit", start=50_000, dur=900_000)

    def slow(at: int) -> Call:
        inner = Call(**{**vars_of(commit), "start": 50_000})
        return save(at, Call(func="fsync", start=0, dur=1_000_000, file=1, inner=[inner]))

    found = one(tmp_path, mixed(1, 50, 10, save, slow), call="save_state")
    assert found.variation is not None
    journal, sync = found.variation.findings[:2]
    assert (journal.cause, journal.name, journal.via) == (
        Cause.JOURNAL,
        "jbd2_log_wait_commit",
        ["fsync"],
    )
    assert (sync.cause, sync.name, sync.slow_ns) == (Cause.SYNC, "fsync", 100_000)
    assert journal.share == pytest.approx(0.9, abs=0.001)
    assert "called in fsync" in sentence(journal)


def vars_of(call: Call) -> dict[str, Any]:
    return {name: getattr(call, name) for name in ("func", "start", "dur")}


def test_what_a_tracepoint_marks_is_told_though_it_takes_no_time(tmp_path: Path) -> None:
    """Reads that miss the page cache take longer, and all that is traced is an instant."""

    def miss(at: int) -> Call:
        tree = lengthened(delayed(read_stack(at), 2, waits("filemap_add_folio", 0)))
        for call in (tree.inner[0], tree.inner[0].inner[0]):
            call.dur += 50_000
        return tree

    variation = one(tmp_path, mixed(3, 90, 30, read_stack, miss)).variation
    assert variation is not None
    marks = [f for f in variation.findings if f.kind == "mark"]
    assert [(f.name, f.cause, f.share) for f in marks] == [
        ("filemap_add_folio", Cause.CACHE_MISS, pytest.approx(1))
    ]
    assert variation.findings[0].kind == "inside"
    assert sentence(marks[0]) == (
        "Slow calls show a page cache miss: readahead or reading pages that were not cached. "
        "filemap_add_folio (fs), in vfs_read > ext4_file_read_iter occurs in all slow and none of "
        "the fast calls."
    )


def test_a_function_that_took_no_time_to_speak_of_is_not_what_slow_calls_wait_for(
    tmp_path: Path,
) -> None:
    """As a kernel does: all slow writes look whether to throttle, and do not."""

    def slow(at: int) -> Call:
        return lengthened(in_ext4(at, waits("balance_dirty_pages", 100)))

    variation = one(tmp_path, mixed(5, 90, 30, write_stack, slow)).variation
    assert variation is not None
    assert Cause.THROTTLING not in {finding.cause for finding in variation.findings}
    assert [finding.kind for finding in variation.findings] == ["own"]


def test_a_mark_of_few_slow_calls_is_not_told(tmp_path: Path) -> None:
    """One of three slow reads has what no fast one has: slow calls do not show that."""

    def slow(at: int) -> Call:
        missed = [waits("filemap_add_folio", 0)] * (next(turn) % 3 == 0)
        return lengthened(delayed(read_stack(at), 2, *missed))

    turn = itertools.count()
    variation = one(tmp_path, mixed(6, 90, 30, read_stack, slow)).variation
    assert variation is not None
    assert "mark" not in {finding.kind for finding in variation.findings}


def test_what_a_write_always_does_gives_way_to_what_only_slow_ones_did(tmp_path: Path) -> None:
    """Each write looks for its page; slow ones add one and reserve a block for it."""

    def begin(ns: int, *inner: Call) -> Call:
        call = waits("ext4_da_write_begin", ns + sum(i.dur for i in inner))
        at = 0
        for part in inner:
            call.inner.append(part.moved(at - part.start))
            at = call.inner[-1].end
        return call

    def fast(at: int) -> Call:
        return in_ext4(at, begin(1_000))

    def slow(at: int) -> Call:
        new = waits("filemap_add_folio", 20_000), waits("ext4_da_get_block_prep", 30_000)
        return in_ext4(at, begin(11_000, *new))

    variation = one(tmp_path, mixed(7, 40, 20, fast, slow)).variation
    assert variation is not None
    found = [(f.name, f.cause, round(f.share, 2), f.fast_share) for f in variation.findings[:3]]
    assert found == [
        ("ext4_da_get_block_prep", Cause.SPACE, 0.5, 0),
        ("filemap_add_folio", Cause.PAGES, 0.33, 0),
        ("ext4_da_write_begin", Cause.PAGES, 0.17, 1),
    ]


def test_shares_of_the_difference_add_up(tmp_path: Path) -> None:
    def slow(at: int) -> Call:
        return in_ext4(at, waits("down_write", 60_000), waits("ext4_da_get_block_prep", 30_000))

    variation = one(tmp_path, mixed(2, 40, 20, write_stack, slow)).variation
    assert variation is not None
    found = {f.name: f.share for f in variation.findings if f.kind in ("inside", "own")}
    assert found == pytest.approx({"down_write": 2 / 3, "ext4_da_get_block_prep": 1 / 3})


def save(at: int, *inner: Call) -> Call:
    """save_state, of the program, with calls one after the other."""
    head = Call(func="openat", start=at + 10, dur=3_000, file=1, ret=3)
    return delayed(Call(func="save_state", start=at, dur=4_000, inner=[head]), 0, *inner)


def buffered(at: int) -> Call:
    """Ten writes to the page cache, and an fsync that writes them back and commits."""
    sync = Call(func="fsync", start=0, dur=9_000_000, file=1)
    ext4 = Call(func="ext4_sync_file", start=1_000, dur=8_990_000)
    ext4.inner = [
        Call(func="filemap_fdatawait", start=2_000, dur=6_000_000),
        Call(func="jbd2_log_wait_commit", start=6_500_000, dur=2_000_000),
    ]
    sync.inner = [ext4]
    return save(at, *(write_stack(0) for _ in range(10)), sync)


def direct(at: int) -> Call:
    """Ten writes past the page cache."""
    writes = []
    for _ in range(10):
        write = Call(func="pwrite64", start=0, dur=250_000, file=1, offset=0, size=4096, ret=4096)
        write.inner = [Call(func="iomap_dio_rw", start=1_000, dur=240_000)]
        writes.append(write)
    return save(at, *writes)


def test_buffered_writes_and_fsync_against_direct_ones(tmp_path: Path) -> None:
    """The paper's case: what the fsync waits for, beside what direct writes take."""
    found = one(tmp_path, mixed(6, 30, 30, direct, buffered), call="save_state")
    assert found.variation is not None
    told = {f.name: f for f in found.variation.findings}
    assert [f.name for f in found.variation.findings[:2]] == [
        "filemap_fdatawait",
        "jbd2_log_wait_commit",
    ]
    assert told["filemap_fdatawait"].cause == Cause.WRITEBACK
    assert told["filemap_fdatawait"].via == ["fsync", "ext4_sync_file"]
    assert told["jbd2_log_wait_commit"].cause == Cause.JOURNAL
    assert {part.name for part in found.causes} >= {Cause.DIRECT, Cause.WRITEBACK, Cause.JOURNAL}


def test_from_h5dwrite_down_to_the_file_system(tmp_path: Path) -> None:
    """Six layers, each with a time of its own that is known."""

    def h5dwrite(at: int, *inner: Call) -> Call:
        tree = Call(func="H5Dwrite", start=at, dur=0)
        write = in_ext4(at + 2_000, *inner)
        libc = Call(func="fwrite", start=at + 1_500, dur=write.dur + 1_500, inner=[write])
        tree.inner, tree.dur = [libc], libc.dur + 5_000
        return tree

    def slow(at: int) -> Call:
        return h5dwrite(at, waits("ext4_da_get_block_prep", 70_000))

    found = one(tmp_path, mixed(6, 60, 20, h5dwrite, slow), call="H5Dwrite")
    assert {part.name: part.self_ns for part in found.layers} == {
        "hdf5": 80 * 5_000,
        "libc": 80 * 1_500,
        "syscall": 80 * 2_000,
        "vfs": 80 * 2_000,
        "fs": 80 * 6_000 + 20 * 70_000,
    }
    assert found.variation is not None
    first = found.variation.findings[0]
    assert (first.name, first.cause) == ("ext4_da_get_block_prep", Cause.SPACE)
    assert first.via == ["fwrite", "pwrite64", "vfs_write", "ext4_buffered_write_iter"]


TRAITS: dict[str, tuple[Make, Make, str, str]] = {
    "file": (
        lambda at: write_stack(at, file=1 + at // 1000 % 3),
        lambda at: lengthened(write_stack(at, file=7)),
        "file",
        "/data/file-7",
    ),
    "unaligned": (
        write_stack,
        lambda at: lengthened(write_stack(at, offset=4097)),
        "trait",
        "unaligned",
    ),
    "failed": (write_stack, lambda at: lengthened(write_stack(at, ret=-28)), "trait", "failed"),
    "short": (write_stack, lambda at: lengthened(write_stack(at, ret=12)), "trait", "short"),
    "size": (
        write_stack,
        lambda at: lengthened(write_stack(at, size=1 << 20, ret=1 << 20)),
        "size",
        "larger",
    ),
}


def lengthened(call: Call) -> Call:
    call.dur += 50_000
    return call


@pytest.mark.parametrize("name", TRAITS)
def test_what_slow_calls_are_is_told(tmp_path: Path, name: str) -> None:
    make_fast, make_slow, kind, value = TRAITS[name]
    variation = one(tmp_path, mixed(4, 80, 20, make_fast, make_slow)).variation
    assert variation is not None
    found = {(f.kind, f.name): f for f in variation.findings}
    telling = found[kind, value]
    assert telling.share == pytest.approx(1)
    if kind == "size":
        assert (telling.slow_bytes, telling.fast_bytes) == (1 << 20, 4096)
    else:
        assert (telling.slow_share, telling.fast_share) == (1, 0)
    last = variation.findings[-1]
    assert (last.kind, last.name) == ("own", "pwrite64")
    assert sentence(telling)


def test_first_touches_are_told(tmp_path: Path) -> None:
    """40 regions, each touched first by a slow write and then by three fast ones."""
    calls, at = [], BEGIN_NS
    for region in range(40):
        for touch in range(4):
            call = write_stack(at, offset=(region << 22) + 4096 * touch)
            calls.append(call if touch else lengthened(call))
            at += 100_000
    variation = one(tmp_path, calls).variation
    assert variation is not None
    (first,) = [f for f in variation.findings if f.name == "first touch"]
    assert (first.slow_share, first.fast_share, first.share) == (1, 0, pytest.approx(1))


def test_contention_on_a_file_is_told(tmp_path: Path) -> None:
    """Two threads: their writes to file 1 collide and take long, those to own files do not."""
    threads: dict[tuple[int, int], list[Call]] = {(100, 100): [], (100, 101): []}
    for number in range(40):
        for tid in (100, 101):
            at = BEGIN_NS + number * 1_000_000 + (tid - 100) * 10
            both = number % 4 == 0
            call = write_stack(at, file=1 if both else tid)
            threads[100, tid].append(lengthened(call) if both else call)
    host = Host(name="n1", threads=threads)
    (found,) = explained(tmp_path, [host]).explained
    assert found.variation is not None
    told = {f.name: f for f in found.variation.findings}
    # of each colliding pair one was there first
    assert (told["shared file"].slow_share, told["shared file"].fast_share) == (0.5, 0)
    assert "busy host" not in told


def test_calls_of_one_length_are_not_compared(tmp_path: Path) -> None:
    assert one(tmp_path / "a", mixed(1, 60, 0, write_stack, write_stack)).variation is None
    assert one(tmp_path / "b", mixed(1, 6, 4, write_stack, CAUSES["journal"][1])).variation is None


# --- what is known of the trace -----------------------------------------------------------------


@pytest.mark.parametrize("batch_rows", [1, 100_000])
def test_asynchronous_work_on_the_file_is_counted_once(tmp_path: Path, batch_rows: int) -> None:
    """Two fsyncs of file 1; block I/O of it, of another file, of none, and after it."""
    syncs = [
        Call(func="fsync", start=BEGIN_NS + 1_000, dur=1_000, file=1),
        Call(func="H5Fflush", start=BEGIN_NS + 5_000, dur=1_000),
    ]
    syncs[1].inner = [Call(func="fsync", start=BEGIN_NS + 5_200, dur=100, file=1)]
    later = [
        Call(func="block_rq", start=BEGIN_NS + start, dur=dur, file=file)
        for start, dur, file in (
            (500, 700, 1),  # 200 within the first
            (1_100, 300, 1),  # 200 more
            (1_900, 3_500, 1),  # 100 within the first, 400 within the second
            (1_500, 100, 2),
            (1_500, 100, 0),
            (6_500, 100, 1),
        )
    ]
    host = Host(name="n1", threads={(1, 1): syncs}, later={(1, 1): later})
    with mock.patch("datacrumbs.trace.reader.BATCH_ROWS", batch_rows):
        found = explained(tmp_path, [host], segment_events=3)
    work = {
        e.name: [(w.name, w.calls, w.pieces, w.time_ns) for w in e.later] for e in found.explained
    }
    assert work == {"fsync": [("block_rq", 1, 3, 500)], "H5Fflush": [("block_rq", 1, 1, 400)]}
    assert found.events == 9
    assert [(w.name, w.count, w.time_ns, w.fileless) for w in found.later] == [
        ("block_rq", 6, 4_800, 1)
    ]
    assert found.notes == [
        "block_rq (block): of 6 pieces of asynchronous work 1 are of no known file, and count for "
        "no call."
    ]


def test_what_was_lost_or_cut_off_is_said(tmp_path: Path) -> None:
    alone = Call(func="vfs_write", start=BEGIN_NS + 50, dur=10)
    threads = {(1, 1): [write_stack(BEGIN_NS + 100), alone]}
    hosts = [Host(name="n1", threads=threads), Host(name="n2", threads=threads, lost=5)]
    hosts[1].state = State.CUT_OFF
    hosts[1].facts = {"host": host_name(), "boot_id": "another boot"}
    found = explained(tmp_path, hosts, layer="syscall")
    assert (found.lost, found.orphans, found.state) == (5, 2, State.CUT_OFF)
    assert any("5 events were lost" in note and "2 kernel" in note for note in found.notes)
    assert any(note.startswith("Cut off: n2; ") for note in found.notes)


def test_missing_hosts_and_clocks_that_were_set_are_named(tmp_path: Path) -> None:
    hosts = random_hosts(1, hosts=2)
    hosts[0].facts = {"nodes": ["n1.cluster", "n2.cluster", "n3.cluster", "n4"]}
    hosts[1].facts = {
        "clocks": [ClockPair(t, t + (10**12 if t > 10**9 else 0)) for t in (0, 10**9, 2 * 10**9)]
    }
    found = explained(tmp_path, hosts)
    assert found.missing_hosts == ["n3.cluster", "n4"]
    assert any("n3.cluster, n4" in note for note in found.notes)
    assert found.hosts[1].clock_residual_ns == pytest.approx(5e11)
    assert any("clock of n2 was set" in note for note in found.notes)


def test_slowest_calls_have_the_time_of_day(tmp_path: Path) -> None:
    """Whatever the host's monotonic clock shows, and how much it gains."""
    hosts = []
    for number, (offset, drift) in enumerate(((10**15, 0.0), (BEGIN_NS - 7, 2e-5))):
        call = Call(func="write", start=BEGIN_NS + 30_000_000_000, dur=1_000 + number)
        host = Host(name=f"n{number}", threads={(1, 1): [call]})
        host.clock_offset_ns, host.clock_drift = offset, drift
        hosts.append(host)
    (found,) = explained(tmp_path, hosts).explained
    for call in found.slowest:
        assert call.start_ns is not None
        assert abs(call.start_ns - BEGIN_NS - 30_000_000_000) <= 1


@pytest.mark.parametrize("batch_rows", [1, 100_000])
def test_unfinished_calls_are_counted_apart_with_where_they_were(
    tmp_path: Path, batch_rows: int
) -> None:
    done = Call(func="read", start=BEGIN_NS, dur=10)
    open_ = [Call(func="read", start=BEGIN_NS + 20, dur=300, flags=1) for _ in range(3)]
    for call, func in zip(open_, ("io_schedule", "io_schedule", "down_write"), strict=True):
        call.inner = [Call(func=func, start=BEGIN_NS + 30, dur=290, flags=1)]
    left = Call(func="read", start=BEGIN_NS, dur=40, flags=1)  # by an exception
    after = Call(func="close", start=BEGIN_NS + 50, dur=1)
    threads = {(1, 1): [done, open_[0]], (1, 2): [open_[1]], (1, 3): [open_[2]]}
    threads[1, 4] = [left, after]
    with mock.patch("datacrumbs.trace.reader.BATCH_ROWS", batch_rows):
        said = explained(tmp_path, [Host(name="n1", threads=threads)], call="read")
    (found,) = said.explained
    assert (found.count, found.time_ns) == (1, 10)
    assert (found.unfinished, found.unfinished_ns) == (4, 940)
    assert [(s.name, s.threads) for s in found.stuck_in] == [("io_schedule", 2), ("down_write", 1)]


@pytest.mark.parametrize(
    ("selection", "said", "hint"),
    [
        ({"call": "pwrit64"}, "no function pwrit64", "pwrite64"),
        ({"layer": "hdf"}, "no layer hdf", "hdf5"),
        ({"hosts": frozenset({"n9"})}, "no host n9", "n1"),
        ({"ranks": frozenset({5})}, "no rank 5", "ranks 0 to 1"),
        ({"pids": frozenset({100, 42})}, "no process 42 in this trace", "it has 100"),
        ({"path": "/data/1/file-33"}, "no file /data/1/file-33", "/data/1/file-3"),
    ],
)
def test_what_is_not_in_the_trace_is_refused(
    tmp_path: Path, selection: dict[str, Any], said: str, hint: str
) -> None:
    with pytest.raises(BadInputError) as raised:
        explained(tmp_path, random_hosts(1), **selection)
    assert said in raised.value.message
    assert hint in raised.value.hint


def test_what_a_worker_cannot_read_is_named_with_a_hint(tmp_path: Path) -> None:
    write_run(tmp_path, random_hosts(7, hosts=2))
    segment = tmp_path / "host=n2" / "events-000001.parquet"
    segment.write_bytes(segment.read_bytes()[:-1000] + b"x" * 992 + b"PAR1")
    with (
        mock.patch("datacrumbs.analysis.on_each.WORTH_WORKERS", 0),
        pytest.raises(BadInputError) as raised,
    ):
        explain(open_trace(tmp_path), Selection())
    assert str(segment) in raised.value.message
    assert raised.value.hint


def test_a_process_without_calls_is_no_error(tmp_path: Path) -> None:
    threads = {(100, 100): [Call(func="read", start=BEGIN_NS, dur=10)], (200, 200): []}
    found = explained(tmp_path, [Host(name="n1", threads=threads)], pids=frozenset({200}))
    assert found.explained == []
    assert found.notes == ["No call of the trace is among those asked for."]


def test_a_process_whose_row_was_lost_is_found_by_its_events(tmp_path: Path) -> None:
    (host,) = random_hosts(1)
    write_run(tmp_path, [host])
    for path in tmp_path.glob("host=*/processes-*"):
        path.unlink()
    assert explain(open_trace(tmp_path), Selection(pids=frozenset({100}))).targets
    with pytest.raises(BadInputError, match="no process 42"):
        explain(open_trace(tmp_path), Selection(pids=frozenset({100, 42})))


def test_findings_have_sentences_with_their_numbers(tmp_path: Path) -> None:
    variation = one(tmp_path, mixed(5, 90, 30, *CAUSES["inode lock"][:2])).variation
    assert variation is not None
    assert sentence(variation.findings[0]) == (
        "100 % of the difference is waiting for a lock or an inode that another thread held. "
        "down_write (fs), called in vfs_write > ext4_buffered_write_iter: 900 us in a slow call, "
        "100 ns in a fast one."
    )
    whole = Finding(kind="later", share=1.0, name="block_rq", layer="block", slow_ns=2_000)
    assert sentence(whole) == (
        "Meanwhile the kernel worked on the same file: block_rq (block) went on for 2.00 us of a "
        "slow call and 0 ns of a fast one, beside none of the slow and none of the fast calls."
    )


def test_fast_means_the_length_of_the_fast_stack() -> None:
    assert write_stack(0).dur == read_stack(0).dur == FAST_NS
