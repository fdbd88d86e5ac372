"""The trace reader: finished, running and cut-off traces; what is no trace at all."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PosixPath

import pyarrow as pa
import pytest
from pyarrow import ipc
from trace_samples import FUNCTIONS, fork, numbers, run_info, sample

from datacrumbs.errors import BadInputError
from datacrumbs.trace.reader import BATCH_ROWS, HostTrace, open_trace
from datacrumbs.trace.runfile import RUN_FILE, State, write_run_info
from datacrumbs.trace.schema import EVENT_DTYPE, EVENTS, TABLES, arrow_schema
from datacrumbs.trace.writer import TraceWriter


def _host(run: Path, name: str, count: int, *, first: int = 0, complete: bool = True) -> Path:
    directory = run / f"host={name}"
    directory.mkdir(parents=True)
    writer = TraceWriter(directory, segment_events=1024)
    writer.write_rows("functions", FUNCTIONS)
    writer.write_events(sample(count, first=first))
    writer.close()
    if complete:
        write_run_info(directory, run_info(state=State.COMPLETE, host=name))
    return directory


def test_a_run_of_several_hosts(tmp_path: Path) -> None:
    for index, name in enumerate(("n2", "n1", "n10")):
        _host(tmp_path / "4711", name, 23 * (index + 1), first=1000 * index)
    (tmp_path / "4711" / "previous-1.host=n1").mkdir()
    (tmp_path / "4711" / "notes.txt").write_text("the user's own\n")
    trace = open_trace(tmp_path / "4711")
    assert [host.host for host in trace.hosts] == ["n1", "n10", "n2"]
    assert [host.count() for host in trace.hosts] == [46, 69, 23]
    assert {host.state for host in trace.hosts} == {State.COMPLETE}
    assert trace.hosts[0].run is not None
    assert trace.hosts[0].run.host == "n1"


def test_one_host_alone_also_when_moved_aside(tmp_path: Path) -> None:
    directory = _host(tmp_path, "n1", 23)
    assert [host.host for host in open_trace(directory).hosts] == ["n1"]
    aside = directory.rename(tmp_path / "previous-1.host=n1")
    (host,) = open_trace(aside).hosts
    assert (host.host, host.count()) == ("n1", 23)


def test_columns_come_as_asked_and_batches_are_bounded(tmp_path: Path) -> None:
    count = BATCH_ROWS + 1111
    for directory, closes in ((tmp_path / "closed", True), (tmp_path / "open", False)):
        directory.mkdir()
        writer = TraceWriter(directory, segment_events=count + 1)
        writer.write_events(sample(count))
        writer.flush()
        writer.close() if closes else None
        (host,) = open_trace(directory).hosts
        batches = list(host.events(["tid", "ts"]))
        assert [batch.schema.names for batch in batches] == [["tid", "ts"]] * len(batches)
        assert max(len(batch) for batch in batches) <= BATCH_ROWS
        assert sum(len(batch) for batch in batches) == count
        times = pa.chunked_array([batch.column(1) for batch in batches]).to_pylist()
        assert times == sorted(times)
        assert next(host.events()).schema.names == list(EVENT_DTYPE.names or ())


def test_segments_tell_their_times_open_or_closed(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, segment_events=1024)
    events = sample(1500)
    writer.write_events(events)
    writer.flush()
    (host,) = open_trace(tmp_path).hosts
    closed, still_open = host.segments()
    assert (closed.number, closed.rows, closed.closed) == (1, 1024, True)
    assert closed.path.name == "events-000001.parquet"
    assert (closed.min_ts, closed.max_ts) == (events["ts"][:1024].min(), events["ts"][:1024].max())
    assert (still_open.number, still_open.rows, still_open.closed) == (2, 476, False)
    assert still_open.min_ts == events["ts"][1024:].min()
    assert still_open.max_ts == events["ts"][1024:].max()
    writer.close()


def test_times_of_a_segment_of_many_row_groups(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, segment_events=100_000)
    events = sample(100_000)
    writer.write_events(events)
    writer.close()
    (segment,) = open_trace(tmp_path).hosts[0].segments()
    assert (segment.min_ts, segment.max_ts) == (events["ts"].min(), events["ts"].max())


def test_a_run_without_events(tmp_path: Path) -> None:
    directory = _host(tmp_path, "n1", 0)
    (host,) = open_trace(directory).hosts
    assert (host.count(), host.segments(), list(host.events())) == (0, [], [])
    assert len(host.table("functions")) == 3
    for name in set(TABLES) - {EVENTS, "functions"}:
        assert host.table(name).schema == arrow_schema(name)
        assert len(host.table(name)) == 0


def test_a_run_without_run_json_is_read_and_says_so(tmp_path: Path) -> None:
    _host(tmp_path, "n1", 23, complete=False)
    (host,) = open_trace(tmp_path).hosts
    assert (host.run, host.state, host.host, host.count()) == (None, State.CUT_OFF, "n1", 23)


def test_a_stream_cut_at_any_byte_gives_its_whole_batches(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, segment_events=1024)
    path = tmp_path / "events-000001.arrows"
    ends = {0: 0}  # size of the file: events in it
    for count, total in ((5, 5), (7, 12), (11, 23)):
        writer.write_events(sample(count, first=total - count))
        writer.flush()
        ends[path.stat().st_size] = total
    data = path.read_bytes()
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        whole = max(total for end, total in ends.items() if end <= size)
        assert sorted(numbers(tmp_path)) == list(range(whole)), size
    writer.close()


def test_rubbish_after_the_last_whole_batch_is_left_out(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, segment_events=1024)
    writer.write_events(sample(23))
    writer.flush()
    path = tmp_path / "events-000001.arrows"
    whole = path.read_bytes()
    for tail in (bytes(4096), b"\xff" * 3, b"\xff\xff\xff\xff\x10\x27\x00\x00", os.urandom(999)):
        path.write_bytes(whole + tail)
        assert sorted(numbers(tmp_path)) == list(range(23))
    writer.close()


def test_both_forms_of_a_segment_count_once(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, segment_events=1024)
    writer.write_events(sample(23))
    writer.flush()
    stream = (tmp_path / "events-000001.arrows").read_bytes()
    writer.close()
    (tmp_path / "events-000001.arrows").write_bytes(stream)  # killed between rename and removal
    (tmp_path / ".events-000002.parquet.tmp").write_bytes(b"PAR1")  # killed while writing this
    (host,) = open_trace(tmp_path).hosts
    assert host.count() == len(numbers(tmp_path)) == 23
    assert [segment.closed for segment in host.segments()] == [True]


class _Overtaken(PosixPath):
    """A directory whose first listing the writer overtakes: it has passed the place of the new
    Parquet file before that was there, and comes to the stream's after that was removed."""

    def iterdir(self) -> Iterator[Path]:
        before = list(super().iterdir())
        streams = [path for path in before if path.suffix == ".arrows"]
        for path in streams:
            (self.parent / "done.parquet").rename(path.with_suffix(".parquet"))
            path.unlink()
        return iter([_Overtaken(path) for path in before if path not in streams])


