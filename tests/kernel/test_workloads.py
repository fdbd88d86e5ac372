"""Known workloads, exact counts: what each call did, to which file, where and how much."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from kernel.tracing import LIBRARY, PYTHON, RUN_ID, UNFINISHED, Trace, TracedRun, wait_until


def traced_python(run: TracedRun, script: str, *arguments: str) -> Trace:
    """The trace of one Python script."""
    with run.daemon():
        run.python(script, *arguments)
    return run.trace()


def traced_c(run: TracedRun, source: str) -> Trace:
    """The trace of one C program."""
    program = run.compile(source)
    with run.daemon():
        run.run(program)
    return run.trace()


def on(run: TracedRun, name: str) -> str:
    """SQL: calls on a file of `work`."""
    return f"path = '{run.work}/{name}'"


def test_23_writes_of_4097_bytes(traced_run: TracedRun) -> None:
    script = """
import os
fd = os.open("out", os.O_CREAT | os.O_WRONLY)
for i in range(23): os.write(fd, bytes(4097))
os.close(fd)
"""
    trace = traced_python(traced_run, script)
    rows = trace.calls("name, pos, size, ret", on(traced_run, "out"))
    assert rows[0][0] == "openat"
    assert rows[1:24] == [("write", i * 4097, 4097, 4097) for i in range(23)]
    assert [row[0] for row in rows[24:]] == ["close"]


def test_7_threads(traced_run: TracedRun) -> None:
    script = """
import os, threading
def work(n):
    for i in range(100 + n): os.pwrite(fd, bytes(n + 1), i)
