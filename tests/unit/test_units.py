"""Numbers as people read them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datacrumbs.units import human_bytes, human_count, human_ns, human_power, human_share, short_ns

S = 10**9


@pytest.mark.parametrize(
    ("time_ns", "text", "short"),
    [
        (0, "0 ns", "0ns"),
        (999, "999 ns", "999ns"),
        (1000, "1.00 us", "1.00us"),
        (12_345, "12.3 us", "12.3us"),
        (999_600, "1.00 ms", "1.00ms"),
        (2 * S, "2.00 s", "2.00s"),
        (125 * S, "2 min 05 s", "125s"),
        (3 * 3600 * S, "3 h 00 min", "3.00h"),
        (51 * 3600 * S, "2 d 03 h", "51.0h"),
        (300 * 24 * 3600 * S, "300 d 00 h", "300d"),
    ],
)
def test_times(time_ns: int, text: str, short: str) -> None:
    assert (human_ns(time_ns), short_ns(time_ns)) == (text, short)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1000 << 10, "1000 KiB"),
        ((1 << 20) - 1, "1.00 MiB"),
        (1500 << 20, "1.46 GiB"),
        (1 << 63, "8.00 EiB"),
    ],
)
def test_bytes(size: int, text: str) -> None:
    assert human_bytes(size) == text


def test_counts_shares_and_powers() -> None:
    assert [human_count(n) for n in (0, 999_999, 1_234_567, 10**10)] == [
        "0",
        "999999",
        "1.23M",
        "10.0G",
    ]
    shares = (0.0, 1e-6, 0.034, 0.34, 0.9999, 1.0)
    assert [human_share(s) for s in shares] == [
        "0 %",
        "< 0.1 %",
        "3.4 %",
        "34 %",
        "> 99 %",
        "100 %",
    ]
    assert [human_power(1 << k) for k in (0, 9, 10, 16, 62)] == [
        "1 B",
        "512 B",
        "1 KiB",
        "64 KiB",
        "4 EiB",
    ]


@given(st.integers(0, 2**62))
def test_columns_are_wide_enough(value: int) -> None:
    assert len(short_ns(value)) <= 6
    assert len(human_count(value)) <= 6
    assert len(human_bytes(value).replace(" ", "")) <= 7
    assert re.match(r"\d", human_ns(value))
