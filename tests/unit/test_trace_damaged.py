"""Traces that are damaged, or of a later version: one line and the file's name, or an answer."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from pyarrow import parquet
from report_traces import Call, File, Interval, write_host

from datacrumbs.analysis.explain import explain
from datacrumbs.analysis.live import Watch
from datacrumbs.analysis.selection import Selection as Explained
from datacrumbs.analysis.summary import summarise
from datacrumbs.errors import BadInputError
from datacrumbs.export.select import Selection
from datacrumbs.export.write import Format, export
from datacrumbs.report.html import write_page
from datacrumbs.trace.reader import Trace, open_trace
from datacrumbs.trace.runfile import RUN_FILE, State

DAMAGES = 60
EVENTS = 600
TABLES = ("events", "functions", "files", "processes", "peers", "intervals")

USES: dict[str, Callable[[Trace, Path], object]] = {
    "report": lambda trace, _: summarise(trace, top=None),
    "explain": lambda trace, _: explain(trace, Explained(), top=3),
    "top": lambda trace, _: Watch.start().picture(trace, 1.0, top=8),
    "export": lambda trace, out: export(
        trace, out / "out.csv", Format.CSV, gzip=False, selection=Selection(), advance=unseen
    ),
    "html": lambda trace, out: write_page(trace, out / "out.html", top=5),
}


def unseen(_: int) -> None:
    """Progress that nobody sees."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two hosts, one of which still writes, with rows in all tables that reports read."""
    run = tmp_path_factory.mktemp("sound") / "4711"
    for host, state in (("n1", State.COMPLETE), ("n2", State.RUNNING)):
        calls = [
            Call(
                func=("read", "fread", "renameat", "openat")[n % 4],
                ts=1000 * n,
                dur=400 + n % 97,
                ret=n % 5 - 1,
                file=1 + n % 7,
                offset=n * 4097,
                flags=2 * (n % 4 == 2),
            )
            for n in range(EVENTS)
        ]
        write_host(
            run,
            calls,
            host=host,
            files=[File(file=n, path=f"/data/{n}.h5") for n in range(1, 8)],
            peers=[(call.ts, call.tid, 3) for call in calls if call.flags],
            intervals=[Interval(func="read", ts=10**9 * n, durations=[100, 5000]) for n in (1, 2)],
            segment_events=256,
            state=state,
        )
    return run


@pytest.fixture
def trace(sound: Path, tmp_path: Path) -> Path:
    """A copy of it, to damage."""
    return Path(shutil.copytree(sound, tmp_path / "4711"))


def _damaged(path: Path, chance: random.Random) -> None:
    """Cut it, flip a bit, or overwrite a few bytes; half of the times near the end."""
    data = bytearray(path.read_bytes())
    size = len(data)
    at = (
        size - 1 - chance.randrange(min(size, 1500))
        if chance.random() < 0.5
        else (chance.randrange(size))
    )
    match chance.randrange(3):
        case 0:
            del data[at:]
        case 1:
            data[at] ^= 1 << chance.randrange(8)
        case _:
            data[at : at + 8] = chance.randbytes(min(8, size - at))
    path.write_bytes(data)


@pytest.mark.parametrize("use", USES)
def test_whatever_is_damaged_the_file_is_named_or_the_rest_is_read(
    use: str, sound: Path, tmp_path: Path
) -> None:
    chance, named = random.Random(use), 0
    for _ in range(DAMAGES):
        copy = Path(shutil.copytree(sound, tmp_path / "4711"))
        path = chance.choice(sorted(path for path in copy.rglob("*.*") if path.is_file()))
        _damaged(path, chance)
        try:
            USES[use](open_trace(copy), tmp_path)
        except BadInputError as error:
            named += 1
            assert path.name in error.message and "\n" not in error.message
        shutil.rmtree(copy)
    assert named > DAMAGES / 5


def test_a_command_says_it_in_one_line(trace: Path) -> None:
    path = trace / "host=n1/functions-000001.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    code = "from datacrumbs.cli.explain import main; main(prog_name='datacrumbs_explain')"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, trace], capture_output=True, text=True, check=False
    )
    error, hint = done.stderr.splitlines()
    assert done.returncode == 2 and done.stdout == ""
    assert error.startswith(f"datacrumbs_explain: error: {path}: ")
    assert hint == "datacrumbs_explain: hint: the file is damaged; without it the rest can be read"


def _changed(trace: Path, table: str, change: Callable[[pa.Table], pa.Table]) -> None:
    for path in trace.glob(f"host=n1/{table}-*.parquet"):
        parquet.write_table(change(parquet.read_table(path, partitioning=None)), path)


@pytest.mark.parametrize(
    ("table", "change", "reason"),
    [
        ("events", lambda t: t.drop_columns("ret"), "no column 'ret'"),
        ("files", lambda t: t.drop_columns("path"), "no column 'path'"),
        ("events", lambda t: t.append_column("dur", t["dur"]), "no column 'dur'"),
        (
            "events",
            lambda t: t.set_column(8, "func", pa.array(["read"] * len(t))),
            "column 'func' is string, not uint16",
        ),
        (
            "events",
            lambda t: t.set_column(0, "ts", pa.array([2**63 - 1] * len(t))),
            "a time that no clock shows",
        ),
        (
            "processes",
            lambda t: t.set_column(1, "pid", pa.nulls(len(t), pa.int32())),
            "null",
        ),
        (
            "files",
            lambda t: t.set_column(1, "path", pa.array([b"\xff"] * len(t)).view(pa.string())),
            "UTF8",
        ),
    ],
)
def test_a_table_that_is_none_is_named(
    trace: Path, table: str, change: Callable[[pa.Table], pa.Table], reason: str
) -> None:
    _changed(trace, table, change)
    with pytest.raises(BadInputError, match=rf"{table}-00000\d\.parquet: .*{reason}"):
        summarise(open_trace(trace), top=None)


def test_a_tid_that_no_kernel_has_given(trace: Path) -> None:
    low = -(2**31)
    _changed(
        trace, "events", lambda t: t.set_column(7, "tid", pa.array([low] * len(t), pa.int32()))
    )
    assert summarise(open_trace(trace), top=None).processes[0].threads == 1


def test_what_a_later_version_adds_is_passed_over(sound: Path, trace: Path, tmp_path: Path) -> None:
    for table in TABLES:
        _changed(trace, table, lambda t: t.add_column(0, "later", [["new"] * len(t)]))
    for run_file in trace.glob(f"host=*/{RUN_FILE}"):
        facts = json.loads(run_file.read_text())
        facts["counts"]["later"] = 1
        run_file.write_text(json.dumps(facts | {"later": {"more": [1, None]}}))
    (trace / "host=n1/later-000001.parquet").write_bytes(b"a table of its own")

    for use in USES.values():
        use(open_trace(trace), tmp_path)
    new, old = (summarise(open_trace(run), top=None) for run in (trace, sound))
    assert (new.functions, new.files, new.processes) == (old.functions, old.files, old.processes)
    query = "SELECT name, count(*) FROM '{0}/host=n1/events-*.parquet' JOIN "
    query += "'{0}/host=n1/functions-*.parquet' USING (host, func) GROUP BY name ORDER BY name"
    rows = [duckdb.sql(query.format(run)).fetchall() for run in (sound, trace)]
    assert rows[0] == rows[1] and len(rows[0]) == 4
