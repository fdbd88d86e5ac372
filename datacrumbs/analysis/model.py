"""What a report says: plain data, nanoseconds and bytes. It is the JSON of the report.

How things are counted:

- ``count`` of a function has every call, also those that failed or never returned; times are
  those of the calls that did return.
- *Time in I/O* of a thread is the union of its calls, so that ``fread`` and the ``read`` inside
  it count once; that of a process is the sum over its threads. It leaves out waiting (poll,
  select, epoll) and unfinished calls, which have numbers of their own.
- *Unoverlapped* is how long at least one thread of the host was in I/O; of several hosts, the
  sum. None where that is not known, because all I/O was profiled.
- *Profiled* calls (``mode: profile``) were added up in the kernel: ``profiled`` says how many of
  ``count`` they are. It is not known which were part of which, so a process's time in I/O is
  that of its traced calls or of the profiled layer with most, whichever is more. Files, access
  sizes and threads are those of traced calls.
- Bytes: see `datacrumbs.analysis.functions`.
"""

from __future__ import annotations

from msgspec import Struct

from datacrumbs.trace.runfile import Counts, FilteredBy, LostBy, Mechanism, Skipped, State


class FunctionSummary(Struct, frozen=True, kw_only=True):
    """One function in one layer. ``p50_ns`` and ``p99_ns`` to `Summary.quantile_error`."""

    layer: str
    name: str
    count: int
    profiled: int
    errors: int
    unfinished: int
    time_ns: int
    unfinished_ns: int
    mean_ns: int
    p50_ns: int
    p99_ns: int
    max_ns: int
    bytes: int
    bytes_per_s: int


class LayerSummary(Struct, frozen=True, kw_only=True):
    """One layer. ``time_ns`` sums its functions; ``io_ns`` is the union per thread, summed, of
    a profiled layer the sum.

    ``functions`` could be called (were attached), ``called`` were.
    """

    layer: str
    functions: int
    called: int
    count: int
    profiled: int
    errors: int
    unfinished: int
    time_ns: int
    io_ns: int
    bytes: int
    bytes_per_s: int


class ProcessSummary(Struct, frozen=True, kw_only=True):
    """One process; ``rank``: see `datacrumbs.analysis.ranks`. Times are sums over its
    ``threads`` (of which profiled calls do not tell), but for ``unoverlapped_ns``: how long one
    of them or more was in I/O that was traced."""

    host: str
    pid: int
    rank: int | None
    ppid: int
    comm: str
    exe: str
    threads: int
    count: int
    errors: int
    unfinished: int
    io_ns: int
    unoverlapped_ns: int
    wait_ns: int
    bytes_read: int
    bytes_written: int


class FileSummary(Struct, frozen=True, kw_only=True):
    """One path. ``opens`` are calls that ask for a descriptor of it."""

    path: str
    kind: str
    fstype: str | None
    calls: int
    reads: int
    writes: int
    opens: int
    errors: int
    unfinished: int
    bytes_read: int
    bytes_written: int
    time_ns: int


class FilesystemSummary(Struct, frozen=True, kw_only=True):
    """All files of one type of file system; of a pipe or a socket, of that kind."""

    fstype: str
    files: int
    calls: int
    reads: int
    writes: int
    opens: int
    errors: int
    unfinished: int
    bytes_read: int
    bytes_written: int
    time_ns: int


class MountSummary(FilesystemSummary, frozen=True, kw_only=True):
    """All files of one mounted file system: type and device number (``major:minor``, empty for
    what is on none). ``under``: the directory that all of them are in."""

    device: str
    under: str


class SizeClass(Struct, frozen=True, kw_only=True):
    """Accesses of ``from_bytes`` up to ``to_bytes``; ``share`` of all accesses."""

    from_bytes: int
    to_bytes: int
    count: int
    bytes: int
    share: float


class AccessSummary(Struct, frozen=True, kw_only=True):
    """Reads, or writes, that moved bytes.

    Of those with a known offset ``compared`` had one before them by the same process in the
    same file: ``consecutive`` began where it ended, ``sequential`` there or further on.
    """

    count: int
    bytes: int
    compared: int
    sequential: int
    consecutive: int
    sequential_share: float
    consecutive_share: float
    sizes: list[SizeClass]


class HostSummary(Struct, frozen=True, kw_only=True):
    """One host's part of the run; first call and last return are of its monotonic clock.

    ``clock_residual_ns``: see `hosts.HostFacts`.
    """

    host: str
    state: State
    kernel: str
    clock_residual_ns: int | None
    mechanisms: list[Mechanism]
    counts: Counts
    first_call_ns: int
    last_return_ns: int
    wall_ns: int
    io_ns: int
    wait_ns: int
    unoverlapped_ns: int | None
    unoverlapped_share: float | None
    bytes_read: int
    bytes_written: int


class Summary(Struct, frozen=True, kw_only=True):
    """All of a report. ``started_ns`` and ``stopped_ns`` are CLOCK_REALTIME.

    ``wall_ns`` is from the first host's start to the last one's end, or the longest host's time
    unless ``clocks_agree`` (see `hosts.clocks_agree`); ``host_wall_ns`` is the sum over hosts, of
    which ``unoverlapped_share`` is the share. There are ``events`` and, apart from them,
    ``profiled`` calls; ``profiled_layers`` have such. Lists are sorted by time, falling;
    ``files_total`` and ``processes_total`` say how many there are where a list is cut short.
    """

    run_id: str
    user: str
    state: State
    events: int
    profiled: int
    profiled_layers: list[str]
    lost: int
    lost_by: LostBy
    filtered: int
    filtered_by: FilteredBy
    unfinished: int
    bytes_on_disk: int
    started: str | None
    started_ns: int | None
    stopped_ns: int | None
    wall_ns: int
    host_wall_ns: int
    io_ns: int
    wait_ns: int
    unoverlapped_ns: int | None
    unoverlapped_share: float | None
    bytes_read: int
    bytes_written: int
    quantile_error: float
    notes: list[str]
    missing_hosts: list[str]
    clocks_agree: bool
    skipped: list[Skipped]
    hosts: list[HostSummary]
    layers: list[LayerSummary]
    functions: list[FunctionSummary]
    processes_total: int
    processes: list[ProcessSummary]
    files_total: int
    files: list[FileSummary]
    filesystems: list[FilesystemSummary]
    mounts: list[MountSummary]
    reads: AccessSummary
    writes: AccessSummary
