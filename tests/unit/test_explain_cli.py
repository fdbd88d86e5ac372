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
from generate.calls import Call
from generate.causes import mixed, write_stack
from generate.runs import BEGIN_NS, Host, random_hosts, write_run
from rich.cells import cell_len

from datacrumbs.cli import progress
from datacrumbs.trace.runfile import State
from datacrumbs.trace.schema import FORMAT

EXPLAIN = Path(sys.executable).parent / "datacrumbs_explain"


def environment(**more: str) -> dict[str, str]:
    dropped = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "DATACRUMBS_DEBUG")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return kept | {"TERM": "xterm-256color"} | more


def explain(*arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [EXPLAIN, *arguments],
        capture_output=True,
        text=True,
        env=environment(**more),
        check=False,
    )


def page(*arguments: str | Path) -> str:
    done = explain(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def data(*arguments: str | Path) -> Any:
    return json.loads(page("--format", "json", *arguments))


def in_one_line(text: str) -> str:
    return " ".join(text.split())


def slow_commit(at: int) -> Call:
    call = write_stack(at)
    ext4 = call.inner[0].inner[0]
    ext4.inner.append(Call(func="jbd2_log_wait_commit", start=at + 5_500, dur=500_000))
    for around in (call, call.inner[0], ext4):
        around.dur += 500_000
    return call


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """100 writes of 10 us, and 20 that wait 500 us for a commit of the journal."""
    calls = mixed(1, 100, 20, write_stack, slow_commit)
    host = Host(name="n1", threads={(100, 101): calls}, files={1: "/data/out"})
    return write_run(tmp_path / "4711", [host])


def test_the_page_says_what_the_json_says(trace: Path) -> None:
    text, (found,) = page(trace), data(trace)["explained"]
    assert (found["name"], found["count"], found["time_ns"]) == ("pwrite64", 120, 11_200_000)
    assert in_one_line(text).startswith(
        "Run 4711, user alice, on n1 Explained: I/O calls; 120 calls, 1 function, 11.2 ms summed "
        "over threads "
        "Complete: 500 events kept, none lost, 0 filtered. "
        "1. pwrite64 (syscall): 120 calls, 11.2 ms, 100 % of the time, mean 93.3 us, p50 10.0 us, "
        "p99 510 us, max 510 us, 480 KiB Where"
    )
    rows = [line.split() for line in text.splitlines()]
    assert ["jbd2_log_wait_commit", "fs", "20", "10.0ms", "10.0ms", "89%"] in rows
    assert ["ext4_buffered_write_iter", "fs", "120", "10.7ms", "600us", "5.4%"] in rows
    variation = found["variation"]
    for said in (variation["sentence"], variation["findings"][0]["sentence"]):
        assert said in in_one_line(text)
    assert variation["findings"][0]["sentence"] == (
        "100 % of the difference is the file system's journal: starting a transaction, or waiting "
        "for a commit. jbd2_log_wait_commit (fs), called in vfs_write > ext4_buffered_write_iter: "
        "500 us in a slow call, no time in a fast one; it occurs in all slow and none of the fast "
        "calls."
    )
    assert "Slowest 510 us: 22:13:20." in in_one_line(text)
    assert "on n1, pid 100 tid 101, /data/out, 4.00 KiB at 0; in jbd2_log_wait" in (
        in_one_line(text)
    )
    assert "By cause journal 89 %, " in in_one_line(text)


def test_keys_that_scripts_rely_on(trace: Path) -> None:
    numbers = data(trace)
    assert {"run_id", "state", "lost", "hosts", "missing_hosts", "explained"} <= set(numbers)
    explained = numbers["explained"][0]
    assert {"layer", "name", "count", "inside", "layers", "causes", "variation"} <= set(explained)
    assert {"depth", "layer", "name", "count", "time_ns", "self_ns"} <= set(explained["inside"][0])
    assert {"kind", "share", "cause", "sentence"} <= set(explained["variation"]["findings"][0])


def test_options_choose_calls(tmp_path: Path) -> None:
    write_run(tmp_path, random_hosts(2, hosts=2, threads=4, calls=150))
    found = data("--call", "fs*c", "--host", "n2", "--pid", "100", tmp_path)
    assert found["selection"] == "fs*c of process 100 of host n2"
    assert {(e["layer"], e["name"]) for e in found["explained"]} == {("syscall", "fsync")}
    assert [host["host"] for host in found["hosts"]] == ["n2"]
    assert data("--top", "2", tmp_path)["explained"][1:][0]["share"] > 0
    assert "more functions took less: --top shows more." in page("--top", "2", tmp_path)
    assert data("--file", "/data/2/*", "--rank", "0", "--rank", "3", tmp_path)["hosts"][1]["events"]


def test_many_hosts_on_one_page(tmp_path: Path) -> None:
    hosts = random_hosts(4, hosts=3)
    hosts[0].facts = {"nodes": ["n1", "n2", "n3", "n17"]}
    hosts[1].lost = 12
    write_run(tmp_path, hosts)
    text = in_one_line(page(tmp_path))
    assert "on 3 hosts" in text
    assert "clocks of the hosts to 0 ns." in text
    assert "Nothing here from n17, which the job ran on too." in text
    assert "12 LOST" in text
    assert "12 events were lost" in text


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    host = Host(name="n1", threads={(1, 1): [write_stack(BEGIN_NS)]}, state=State.RUNNING)
    assert "Still running: up to now: 4 events kept" in page(write_run(tmp_path, [host]))
    (tmp_path / "host=n1" / "run.json").unlink()
    text = page(tmp_path)
    assert "Cut off: 4 events kept" in text
    assert "100 % of the time" in in_one_line(text)


def test_calls_that_hang_are_said_to_be_somewhere(tmp_path: Path) -> None:
    hangs = write_stack(BEGIN_NS)
    for _, call in hangs.walk():
        call.flags, call.dur = 1, BEGIN_NS + 10**9 - call.start
    text = in_one_line(page(write_run(tmp_path, [Host(name="n1", threads={(1, 1): [hangs]})])))
    assert "1 calls did not return, 1.00 s in all: not in what follows. Threads still in" in text
    assert "by innermost call: copy_folio_from_iter_atomic on 1." in text


def test_a_trace_without_calls_says_so(tmp_path: Path) -> None:
    text = page(write_run(tmp_path, [Host(name="n1", threads={(1, 1): []})]))
    assert "There are no calls in the trace: see datacrumbs_report." in text


def test_names_cannot_reach_the_terminal(tmp_path: Path) -> None:
    evil = "/data/\x1b]0;gotcha\x07\u202e\n語"
    calls = mixed(1, 30, 30, write_stack, slow_commit)
    host = Host(name="n1", threads={(1, 1): calls}, files={1: evil}, comm="\x1b[2J")
    write_run(tmp_path, [host])
    text = page(tmp_path)
    assert all(line.isprintable() for line in text.splitlines())
    assert "\\x1b]0;gotcha" in in_one_line(text)
    done = explain("--format", "json", tmp_path)
    assert done.stdout.isascii()
    assert data(tmp_path)["explained"][0]["slowest"][0]["path"] == evil
    assert explain(tmp_path, PYTHONIOENCODING="ascii").returncode == 0


def test_the_page_is_80_columns_wide(tmp_path: Path, trace: Path) -> None:
    write_run(tmp_path / "many", random_hosts(9, hosts=2, threads=4, calls=60))
    for text in (page(trace), page("--top", "20", tmp_path / "many")):
        assert max(cell_len(line) for line in text.splitlines()) <= 80


def on_terminal(*command: str | Path, code: int | None = 0, **more: str) -> str:
    """What a command writes to a terminal; ends with ``code``, None for any."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command, stdout=theirs, stderr=theirs, env=environment(**more)
    ) as process:
        os.close(theirs)
        written = b""
        while chunk := _read(ours):
            written += chunk
    os.close(ours)
    assert code in (None, process.returncode), written
    return written.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # EIO: the other end is closed
        return b""


def test_colour_only_on_a_terminal_and_unless_refused(trace: Path) -> None:
    assert "\x1b" not in page(trace)
    assert "\x1b[" in on_terminal(EXPLAIN, trace)
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", on_terminal(EXPLAIN, trace, NO_COLOR="1"))


BAR = """
import sys, time
from datacrumbs.cli import progress
progress.PATIENCE_S = float(sys.argv[1])
with progress.progress("Reading events", 3) as advance:
    for _ in range(3):
        advance(1)
        time.sleep(0.2)
"""


def test_a_progress_bar_for_those_who_wait_at_a_terminal() -> None:
    assert "Reading events" in on_terminal(sys.executable, "-P", "-c", BAR, "0.1")
    assert on_terminal(sys.executable, "-P", "-c", BAR, "60") == ""
    done = subprocess.run(
        [sys.executable, "-P", "-c", BAR, "0.1"], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert progress.PATIENCE_S == 2


IMPATIENT = """
import sys
from datacrumbs.cli import progress
progress.PATIENCE_S = 0
from datacrumbs.cli.{0} import {1}
{1}()
"""

NODES = ["--node-list", "nowhere.invalid", "--run-id", "4711"]


@pytest.mark.parametrize(
    ("name", "what", "arguments"),
    [
        ("explain main", "Reading events", ["4711"]),
        ("report main", "Reading events", ["4711"]),
        ("report main", "Reading events", ["--format", "json", "4711"]),
        ("report main", "Reading events", ["--html", "out.html", "4711"]),
        ("compare main", "Reading events", ["4711", "4711"]),
        ("export main", "Writing events", ["-o", "out.csv", "4711"]),
        ("probe_configurator main", "Finding functions", ["--dry-run", "libc.yaml"]),
        ("probe_configurator main", "Looking for programs", ["--list-objects", "ldconfig"]),
        ("doctor main", "Checking this host", []),
        ("run run", "Starting on the nodes", [*NODES, "--probe-file", "probes.json.gz"]),
        ("run stop", "Stopping on the nodes", NODES),
    ],
)
def test_who_waits_sees_that_it_goes_on(
    trace: Path, monkeypatch: pytest.MonkeyPatch, name: str, what: str, arguments: list[str]
) -> None:
    monkeypatch.chdir(trace.parent)
    layer = "{name: libc, probe: uprobe, file: libc.so.6, regex: 'f.*'}"
    Path("libc.yaml").write_text(f"capture_probes:\n  - {layer}\n")
    program = IMPATIENT.format(*name.split())
    shown = on_terminal(sys.executable, "-P", "-c", program, *arguments, code=None)
    assert what in shown
    assert "Traceback" not in shown


def test_what_cannot_be_taken_is_one_line(tmp_path: Path, trace: Path) -> None:
    newer = tmp_path / "newer" / "host=n1"
    newer.mkdir(parents=True)
    (newer / "run.json").write_text(json.dumps({"format": FORMAT + 1}))
    for arguments, said in (
        ([tmp_path / "none"], "No such file or directory"),
        ([tmp_path], "not a trace"),
        ([tmp_path / "newer"], f"format {FORMAT + 1}"),
        (["--call", "pread", trace], "no function pread in this trace"),
        (["--layer", "mpi", trace], "no layer mpi in this trace"),
        (["--file", "/nowhere", trace], "no file /nowhere in this trace"),
    ):
        done = explain(*arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        first, *hints = done.stderr.splitlines()
        assert first.startswith("datacrumbs_explain: error: ")
        assert said in first
        assert len(hints) == 1
    (trace / "host=n1" / "events-000001.parquet").write_bytes(b"PAR1 not really PAR1")
    done = explain(trace)
    assert done.returncode == 2
    assert "events-000001.parquet" in done.stderr
    assert "Traceback" not in done.stderr
