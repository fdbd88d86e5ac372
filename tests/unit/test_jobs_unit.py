"""Cleaning up after a job, with a systemctl that tells what it was asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from datacrumbs.config import SystemConfig
from datacrumbs.jobs.unit import Source, clean, stop

SYSTEMCTL = """#!/bin/sh
echo "$*" >>{run}/asked
[ "$1" != stop ] || {stop}
"""


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory with what a job was started with, and its systemctl, which does nothing."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "datacrumbs-7.env").write_text("DATACRUMBS_JOB_SOURCE=slurm\n")
    (tmp_path / "datacrumbs-7.probes").touch()
    _systemctl(tmp_path, "true")
    return tmp_path


def _systemctl(run: Path, stop: str) -> None:
    (run / "systemctl").write_text(SYSTEMCTL.format(run=run, stop=stop))
    (run / "systemctl").chmod(0o755)


def _left(run: Path) -> list[str]:
    return sorted(path.name for path in run.glob("datacrumbs-*"))


def test_what_a_deadline_left_over_is_removed(run_dir: Path) -> None:
    clean("7", SystemConfig(run_dir=str(run_dir)), Source.SLURM)
    assert _left(run_dir) == []
    asked = (run_dir / "asked").read_text().splitlines()
    assert asked == ["stop datacrumbs@7.service", "reset-failed datacrumbs@7.service"]


def test_a_job_requeued_meanwhile_keeps_what_it_was_started_with(run_dir: Path) -> None:
    new, env = run_dir / "new", run_dir / "datacrumbs-7.env"
    _systemctl(run_dir, f"{{ echo DATACRUMBS_JOB_ATTEMPT=1 >{new}; mv {new} {env}; }}")
    clean("7", SystemConfig(run_dir=str(run_dir)), Source.SLURM)
    assert _left(run_dir) == ["datacrumbs-7.env", "datacrumbs-7.probes"]
    assert env.read_text() == "DATACRUMBS_JOB_ATTEMPT=1\n"


@pytest.mark.parametrize("source", [Source.WRAPPER, Source.FLUX])
def test_a_run_of_somebody_else_under_the_jobs_id_goes_on(run_dir: Path, source: Source) -> None:
    clean("7", SystemConfig(run_dir=str(run_dir)), source)
    stop("7", SystemConfig(run_dir=str(run_dir)), source)
    assert _left(run_dir) == ["datacrumbs-7.env", "datacrumbs-7.probes"]
    assert not (run_dir / "asked").exists()
