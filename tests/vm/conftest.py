"""One boot of each stock kernel, for all tests; their traces are read on the host."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from kernel.tracing import LIBRARY, TracedRun, make_site, traced_names
from vm.kernels import get_kernel
from vm.machine import DiedError, run_in

from datacrumbs.probes import model

HERE = Path(__file__).parent
TIMEOUT_S = 600.0
BOOTS = 3
"""Emulation with several threads now and then runs an instruction that the guest is changing
(a kprobe, a static branch), which kills its kernel: such a machine is booted again."""
SESSION, MULTI, KPROBE, NONE = "kprobe.session", "kprobe.multi", "kprobe", "tracepoint"
OFFERS = {"6.1": (KPROBE, NONE), "6.12": (SESSION, MULTI, KPROBE), "7": (SESSION, MULTI, KPROBE)}
"""What each kernel has: the first by the daemon's own choice, the others as if there were
nothing cheaper. `NONE`: as if it had no probes on functions."""

FUNCTIONS = (
    *("ksys_write", "ext4_file_write_iter", "ext4_buffered_write_iter"),
    *("generic_perform_write", "ext4_da_write_begin", "ext4_sync_file", "ext4_writepages"),
    *("do_writepages", "blk_mq_submit_bio", "xfs_file_write_iter", "iomap_file_buffered_write"),
    *("xfs_file_fsync", "xfs_vm_writepages"),
)
"""Functions that every one of the kernels has."""

WITH_ARGUMENTS = (
    "vfs_write",
    [model.Argument(name="count", index=2, type=model.ArgumentType.UINT)],
)
POINTS = ("block:block_rq", "ext4:ext4_sync_file")
MISSING = {"no_such_function", "type_show", "exc_int3"}
"""Absent, ambiguous, and one in which no probe may be."""


@dataclass(frozen=True, slots=True)
class Booted:
    """The runs that a kernel made, by mechanism."""

    kernel: str
    runs: dict[str, TracedRun]


@pytest.fixture(scope="session", params=OFFERS)
def booted(request: pytest.FixtureRequest) -> Iterator[Booted]:
    """Boot a kernel, and let it trace the known work with every mechanism that it has."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to share files with virtual machines: run the tests as root")
    for attempt in range(BOOTS):
        shared = Path(tempfile.mkdtemp(prefix="datacrumbs-vm-", dir="/var/tmp"))
        try:
            runs = _runs(request.param, shared)
        except DiedError:
            if attempt == BOOTS - 1:
                raise
        else:
            yield Booted(request.param, runs)
            return
        finally:
            shutil.rmtree(shared)


def _runs(kernel: str, shared: Path) -> dict[str, TracedRun]:
    """Boot ``kernel`` with new sites in ``shared``, do the work; raises `DiedError`."""
    shared.chmod(0o755)
    runs = {name: _site(shared / name) for name in OFFERS[kernel]}
    subprocess.run(["cc", "-O1", "-o", shared / "work", HERE / "work.c"], check=True)
    command = [str(HERE / "guest.sh"), sys.executable, str(LIBRARY)]
    command += [str(shared / name) for name in runs]
    run_in(get_kernel(kernel), command, shared=shared, timeout_s=TIMEOUT_S)
    return runs


def _site(root: Path) -> TracedRun:
    root.mkdir()
    run = make_site(root, pwd.getpwnam("nobody"))
    names = [*FUNCTIONS, *POINTS, *sorted(MISSING)]
    functions = [model.KernelFunction(name=name) for name in names]
    functions.append(model.KernelFunction(name=WITH_ARGUMENTS[0], arguments=WITH_ARGUMENTS[1]))
    run.sign(
        model.SyscallLayer(name="syscall", functions=traced_names()),
        model.KernelLayer(name="kernel", functions=functions),
    )
    return run
