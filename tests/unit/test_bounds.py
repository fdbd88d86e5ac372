"""What the analyses keep has bounds: the same sums below them, and above them what is said."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from generate.calls import Call, breakdown
from generate.runs import BEGIN_NS, Host, random_hosts, write_run
from hypothesis import given, settings
from hypothesis import strategies as st

from datacrumbs.analysis import attribution, flame, keys, places, tally, traits
from datacrumbs.analysis.explain import explain
from datacrumbs.analysis.explanation import Explanation
from datacrumbs.analysis.flame import FlameTally, PathSums, flame_of
from datacrumbs.analysis.functions import Functions
from datacrumbs.analysis.keys import KeyIndex
from datacrumbs.analysis.nesting import nested
from datacrumbs.analysis.paths import Paths
from datacrumbs.analysis.places import NamedPlaces, Places
from datacrumbs.analysis.selection import Selection
from datacrumbs.analysis.summary import summarise
from datacrumbs.analysis.tally import AccessTally
from datacrumbs.analysis.traits import Touched
from datacrumbs.trace.reader import open_trace

batches_of_keys = st.lists(st.lists(st.integers(0, 30), max_size=12), max_size=12)


@settings(max_examples=60)
@given(batches_of_keys, st.sampled_from([None, 4, 12]))
def test_keys_have_one_number_each_and_no_more_than_the_limit(
    batches: list[list[int]], limit: int | None
) -> None:
    known: dict[int, int] = {}
    with mock.patch.object(keys, "_FEW", 1), mock.patch.object(keys, "_AT_ONCE", 2):
        index = KeyIndex(np.int64)
        for batch in batches:
            numbers = index.numbers(np.array(batch, np.int64), limit=limit).tolist()
            for key, number in zip(batch, numbers, strict=True):
                assert known.setdefault(key, number) == number or known[key] < 0
                known[key] = number
    numbered = {key: number for key, number in known.items() if number >= 0}
    assert sorted(numbered.values()) == list(range(len(numbered)))
    assert index.seen().tolist() == sorted(numbered, key=lambda key: numbered[key])
    wanted = len(known) if limit is None else min(limit, len(known))
    assert len(numbered) == len(index) == wanted


calls_in_places = st.lists(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9), st.integers(0, 3)), max_size=20),
    max_size=8,
)


def _counted(found: Places) -> dict[tuple[int, ...], int]:
    cells = found.cells()
    columns = (cells.owner, cells.place, cells.bucket, cells.count)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return {tuple(row[:3]): row[3] for row in rows}


def _add(found: Places, batch: list[tuple[int, int, int]]) -> None:
    owner, place, bucket = (np.array([row[i] for row in batch], np.intp) for i in range(3))
    found.add(owner, place, bucket)


@settings(max_examples=60)
@given(calls_in_places)
def test_calls_are_counted_by_place(batches: list[list[tuple[int, int, int]]]) -> None:
    found = Places()
    with mock.patch.object(places, "_PENDING", 5):
        for batch in batches:
            _add(found, batch)
    assert _counted(found) == Counter(row for batch in batches for row in batch)


@settings(max_examples=60)
@given(calls_in_places)
def test_places_too_many_become_others(batches: list[list[tuple[int, int, int]]]) -> None:
    """No call is lost; a place with most of the calls keeps all of its own."""
    busy = [(0, 99, 1)] * 30
    found = Places()
    with mock.patch.object(places, "_PENDING", 5), mock.patch.object(places, "MAX_CELLS", 20):
        for batch in batches:
            _add(found, busy + batch)
        counted = _counted(found)
    assert sum(place != places.OTHERS for _, place, _ in counted) <= 20
    everything = Counter(row for batch in batches for row in busy + batch)
    for (owner, place, bucket), count in counted.items():
        assert count <= everything[owner, place, bucket] or place == places.OTHERS
    for owner, bucket in {(row[0], row[2]) for row in everything}:
        there = sum(n for (o, _, b), n in counted.items() if (o, b) == (owner, bucket))
        assert there == sum(n for (o, _, b), n in everything.items() if (o, b) == (owner, bucket))
    assert counted.get((0, 99, 1), 0) == everything[0, 99, 1]


def test_names_of_places_that_are_not_told_apart_are_forgotten() -> None:
    found: NamedPlaces[str] = NamedPlaces()
    wanted: Counter[str] = Counter()
    with (
        mock.patch.object(places, "MAX_CELLS", 40),
        mock.patch.object(places, "_MANY_NAMES", 30),
    ):
        found = NamedPlaces()
        for host in range(20):
            part = Places()
            numbers = np.r_[np.repeat(1, 50), np.arange(2, 20)]
            part.add(np.zeros(len(numbers), np.intp), numbers, np.ones(len(numbers), np.intp))
            names = {1: "/shared", **{n: f"/{host}/{n}" for n in range(2, 20)}}
            wanted.update(names[n] for n in numbers.tolist())
            found.add(
                np.zeros(19, np.intp), part.cells(), lambda p, n=names: [n[i] for i in p.tolist()]
            )
        placed = found.of(0)
        others = found.others
    assert len(placed.names) < 100 < len(wanted)
    every = np.ones(8, bool)
    pairs = placed.pairs(every, ~every)
    assert pairs["/shared"] == (1000, 0)
    assert pairs[None] == (others, 0)
    assert sum(fast for fast, _ in pairs.values()) == wanted.total()
    assert all(pairs[name][0] <= wanted[name] for name in pairs if name)


touches = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 300)), max_size=20), max_size=8
)


@settings(max_examples=60)
@given(touches)
def test_each_region_is_touched_first_once(batches: list[list[tuple[int, int]]]) -> None:
    touched, seen = Touched(), set()
    for batch in batches:
        file, region = (np.array([row[i] for row in batch], np.int64) for i in range(2))
        told = touched.touch(file, region).tolist()
        for place, what in zip(batch, told, strict=True):
            assert what == (1 if place in seen else 2)
            seen.add(place)
    assert touched.untold == 0


def test_of_regions_too_many_it_is_not_told_which_are_new() -> None:
    touched = Touched()
    with mock.patch.object(traits, "MAX_WORDS", 2):
        first = touched.touch(np.array([1, 2]), np.array([0, 0]))
        then = touched.touch(np.array([3, 1, 2, 3]), np.array([0, 0, 1, 0]))
    assert (first.tolist(), then.tolist()) == ([2, 2], [0, 1, 2, 0])
    assert touched.untold == 2


def test_paths_are_those_of_the_table() -> None:
    """The later of two rows counts; what the table does not name has its number."""
    files = pa.table({"file": pa.array([7, 3, 7], pa.uint64()), "path": ["/a", "/b", "/c"]})
    found = Paths.of(files)
    wanted = ["/c", "<file 9>", "/b", "<file 2>", "/c"]
    assert found.names(np.array([7, 9, 3, 2, 7], np.uint64)) == wanted
    assert found.only([3, 9]).names(np.array([3, 7], np.uint64)) == ["/b", "<file 7>"]
    assert Paths.of(files.slice(0, 0)).names(np.array([1], np.uint64)) == ["<file 1>"]


def _explained(directory: Path, hosts: list[Host]) -> Explanation:
    return explain(open_trace(write_run(directory, hosts, segment_events=50)), Selection())


def _cut(call: Call, depth: int) -> Call:
    """The same call without what is deeper than ``depth`` in it."""
    inner = [_cut(c, depth - 1) for c in call.inner] if depth else []
    return Call(func=call.func, start=call.start, dur=call.dur, inner=inner)


def _chain(depth: int, at: int) -> Call:
    """read in read in read ..., each 10 ns shorter at either end."""
    inner = [_chain(depth - 1, at + 10)] if depth else []
    return Call(func="read", start=at, dur=20 * depth + 100, inner=inner)


@pytest.mark.parametrize("batch_rows", [3, 100_000])
def test_calls_too_deep_are_part_of_the_one_around_them(tmp_path: Path, batch_rows: int) -> None:
    depth, most = 40, 12
    calls = [_chain(depth, BEGIN_NS + n * 10_000) for n in range(5)]
    with (
        mock.patch("datacrumbs.trace.reader.BATCH_ROWS", batch_rows),
        mock.patch.object(attribution, "MAX_DEPTH", most),
    ):
        found = _explained(tmp_path, [Host(name="n1", threads={(1, 1): calls})])
    (explained,) = found.explained
    wanted = breakdown([_cut(call, most) for call in calls])
    rows = [(i.count, i.time_ns, i.self_ns) for i in explained.inside]
    assert rows == [(s.count, s.time_ns, s.self_ns) for _, s in sorted(wanted.items())]
    assert sum(i.self_ns for i in explained.inside) == explained.time_ns
    assert f"{5 * (depth - most)} calls are deeper than {most} calls" in found.notes[0]


@settings(max_examples=10)
@given(st.integers(0, 10**9), st.integers(1, 40))
def test_paths_too_many_are_part_of_the_call_around_them(seed: int, most: int) -> None:
    """The parts still add up to the whole, for explain and for the flame."""
    hosts = random_hosts(seed, calls=8)
    with (
        tempfile.TemporaryDirectory() as directory,
        mock.patch.object(attribution, "MAX_CONTEXTS", most),
        mock.patch.object(flame, "MAX_PATHS", most),
        mock.patch.object(flame, "LEAST_SHARE", 0.0),
    ):
        found = _explained(Path(directory), hosts)
        (host,) = open_trace(Path(directory)).hosts
        drawn = FlameTally(Functions(host.table("functions")))
        for batch in nested(host):
            drawn.add(batch)
        whole = PathSums("", "")
        drawn.add_to(whole)
        frames = flame_of(whole).frames
    for explained in found.explained:
        own = [inner.self_ns for inner in explained.inside]
        assert sum(own) == explained.time_ns
        assert min(own) >= 0
    inside = sum(frame.time_ns for frame in frames if frame.parent < 0)
    assert sum(frame.self_ns for frame in frames) == inside
    assert all(frame.self_ns >= 0 for frame in frames)


def test_one_busy_file_is_told_among_more_files_than_are_kept(tmp_path: Path) -> None:
    """One call in four is on it, slow; each of the others is on a file of its own."""
    rng, calls = random.Random(1), []
    for n in range(2_000):
        slow = n % 4 == 0
        calls.append(
            Call(
                func="pread64",
                start=BEGIN_NS + n * 1_000_000,
                dur=(100_000 if slow else 1_000) + rng.randrange(50),
                file=1 if slow else n + 2,
                size=100,
                ret=100,
            )
        )
    host = Host(name="n1", threads={(1, 1): calls}, files={n: f"/f{n}" for n in range(1, 2_003)})
    with mock.patch.object(places, "MAX_CELLS", 200), mock.patch.object(places, "_PENDING", 50):
        found = _explained(tmp_path, [host])
    (explained,) = found.explained
    assert explained.variation
    (finding,) = [f for f in explained.variation.findings if f.kind == "file"]
    assert (finding.name, finding.slow_share, finding.fast_share) == ("/f1", 1.0, 0.0)
    assert any("files with few calls, which are not told apart" in note for note in found.notes)


def _places(tally_: AccessTally, streams: list[int], turn: int) -> None:
    """Each stream's access number ``turn``, of 10 bytes, behind the one before."""
    file = np.array(streams, np.intp)
    zeros = np.zeros(len(file), np.intp)
    tally_.add_places(file, zeros, np.full(len(file), turn * 10), np.full(len(file), 10))


