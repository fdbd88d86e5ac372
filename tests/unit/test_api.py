"""The Python API: tables of all hosts, and what the commands find."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from export_samples import COUNT, PATHS, both_hosts, write_run

import datacrumbs
from datacrumbs.errors import BadInputError, UserError

NOTEBOOK = Path(__file__).parents[2] / "examples/analysis.ipynb"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> datacrumbs.Run:
    return datacrumbs.open_trace(write_run(tmp_path_factory.mktemp("api") / "4711"))


def test_events_of_all_hosts_as_columns(run: datacrumbs.Run) -> None:
    assert run.hosts == ["n1", "n2"]
    table = run.events(["dur", "func"])
    assert table.arrow.schema.names == ["dur", "func", "host"]
    assert len(table) == 2 * COUNT
    frame = table.polars()
    assert frame["dur"].sum() == both_hosts()["dur"].sum()
    assert frame.group_by("host").len().sort("host").rows() == [("n1", COUNT), ("n2", COUNT)]


def test_batches_stream_the_same_events(run: datacrumbs.Run) -> None:
    found = list(run.batches(["dur"]))
    assert sum(batch.num_rows for _, batch in found) == 2 * COUNT
    assert {host for host, _ in found} == {"n1", "n2"}


def test_small_tables_join_with_events(run: datacrumbs.Run) -> None:
    events, functions = run.events().polars(), run.functions().polars()
    joined = events.join(functions, on=["host", "func"])
    assert len(joined) == 2 * COUNT
    assert set(run.files().polars()["path"]) == set(PATHS)
    assert run.processes().polars().select("pid", "host").rows() == [(4711, "n1"), (4711, "n2")]
    for empty in (run.peers(), run.arguments(), run.intervals()):
        assert len(empty) == 0
        assert isinstance(empty.polars(), pl.DataFrame)
        assert "host" in empty.arrow.schema.names


def test_the_analyses_of_the_commands(run: datacrumbs.Run) -> None:
    assert run.report().events == 2 * COUNT
    explained = run.explain("read", hosts=["n2"]).explained
    (row,) = [f for f in run.report().functions if f.name == "read"]
    assert [(e.name, 2 * e.count) for e in explained] == [("read", row.count - row.unfinished)]
    assert all(change.change_ns == 0 for change in run.compare(run).functions)
    facts = run.facts["n1"]
    assert facts and facts.user == "alice"


def test_the_page_with_pictures_is_the_commands(run: datacrumbs.Run, tmp_path: Path) -> None:
    here, there = tmp_path / "here.html", tmp_path / "there.html"
    run.html(here, top=1)
    report = Path(sys.executable).parent / "datacrumbs_report"
    subprocess.run([report, "--top", "1", "--html", there, run.trace.path], check=True)
    assert here.read_bytes() == there.read_bytes()
    run.html(here)
    assert here.read_bytes() != there.read_bytes()
    with pytest.raises(UserError, match="cannot write it: No such file or directory"):
        run.html(str(tmp_path / "none" / "out.html"))


def test_the_notebook_runs(run: datacrumbs.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATACRUMBS_TRACE", str(run.trace.path))
    notebook = json.loads(NOTEBOOK.read_text())
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        assert cell["cell_type"] == "markdown" or cell["outputs"] == []
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert names["report"].events == names["over_time"]["calls"].sum() == 2 * COUNT
    assert set(names["by_file"]["path"]) == set(PATHS)


def test_no_trace_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="not a trace"):
        datacrumbs.open_trace(tmp_path)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = datacrumbs.nonsense


def test_the_package_alone_loads_no_table_library() -> None:
    """The daemon imports it as root."""
    code = "import datacrumbs, sys; print(*{'numpy', 'pyarrow', 'polars'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
