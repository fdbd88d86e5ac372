"""Profile mode: the kernel's sums are those of the calls, whatever the load."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from kernel.tracing import (
    RUN_ID,
    UNFINISHED,
    Trace,
    TracedRun,
    io_calls,
    job_cgroup,
    user_layer,
    wait_until,
)

from datacrumbs.probes import model
from datacrumbs.trace.reader import open_trace
from datacrumbs.trace.runfile import State, state_of

KNOWN = r"""
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>
int main(int argc, char **argv) {
    static char bytes[70000];
    int zero = open("/dev/zero", O_RDONLY), null = open("/dev/null", O_WRONLY);
    for (int i = 0; i < 23; i++) write(null, bytes, 4097);
    for (int i = 0; i < 17; i++) pread(zero, bytes, 33 + i, i);
    for (int i = 0; i < 5; i++) read(-1, bytes, 7);
    for (int i = 0; i < 11; i++) open("not/there", O_RDONLY);
    for (int i = 0; i < 3; i++) poll(0, 0, 20);
    return 0;
}
"""
SUMS = """
SELECT name, sum(count)::INT, sum(bytes)::INT, sum(errors)::INT
FROM intervals JOIN functions USING (func) GROUP BY name ORDER BY name
"""
TRACED_SUMS = """
SELECT name, count(*), sum(CASE WHEN op IN ('read', 'write', 'copy') THEN greatest(ret, 0)
       ELSE 0 END)::INT, sum((ret < 0)::INT)::INT
FROM events JOIN functions USING (func) GROUP BY name ORDER BY name
"""


def profiled(**settings: Any) -> model.SyscallLayer:
    """All I/O system calls, in profile mode."""
    return io_calls(mode=model.Mode.PROFILE, **settings)


def set_profile(run: TracedRun, **settings: float) -> None:
    """Add ``profile:`` to the site's system configuration."""
    config = run.root / "system.yaml"
    lines = "".join(f"  {name}: {value}\n" for name, value in settings.items())
    config.write_text(config.read_text() + "profile:\n" + lines)


def total(trace: Trace, name: str) -> int:
    """Calls of one function in all intervals."""
    ((found,),) = trace.sql(
        "SELECT coalesce(sum(count), 0)::INT FROM intervals JOIN functions USING (func) "
        "WHERE name = ?",
        name,
    )
    return int(found)


def test_the_sums_are_those_of_trace_mode(traced_run: TracedRun) -> None:
    program = traced_run.compile(KNOWN)
    with traced_run.daemon():
        traced_run.run(program)
    traced = traced_run.trace()
    with traced_run.daemon(profiled()):
        traced_run.run(program)
    profile, counts = traced_run.trace(), traced_run.info()["counts"]
    assert profile.sql(SUMS) == traced.sql(TRACED_SUMS)
    sums = {name: rest for name, *rest in profile.sql(SUMS)}
    assert sums["write"] == [23, 23 * 4097, 0]
    assert sums["pread64"][0] >= 17
    assert sums["read"][2] == 5
    assert sums["openat"][2] >= 11
    ((calls,),) = profile.sql("SELECT sum(count)::INT FROM intervals")
    assert (counts["events"], counts["profiled"]) == (0, calls)
    assert profile.sql("SELECT count(*) FROM files WHERE kind <> 'regular'") == [(0,)]


def test_times_and_histograms(traced_run: TracedRun) -> None:
    program = traced_run.compile(KNOWN)
    with traced_run.daemon(profiled()):
        traced_run.run(program)
    trace = traced_run.trace()
    ((count, time_ns, max_ns, histogram),) = trace.sql(
        "SELECT count, time, max, histogram FROM intervals JOIN functions USING (func) "
        "WHERE name = 'poll'"
    )
    assert count == sum(histogram) == 3
    assert 60_000_000 <= time_ns < 120_000_000
    assert 20_000_000 <= max_ns < 80_000_000
    assert sum(histogram[:24]) == 0  # 20 ms are at least 2^24 ns
    assert histogram[-1] > 0
    assert trace.sql(
        "SELECT count(*) FROM intervals WHERE count <> list_sum(histogram) OR max > time"
    ) == [(0,)]


