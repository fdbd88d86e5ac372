"""From monotonic to real time."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datacrumbs.trace.clocks import ClockPair, RealtimeClock, take_pair

REAL_NS = 1_700_000_000_123_456_789


def _clock(*pairs: tuple[int, int]) -> RealtimeClock:
    return RealtimeClock([ClockPair(mono, REAL_NS + offset + mono) for mono, offset in pairs])


def _offset(clock: RealtimeClock, mono_ns: int) -> int:
    return int(clock.to_real_ns(np.array([mono_ns]))[0]) - REAL_NS - mono_ns


def test_a_pair_is_one_instant() -> None:
    low = time.time_ns() - time.monotonic_ns()
    pair = take_pair()
    high = time.time_ns() - time.monotonic_ns()
    slack_ns = 1_000_000
    assert low - slack_ns <= pair.real_ns - pair.mono_ns <= high + slack_ns


def test_one_pair_is_exact_to_the_nanosecond_everywhere() -> None:
    clock = _clock((5_000_000_000, 0))
    times = np.array([0, 1, 5_000_000_000, 10**15 + 7])
    np.testing.assert_array_equal(clock.to_real_ns(times), times + REAL_NS)
    assert clock.residual_ns() == 0


def test_lines_between_pairs_and_the_nearest_offset_outside() -> None:
    minute = 60_000_000_000
    clock = _clock((2 * minute, 3000), (minute, 1000), (4 * minute, -1000))
    expected = {0: 1000, minute: 1000, minute * 3 // 2: 2000, 3 * minute: 1000, 9 * minute: -1000}
    assert {mono: _offset(clock, mono) for mono in expected} == expected


def test_the_residual_is_a_pairs_distance_from_its_neighbours_line() -> None:
    assert _clock((0, 0), (100, 10), (200, 20)).residual_ns() == 0
    assert _clock((0, 0), (100, 60), (200, 20), (300, -20)).residual_ns() == 50
    assert _clock((0, 0), (100, 500)).residual_ns() == 0


def test_without_pairs_there_is_no_clock() -> None:
    with pytest.raises(ValueError, match="no clock pair"):
        RealtimeClock([])


@given(st.lists(st.integers(-(10**6), 10**6), min_size=2, max_size=20))
def test_order_is_kept_while_the_clock_is_slewed(offsets: list[int]) -> None:
    """NTP slews by at most 500 ppm; here up to 2 ms in 60 s."""
    pairs = [(i * 60_000_000_000, offset) for i, offset in enumerate(offsets)]
    times = np.sort(np.random.default_rng(1).integers(0, len(pairs) * 60_000_000_000, 1000))
    assert (np.diff(_clock(*pairs).to_real_ns(times)) >= 0).all()
    for mono, offset in pairs:
        assert _offset(_clock(*pairs), mono) == offset
