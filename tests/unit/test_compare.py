"""Two runs side by side: what is said of a change, and what is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_samples import FUNCTIONS, run_info

from datacrumbs.analysis.compare import Verdict, compare, distributions
from datacrumbs.analysis.quantiles import BUCKETS, bucket_of
from datacrumbs.trace.reader import open_trace
from datacrumbs.trace.runfile import Counts, State, write_run_info
from datacrumbs.trace.schema import EVENT_DTYPE
from datacrumbs.trace.writer import TraceWriter

READ, WRITE, SOLVE = 1, 2, 3
FILE = 1 << 61


def _events(durations: dict[int, Any]) -> Any:
    """Calls one after the other, by function."""
    parts = []
    for func, dur in durations.items():
        part = np.zeros(len(dur), EVENT_DTYPE)
        part["dur"], part["func"], part["ret"], part["file"] = dur, func, 4097, FILE
        parts.append(part)
    events = np.concatenate(parts)
    events["ts"] = 10**15 + np.cumsum(events["dur"] + 100) - events["dur"]
    events["pid"], events["tid"], events["fd"], events["offset"] = 10, 10, 3, -1
    return events


def _run(directory: Path, durations: dict[int, Any], run_id: str = "1", lost: int = 0) -> Path:
    host = directory / run_id / "host=n1"
    host.mkdir(parents=True)
    writer = TraceWriter(host, segment_events=4096)
    writer.write_rows("functions", FUNCTIONS)
    writer.write_rows(
        "files",
        {
            **{"file": [FILE], "path": [f"/scratch/{run_id}/out.dat"], "path_raw": [None]},
            **{"kind": ["regular"], "fstype": ["ext4"], "dev": [1], "ino": [1]},
            **{"generation": [0], "ts": [0]},
        },
    )
    events = _events(durations)
    writer.write_events(events)
    writer.close()
    counts = Counts(events=len(events), lost=lost)
    info = run_info(state=State.COMPLETE, host="n1", run_id=run_id, counts=counts)
    write_run_info(host, info)
    return directory / run_id


def _verdicts(tmp_path: Path, a: dict[int, Any], b: dict[int, Any]) -> dict[str, Verdict]:
    found = compare(open_trace(_run(tmp_path / "a", a)), open_trace(_run(tmp_path / "b", b)))
    return {change.name: change.verdict for change in found.functions}


def _lognormal(middle_ns: float, count: int, seed: int) -> Any:
    random = np.random.default_rng(seed)
    return random.lognormal(np.log(middle_ns), 0.5, count).astype(np.int64)


def test_what_has_not_changed_is_the_same(tmp_path: Path) -> None:
    a = {READ: _lognormal(2000, 20_000, 1), WRITE: _lognormal(9000, 50, 2)}
    b = {READ: _lognormal(2000, 30_000, 3), WRITE: _lognormal(9000, 60, 4)}
    assert _verdicts(tmp_path, a, b) == {"read": Verdict.SAME, "write": Verdict.SAME}


def test_slower_and_faster_calls(tmp_path: Path) -> None:
    a = {READ: _lognormal(2000, 5000, 1), WRITE: _lognormal(9000, 5000, 2)}
    b = {READ: _lognormal(2800, 5000, 3), WRITE: _lognormal(6000, 5000, 4)}
    assert _verdicts(tmp_path, a, b) == {"read": Verdict.SLOWER, "write": Verdict.FASTER}


def test_a_large_ratio_of_means_alone_is_no_verdict(tmp_path: Path) -> None:
    once = np.full(5000, 2000)
    once[7] = 400_000_000  # one call, which multiplies the mean by forty
    assert _verdicts(tmp_path, {READ: np.full(5000, 2000)}, {READ: once}) == {"read": Verdict.SAME}


def test_a_tail_is_seen_where_the_middle_has_not_moved(tmp_path: Path) -> None:
    tail = _lognormal(2000, 20_000, 3)
    tail[::20] *= 100
    a = {READ: _lognormal(2000, 20_000, 1)}
    assert _verdicts(tmp_path / "1", a, {READ: tail}) == {"read": Verdict.SLOW_TAIL}
    assert _verdicts(tmp_path / "2", {READ: tail}, a) == {"read": Verdict.FAST_TAIL}


def test_few_calls_and_functions_of_one_run(tmp_path: Path) -> None:
    a = {READ: [100] * 5, WRITE: [50] * 100}
    b = {READ: [900] * 5, SOLVE: [70] * 100}
    assert _verdicts(tmp_path, a, b) == {
        "read": Verdict.FEW,
        "write": Verdict.ONLY_A,
        "solve": Verdict.ONLY_B,
    }


def test_a_change_of_time_is_told_apart_by_its_cause(tmp_path: Path) -> None:
    a = open_trace(_run(tmp_path / "a", {READ: [1000] * 100}))
    b = open_trace(_run(tmp_path / "b", {READ: [1500] * 300}))
    (read,) = compare(a, b).functions
    assert read.change_ns == 300 * 1500 - 100 * 1000
    assert read.by_count_ns == 200 * 1000
    assert read.by_duration_ns == 300 * 500
    assert read.verdict is Verdict.SLOWER
    assert read.distributions and read.distributions.superiority == 1.0


def test_layers_files_and_facts(tmp_path: Path) -> None:
    a = open_trace(_run(tmp_path, {READ: [1000] * 10}, "1"))
    b = open_trace(_run(tmp_path, {READ: [2000] * 10, SOLVE: [7]}, "2", lost=3))
    found = compare(a, b)
    assert [(row.layer, row.a_ns, row.b_ns) for row in found.layers] == [
        ("posix", 10_000, 20_000),
        ("app", 0, 7),
    ]
    (file,) = found.files
    assert (file.path, file.a_ns, file.b_ns) == ("/scratch/{run}/out.dat", 10_000, 20_007)
    assert (file.a_bytes, file.b_calls) == (40_970, 11)
    assert found.a.io_ns == 10_000
    assert found.notes == ["The second run lost 3 events: its numbers are too low."]


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=30),
    st.lists(st.integers(0, 40), min_size=1, max_size=30),
)
def test_superiority_is_that_of_all_pairs(a: list[int], b: list[int]) -> None:
    """Values below 64 have a bucket each, so the histogram loses nothing."""
    found = distributions(*(_histogram(values) for values in (a, b)))
    pairs = [(y > x) + (y == x) / 2 for x in a for y in b]
    assert found.superiority == pytest.approx(sum(pairs) / len(pairs))
    swapped = distributions(*(_histogram(values) for values in (b, a)))
    assert swapped.superiority == pytest.approx(1 - found.superiority)
    assert swapped.p_value == pytest.approx(found.p_value)


def _histogram(values: list[int]) -> Any:
    return np.bincount(bucket_of(np.array(values)), minlength=BUCKETS)


def test_the_p_value_is_that_of_a_permutation_test() -> None:
    random = np.random.default_rng(5)
    a, b = random.integers(0, 40, 60), random.integers(3, 43, 70)
    found = distributions(_histogram(a), _histogram(b))
    both, extreme, tries = np.concatenate([a, b]), 0, 4000
    for _ in range(tries):
        random.shuffle(both)
        other = distributions(_histogram(both[:60]), _histogram(both[60:]))
        extreme += abs(other.superiority - 0.5) >= abs(found.superiority - 0.5)
    assert found.p_value == pytest.approx(extreme / tries, abs=0.02)


def _command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = Path(sys.executable).with_name("datacrumbs_compare")
    return subprocess.run([command, *arguments], capture_output=True, text=True, check=False)


def test_the_page_says_it_in_words(tmp_path: Path) -> None:
    a = _run(tmp_path, {READ: _lognormal(2000, 5000, 1)}, "1")
    b = _run(tmp_path, {READ: _lognormal(4000, 5000, 2)}, "2")
    page = _command(a, b)
    assert page.returncode == 0, page.stderr
    assert "posix read is slower: of a call of each run, B's takes longer" in page.stdout
    assert max(map(len, page.stdout.splitlines())) <= 80
    found = json.loads(_command(a, b, "--format", "json").stdout)
    assert found["functions"][0]["verdict"] == "slower"
    wrong = _command(a, tmp_path / "none")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "No such file or directory" in wrong.stderr
