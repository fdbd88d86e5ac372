"""What `datacrumbs_explain` says: plain data, nanoseconds and bytes. It is its JSON.

How things are counted:

- A *target* is a call that is explained: the outermost on its thread of those chosen. Its time
  is that from call to return. Unfinished calls (which did not return: see ``flags`` of the
  trace's events) are counted apart, and are in no time.
- *Self* time of a call is what no call inside it, of those traced, covers. Over all that is
  inside a target, self times add up to the target's time exactly.
- *Fast* and *slow* calls of one function are told apart by their lengths, see `Variation`. The
  *difference* is the mean length of a slow call less that of a fast one.
"""

from __future__ import annotations

from msgspec import Struct

from datacrumbs.analysis.hosts import HostFacts
from datacrumbs.trace.runfile import State


class Inner(Struct, frozen=True, kw_only=True):
    """A function called inside the target, by the way it was called; outermost first, then by
    time. ``depth`` is 1 for what the target itself calls, 0 for the target. ``share`` is of the
    target's time."""

    depth: int
    layer: str
    name: str
    cause: str
    count: int
    time_ns: int
    self_ns: int
    share: float
    self_share: float


class Part(Struct, frozen=True, kw_only=True):
    """A share of the targets' time: that of a layer, or of a cause."""

    name: str
    self_ns: int
    share: float


class LaterWork(Struct, frozen=True, kw_only=True):
    """Asynchronous work of the kernel on the targets' files, while the targets ran.

    ``calls`` targets had some going on beside them, for ``time_ns`` of their time; ``share`` is
    of the time of all targets. ``pieces`` may count one piece of work for several targets.
    """

    layer: str
    name: str
    calls: int
    pieces: int
    time_ns: int
    share: float


class AsyncWork(Struct, frozen=True, kw_only=True):
    """Asynchronous work of the kernel for the run; ``fileless``: of no known file, and so
    counted for no call."""

    layer: str
    name: str
    count: int
    time_ns: int
    fileless: int


class Group(Struct, frozen=True, kw_only=True):
    """Fast calls, or slow ones, of ``from_ns`` up to ``to_ns``."""

    count: int
    time_ns: int
    mean_ns: int
    from_ns: int
    to_ns: int


class Finding(Struct, frozen=True, kw_only=True):
    """One thing that tells slow calls from fast ones; ``kind`` says which fields mean something.

    ``share``, between 0 and 1, is how telling it is: for what calls *did*, the share of the
    difference; for what calls *are*, the share of the variance between the two groups.

    - ``inside``: a function in the target and all in it that has no other cause. ``slow_ns``
      and ``fast_ns``: its mean time in a call; ``slow_share``, ``fast_share``: of the calls, in
      how many it occurs; ``slow_count``, ``fast_count``: how often in a call, on average.
    - ``mark``: as ``inside``, for what has a meaning but next to no time of its own, such as a
      tracepoint: ``share`` is of the variance, and of what no other cause explains. It is in
      most of the slow calls.
    - ``own``: as ``inside``, for the time of the target in none of the calls traced.
    - ``later``: asynchronous work on the file; times and shares as for ``inside``.
    - ``trait``: ``slow_share`` and ``fast_share`` of the calls have the property ``name``.
    - ``size``: half of the slow calls move more than ``slow_bytes``, of the fast ``fast_bytes``.
    - ``file``, ``process``, ``host``: ``slow_share`` and ``fast_share`` of the calls are on
      the one in ``name``.
    """

    kind: str
    share: float
    name: str
    layer: str = ""
    cause: str = ""
    via: list[str] = []
    slow_ns: int = 0
    fast_ns: int = 0
    slow_share: float = 0.0
    fast_share: float = 0.0
    slow_count: float = 0.0
    fast_count: float = 0.0
    slow_bytes: int = 0
    fast_bytes: int = 0


class Variation(Struct, frozen=True, kw_only=True):
    """Why some calls of a function take longer than others.

    ``split`` is ``groups`` where the lengths form two groups (by the time spent in calls of
    each length, on a logarithmic scale), else ``tenths``: the slowest tenth against the faster
    half. ``excess_ns``: how much less time all would have taken had the slow calls been as long
    as the fast ones. ``findings``: the most telling first.
    """

    split: str
    fast: Group
    slow: Group
    excess_ns: int
    excess_share: float
    findings: list[Finding]


class SlowCall(Struct, frozen=True, kw_only=True):
    """One of the longest calls. ``start_ns`` is CLOCK_REALTIME, None without clock pairs."""

    host: str
    pid: int
    tid: int
    rank: int | None
    start_ns: int | None
    ts: int
    dur_ns: int
    path: str | None
    offset: int
    size: int
    ret: int
    inside: list[Inner]


class Stuck(Struct, frozen=True, kw_only=True):
    """Where calls still were at the end: in the innermost unfinished one of their thread."""

    layer: str
    name: str
    threads: int


class Explained(Struct, frozen=True, kw_only=True):
    """All targets of one function. ``share`` is of the time of all targets."""

    layer: str
    name: str
    count: int
    failed: int
    unfinished: int
    unfinished_ns: int
    stuck_in: list[Stuck]
    time_ns: int
    share: float
    mean_ns: int
    p50_ns: int
    p99_ns: int
    max_ns: int
    bytes: int
    inside: list[Inner]
    layers: list[Part]
    causes: list[Part]
    later: list[LaterWork]
    variation: Variation | None
    slowest: list[SlowCall]


class Explanation(Struct, frozen=True, kw_only=True):
    """All that is explained of a run: ``explained`` by time, falling.

    ``orphans``: kernel functions outside of any call traced. ``overlapping``: calls that
    overlap with another of their thread without nesting.
    """

    run_id: str
    user: str
    state: State
    selection: str
    events: int
    lost: int
    filtered: int
    orphans: int
    overlapping: int
    missing_hosts: list[str]
    clocks_agree: bool
    hosts: list[HostFacts]
    notes: list[str]
    targets: int
    time_ns: int
    functions: int
    quantile_error: float
    later: list[AsyncWork]
    explained: list[Explained]
