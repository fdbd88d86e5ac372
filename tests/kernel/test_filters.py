"""What the capture config leaves out is left out in the kernel, and counted by reason."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from kernel.tracing import PYTHON, UNFINISHED, Trace, TracedRun, io_calls, user_layer

from datacrumbs.probes import model

POLLS = r"""
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>
int main(void) {
    char bytes[4097];
    int null = open("/dev/null", O_WRONLY);
    for (int i = 0; i < 5; i++) poll(0, 0, 20);
    for (int i = 0; i < 1001; i++) write(null, bytes, 4097);
    return 0;
}
"""


def counts(run: TracedRun) -> dict[str, int]:
    """``counts`` and ``filtered_by`` of the run, whose sum must be ``filtered``."""
    info = run.info()
    reasons: dict[str, int] = info["filtered_by"]
    assert sum(reasons.values()) == info["counts"]["filtered"]
    return info["counts"] | reasons


def names(trace: Trace) -> dict[str, int]:
    """How many events each function has."""
    return dict(trace.sql("SELECT name, count(*) FROM calls GROUP BY name"))


def test_calls_shorter_than_min_duration(traced_run: TracedRun) -> None:
    program = traced_run.compile(POLLS)
    with traced_run.daemon():
        traced_run.run(program)
    every = names(traced_run.trace())
    with traced_run.daemon(io_calls(min_duration_ns=15_000_000)):
        traced_run.run(program)
    trace, found = traced_run.trace(), counts(traced_run)
    assert names(trace)["poll"] == 5
    assert trace.sql("SELECT min(dur) >= 15000000 FROM events") == [(True,)]
    assert found["events"] + found["duration"] == sum(every.values())
    assert (found["rate"], found["path"], found["other"]) == (0, 0, 0)


def test_calls_shorter_than_min_duration_are_not_profiled(traced_run: TracedRun) -> None:
    program = traced_run.compile(POLLS)
    with traced_run.daemon(io_calls(mode=model.Mode.PROFILE, min_duration_ns=15_000_000)):
        traced_run.run(program)
    trace, found = traced_run.trace(), counts(traced_run)
    rows = trace.sql("SELECT sum(count)::INT FROM intervals JOIN functions USING (func) "
                     "WHERE name = 'poll'")  # fmt: skip
    assert rows == [(5,)]
    assert found["profiled"] < 100
    assert found["duration"] > 1001


def test_nested_calls_keep_their_places_when_some_are_filtered(traced_run: TracedRun) -> None:
    """The inner, short function is filtered; the outer one is measured all the same."""
    program = traced_run.compile(
        "#include <unistd.h>\n"
        '__attribute__((noinline)) void inner(int n) { if (n) usleep(n); else __asm__(""); }\n'
        "__attribute__((noinline)) void outer(void) { inner(0); inner(30000); inner(0); "
        "usleep(20000); }\n"
        "int main(void) { for (int i = 0; i < 7; i++) outer(); return 0; }\n"
    )
    layer = user_layer("app", program, "inner|outer", min_duration_ns=20_000_000)
    with traced_run.daemon(layer):
        traced_run.run(program)
    trace = traced_run.trace()
    assert names(trace) == {"inner": 7, "outer": 7}
    assert trace.sql("SELECT min(dur) >= 50000000 FROM calls WHERE name = 'outer'") == [(True,)]
    assert counts(traced_run)["duration"] == 14


def test_no_more_than_max_per_s(traced_run: TracedRun) -> None:
    program = traced_run.compile(POLLS)
    with traced_run.daemon(io_calls(max_per_s=100)):
        begin = time.monotonic()
        traced_run.run(program)
        seconds = int(time.monotonic() - begin) + 1
    trace, found = traced_run.trace(), counts(traced_run)
    kept = names(trace)["write"]
    assert 100 <= kept <= 100 * (seconds + 1) * (os.cpu_count() or 1)
    assert found["rate"] == 1001 - kept
    assert names(trace)["poll"] == 5  # of each function


def test_the_rate_is_of_each_second(traced_run: TracedRun) -> None:
    script = """
import os, time
fd = os.open("/dev/null", os.O_WRONLY)
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
for second in range(3):
    for i in range(50): os.write(fd, b"")
    time.sleep(1.05)