def test_a_segment_that_a_listing_misses_is_found_by_name(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    writer = TraceWriter(directory, segment_events=1024)
    writer.write_events(sample(2048 + 23))
    writer.flush()
    stream = (directory / "events-000003.arrows").read_bytes()
    writer.close()
    (directory / "events-000003.parquet").rename(tmp_path / "done.parquet")
    (directory / "events-000003.arrows").write_bytes(stream)
    host = HostTrace("n1", _Overtaken(directory), None, State.RUNNING)
    assert [segment.rows for segment in host.segments()] == [1024, 1024, 23]
    assert host.count() == 2048 + 23


def test_reading_beside_a_busy_writer_sees_each_event_once(tmp_path: Path) -> None:
    def daemon() -> None:
        writer = TraceWriter(tmp_path, segment_events=1024)
        for first in itertools.count(step=97):
            writer.write_events(sample(97, first=first))
            if first % 5 == 0:
                writer.flush()

    pid = fork(daemon)
    try:
        lengths = _read_until(tmp_path, lambda seen: len(seen) > 20 and seen[-1] > 20_000)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert lengths == sorted(lengths)


def _read_until(directory: Path, enough: Callable[[list[int]], bool]) -> list[int]:
    """Read again and again; every time it must be all events from 0 to some number."""
    lengths: list[int] = []
    deadline = time.monotonic() + 60
    while not (lengths and enough(lengths)):
        assert time.monotonic() < deadline, lengths
        if list(directory.glob("events-*")):
            seen = numbers(directory)
            assert sorted(seen) == list(range(len(seen)))
            lengths.append(len(seen))
    return lengths


def test_a_segment_closed_between_listing_and_reading(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, segment_events=10)
    writer.write_events(sample(25))
    writer.flush()
    batches = open_trace(tmp_path).hosts[0].events(["offset"])
    seen = next(batches).column(0).to_pylist()
    writer.write_events(sample(5, first=25))  # fills the third segment, whose stream goes
    writer.flush()
    seen += [n for batch in batches for n in batch.column(0).to_pylist()]
    assert sorted(seen) == list(range(30))
    writer.close()


def test_batches_of_the_open_stream_have_the_documented_schema(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, segment_events=1024)
    writer.write_events(sample(23))
    writer.flush()
    assert ipc.open_stream(tmp_path / "events-000001.arrows").schema == arrow_schema(EVENTS)
    writer.close()
    assert next(open_trace(tmp_path).hosts[0].events()).schema == arrow_schema(EVENTS)


def _error(path: Path) -> BadInputError:
    with pytest.raises(BadInputError) as caught:
        open_trace(path)
    assert "\n" not in caught.value.message
    return caught.value


def test_nothing_there(tmp_path: Path) -> None:
    assert _error(tmp_path / "none").message == f"{tmp_path}/none: No such file or directory"


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert _error(tmp_path / "file").message == f"{tmp_path}/file: Not a directory"


def test_an_empty_directory(tmp_path: Path) -> None:
    assert _error(tmp_path).message == f"{tmp_path}: not a trace"
    (tmp_path / "host=n1").mkdir()
    assert _error(tmp_path / "host=n1").message == f"{tmp_path}/host=n1: not a trace"


def test_a_directory_of_runs_names_them(tmp_path: Path) -> None:
    _host(tmp_path / "4711", "n1", 1)
    _host(tmp_path / "4712", "n1", 1)
    assert _error(tmp_path).hint == "it holds runs, give one of them: 4711, 4712"


def test_a_later_format_is_refused_by_name(tmp_path: Path) -> None:
    directory = _host(tmp_path, "n1", 1)
    (directory / RUN_FILE).write_text('{"format": 2, "hosts": {}}')
    error = _error(tmp_path)
    assert error.message.endswith("trace is format 2, this datacrumbs reads up to 1")
    assert error.hint.startswith("update")


def test_a_damaged_segment_is_named(tmp_path: Path) -> None:
    directory = _host(tmp_path, "n1", 2500)
    path = directory / "events-000002.parquet"
    path.write_bytes(path.read_bytes()[:1000])
    (host,) = open_trace(tmp_path).hosts
    for use in (host.count, lambda: list(host.events()), host.segments):
        with pytest.raises(BadInputError, match=r"events-000002\.parquet: "):
            use()
