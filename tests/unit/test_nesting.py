"""The nesting of calls: against its definition, and against trees from which events were made."""

from __future__ import annotations

import random
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from generate.calls import STACK, Call, breakdown
from generate.runs import BEGIN_NS, Host, random_hosts, write_run
from hypothesis import given, settings
from hypothesis import strategies as st

from datacrumbs.analysis import nesting
from datacrumbs.analysis.functions import Functions
from datacrumbs.analysis.nesting import nest, nested, tree_order
from datacrumbs.trace.reader import HostTrace, open_trace
from datacrumbs.trace.schema import EventFlag

Row = tuple[int, int, int]  # series, start, end


def by_definition(rows: list[Row]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Parent, depth, covered and self time of rows in tree order, straight from the rules."""
    parent, depth, covered, own = [], [], [], []
    for at, (series, start, end) in enumerate(rows):
        around = [i for i in range(at) if rows[i][0] == series and rows[i][2] >= end]
        parent.append(max(around, default=-1))
        depth.append(depth[parent[at]] + 1 if around else 0)
        siblings = [rows[i] for i in range(at) if parent[i] == parent[at] and rows[i][0] == series]
        taken = {ns for _, s, e in siblings for ns in range(s, e)}
        covered.append(len(set(range(start, end)) - taken))
        own.append(end - start)
    for at, up in enumerate(parent):
        if up >= 0:
            own[up] -= covered[at]
    return parent, depth, covered, own


rows_of = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 30), st.integers(0, 12)), max_size=40
)


@settings(max_examples=400)
@given(rows_of, st.sampled_from([0, 1, 2, 24]))
def test_nesting_is_as_defined(rows: list[Row], peeled: int) -> None:
    """Also with ties, no lengths, and intervals that overlap; by levels and one by one."""
    rows = sorted(rows, key=lambda row: row[1])
    series, start, dur = (np.array([row[i] for row in rows], np.int64) for i in range(3))
    order = tree_order(series.astype(np.intp), start, start + dur)
    series, start, end = series[order], start[order], (start + dur)[order]
    with mock.patch.object(nesting, "PEELED", peeled):
        forest = nest(series.astype(np.intp), start, end)
    ordered = list(zip(series.tolist(), start.tolist(), end.tolist(), strict=True))
    assert ordered == sorted(ordered, key=lambda row: (row[0], row[1], -row[2]))
    got = (forest.parent, forest.depth, forest.covered_ns, forest.self_ns(start, end))
    assert tuple(column.tolist() for column in got) == by_definition(ordered)


def test_spans_too_long_for_one_line_nest_all_the_same() -> None:
    """Calls of 20 years on 100 threads, each with two inside."""
    series = np.repeat(np.arange(100), 3)
    start = np.tile([0, 10, 50], 100)
    end = np.tile([1 << 59, 40, 1 << 58], 100)
    forest = nest(series, start, end)
    assert forest.parent.tolist() == [n for t in range(100) for n in (-1, 3 * t, 3 * t)]
    assert forest.depth.tolist() == [0, 1, 1] * 100


def test_of_two_calls_of_one_interval_the_outer_is_by_kind_then_by_return(tmp_path: Path) -> None:
    """vfs_write in write in fwrite, all within one instant; and fs functions as they returned."""
    inner = Call(func="filemap_add_folio", start=BEGIN_NS, dur=0)
    for func in ("down_write", "vfs_write", "write", "fwrite"):
        inner = Call(func=func, start=BEGIN_NS, dur=0, inner=[inner])
    host = written(tmp_path, Host(name="n1", threads={(1, 1): [inner]}))
    assert {path for path, *_ in observed(host)} == {
        ("fwrite",),
        ("fwrite", "write"),
        ("fwrite", "write", "vfs_write"),
        ("fwrite", "write", "vfs_write", "down_write"),
        ("fwrite", "write", "vfs_write", "down_write", "filemap_add_folio"),
    }


def written(directory: Path, host: Host, **how: Any) -> HostTrace:
    return open_trace(write_run(directory, [host], **how)).hosts[0]


def observed(host: HostTrace) -> list[tuple[tuple[str, ...], int, int]]:
    """Path, length and covered time of every call that `nested` gives; paths by inheritance."""
    functions = Functions(host.table("functions"))
    found, paths = [], None
    for batch in nested(host, functions=functions):
        paths = batch.carry(paths, None, object)
        given_out = set()
        for level, rows in enumerate(batch.levels):
            assert level == 0 or len(rows)
            for row in rows.tolist():
                parent = int(batch.parent[row])
                above = paths[parent] if parent >= 0 else ()
                assert batch.depth[row] == len(above)
                paths[row] = (*above, functions[int(batch.rows["func"][row])].name)
                found.append((paths[row], int(batch.rows["dur"][row]), int(batch.covered_ns[row])))
                given_out.add(row)
        late = batch.rows["flags"] & EventFlag.ASYNC != 0
        assert given_out | set(np.flatnonzero(late)) >= set(range(len(batch.kept), len(late)))
    return found


def sums(calls: list[tuple[tuple[str, ...], int, int]]) -> dict[tuple[str, ...], list[int]]:
    """Count, time and self time by path."""
    found: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0, 0, 0])
    for path, dur, covered in calls:
        for which, amount in enumerate((1, dur, dur)):
            found[path][which] += amount
        if path[:-1]:
            found[path[:-1]][2] -= covered
    return dict(found)


def known(host: Host) -> dict[tuple[str, ...], list[int]]:
    return {path: [s.count, s.time_ns, s.self_ns] for path, s in breakdown(host.calls()).items()}


@settings(max_examples=40)
@given(st.integers(0, 10**9), st.sampled_from([7, 50, 100_000]), st.integers(1, 40))
def test_generated_trees_come_back(seed: int, segment_events: int, batch_rows: int) -> None:
    """Whatever the segments and batches, with calls open across many of them."""
    (host,) = random_hosts(seed, calls=8)
    with tempfile.TemporaryDirectory() as directory:
        trace = written(Path(directory), host, segment_events=segment_events)
        with mock.patch("datacrumbs.trace.reader.BATCH_ROWS", batch_rows):
            assert sums(observed(trace)) == known(host)


def test_one_call_around_all_others(tmp_path: Path) -> None:
    (host,) = random_hosts(5, threads=1, calls=300)
    ((thread, trees),) = host.threads.items()
    whole = Call(func="run_step", start=trees[0].start - 1, dur=0, inner=trees)
    whole.dur = trees[-1].end + 1 - whole.start
    host.threads[thread] = [whole]
    with mock.patch("datacrumbs.trace.reader.BATCH_ROWS", 10):
        assert sums(observed(written(tmp_path, host, segment_events=64))) == known(host)


def test_deep_recursion(tmp_path: Path) -> None:
    call = Call(func="run_step", start=BEGIN_NS + 500, dur=10)
    for _ in range(200):
        call = Call(func="run_step", start=call.start - 1, dur=call.dur + 3, inner=[call])
        call.inner.append(Call(func="write", start=call.end - 2, dur=1))
    host = Host(name="n1", threads={(1, 1): [call]})
    assert sums(observed(written(tmp_path, host))) == known(host)


def test_two_threads_and_a_pid_used_again_do_not_nest(tmp_path: Path) -> None:
    outer = Call(func="write", start=BEGIN_NS, dur=1000)
    other = Call(func="vfs_write", start=BEGIN_NS + 10, dur=5)
    threads = {(1, 1): [outer], (1, 2): [other], (2, 2): [other]}
    found = observed(written(tmp_path, Host(name="n1", threads=threads)))
    assert [path for path, *_ in found] == [("write",), ("vfs_write",), ("vfs_write",)]


def test_what_a_lost_parent_called_belongs_further_out(tmp_path: Path) -> None:
    inner = Call(func="vfs_write", start=BEGIN_NS + 20, dur=5)
    outer = Call(func="fwrite", start=BEGIN_NS, dur=100, inner=[inner])  # its write is lost
    orphan = Call(func="vfs_read", start=BEGIN_NS + 200, dur=5)
    found = observed(written(tmp_path, Host(name="n1", threads={(1, 1): [outer, orphan]})))
    assert found == [
        (("fwrite",), 100, 100),
        (("fwrite", "vfs_write"), 5, 5),
        (("vfs_read",), 5, 5),
    ]


def test_unfinished_calls_contain_no_finished_ones(tmp_path: Path) -> None:
    """An exception left run_step; a write inside H5Dwrite was killed."""
    left = Call(func="run_step", start=BEGIN_NS, dur=1000, flags=1)
    done = Call(func="read", start=BEGIN_NS + 100, dur=10)
    killed = Call(func="H5Dwrite", start=BEGIN_NS + 200, dur=800, flags=1)
    killed.inner = [Call(func="write", start=BEGIN_NS + 300, dur=700, flags=1)]
    killed.inner[0].inner = [Call(func="down_write", start=BEGIN_NS + 400, dur=5)]
    host = Host(name="n1", threads={(1, 1): [left, done, killed]})
    assert [path for path, *_ in sorted(observed(written(tmp_path, host)))] == [
        ("down_write",),
        ("read",),
        ("run_step",),
        ("run_step", "H5Dwrite"),
        ("run_step", "H5Dwrite", "write"),
    ]


def test_what_the_kernel_does_later_is_in_no_call(tmp_path: Path) -> None:
    sync = Call(func="fsync", start=BEGIN_NS, dur=1000)
    later = Call(func="block_rq", start=BEGIN_NS + 100, dur=50)
    host = Host(name="n1", threads={(1, 1): [sync]}, later={(1, 1): [later]})
    rows = [
        (batch.rows["flags"][batch.new], batch.parent[batch.new], batch.depth[batch.new])
        for batch in nested(written(tmp_path, host))
    ]
    flat = [np.concatenate(column).tolist() for column in zip(*rows, strict=True)]
    assert sorted(zip(*flat, strict=True)) == [(0, -1, 0), (4, -1, -1)]


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_layers_is_no_part_of_nesting(tmp_path: Path, seed: int) -> None:
    """A user function called back from a kernel function nests as its interval says."""
    rng = random.Random(seed)
    names = [name for _, _, functions in STACK for name in functions]
    call = Call(func=rng.choice(names), start=BEGIN_NS + 100, dur=10)
    for _ in range(6):
        call = Call(func=rng.choice(names), start=call.start - 3, dur=call.dur + 5, inner=[call])
    host = Host(name="n1", threads={(1, 1): [call]})
    assert sums(observed(written(tmp_path, host))) == known(host)
