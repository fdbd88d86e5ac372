"""Reports of profile mode, and of runs in which some layers were traced and some profiled."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from report_traces import Call, File, Interval, write_host

from datacrumbs.analysis.compare import Verdict, compare
from datacrumbs.analysis.quantiles import ERROR_BOUND, POWER_ERROR_BOUND, Histograms, by_power
from datacrumbs.analysis.summary import summarise
from datacrumbs.trace.reader import open_trace
from datacrumbs.trace.runfile import Counts, FilteredBy, LostBy, State

S = 1_000_000_000
SYSCALLS = ("read", "write", "epoll_wait", "futex")


def report(*arguments: str | Path) -> str:
    """What the command prints."""
    command = [sys.executable, "-m", "datacrumbs.cli.report", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def profile(**changes: Any) -> dict[str, Any]:
    """Two seconds of two processes: 23 writes, of which 3 fail, and some others."""
    intervals = [
        Interval(func="write", ts=S, durations=[1000] * 20 + [70_000], bytes=20 * 4097, errors=1),
        Interval(func="write", ts=2 * S, durations=[100, 200], errors=2),
        Interval(func="read", ts=2 * S, durations=[5000] * 7, bytes=700),
        Interval(func="read", ts=2 * S, durations=[300], bytes=11, pid=200),
        Interval(func="epoll_wait", ts=S, durations=[900_000_000]),
        Interval(func="futex", ts=S, durations=[400_000_000]),
    ]
    processes = [(0, 100, "start", "app"), (0, 200, "start", "other")]
    return {"intervals": intervals, "processes": processes, "functions": SYSCALLS} | changes


def test_functions_layers_and_processes(tmp_path: Path) -> None:
    write_host(tmp_path, [], **profile())
    summary = summarise(open_trace(tmp_path))
    functions = {f.name: f for f in summary.functions}
    write = functions["write"]
    assert (write.count, write.profiled, write.errors, write.bytes) == (23, 23, 3, 20 * 4097)
    assert (write.time_ns, write.max_ns, write.mean_ns) == (90_300, 70_000, round(90_300 / 23))
    assert abs(write.p50_ns - 1000) <= 1000 * POWER_ERROR_BOUND
    assert abs(write.p99_ns - 70_000) <= 70_000 * POWER_ERROR_BOUND
    (layer,) = summary.layers
    assert (layer.count, layer.profiled, layer.called) == (33, 33, 4)
    assert (layer.io_ns, summary.io_ns) == (125_600, 125_600)  # without waiting and futex
    found = {p.comm: p for p in summary.processes}
    assert (found["app"].io_ns, found["app"].wait_ns) == (125_300, 900_000_000)
    assert (found["app"].bytes_read, found["app"].bytes_written) == (700, 20 * 4097)
    assert (found["other"].count, found["other"].io_ns, found["other"].threads) == (1, 300, 0)
    assert (summary.bytes_read, summary.bytes_written) == (711, 20 * 4097)
    assert (summary.events, summary.profiled, summary.profiled_layers) == (0, 33, ["syscalls"])
    assert (summary.unoverlapped_ns, summary.unoverlapped_share) == (None, None)
    assert (summary.files, summary.reads.count) == ([], 0)
    assert summary.quantile_error == POWER_ERROR_BOUND
    (note,) = summary.notes
    assert "not known" in note


def test_the_page_says_what_it_cannot_know(tmp_path: Path) -> None:
    write_host(tmp_path, [], **profile())
    text = report(tmp_path)
    assert "Complete: 0 events kept, 33 calls profiled, none lost, 0 filtered" in text
    assert "Files and access sizes: not known in profile mode." in text
    assert "not known for how much of the run's" in text
    assert "to within 34%" in text
    (write,) = [line.split() for line in text.splitlines() if line.startswith(" write")]
    assert write[1:4] == ["23", "3", "90.3us"]
    numbers = json.loads(report("--format", "json", tmp_path))
    assert numbers["unoverlapped_ns"] is None
    assert (numbers["events"], numbers["profiled"]) == (0, 33)


def test_a_traced_and_a_profiled_layer(tmp_path: Path) -> None:
    """`fread` is traced; the `read` in it is profiled, of the same process."""
    calls = [
        Call(func="fread", ts=S + 1000 * n, dur=500, ret=1 << 12, tid=100 + n % 2)
        for n in range(10)
    ]
    intervals = [
        Interval(func="read", ts=S, durations=[400] * 10, bytes=10 << 12),
        Interval(func="write", ts=S, durations=[9000], pid=200, bytes=5),
    ]
    write_host(tmp_path, calls, intervals=intervals)
    summary = summarise(open_trace(tmp_path))
    assert (summary.events, summary.profiled) == (10, 11)
    assert summary.profiled_layers == ["syscalls"]
    assert {row.layer: row.io_ns for row in summary.layers} == {
        "syscalls": 13_000,
        "libc": 5000,
        "app": 0,
    }
    # the union of the traced layer, and where there is none, the profiled one
    assert {p.pid: p.io_ns for p in summary.processes} == {100: 5000, 200: 9000}
    assert summary.unoverlapped_ns == 5000
    assert summary.bytes_read == 10 << 12  # once, of the system calls


def test_a_process_takes_what_its_most_busy_layer_takes(tmp_path: Path) -> None:
    intervals = [
        Interval(func="fread", ts=S, durations=[600] * 10),
        Interval(func="read", ts=S, durations=[500] * 10),
    ]
    write_host(tmp_path, [], intervals=intervals)
    summary = summarise(open_trace(tmp_path))
    assert (summary.io_ns, summary.processes[0].io_ns) == (6000, 6000)
    assert [row.io_ns for row in summary.layers] == [5000, 6000, 0]


def test_the_same_function_traced_on_one_host_and_profiled_on_another(tmp_path: Path) -> None:
    files = [File(file=7, path="/data/out")]
    calls = [Call(func="write", ts=n, dur=1000, ret=10, file=7) for n in range(50)]
    write_host(tmp_path, calls, host="n1", files=files)
    rows = [Interval(func="write", ts=S, durations=[64_000] * 50, bytes=500)]
    write_host(tmp_path, [], host="n2", intervals=rows)
    summary = summarise(open_trace(tmp_path))
    (write,) = [f for f in summary.functions if f.name == "write"]
    assert (write.count, write.profiled, write.bytes) == (100, 50, 1000)
    assert abs(write.p50_ns - 1000) <= 1000 * ERROR_BOUND
    assert abs(write.p99_ns - 64_000) <= 64_000 * POWER_ERROR_BOUND
    assert [host.unoverlapped_ns for host in summary.hosts] == [1049, None]
    assert summary.unoverlapped_ns is None
    assert [file.path for file in summary.files] == ["/data/out"]
    assert "n2" in report(tmp_path)


def test_a_pid_used_twice_is_two_processes(tmp_path: Path) -> None:
    processes = [
        (S, 100, "start", "first"),
        (3 * S // 2, 100, "exit", "first"),
        (5 * S // 2, 100, "fork", "second"),
    ]
    intervals = [
        Interval(func="read", ts=S, durations=[1], bytes=1),
        Interval(func="read", ts=2 * S, durations=[1], bytes=2),
        Interval(func="read", ts=3 * S, durations=[1], bytes=4),
    ]
    write_host(tmp_path, [], intervals=intervals, processes=processes)
    found = {p.comm: p.bytes_read for p in summarise(open_trace(tmp_path)).processes}
    assert found == {"first": 1, "second": 6}


def test_a_running_profile_and_one_without_run_json(tmp_path: Path) -> None:
    write_host(tmp_path, [], **profile(state=State.RUNNING))
    running = summarise(open_trace(tmp_path))
    assert (running.state, running.profiled) == (State.RUNNING, 33)
    (tmp_path / "host=n1" / "run.json").unlink()
    cut = summarise(open_trace(tmp_path))
    assert (cut.state, cut.profiled, cut.wall_ns) == (State.CUT_OFF, 33, 2 * S)


def test_losses_filters_and_missing_files_are_told(tmp_path: Path) -> None:
    write_host(
        tmp_path,
        [],
        **profile(
            counts=Counts(profiled=40, lost=9, filtered=28),
            lost_by=LostBy(profile=9),
            filtered_by=FilteredBy(duration=17, rate=5, path=4, other=2),
        ),
    )
    text = " ".join(report(tmp_path).split())
    assert "33 calls profiled, 9 LOST, 28 filtered" in text
    assert "Lost: 0 in a full ring, 9 in a full profile, 0 to a full disk." in text
    assert (
        "Filtered: 17 shorter than min_duration, 5 over max_per_s, 4 by their paths, 2 of" in text
    )
    assert "the daemon wrote 40 profiled calls, 33 are here" in text
    numbers = json.loads(report("--format", "json", tmp_path))
    assert numbers["filtered_by"] == {"duration": 17, "rate": 5, "path": 4, "other": 2}


DURATIONS = st.lists(st.integers(16, 10**12), min_size=1, max_size=20)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from(SYSCALLS), DURATIONS), min_size=1, max_size=12))
def test_sums_are_exact_however_calls_are_spread(
    tmp_path_factory: Any, parts: list[tuple[str, list[int]]]
) -> None:
    root = tmp_path_factory.mktemp("trace")
    intervals = [Interval(func=f, ts=S * n, durations=d) for n, (f, d) in enumerate(parts)]
    write_host(root, [], intervals=intervals)
    functions = {f.name: f for f in summarise(open_trace(root)).functions}
    for name in {name for name, _ in parts}:
        every = sorted(dur for f, durations in parts if f == name for dur in durations)
        found = functions[name]
        assert (found.count, found.time_ns, found.max_ns) == (len(every), sum(every), every[-1])
        middle = every[(len(every) + 1) // 2 - 1]
        assert abs(found.p50_ns - middle) <= POWER_ERROR_BOUND * middle


def test_runs_of_both_modes_are_compared_by_powers_of_two(tmp_path: Path) -> None:
    """The same calls traced and profiled are the same; calls twice as long are slower."""
    durations = [1100 + 7 * n for n in range(100)]
    calls = [Call(func="write", ts=5000 * n, dur=dur, ret=1) for n, dur in enumerate(durations)]
    write_host(tmp_path / "traced", calls)
    for name, factor in (("profiled", 1), ("slow", 4)):
        row = Interval(func="write", ts=S, durations=[factor * dur for dur in durations])
        write_host(tmp_path / name, [], intervals=[row])
    runs = {name: open_trace(tmp_path / name) for name in ("traced", "profiled", "slow")}
    (same,) = compare(runs["traced"], runs["profiled"]).functions
    assert (same.verdict, same.change_ns) == (Verdict.SAME, 0)
    assert same.distributions
    assert same.distributions.superiority == 0.5
    (slower,) = compare(runs["traced"], runs["slow"]).functions
    assert slower.verdict is Verdict.SLOWER
    done = subprocess.run(
        [sys.executable, "-m", "datacrumbs.cli.compare", tmp_path / "traced", tmp_path / "slow"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "100 profiled calls" in done.stdout
    assert "unoverlapped" not in done.stdout


@given(st.lists(st.integers(0, 2**53), min_size=1, max_size=50))
def test_folding_a_histogram_keeps_each_power_of_two(values: list[int]) -> None:
    histograms = Histograms()
    histograms.add(np.zeros(len(values), np.intp), np.array(values, np.int64))
    folded = by_power(histograms.counts(0))
    buckets = np.flatnonzero(folded)
    powers = sorted({value.bit_length() for value in values})
    assert [0 if at == 0 else at // 32 + 1 for at in buckets] == powers
    assert [folded[at] for at in buckets] == [
        sum(value.bit_length() == power for value in values) for power in powers
    ]


def test_explanations_and_exports_say_what_they_do_not_have(tmp_path: Path) -> None:
    write_host(tmp_path / "run", [Call(func="solve", ts=1, dur=5)], **profile(functions=("solve",)))
    run = [sys.executable, "-m"]
    explained = subprocess.run(
        [*run, "datacrumbs.cli.explain", tmp_path / "run"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "33 calls were added up in profile mode" in " ".join(explained.stdout.split())
    exported = subprocess.run(
        [*run, "datacrumbs.cli.export", tmp_path / "run", "-o", tmp_path / "out.csv"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "not exported: 33 calls of profile mode" in exported.stderr
