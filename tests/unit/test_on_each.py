"""The same work on each host, in order, whoever does it."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from generate.bulk import piece, write_bulk
from generate.runs import random_hosts, write_run
from works import begun, killed

from datacrumbs.analysis import on_each as module
from datacrumbs.analysis import pictures, summary
from datacrumbs.analysis.compare import compare
from datacrumbs.analysis.on_each import in_turn, on_each
from datacrumbs.analysis.ranks import by_host, ranks_of
from datacrumbs.analysis.selection import Selection
from datacrumbs.analysis.timeline import Axis
from datacrumbs.errors import UserError
from datacrumbs.trace.reader import HostTrace, Trace, open_trace


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    return open_trace(write_run(tmp_path / "run", random_hosts(3, hosts=12, threads=4, calls=30)))


@pytest.fixture
def with_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORTH_WORKERS", 0)
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: {0, 1})


def test_only_a_few_are_done_ahead_of_the_one_that_is_due(trace: Trace) -> None:
    submitted: list[str] = []

    def submit(host: HostTrace, work: Callable[..., str]) -> str:
        submitted.append(host.host)
        return work(host)

    works = [lambda host: f"{host.host}!"] * 12
    ahead = []
    for number, found in enumerate(in_turn(trace.hosts, works, submit, lambda: 3)):
        assert found == f"{trace.hosts[number].host}!"
        ahead.append(len(submitted) - number - 1)
    assert ahead == [3] * 9 + [2, 1, 0]


def test_reports_are_the_same_with_workers(trace: Trace, request: pytest.FixtureRequest) -> None:
    told: list[int] = []
    alone = summary.summarise_with_durations(trace)
    other = compare(trace, trace)
    request.getfixturevalue("with_workers")
    found, durations = summary.summarise_with_durations(trace, progress=told.append)
    assert found == alone[0]
    assert sum(told) == found.events > 1000
    assert durations.keys() == alone[1].keys()
    assert all((durations[key] == counts).all() for key, counts in alone[1].items())
    assert compare(trace, trace) == other


@pytest.mark.usefixtures("with_workers")
def test_after_an_error_nothing_more_is_begun(trace: Trace) -> None:
    """The error is n2's, which is not the second in order: names sort as text."""
    found = on_each(trace.hosts, [begun] * 12)
    assert [next(found) for _ in range(4)] == ["n1", "n10", "n11", "n12"]
    with pytest.raises(ValueError, match="n2"):
        next(found)
    assert list(found) == []
    assert len(list(trace.path.glob("host=*/began"))) >= 5


@pytest.mark.usefixtures("with_workers")
def test_a_worker_that_is_killed_is_one_line(trace: Trace) -> None:
    with pytest.raises(UserError, match="a process that read the trace was killed") as raised:
        list(on_each(trace.hosts, [killed] * 12))
    assert "memory" in raised.value.hint


SCRIPT = """
import sys
import datacrumbs
from datacrumbs.analysis import on_each
on_each.WORTH_WORKERS = 0
on_each.os.sched_getaffinity = lambda _: {0, 1}
print("once")
print(datacrumbs.open_trace(sys.argv[1]).report().events)
"""


def test_a_plain_script_is_not_run_again_by_its_workers(trace: Trace, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    program = [sys.executable, "-P", script, trace.path]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.split() == ["once", str(trace.about())]


def test_what_comes_back_does_not_grow_with_the_events(tmp_path: Path) -> None:
    """Four times the events are the same files, threads and call paths."""
    sizes = []
    for times in (1, 4):
        run = tmp_path / str(times)
        assert write_bulk(run, piece(calls=200), times * 10_000)[1] >= times * 10_000
        (host,) = open_trace(run).hosts
        (ranks,) = by_host(ranks_of(open_trace(run)), [host])
        axis = Axis(host.run.started_ns if host.run else 0, 1 << 60, None)
        drawn = partial(pictures._read, selection=Selection(), axis=axis)
        for read in (summary._read, drawn):
            sizes.append(len(pickle.dumps(read(host, ranks=ranks, progress=lambda _: None))))
    for once, often in zip(sizes[:2], sizes[2:], strict=True):
        assert often < 1.3 * once
