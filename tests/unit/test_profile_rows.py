"""The kernel's sums as rows of ``intervals``, against a slow reference."""

from __future__ import annotations

import ctypes
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_samples import FUNCTIONS, file_size_limit

from datacrumbs.errors import UserError
from datacrumbs.trace.reader import open_trace
from datacrumbs.trace.schema import INTERVALS
from datacrumbs.trace.writer import INTERVAL_SEGMENT_ROWS, TraceWriter
from datacrumbs.tracer import layout
from datacrumbs.tracer.plan import fill_rule
from datacrumbs.tracer.profile import CELL, KEY, SUMS, empty_cells, rows

CALL = st.tuples(
    st.integers(1, 3),  # pid
    st.sampled_from([1, 2, 65535]),  # func
    st.integers(0, 3),  # cpu
    st.integers(0, layout.POWERS - 1),
)


def sums_of(calls: list[tuple[int, int, int, int]]) -> tuple[Any, Any]:
    """What the kernel would hold after ``calls``, each of which moves 3 bytes and fails."""
    entries: dict[tuple[int, int, int], Any] = {}
    for pid, func, cpu, power in calls:
        entry = entries.setdefault((pid, func, cpu), np.zeros((), SUMS))
        entry["calls"][power] += 1
        entry["time"] += 1 << power
        entry["max"] = max(entry["max"], 1 << power)
        entry["bytes"] += 3
        entry["errors"] += 1
    return np.array(list(entries), KEY), np.array(list(entries.values()), SUMS)


@given(st.lists(CALL, min_size=1, max_size=60))
def test_cpus_are_added_up(calls: list[tuple[int, int, int, int]]) -> None:
    found = rows(*sums_of(calls), start_ns=10**15, dur_ns=987_654_321)
    powers = defaultdict(list)
    for pid, func, _, power in calls:
        powers[pid, func].append(power)
    by_row = list(zip(found["pid"].tolist(), found["func"].tolist(), strict=True))
    assert by_row == sorted(powers)
    for at, key in enumerate(by_row):
        of_key = powers[key]
        histogram = found["histogram"][at].as_py()
        assert histogram == [of_key.count(power) for power in range(max(of_key) + 1)]
        assert found["count"][at] == len(of_key)
        assert found["time"][at] == sum(1 << power for power in of_key)
        assert found["max"][at] == 1 << max(of_key)
        assert found["bytes"][at] == 3 * len(of_key)
        assert found["errors"][at] == len(of_key)
    assert set(found["ts"].tolist()) == {10**15}
    assert set(found["dur"].tolist()) == {987_654_321}


def test_the_structures_have_no_holes() -> None:
    """numpy reads what the kernel wrote: sizes as in bpf/datacrumbs.h."""
    assert KEY.itemsize == ctypes.sizeof(layout.ProfileKey) == 8
    assert SUMS.itemsize == ctypes.sizeof(layout.Profile) == 4 * 8 + 4 * layout.POWERS
    assert CELL.itemsize == ctypes.sizeof(layout.Cell) == 4 * 64


@given(st.lists(CALL, max_size=60))
def test_cells_are_emptied_into_the_same_rows(calls: list[tuple[int, int, int, int]]) -> None:
    """What threads added to cells is what they would have added to the map."""
    keys, sums = sums_of([(pid, func, 0, power) for pid, func, _, power in calls])
    bank = np.zeros(64, CELL)
    used = np.arange(len(keys)) * 7 + 1
    bank["who"][used] = (keys["pid"].astype(np.uint64) + 1000) << 16 | keys["func"]
    bank["pid"][used], bank["sums"][used] = keys["pid"], sums
    parts = list(empty_cells(bank))
    assert not bank["who"].any() and not bank["sums"]["calls"].any()
    assert len(parts) == bool(calls)
    for found_keys, found_sums in parts:
        assert found_keys.tolist() == keys.tolist()
        assert (found_sums == sums).all()


def many(count: int, *, first: int = 0) -> tuple[Any, Any]:
    """Sums of ``count`` processes with 1 + pid % 5 calls each."""
    keys = np.zeros(count, KEY)
    keys["pid"] = np.arange(first, first + count)
    keys["func"] = 1
    sums = np.zeros(count, SUMS)
    sums["calls"][:, 10] = 1 + keys["pid"] % 5
    sums["time"] = 1500
    return keys, sums


def test_100_000_rows_an_interval_become_segments(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, segment_events=1024)
    writer.write_rows("functions", FUNCTIONS)
    for second in range(4):
        writer.write_rows(INTERVALS, rows(*many(100_000), start_ns=second, dur_ns=1))
        writer.flush()
    closed = list(tmp_path.glob("intervals-*.parquet"))
    assert len(closed) == 1
    writer.write_rows(INTERVALS, rows(*many(7), start_ns=9, dur_ns=1))
    writer.close()
    (host,) = open_trace(tmp_path).hosts
    table = host.table(INTERVALS)
    assert table.num_rows == 400_007
    assert sum(table["count"].to_pylist()) == 4 * 300_000 + sum(1 + n % 5 for n in range(7))
    assert max(len(batch) for batch in host.batches(INTERVALS)) <= INTERVAL_SEGMENT_ROWS
    assert writer.calls_lost == writer.rows_lost == 0


def test_calls_in_rows_that_a_full_disk_costs_are_counted(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, segment_events=1024)
    writer.write_rows(INTERVALS, rows(*many(1000), start_ns=0, dur_ns=1))
    writer.flush()
    with file_size_limit(100):
        # more than is kept waiting for the disk
        for second in range(1 + INTERVAL_SEGMENT_ROWS // 50_000):
            writer.write_rows(INTERVALS, rows(*many(50_000), start_ns=1 + second, dur_ns=1))
        writer.flush()
    assert writer.calls_lost == 3 * 50_000 * (1 + INTERVAL_SEGMENT_ROWS // 50_000)
    assert writer.rows_lost == 0
    writer.close()
    (host,) = open_trace(tmp_path).hosts
    assert host.table(INTERVALS).num_rows == 1000


@pytest.mark.parametrize(
    ("prefix", "path", "names"),
    [
        ("/a/b", b"/a/b", b"b\0a\0"),
        ("//a/./b/", b"/a/b", b"b\0a\0"),
        ("/", b"", b""),
        ("/ä", "/ä".encode(), "ä\0".encode()),
        ("/" + "x" * 254, b"/" + b"x" * 254, b"x" * 254 + b"\0"),
    ],
)
def test_a_path_prefix_for_the_kernel(prefix: str, path: bytes, names: bytes) -> None:
    rule = layout.Rule()
    fill_rule(rule, prefix)
    assert (rule.path, bytes(rule.names[: rule.length])) == (path, names)
    assert rule.length == len(path) == len(names)


@pytest.mark.parametrize("prefix", ["/a/..", "/" + "x" * 255, "/" + "ä" * 130])
def test_a_path_prefix_that_is_refused(prefix: str) -> None:
    with pytest.raises(UserError, match="without"):
        fill_rule(layout.Rule(), prefix)
