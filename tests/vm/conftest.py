"""One boot of each stock kernel, for all tests; their traces are read on the host."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from kernel.tracing import LIBRARY, Trace, TracedRun, make_site, traced_names, user_layer
from vm import explained
from vm.kernels import get_kernel
from vm.machine import DiedError, run_in

from datacrumbs.probes import model

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples/nfs.yaml"
TIMEOUT_S = 600.0
BOOTS = 3
"""Emulation with several threads now and then runs an instruction that the guest is changing
(a kprobe, a static branch), which kills its kernel: such a machine is booted again."""
SESSION, MULTI, KPROBE, NONE = "kprobe.session", "kprobe.multi", "kprobe", "tracepoint"
OFFERS = {"6.1": (KPROBE, NONE), "6.12": (SESSION, MULTI, KPROBE), "7": (SESSION, MULTI, KPROBE)}
"""What each kernel has: the first by the daemon's own choice, the others as if there were
nothing cheaper. `NONE`: as if it had no probes on functions."""
SYSTEM_CALLS = {"6.1": "tp_btf", "6.12": "tp_btf", "7": SESSION}
"""What system calls are seen by: 7.2 can preempt programs on their tracepoints."""

MAY_MISS = {"7"}
"""It preempts itself: while somebody is so in an operation on a BPF map (the daemon, at its sums),
the kernel runs no program on that CPU, for whichever thread. It counts them."""

FUNCTIONS = (
    *("ksys_write", "ext4_file_write_iter", "ext4_buffered_write_iter"),
    *("generic_perform_write", "ext4_da_write_begin", "ext4_sync_file", "ext4_writepages"),
    *("do_writepages", "blk_mq_submit_bio", "xfs_file_write_iter", "iomap_file_buffered_write"),
    *("xfs_file_fsync", "xfs_vm_writepages"),
    *("nfs_file_write", "nfs_file_read", "nfs_file_fsync", "nfs_writepages", "nfs_readahead"),
    *("nfs_initiate_pgio", "rpc_run_task"),
)
"""Functions that every one of the kernels has."""

WITH_ARGUMENTS = (
    "vfs_write",
    [model.Argument(name="count", index=2, type=model.ArgumentType.UINT)],
)
POINTS = ("block:block_rq", "ext4:ext4_sync_file", "nfs:nfs_rq", "sunrpc:rpc_task")
PROFILED, PROFILED_BY_USER = "vfs_read", "step"
BUSY_THREADS, BUSY_CALLS = 6, 20011
"""More threads than a guest has CPUs, and the reads of each."""

CROWD_THREADS, CROWD_CALLS = 8, 5003
"""The same of calls of a user function, by crowd.c."""

PREEMPTED = ("6.12", "preempt=full")
"""A kernel that lets threads on uprobes be preempted, where booted so."""

MISSING = {"no_such_function", "type_show", "exc_int3"}
"""Absent, ambiguous, and one in which no probe may be."""

EXPLAINED = "6.12"
"""The kernel that also runs what is explained."""


def missed(kernel: str, run: TracedRun) -> int:
    """How often the kernel says that it did not run a program; 0 unless it is one that may."""
    return int(run.info()["lost_by"]["missed"]) if kernel in MAY_MISS else 0


@dataclass(frozen=True, slots=True)
class Booted:
    """The runs that a kernel made, by mechanism; ``explained``: of `EXPLAINED` only.

    ``example``: names by layer, as the configurator finds them there for `EXAMPLE`.
    ``crowd``: of the crowd's calls, a run of its own.
    """

    kernel: str
    runs: dict[str, TracedRun]
    crowd: TracedRun
    explained: TracedRun | None
    example: dict[str, list[str]]

    def missed(self, mechanism: str) -> int:
        """As `missed`, of one of the runs."""
        return missed(self.kernel, self.runs[mechanism])

    def trace(self, mechanism: str) -> Trace:
        """The trace of a run, which lost nothing but what the kernel missed."""
        return self.runs[mechanism].trace(lost=self.missed(mechanism))


Boot = Callable[[str], Booted]
T = TypeVar("T")


@pytest.fixture(scope="session")
def boot() -> Iterator[Boot]:
    """Boots a kernel, once in the session."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to share files with virtual machines: run the tests as root")
    with contextlib.ExitStack() as kept:
        yield functools.cache(lambda kernel: until_alive(functools.partial(_runs, kernel), kept))


