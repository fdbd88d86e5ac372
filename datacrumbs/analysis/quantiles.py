"""Quantiles of durations from logarithmic buckets, in one pass and fixed memory."""

from __future__ import annotations

import math

import numpy as np

from datacrumbs.analysis.keys import Index, Numbers, grow

_BITS = 5
"""Each power of two is cut into 2**_BITS buckets of equal width."""

ERROR_BOUND = 2.0 ** -(_BITS + 1)
"""A quantile is at most this share (1.6 %) off: half a bucket's width, relative to its start."""

BUCKETS = 63 * 2**_BITS + 1
"""Bucket 0 holds 0, the rest the values from 1 up to 2**63."""

POWER_ERROR_BOUND = 0.34
"""The same for values of 16 and more of which only the power of two is known: 4/3 of the power
stands for all of them, the value that is off by a third at either end."""

_SHIFT = 52 - _BITS
_FIRST = 1023 << _BITS  # what 1.0 gives


def bucket_of(values: Numbers) -> Index:
    """The bucket of each value (0 or more).

    The leading bits of a double are the exponent and then the mantissa, which is this
    numbering already.
    """
    leading = np.asarray(values, np.float64).view(np.int64) >> _SHIFT
    buckets: Index = np.clip(leading - (_FIRST - 1), 0, BUCKETS - 1)
    return buckets


_COARSE = 2  # 2**2 buckets are one: 8 for each power of two

LENGTHS = ((BUCKETS - 1) >> _COARSE) + 1
"""Number of buckets of `bucket_of_length`."""


def bucket_of_length(values: Numbers) -> Index:
    """Coarser buckets, for sums by the length of calls: 9 to 12 % apart, 0 for 0."""
    buckets: Index = (bucket_of(values) + (1 << _COARSE) - 1) >> _COARSE
    return buckets


def bucket_middle(bucket: int) -> int:
    """A value in the middle of ``bucket``; up to 2**(_BITS + 1), the only one it holds."""
    if bucket == 0:
        return 0
    exponent, part = divmod(bucket - 1, 2**_BITS)
    low = math.ceil((2**_BITS + part) * 2.0 ** (exponent - _BITS))
    high = math.ceil((2**_BITS + part + 1) * 2.0 ** (exponent - _BITS)) - 1
    middle: int = (low + max(low, high)) // 2
    return middle


def by_power(counts: Numbers) -> Numbers:
    """A histogram with only the powers of two told apart, as of profiled calls."""
    whole = np.zeros_like(counts)
    whole[0] = counts[0]
    whole[1 :: 2**_BITS] = counts[1:].reshape(-1, 2**_BITS).sum(axis=1)
    return whole


class Histograms:
    """A histogram for each of many series, numbered densely: 16 KB each."""

    def __init__(self) -> None:
        self._counts = np.zeros((0, BUCKETS), np.int64)

    def add(self, series: Index, values: Numbers) -> None:
        """Count ``values[i]`` in the histogram number ``series[i]``."""
        if len(series):
            self._counts = grow(self._counts, int(series.max()) + 1)
            np.add.at(self._counts.reshape(-1), series * BUCKETS + bucket_of(values), 1)

    def add_powers(self, series: Index, powers: Index, counts: Numbers) -> None:
        """Count ``counts[i]`` values from 2**powers[i] up to twice that, of series[i]."""
        if len(series):
            self._counts = grow(self._counts, int(series.max()) + 1)
            buckets = 1 + (np.minimum(powers, 62) << _BITS) + 2**_BITS // 3
            np.add.at(self._counts.reshape(-1), series * BUCKETS + buckets, counts)

    def counts(self, number: int) -> Numbers:
        """The buckets of one series; `BUCKETS` zeros if nothing was added to it."""
        row: Numbers = grow(self._counts, number + 1)[number]
        return row


def quantile(counts: Numbers, share: float, *, largest: int) -> int:
    """The value that ``share`` of all values do not exceed (nearest rank), to `ERROR_BOUND`.

    ``largest`` is the known maximum, never exceeded; 0 for an empty histogram.
    """
    total = int(counts.sum())
    if not total:
        return 0
    rank = max(1, math.ceil(share * total))
    bucket = int(np.searchsorted(np.cumsum(counts), rank))
    return min(bucket_middle(bucket), largest)
