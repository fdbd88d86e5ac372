"""Exports: every event, with the right numbers, in formats that others read."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from export_samples import COUNT, FILES, ODD, PATHS, START, both_hosts, write_run
from perfetto.protos.perfetto.trace import perfetto_trace_pb2
from trace_samples import FUNCTIONS, file_size_limit, sample

from datacrumbs.errors import BadInputError, UserError
from datacrumbs.export.select import Selection
from datacrumbs.export.write import Format, export, format_of
from datacrumbs.trace.reader import open_trace
from datacrumbs.trace.writer import TraceWriter


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("export") / "4711")


def _export(run: Path, out: Path, form: Format, **settings: Any) -> Path:
    export(open_trace(run), out, form, **settings)
    return out


def _dftracer(path: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(path.read_bytes()).decode()
    first, *rest = text.splitlines()
    assert first == "["
    return [json.loads(line) for line in rest]


def test_dftracer_lines_have_every_event_and_every_name(run: Path, tmp_path: Path) -> None:
    lines = _dftracer(_export(run, tmp_path / "x.pfw.gz", Format.DFTRACER, gzip=True))
    events = [line for line in lines if line.get("type") == 3]
    wanted = both_hosts()
    assert len(events) == len(wanted) == 2 * COUNT
    ids = [line["id"] for line in lines if "id" in line]
    assert ids == list(range(1, len(ids) + 1))
    names = {1: ("read", "POSIX"), 2: ("write", "POSIX"), 3: ("solve", "app")}
    assert Counter((e["name"], e["cat"]) for e in events) == Counter(
        names[func] for func in wanted["func"].tolist()
    )
    paths = {line["args"]["value"]: line["args"]["name"] for line in lines if line["name"] == "FH"}
    assert set(paths.values()) == set(PATHS)
    named = Counter(paths[e["args"]["fhash"]] for e in events if "fhash" in e["args"])
    known = dict(zip(FILES, PATHS, strict=True))
    assert named == Counter(known[file] for file in wanted["file"].tolist() if file)
    hosts = {line["args"]["value"]: line["args"]["name"] for line in lines if line["name"] == "HH"}
    assert Counter(hosts[e["args"]["hhash"]] for e in events) == {"n1": COUNT, "n2": COUNT}
    (exe,) = {line["args"]["name"] for line in lines if line["name"] == "SH"}
    assert exe == "/opt/app/solve"


def test_dftracer_times_are_whole_and_their_sums_right(run: Path, tmp_path: Path) -> None:
    lines = _dftracer(_export(run, tmp_path / "x.pfw.gz", Format.DFTRACER, gzip=True))
    wanted = both_hosts()
    for func, name in ((1, "read"), (2, "write"), (3, "solve")):
        calls = [line for line in lines if line.get("type") == 3 and line["name"] == name]
        mine = wanted[wanted["func"] == func]
        # what is left over of each host's last call is less than a microsecond
        assert 0 <= int(mine["dur"].sum()) - 1000 * sum(e["dur"] for e in calls) < 2 * 1000
        assert sum(e["args"]["ret"] for e in calls) == int(mine["ret"].sum())
        by_time = {e["ts"] for e in calls}
        assert by_time == {(START + int(ts) - 10**15) // 1000 for ts in mine["ts"]}


def test_a_duration_is_off_by_less_than_a_microsecond(tmp_path: Path) -> None:
    run = write_run(tmp_path / "1", ("n1",))
    lines = _dftracer(_export(run, tmp_path / "x.pfw.gz", Format.DFTRACER, gzip=True))
    by_offset = {e["args"]["offset"]: e["dur"] for e in lines if e.get("type") == 3}
    for event in sample(COUNT):
        assert abs(by_offset[int(event["offset"])] * 1000 - int(event["dur"])) < 1000


def test_gzip_members_are_of_about_a_mebibyte(tmp_path: Path) -> None:
    run = write_run(tmp_path / "1", ("n1",), count=60_000, segment_events=60_000)
    path = _export(run, tmp_path / "x.pfw.gz", Format.DFTRACER, gzip=True)
    sizes, data = [], path.read_bytes()
    while data:
        unpacker = zlib.decompressobj(wbits=31)
        member = unpacker.decompress(data)
        assert member.endswith(b"\n")
        sizes.append(len(member))
        data = unpacker.unused_data
    assert max(sizes) < 1 << 20 | 1 << 16
    assert sum(size > 1 << 19 for size in sizes) >= 8


def test_chrome_json_has_nanoseconds_and_unique_processes(run: Path, tmp_path: Path) -> None:
    path = _export(run, tmp_path / "x.json", Format.CHROME)
    rows = json.loads(path.read_bytes())["traceEvents"]
    calls = [row for row in rows if row["ph"] == "X"]
    wanted = both_hosts()
    assert len(calls) == len(wanted)
    assert Counter(row["pid"] for row in calls) == {4711: COUNT, 10_004_711: COUNT}
    names = {row["pid"]: row["args"]["name"] for row in rows if row["name"] == "process_name"}
    assert names == {4711: "solve (pid 4711 on n1)", 10_004_711: "solve (pid 4711 on n2)"}
    times = sorted((round(row["ts"] * 1000), round(row["dur"] * 1000)) for row in calls)
    assert times == sorted((int(e["ts"]) - 10**15, int(e["dur"])) for e in wanted)
    assert sum(row["args"].get("path") == ODD for row in calls) == sum(wanted["file"] == 1 << 61)
    assert sum("unfinished" in row["args"] for row in calls) == sum(wanted["flags"] & 1)


def test_csv_is_the_events(run: Path, tmp_path: Path) -> None:
    path = _export(run, tmp_path / "x.csv.gz", Format.CSV, gzip=True)
    frame = pl.read_csv(gzip.decompress(path.read_bytes()))
    wanted = both_hosts()
    assert len(frame) == len(wanted)
    assert sorted(frame["time_ns"]) == sorted((wanted["ts"] - 10**15 + START).tolist())
    assert frame["duration_ns"].sum() == wanted["dur"].sum()
    assert frame["ret"].sum() == wanted["ret"].sum()
    assert frame["size_bytes"].null_count() == (wanted["size"] < 0).sum()
    assert frame.filter(pl.col("path") == ODD).height == sum(wanted["file"] == 1 << 61)
    assert frame.filter(pl.col("name") == "solve")["layer"].unique().to_list() == ["app"]


def test_perfetto_slices_begin_and_end(tmp_path: Path) -> None:
    run = write_run(tmp_path / "1", ("n1",))
    path = _export(run, tmp_path / "x.pftrace", Format.PERFETTO)
    trace = perfetto_trace_pb2.Trace.FromString(path.read_bytes())
    tracks = {p.track_descriptor.uuid: p.track_descriptor.thread for p in trace.packet
              if p.HasField("track_descriptor")}  # fmt: skip
    begins = [p for p in trace.packet if p.track_event.type == 1]
    ends = [p for p in trace.packet if p.track_event.type == 2]
    wanted = sample(COUNT)
    assert len(begins) == len(ends) == COUNT
    assert sum(e.timestamp - b.timestamp for b, e in zip(begins, ends, strict=True)) == int(
        wanted["dur"].sum()
    )
    threads = Counter(tracks[p.track_event.track_uuid].tid for p in begins)
    assert threads == Counter(wanted["tid"].tolist())


@pytest.mark.parametrize(
    ("selection", "keep"),
    [
        (Selection(layers=("app",)), lambda e: e["func"] == 3),
        (Selection(pids=(1,)), lambda e: e["pid"] == 1),
        (Selection(pids=(1, 4711)), lambda e: e["pid"] == 4711),
        (
            Selection(start_ns=1_000_000, end_ns=2_000_000),
            lambda e: (e["ts"] + e["dur"] >= 10**15 + 10**6) & (e["ts"] <= 10**15 + 2 * 10**6),
        ),
    ],
)
def test_what_is_selected_is_written(
    run: Path, tmp_path: Path, selection: Selection, keep: Any
) -> None:
    path = tmp_path / "x.csv"
    done = export(open_trace(run), path, Format.CSV, selection=selection)
    assert done.events == keep(both_hosts()).sum() == pl.read_csv(path).height
    assert done.bytes == path.stat().st_size


def test_one_host_of_two(run: Path, tmp_path: Path) -> None:
    done = export(open_trace(run), tmp_path / "x.csv", Format.CSV, selection=Selection(("n2",)))
    assert done.events == COUNT


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(hosts=("n3",)), "no host 'n3' in this trace"),
        (Selection(layers=("hdf5",)), "no layer 'hdf5' in this trace"),
    ],
)
def test_a_name_the_trace_has_not_got(
    run: Path, tmp_path: Path, selection: Selection, message: str
) -> None:
    with pytest.raises(BadInputError) as caught:
        export(open_trace(run), tmp_path / "x.csv", Format.CSV, selection=selection)
    assert caught.value.message == message
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_what_was_there(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.csv"
    out.write_text("before\n")
    with file_size_limit(1 << 16), pytest.raises(UserError, match="cannot write it: File too"):
        export(open_trace(run), out, Format.CSV)
    assert out.read_text() == "before\n"
    assert os.listdir(tmp_path) == ["x.csv"]


def test_a_running_trace_is_exported_so_far(tmp_path: Path) -> None:
    directory = tmp_path / "1" / "host=n1"
    directory.mkdir(parents=True)
    writer = TraceWriter(directory, segment_events=1024)
    writer.write_rows("functions", FUNCTIONS)
    writer.write_events(sample(1100))
    writer.flush()
    assert export(open_trace(tmp_path / "1"), tmp_path / "x.csv", Format.CSV).events == 1100
    writer.close()


def test_formats_by_name() -> None:
    named = {
        "a.pfw.gz": (Format.DFTRACER, True),
        "a.json": (Format.CHROME, False),
        "b.csv.gz": (Format.CSV, True),
        "c.pftrace": (Format.PERFETTO, False),
        "d.txt": (None, False),
        "-": (None, False),
    }
    assert {name: format_of(Path(name)) for name in named} == named


def _command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = Path(sys.executable).with_name("datacrumbs_export")
    return subprocess.run([command, *arguments], capture_output=True, text=True, check=False)


def test_the_command(run: Path, tmp_path: Path) -> None:
    done = _command(run, "-o", tmp_path / "x.csv", "--layer", "app", "--host", "n1")
    count = int((sample(COUNT)["func"] == 3).sum())
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith(f"{count} events, ")
    piped = _command(run, "-o", "-", "--format", "csv", "--quiet", "--layer", "app", "--host", "n1")
    assert piped.stdout == (tmp_path / "x.csv").read_text()
    assert piped.stderr == ""


def test_the_command_says_what_is_wrong(run: Path, tmp_path: Path) -> None:
    for arguments, words in (
        ((run, "-o", tmp_path / "x.txt"), "the name does not say which format"),
        ((run, "-o", tmp_path / "x.csv", "--start", "-1"), "--start: -1.0: not seconds after"),
        ((tmp_path / "none", "-o", tmp_path / "x.csv"), "No such file or directory"),
        ((run, "-o", tmp_path, "--format", "csv"), "not a regular file"),
    ):
        done = _command(*arguments)
        assert done.returncode == 2
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []
