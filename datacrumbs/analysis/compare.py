"""Two runs side by side: what got slower, in which layer, for which files, and is it chance?

Run ``a`` is the one to compare with, ``b`` the one in question. The time of a function changes
for two reasons, which are told apart: more or fewer calls, each as long as in ``a``, and calls
that take longer or shorter.

Whether the calls themselves changed is judged by their distributions, not by a ratio of means:

- ``superiority`` is the chance that a call of ``b`` takes longer than one of ``a`` (ties count
  half); 0.5 for equal distributions. Vargha and Delaney (2000) call 0.56 small, 0.64 medium and
  0.71 large, and so do we, on either side.
- ``p_value`` is that of the Mann-Whitney test with ties, two-sided, normal approximation.
- ``tail_ratio``: how many times as many calls of ``b`` as of ``a`` take longer than all but a
  hundredth of ``a``'s. ``tail_p_value``: the chance of at least so different a share.

A change counts when its p-value is below `SIGNIFICANT` *and* it is not small. Calls of one run
are not independent of each other, so with many calls the p-value alone says little.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from msgspec import Struct

from datacrumbs.analysis.keys import Numbers
from datacrumbs.analysis.model import FileSummary, FunctionSummary, Summary
from datacrumbs.analysis.on_each import Cluster, Progress
from datacrumbs.analysis.quantiles import by_power
from datacrumbs.analysis.summary import summarise_with_durations
from datacrumbs.trace.reader import Trace

SIGNIFICANT = 0.001
SMALL = 0.06  # superiority away from one half
TAIL_SHARE = 0.01
TAIL_RATIO = 2.0
LEAST_CALLS = 8
"""With fewer calls on either side nothing is said: the approximations do not hold."""


class Verdict(StrEnum):
    """What became of a function's calls: all of them, or its slowest (the tail)."""

    SLOWER = "slower"
    FASTER = "faster"
    SLOW_TAIL = "slow tail"
    FAST_TAIL = "less tail"
    SAME = "same"
    FEW = "few calls"
    ONLY_A = "only A"
    ONLY_B = "only B"


class Distributions(Struct, frozen=True, kw_only=True):
    """How two distributions of durations differ."""

    superiority: float
    p_value: float
    tail_ratio: float
    tail_p_value: float


class FunctionChange(Struct, frozen=True, kw_only=True):
    """One function in both runs.

    ``change_ns`` is the change of its time, the sum of ``by_count_ns`` and ``by_duration_ns``.
    """

    layer: str
    name: str
    verdict: Verdict
    a: FunctionSummary | None
    b: FunctionSummary | None
    change_ns: int
    by_count_ns: int
    by_duration_ns: int
    distributions: Distributions | None


class LayerChange(Struct, frozen=True, kw_only=True):
    """Time in I/O of one layer, nested calls of a thread counted once."""

    layer: str
    a_ns: int
    b_ns: int
    change_ns: int


class FileChange(Struct, frozen=True, kw_only=True):
    """One path. The run's own id in a path stands as ``{run}``, so that it may differ."""

    path: str
    a_ns: int
    b_ns: int
    change_ns: int
    a_calls: int
    b_calls: int
    a_bytes: int
    b_bytes: int


class RunFacts(Struct, frozen=True, kw_only=True):
    """What is compared."""

    run_id: str
    hosts: list[str]
    events: int
    profiled: int
    lost: int
    wall_ns: int
    unoverlapped_ns: int | None
    io_ns: int
    bytes_read: int
    bytes_written: int


class Comparison(Struct, frozen=True, kw_only=True):
    """All of it; lists by the size of the change in time."""

    a: RunFacts
    b: RunFacts
    notes: list[str]
    layers: list[LayerChange]
    functions: list[FunctionChange]
    files_total: int
    files: list[FileChange]