def test_intervals_follow_each_other_without_gap(traced_run: TracedRun) -> None:
    set_profile(traced_run, interval_s=0.25)
    script = """
import os, time
fd = os.open("/dev/null", os.O_WRONLY)
for i in range(150):
    os.write(fd, bytes(3))
    time.sleep(0.01)
"""
    begin = time.monotonic_ns()
    with traced_run.daemon(profiled()):
        traced_run.python(script)
    end = time.monotonic_ns()
    trace = traced_run.trace()
    rows = trace.sql(
        "SELECT ts, dur, sum(count)::INT FROM intervals JOIN functions USING (func) "
        "WHERE name = 'write' GROUP BY ALL ORDER BY ts"
    )
    assert sum(count for *_, count in rows) == 150
    assert len(rows) >= 5
    assert begin < rows[0][0]
    assert rows[-1][0] + rows[-1][1] < end
    for (ts, dur, _), (after, *_) in itertools.pairwise(rows):
        assert ts + dur == after
        assert 200_000_000 < dur < 1_000_000_000


def test_threads_at_full_speed_while_intervals_change(traced_run: TracedRun) -> None:
    set_profile(traced_run, interval_s=0.1)
    program = traced_run.compile(r"""
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>
static int null;
static void *work(void *size) {
    for (int i = 0; i < 150001; i++) write(null, &null, (long)size);
    return 0;
}
int main(void) {
    pthread_t threads[6];
    null = open("/dev/null", O_WRONLY);
    for (long i = 0; i < 6; i++) pthread_create(&threads[i], 0, work, (void *)(i % 4));
    for (int i = 0; i < 6; i++) pthread_join(threads[i], 0);
    return 0;
}
""")
    with traced_run.daemon(profiled()):
        traced_run.run(program)
    missed = traced_run.info()["lost_by"]["missed"]  # none where programs cannot be preempted
    trace = traced_run.trace(lost=missed)
    found = total(trace, "write")
    assert found <= 6 * 150_001 <= found + missed
    ((moved, intervals),) = trace.sql(
        "SELECT sum(bytes)::INT, count(DISTINCT ts) FROM intervals JOIN functions USING (func) "
        "WHERE name = 'write'"
    )
    assert missed or moved == (0 + 1 + 2 + 3 + 0 + 1) * 150_001
    assert intervals > 2


CHILDREN = """
import os, sys
for n in range(int(sys.argv[1])):
    if not os.fork():
        for i in range(101): os.lseek(0, 0, 1)
        os.write(1, b"")
        os._exit(0)
    if n % 8 == 7:
        for i in range(8): os.wait()
"""


def test_many_processes(traced_run: TracedRun) -> None:
    with traced_run.daemon(profiled()):
        traced_run.python(CHILDREN, "64", stdin=subprocess.DEVNULL)
    rows = traced_run.trace().sql(
        "SELECT pid, sum(count)::INT FROM intervals JOIN functions USING (func) "
        "WHERE name = 'lseek' GROUP BY pid HAVING sum(count) = 101"
    )
    assert len(rows) == 64


def test_calls_that_find_the_profile_full_are_lost(traced_run: TracedRun) -> None:
    """More processes and functions than there is room for, all in one interval."""
    names = ["lseek", "write"]
    set_profile(traced_run, interval_s=60, entries=1024)
    with traced_run.daemon(profiled(functions=names)):
        traced_run.python(CHILDREN, "1000", stdin=subprocess.DEVNULL)
    info = traced_run.info()
    counts, lost_by = info["counts"], info["lost_by"]
    assert counts["lost"] == lost_by["profile"] > 1000
    assert lost_by["ring"] == lost_by["disk"] == 0
    host = open_trace(traced_run.root / "traces" / RUN_ID).hosts[0]
    table = host.table("intervals")
    assert counts["profiled"] == sum(table["count"].to_pylist())
    # the interpreter itself makes some of these calls
    assert 0 <= counts["profiled"] + counts["lost"] - 1000 * 102 < 1000


def test_a_job_by_its_cgroup(traced_run: TracedRun) -> None:
    program = traced_run.compile(KNOWN, "-static")
    user = traced_run.user
    become = f"exec setpriv --reuid {user.pw_uid} --regid {user.pw_gid} --clear-groups"
    layer = profiled(select=model.Select.JOB)
    with job_cgroup() as cgroup, traced_run.daemon(layer, cgroup=cgroup):
        shell = f'echo $$ > {cgroup}/cgroup.procs; {become} "$0"'
        subprocess.run(["sh", "-c", shell, program], cwd=traced_run.work, check=True)
        traced_run.run(program, wrap=False)  # not in the job
    assert total(traced_run.trace(), "write") == 23