"""
    with traced_run.daemon(io_calls(functions=["write"], max_per_s=7)):
        traced_run.python(script)
    assert names(traced_run.trace()) == {"write": 3 * 7}
    assert counts(traced_run)["rate"] == 3 * 43


FILES = """
import os
def look(path, **at):
    try: os.stat(path, **at)
    except FileNotFoundError: pass
os.mkdir("in"); os.mkdir("in/deep"); os.mkdir("inx"); os.mkdir("out")
here = os.getcwd()
made = ("in/a", 3), ("in/deep/b", 5), (b"in/caf\\xe9", 7), ("inx/c", 11), ("out/d", 13)
for path, count in made:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    for i in range(count): os.write(fd, b"x" * 17)
    os.close(fd)
look(here + "/in/absolute"); look(here + "/inx/absolute"); look("/nowhere")
look("in/relative"); look("./in/relative2"); look("inx/relative")
top = os.open("in", os.O_RDONLY)
look("at", dir_fd=top)
os.chdir(here + "/in/deep"); look("below"); os.chdir(here)
os.symlink("in", "link")
fd = os.open("link/a", os.O_RDONLY); os.read(fd, 1); os.close(fd)
look("link/none")
fd = os.open("in/a", os.O_WRONLY)
os.write(fd, b"before")
os.rename("in/a", "out/a")
os.write(fd, b"after")
os.rename("out/d", "out/e")
"""


@pytest.fixture
def sorted_out(traced_run: TracedRun) -> Any:
    """Run `FILES` with path rules below `work`; the trace."""

    def trace(**rules: list[str]) -> Trace:
        absolute = {
            key: [f"{traced_run.work}/{prefix}" for prefix in prefixes]
            for key, prefixes in rules.items()
        }
        with traced_run.daemon(**absolute):
            traced_run.python(FILES)
        return traced_run.trace()

    return trace


def below(run: TracedRun, trace: Trace) -> set[str]:
    """Paths of all events, without `work`."""
    rows = trace.sql("SELECT DISTINCT path FROM calls WHERE path IS NOT NULL")
    return {path.removeprefix(f"{run.work}/") for (path,) in rows}


def test_include(traced_run: TracedRun, sorted_out: Any) -> None:
    trace = sorted_out(include=["in"])
    assert below(traced_run, trace) == {
        *("in", "in/a", "in/deep", "in/deep/b", "in/caf\\xe9"),
        *("in/absolute", "in/relative", "in/relative2", "in/at", "in/deep/below"),
    }
    writes = trace.sql(
        "SELECT path, count(*), sum(ret)::INT FROM calls WHERE name = 'write' GROUP BY path "
        "ORDER BY path"
    )
    work = f"{traced_run.work}/in"
    assert writes == [
        (f"{work}/a", 4, 3 * 17 + 6),  # after its rename it is out/a
        (f"{work}/caf\\xe9", 7, 7 * 17),
        (f"{work}/deep/b", 5, 5 * 17),
    ]
    # through a symbolic link it is the file behind that counts
    assert trace.calls("ret", f"name = 'read' AND path = '{work}/a'") == [(1,)]
    # of two files either will do, and both have names
    renames = trace.calls("path, peer_path", "name LIKE 'rename%'")
    assert renames == [(f"{work}/a", f"{traced_run.work}/out/a")]
    found = counts(traced_run)
    assert found["path"] > 11 + 13 + 2
    assert trace.sql("SELECT count(*) FROM events WHERE file & 2 > 0") == [(0,)]
    assert (found["duration"], found["rate"], found["other"]) == (0, 0, 0)
    assert trace.sql("SELECT exe FROM processes WHERE what = 'start'") == [
        (str(Path(PYTHON[0]).resolve()),)
    ]


def test_exclude(traced_run: TracedRun, sorted_out: Any) -> None:
    trace = sorted_out(exclude=["in", "out"])
    seen = {path for path in below(traced_run, trace) if path[0] != "/" and ":" not in path}
    assert seen == {"inx", "inx/c", "inx/absolute", "inx/relative", "link", "link/none"}
    writes = trace.sql("SELECT count(*), any_value(path) FROM calls WHERE name = 'write'")
    assert writes == [(11, f"{traced_run.work}/inx/c")]


def test_exclude_wins_and_everything_is_accounted_for(
    traced_run: TracedRun, sorted_out: Any
) -> None:
    whole = sorted_out(include=["."])
    total = counts(traced_run)
    shutil.rmtree(traced_run.work)
    traced_run.work.mkdir()
    shutil.chown(traced_run.work, traced_run.user.pw_uid, traced_run.user.pw_gid)
    part = sorted_out(include=["in/", "./out//"], exclude=["in/deep"])
    assert {path for path in below(traced_run, part) if "deep" in path} == set()
    assert {"in/a", "out/d", "out/a"} <= below(traced_run, part)
    found = counts(traced_run)
    assert found["events"] + found["path"] == total["events"] + total["path"]
    assert whole.sql("SELECT count(*) FROM calls WHERE name = 'write'") == [(41,)]


def test_profile_mode_by_path(traced_run: TracedRun) -> None:
    layer = io_calls(mode=model.Mode.PROFILE)
    with traced_run.daemon(layer, include=[f"{traced_run.work}/in"]):
        traced_run.python(FILES)
    rows = traced_run.trace().sql(
        "SELECT sum(count)::INT, sum(bytes)::INT FROM intervals JOIN functions USING (func) "
        "WHERE name = 'write'"
    )
    assert rows == [(3 + 5 + 7 + 1, 15 * 17 + 6)]
    assert counts(traced_run)["path"] > 26


def test_pipes_and_calls_without_a_file(traced_run: TracedRun) -> None:
    """Pipes are below no directory; a call without a file is kept, whatever the rules."""
    script = """
