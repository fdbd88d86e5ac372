"""datacrumbs_top's argument: a run id, or a path."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from report_traces import Call, write_host

TOP = Path(sys.executable).parent / "datacrumbs_top"


def _top(run: str, site: Path, work: Path) -> subprocess.CompletedProcess[str]:
    command = [TOP, "--once", "--interval", "0.2", "--format", "json", "--config", site, run]
    return subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A system configuration with ``traces``, and a directory ``elsewhere``."""
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "system.yaml"
    path.write_text(f"trace_dir: {tmp_path}/traces\nrun_dir: {tmp_path}/run\n")
    return path


def test_a_name_is_a_run_whatever_lies_here(site: Path, tmp_path: Path) -> None:
    for root, count in (("traces", 3), ("elsewhere", 5)):
        calls = [Call(func="read", ts=10 * n, dur=5) for n in range(count)]
        write_host(tmp_path / root / "4711", calls)
    for argument, events in (("4711", 3), ("./4711", 5), (f"{tmp_path}/elsewhere/4711", 5)):
        done = _top(argument, site, tmp_path / "elsewhere")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["hosts"][0]["events"] == events


def test_a_directory_that_is_no_run_is_pointed_to(site: Path, tmp_path: Path) -> None:
    write_host(tmp_path / "elsewhere/4711", [Call(func="read", ts=10, dur=5)])
    done = _top("4711", site, tmp_path / "elsewhere")
    assert done.returncode == 2
    assert f"no run '4711' of yours on this host: there is no {tmp_path}/traces/4711" in done.stderr
    assert "hint: give ./4711 for the directory here" in done.stderr
