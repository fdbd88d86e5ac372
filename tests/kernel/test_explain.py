"""Explain on real traces of small programs: it names what made the slow calls slow."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from kernel.tracing import BIN, RUN_ID, TracedRun

from datacrumbs.probes import model
from datacrumbs.probes.elf import find_binary, read_functions

pytestmark = pytest.mark.root

CHECKPOINTS = """
#include <fcntl.h>
#include <unistd.h>
static int fd;
__attribute__((noinline)) void checkpoint(int number) {
    char block[4097] = {0};
    for (int i = 0; i < 3; i++) pwrite(fd, block, sizeof block, i * sizeof block);
    if (number % 10 == 9) fsync(fd);
}
int main(void) {
    fd = open("state", O_CREAT | O_WRONLY, 0600);
    for (int number = 0; number < 200; number++) checkpoint(number);
}
"""

TWO_FILES = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <unistd.h>
int main(void) {
    char block[4096] = {0};
    int fast = open("buffered", O_CREAT | O_WRONLY, 0600);
    int slow = open("synchronous", O_CREAT | O_WRONLY | O_SYNC, 0600);
    for (int i = 0; i < 200; i++) pwrite(i % 5 ? fast : slow, block, sizeof block, i * 4096L);
}
"""

BUFFERS = """
#include <stdio.h>
#include <unistd.h>
int main(void) {
    static char buffer[4096], block[256];
    int ends[2];
    pipe(ends);
    if (!fork()) {
        for (int i = 0; i < 40; i++) { usleep(20000); write(ends[1], buffer, sizeof buffer); }
        _exit(0);
    }
    FILE *file = fdopen(ends[0], "r");
    setvbuf(file, buffer, _IOFBF, sizeof buffer);
    for (int i = 0; i < 640; i++) if (fread(block, sizeof block, 1, file) != 1) return 1;
}
"""


def explain(run: TracedRun, *options: str) -> Any:
    """The JSON of the command for the run's trace, as the run's user."""
    done = subprocess.run(
        [BIN / "datacrumbs_explain", "--format", "json", *options, run.root / "traces" / RUN_ID],
        capture_output=True,
        text=True,
        check=True,
        user=run.user.pw_uid,
        group=run.user.pw_gid,
        extra_groups=[],
        env={"PATH": "/usr/bin:/bin", "HOME": str(run.work)},
    )
    assert done.stderr == ""
    return json.loads(done.stdout)


def _layer(name: str, binary: Path, regex: str) -> model.UserLayer:
    found = read_functions(binary, re.compile(regex), platform.machine())
    return model.UserLayer(
        name=name,
        binary=str(binary),
        functions=list(found.functions),
        build_id=found.build_id,
        digest=found.digest,
    )


def traced(run: TracedRun, program: Path, *layers: model.UserLayer) -> None:
    """Trace ``program`` with its system calls and ``layers``."""
    calls = ["openat", "read", "pwrite64", "fsync"]
    syscalls = model.SyscallLayer(name="syscall", functions=calls)
    with run.daemon(*layers, syscalls):
        run.run(program)
    run.trace()


def test_checkpoints_that_fsync_are_the_slow_ones(traced_run: TracedRun) -> None:
    """A function of the program, of whose 200 calls 20 end with an fsync."""
    program = traced_run.compile(CHECKPOINTS)
    traced(traced_run, program, _layer("app", program, "checkpoint"))
    (found,) = explain(traced_run, "--call", "checkpoint")["explained"]
    assert found["count"] == 200
    inside = {inner["name"]: inner for inner in found["inside"]}
    assert {name: inner["count"] for name, inner in inside.items()} == {
        "checkpoint": 200,
        "pwrite64": 600,
        "fsync": 20,
    }
    assert inside["checkpoint"]["time_ns"] == sum(inner["self_ns"] for inner in inside.values())
    first = found["variation"]["findings"][0]
    assert (first["kind"], first["cause"], first["name"]) == ("inside", "sync", "fsync")
    assert first["share"] > 0.7
    assert first["slow_share"] > 0.9
    assert first["fast_share"] < 0.1
    assert "forcing data to stable storage. fsync (syscall)" in first["sentence"]


def test_synchronous_writes_are_told_by_their_file(traced_run: TracedRun) -> None:
    """The same pwrite64 on a file with O_SYNC and on one without."""
    traced(traced_run, traced_run.compile(TWO_FILES))
    (found,) = explain(traced_run, "--call", "pwrite64")["explained"]
    assert found["count"] == 200
    findings = {f["kind"]: f for f in found["variation"]["findings"]}
    assert findings["file"]["name"] == f"{traced_run.work}/synchronous"
    assert findings["file"]["share"] > 0.5
    assert findings["file"]["slow_share"] > 0.7
    assert findings["file"]["fast_share"] < 0.1
    assert {call["path"] for call in found["slowest"]} == {f"{traced_run.work}/synchronous"}
    alone = explain(traced_run, "--file", "buffered")["explained"]
    assert {e["name"]: e["count"] for e in alone} == {"openat": 1, "pwrite64": 160}


def test_freads_that_read_are_the_slow_ones(traced_run: TracedRun) -> None:
    """640 freads through a buffer: 40 of them read from a pipe, which fills every 20 ms."""
    libc = _layer("libc", find_binary("libc.so.6", platform.machine()), "fread")
    traced(traced_run, traced_run.compile(BUFFERS), libc)
    (found,) = explain(traced_run, "--call", "fread")["explained"]
    assert found["count"] == 640
    assert [(i["depth"], i["name"], i["count"]) for i in found["inside"]] == [
        (0, "fread", 640),
        (1, "read", 40),
    ]
    first = found["variation"]["findings"][0]
    assert (first["kind"], first["name"], first["cause"]) == ("inside", "read", "reading")
    assert first["slow_share"] > 5 * first["fast_share"]