def test_streams_left_alone_longest_are_forgotten() -> None:
    """Two streams go on all the time; 100 others have one access each, and one comes back."""
    found = AccessTally()
    with mock.patch.object(tally, "MAX_STREAMS", 8):
        for turn in range(100):
            _places(found, [1, 2, 1_000 + turn], turn)
        _places(found, [1_000], 1)
        assert len(found._streams) <= 10
    assert (found.placed, found.sequential, found.consecutive) == (198, 198, 198)
    assert found.forgotten >= 90


def test_what_was_forgotten_is_said(tmp_path: Path) -> None:
    calls = [
        Call(
            func="pread64",
            start=BEGIN_NS + n * 1_000,
            dur=10,
            file=n % 50 + 1,
            offset=n * 10,
            size=10,
            ret=10,
        )
        for n in range(200)
    ]
    host = Host(name="n1", threads={(1, 1): calls}, files={n: f"/f{n}" for n in range(1, 51)})
    trace = open_trace(write_run(tmp_path, [host], segment_events=20))
    assert summarise(trace).reads.compared == 150
    with mock.patch.object(tally, "MAX_STREAMS", 8):
        found = summarise(trace)
    assert found.reads.compared == 0
    assert any("so many others" in note for note in found.notes)
    assert found.reads.count == 200