def test_layers_of_both_modes(traced_run: TracedRun) -> None:
    libc = next(Path("/lib").glob("*/libc.so.6"))
    layer = user_layer("libc", libc, "fread|fopen")
    program = traced_run.compile(
        '#include <stdio.h>\nint main(void){char b[4096];FILE*f=fopen("/dev/zero","r");'
        "setbuf(f,0);for(int i=0;i<37;i++)fread(b,1,4096,f);return 0;}"
    )
    with traced_run.daemon(layer, profiled()):
        traced_run.run(program)
    trace, counts = traced_run.trace(), traced_run.info()["counts"]
    assert trace.sql(
        "SELECT count(*) FROM events JOIN functions USING (func) WHERE name = 'fread'"
    ) == [(37,)]
    assert total(trace, "fread") == 0
    assert total(trace, "read") >= 37
    assert trace.sql(
        "SELECT count(*) FROM events JOIN functions USING (func) WHERE layer = 'syscall'"
    ) == [(0,)]
    assert counts["events"] == trace.sql("SELECT count(*) FROM events")[0][0]
    with traced_run.daemon(
        user_layer("libc", libc, "fread|fopen", mode=model.Mode.PROFILE), profiled()
    ):
        traced_run.run(program)
    assert total(traced_run.trace(), "fread") == 37


def test_calls_that_are_left_by_longjmp_are_counted(traced_run: TracedRun) -> None:
    """Time up to the jump is known; they are no events, however many there are."""
    program = traced_run.compile(
        "#include <setjmp.h>\n#include <unistd.h>\nstatic jmp_buf back;\n"
        "__attribute__((noinline)) void leaves(int n) { usleep(1000); if (n) longjmp(back, n); }\n"
        "__attribute__((noinline)) void outer(int n) { if (!setjmp(back)) leaves(n); usleep(1); }\n"
        "int main(void) { for (int i = 0; i < 51; i++) outer(i % 3); return 0; }\n"
    )
    layer = user_layer("app", program, "leaves|outer", mode=model.Mode.PROFILE)
    with traced_run.daemon(layer):
        traced_run.run(program)
    trace = traced_run.trace()
    assert (total(trace, "outer"), total(trace, "leaves")) == (51, 51)
    assert trace.sql("SELECT count(*) FROM events") == [(0,)]
    ((time_ns,),) = trace.sql(
        "SELECT sum(time)::BIGINT FROM intervals JOIN functions USING (func) WHERE name = 'leaves'"
    )
    assert time_ns >= 51_000_000


def test_a_call_that_does_not_return_is_kept_as_an_event(traced_run: TracedRun) -> None:
    script = "import os; r, w = os.pipe(); print(1, flush=True); os.read(r, 1)"
    with traced_run.daemon(profiled()):
        process = traced_run.start(sys.executable, "-I", "-S", "-c", script, stdout=subprocess.PIPE)
        assert process.stdout
        assert process.stdout.readline()
        time.sleep(0.2)
    process.kill()
    process.communicate()
    trace = traced_run.trace()
    rows = trace.sql("SELECT name, flags, dur FROM events JOIN functions USING (func)")
    assert [row[:2] for row in rows] == [("read", UNFINISHED)]
    assert rows[0][2] > 150_000_000
    counts = traced_run.info()["counts"]
    assert (counts["events"], counts["unfinished"]) == (1, 1)


@pytest.mark.parametrize("victim", ["recorder", "daemon"])
def test_a_killed_daemon_leaves_its_intervals(traced_run: TracedRun, victim: str) -> None:
    set_profile(traced_run, interval_s=0.2)
    with pytest.raises(AssertionError), traced_run.daemon(profiled()) as daemon:
        traced_run.python(
            "import os\nfor i in range(53): os.write(1, b'')", stdin=subprocess.DEVNULL
        )
        (host,) = open_trace(traced_run.root / "traces" / RUN_ID).hosts
        wait_until(lambda: host.table("intervals").num_rows, "intervals are on disk")
        time.sleep(1.5)
        recorder = int((traced_run.root / f"run/datacrumbs-{RUN_ID}.ready").read_text())
        os.kill(recorder, signal.SIGKILL)
        if victim == "daemon":
            daemon.kill()
    (directory,) = (traced_run.root / "traces" / RUN_ID).glob("host=*")
    wait_until(lambda: state_of(directory) is State.CUT_OFF, "the recorder is gone")
    functions = {row["func"]: row["name"] for row in host.table("functions").to_pylist()}
    rows = host.table("intervals").to_pylist()
    assert sum(r["count"] for r in rows if functions[r["func"]] == "write") == 53
