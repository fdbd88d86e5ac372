"""``run.json``: the facts of one host's part of a run, and whether it is still going.

Written strictly, read tolerantly: fields of a later version are passed over, a higher
``format`` is refused by name.
"""

from __future__ import annotations

import os
import time
from enum import StrEnum
from pathlib import Path

import msgspec
from msgspec import Struct

from datacrumbs.errors import BadInputError
from datacrumbs.run import host_name
from datacrumbs.trace.clocks import ClockPair, Nanoseconds
from datacrumbs.trace.schema import FORMAT

RUN_FILE = "run.json"

ALIVE_S = 150
"""A trace from another host counts as running if something in it changed this recently; the
daemon rewrites ``run.json`` every minute."""


class State(StrEnum):
    """What became of a run; ``run.json`` itself says only running or complete."""

    RUNNING = "running"
    COMPLETE = "complete"
    CUT_OFF = "cut off"  # the daemon went without closing the trace


class ProbeFileFacts(Struct, frozen=True, kw_only=True):
    """The probe file of the run; times are Unix seconds."""

    path: str
    sha256: str
    keyid: str
    created: int
    expires: int


class Counts(Struct, frozen=True, kw_only=True):
    """Events kept, calls added up in intervals, calls lost and filtered, events unfinished;
    size of the trace's files.
    """

    events: int = 0
    profiled: int = 0
    lost: int = 0
    filtered: int = 0
    unfinished: int = 0
    bytes_written: int = 0


class LostBy(Struct, frozen=True, kw_only=True):
    """Where it was lost: events in a full ring, calls in a full profile, calls at which the
    kernel did not run our program, either on a full disk; strings (paths, names).
    """

    ring: int = 0
    profile: int = 0
    missed: int = 0
    strings: int = 0
    disk: int = 0


class FilteredBy(Struct, frozen=True, kw_only=True):
    """Why calls were not kept: too short, too many a second, on other files; or of another
    layer's processes or of 32-bit programs.
    """

    duration: int = 0
    rate: int = 0
    path: int = 0
    other: int = 0


class Mechanism(Struct, frozen=True, kw_only=True):
    """How a layer's functions were attached, and how many."""

    layer: str
    kind: str
    mechanism: str
    functions: int


class Skipped(Struct, frozen=True, kw_only=True):
    """A function that was asked for and could not be probed."""

    layer: str
    name: str
    reason: str


class Daemon(Struct, frozen=True, kw_only=True):
    """The process that writes; ``start_ticks`` is field 22 of ``/proc/<pid>/stat``."""

    pid: int
    start_ticks: int


class RingFacts(Struct, frozen=True, kw_only=True):
    """The event rings: how many, and bytes of all together."""

    count: int
    bytes: int


class RunInfo(Struct, frozen=True, kw_only=True):
    """All of ``run.json``. ``started_ns`` and ``stopped_ns`` are CLOCK_REALTIME.

    ``nodes``: the nodes of the run's job, where it named them, folded: ``["n[1-64]"]``.
    """

    format: int = FORMAT
    datacrumbs: str
    run_id: str
    user: str
    uid: int
    host: str
    kernel: str
    machine: str
    boot_id: str
    cpus: int
    probe_file: ProbeFileFacts
    state: State
    started_ns: Nanoseconds
    stopped_ns: Nanoseconds | None = None
    clocks: list[ClockPair]
    counts: Counts = Counts()
    lost_by: LostBy = LostBy()
    filtered_by: FilteredBy = FilteredBy()
    mechanisms: list[Mechanism] = []
    skipped: list[Skipped] = []
    daemon: Daemon
    ring: RingFacts
    nodes: list[str] = []


class _Version(Struct):
    format: int


def write_run_info(directory: Path, info: RunInfo) -> None:
    """Replace ``directory/run.json`` in one step.

    Raises OSError (a full disk), and then the old file stands; `msgspec.ValidationError` for
    a value of the wrong type.
    """
    checked = msgspec.convert(msgspec.to_builtins(info), RunInfo)
    temporary = directory / f".{RUN_FILE}.tmp"
    text = msgspec.json.format(msgspec.json.encode(checked), indent=1)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(text + b"\n")
        temporary.replace(directory / RUN_FILE)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_run_info(directory: Path) -> RunInfo | None:
    """``directory/run.json``, None without one; `BadInputError` for one we cannot read."""
    path = directory / RUN_FILE
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror}") from error
    try:
        version = msgspec.json.decode(text, type=_Version).format
        if version <= FORMAT:
            return msgspec.json.decode(text, type=RunInfo)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path}: {error}", hint="the file is damaged") from error
    raise BadInputError(
        f"{path}: trace is format {version}, this datacrumbs reads up to {FORMAT}",
        hint="update datacrumbs where you read the trace",
    )


def boot_id() -> str:
    """This boot of this kernel."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int | None:
    """When ``pid`` started, in clock ticks since boot; None if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(b")")[2].split()  # the name before may hold anything
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def state_of(directory: Path) -> State:
    """Complete, running or cut off.

    Running means, on the host that wrote it: same boot, and the daemon's process lives. On
    another host: something in ``directory`` changed in the last `ALIVE_S` seconds.
    """
    info = read_run_info(directory)
    return State.CUT_OFF if info is None else run_state(directory, info)


def run_state(directory: Path, info: RunInfo) -> State:
    """`state_of`, for a ``run.json`` already read."""
    if info.state is State.COMPLETE:
        return State.COMPLETE
    if info.host == host_name():
        alive = info.boot_id == boot_id() and start_ticks(info.daemon.pid) == (
            info.daemon.start_ticks
        )
    else:
        alive = time.time() - _newest_mtime(directory) < ALIVE_S
    return State.RUNNING if alive else State.CUT_OFF


def _newest_mtime(directory: Path) -> float:
    newest = directory.stat().st_mtime
    for entry in directory.iterdir():
        try:
            newest = max(newest, entry.stat().st_mtime)
        except FileNotFoundError:
            continue  # the daemon renames and removes while we look
    return newest
