"""What DFTracer's own tools make of an export: the right totals.

`make test` puts them into an environment of their own, below the one that the tests run in.
"""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from export_samples import both_hosts, write_run

from datacrumbs.export.write import Format, export
from datacrumbs.trace.reader import open_trace

TOOLS = Path(sys.prefix, "dfanalyzer", "bin")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one .pfw.gz of two hosts; one has the kernel's names of pread and pwrite."""
    top = tmp_path_factory.mktemp("dfanalyzer")
    run = write_run(
        top / "4711", names=(["read", "write", "solve"], ["pread64", "pwrite64", "solve"])
    )
    (top / "out").mkdir()
    export(open_trace(run), top / "out" / "4711.pfw.gz", Format.DFTRACER, gzip=True)
    return top / "out"


def _run(*command: str | Path, cwd: Path) -> str:
    environment = {"PATH": f"{TOOLS}:/usr/bin:/bin", "HOME": str(cwd), "USER": "tester"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_line_is_valid_to_dftracer(exported: Path, tmp_path: Path) -> None:
    said = _run(TOOLS / "dftracer_validate", "--directory", exported, cwd=tmp_path)
    assert "1 passed, 0 failed" in said


def test_dftracer_reads_every_line(exported: Path, tmp_path: Path) -> None:
    (path,) = exported.iterdir()
    lines = len(gzip.decompress(path.read_bytes()).splitlines())  # it counts the "[" as well
    index = ["--index-dir", str(tmp_path)]
    said = _run(TOOLS / "dftracer_info", "--files", path, *index, cwd=tmp_path)
    found = re.search(r"Valid Events: +(\d+)", said)
    assert found and int(found[1]) == lines > len(both_hosts())


def test_dfanalyzer_finds_the_same_totals(exported: Path, tmp_path: Path) -> None:
    _run(
        TOOLS / "dfanalyzer",
        *("analyzer=dftracer", "analyzer/preset=posix", "output=json"),
        *(f"trace_path={exported}", f"hydra.run.dir={tmp_path}/out"),
        cwd=tmp_path,
    )
    (view,) = (tmp_path / "out" / "checkpoints").glob("_flat_view_proc_name*.parquet")
    found = pl.read_parquet(view)
    events = both_hosts()
    posix = events[events["func"] < 3]
    assert found["posix_count_sum"].sum() == len(posix)
    time_s = float(posix["dur"].sum()) / 1e9
    assert found["posix_time_sum"].sum() == pytest.approx(time_s, abs=4e-6)
    moved = posix["ret"][posix["ret"] > 0].sum()
    assert found["posix_data_size_sum"].sum() == int(moved)
