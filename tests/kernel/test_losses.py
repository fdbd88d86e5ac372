"""What the kernel cannot hand over is counted, by number."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from kernel.tracing import RUN_ID, TracedRun, wait_until

from datacrumbs.errors import UserError
from datacrumbs.tracer.libbpf import OBJECT_PATH, Object

MIB = 1 << 20
BURSTS, BURST, PAUSE_US = 50, 10_000, 20_000
READS = """
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>
int main(int argc, char **argv) /* bursts (0: for ever), reads in each, pause after it in us */
{
    int zero = open("/dev/zero", O_RDONLY), bursts = atoi(argv[1]);
    char byte;
    for (int i = 0; i < bursts || !bursts; i++) {
        for (int j = 0; j < atoi(argv[2]); j++)
            if (read(zero, &byte, 1) != 1)
                return 1;
        usleep(atoi(argv[3]));
    }
    return 0;
}
"""
NAMES = """
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(int argc, char **argv) /* bursts, names in each, pause in us */
{
    char name[64];
    for (int i = 0; i < atoi(argv[1]); i++) {
        for (int j = 0; j < atoi(argv[2]); j++) {
            snprintf(name, sizeof(name), "a/name/that/leads/nowhere/%d/%d", i, j);
            access(name, F_OK);
        }
        usleep(atoi(argv[3]));
    }
    return 0;
}
"""


def set_rings(run: TracedRun, rings: str) -> None:
    config = run.root / "system.yaml"
    config.write_text(re.sub("ring: {.*}", f"ring: {{{rings}}}", config.read_text()))


def recorder(run: TracedRun) -> int:
    return int((run.root / f"run/datacrumbs-{RUN_ID}.ready").read_text())


@contextmanager
def standing_still(run: TracedRun) -> Iterator[None]:
    """The recorder takes nothing meanwhile."""
    os.kill(recorder(run), signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(recorder(run), signal.SIGCONT)


def calls_besides(run: TracedRun, program: Path) -> int:
    """Those that the program makes at its start and end: all of a run with one empty burst."""
    with run.daemon():
        run.run(program, "1", "0", "0")
    counts = run.info()["counts"]
    assert counts["lost"] == 0
    return int(counts["events"])


def kept_and_lost(run: TracedRun) -> tuple[int, int]:
    """Calls by ``run.json``; none was lost but in a ring."""
    info = run.info()
    assert info["state"] == "complete"
    assert info["counts"]["lost"] == info["lost_by"]["ring"]
    return info["counts"]["events"], info["counts"]["lost"]


@pytest.fixture
def reads(traced_run: TracedRun) -> Path:
    return traced_run.compile(READS)


def test_events_that_find_the_ring_full_are_lost_by_number(
    traced_run: TracedRun, reads: Path
) -> None:
    """The recorder stands still meanwhile; what the ring holds is kept."""
    set_rings(traced_run, f"total_bytes: {MIB}")
    besides = calls_besides(traced_run, reads)
    remove_trace(traced_run)
    with traced_run.daemon(), standing_still(traced_run):
        traced_run.run(reads, "1", "200000", "0")
    kept, lost = kept_and_lost(traced_run)
    assert kept + lost == besides + 200_000
    assert MIB // 72 - 100 <= kept <= MIB // 72


def test_every_cpu_has_a_ring_that_holds_a_burst(traced_run: TracedRun, reads: Path) -> None:
    set_rings(traced_run, "")
    with traced_run.daemon(), standing_still(traced_run):
        for cpu in os.sched_getaffinity(0):
            traced_run.run("/usr/bin/taskset", "--cpu-list", str(cpu), reads, "1", "200000", "0")
    assert traced_run.info()["ring"]["count"] == os.cpu_count()
    assert kept_and_lost(traced_run)[1] == 0


def test_a_ring_that_fills_wakes_the_daemon(traced_run: TracedRun, reads: Path) -> None:
    """Looked at every 100 ms alone, a ring of 14,563 events would lose two of three."""
    set_rings(traced_run, f"min_ring_bytes: {MIB}, max_ring_bytes: {MIB}")
    besides = calls_besides(traced_run, reads)
    remove_trace(traced_run)
    with traced_run.daemon():
        traced_run.run(reads, str(BURSTS), str(BURST), str(PAUSE_US))
    kept, lost = kept_and_lost(traced_run)
    assert kept + lost == besides + BURSTS * BURST
    assert lost < BURSTS * BURST / 3  # none, if the machine has time for the daemon


def test_names_that_fill_their_ring_wake_the_daemon(traced_run: TracedRun) -> None:
    """Looked at every 100 ms alone, it would lose most."""
    set_rings(traced_run, "strings_bytes: 65536")
    names = traced_run.compile(NAMES)
    with traced_run.daemon():
        traced_run.run(names, "50", "200", str(PAUSE_US))
    assert traced_run.info()["lost_by"]["strings"] < 50 * 200 / 3


def test_the_daemon_stops_while_rings_overflow(traced_run: TracedRun, reads: Path) -> None:
    set_rings(traced_run, f"min_ring_bytes: {MIB}, max_ring_bytes: {MIB}")
    busy = 2 * len(os.sched_getaffinity(0))
    with traced_run.daemon() as daemon:
        processes = [traced_run.start(reads, "0", "100000", "0") for _ in range(busy)]
        try:
            time.sleep(3)
            daemon.terminate()
            wait_until(lambda: daemon.poll() is not None, "the end", 20)
        finally:
            for process in processes:
                process.terminate()
                process.wait()
    kept, lost = kept_and_lost(traced_run)
    assert lost > 0
    assert kept > len(os.sched_getaffinity(0)) * MIB // 72  # more than the rings hold


def test_rings_that_cannot_be_made_leave_none_behind() -> None:
    with closing(Object(OBJECT_PATH, log=print)) as bpf:
        bpf.only("on_fork")
        bpf.set_entries("rings", 64)
        bpf.load()
        before = os.listdir("/proc/self/fd")
        with pytest.raises(UserError, match="cannot make a ring of 3000 bytes: Invalid argument"):
            bpf.add_rings("rings", 64, 3000)
        assert os.listdir("/proc/self/fd") == before
        fds = bpf.add_rings("rings", 64, 1 << 16)
        assert len(set(fds)) == 64
        for fd in fds:
            os.close(fd)


def remove_trace(run: TracedRun) -> None:
    """For another run of the same id."""
    host = run.root / "traces"
    for path in sorted(host.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