fd = os.open("out", os.O_CREAT | os.O_WRONLY)
threads = [threading.Thread(target=work, args=(n,)) for n in range(7)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    trace = traced_python(traced_run, script)
    rows = trace.sql(
        "SELECT size, count(*), count(DISTINCT tid), count(DISTINCT pid) FROM calls "
        "WHERE name = 'pwrite64' GROUP BY size ORDER BY size"
    )
    assert rows == [(n + 1, 100 + n, 1, 1) for n in range(7)]
    found = trace.sql("SELECT count(DISTINCT tid) FROM calls WHERE name = 'pwrite64'")
    assert found == [(7,)]


def test_5_forks_deep(traced_run: TracedRun) -> None:
    script = """
import os
for depth in range(5):
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        os._exit(0)
    os.write(os.open("out", os.O_CREAT | os.O_WRONLY), bytes(depth + 1))
"""
    trace = traced_python(traced_run, script)
    where = on(traced_run, "out") + " AND name = 'write'"
    assert trace.calls("size", where) == [(n,) for n in range(1, 6)]
    chain = trace.sql("SELECT pid, ppid FROM processes WHERE what = 'fork' ORDER BY ts")
    assert len(chain) == 5
    assert [parent for _, parent in chain[1:]] == [child for child, _ in chain[:-1]]
    assert trace.sql("SELECT count(*) FROM processes WHERE what = 'exit'") == [(6,)]


VECTORS = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>
int main(void) {
    char a[300], b[500];
    struct iovec two[] = {{a, 300}, {b, 500}};
    int fd = open("out", O_CREAT | O_RDWR, 0600);
    pwrite(fd, a, 111, 1000);
    writev(fd, two, 2);
    pwritev(fd, two, 2, 5000);
    pwritev2(fd, two, 2, 7000, 0);
    pwritev2(fd, two, 1, -1, 0);
    pread(fd, a, 99, 700);
    preadv(fd, two, 2, 7100);
    preadv2(fd, two, 2, 10, RWF_HIPRI & 0);
    lseek(fd, 6000, SEEK_SET);
    readv(fd, two, 2);
    read(fd, a, 7);
}
"""


def test_offsets_and_sizes(traced_run: TracedRun) -> None:
    trace = traced_c(traced_run, VECTORS)
    rows = trace.calls("name, pos, size, ret", on(traced_run, "out"))
    assert rows[1:] == [
        ("pwrite64", 1000, 111, 111),
        ("writev", 0, 800, 800),
        ("pwritev", 5000, 800, 800),
        ("pwritev2", 7000, 800, 800),
        ("pwritev2", 800, 300, 300),
        ("pread64", 700, 99, 99),
        ("preadv", 7100, 800, 700),
        ("preadv2", 10, 800, 800),
        ("lseek", 6000, -1, 6000),
        ("readv", 6000, 800, 800),
        ("read", 6800, 7, 7),
    ]


def test_appending(traced_run: TracedRun) -> None:
    script = """
import os
os.write(os.open("out", os.O_CREAT | os.O_WRONLY), bytes(500))
fds = [os.open("out", os.O_WRONLY | os.O_APPEND) for _ in range(2)]
for i in range(3):
    for fd in fds: os.write(fd, bytes(100))
"""
    trace = traced_python(traced_run, script)
    rows = trace.calls("pos, ret", on(traced_run, "out") + " AND name = 'write'")
    assert rows == [(0, 500)] + [(500 + i * 100, 100) for i in range(6)]


def test_duplicates_and_inheritance(traced_run: TracedRun) -> None:
    script = """
import os
fd = os.open("out", os.O_CREAT | os.O_RDWR)
os.write(fd, b"1")
os.write(os.dup(fd), b"22")
os.write(os.dup2(fd, 9), b"333")
if not os.fork():
    os.write(fd, b"4444")
    os.execv("/bin/sh", ["sh", "-c", "printf 55555 >&9"])
os.wait()
"""
    trace = traced_python(traced_run, script)
    rows = trace.calls("fd, pos, ret", on(traced_run, "out") + " AND name = 'write'")
    assert [row[1:] for row in rows] == [(0, 1), (1, 2), (3, 3), (6, 4), (10, 5)]
    assert rows[2][0] == 9
    execs = trace.calls("path", "name = 'execve' AND ret = 0")
    assert Path(execs[-1][0]).resolve() == Path("/bin/sh").resolve()


def test_descriptors_opened_before(traced_run: TracedRun) -> None:
    with open(traced_run.work / "before", "w+b", buffering=0) as file:
        file.write(bytes(50))
        with traced_run.daemon():
            script = 'import os; os.write(1, b"x" * 9); os.pread(1, 9, 48)'
            with traced_run.start(*PYTHON, "-c", script, stdout=file) as process:
                assert process.wait(30) == 0
    trace = traced_run.trace()
    rows = trace.calls("name, pos, size, ret", on(traced_run, "before") + " AND size = 9")
    assert rows == [("write", 50, 9, 9), ("pread64", 48, 9, 9)]


CHILDREN = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
static int fd;
int main(void) {
    char *argv[] = {"sh", "-c", "printf aaa >&9", 0}, *none[] = {0};
    fd = dup2(open("out", O_CREAT | O_WRONLY, 0600), 9);
    if (!vfork()) { write(9, "1", 1); _exit(0); }
    struct clone_args args = {.exit_signal = SIGCHLD};
    if (!syscall(SYS_clone3, &args, sizeof(args))) { write(9, "22", 2); _exit(0); }
    wait(0); wait(0);
    pid_t child;
    posix_spawn(&child, "/bin/sh", 0, 0, argv, none);
    wait(0);
    if (!vfork()) execve("/bin/sh", argv, none);
    wait(0);
}
"""


def test_vfork_clone3_posix_spawn(traced_run: TracedRun) -> None:
    trace = traced_c(traced_run, CHILDREN)
    rows = trace.calls("pid, ret", on(traced_run, "out") + " AND name = 'write'")
    assert sorted(ret for _, ret in rows) == [1, 2, 3, 3]
    assert len({pid for pid, _ in rows}) == 4
    count = "SELECT count(*) FROM processes WHERE what = 'fork'"
    assert trace.sql(count) == [(4,)]


def test_child_that_outlives_its_parent(traced_run: TracedRun) -> None:
    script = """
import os, time
if os.fork(): os._exit(0)
while os.getppid() == int(os.environ["PARENT"]): time.sleep(0.01)
os.write(os.open("out", os.O_CREAT | os.O_WRONLY), bytes(321))
os.close(os.open("done", os.O_CREAT | os.O_WRONLY))
"""
    script = script.replace('int(os.environ["PARENT"])', "parent").replace(
        "if os", "parent = os.getpid()\nif os", 1
    )
    with traced_run.daemon():
        traced_run.python(script, stderr=subprocess.DEVNULL)
        wait_until((traced_run.work / "done").exists, "the child's end")
    trace = traced_run.trace()
    assert trace.calls("ret", on(traced_run, "out") + " AND name = 'write'") == [(321,)]


def test_what_is_no_regular_file(traced_run: TracedRun) -> None:
    script = """
import os, socket
r, w = os.pipe(); os.write(w, bytes(11)); os.read(r, 100)
a, b = socket.socketpair(); os.write(a.fileno(), bytes(12)); b.recv(100)
os.write(os.memfd_create("mine"), bytes(13))
fd = os.open(".", os.O_TMPFILE | os.O_RDWR); os.write(fd, bytes(14))
fd = os.open("gone", os.O_CREAT | os.O_RDWR); os.unlink("gone"); os.write(fd, bytes(15))
fd = os.open("old", os.O_CREAT | os.O_RDWR); os.rename("old", "new"); os.write(fd, bytes(16))
"""
    trace = traced_python(traced_run, script)
    rows = {
        ret: (kind, path)
        for ret, kind, path in trace.calls(
            "ret, kind, path", "name = 'write' AND ret BETWEEN 11 AND 16"
        )
    }
    assert rows[11][0] == "pipe"
    assert rows[11][1].startswith("pipe:[")
    assert rows[12][0] == "socket"
    assert rows[12][1].startswith("socket:[")
    assert rows[13] == ("memfd", "/memfd:mine")
    assert rows[14][0] == "regular"
    assert rows[14][1].startswith(f"{traced_run.work}/#")
    assert rows[15][0] == "regular"
    assert rows[15][1].removesuffix(" (deleted)") == f"{traced_run.work}/gone"
    assert rows[16] == ("regular", f"{traced_run.work}/new")
    reads = trace.calls("kind, ret", "name IN ('read', 'recvfrom') AND ret IN (11, 12)")
    assert reads == [("pipe", 11), ("socket", 12)]


@pytest.mark.parametrize(("depth", "length"), [(3, 200), (60, 60)])
def test_long_paths(traced_run: TracedRun, depth: int, length: int) -> None:
    script = f"""
import os
path = "/".join(["n" * {length}] * {depth})
os.makedirs(path)
fd = os.open(path + "/out", os.O_CREAT | os.O_WRONLY)
os.write(fd, bytes(77))
os.stat(path + "/out")
"""
    trace = traced_python(traced_run, script)
    full = "/".join([str(traced_run.work), *["n" * length] * depth, "out"])
    assert len(full) > 256
    assert trace.calls("path", "name = 'write' AND ret = 77") == [(full,)]
    assert trace.calls("path", "name = 'newfstatat' AND path LIKE '%/out'") == [(full,)]


def test_names_that_are_not_utf8(traced_run: TracedRun) -> None:
    script = r"""
import os
os.write(os.open(b"a\xff\xfe\nb", os.O_CREAT | os.O_WRONLY), bytes(77))
os.path.exists(b"no\xf0")
"""
    trace = traced_python(traced_run, script)
    work = os.fsencode(traced_run.work)
    rows = trace.calls("path, path_raw", "name = 'write' AND ret = 77")
    assert rows == [(f"{traced_run.work}/a\\xff\\xfe\nb", work + b"/a\xff\xfe\nb")]
    rows = trace.calls("path_raw, ret", "name = 'newfstatat' AND path LIKE '%xf0'")
    assert rows == [(work + b"/no\xf0", -2)]


def test_relative_paths(traced_run: TracedRun) -> None:
    script = """
import os
os.makedirs("one/two")
at = os.open("one", os.O_RDONLY | os.O_DIRECTORY)
os.mkdir("three", dir_fd=at)
os.rename("three", "four", src_dir_fd=at, dst_dir_fd=at)
os.chdir("one/two")
os.access("./five", os.F_OK)
os.access("../four", os.F_OK)
os.chdir("..")
os.chdir("two")
try: os.chdir("none")
except OSError: pass
"""
    trace = traced_python(traced_run, script)
    one = f"{traced_run.work}/one"
    assert trace.calls("path, ret", "name = 'mkdirat'") == [(f"{one}/three", 0)]
    renames = trace.calls("path, peer_path, ret", "name LIKE 'renameat%'")
    assert renames == [(f"{one}/three", f"{one}/four", 0)]
    rows = trace.calls("path, ret", "name IN ('access', 'faccessat', 'faccessat2') AND path LIKE ?",
                       f"{one}%")  # fmt: skip
    assert rows == [(f"{one}/two/five", -2), (f"{one}/two/../four", 0)]
    changed = [(f"{one}/two", 0), (one, 0), (f"{one}/two", 0), (f"{one}/two/none", -2)]
    assert trace.calls("path, ret", "name = 'chdir' AND path LIKE ?", f"{one}%") == changed


def test_second_files(traced_run: TracedRun) -> None:
    script = """
import os
a = os.open("a", os.O_CREAT | os.O_RDWR); b = os.open("b", os.O_CREAT | os.O_RDWR)
os.write(a, bytes(9000)); os.lseek(a, 100, 0)
os.copy_file_range(a, b, 1000, offset_dst=50)
os.sendfile(b, a, 200, 3000)
os.copy_file_range(a, b, 70, offset_src=5)
r, w = os.pipe()
os.splice(a, w, 400, offset_src=10)
"""
    trace = traced_python(traced_run, script)
    rows = trace.calls(
        "name, path, pos, ret, peer_path, peer_pos",
        "name IN ('copy_file_range', 'sendfile') ",
    )
    a, b = f"{traced_run.work}/a", f"{traced_run.work}/b"
    assert rows == [
        ("copy_file_range", a, 100, 1000, b, 50),
        ("sendfile", a, 200, 3000, b, 0),
        ("copy_file_range", a, 5, 70, b, 3000),
    ]
    rows = trace.calls("path, pos, ret, peer_kind", "name = 'splice'")
    assert rows == [(a, 10, 400, "pipe")]


def test_mapping(traced_run: TracedRun) -> None:
    script = """
import mmap, os
fd = os.open("out", os.O_CREAT | os.O_RDWR); os.ftruncate(fd, 65536)
mmap.mmap(fd, 8192, offset=4096).flush()
"""
    trace = traced_python(traced_run, script)
    assert trace.calls("size, pos, ret > 0", on(traced_run, "out") + " AND name = 'mmap'") == [
        (8192, 4096, True)
    ]
    assert trace.calls("ret", "name = 'msync' AND size = 8192") == [(0,)]


BLOCKED = "import os; r, w = os.pipe(); print(1, flush=True); os.read(r, 4321)"


@pytest.mark.parametrize("killed", [True, False])
def test_read_that_never_returns(traced_run: TracedRun, killed: bool) -> None:
    with traced_run.daemon():
        process = traced_run.start(*PYTHON, "-c", BLOCKED, stdout=subprocess.PIPE)
        assert process.stdout
        assert process.stdout.readline() == b"1\n"
        blocked = Path(f"/proc/{process.pid}/syscall")
        wait_until(lambda: f"{4321:#x}" in blocked.read_text(), "the read")
        time.sleep(0.2)
        if killed:
            process.kill()
            process.wait(10)
    process.kill()
    process.wait(10)
    process.stdout.close()
    trace = traced_run.trace()
    rows = trace.calls("kind, flags, dur > 100000000", "name = 'read' AND size = 4321")
    assert rows == [("pipe", UNFINISHED, True)]
    exits = trace.sql("SELECT exit_code & 127 FROM processes WHERE what = 'exit'")
    assert exits == ([(signal.SIGKILL,)] if killed else [])


WRITE = "import os; os.write(os.open('/dev/null', os.O_WRONLY), bytes(4321))"


def test_others_are_not_traced(traced_run: TracedRun, other_user: pwd.struct_passwd) -> None:
    with traced_run.daemon():
        traced_run.python(WRITE, user=other_user)
        traced_run.python(WRITE, wrap=False)
        traced_run.python(WRITE, run_id=RUN_ID + "x")
        traced_run.python(WRITE, run_id=RUN_ID[:-1])
        traced_run.python(WRITE.replace("4321", "1234"))
    trace = traced_run.trace()
    sizes = trace.calls("size", "name = 'write' AND path = '/dev/null'")
    assert sizes == [(1234,)]
    assert len(trace.sql("SELECT DISTINCT pid FROM processes")) == 1


def test_setuid_program_is_not_traced(traced_run: TracedRun, other_user: pwd.struct_passwd) -> None:
    program = traced_run.work / "dd"
    shutil.copy("/bin/dd", program)
    os.chown(program, other_user.pw_uid, other_user.pw_gid)
    program.chmod(0o6755)
    dd = ("if=/dev/zero", "of=/dev/null", "count=9", "status=none")
    with traced_run.daemon():
        traced_run.run("sh", "-c", f"./dd {' '.join(dd)} bs=4321; dd {' '.join(dd)} bs=1234")
    trace = traced_run.trace()
    sizes = trace.calls("size", "name = 'write' AND path = '/dev/null'")
    assert sizes == [(1234,)] * 9
    executed = trace.calls("ret, flags & 1", "name = 'execve' AND path = ?", str(program))
    assert executed == [(0, 0)], "the call has ended, the program is not in it"


SETUID = """
#include <sys/wait.h>
#include <unistd.h>
int main(int argc, char **argv) {
    if (argc > 1) return 0;
    pid_t child = fork();
    if (!child) execl("secret/tool", "tool", "again", (char *)0);
    waitpid(child, 0, 0);
    execl("secret/tool", "tool", "again", (char *)0);
    return 1;
}
"""


def test_what_a_setuid_program_runs_is_not_told(
    traced_run: TracedRun, other_user: pwd.struct_passwd
) -> None:
    program = traced_run.compile(SETUID, name="setuid")
    secret = traced_run.work / "secret"
    secret.mkdir()
    shutil.copy(program, secret / "tool")
    os.chown(secret, other_user.pw_uid, other_user.pw_gid)
    secret.chmod(0o700)
    os.chown(program, other_user.pw_uid, other_user.pw_gid)
    program.chmod(0o6755)
    with traced_run.daemon():
        traced_run.run("sh", "-c", "./setuid; exec true")
    trace = traced_run.trace()
    assert trace.sql("SELECT path FROM files WHERE path LIKE '%secret%'") == []
    names = {name for (name,) in trace.sql("SELECT DISTINCT comm FROM processes")}
    assert "true" in names and not names & {"setuid", "tool"}


def test_preload_alone_is_enough(traced_run: TracedRun) -> None:
    with traced_run.daemon():
        traced_run.python(WRITE, wrap=False, env={"LD_PRELOAD": str(LIBRARY)})
    assert traced_run.trace().calls("ret", "name = 'write' AND path = '/dev/null'") == [(4321,)]


REUSE = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int argc, char **argv) {
    pid_t wanted = atoi(argv[3]);
    struct clone_args args = {.exit_signal = SIGCHLD, .set_tid = (uintptr_t)&wanted,
                              .set_tid_size = 1};
    int status = 1;
    pid_t child = syscall(SYS_clone3, &args, sizeof(args));
    if (child < 0) return 2;
    if (!child) {
        if (setgid(atoi(argv[2])) || setuid(atoi(argv[1]))) _exit(3);
        execv(argv[4], argv + 4);
        _exit(4);
    }
    waitpid(child, &status, 0);
    return child != wanted || status;
}
"""
"""Run a program as a user, with a process id that is free again."""


def test_a_process_id_that_is_used_again(traced_run: TracedRun) -> None:
    again = traced_run.compile(REUSE)
    user = traced_run.user
    say = "import os; print(os.getpid()); " + WRITE
    with traced_run.daemon():
        pid = traced_run.python(say.replace("4321", "1001")).strip()
        other = [again, str(user.pw_uid), str(user.pw_gid), pid, *PYTHON, "-c"]
        environ = {"DATACRUMBS_RUN_ID": RUN_ID}
        subprocess.run([*other, WRITE], env=environ, check=True)
        environ["LD_PRELOAD"] = str(LIBRARY)
        subprocess.run([*other, WRITE.replace("4321", "1003")], env=environ, check=True)
    trace = traced_run.trace()
    written = trace.calls("pid, size", "name = 'write' AND path = '/dev/null'")
    assert written == [(int(pid), 1001), (int(pid), 1003)]
    lives = trace.sql("SELECT what FROM processes WHERE pid = ? ORDER BY ts", int(pid))
    assert [what for (what,) in lives if what != "exec"] == ["start", "exit", "start", "exit"]


POOL = """
import os
from concurrent.futures import ThreadPoolExecutor
def work(n):
    os.pwrite(fd, bytes(1000 + n), n)
fd = os.open("out", os.O_CREAT | os.O_WRONLY)
with ThreadPoolExecutor(5) as pool:
    list(pool.map(work, range(31)))
"""


def test_a_pool_of_threads(traced_run: TracedRun) -> None:
    trace = traced_python(traced_run, POOL)
    where = on(traced_run, "out") + " AND name = 'pwrite64'"
    assert sorted(trace.calls("pos, ret", where)) == [(n, 1000 + n) for n in range(31)]
    assert len(trace.sql(f"SELECT DISTINCT pid FROM calls WHERE {where}")) == 1
    assert trace.sql(f"SELECT count(*) FROM calls WHERE tid = pid AND {where}") == [(0,)]
