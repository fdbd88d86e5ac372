"""The trace writer: every event once, in one form or the other, and counted if not."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import ipc, parquet
from trace_samples import FUNCTIONS, file_size_limit, fork, numbers, sample

from datacrumbs.errors import UserError
from datacrumbs.trace import writer as writer_module
from datacrumbs.trace.reader import open_trace
from datacrumbs.trace.runfile import State
from datacrumbs.trace.schema import EVENT_DTYPE
from datacrumbs.trace.writer import TraceWriter


def _names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def _peers(count: int, *, first: int = 0) -> dict[str, list[int]]:
    rows = list(range(first, first + count))
    return {"ts": rows, "tid": rows, "file": rows, "fd": rows, "offset": rows}


def test_every_field_of_every_event_is_kept_and_sorted_by_time(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, segment_events=1000)
    events = sample(4097)
    for start in range(0, 4097, 23):
        writer.write_events(events[start : start + 23])
    writer.close()
    assert writer.events_lost == 0
    assert _names(tmp_path) == [f"events-{n:06d}.parquet" for n in range(1, 6)]
    (host,) = open_trace(tmp_path).hosts
    kept = pa.Table.from_batches(host.events())
    by_number = kept.sort_by("offset")
    for name in EVENT_DTYPE.names or ():
        np.testing.assert_array_equal(by_number[name].to_numpy(), events[name], name)
    for start in range(0, 4097, 1000):
        times = kept["ts"].to_numpy()[start : start + 1000]
        assert (np.diff(times) >= 0).all()


def test_segments_of_more_than_one_row_group_are_sorted_across_them(tmp_path: Path) -> None:
    count = writer_module.ROW_GROUP_ROWS * 2 + 5
    writer = TraceWriter(tmp_path, segment_events=count)
    writer.write_events(sample(count)[np.random.default_rng(1).permutation(count)])
    writer.close()
    file = parquet.ParquetFile(tmp_path / "events-000001.parquet")
    assert file.metadata.num_row_groups == 3
    np.testing.assert_array_equal(file.read()["ts"].to_numpy(), np.sort(sample(count)["ts"]))


def test_columns_are_encoded_as_the_format_says(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, segment_events=10_000)
    writer.write_events(sample(10_000))
    writer.close()
    file = parquet.ParquetFile(tmp_path / "events-000001.parquet")
    group = file.metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert list(columns) == list(EVENT_DTYPE.names or ())
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    for name, column in columns.items():
        expected = {"ts": "DELTA_BINARY_PACKED", "dur": "DELTA_BINARY_PACKED", "offset": "PLAIN"}
        assert expected.get(name, "RLE_DICTIONARY") in column.encodings, name
        assert column.statistics.has_min_max, name


def test_events_between_other_bytes_of_a_ring_are_taken_as_they_lie(tmp_path: Path) -> None:
    record = np.dtype([("header", "<u8"), ("event", EVENT_DTYPE)])
    ring = np.zeros(777, record)
    ring["event"] = sample(777)
    writer = TraceWriter(tmp_path, segment_events=500)
    writer.write_events(ring["event"])
    ring["event"] = np.zeros((), EVENT_DTYPE)  # the kernel overwrites what was drained
    writer.close()
    assert sorted(numbers(tmp_path)) == list(range(777))


def test_a_flush_makes_everything_readable_and_each_event_once(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, segment_events=1000)
    for first in range(0, 2300, 115):
        writer.write_events(sample(115, first=first))
        writer.flush()
        assert sorted(numbers(tmp_path)) == list(range(first + 115))
    assert _names(tmp_path) == [
        "events-000001.parquet",
        "events-000002.parquet",
        "events-000003.arrows",
    ]
    writer.close()
    assert _names(tmp_path)[2] == "events-000003.parquet"
    assert sorted(numbers(tmp_path)) == list(range(2300))


def test_the_open_stream_is_plain_arrow(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, segment_events=50_000)
    for first in (0, 20_000):
        writer.write_events(sample(20_000, first=first))
        writer.flush()
    table = ipc.open_stream(tmp_path / "events-000001.arrows").read_all()
    np.testing.assert_array_equal(table["offset"].to_numpy(), np.arange(40_000))
    writer.close()


def test_a_killed_daemon_leaves_all_but_what_came_after_the_last_flush(tmp_path: Path) -> None:
    def daemon() -> None:
        writer = TraceWriter(tmp_path, segment_events=1000)
        writer.write_rows("functions", FUNCTIONS)
        writer.write_rows("peers", _peers(7))
        writer.write_events(sample(2345))
        writer.flush()
        writer.write_events(sample(100, first=2345))
        os.kill(os.getpid(), signal.SIGKILL)

    assert os.WTERMSIG(os.waitpid(fork(daemon), 0)[1]) == signal.SIGKILL
    assert sorted(numbers(tmp_path)) == list(range(2345))
    (host,) = open_trace(tmp_path).hosts
    assert host.state is State.CUT_OFF
    assert host.table("functions").to_pydict() == FUNCTIONS
    assert host.table("peers")["ts"].to_pylist() == list(range(7))


def test_a_quiet_run_does_not_collect_batches_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "STREAM_BATCHES", 5)
    writer = TraceWriter(tmp_path, segment_events=1000)
    for first in range(12):
        writer.write_events(sample(1, first=first))
        writer.write_rows("peers", _peers(1, first=first))
        writer.flush()
    expected = [
        f"{table}-{name}"
        for table in ("events", "peers")
        for name in ("000001.parquet", "000002.parquet", "000003.arrows")
    ]
    assert _names(tmp_path) == expected
    writer.close()
    assert sorted(numbers(tmp_path)) == list(range(12))
    assert open_trace(tmp_path).hosts[0].table("peers")["ts"].to_pylist() == list(range(12))


def test_functions_are_parquet_from_the_first_flush(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, segment_events=1000)
    writer.write_rows("functions", FUNCTIONS)
    writer.flush()
    assert _names(tmp_path) == ["functions-000001.parquet"]
    writer.close()


def test_rows_with_nothing_and_with_odd_text(tmp_path: Path) -> None:
    rows: dict[str, list[Any]] = {
        "file": [2**64 - 1, 1],
        "path": ["/tmp/caf\u00e9\n", "/tmp/\\xff"],
        "path_raw": [None, b"/tmp/\xff"],
        "kind": ["regular", "regular"],
        "fstype": [None, "tmpfs"],
        "dev": [2**32 - 1, 0],
        "ino": [2**64 - 1, 0],
        "generation": [0, 1],
        "ts": [10**15, 10**15 + 1],
    }
    writer = TraceWriter(tmp_path, segment_events=1000)
    writer.write_rows("files", rows)
    writer.close()
    assert _names(tmp_path) == ["files-000001.parquet"]
    assert open_trace(tmp_path).hosts[0].table("files").to_pydict() == rows


def test_rows_must_be_whole(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, segment_events=1000)
    with pytest.raises(ValueError, match="peers"):
        writer.write_rows("peers", {"ts": [1]})
    with pytest.raises(ValueError, match="peers"):
        writer.write_rows("peers", _peers(2) | {"fd": [1]})
    writer.close()
    assert _names(tmp_path) == []


def test_many_rows_become_several_segments(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, segment_events=1000)
    for first in range(0, 150_000, 10_000):
        writer.write_rows("peers", _peers(10_000, first=first))
    writer.close()
    assert _names(tmp_path) == [f"peers-{n:06d}.parquet" for n in (1, 2, 3)]
    assert open_trace(tmp_path).hosts[0].table("peers")["ts"].to_pylist() == list(range(150_000))


def test_sizes_and_counts_are_those_of_the_files(tmp_path: Path) -> None:
    def on_disk() -> int:
        return sum(entry.stat().st_size for entry in tmp_path.iterdir())

    writer = TraceWriter(tmp_path, segment_events=1000)
    assert (writer.bytes_written, writer.events) == (0, 0)
    for first in range(0, 3000, 600):
        writer.write_events(sample(600, first=first))
        writer.write_rows("peers", _peers(3))
        writer.flush()
        assert (writer.bytes_written, writer.events) == (on_disk(), first + 600)
    writer.close()
    assert (writer.bytes_written, writer.events) == (on_disk(), 3000)


def test_a_second_writer_does_not_overwrite_the_first(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, segment_events=1000)
    writer.write_events(sample(5))
    writer.close()
    with pytest.raises(UserError, match=r"already holds a trace \(events-000001.parquet\)"):
        TraceWriter(tmp_path, segment_events=1000)


def test_the_user_may_move_the_run_while_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    writer = TraceWriter(tmp_path / "here", segment_events=1000)
    writer.write_events(sample(700))
    writer.flush()
    (tmp_path / "here").rename(tmp_path / "there")
    writer.write_events(sample(700, first=700))
    writer.close()
    assert writer.events_lost == 0
    assert sorted(numbers(tmp_path / "there")) == list(range(1400))


def test_a_removed_directory_costs_events_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    writer = TraceWriter(tmp_path / "run", segment_events=1000)
    (tmp_path / "run").rmdir()
    writer.write_events(sample(2500))
    writer.flush()
    assert "No such file" in writer.problem
    assert (writer.events, writer.events_lost) == (500, 2000)
    writer.close()
    assert (writer.events, writer.events_lost) == (0, 2500)


def test_events_that_a_refused_flush_kept_in_memory_are_not_lost(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, segment_events=5000)
    with file_size_limit(1):
        writer.write_events(sample(1500))
        writer.flush()
        assert "File too large" in writer.problem
    writer.write_events(sample(1500, first=1500))
    writer.flush()
    assert writer.problem == ""
    assert sorted(numbers(tmp_path)) == list(range(3000))
    writer.close()
    assert writer.events_lost == 0
    assert sorted(numbers(tmp_path)) == list(range(3000))


def test_a_stream_that_cannot_become_parquet_is_kept_until_it_can(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, segment_events=2000)
    writer.write_events(sample(1200))
    writer.flush()
    with file_size_limit(1):
        writer.write_events(sample(1000, first=1200))
        writer.flush()
    assert writer.events_lost == 800  # 1200 are in the stream, 200 began the next segment
    assert _names(tmp_path) == ["events-000001.arrows"]
    assert sorted(numbers(tmp_path)) == list(range(1200))
    writer.close()
    assert writer.events_lost == 800
    assert _names(tmp_path) == ["events-000001.parquet", "events-000002.parquet"]
    assert sorted(numbers(tmp_path)) == [*range(1200), *range(2000, 2200)]
    assert writer.bytes_written == sum(entry.stat().st_size for entry in tmp_path.iterdir())


def test_a_batch_that_only_fits_in_part_leaves_no_trace(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, segment_events=5000)
    writer.write_events(sample(1000))
    writer.flush()
    whole = (tmp_path / "events-000001.arrows").read_bytes()
    with file_size_limit(len(whole) + 1000):
        writer.write_events(sample(1000, first=1000))
        writer.flush()
        assert (tmp_path / "events-000001.arrows").read_bytes() == whole
    writer.flush()
    assert sorted(numbers(tmp_path)) == list(range(2000))
    writer.close()


def test_rows_wait_for_room_and_are_counted_when_it_never_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "TABLE_SEGMENT_ROWS", 100)
    writer = TraceWriter(tmp_path, segment_events=1000)
    with file_size_limit(1):
        writer.write_rows("peers", _peers(99))
        writer.flush()
        assert writer.rows_lost == 0
        writer.write_rows("peers", _peers(1, first=99))
        assert writer.rows_lost == 100
        writer.write_rows("peers", _peers(7, first=100))
        writer.flush()
    writer.close()
    assert writer.rows_lost == 100
    assert open_trace(tmp_path).hosts[0].table("peers")["ts"].to_pylist() == list(range(100, 107))


_steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 2500)),
        st.tuples(st.just("flush"), st.just(0)),
        st.tuples(st.just("limit"), st.integers(1, 60_000)),
        st.tuples(st.just("unlimited"), st.just(0)),
    ),
    max_size=30,
)


@settings(max_examples=200)
@given(steps=_steps, closes=st.booleans())
def test_whatever_the_disk_does_kept_and_lost_are_all(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]], closes: bool
) -> None:
    directory = tmp_path_factory.mktemp("run")
    writer = TraceWriter(directory, segment_events=1024)
    given_events = 0
    limit = 1 << 30
    for step, value in steps:
        with file_size_limit(limit):
            if step == "write":
                writer.write_events(sample(value, first=given_events))
                given_events += value
            elif step == "flush":
                writer.flush()
        limit = {"limit": value, "unlimited": 1 << 30}.get(step, limit)
    with file_size_limit(limit if closes else 1 << 30):
        writer.close() if closes else writer.flush()
    kept = numbers(directory) if _names(directory) else []
    assert len(kept) == len(set(kept)) == given_events - writer.events_lost == writer.events
    assert not [name for name in _names(directory) if name.endswith(".tmp")]
    if not closes:
        writer.close()