def compare(
    a: Trace,
    b: Trace,
    *,
    top: int | None = None,
    progress: Progress | None = None,
    cluster: Cluster | None = None,
) -> Comparison:
    """Compare ``b`` with ``a``; ``top`` cuts the list of files short.

    Reads each once, on ``cluster`` or here.
    """
    first, durations_a = summarise_with_durations(a, progress=progress, cluster=cluster)
    second, durations_b = summarise_with_durations(b, progress=progress, cluster=cluster)
    files = _files(first, second)
    return Comparison(
        a=_facts(first),
        b=_facts(second),
        notes=_notes(first, second),
        layers=_layers(first, second),
        functions=_functions(first, second, durations_a, durations_b),
        files_total=len(files),
        files=files[:top],
    )


def distributions(a: Numbers, b: Numbers) -> Distributions:
    """How ``b`` differs from ``a``: histograms with the same buckets, neither of them empty."""
    superiority, p_value = _mann_whitney(a, b)
    ratio, tail_p = _tail(a, b)
    return Distributions(
        superiority=superiority, p_value=p_value, tail_ratio=ratio, tail_p_value=tail_p
    )


def _mann_whitney(a: Numbers, b: Numbers) -> tuple[float, float]:
    """Chance that one of ``b`` exceeds one of ``a``, and the two-sided p-value.

    Mann and Whitney (1947), with the correction of the variance for ties: here a tie is a
    bucket of the histogram.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    count_a, count_b = a.sum(), b.sum()
    below = np.cumsum(a) - a
    superiority = float((b * (below + a / 2)).sum() / (count_a * count_b))
    together, total = a + b, count_a + count_b
    ties = (together**3 - together).sum() / (total * (total - 1))
    variance = (total + 1 - ties) / (12 * count_a * count_b)
    if variance <= 0:
        return superiority, 1.0
    return superiority, _two_sided((superiority - 0.5) / math.sqrt(variance))


def _tail(a: Numbers, b: Numbers) -> tuple[float, float]:
    """Calls beyond `TAIL_SHARE` of ``a``: how many times as many in ``b``, and the p-value.

    Compared as two proportions (pooled, normal approximation).
    """
    count_a, count_b = int(a.sum()), int(b.sum())
    above = count_a - np.cumsum(a)
    last = int(np.argmax(above <= TAIL_SHARE * count_a))
    tail_a, tail_b = int(above[last]), int(b[last + 1 :].sum())
    share_a, share_b = max(tail_a, 1) / count_a, tail_b / count_b
    pooled = (tail_a + tail_b) / (count_a + count_b)
    deviation = math.sqrt(pooled * (1 - pooled) * (1 / count_a + 1 / count_b))
    p_value = _two_sided((share_b - tail_a / count_a) / deviation) if deviation else 1.0
    return share_b / share_a, p_value


def _two_sided(z: float) -> float:
    return math.erfc(abs(z) / math.sqrt(2))


def verdict(a: FunctionSummary, b: FunctionSummary, found: Distributions | None) -> Verdict:
    """What to say of a function that both runs called."""
    if found is None or min(a.count, b.count) < LEAST_CALLS:
        return Verdict.FEW
    if found.p_value < SIGNIFICANT and abs(found.superiority - 0.5) >= SMALL:
        return Verdict.SLOWER if found.superiority > 0.5 else Verdict.FASTER
    if found.tail_p_value < SIGNIFICANT:
        if found.tail_ratio >= TAIL_RATIO:
            return Verdict.SLOW_TAIL
        if found.tail_ratio <= 1 / TAIL_RATIO:
            return Verdict.FAST_TAIL
    return Verdict.SAME


Durations = dict[tuple[str, str], Numbers]


def _functions(
    a: Summary, b: Summary, durations_a: Durations, durations_b: Durations
) -> list[FunctionChange]:
    mine = {(f.layer, f.name): f for f in a.functions}
    theirs = {(f.layer, f.name): f for f in b.functions}
    changes = [
        _function(key, mine.get(key), theirs.get(key), durations_a.get(key), durations_b.get(key))
        for key in dict.fromkeys([*mine, *theirs])
    ]
    return sorted(changes, key=lambda change: -abs(change.change_ns))


def _function(
    key: tuple[str, str],
    a: FunctionSummary | None,
    b: FunctionSummary | None,
    durations_a: Numbers | None,
    durations_b: Numbers | None,
) -> FunctionChange:
    found = None
    if durations_a is not None and durations_b is not None and durations_a.any():
        if (a and a.profiled) or (b and b.profiled):  # or powers of two would differ from values
            durations_a, durations_b = by_power(durations_a), by_power(durations_b)
        found = distributions(durations_a, durations_b) if durations_b.any() else None
    time_a, time_b = a.time_ns if a else 0, b.time_ns if b else 0
    if a and b:
        said = verdict(a, b, found)
        by_count_ns = round((_finished(b) - _finished(a)) * time_a / max(_finished(a), 1))
    else:
        said = Verdict.ONLY_A if a else Verdict.ONLY_B
        by_count_ns = time_b - time_a
    return FunctionChange(
        layer=key[0],
        name=key[1],
        verdict=said,
        a=a,
        b=b,
        change_ns=time_b - time_a,
        by_count_ns=by_count_ns,
        by_duration_ns=time_b - time_a - by_count_ns,
        distributions=found,
    )


def _finished(function: FunctionSummary) -> int:
    return function.count - function.unfinished


def _layers(a: Summary, b: Summary) -> list[LayerChange]:
    mine, theirs = ({row.layer: row.io_ns for row in run.layers} for run in (a, b))
    changes = [
        LayerChange(
            layer=layer,
            a_ns=mine.get(layer, 0),
            b_ns=theirs.get(layer, 0),
            change_ns=theirs.get(layer, 0) - mine.get(layer, 0),
        )
        for layer in dict.fromkeys([*mine, *theirs])
    ]
    return sorted(changes, key=lambda change: -abs(change.change_ns))


@dataclass(slots=True)
class _FileSums:
    time_ns: int = 0
    calls: int = 0
    bytes: int = 0


def _by_path(run: Summary) -> dict[str, _FileSums]:
    found: dict[str, _FileSums] = {}
    for file in run.files:
        sums = found.setdefault(_key(file, run.run_id), _FileSums())
        sums.time_ns += file.time_ns
        sums.calls += file.calls
        sums.bytes += file.bytes_read + file.bytes_written
    return found


def _key(file: FileSummary, run_id: str) -> str:
    """The path without what always differs: the run's id, and the numbers of pipes and sockets."""
    if file.kind in ("pipe", "socket"):
        return f"{file.kind}:[...]"
    parts = file.path.split("/")
    return "/".join("{run}" if part == run_id else part for part in parts)


def _files(a: Summary, b: Summary) -> list[FileChange]:
    mine, theirs = _by_path(a), _by_path(b)
    none = _FileSums()
    changes = []
    for path in dict.fromkeys([*mine, *theirs]):
        one, other = mine.get(path, none), theirs.get(path, none)
        changes.append(
            FileChange(
                path=path,
                a_ns=one.time_ns,
                b_ns=other.time_ns,
                change_ns=other.time_ns - one.time_ns,
                a_calls=one.calls,
                b_calls=other.calls,
                a_bytes=one.bytes,
                b_bytes=other.bytes,
            )
        )
    return sorted(changes, key=lambda change: -abs(change.change_ns))


def _facts(run: Summary) -> RunFacts:
    return RunFacts(
        hosts=[host.host for host in run.hosts],
        **{name: getattr(run, name) for name in RunFacts.__struct_fields__ if name != "hosts"},
    )


def _notes(a: Summary, b: Summary) -> list[str]:
    """What makes the two less comparable than they look, in whole sentences."""
    notes = []
    for run, which in ((a, "first"), (b, "second")):
        if run.lost:
            notes.append(f"The {which} run lost {run.lost} events: its numbers are too low.")
        if run.state != "complete":
            notes.append(f"The {which} run is {run.state}: it may not have all there is.")
    if len(a.hosts) != len(b.hosts):
        notes.append(f"{len(a.hosts)} hosts are compared with {len(b.hosts)}.")
    only = _differing(a, b)
    if only:
        notes.append(f"Traced in one run only: {', '.join(only)}.")
    return notes


def _differing(a: Summary, b: Summary) -> Sequence[str]:
    def layers(run: Summary) -> Iterable[str]:
        return {row.layer for row in run.layers}

    return sorted(set(layers(a)) ^ set(layers(b)))