import os
r, w = os.pipe()
os.write(w, bytes(9)); os.read(r, 9)
for fd in (-1, 9999):
    try: os.write(fd, b"")
    except OSError: pass
"""
    with traced_run.daemon(include=["/nowhere/at/all"]):
        traced_run.python(script)
    trace = traced_run.trace()
    assert trace.sql("SELECT count(*) FROM calls WHERE file <> 0") == [(0,)]
    assert trace.calls("fd, ret", "name = 'write'") == [(-1, -9), (9999, -9)]
    with traced_run.daemon(include=["/"]):
        traced_run.python(script)
    assert counts(traced_run)["path"] == 0
    assert traced_run.trace().calls("ret", "kind = 'pipe' AND name = 'write'") == [(9,)]


def test_bind_mounts_count_where_they_are_mounted(traced_run: TracedRun) -> None:
    for name in ("real", "bound"):
        (traced_run.work / name).mkdir()
    (traced_run.work / "real/file").write_bytes(b"x" * 31)
    bound = traced_run.work / "bound"
    subprocess.run(["mount", "--bind", traced_run.work / "real", bound], check=True)
    try:
        with traced_run.daemon(include=[str(bound)]):
            traced_run.run("cat", "real/file", "bound/file")
    finally:
        subprocess.run(["umount", bound], check=True)
    reads = traced_run.trace().calls("path, ret", "name = 'read' AND ret > 0")
    assert reads == [(f"{bound}/file", 31)]


def test_an_unfinished_call_on_an_excluded_file_is_filtered(traced_run: TracedRun) -> None:
    os.mkfifo(traced_run.work / "fifo")
    shutil.chown(traced_run.work / "fifo", traced_run.user.pw_uid, traced_run.user.pw_gid)
    script = "import os; fd = os.open('fifo', os.O_RDWR); print(1, flush=True); os.read(fd, 1)"
    for rules, kept in (({"exclude": [str(traced_run.work)]}, 0), ({}, 1)):
        with traced_run.daemon(io_calls(min_duration_ns=10**12), **rules):
            process = traced_run.start(*PYTHON, "-c", script, stdout=subprocess.PIPE)
            assert process.stdout
            assert process.stdout.readline()
            time.sleep(0.1)
        process.kill()
        process.communicate()
        trace = traced_run.trace()
        assert trace.calls("name, flags", "true") == [("read", UNFINISHED)] * kept


@pytest.mark.parametrize("prefix", ["/a/../b", "/" + "ä" * 130])
def test_a_prefix_that_the_kernel_cannot_compare_is_refused(
    traced_run: TracedRun, prefix: str
) -> None:
    with (
        pytest.raises(AssertionError, match=r"without \.\. and at most 255 bytes"),
        traced_run.daemon(exclude=[prefix]),
    ):
        pass
