"""Unions of intervals, as a stream and for many threads, against a slow reference."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datacrumbs.analysis.intervals import Union, Unions

Intervals = list[tuple[int, int, int]]  # series, start, length

INTERVALS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 60), st.integers(0, 25)), max_size=60
)
CUTS = st.lists(st.integers(0, 60), max_size=6)


def reference(intervals: Intervals) -> int:
    """Count the units of time that lie in an interval."""
    return len({unit for _, start, length in intervals for unit in range(start, start + length)})


def batches(intervals: Intervals, cuts: list[int]) -> list[Intervals]:
    """The intervals by start, cut into batches anywhere."""
    ordered = sorted(intervals, key=lambda interval: interval[1])
    at = [0, *sorted(min(cut, len(ordered)) for cut in cuts), len(ordered)]
    return [ordered[a:b] for a, b in itertools.pairwise(at)]


def columns(batch: Intervals) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    series, start, length = np.array(batch, np.int64).reshape(-1, 3).T.copy()
    return series.astype(np.intp), start, start + length


@given(INTERVALS, CUTS)
def test_union_is_what_counting_units_gives(intervals: Intervals, cuts: list[int]) -> None:
    union = Union()
    for batch in batches(intervals, cuts):
        union.add(*columns(batch)[1:])
    assert union.total_ns == reference(intervals)


@given(INTERVALS, CUTS, st.sampled_from([1, 1 << 40, 1 << 56]))
def test_unions_of_many_series_do_not_mix(
    intervals: Intervals, cuts: list[int], scale: int
) -> None:
    """Scaled up, the line on which series lie side by side would be too long for 64 bits."""
    unions = Unions()
    for batch in batches(intervals, cuts):
        series, start, end = columns(batch)
        unions.add(series, start * scale, end * scale)
    expected = [reference([i for i in intervals if i[0] == n]) * scale for n in range(5)]
    assert unions.totals(5).tolist() == expected


@pytest.mark.parametrize("count", [70_000, 3])
def test_many_threads_in_one_batch(count: int) -> None:
    """More than 16 bits can number are sorted another way."""
    series = np.tile(np.arange(count), 2)
    start = np.repeat(np.array([10, 15]), count)
    unions = Unions()
    unions.add(series, start, start + 10)
    assert unions.totals(count).tolist() == [15] * count


@settings(max_examples=20)
@given(st.integers(0, 2**31))
def test_nested_calls_count_as_the_outermost(seed: int) -> None:
    """The outer calls are made first, so their total is known; inner ones change nothing."""
    rng = np.random.default_rng(seed)
    outer = rng.integers(1, 10**9, 50)
    gaps = rng.integers(0, 10**9, 50)
    start = np.cumsum(outer + gaps) - outer
    depth = rng.integers(0, 6, 50)
    inner = [
        (start[i] + k * outer[i] // 20, outer[i] - k * outer[i] // 10)
        for i in range(50)
        for k in range(1, depth[i])
    ]
    spans = [*zip(start, outer, strict=True), *inner]
    starts, lengths = np.array(sorted(spans), np.int64).T
    union, unions = Union(), Unions()
    union.add(starts, starts + lengths)
    unions.add(np.zeros(len(starts), np.intp), starts, starts + lengths)
    assert union.total_ns == outer.sum()
    assert unions.totals(1).tolist() == [outer.sum()]


def test_nothing_added_is_nothing() -> None:
    empty = np.empty(0, np.int64)
    union, unions = Union(), Unions()
    union.add(empty, empty)
    unions.add(empty.astype(np.intp), empty, empty)
    assert union.total_ns == 0
    assert unions.totals(2).tolist() == [0, 0]
