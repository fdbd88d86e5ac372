"""``run.json``: what it takes, what it refuses, and whether the run is still going."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import msgspec
import pytest
from trace_samples import file_size_limit, run_info

from datacrumbs.errors import BadInputError
from datacrumbs.trace.runfile import (
    ALIVE_S,
    RUN_FILE,
    Counts,
    Daemon,
    Mechanism,
    Skipped,
    State,
    read_run_info,
    start_ticks,
    state_of,
    write_run_info,
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    info = run_info(
        counts=Counts(events=23, lost=1, filtered=2, unfinished=3, bytes_written=4097),
        mechanisms=[Mechanism(layer="io", kind="syscall", mechanism="tp_btf", functions=60)],
        skipped=[Skipped(layer="libc", name="vfork", reason="cannot be probed")],
    )
    write_run_info(tmp_path, info)
    assert read_run_info(tmp_path) == info
    assert [entry.name for entry in tmp_path.iterdir()] == [RUN_FILE]
    assert (tmp_path / RUN_FILE).stat().st_mode & 0o777 == 0o600


def test_a_wrong_type_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(msgspec.ValidationError, match="cpus"):
        write_run_info(tmp_path, run_info(cpus="two"))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_leaves_the_old_file(tmp_path: Path) -> None:
    write_run_info(tmp_path, run_info())
    before = (tmp_path / RUN_FILE).read_bytes()
    with file_size_limit(100), pytest.raises(OSError, match="too large"):
        write_run_info(tmp_path, run_info(state=State.COMPLETE))
    assert (tmp_path / RUN_FILE).read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [RUN_FILE]


def test_fields_of_a_later_version_are_passed_over(tmp_path: Path) -> None:
    write_run_info(tmp_path, run_info())
    facts = json.loads((tmp_path / RUN_FILE).read_text())
    facts["moon"] = {"phase": 3}
    facts["ring"]["pages"] = 256
    (tmp_path / RUN_FILE).write_text(json.dumps(facts))
    read = read_run_info(tmp_path)
    assert read is not None
    assert read.ring.bytes == 1 << 20


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"format": 2}', "trace is format 2, this datacrumbs reads up to 1"),
        ('{"format": 1}', "missing required field `datacrumbs`"),
        ("{}", "missing required field `format`"),
        ('{"format": 1', "truncated"),
        ("", "truncated"),
        ("\xff", "malformed"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / RUN_FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(BadInputError) as caught:
        read_run_info(tmp_path)
    assert caught.value.message.startswith(f"{tmp_path}/run.json: ")
    assert says in caught.value.message
    assert caught.value.hint


def test_running_means_the_daemons_process_lives(tmp_path: Path) -> None:
    write_run_info(tmp_path, run_info())
    assert state_of(tmp_path) is State.RUNNING


def test_a_process_that_took_over_the_pid_is_not_the_daemon(tmp_path: Path) -> None:
    own = start_ticks(os.getpid())
    assert own is not None
    daemon = Daemon(pid=os.getpid(), start_ticks=own - 1)
    write_run_info(tmp_path, run_info(daemon=daemon))
    assert state_of(tmp_path) is State.CUT_OFF


def test_a_process_that_is_gone_or_dead_was_cut_off(tmp_path: Path) -> None:
    child = subprocess.Popen(["sleep", "60"])
    ticks = start_ticks(child.pid)
    assert ticks is not None
    write_run_info(tmp_path, run_info(daemon=Daemon(pid=child.pid, start_ticks=ticks)))
    assert state_of(tmp_path) is State.RUNNING
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert state_of(tmp_path) is State.CUT_OFF  # dead, and nobody has waited for it
    child.wait()
    assert state_of(tmp_path) is State.CUT_OFF


def test_another_boot_was_cut_off(tmp_path: Path) -> None:
    write_run_info(tmp_path, run_info(boot_id="before"))
    assert state_of(tmp_path) is State.CUT_OFF


def test_another_host_runs_as_long_as_its_files_change(tmp_path: Path) -> None:
    write_run_info(tmp_path, run_info(host="elsewhere", boot_id="other"))
    (tmp_path / "events-000001.arrows").touch()
    assert state_of(tmp_path) is State.RUNNING
    now = tmp_path.stat().st_mtime
    for path in (*tmp_path.iterdir(), tmp_path):
        os.utime(path, (now, now - ALIVE_S - 1))
    assert state_of(tmp_path) is State.CUT_OFF
    os.utime(tmp_path / "events-000001.arrows", (now, now - ALIVE_S + 60))
    assert state_of(tmp_path) is State.RUNNING


def test_complete_is_complete_anywhere(tmp_path: Path) -> None:
    write_run_info(tmp_path, run_info(state=State.COMPLETE, boot_id="before"))
    assert state_of(tmp_path) is State.COMPLETE


def test_without_run_json_it_was_cut_off(tmp_path: Path) -> None:
    assert state_of(tmp_path) is State.CUT_OFF