@pytest.fixture(scope="session", params=OFFERS)
def booted(request: pytest.FixtureRequest, boot: Boot) -> Booted:
    """Each kernel, after it traced the known work with every mechanism that it has."""
    return boot(request.param)


@pytest.fixture(scope="session")
def preempted() -> Iterator[TracedRun]:
    """The crowd's run on `PREEMPTED`."""
    with contextlib.ExitStack() as kept:
        yield until_alive(_crowd_alone, kept)


def until_alive(run: Callable[[Path], T], kept: contextlib.ExitStack) -> T:
    """``run``, which boots a machine, in a new directory; again if the machine dies.

    The directory is there until ``kept`` is left.
    """
    for _ in range(BOOTS - 1):
        with contextlib.suppress(DiedError):
            return run(kept.enter_context(_shared()))
    return run(kept.enter_context(_shared()))


@contextlib.contextmanager
def _shared() -> Iterator[Path]:
    """A directory for a guest."""
    path = Path(tempfile.mkdtemp(prefix="datacrumbs-vm-", dir="/var/tmp"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def _runs(kernel: str, shared: Path) -> Booted:
    """Boot ``kernel`` with new sites in ``shared``, do the work; raises `DiedError`."""
    for name in ("work", "busy"):
        _compile(HERE / f"{name}.c", shared)
    _compile(HERE.parent / "kernel/io_uring.c", shared, "-luring")
    runs = {name: _site(shared / name, shared / "busy") for name in OFFERS[kernel]}
    crowd = _crowd(shared)
    explained_run = explained.prepare(shared) if kernel == EXPLAINED else None
    sites = [*runs.values(), crowd, *([explained_run] if explained_run else [])]
    _run_guest(kernel, shared, sites)
    found = json.loads((shared / "nfs.json").read_text())["layers"]
    example = {layer["name"]: layer["names"] for layer in found}
    return Booted(kernel, runs, crowd, explained_run, example)


def _crowd_alone(shared: Path) -> TracedRun:
    """The crowd's run on `PREEMPTED`, in ``shared``; raises `DiedError`."""
    kernel, arguments = PREEMPTED
    crowd = _crowd(shared)
    _run_guest(kernel, shared, [crowd], arguments)
    return crowd


def _run_guest(kernel: str, shared: Path, sites: list[TracedRun], arguments: str = "") -> None:
    shutil.copy(EXAMPLE, shared)
    numbers = f"{BUSY_THREADS} {BUSY_CALLS}", f"{CROWD_THREADS} {CROWD_CALLS}"
    command = [str(HERE / "guest.sh"), sys.executable, str(LIBRARY), *numbers]
    command += [str(site.root) for site in sites]
    run_in(get_kernel(kernel), command, shared=shared, timeout_s=TIMEOUT_S, arguments=arguments)


def _compile(source: Path, shared: Path, *flags: str) -> Path:
    program = shared / source.stem
    subprocess.run(["cc", "-O1", "-pthread", "-o", program, source, *flags], check=True)
    return program


def _crowd(shared: Path) -> TracedRun:
    """The site of the crowd's run."""
    program = _compile(HERE.parent / "kernel/crowd.c", shared)
    root = shared / "crowd-site"
    root.mkdir()
    run = make_site(root, pwd.getpwnam("nobody"))
    run.sign(user_layer("app", program, "step"))
    return run


def _site(root: Path, busy: Path) -> TracedRun:
    root.mkdir()
    run = make_site(root, pwd.getpwnam("nobody"))
    names = [*FUNCTIONS, *POINTS, *sorted(MISSING)]
    functions = [model.KernelFunction(name=name) for name in names]
    functions.append(model.KernelFunction(name=WITH_ARGUMENTS[0], arguments=WITH_ARGUMENTS[1]))
    run.sign(
        model.SyscallLayer(name="syscall", functions=traced_names()),
        model.KernelLayer(name="kernel", functions=functions),
        model.KernelLayer(
            name="sums",
            functions=[model.KernelFunction(name=PROFILED)],
            mode=model.Mode.PROFILE,
        ),
        user_layer("app", busy, PROFILED_BY_USER, mode=model.Mode.PROFILE),
    )
    return run
