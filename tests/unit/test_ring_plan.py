"""How many rings, how large, and which CPU has which."""

from __future__ import annotations

import pytest

from datacrumbs.config import Ring
from datacrumbs.tracer import layout
from datacrumbs.tracer.ring_plan import RECORD_BYTES, cpu_numbers, plan_here, plan_rings

MIB = 1 << 20


@pytest.mark.parametrize(
    ("cpus", "count", "each_mib"),
    [(1, 1, 16), (2, 2, 16), (32, 32, 16), (33, 33, 8), (128, 128, 4), (256, 256, 2)],
)
def test_by_default_each_cpu_has_a_ring(cpus: int, count: int, each_mib: int) -> None:
    plan = plan_rings(Ring(), range(cpus))
    assert (plan.count, plan.ring_bytes) == (count, each_mib * MIB)
    assert plan.ring_of_cpu[:cpus] == tuple(range(cpus))
    assert plan.events_bytes <= Ring().total_bytes


@pytest.mark.parametrize(
    ("cpus", "total_mib", "count", "each_mib"),
    [(512, 512, 256, 2), (300, 512, 150, 2), (128, 128, 64, 2), (128, 100, 43, 2), (4, 1, 1, 1)],
)
def test_cpus_share_rather_than_have_too_small_ones(
    cpus: int, total_mib: int, count: int, each_mib: int
) -> None:
    ring = Ring(total_bytes=total_mib * MIB)
    plan = plan_rings(ring, range(cpus))
    assert (plan.count, plan.ring_bytes) == (count, each_mib * MIB)
    assert plan.events_bytes <= ring.total_bytes
    assert set(plan.ring_of_cpu) == set(range(count))


def test_an_administrator_may_ask_for_more_and_for_sharing() -> None:
    more = plan_rings(Ring(total_bytes=4096 * MIB, max_ring_bytes=64 * MIB), range(128))
    assert (more.count, more.ring_bytes) == (128, 32 * MIB)
    shared = plan_rings(Ring(cpus_per_ring=4), range(10))
    assert shared.count == 3
    assert shared.ring_of_cpu[:10] == (0, 0, 0, 0, 1, 1, 1, 1, 2, 2)


def test_cpus_that_do_not_run_have_no_ring_of_their_own() -> None:
    """Every second thread of a core switched off, and room for more CPUs to be added."""
    plan = plan_rings(Ring(), range(0, 16, 2))
    assert plan.count == 8
    assert [plan.ring_of_cpu[number] for number in range(0, 16, 2)] == list(range(8))
    assert len(plan.ring_of_cpu) == layout.MAX_CPUS
    assert max(plan.ring_of_cpu) == 7


@pytest.mark.parametrize("cpus_per_ring", [1, 3, 64])
def test_all_cpus_of_a_ring_wake_before_more_than_a_quarter_is_full(cpus_per_ring: int) -> None:
    plan = plan_rings(Ring(cpus_per_ring=cpus_per_ring), range(64))
    kept = cpus_per_ring * plan.wake_events * RECORD_BYTES
    assert plan.ring_bytes / 16 <= kept <= plan.ring_bytes / 4
    for number in (plan.wake_events, plan.wake_strings, plan.strings_bytes, plan.ring_bytes):
        assert number & (number - 1) == 0


def test_of_the_smallest_rings_every_event_wakes() -> None:
    smallest = Ring(total_bytes=MIB, min_ring_bytes=1 << 16, max_ring_bytes=1 << 16)
    assert plan_rings(smallest, range(64)).wake_events == 32
    assert plan_rings(smallest, range(layout.MAX_CPUS * 4)).wake_events == 1


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0\n", [0]), ("0-3\n", [0, 1, 2, 3]), ("0-1,4,8-9\n", [0, 1, 4, 8, 9])],
)
def test_lists_of_cpus_as_the_kernel_writes_them(text: str, numbers: list[int]) -> None:
    assert cpu_numbers(text) == numbers


def test_this_host_has_rings() -> None:
    plan = plan_here(Ring())
    constants = layout.Config()
    plan.tell(constants)
    assert plan.count >= 1
    assert tuple(constants.ring_of_cpu) == plan.ring_of_cpu
    assert (constants.wake_events, constants.wake_strings) == (
        plan.wake_events,
        plan.wake_strings,
    )
