"""How many rings a run has, how large each is, and which CPUs put their events into which.

A ring has a lock, which CPUs that share it pay for with every event; so each has its own, as
long as ``ring.total_bytes`` is enough for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datacrumbs.config import Ring
from datacrumbs.tracer import layout

RECORD_BYTES = layout.EVENT_BYTES + 8
"""Of an event in a ring: the kernel puts a header before it."""

ONLINE = Path("/sys/devices/system/cpu/online")


@dataclass(frozen=True, slots=True)
class RingPlan:
    """``count`` rings for events, each of ``ring_bytes``, and one for names.

    ``ring_of_cpu`` has a ring for every CPU number. The daemon is woken after ``wake_events`` of
    one CPU and at every ``wake_strings`` bytes of names: before more than a quarter of a ring is
    full. All but ``count`` are powers of two.
    """

    count: int
    ring_bytes: int
    ring_of_cpu: tuple[int, ...]
    wake_events: int
    strings_bytes: int

    @property
    def events_bytes(self) -> int:
        """Bytes of all rings for events."""
        return self.count * self.ring_bytes

    @property
    def wake_strings(self) -> int:
        """A quarter of the ring for names."""
        return self.strings_bytes // 4

    def tell(self, constants: layout.Config) -> None:
        """What the programs need to know of it."""
        constants.ring_of_cpu[:] = self.ring_of_cpu
        constants.wake_events, constants.wake_strings = self.wake_events, self.wake_strings


def power_of_two(size: int) -> int:
    """The largest power of two that is no larger than ``size``; 1 for less."""
    return 1 << max(size.bit_length() - 1, 0)


def plan_rings(ring: Ring, online: Sequence[int]) -> RingPlan:
    """The rings of a host whose CPUs ``online`` run now.

    CPUs that do not run have none of their own, however many the kernel may number: one that
    comes later shares.
    """
    room = max(ring.total_bytes // ring.min_ring_bytes, 1)
    sharing = max(ring.cpus_per_ring, -(-len(online) // room))
    count = -(-len(online) // sharing)
    ring_bytes = power_of_two(min(ring.total_bytes // count, ring.max_ring_bytes))
    of_cpu = [number % count for number in range(layout.MAX_CPUS)]
    for position, number in enumerate(online):
        of_cpu[number % layout.MAX_CPUS] = position // sharing
    return RingPlan(
        count=count,
        ring_bytes=ring_bytes,
        ring_of_cpu=tuple(of_cpu),
        wake_events=power_of_two(ring_bytes // RECORD_BYTES // 4 // sharing),
        strings_bytes=power_of_two(ring.strings_bytes),
    )


def plan_here(ring: Ring) -> RingPlan:
    """The rings of this host."""
    return plan_rings(ring, cpu_numbers(ONLINE.read_text()))


def cpu_numbers(text: str) -> list[int]:
    """What a list of the kernel's (``0-3,8``) names."""
    numbers: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers
