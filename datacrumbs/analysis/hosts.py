"""The hosts of a run beside each other: their clocks, and who is missing.

Times of different hosts are compared on CLOCK_REALTIME, which each host's clock pairs
(``run.json``) lead to from its own monotonic clock. How far that can be trusted is the
residual of each host's pairs. How well the hosts' real-time clocks agree (NTP, PTP) no trace
can tell, unless they disagree by so much that the hosts seem not to have run at the same time.

Which hosts a run had: ``run.json`` says in ``nodes`` if the run's job named them. Without that
only hosts that left something behind are known, and one that left nothing is not missed. A
scheduler may call nodes by other names than they have themselves; then those that are missing
can be counted, not named.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from msgspec import Struct

from datacrumbs.errors import BadInputError
from datacrumbs.nodelist import unfolded
from datacrumbs.trace.clocks import RealtimeClock
from datacrumbs.trace.reader import HostTrace, Trace
from datacrumbs.trace.runfile import ALIVE_S, State
from datacrumbs.units import human_ns

_TOLERABLE_NS = 10_000_000
_TOGETHER_NS = 60_000_000_000
"""The hosts of a run begin within this, as far as one can expect."""


class HostFacts(Struct, frozen=True, kw_only=True):
    """One host of a run. ``clock_residual_ns`` is the error to expect of its times.

    None: it left no clock pairs, so that its times cannot be compared with other hosts'. With
    fewer than three pairs the residual is not known either, and 0.
    """

    host: str
    state: State
    events: int
    lost: int
    clock_pairs: int
    clock_residual_ns: int | None
    started_ns: int | None
    stopped_ns: int | None


def clock_of(host: HostTrace) -> RealtimeClock | None:
    """From the host's ``ts`` to nanoseconds since 1970; None without clock pairs."""
    return RealtimeClock(host.run.clocks) if host.run and host.run.clocks else None


def host_facts(host: HostTrace, events: int) -> HostFacts:
    """What is known of ``host``, of which ``events`` are in the trace."""
    clock, run = clock_of(host), host.run
    return HostFacts(
        host=host.host,
        state=host.state,
        events=events,
        lost=run.counts.lost if run else 0,
        clock_pairs=len(run.clocks) if run else 0,
        clock_residual_ns=clock.residual_ns() if clock else None,
        started_ns=run.started_ns if run else None,
        stopped_ns=run.stopped_ns if run else None,
    )


def clocks_agree(hosts: Sequence[HostTrace]) -> bool:
    """Whether, by their clocks, all hosts of the run's last life were traced at one time."""
    spans = _spans(hosts).values()
    return not spans or max(start for start, _ in spans) <= min(end for _, end in spans)


def _spans(hosts: Sequence[HostTrace]) -> dict[str, tuple[int, int]]:
    """When each host of the last life began and ended, by its CLOCK_REALTIME; one that has not
    said it ended, when it may have.
    """
    earlier = set(_earlier(hosts))
    found = {}
    for host in hosts:
        if host.run and host.host not in earlier:
            run = host.run
            heard = max([run.started_ns, *(pair.real_ns for pair in run.clocks)])
            end = run.stopped_ns if run.stopped_ns is not None else heard + ALIVE_S * 10**9
            found[host.host] = (run.started_ns, max(run.started_ns, end))
    return found


def missing_hosts(trace: Trace) -> list[str]:
    """Hosts of the run's job that left nothing in the trace, by name.

    A host may be known by its short and by its full name; the short ones are compared. None
    when the job's names are not the hosts' own.
    """
    named, there = _named(trace), {_short(host.host) for host in trace.hosts}
    if not there <= {_short(node) for node in named}:
        return []
    return sorted(node for node in named if _short(node) not in there)


def _named(trace: Trace) -> set[str]:
    """The hosts of the run's job, as far as it named them; none for one host's part of a trace."""
    if [host.path for host in trace.hosts] == [trace.path]:
        return set()
    lists = {",".join(host.run.nodes) for host in trace.hosts if host.run and host.run.nodes}
    named: set[str] = set()
    for one in lists:
        with contextlib.suppress(BadInputError):  # damaged, or made to be large: it names nobody
            named.update(unfolded(one))
    return named


def host_notes(trace: Trace, facts: list[HostFacts]) -> list[str]:
    """What the reader should know about the hosts, in whole sentences."""
    notes = []
    if missing := missing_hosts(trace):
        notes.append(f"Nothing here from {_listed(missing)}, which the job ran on too.")
    elif (fewer := len(named := _named(trace)) - len(trace.hosts)) > 0:
        notes.append(f"Nothing here from {fewer} of the {len(named)} hosts that the job ran on.")
    if len(facts) > 1:
        notes += _earlier_notes(trace.hosts)
        if cut := [host.host for host in facts if host.state is State.CUT_OFF]:
            notes.append(f"Cut off: {_listed(cut)}; what happened last there is not in the trace.")
        notes += _apart_notes(trace.hosts)
        notes += _clock_notes(facts)
    return notes


def _earlier(hosts: Sequence[HostTrace]) -> list[str]:
    """A requeued job may have been given other nodes, and what its first ones wrote stays there."""
    runs = {host.host: host.run for host in hosts if host.run and host.run.nodes}
    last = max(runs.values(), key=lambda run: run.started_ns, default=None)
    return [host for host, run in runs.items() if last and run.nodes != last.nodes]


def _earlier_notes(hosts: Sequence[HostTrace]) -> list[str]:
    earlier = _earlier(hosts)
    if not earlier:
        return []
    return [
        f"The job was requeued: what {_listed(earlier)} wrote is of its earlier life, on other "
        "nodes, and is counted in here."
    ]


def _apart_notes(hosts: Sequence[HostTrace]) -> list[str]:
    starts = {host: start for host, (start, _) in _spans(hosts).items()}
    if not starts:
        return []
    first, last = min(starts, key=lambda h: starts[h]), max(starts, key=lambda h: starts[h])
    apart_ns, agree = starts[last] - starts[first], clocks_agree(hosts)
    if agree and apart_ns <= _TOGETHER_NS:
        return []
    ended = ", when a host had ended, so each host counts from its own beginning" * (not agree)
    return [
        f"By their clocks {last} began {human_ns(apart_ns)} after {first}{ended}: if they began "
        "together, a clock is wrong, and times of day of different hosts cannot be compared. "
        "Durations are good."
    ]


def profile_notes(trace: Trace) -> list[str]:
    """What an analysis of events leaves out, in a sentence."""
    profiled = sum(host.run.counts.profiled for host in trace.hosts if host.run)
    if not profiled:
        return []
    return [
        f"{profiled} calls were added up in profile mode and are no events: they are not in "
        "what follows, datacrumbs_report has them."
    ]


def _clock_notes(facts: list[HostFacts]) -> list[str]:
    notes = []
    if lone := [host.host for host in facts if host.clock_residual_ns is None]:
        notes.append(
            f"No clock pairs from {_listed(lone)}: times of day there are not known, "
            "durations are good."
        )
    worst = max(facts, key=lambda host: host.clock_residual_ns or 0)
    if (worst.clock_residual_ns or 0) > _TOLERABLE_NS:
        notes.append(
            f"The clock of {worst.host} was set during the run: its times of day are up to "
            f"{(worst.clock_residual_ns or 0) // 1_000_000} ms off, durations are good."
        )
    return notes


def _short(name: str) -> str:
    return name.partition(".")[0]


def _listed(names: list[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more hosts"