@pytest.mark.parametrize("seed", range(3))
def test_a_slow_call_is_whole_however_its_events_are_cut(tmp_path: Path, seed: int) -> None:
    """Segments of 5 events, of which many start before the end of the one before."""
    (host,) = random_hosts(seed, threads=4, calls=12)
    trace = open_trace(write_run(tmp_path, [host], segment_events=5))
    with mock.patch("datacrumbs.trace.reader.BATCH_ROWS", 3):
        found = explain(trace, Selection())
    trees = {(host.mono_ns(call.start), call.dur): call for call in _all(host.calls())}
    checked = 0
    for slow in (call for explained in found.explained for call in explained.slowest):
        answer = breakdown([trees[slow.ts, slow.dur_ns]])
        path: list[str] = []
        inside = {}
        for inner in slow.inside:
            path[inner.depth :] = [inner.name]
            inside[tuple(path)] = (inner.count, inner.time_ns, inner.self_ns)
        assert inside == {p: (s.count, s.time_ns, s.self_ns) for p, s in answer.items()}
        checked += len(inside) > 1
    assert checked


def _all(calls: list[Call]) -> Iterator[Call]:
    """All of them, each behind those inside it: of two at the same time, the outer one is last."""
    for call in calls:
        yield from _all(call.inner)
        yield call
