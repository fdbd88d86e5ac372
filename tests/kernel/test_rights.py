"""Root traces for a user: with that user's rights over files, and that user's programs only."""

from __future__ import annotations

import errno
import os
import platform
import pwd
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from kernel.tracing import LIBRARY, RUN_ID, TracedRun, io_calls, job_cgroup, user_layer

from datacrumbs.probes import model
from datacrumbs.tracer.plan import PLACES_MAX

WORK = """
__attribute__((noipa)) int work(void) { return 1; }
int main(void) { return !work(); }
"""


def layer_of(layer: model.UserLayer, name: str, binary: Path) -> model.UserLayer:
    """The same functions, of another file."""
    return model.UserLayer(
        name=name,
        binary=str(binary),
        functions=layer.functions,
        build_id=layer.build_id,
        digest=layer.digest,
    )


def test_binaries_are_opened_with_the_rights_of_the_user(
    traced_run: TracedRun, other_user: pwd.struct_passwd
) -> None:
    """What the user may not look at is not probed, and root does not say whether it is there."""
    program = traced_run.compile(WORK)
    good = user_layer("open", program, "work")
    closed = traced_run.root / "closed"
    closed.mkdir()
    shutil.copy(program, closed / "there")
    shutil.copy(program, traced_run.root / "unreadable")
    (traced_run.root / "unreadable").chmod(0o711)
    os.chown(closed, other_user.pw_uid, other_user.pw_gid)
    closed.chmod(0o700)
    os.mkfifo(traced_run.work / "fifo", 0o666)
    files = {
        "there": closed / "there",
        "missing": closed / "missing",
        "unreadable": traced_run.root / "unreadable",
        "fifo": traced_run.work / "fifo",
    }
    layers = [layer_of(good, name, binary) for name, binary in files.items()]
    with traced_run.daemon(good, *layers, io_calls()):
        traced_run.run(program)
    reasons = {row["layer"]: row["reason"] for row in traced_run.info()["skipped"]}
    assert reasons == {
        "there": f"{files['there']}: Permission denied",
        "missing": f"{files['missing']}: Permission denied",
        "unreadable": f"{files['unreadable']}: Permission denied",
        "fifo": f"{files['fifo']}: not a regular file",
    }
    assert traced_run.trace().calls("ret", "name = 'work'") == [(1,)]


DROPS = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <unistd.h>
static char bytes[8192];
int main(void) {
    int fd = open("/dev/null", O_WRONLY);
    write(fd, bytes, 4321);
    gid_t gid = getgid();
    uid_t uid = getuid();
    if (setresgid(gid, gid, gid) || setresuid(uid, uid, uid)) return 1;
    write(fd, bytes, 4322);
    execl("/bin/dd", "dd", "if=/dev/zero", "of=/dev/null", "bs=4323", "count=1", (char *)0);
    return 2;
}
"""
"""Becomes the user again, and later that user's own program."""


def sizes_written(run: TracedRun) -> list[int]:
    """Of the writes to /dev/null, in a run of `DROPS`."""
    trace = run.trace()
    # the call that led there has ended, and the program has no name
    where = "name = 'execve' AND path = ?"
    assert trace.calls("ret, flags & 1", where, str(run.work / "drops")) == [(0, 0)]
    names = {name for (name,) in trace.sql("SELECT DISTINCT comm FROM processes")}
    assert "dd" in names and "drops" not in names
    return [size for (size,) in trace.calls("size", "name = 'write' AND path = '/dev/null'")]


def test_a_setuid_program_leaves_the_run_until_it_executes_one_of_the_users(
    traced_run: TracedRun, other_user: pwd.struct_passwd
) -> None:
    program = traced_run.compile(DROPS, name="drops")
    os.chown(program, other_user.pw_uid, other_user.pw_gid)
    program.chmod(0o6755)
    with traced_run.daemon():
        traced_run.run("sh", "-c", "./drops; :")
    assert sizes_written(traced_run) == [4323]


def give_capability(program: Path) -> None:
    revision_2_effective, net_raw = 0x0200_0001, 1 << 13
    attribute = struct.pack("<5I", revision_2_effective, net_raw, 0, 0, 0)
    os.setxattr(program, "security.capability", attribute)


def test_a_program_with_file_capabilities_leaves_the_run(traced_run: TracedRun) -> None:
    give_capability(traced_run.compile(DROPS, name="drops"))
    with traced_run.daemon():
        traced_run.run("sh", "-c", "./drops; :")
    assert sizes_written(traced_run) == [4323]


