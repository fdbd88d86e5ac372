"""Profile mode: the kernel's sums, taken at each interval, as rows of table ``intervals``.

Two maps and two banks of cells by turns: while one is filled, the other is emptied. See
bpf/profile.h.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datacrumbs.tracer import layout
from datacrumbs.tracer.libbpf import Object

if TYPE_CHECKING:
    import pyarrow as pa

KEY = np.dtype(layout.ProfileKey)
SUMS = np.dtype(layout.Profile)
CELL = np.dtype(layout.Cell)
BATCH = 8192
"""Entries that are taken from the kernel at once: 2 MB."""

Columns = dict[str, Any]


class Profile:
    """The maps and cells of one run; the first interval begins at ``since_ns``
    (CLOCK_MONOTONIC).
    """

    def __init__(self, bpf: Object, fds: list[int], *, cells: int, since_ns: int) -> None:
        self._bpf, self._fds = bpf, fds
        shared = bpf.shared("cells", layout.Cell * (2 * cells))
        self._cells = np.frombuffer(shared, CELL).reshape(2, cells)
        self._banks = bpf.shared(".data.banks", layout.Banks)
        self._start_ns = since_ns
        self._keys, self._sums = np.empty(BATCH, KEY), np.empty(BATCH, SUMS)

    def take(self) -> tuple[int, Columns]:
        """End the interval: how many calls ended in it, and its rows; empty without any.

        Takes as long as the kernel needs to let go of a map, usually 10 to 50 ms.
        """
        start_ns, self._start_ns = self._start_ns, time.monotonic_ns()
        self._fds.reverse()
        banks, ended = self._banks, self._banks.used
        banks.used = 1 - ended
        self._bpf.put("profiles", 0, ctypes.c_uint32(self._fds[0]))
        parts = list(empty_cells(self._cells[ended]))
        # no more calls into the kernel than needed: if one is preempted, programs on kprobes do
        # not run on its CPU until it goes on (kernel/bpf, bpf_disable_instrumentation)
        if any(banks.spilled):
            parts += self._empty(self._fds[1])
        banks.spilled[ended] = 0
        if not parts:
            return 0, {}
        keys, sums = (np.concatenate(column) for column in zip(*parts, strict=True))
        return int(sums["calls"].sum()), rows(keys, sums, start_ns, self._start_ns - start_ns)

    def _empty(self, fd: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        position, more = None, True
        while more:
            count, position = self._bpf.take_batch(
                fd, position, self._keys.ctypes.data, self._sums.ctypes.data, BATCH
            )
            more = position is not None
            if count:
                yield self._keys[:count].copy(), self._sums[:count].copy()


def empty_cells(bank: NDArray[Any]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Keys and sums of the cells in use, if there are any; ``bank`` is empty afterwards."""
    used = np.flatnonzero(bank["who"])
    if not len(used):
        return
    cells = bank[used]
    bank[used] = 0
    keys = np.zeros(len(used), KEY)
    keys["pid"], keys["func"] = cells["pid"], cells["who"] & 0xFFFF
    yield keys, cells["sums"]


def rows(keys: NDArray[Any], sums: NDArray[Any], start_ns: int, dur_ns: int) -> Columns:
    """One row of ``intervals`` for each function and process, its CPUs added up, by column."""
    who = keys["pid"].astype(np.int64) << 16 | keys["func"]
    order = np.argsort(who, kind="stable")
    who, sums = who[order], sums[order]
    first = np.flatnonzero(np.r_[True, who[1:] != who[:-1]])
    calls = np.add.reduceat(sums["calls"], first, axis=0, dtype=np.uint64)
    return {
        "ts": np.full(len(first), start_ns, np.int64),
        "dur": np.full(len(first), dur_ns, np.int64),
        "pid": (who[first] >> 16).astype(np.int32),
        "func": (who[first] & 0xFFFF).astype(np.uint16),
        "count": calls.sum(axis=1),
        "errors": np.add.reduceat(sums["errors"], first),
        "time": np.add.reduceat(sums["time"], first),
        "max": np.maximum.reduceat(sums["max"], first),
        "bytes": np.add.reduceat(sums["bytes"], first),
        "histogram": histogram_column(calls),
    }


def histogram_column(calls: NDArray[np.uint64]) -> pa.ListArray:
    """Rows of counts as lists that end with their last count above zero."""
    import pyarrow as pa

    powers = np.arange(1, calls.shape[1] + 1)
    lengths = ((calls > 0) * powers).max(axis=1)
    offsets = np.r_[0, np.cumsum(lengths)].astype(np.int32)
    values = calls[powers <= lengths[:, None]]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
