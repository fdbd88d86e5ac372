"""The same program under ``strace -f`` and under the tracer: same calls, order and results."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from kernel.tracing import (
    LIBRARY,
    PYTHON,
    RUN_ID,
    UNFINISHED,
    Trace,
    TracedRun,
    job_cgroup,
    traced_names,
)

from datacrumbs.probes.syscalls import ROLES
from datacrumbs.trace.schema import Op

Call = tuple[str, int | None]
"""Name and result; None where the call did not return, or returns an address."""
Sequences = Counter[tuple[Call, ...]]
"""The calls of each thread; threads of different runs have no names in common."""

MEMORY = {"mremap", "munmap", "madvise"}
"""What malloc calls, as with mmap of no file, depends on random addresses and the environment."""
LINE = re.compile(r"(\w+)\(.*\)\s+= (\?|0x[0-9a-f]+|-?\d+)(?: (E[A-Z0-9]+))?")
CUT = re.compile(r"(\w+)\(.* <unfinished \.\.\.>$")
NO_STREAMS: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)


def compared_names() -> set[str]:
    """Not `MEMORY`, nor those that wait: how often depends on who is faster."""
    return {name for name in traced_names() if ROLES[name].op is not Op.WAIT} - MEMORY


def strace(run: TracedRun, *command: str | Path) -> list[list[Call]]:
    """The calls of each thread of ``command``."""
    output = run.root / "strace"
    output.mkdir()
    os.chown(output, run.user.pw_uid, run.user.pw_gid)
    wanted = ",".join("?" + name for name in sorted(compared_names()))
    strace_command: list[str | Path] = [
        "strace",
        "-ff",
        "-qq",
        "-o",
        output / "t",
        "-e",
        "trace=" + wanted,
    ]
    strace_command += ["-e", "signal=none", "-s", "0", *command]
    with run.start(*strace_command, wrap=False, run_id="none", **NO_STREAMS) as process:
        process.wait(60)
    files = sorted(output.iterdir(), key=lambda path: int(path.suffix[1:]))
    lines = [path.read_text().splitlines() for path in files]
    return [[_parsed(line) for line in thread if ", -1, 0)" not in line] for thread in lines]


def _parsed(line: str) -> Call:
    if cut := CUT.fullmatch(line):
        return cut[1], None
    match = LINE.match(line)
    assert match, line
    name, result, error = match.groups()
    if error and result == "-1":
        return name, -int(getattr(errno, error))
    if result == "?" or name == "mmap":
        return name, None
    return name, int(result, 0)


def traced(trace: Trace) -> list[list[Call]]:
    """The calls of each thread of the trace."""
    threads: dict[int, list[Call]] = {}
    compared = compared_names()
    where = "NOT (name = 'mmap' AND fd = -1)"
    for tid, name, ret, flags in trace.calls("tid, name, ret, flags", where):
        if name in compared:
            unknown = flags & UNFINISHED or (name == "mmap" and ret >= 0) or ret <= -512
            threads.setdefault(tid, []).append((name, None if unknown else ret))
    return [threads[tid] for tid in sorted(threads)]


def from_the_program_on(threads: list[list[Call]], programs: int) -> Sequences:
    """Leave out what the first thread did before it became the program by its n-th execve."""
    first, *others = threads
    starts = [i for i, call in enumerate(first) if call == ("execve", 0)]
    first = first[starts[programs - 1] + 1 :]
    return Counter(tuple(calls) for calls in [first, *others] if calls)


def compare(run: TracedRun, *command: str | Path, expect: int = 0) -> Sequences:
    """Run ``command`` both ways, each time in a copy of `work`; the calls that both saw.

    ``env`` joins the run and then becomes the program, so that its whole start is traced.
    """
    pristine = run.root / "pristine"
    shutil.copytree(run.work, pristine, symlinks=True)
    with run.daemon(), run.start("env", *command, **NO_STREAMS) as process:
        assert process.wait(60) == expect
    seen = from_the_program_on(traced(run.trace()), 1)
    restore(run, pristine)
    program = ["env", f"LD_PRELOAD={LIBRARY}", "env", *command]
    truth = from_the_program_on(strace(run, *program), 3)
    report(seen, truth)
    return seen


def restore(run: TracedRun, pristine: Path) -> None:
    """Make `work` what it was before the first run."""
    shutil.rmtree(run.work)
    shutil.copytree(pristine, run.work, symlinks=True)
    own(run)


def own(run: TracedRun) -> None:
    """Give everything in `work` to the run's user."""
    for path in [run.work, *run.work.rglob("*")]:
        os.chown(path, run.user.pw_uid, run.user.pw_gid, follow_symlinks=False)


