"""Explain on real traces of small programs: it names what made the slow calls slow."""

from __future__ import annotations

import json
import os
import platform
import pwd
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from kernel.tracing import BIN, RUN_ID, TracedRun, site_for

from datacrumbs.probes import model
from datacrumbs.probes.elf import find_binary, read_functions
from datacrumbs.probes.file import write_probe_file
from datacrumbs.signing import envelope, keys

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
int main(void) {
    static char buffer[1 << 18], block[1 << 12];
    FILE *file = fopen("input", "r");
    setvbuf(file, buffer, _IOFBF, sizeof buffer);
    for (int i = 0; i < 1024; i++) if (fread(block, sizeof block, 1, file) != 1) return 1;
}
"""


@dataclass(slots=True)
class LayeredRun(TracedRun):
    """A run with functions of ELF files as layers of their own, above the system calls'."""

    binaries: dict[str, tuple[Path, str]] = field(default_factory=dict)  # file and regex by layer

    def _sign(self, select: model.Select) -> Path:
        now = int(time.time())
        machine = platform.machine()
        layers: list[model.Layer] = [_layer(name, *what) for name, what in self.binaries.items()]
        calls = ["openat", "read", "pwrite64", "fsync", "close"]
        layers.append(model.SyscallLayer(name="syscall", functions=calls, select=select))
        probes = model.ProbeList(
            format=model.FORMAT,
            uid=self.user.pw_uid,
            user=self.user.pw_name,
            created=now,
            expires=now + 3600,
            host="test",
            cluster="",
            machine=machine,
            layers=layers,
        )
        path = self.root / "probes.json.gz"
        key = keys.load_private_key(self.root / "private.pem")
        write_probe_file(path, envelope.sign(model.encode(probes), key))
        return path

    def explain(self, *options: str) -> Any:
        """The JSON of the command for the run's trace, as the run's user."""
        done = subprocess.run(
            [
                BIN / "datacrumbs_explain",
                "--format",
                "json",
                *options,
                self.root / "traces" / RUN_ID,
            ],
            capture_output=True,
            text=True,
            check=True,
            user=self.user.pw_uid,
            group=self.user.pw_gid,
            extra_groups=[],
            env={"PATH": "/usr/bin:/bin", "HOME": str(self.work)},
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


@pytest.fixture
def run(ordinary_user: pwd.struct_passwd) -> Iterator[LayeredRun]:
    with site_for(ordinary_user) as site:
        yield LayeredRun(site.root, site.user)


def traced(run: LayeredRun, program: Path) -> None:
    with run.daemon():
        run.run(program)
    run.trace()


def test_checkpoints_that_fsync_are_the_slow_ones(run: LayeredRun) -> None:
    """A function of the program, of whose 200 calls 20 end with an fsync."""
    program = run.compile(CHECKPOINTS)
    run.binaries["app"] = (program, "checkpoint")
    traced(run, program)
    (found,) = run.explain("--call", "checkpoint")["explained"]
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


def test_synchronous_writes_are_told_by_their_file(run: LayeredRun) -> None:
    """The same pwrite64 on a file with O_SYNC and on one without."""
    traced(run, run.compile(TWO_FILES))
    (found,) = run.explain("--call", "pwrite64")["explained"]
    assert found["count"] == 200
    findings = {f["kind"]: f for f in found["variation"]["findings"]}
    assert findings["file"]["name"] == f"{run.work}/synchronous"
    assert findings["file"]["share"] > 0.5
    assert findings["file"]["slow_share"] > 0.7
    assert findings["file"]["fast_share"] < 0.1
    assert {call["path"] for call in found["slowest"]} == {f"{run.work}/synchronous"}
    alone = run.explain("--file", "buffered")["explained"]
    assert {e["name"]: e["count"] for e in alone} == {"openat": 1, "pwrite64": 160}


def test_freads_that_read_are_the_slow_ones(run: LayeredRun) -> None:
    """1024 freads of 4 KiB through a buffer of 256 KiB: 16 of them call read."""
    (run.work / "input").write_bytes(os.urandom(1 << 22))
    run.binaries["libc"] = (find_binary("libc.so.6", platform.machine()), "fread")
    traced(run, run.compile(BUFFERS))
    (found,) = run.explain("--call", "fread")["explained"]
    assert found["count"] == 1024
    assert [(i["depth"], i["name"], i["count"]) for i in found["inside"]] == [
        (0, "fread", 1024),
        (1, "read", 16),
    ]
    first = found["variation"]["findings"][0]
    assert (first["kind"], first["name"], first["cause"]) == ("inside", "read", "reading")
    assert first["slow_share"] > 5 * first["fast_share"]
