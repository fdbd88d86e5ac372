"""What others chose reaches no terminal, log or journal raw."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datacrumbs.printable import printable
from datacrumbs.runlog import Log

BIN = Path(sys.executable).parent
RAW = "a\x1b]0;title\x07\n\x9b31m\u202eb"
SHOWN = r"a\x1b]0;title\x07\n\x9b31m\u202eb"


@given(st.text())
def test_it_is_one_printable_line_and_keeps_what_already_is(text: str) -> None:
    assert printable(text).isprintable()
    assert printable(text) == text or not text.isprintable()


def test_what_terminals_obey_is_shown() -> None:
    assert printable(RAW) == SHOWN
    assert printable("\udc9b") == r"\udc9b", "a byte that is not UTF-8"


@pytest.mark.parametrize(
    "command",
    [
        ["datacrumbs_report", RAW],
        ["datacrumbs_probe_configurator", RAW, "out"],
        ["datacrumbs_track", "--executable", RAW],
        ["datacrumbs_wrap", "--run-id", "r", f"/{RAW}"],
    ],
    ids=lambda words: words[0],
)
def test_errors_of_commands_are_printable(command: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [BIN / command[0], *command[1:]],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
    )
    assert done.returncode != 0
    assert SHOWN in done.stderr
    assert all(line.isprintable() for line in done.stderr.splitlines())
    assert all(line.startswith(command[0]) for line in done.stderr.splitlines())


def test_an_error_in_a_capture_config_shows_its_words(tmp_path: Path) -> None:
    config = tmp_path / "capture.yaml"
    probes = "[{name: s, probe: syscalls, type: set, set: io}]"
    config.write_text(f'capture_probes: {probes}\n"bad\\e[2J\\nforged: error": 1\n')
    done = subprocess.run(
        [BIN / "datacrumbs_probe_configurator", "--dry-run", config],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert r"bad\x1b[2J\nforged" in done.stderr
    assert "\x1b" not in done.stderr


def test_the_log_of_a_run_has_one_printable_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = Log("datacrumbs[r]")
    log.fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    log.say(f"not traced: {RAW}")
    log.close()
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line.endswith(f" datacrumbs[r]: not traced: {SHOWN}")
    assert capfd.readouterr().err == f"datacrumbs[r]: not traced: {SHOWN}\n"
