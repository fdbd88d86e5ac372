"""The command: its page, its JSON, its errors, and names that mean harm."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from report_traces import Call, File, write_host
from rich.cells import cell_len

from datacrumbs.trace.runfile import Counts, LostBy, Skipped, State
from datacrumbs.trace.schema import FORMAT

REPORT = [sys.executable, "-m", "datacrumbs.cli.report"]
ROOT = Path(__file__).resolve().parents[2]


def environment(**more: str) -> dict[str, str]:
    dropped = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "DATACRUMBS_DEBUG")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return kept | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color"} | more


def report(*arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*REPORT, *arguments],
        capture_output=True,
        text=True,
        env=environment(**more),
        check=False,
    )


def page(*arguments: str | Path) -> str:
    done = report(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def data(*arguments: str | Path) -> Any:
    return json.loads(page("--format", "json", *arguments))


def on_terminal(*arguments: str | Path, **more: str) -> str:
    """What the command writes to a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen([*REPORT, *arguments], stdout=theirs, env=environment(**more)) as process:
        os.close(theirs)
        written = b""
        while chunk := _read(ours):
            written += chunk
    os.close(ours)
    assert process.returncode == 0
    return written.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # EIO: the other end is closed
        return b""


def calls(count: int) -> list[Call]:
    return [
        Call(func="write", ts=1000 * n, dur=500, ret=4097, file=1 + n % 3, offset=0)
        for n in range(count)
    ]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """23 writes of 4097 bytes to three files, and two that wait."""
    waits = [Call(func="epoll_wait", ts=n, dur=10_000_000, tid=101) for n in (0, 20_000_000)]
    files = [File(file=n, path=f"/data/out-{n}") for n in (1, 2, 3)]
    write_host(tmp_path / "4711", [*calls(23), *waits], files=files)
    return tmp_path / "4711"


def rows(text: str) -> dict[str, list[str]]:
    """Lines by their first word."""
    return {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}


def test_the_page_says_what_the_json_says(trace: Path) -> None:
    text, numbers = page(trace), data(trace)
    write = numbers["functions"][1]
    assert (write["name"], write["count"], write["bytes"]) == ("write", 23, 23 * 4097)
    assert rows(text)["write"] == [
        *("write", "23", "-", "11.5us", "500ns", "499ns", "499ns", "500ns"),
        *("92.0KiB", "7.63GiB"),
    ]
    assert rows(text)["/data/out-1"][1:] == ["-", "-", "8", "-", "32.0KiB", "4.00us"]
    assert rows(text)["app"][1:] == ["100", "2", "25", "11.5us", "20.0ms", "-", "92.0KiB"]
    assert rows(text)["ext4"][1:3] == ["(3", "files)"]
    assert "Complete: 25 events kept, none lost, 0 filtered, 0 unfinished" in text
    assert "11.5 us with one thread or more in I/O, < 0.1 % of the run's 10.0 s" in text
    assert "20.0 ms in poll, select, epoll: not in I/O" in text
    assert "writes 4 KiB+ 100 %" in text


def test_keys_that_scripts_rely_on(trace: Path) -> None:
    numbers = data(trace)
    assert {"state", "lost", "events", "functions", "files", "processes"} <= set(numbers)
    assert (numbers["state"], numbers["lost"], numbers["events"]) == ("complete", 0, 25)
    assert {"layer", "name", "count", "time_ns", "bytes"} <= set(numbers["functions"][0])
    assert {"path", "reads", "writes", "bytes_read", "bytes_written"} <= set(numbers["files"][0])
    assert sum(f["count"] for f in numbers["functions"]) == numbers["events"]


def test_top(trace: Path) -> None:
    assert [f["path"] for f in data("--top", "1", trace)["files"]] == ["/data/out-1"]
    text = page("--top", "1", trace)
    assert "/data/out-1" in text
    assert "/data/out-3" not in text
    assert "... and 2 more files" in text
    assert "... and 1 more functions" in text
    assert report("--top", "0", trace).returncode == 2


def test_what_was_lost_comes_first(tmp_path: Path) -> None:
    write_host(
        tmp_path,
        calls(5),
        counts=Counts(events=5, lost=1234, filtered=17),
        lost_by=LostBy(ring=1200, disk=34, strings=3),
        skipped=[Skipped(layer="libc", name="memcpy", reason="an IFUNC")] * 2,
    )
    lines = page(tmp_path).splitlines()
    assert lines[1].startswith("Complete: 5 events kept, 1234 LOST, 17 filtered, 0 unfinished")
    assert "1200 in a full ring, 34 to a full disk" in lines[2]
    assert "too low" in " ".join(lines[2:4])
    assert "3 names or paths were lost." in lines
    assert "Not probed: libc memcpy (an IFUNC)." in lines


def test_running_and_cut_off(tmp_path: Path) -> None:
    write_host(tmp_path, calls(23), state=State.RUNNING)
    assert "Still running: up to now, 23 events kept" in page(tmp_path)
    assert data(tmp_path)["state"] == "running"
    (tmp_path / "host=n1" / "run.json").unlink()
    text = page(tmp_path)
    assert "Cut off: the daemon ended without closing the trace; 23 events kept" in text
    assert "The last second or so before that is missing." in text


def test_unfinished_calls_are_counted_apart(tmp_path: Path) -> None:
    write_host(tmp_path, [*calls(2), Call(func="read", ts=5, dur=10**9, flags=1)])
    text = page(tmp_path)
    assert "3 events kept, none lost, 0 filtered, 1 unfinished" in text
    assert "calls that had not returned at the end: 1, not in times" in text
    assert "1.00 us with one thread or more in I/O" in text