ENDS_32 = """
void _start(void) { asm volatile("int $0x80" :: "a"(1), "b"(0)); }
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="of x86, the only ones with both here")
def test_a_32_bit_program_with_file_capabilities_is_not_named(traced_run: TracedRun) -> None:
    flags = ("-m32", "-static", "-nostdlib", "-ffreestanding", "-fno-pic", "-no-pie")
    give_capability(traced_run.compile(ENDS_32, *flags, name="capable"))
    traced_run.compile(ENDS_32, *flags, name="plain")
    with traced_run.daemon():
        traced_run.run("sh", "-c", "./capable; ./plain; :")
    names = {name for (name,) in traced_run.trace().sql("SELECT DISTINCT comm FROM processes")}
    assert "plain" in names and "capable" not in names


def test_ids_of_files_tell_nothing_of_the_kernels_memory(traced_run: TracedRun) -> None:
    """They are made with a secret of the run: the same file has another id in the next run."""
    ids = []
    for _ in range(2):
        with traced_run.daemon():
            traced_run.run("cat", "/etc/passwd", "/dev/null")
        trace = traced_run.trace()
        ids.append(dict(trace.sql("SELECT path, file FROM files WHERE kind <> 'name'")))
    same = ids[0].keys() & ids[1].keys()
    assert {"/etc/passwd", "/dev/null"} <= same
    assert all(ids[0][path] != ids[1][path] for path in same)


def test_where_a_name_leads_counts_when_probes_are_attached(traced_run: TracedRun) -> None:
    """What was signed under an allowed name may be a link to another file by then."""
    allowed, elsewhere = traced_run.work / "allowed", traced_run.work / "elsewhere"
    for directory in (allowed, elsewhere):
        directory.mkdir()
    program = traced_run.compile(WORK, name="elsewhere/program")
    (allowed / "link").symlink_to(program)
    layer = layer_of(user_layer("app", program, "work"), "app", allowed / "link")
    with open(traced_run.root / "system.yaml", "a") as config:
        config.write(f"policy: {{binaries: ['{allowed}/*']}}\n")
    with traced_run.daemon(layer, io_calls()):
        traced_run.run(program)
    (skipped,) = traced_run.info()["skipped"]
    why = f"{layer.binary}: policy.binaries of this host does not allow {program}"
    assert skipped["reason"] == why
    assert traced_run.trace().calls("ret", "name = 'work'") == []


MANY_EXITS = """
void _Unwind_RaiseException(void) {}
#define EXITS(name) asm(".globl " #name "\\n.type " #name ",@function\\n" #name ":\\n" \
                        ".rept 60000\\nret\\n.endr\\n.size " #name ",.-" #name "\\n");
EXITS(exits_a) EXITS(exits_b) EXITS(exits_c) EXITS(exits_d) EXITS(exits_e)
int main(void) { return 0; }
"""


def test_a_file_of_exits_alone_does_not_fill_the_kernels_memory(traced_run: TracedRun) -> None:
    program = traced_run.compile(MANY_EXITS)
    with traced_run.daemon(user_layer("exits", program, r"exits_\w"), io_calls()):
        traced_run.run(program)
    (skipped,) = traced_run.info()["skipped"]
    assert (skipped["layer"], skipped["name"]) == ("exits", str(program))
    assert skipped["reason"] == f"more than {PLACES_MAX} places to probe in one run"


TOUCH = """
import ctypes, os, sys
pid = int(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
def failed(number, *arguments):
    return libc.syscall(number, *arguments) == -1 and ctypes.get_errno()
def unreadable(name):
    try:
        os.close(os.open(f"/proc/{pid}/{name}", os.O_RDONLY))
    except OSError as error:
        return error.errno
    return 0
ptrace, pidfd_getfd = 101, 438
print(failed(ptrace, 16, pid, 0, 0), failed(pidfd_getfd, os.pidfd_open(pid), 3, 0),
      unreadable("mem"), unreadable("environ"), unreadable("fd/3"))
"""


def test_a_user_cannot_reach_into_the_recorder(traced_run: TracedRun) -> None:
    """It is the user's process, and has descriptors of all programs and maps of the run."""
    with traced_run.daemon():
        recorder = (traced_run.root / f"run/datacrumbs-{RUN_ID}.ready").read_text().strip()
        assert Path("/proc", recorder).exists()
        said = traced_run.python(TOUCH, recorder, wrap=False)
    denied, forbidden = errno.EACCES, errno.EPERM
    assert [int(word) for word in said.split()] == [forbidden, forbidden, denied, denied, denied]


@pytest.mark.parametrize("named", [True, False])
def test_a_cgroup_of_a_strangers_with_the_jobs_name_fills_no_ring(
    traced_run: TracedRun, other_user: pwd.struct_passwd, named: bool
) -> None:
    pids = {}
    with job_cgroup() as cgroup:
        job = Path(cgroup.name) if named else cgroup
        with traced_run.daemon(cgroup=job):
            for user in (other_user, traced_run.user):
                script = "read go; /bin/true; /bin/true; :"
                with traced_run.start(
                    "sh", "-c", script, user=user, wrap=False, stdin=subprocess.PIPE
                ) as shell:
                    (cgroup / "cgroup.procs").write_text(str(shell.pid))
                    shell.communicate(b"\n", timeout=30)
                pids[user.pw_name] = shell.pid
    seen = traced_run.trace().sql("SELECT DISTINCT pid, ppid FROM processes")
    own, stranger = pids[traced_run.user.pw_name], pids[other_user.pw_name]
    assert own in {pid for pid, _ in seen}
    assert sum(ppid == own for _, ppid in seen) == 2
    assert not [pid for pid, ppid in seen if stranger in (pid, ppid)]


def test_a_program_with_file_capabilities_cannot_join_by_itself(traced_run: TracedRun) -> None:
    linked = (f"-Wl,--no-as-needed,-rpath,{LIBRARY.parent}", str(LIBRARY))
    with traced_run.daemon():
        for name in ("plain", "capable"):
            program = traced_run.compile(WORK, *linked, name=name)
            if name == "capable":
                give_capability(program)
            traced_run.run(program, wrap=False)
    names = {name for (name,) in traced_run.trace().sql("SELECT DISTINCT comm FROM processes")}
    assert names == {"plain"}
