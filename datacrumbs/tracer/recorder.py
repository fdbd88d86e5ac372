"""The half of the daemon that runs as the run's user: drain, write, account, close."""

from __future__ import annotations

import os
import platform
import signal
import time
from collections.abc import Callable, Iterable
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
    FilteredBy,
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
    INTERVALS,
    PEERS,
    PROCESSES,
    EventFlag,
    arrow_schema,
)
from datacrumbs.tracer import layout
from datacrumbs.tracer.attach import Attached, read_all
from datacrumbs.tracer.custom import RING_BYTES
from datacrumbs.tracer.job import End, Job
from datacrumbs.tracer.signals import WAKE
from datacrumbs.tracer.waker import Waker

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LOOK_S = 0.1
"""How often all rings are looked at; one that fills wakes us."""
FLUSH_S = 1.0
TELL_S = 5.0
"""How often systemd gets a status line."""
STATUS_S = 60.0


@dataclass(slots=True)
class Told:
    """When a status line was made, and the events until then: rates are since that."""

    at_s: float
    events: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """Who and what is recorded."""

    run_id: str
    probes: ProbeList
    probe_file: ProbeFileFacts
    config: SystemConfig
    job: Job


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
        ring=RingFacts(count=attached.rings.count, bytes=attached.rings.events_bytes),
        nodes=[run.job.nodes] if run.job.nodes else [],
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
        import pyarrow as pa

        from datacrumbs.trace.writer import TraceWriter
        from datacrumbs.tracer.names import Names
        from datacrumbs.tracer.profile import Profile
        from datacrumbs.tracer.rings import EventRing, StringRing

        pa.set_memory_pool(pa.system_memory_pool())  # of its own, Arrow keeps 18 MB more
        self._attached, self._directory, self._info = attached, directory, info
        self._say, self._beat = say, beat
        plan = attached.rings
        self._rings = {fd: EventRing(fd, plan.ring_bytes) for fd in attached.ring_fds}
        self._waker = Waker([*self._rings, attached.strings_fd], WAKE)
        self._rings |= {one.ring_fd: EventRing(one.ring_fd, RING_BYTES) for one in attached.custom}
        self._custom_lost = [one.lost() for one in attached.custom]
        self._strings = StringRing(attached.strings_fd, plan.strings_bytes)
        self._names = Names(max_files=run.config.limits.files, kept=attached.plan.arguments)
        self._writer = TraceWriter(directory, segment_events=run.config.segment.events)
        self._counters = attached.object.shared(".data.counters", layout.Counters * layout.MAX_CPUS)
        fds = attached.profile_fds
        since_ns = info.clocks[0].mono_ns
        self._profile = (
            Profile(attached.object, fds, cells=attached.profile_cells, since_ns=since_ns)
            if fds
            else None
        )
        self._interval_s = run.config.profile.interval_s
        self._profiled = 0
        self._unfinished = 0
        self._end = End(run.probes.uid, run.job.end_s, run.config)
        self._logged, self._beaten = Told(time.monotonic()), Told(time.monotonic())
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

    def record(self) -> bool:
        """Work until SIGTERM or SIGINT; SIGUSR1 asks for a status line. Signals are blocked.

        Returns whether it ended by itself, its job being over.
        """
        now = time.monotonic()
        look_at, flush_at, status_at = now, now + FLUSH_S, now + STATUS_S
        interval_at = now + self._interval_s
        while True:
            woken, signals = self._waker.wait(min(look_at, interval_at) - time.monotonic())
            if self._told_to_end(signals):
                self._stop()
                return False
            now = time.monotonic()
            if now >= look_at:
                look_at = now + LOOK_S
                woken = set(self._rings)
            self._drain(woken)
            now = time.monotonic()
            if now >= self._end.look_at and self._end.has_come(now):
                self._say(self._end.why())
                self._stop()
                return True
            if now >= interval_at:
                behind = now - interval_at > self._interval_s
                interval_at = (now if behind else interval_at) + self._interval_s
                self._take_profile()
            # a flush would wait for the segment before; but a busy run has one at all times
            if now >= flush_at + (FLUSH_S if self._writer.busy else 0):
                flush_at = now + FLUSH_S
                self._writer.flush()
                tell = now >= self._beaten.at_s + TELL_S
                self._beat(self.status(self._beaten) if tell else "")
            if now >= status_at:
                status_at = now + STATUS_S
                self._say(self.status(self._logged))
                self._save(State.RUNNING, clock=True)

    def _told_to_end(self, signals: set[int]) -> bool:
        if signal.SIGUSR1 in signals:
            self._drain(self._rings)
            self._say(self.status(self._logged))
        return bool(signals - {signal.SIGUSR1})

    def _drain(self, fds: Iterable[int]) -> int:
        """Take what is in the rings ``fds`` and in that of names; how many events."""
        # names first: an event never waits in the files for a name that was sent before it
        self._names.add(self._strings.records())
        for table in (FILES, PROCESSES, PEERS, ARGUMENTS):
            self._write_rows(table, self._names.take(table))
        return sum(self._rings[fd].drain(self._take) for fd in fds if fd in self._rings)

    def _take(self, events: NDArray[np.void]) -> None:
        self._unfinished += int((events["flags"] & EventFlag.UNFINISHED).sum())
        self._writer.write_events(events)

    def _take_profile(self) -> None:
        if self._profile:
            calls, columns = self._profile.take()
            self._profiled += calls
            if columns:
                self._writer.write_rows(INTERVALS, columns)

    def _write_rows(self, table: str, columns: list[list[Any]]) -> None:
        if columns:
            names = arrow_schema(table).names
            self._writer.write_rows(table, dict(zip(names, columns, strict=True)))

    def _stop(self) -> None:
        self._attached.detach()
        read_all(self._attached.unfinished_fd)
        while self._drain(self._rings):
            pass
        self._take_profile()
        self._writer.close()
        self._save(State.COMPLETE, clock=True)
        self._say(self.status(self._logged))

    def _sum(self, name: str) -> int:
        return sum(int(getattr(c, name)) for c in self._counters)

    def _counts(self) -> tuple[Counts, LostBy, FilteredBy]:
        lost_by = LostBy(
            ring=self._sum("lost") + sum(count[0] for count in self._custom_lost),
            profile=self._sum("lost_profile"),
            missed=self._attached.object.missed(),
            strings=self._sum("lost_strings") + self._writer.rows_lost + self._names.over_limit,
            disk=self._writer.events_lost + self._writer.calls_lost,
        )
        filtered_by = FilteredBy(
            duration=self._sum("filtered_duration"),
            rate=self._sum("filtered_rate"),
            path=self._sum("filtered_path"),
            other=self._sum("filtered"),
        )
        counts = Counts(
            events=self._writer.events,
            profiled=self._profiled - self._writer.calls_lost,
            lost=lost_by.ring + lost_by.profile + lost_by.missed + lost_by.disk,
            filtered=sum(msgspec.structs.astuple(filtered_by)),
            unfinished=self._unfinished,
            bytes_written=self._writer.bytes_written,
        )
        return counts, lost_by, filtered_by

    def _save(self, state: State, *, clock: bool) -> None:
        counts, lost_by, filtered_by = self._counts()
        stopped = {"stopped_ns": time.time_ns()} if state is State.COMPLETE else {}
        clocks = [*self._info.clocks, take_pair()] if clock else self._info.clocks
        self._info = msgspec.structs.replace(
            self._info,
            state=state,
            counts=counts,
            lost_by=lost_by,
            filtered_by=filtered_by,
            clocks=clocks,
            **stopped,
        )
        try:
            write_run_info(self._directory, self._info)
        except OSError as error:
            self._say(f"run.json: {error.strerror}")

    def status(self, told: Told) -> str:
        """One line: events and profiled calls, their rate since ``told``, lost, filtered,
        bytes written.
        """
        counts, lost_by, _ = self._counts()
        now, total = time.monotonic(), counts.events + counts.profiled
        rate = (total - told.events) / max(now - told.at_s, 1e-9)
        told.at_s, told.events = now, total
        profiled = f"{counts.profiled} calls profiled, " if self._profile else ""
        line = (
            f"{counts.events} events, {profiled}{rate:.0f}/s, {counts.lost} lost, "
            f"{counts.filtered} filtered, {counts.bytes_written} bytes written"
        )
        if lost_by.strings:
            line += f", {lost_by.strings} names lost"
        if self._writer.problem:
            line += f"; disk: {self._writer.problem}"
        return line