def test_an_empty_trace_says_why(tmp_path: Path) -> None:
    write_host(tmp_path, [], processes=())
    text = page(tmp_path)
    assert "0 events kept, none lost" in text
    assert "No process joined the run. Start programs with datacrumbs_wrap" in text
    assert "Function" not in text


def test_hosts_have_a_line_each(tmp_path: Path) -> None:
    for n in range(1, 4):
        write_host(tmp_path, calls(n), host=f"node{n}", counts=Counts(events=n, lost=n - 1))
    text = page(tmp_path)
    assert "on 3 hosts" in text
    assert [rows(text)[f"node{n}"][1:4] for n in (1, 2, 3)] == [
        ["complete", "1", "-"],
        ["complete", "2", "1"],
        ["complete", "3", "2"],
    ]
    assert "... and 1 more hosts" in page("--top", "2", tmp_path)


HOSTILE = (
    "/tmp/\x1b[31mred\x1b]0;title\x07",
    "/tmp/[bold]markup[/bold][link=http://x]y[/link]",
    "/tmp/two\nlines\rhere",
    "/tmp/\u202egnp.exe",
    "/tmp/\x9b31mcsi",
    "/tmp/:smile:\t\x7f",
    "/tmp/" + "語" * 60,
    "",
)


def hostile_trace(directory: Path) -> Path:
    files = [File(file=n, path=path) for n, path in enumerate(HOSTILE, 1)]
    some = [
        Call(func="write", ts=1000 * n, dur=99, ret=n, file=n) for n in range(1, len(HOSTILE) + 1)
    ]
    write_host(
        directory,
        some,
        files=files,
        processes=[(0, 100, "start", "\x1b[2J[red]x")],
        user="\x1b[5mmallory",
        skipped=[Skipped(layer="l", name="\x1b[1mf", reason="\x1b[0m")],
    )
    return directory


def test_hostile_names_do_nothing(tmp_path: Path) -> None:
    text = page(hostile_trace(tmp_path))
    assert all(line.isprintable() for line in text.splitlines())
    assert text.isprintable() or set(text) - {"\n"} == {c for c in text if c.isprintable()}
    for shown in (
        *("\\x1b[31mred\\x1b]0;title\\x07", "[bold]markup[/bold][link=http://x]y[/link]"[-20:]),
        *("two\\nlines\\rhere", "\\u202egnp.exe", "\\x9b31mcsi", ":smile:\\t\\x7f"),
        *("\\x1b[2J[red]x", "\\x1b[5mmallory", "\\x1b[1mf"),
    ):
        assert shown in text
    done = report("--format", "json", tmp_path)
    assert done.stdout.isascii()
    assert all(line.isprintable() for line in done.stdout.splitlines())
    assert {f["path"] for f in json.loads(done.stdout)["files"]} == set(HOSTILE)


def test_the_page_is_80_columns_wide(tmp_path: Path, trace: Path) -> None:
    for text in (page(hostile_trace(tmp_path / "hostile")), page(trace)):
        assert max(cell_len(line) for line in text.splitlines()) <= 80


def test_one_page(tmp_path: Path) -> None:
    """A run with more of everything than is shown still fits a page of paper."""
    names = ("read", "write", "pread64", "openat", "fread", "solve")
    many = [
        Call(func=name, ts=100 * n, dur=n, ret=n, file=n, pid=n, tid=n)
        for n in range(1, 100)
        for name in names
    ]
    write_host(tmp_path, many, files=[File(file=n, path=f"/f{n}") for n in range(1, 100)])
    assert len(page(tmp_path).splitlines()) <= 66


def test_any_locale_can_show_any_name(tmp_path: Path) -> None:
    """A name that the terminal's encoding lacks is escaped; the report does not fail."""
    write_host(
        tmp_path, [Call(func="write", ts=1, dur=1, file=1)], files=[File(file=1, path="/語")]
    )
    done = report(tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "/\\u8a9e" in done.stdout


def test_colour_only_on_a_terminal_and_unless_refused(trace: Path) -> None:
    assert "\x1b" not in page(trace)
    assert "\x1b[" in on_terminal(trace)
    plain = on_terminal(trace, NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", plain)


@pytest.mark.parametrize("count", [1, 3000])
def test_a_closed_pipe_is_no_error_message(tmp_path: Path, count: int) -> None:
    """Of less than the pipe holds, and of more."""
    files = [File(file=n, path=f"/f{n}") for n in range(1, count + 1)]
    many = [Call(func="write", ts=n, dur=1, file=n) for n in range(1, count + 1)]
    write_host(tmp_path, many, files=files)
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [*REPORT, "--format", "json", tmp_path],
        stdout=theirs,
        stderr=subprocess.PIPE,
        env=environment(),
        check=False,
    )
    os.close(theirs)
    assert (done.returncode, done.stderr) == (1, b"")


def test_what_is_no_trace_is_one_line(tmp_path: Path, trace: Path) -> None:
    newer = tmp_path / "newer" / "host=n1"
    newer.mkdir(parents=True)
    (newer / "run.json").write_text(json.dumps({"format": FORMAT + 1}))
    (tmp_path / "file").write_text("x")
    for path, said in (
        (tmp_path / "none", "No such file or directory"),
        (tmp_path / "file", "Not a directory"),
        (tmp_path, "not a trace"),
        (tmp_path / "newer", f"format {FORMAT + 1}"),
    ):
        done = report(path)
        assert (done.returncode, done.stdout) == (2, ""), path
        first, *hints = done.stderr.splitlines()
        assert first.startswith("datacrumbs_report: error: ")
        assert said in first
        assert len(hints) == 1
    (trace / "host=n1" / "events-000001.parquet").write_bytes(b"PAR1 not really PAR1")
    done = report(trace)
    assert done.returncode == 2
    assert "events-000001.parquet" in done.stderr
    assert "Traceback" not in done.stderr
