"""A run ends by itself when its job must be over: what tells, on this kernel's real processes."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from datacrumbs.config import Jobs, SystemConfig
from datacrumbs.tracer.job import End, is_here

UID = 54321
"""Nobody's on this host."""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to start others' processes")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"], user=UID) as process:
        yield process
        process.kill()


def _end(run_dir: Path, end_s: float, after_s: int = 3600) -> End:
    jobs = Jobs(abandoned_after_s=after_s)
    return End(UID, int(end_s), SystemConfig(run_dir=str(run_dir), jobs=jobs))


def test_a_users_process_is_seen_and_a_recorder_is_not(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    assert is_here(UID, tmp_path)
    (tmp_path / "datacrumbs-7.ready").write_text(f"{sleeper.pid}\n")
    assert not is_here(UID, tmp_path)
    assert not is_here(UID + 1, tmp_path)


def test_while_there_is_time_a_job_may_have_no_process(tmp_path: Path) -> None:
    end = _end(tmp_path, time.time() + 10 * 24 * 3600)
    assert not end.has_come(time.monotonic())
    assert not end.has_come(time.monotonic() + 100_000)


def test_after_its_time_it_ends_when_its_user_has_been_gone_for_long(tmp_path: Path) -> None:
    end, now = _end(tmp_path, time.time() - 1), time.monotonic()
    assert not end.has_come(now)
    assert end.look_at == now + 60
    assert not end.has_come(now + 3599)
    assert end.has_come(now + 3601)


def test_a_job_that_was_given_more_time_has_processes(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    end, now = _end(tmp_path, 1), time.monotonic()
    assert not end.has_come(now + 100_000)
    sleeper.kill()
    sleeper.wait()
    assert not end.has_come(now + 100_010)
    assert end.has_come(now + 103_600)


@pytest.mark.parametrize(("end_s", "after_s"), [(0, 3600), (1, 0)])
def test_without_a_time_limit_or_if_the_site_says_so_it_never_ends(
    tmp_path: Path, end_s: int, after_s: int
) -> None:
    assert _end(tmp_path, end_s, after_s).look_at == float("inf")
