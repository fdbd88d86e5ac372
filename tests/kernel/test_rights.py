"""Root traces for a user: with that user's rights over files, and that user's programs only."""

from __future__ import annotations

import os
import pwd
import shutil
import struct
from pathlib import Path

from kernel.tracing import TracedRun, io_calls, user_layer

from datacrumbs.probes import model

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


def test_a_program_with_file_capabilities_leaves_the_run(traced_run: TracedRun) -> None:
    program = traced_run.compile(DROPS, name="drops")
    revision_2_effective, net_raw = 0x0200_0001, 1 << 13
    attribute = struct.pack("<5I", revision_2_effective, net_raw, 0, 0, 0)
    os.setxattr(program, "security.capability", attribute)
    with traced_run.daemon():
        traced_run.run("sh", "-c", "./drops; :")
    assert sizes_written(traced_run) == [4323]


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
