"""Slurm's hooks by themselves; tests/cluster has them with a real Slurm and systemd."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from datacrumbs.jobs.slurm_hook import time_limit_end_s

HOOKS = Path(sys.prefix, "share/datacrumbs/scheduler/slurm")
PROGRAMS = {
    "python": "#!/bin/sh\necho $$ >{root}/pid\n[ -e {root}/rc ] || exec sleep 60\nexit 5\n",
    "systemd-run": '#!/bin/sh\necho "$*" >>{root}/later\n',
    "logger": "#!/bin/sh\ntouch {root}/logged\nexec sleep 60\n",
}


@pytest.fixture(params=["prolog", "epilog"])
def hook(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A hook as it is installed, with programs in the places of Python, systemd's and syslog's."""
    for name, text in PROGRAMS.items():
        (tmp_path / name).write_text(text.format(root=tmp_path))
        (tmp_path / name).chmod(0o755)
    text = (HOOKS / f"{request.param}.d/50-datacrumbs").read_text()
    text = text.replace("python=/opt/datacrumbs/bin/python", f"python={tmp_path}/python")
    text = text.replace("run_dir=/run/datacrumbs", f"run_dir={tmp_path}")
    text = text.replace("PATH=", f"PATH={tmp_path}:")
    (tmp_path / "datacrumbs-7.env").touch()
    path = tmp_path / "hook"
    path.write_text(text)
    path.chmod(0o755)
    return path


def _run(hook: Path) -> float:
    """Run it, which must succeed; how long it took, in seconds."""
    started = time.monotonic()
    environ = {"SLURM_JOB_ID": "7", "SLURM_JOB_COMMENT": '{"datacrumbs":{}}'}
    subprocess.run([hook], env=environ, check=True, timeout=50)
    return time.monotonic() - started


def test_a_signal_right_after_the_start_leaves_nothing_running(hook: Path) -> None:
    text = hook.read_text()
    assert text.count(" &\n") == 1
    hook.write_text(text.replace(" &\n", " &\nsleep 0.5\nkill -TERM $$\n"))
    assert _run(hook) < 10
    python = Path("/proc", (hook.parent / "pid").read_text().strip())
    deadline = time.monotonic() + 5
    while python.exists() and "sleep" in (python / "cmdline").read_text():
        assert time.monotonic() < deadline, "what it had started still runs"
        time.sleep(0.05)
    assert "-m datacrumbs.jobs.clean 7" in (hook.parent / "later").read_text()


def test_a_log_that_hangs_does_not_hold_the_node(hook: Path) -> None:
    (hook.parent / "rc").touch()
    assert _run(hook) < 10
    assert (hook.parent / "logged").exists()


@pytest.mark.parametrize(
    ("said", "end_s"),
    [
        ({}, 0),  # 22.05
        ({b"START": b"1795617861", b"END": b"1795618281"}, 1795618281),  # 24.11, -t 7
        ({b"START": b"1795617863", b"END": b"1827153863"}, 0),  # 24.11, no limit
        ({b"START": b"1795617861", b"END": b"soon"}, 0),
    ],
)
def test_the_end_of_the_time_limit(said: dict[bytes, bytes], end_s: int) -> None:
    environ = {b"SLURM_JOB_%s_TIME" % name: value for name, value in said.items()}
    assert time_limit_end_s(environ) == end_s


def test_a_run_of_the_jobs_id_that_is_not_the_jobs_is_not_joined(tmp_path: Path) -> None:
    (tmp_path / "datacrumbs-7.ready").touch()
    (tmp_path / "datacrumbs-7.failed").write_text("it is somebody else's\n")
    text = (HOOKS / "task_prolog.sh").read_text()
    text = text.replace("run_dir=/run/datacrumbs", f"run_dir={tmp_path}")
    said = subprocess.run(["dash", "-c", text], env={"SLURM_JOB_ID": "7"}, stdout=-1, check=True)
    assert said.stdout == b"print datacrumbs: not traced: it is somebody else's\n"


def test_the_task_prolog_keeps_what_a_user_has_set(tmp_path: Path) -> None:
    (tmp_path / "datacrumbs-7.ready").touch()
    (tmp_path / "library.so").touch()
    text = (HOOKS / "task_prolog.sh").read_text()
    text = text.replace("run_dir=/run/datacrumbs", f"run_dir={tmp_path}")
    text = text.replace("library=/opt/", f"library={tmp_path}/library.so # ")
    environ = {"SLURM_JOB_ID": "7", "LD_PRELOAD": r"/a\nb.so", "ASAN_OPTIONS": r"log_path=\tx"}
    said = subprocess.run(["dash", "-c", text], env=environ, stdout=-1, check=True, text=True)
    assert said.stdout.splitlines() == [
        "export DATACRUMBS_RUN_ID=7",
        rf"export LD_PRELOAD=/a\nb.so:{tmp_path}/library.so",
        r"export ASAN_OPTIONS=log_path=\tx:verify_asan_link_order=0",
    ]
