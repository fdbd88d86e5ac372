"""``docs/trace-format.md`` is true: its queries run, its tables are those of the schema."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import duckdb
import pytest
from msgspec.structs import fields
from trace_samples import FUNCTIONS, run_info, sample

from datacrumbs.trace.runfile import RunInfo, write_run_info
from datacrumbs.trace.schema import FORMAT, TABLES, EventFlag, Op, arrow_schema
from datacrumbs.trace.writer import ROW_GROUP_ROWS, TraceWriter

TEXT = (Path(__file__).parents[2] / "docs" / "trace-format.md").read_text()
SEGMENT = 1024
OPEN = 500


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run of the document in the current directory: host n1 still being written, n2 done."""
    for host, closes in (("n1", False), ("n2", True)):
        directory = tmp_path / "job-4711" / f"host={host}"
        directory.mkdir(parents=True)
        writer = TraceWriter(directory, segment_events=SEGMENT)
        writer.write_rows("functions", FUNCTIONS)
        writer.write_events(sample(2 * SEGMENT + OPEN))
        writer.flush()
        write_run_info(directory, run_info(host=host))
        if closes:
            writer.close()
    monkeypatch.chdir(tmp_path)


def _blocks(language: str, word: str) -> list[str]:
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.S | re.M)
    return [block for block in blocks if word in block]


def _value_of_last_line(block: str) -> Any:
    *setup, last = block.strip().splitlines()
    names: dict[str, Any] = {}
    exec("\n".join(setup), names)
    return eval(last, names)


@pytest.mark.usefixtures("trace")
def test_the_duckdb_query_counts_closed_segments() -> None:
    (query,) = _blocks("sql", "JOIN")
    rows = {row[1]: row for row in duckdb.sql(query).fetchall()}
    events = sample(2 * SEGMENT + OPEN)
    closed = [events, events[: 2 * SEGMENT]]
    for func, name in ((1, "read"), (2, "write"), (3, "solve")):
        calls = [part[part["func"] == func] for part in closed]
        moved = sum(int(part["ret"][part["ret"] > 0].sum()) for part in calls)
        assert rows[name][2] == sum(len(part) for part in calls)
        assert rows[name][3] == pytest.approx(sum(int(part["dur"].sum()) for part in calls) / 1e9)
        assert rows[name][4] == (None if name == "solve" else moved)


@pytest.mark.usefixtures("trace")
def test_the_polars_query_counts_the_same() -> None:
    (block,) = _blocks("python", "scan_parquet")
    frame = _value_of_last_line(block)
    assert sorted(frame.columns) == ["dur", "func", "host", "len"]
    assert frame["len"].sum() == 2 * SEGMENT + 2 * SEGMENT + OPEN
    assert set(frame["host"]) == {"n1", "n2"}


@pytest.mark.usefixtures("trace")
def test_polars_reads_the_open_segment() -> None:
    (block,) = _blocks("python", "read_ipc_stream")
    frame = _value_of_last_line(block)
    assert sorted(frame["offset"]) == list(range(2 * SEGMENT, 2 * SEGMENT + OPEN))


@pytest.mark.usefixtures("trace")
def test_duckdb_reads_the_open_segment() -> None:
    (block,) = _blocks("python", "duckdb.sql")
    assert sum(count for _, count, _ in _value_of_last_line(block)) == OPEN


@pytest.mark.usefixtures("trace")
def test_the_packages_reader_reads_all(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = _blocks("python", "open_trace")
    exec(block, {})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    total = str(2 * SEGMENT + OPEN)
    assert [(line[0], *line[-2:]) for line in lines] == [("n1", total, total), ("n2", total, total)]


def _section(title: str) -> str:
    return TEXT.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def _names_in_table(section: str) -> list[str]:
    cells = re.findall(r"^\| (`.*?) \|", section, re.M)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize("table", TABLES)
def test_the_columns_are_those_of_the_schema(table: str) -> None:
    section = _section(table)
    schema = arrow_schema(table)
    assert sorted(_names_in_table(section)) == sorted(schema.names)
    for field in schema:
        if f"| `{field.name}` |" in section:
            assert f"| `{field.name}` | {field.type} |" in section


def test_the_keys_are_those_of_run_json() -> None:
    assert _names_in_table(_section("run.json")) == [field.name for field in fields(RunInfo)]


def test_values_and_numbers_are_those_of_the_code() -> None:
    assert f"This is format {FORMAT}." in TEXT
    assert f"{ROW_GROUP_ROWS:,} rows" in TEXT
    assert " ".join(f"`{op}`" for op in Op) in _section("functions")
    for flag in EventFlag:
        assert f"{flag.value} {(flag.name or '').lower()}" in _section("events")
