"""Quantiles from logarithmic buckets: never further off than they say."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from datacrumbs.analysis.quantiles import (
    ERROR_BOUND,
    POWER_ERROR_BOUND,
    Histograms,
    bucket_of,
    quantile,
)

DURATIONS = st.one_of(st.integers(0, 100), st.integers(0, 10**6), st.integers(0, 2**62))


def measured(values: list[int], share: float) -> int:
    histograms = Histograms()
    histograms.add(np.zeros(len(values), np.intp), np.array(values, np.int64))
    return quantile(histograms.counts(0), share, largest=max(values))


@given(st.lists(DURATIONS, min_size=1, max_size=300), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_error_bound_holds(values: list[int], share: float) -> None:
    exact = sorted(values)[math.ceil(share * len(values)) - 1]
    assert abs(measured(values, share) - exact) <= ERROR_BOUND * exact
    assert ERROR_BOUND <= 0.03


@given(st.lists(st.integers(0, 63), min_size=1, max_size=50))
def test_small_values_are_exact(values: list[int]) -> None:
    assert measured(values, 0.5) == sorted(values)[math.ceil(len(values) / 2) - 1]


@given(DURATIONS, DURATIONS)
def test_buckets_keep_the_order(one: int, other: int) -> None:
    low, high = bucket_of(np.array(sorted((one, other))))
    assert low <= high


def test_series_do_not_mix_and_an_empty_one_is_zero() -> None:
    histograms = Histograms()
    histograms.add(np.array([0, 2, 2, 0, 2]), np.array([5, 1000, 2000, 5, 1000]))
    assert quantile(histograms.counts(0), 0.99, largest=5) == 5
    assert histograms.counts(2).sum() == 3
    assert quantile(histograms.counts(1), 0.5, largest=0) == 0
    assert quantile(histograms.counts(9), 0.5, largest=0) == 0


@given(
    st.lists(st.integers(16, 2**62), min_size=1, max_size=100),
    st.lists(st.integers(16, 2**62), max_size=100),
    st.sampled_from([0.01, 0.5, 0.99, 1.0]),
)
def test_error_bound_of_powers_of_two_holds(
    profiled: list[int], traced: list[int], share: float
) -> None:
    """Also where some values are known exactly and of others only the power of two."""
    powers, counts = np.unique([v.bit_length() - 1 for v in profiled], return_counts=True)
    histograms = Histograms()
    histograms.add_powers(np.zeros(len(powers), np.intp), powers.astype(np.intp), counts)
    histograms.add(np.zeros(len(traced), np.intp), np.array(traced, np.int64))
    ordered = sorted(profiled + traced)
    exact = ordered[math.ceil(share * len(ordered)) - 1]
    found = quantile(histograms.counts(0), share, largest=ordered[-1])
    assert abs(found - exact) <= POWER_ERROR_BOUND * exact


def test_powers_beyond_the_last_bucket_count_there() -> None:
    histograms = Histograms()
    histograms.add_powers(np.array([0, 0]), np.array([62, 99]), np.array([1, 2]))
    assert histograms.counts(0).sum() == 3