def report(seen: Sequences, truth: Sequences) -> None:
    """Fail with the place where the first differing threads part."""
    if seen == truth:
        return
    ours, theirs = list((seen - truth).elements()), list((truth - seen).elements())
    lines = [f"threads: {seen.total()} traced, {truth.total()} in strace"]
    for a, b in zip(ours, theirs, strict=False):
        pairs = enumerate(zip(a, b, strict=False))
        at = next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))
        lines.append(f"{len(a)} and {len(b)} calls, apart at {at}:")
        lines += [
            f"  traced: {a[max(at - 3, 0) : at + 4]}",
            f"  strace: {b[max(at - 3, 0) : at + 4]}",
        ]
    pytest.fail("\n".join(lines))


def names(sequences: Sequences) -> Counter[str]:
    """How often each call was made by all threads."""
    return Counter(name for calls in sequences.elements() for name, _ in calls)


def make_tree(root: Path, files: int) -> None:
    for i in range(files):
        path = root / f"d{i % 5}" / f"e{i % 3}" / f"file{i}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([i]) * (i * 997))
    (root / "link").symlink_to("d0/e0/file0")


def test_dd(traced_run: TracedRun) -> None:
    seen = compare(traced_run, "dd", "if=/dev/zero", "of=out", "bs=4097", "count=23", "conv=fsync",
                   "status=none")  # fmt: skip
    (calls,) = seen.elements()
    assert calls.count(("write", 4097)) == 23
    assert ("fsync", 0) in calls


def test_tar_of_a_tree(traced_run: TracedRun) -> None:
    make_tree(traced_run.work / "tree", 60)
    own(traced_run)
    seen = compare(traced_run, "tar", "--sort=name", "-cf", "tree.tar", "tree")
    assert seen.total() == 1  # no gzip: how much a read of a pipe finds depends on the writer
    assert names(seen)["openat"] > 60


def test_sqlite3_on_a_database(traced_run: TracedRun) -> None:
    statements = (
        "PRAGMA cache_size=20; CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT);"
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<3000)"
        " INSERT INTO t SELECT i, hex(i*i) FROM n; CREATE INDEX b ON t(b);"
        "UPDATE t SET b=b||'x' WHERE a%7=0; SELECT count(*), max(b) FROM t; VACUUM;"
    )
    seen = compare(traced_run, "sqlite3", "data.db", statements)
    assert names(seen)["pwrite64"] > 50
    assert names(seen)["pread64"] > 1


