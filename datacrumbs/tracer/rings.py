"""Draining BPF ring buffers from their memory map: whole batches, no callback per record.

The layout is the kernel's (kernel/bpf/ringbuf.c): a page with the consumer's position, a page
with the producer's, then the data, mapped twice in a row so that no record is cut. A record
has an 8-byte header; bit 31 of its length says that the kernel still writes it.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datacrumbs.trace.schema import EVENT_DTYPE

PAGE = mmap.PAGESIZE
BUSY, DISCARD = 1 << 31, 1 << 30
SLOT = np.dtype([("length", "<u4"), ("page", "<u4"), ("event", EVENT_DTYPE)])
BATCH_SLOTS = 64 * 1024


class _Ring:
    """The map with descriptor ``fd``, which stays the caller's and may be closed."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        self._size = size_bytes
        self._consumer_map = mmap.mmap(fd, PAGE)
        self._map = mmap.mmap(fd, PAGE + 2 * size_bytes, prot=mmap.PROT_READ, offset=PAGE)
        self._consumer = np.frombuffer(self._consumer_map, "<u8", 1)
        self._producer = np.frombuffer(self._map, "<u8", 1)

    def waiting_bytes(self) -> int:
        return int(self._producer[0]) - int(self._consumer[0])


class EventRing(_Ring):
    """A ring whose records are all events."""

    def drain(self, take: Callable[[NDArray[Any]], None]) -> int:
        """Hand finished events to ``take`` (valid during the call), oldest first; how many.

        Those that are there now: what comes meanwhile waits, or it might never end.
        """
        waiting, total = self.waiting_bytes() // SLOT.itemsize, 0
        while total < waiting:
            count = min(waiting - total, BATCH_SLOTS)
            at = int(self._consumer[0])
            slots = np.frombuffer(self._map, SLOT, count, PAGE + at % self._size)
            busy = slots["length"] & BUSY
            if busy.any():
                waiting = total + int(np.argmax(busy != 0))
                count = waiting - total
            if count:
                take(slots["event"][:count])
            self._consumer[0] = at + count * SLOT.itemsize
            total += count
        return total


class StringRing(_Ring):
    """The ring of names, processes and second files."""

    def records(self) -> Iterator[memoryview]:
        """The finished records' bytes, oldest first; each is valid until the next is asked for.

        Those that are there now, as with events.
        """
        view, end = memoryview(self._map), int(self._producer[0])
        while (at := int(self._consumer[0])) < end:
            start = PAGE + at % self._size
            header = int.from_bytes(view[start : start + 4], "little")
            if header & BUSY:
                return
            length = header & ~(BUSY | DISCARD)
            if not header & DISCARD:
                yield view[start + 8 : start + 8 + length]
            self._consumer[0] = at + (length + 8 + 7) // 8 * 8
