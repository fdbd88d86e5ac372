"""A tracked program joins a run by itself; once it is untracked it does not."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from kernel.tracing import BIN, TracedRun

WRITES = """
#include <unistd.h>
#include <fcntl.h>
static char data[4097];
int main(void) {
    int fd = open("out", O_CREAT | O_WRONLY | O_TRUNC, 0600);
    for (int i = 0; i < 23; i++) write(fd, data, sizeof data);
    return 0;
}
"""


def _as_user(run: TracedRun, command: str, program: Path) -> None:
    subprocess.run(
        [BIN / command, "--executable", program],
        user=run.user.pw_uid,
        group=run.user.pw_gid,
        extra_groups=[],
        check=True,
        capture_output=True,
    )


def test_a_tracked_program_joins_the_run(traced_run: TracedRun) -> None:
    program = traced_run.compile(WRITES)
    os.chown(program, traced_run.user.pw_uid, traced_run.user.pw_gid)
    _as_user(traced_run, "datacrumbs_track", program)
    with traced_run.daemon():
        traced_run.run(program, wrap=False)
        traced_run.run(program, wrap=False, run_id="another")
        _as_user(traced_run, "datacrumbs_untrack", program)
        traced_run.run(program, wrap=False)
    writes = traced_run.trace().calls("path, size, ret", "name = 'write'")
    assert writes == [(str(traced_run.work / "out"), 4097, 4097)] * 23