PARALLEL = """
import multiprocessing, os, sys, threading

def work(number):
    path = f"out/file{number}"
    with open(path, "wb", buffering=0) as file:
        for i in range(10 + number):
            file.write(bytes(100 + number))
    with open(path, "rb", buffering=0) as file:
        while file.read(1000):
            pass
    os.unlink(path)

if __name__ == "__main__":
    threads = [threading.Thread(target=work, args=(n,)) for n in range(7)]
    for thread in threads:
        thread.start()
        thread.join()
    context = multiprocessing.get_context(sys.argv[1])
    for number in range(10, 13):
        child = context.Process(target=work, args=(number,))
        child.start()
        child.join()
        assert child.exitcode == 0
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_python_with_threads_and_multiprocessing(traced_run: TracedRun, method: str) -> None:
    (traced_run.work / "parallel.py").write_text(PARALLEL)
    (traced_run.work / "out").mkdir()  # a change of its own directory makes Python look again
    own(traced_run)
    seen = compare(traced_run, PYTHON[0], "-S", "-B", "parallel.py", method)
    # spawn has a process more, which looks after shared resources
    assert seen.total() == 1 + 7 + 3 + (method == "spawn")
    every = Counter(call for calls in seen.elements() for call in calls)
    for number in (*range(7), *range(10, 13)):
        assert every["write", 100 + number] >= 10 + number


def test_git_clone_of_a_local_repository(traced_run: TracedRun) -> None:
    make_tree(traced_run.work / "source", 30)
    own(traced_run)
    git = ("git", "-C", "source", "-c", "user.name=n", "-c", "user.email=e@example.org")
    for arguments in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "all"), ("gc", "-q")):
        traced_run.run(*git, *arguments, wrap=False, run_id="none")
    seen = compare(traced_run, "git", "clone", "-q", "source", "copy")
    assert seen.total() > 1, "git clone and git upload-pack"


CRASH = """
#include <fcntl.h>
#include <unistd.h>
int main(void) {
    int fd = open("before", O_CREAT | O_WRONLY, 0600);
    for (int i = 0; i < 11; i++) write(fd, "0123456789", i);
    *(volatile int *)8 = 1;
    write(fd, "never", 5);
}
"""


def test_program_that_crashes(traced_run: TracedRun) -> None:
    program = traced_run.compile(CRASH)
    seen = compare(traced_run, program, expect=-signal.SIGSEGV)
    assert names(seen)["write"] == 11
    exits = traced_run.trace().sql("SELECT exit_code & 127 FROM processes WHERE what = 'exit'")
    assert exits == [(signal.SIGSEGV,)]


STATIC = """
#include <fcntl.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void) {
    char bytes[4096];
    int fd = open("out", O_CREAT | O_RDWR | O_TRUNC, 0600);
    for (int i = 0; i < 23; i++) write(fd, bytes, 1000 + i);
    if (!fork()) { lseek(fd, 0, SEEK_SET); while (read(fd, bytes, 4096) > 0) {} _exit(0); }
    wait(0);
    return close(fd);
}
"""


@pytest.mark.parametrize("version", ["cgroup", "cgroup2"])
def test_a_job_whose_cgroup_comes_after_the_daemon(traced_run: TracedRun, version: str) -> None:
    if version not in Path("/proc/filesystems").read_text().split():
        pytest.skip("this kernel has no such cgroups")
    name = Path(f"datacrumbs-test-{os.getpid()}")
    become = f"setpriv --reuid {traced_run.user.pw_uid} --clear-groups dd if=/dev/zero of=/dev/null"
    with traced_run.daemon(cgroup=name), job_cgroup(version) as cgroup:
        assert cgroup.name == name.name
        inside = f"mkdir {cgroup}/step; echo $$ > {cgroup}/step/cgroup.procs; {become}"
        subprocess.run(["sh", "-c", f"{inside} bs=4097 count=23 status=none"], check=True)
        (cgroup / "step").rmdir()
        subprocess.run(["sh", "-c", f"{become} bs=4097 count=23 status=none"], check=True)
    assert len(traced_run.trace().calls("ts", "name = 'write' AND ret = 4097")) == 23


def test_static_binary_of_a_job(traced_run: TracedRun) -> None:
    program = traced_run.compile(STATIC, "-static")
    user = traced_run.user
    become = f"exec setpriv --reuid {user.pw_uid} --regid {user.pw_gid} --clear-groups"
    with job_cgroup() as cgroup, traced_run.daemon(cgroup=cgroup):
        shell = f'echo $$ > {cgroup}/cgroup.procs; {become} "$0"'
        subprocess.run(["sh", "-c", shell, program], cwd=traced_run.work, check=True)
        traced_run.run(program, wrap=False, run_id=RUN_ID)  # not in the job
    # of what root's program did as the user, nothing: it may hold what it opened before
    seen = Counter(map(tuple, traced(traced_run.trace())))
    truth = from_the_program_on(strace(traced_run, program), 1)
    report(seen, truth)
    assert seen.total() == 2
    assert names(seen)["write"] == 23
