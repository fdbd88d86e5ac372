"""The half of the daemon that runs as the run's user: drain, write, account, close."""

from __future__ import annotations

import os
import platform
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from datacrumbs import __version__
from datacrumbs.config import SystemConfig
from datacrumbs.probes.model import ProbeList
from datacrumbs.run import host_name
from datacrumbs.trace.clocks import take_pair
from datacrumbs.trace.runfile import (
    Counts,
    Daemon,
    LostBy,
    Mechanism,
    ProbeFileFacts,
    RingFacts,
    RunInfo,
    Skipped,
    State,
    boot_id,
    start_ticks,
    write_run_info,
)
from datacrumbs.trace.schema import (
    ARGUMENTS,
    FILES,
    FUNCTIONS,
    PEERS,
    PROCESSES,
    EventFlag,
    arrow_schema,
)
from datacrumbs.tracer import layout
from datacrumbs.tracer.attach import Attached, power_of_two, read_all

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

POLL_S = 0.1
BUSY_POLL_S = 0.01
FLUSH_S = 1.0
STATUS_S = 60.0
WAKE = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}


@dataclass(frozen=True, slots=True)
class Run:
    """Who and what is recorded."""

    run_id: str
    probes: ProbeList
    probe_file: ProbeFileFacts
    config: SystemConfig


def first_run_info(run: Run, attached: Attached) -> RunInfo:
    """``run.json`` at the start."""
    plan, pid = attached.plan, os.getpid()
    return RunInfo(
        datacrumbs=__version__,
        run_id=run.run_id,
        user=run.probes.user,
        uid=run.probes.uid,
        host=host_name(),
        kernel=platform.release(),
        machine=platform.machine(),
        boot_id=boot_id(),
        cpus=os.cpu_count() or 1,
        probe_file=run.probe_file,
        state=State.RUNNING,
        started_ns=time.time_ns(),
        clocks=[take_pair()],
        mechanisms=[
            Mechanism(layer=a, kind=b, mechanism=c, functions=n) for a, b, c, n in plan.mechanisms
        ],
        skipped=[Skipped(layer=a, name=b, reason=c) for a, b, c in plan.skipped],
        daemon=Daemon(pid=pid, start_ticks=start_ticks(pid) or 0),
        ring=RingFacts(
            count=len(attached.ring_fds), bytes=attached.ring_bytes * len(attached.ring_fds)
        ),
    )


class Recorder:
    """Drains the rings into ``directory`` until it is told to stop."""

    def __init__(
        self,
        run: Run,
        attached: Attached,
        directory: Path,
        info: RunInfo,
        *,
        say: Callable[[str], None],
        beat: Callable[[str], None],
    ) -> None:
        # here, after the daemon is ready: numpy and pyarrow take longer to load than all else
        from datacrumbs.trace.writer import TraceWriter
        from datacrumbs.tracer.names import Names
        from datacrumbs.tracer.rings import EventRing, StringRing

        self._attached, self._directory, self._info = attached, directory, info
        self._say, self._beat = say, beat
        self._rings = [EventRing(fd, attached.ring_bytes) for fd in attached.ring_fds]
        size = power_of_two(run.config.ring.strings_bytes)
        self._strings = StringRing(attached.strings_fd, size)
        self._names = Names(max_files=run.config.limits.files, kept=attached.plan.arguments)
        self._writer = TraceWriter(directory, segment_events=run.config.segment.events)
        self._counters = attached.object.shared(".data.counters", layout.Counters * layout.MAX_CPUS)
        self._disk_lost = 0
        self._unfinished = 0
        self._said = (time.monotonic(), 0)
        functions = attached.plan.functions
        self._write_rows(
            FUNCTIONS,
            [
                list(c)
                for c in zip(
                    *((f.func, f.layer, f.name, f.kind, str(f.op), f.binary) for f in functions),
                    strict=True,
                )
            ],
        )

    def record(self) -> None:
        """Work until SIGTERM or SIGINT; SIGUSR1 asks for a status line. Signals are blocked."""
        flush_at = time.monotonic() + FLUSH_S
        status_at = time.monotonic() + STATUS_S
        pause_s = POLL_S
        while True:
            got = signal.sigtimedwait(WAKE, pause_s)
            if got and got.si_signo != signal.SIGUSR1:
                return self._stop()
            pause_s = BUSY_POLL_S if self._drain() > 100_000 else POLL_S
            now = time.monotonic()
            if got:
                self._say(self.status())
            if now >= flush_at:
                flush_at = now + FLUSH_S
                self._writer.flush()
                self._beat("")
            if now >= status_at:
                status_at = now + STATUS_S
                self._say(self.status())
                self._save(State.RUNNING, clock=True)

    def _drain(self) -> int:
        # names first: an event never waits in the files for a name that was sent before it
        self._names.add(self._strings.records())
        for table in (FILES, PROCESSES, PEERS, ARGUMENTS):
            self._write_rows(table, self._names.take(table))
        return sum(ring.drain(self._take) for ring in self._rings)

    def _take(self, events: NDArray[np.void]) -> None:
        self._unfinished += int((events["flags"] & EventFlag.UNFINISHED).sum())
        self._disk_lost += self._writer.write_events(events)

    def _write_rows(self, table: str, columns: list[list[Any]]) -> None:
        if columns:
            names = arrow_schema(table).names
            self._writer.write_rows(table, dict(zip(names, columns, strict=True)))

    def _stop(self) -> None:
        self._attached.object.detach()
        read_all(self._attached.unfinished_fd)
        while self._drain():
            pass
        self._disk_lost += self._writer.close()
        self._save(State.COMPLETE, clock=True)
        self._say(self.status())

    def _sum(self, name: str) -> int:
        return sum(int(getattr(c, name)) for c in self._counters)

    def _counts(self) -> tuple[Counts, LostBy]:
        lost_by = LostBy(
            ring=self._sum("lost"),
            strings=self._sum("lost_strings") + self._writer.rows_lost + self._names.over_limit,
            disk=self._disk_lost,
        )
        counts = Counts(
            events=self._writer.events,
            lost=lost_by.ring + lost_by.disk,
            filtered=self._sum("filtered"),
            unfinished=self._unfinished,
            bytes_written=self._writer.bytes_written,
        )
        return counts, lost_by

    def _save(self, state: State, *, clock: bool) -> None:
        counts, lost_by = self._counts()
        stopped = {"stopped_ns": time.time_ns()} if state is State.COMPLETE else {}
        clocks = [*self._info.clocks, take_pair()] if clock else self._info.clocks
        self._info = msgspec.structs.replace(
            self._info, state=state, counts=counts, lost_by=lost_by, clocks=clocks, **stopped
        )
        try:
            write_run_info(self._directory, self._info)
        except OSError as error:
            self._say(f"run.json: {error.strerror}")

    def status(self) -> str:
        """One line: events, rate since the last line, lost, filtered, bytes written."""
        counts, lost_by = self._counts()
        now, (then, before) = time.monotonic(), self._said
        rate = (counts.events - before) / max(now - then, 1e-9)
        self._said = (now, counts.events)
        line = (
            f"{counts.events} events, {rate:.0f}/s, {counts.lost} lost, "
            f"{counts.filtered} filtered, {counts.bytes_written} bytes written"
        )
        if lost_by.strings:
            line += f", {lost_by.strings} names lost"
        if self._writer.problem:
            line += f"; disk: {self._writer.problem}"
        return line
