"""``datacrumbs_top`` on a run that is going on."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from kernel.tracing import BIN, RUN_ID, TracedRun, io_calls, wait_until

from datacrumbs.probes import model

LOAD = """
import os, time
zero = os.open("/dev/zero", os.O_RDONLY)
end = time.monotonic() + 20
while time.monotonic() < end and not os.path.exists("stop"):
    for _ in range(200):
        os.read(zero, 4097)
    time.sleep(0.001)
"""


def _top(run: TracedRun, *arguments: str, user: Any = None) -> subprocess.CompletedProcess[str]:
    command = [BIN / "datacrumbs_top", "--config", run.root / "system.yaml", *arguments]
    identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
    return subprocess.run(command, capture_output=True, text=True, check=False, **identity)


def test_a_running_run_is_shown_to_its_user_and_to_root(
    traced_run: TracedRun, other_user: Any
) -> None:
    run = traced_run
    with run.daemon(), run.start("/usr/bin/python3", "-I", "-S", "-c", LOAD) as load:
        host = run.root / "traces" / RUN_ID
        wait_until(lambda: list(host.glob("host=*/events-*")), "events on disk")
        time.sleep(1.5)
        for user in (run.user, None):
            done = _top(run, "--once", "--format", "json", user=user)
            assert done.returncode == 0, done.stderr
            picture = json.loads(done.stdout)
            _check(picture)
        refused = _top(run, RUN_ID, "--once", user=other_user)
        assert refused.returncode == 2
        page = _top(run, RUN_ID, "--once", user=run.user)
        Path(run.work, "stop").touch()
        load.wait()
    assert page.stdout.startswith(f"Run {RUN_ID}\n")
    assert "syscall read" in page.stdout and "/dev/zero" in page.stdout
    assert max(map(len, page.stdout.splitlines())) <= 80
    after = _top(run, str(run.root / "traces" / RUN_ID), "--format", "json")
    (last,) = after.stdout.splitlines()  # of a run that has ended, one picture
    assert json.loads(last)["hosts"][0]["state"] == "complete"


def _check(picture: dict[str, Any]) -> None:
    (host,) = picture["hosts"]
    assert host["state"] == "running"
    assert host["events"] > 1000
    assert host["events_per_s"] > 100
    assert 0 < picture["sampled_events"] <= 100_000
    (layer,) = picture["layers"]
    assert (layer["layer"], layer["share"]) == ("syscall", 1.0)
    assert layer["bytes_per_s"] > 100 * 4097
    assert picture["functions"][0]["name"] == "read"
    assert picture["files"][0]["path"] == "/dev/zero"


def test_layers_in_profile_mode_are_shown(traced_run: TracedRun) -> None:
    run = traced_run
    with (
        run.daemon(io_calls(mode=model.Mode.PROFILE)),
        run.start("/usr/bin/python3", "-I", "-S", "-c", LOAD) as load,
    ):
        host = run.root / "traces" / RUN_ID
        wait_until(lambda: list(host.glob("host=*/intervals-*")), "intervals on disk")
        time.sleep(2.5)
        picture = json.loads(_top(run, "--once", "--format", "json", user=run.user).stdout)
        page = _top(run, RUN_ID, "--once", user=run.user).stdout
        Path(run.work, "stop").touch()
        load.wait()
    first = picture["profiled"][0]
    assert (first["layer"], first["name"]) == ("syscall", "read")
    assert first["calls_per_s"] > 1000
    assert first["bytes_per_s"] == pytest.approx(first["calls_per_s"] * 4097, rel=0.01)
    assert 50 < first["mean_ns"] < 1_000_000
    assert picture["sampled_events"] == 0
    assert "syscall read" in page
    assert max(map(len, page.splitlines())) <= 80


def test_without_a_run_it_says_so(traced_run: TracedRun) -> None:
    done = _top(traced_run, "--once", user=traced_run.user)
    assert done.returncode == 2
    assert "none of your runs are being traced on this host" in done.stderr
    assert os.listdir(traced_run.work) == []


def test_root_reads_a_run_as_its_user_whatever_lies_in_its_place(traced_run: TracedRun) -> None:
    run, trace = traced_run, traced_run.root / "traces" / RUN_ID
    with run.daemon():
        pass
    hidden = trace.rename(run.root / "hidden")
    os.chown(hidden, 0, 0)
    hidden.chmod(0o700)
    trace.symlink_to(hidden)
    with run.start("sleep", "60", wrap=False) as recorder:  # a run that goes on, by its ready file
        (run.root / f"run/datacrumbs-{RUN_ID}.ready").write_text(f"{recorder.pid}\n")
        done = _top(run, RUN_ID, "--once", "--format", "json")
        recorder.kill()
    assert done.stdout == ""
    assert done.returncode != 0
    assert "Permission denied" in done.stderr
