"""Draining: a round has an end. A file stands for the ring's memory, which lies as it does."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from datacrumbs.trace.schema import EVENT_DTYPE
from datacrumbs.tracer.rings import BUSY, SLOT, EventRing, StringRing

PAGE, SIZE = mmap.PAGESIZE, 1 << 20


class Kernel:
    """The side that fills the ring."""

    def __init__(self, path: Path) -> None:
        with open(path, "w+b") as file:
            file.truncate(2 * PAGE + 2 * SIZE)
            self.memory = mmap.mmap(file.fileno(), 0)
        self.end = 0

    def put(self, payload: bytes, *, busy: bool = False) -> None:
        at = 2 * PAGE + self.end
        head = struct.pack("<II", len(payload) | (BUSY if busy else 0), 0)
        self.memory[at : at + 8 + len(payload)] = head + payload
        self.end += (8 + len(payload) + 7) // 8 * 8
        self.memory[PAGE : PAGE + 8] = struct.pack("<Q", self.end)

    def event(self, number: int, *, busy: bool = False) -> None:
        event = np.zeros(1, EVENT_DTYPE)
        event["ts"] = number
        self.put(event.tobytes(), busy=busy)


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path / "ring")


@pytest.fixture
def opened(kernel: Kernel, tmp_path: Path) -> Callable[[type[Any]], Any]:
    def make(kind: type[Any]) -> Any:
        with open(tmp_path / "ring", "r+b") as file:
            return kind(file.fileno(), SIZE)

    return make


def test_a_round_takes_what_was_there_when_it_began(
    kernel: Kernel, opened: Callable[[type[EventRing]], EventRing]
) -> None:
    """A ring that is filled while it is drained would keep the daemon for ever."""
    ring, taken = opened(EventRing), list[int]()

    def take(events: NDArray[Any]) -> None:
        taken.extend(events["ts"].tolist())
        for _ in events:
            kernel.event(100 + len(taken))

    for number in range(3):
        kernel.event(number)
    assert ring.drain(take) == 3
    assert taken == [0, 1, 2]
    assert ring.waiting_bytes() == 3 * SLOT.itemsize
    assert ring.drain(lambda _: None) == 3


def test_what_the_kernel_still_writes_waits(
    kernel: Kernel, opened: Callable[[type[EventRing]], EventRing]
) -> None:
    ring, taken = opened(EventRing), list[int]()
    kernel.event(0)
    kernel.event(1, busy=True)
    kernel.event(2)
    for _ in range(2):
        ring.drain(lambda events: taken.extend(events["ts"].tolist()))
        assert taken == [0]
    assert ring.waiting_bytes() == 2 * SLOT.itemsize


def test_names_that_come_meanwhile_wait(
    kernel: Kernel, opened: Callable[[type[StringRing]], StringRing]
) -> None:
    ring, taken = opened(StringRing), list[bytes]()
    for text in (b"one", b"number two"):
        kernel.put(text)
    for record in ring.records():
        taken.append(bytes(record))
        kernel.put(b"later")
    assert taken == [b"one", b"number two"]
    assert [bytes(record) for record in ring.records()] == [b"later"] * 2
