"""What wakes the daemon. Pipes stand for rings: they are told of in the same way."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from datacrumbs.tracer.signals import WAKE
from datacrumbs.tracer.waker import Waker

LONG_S = 30.0


@pytest.fixture(autouse=True)
def held() -> Iterator[None]:
    """Signals stay pending, as in the daemon; none is left behind."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, WAKE)
    yield
    while signal.sigtimedwait(WAKE, 0):
        continue
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def send(number: signal.Signals) -> None:
    """To this thread: other tests may have left some in which signals are not held."""
    signal.pthread_kill(threading.get_ident(), number)


def test_a_signal_that_came_before_is_not_missed() -> None:
    send(signal.SIGTERM)
    with closing(Waker([], WAKE)) as waker:
        assert waker.wait(LONG_S) == (set(), {signal.SIGTERM})
        assert waker.wait(0) == (set(), set())


def test_signals_that_come_together_are_all_told() -> None:
    with closing(Waker([], WAKE)) as waker:
        send(signal.SIGUSR1)
        send(signal.SIGTERM)
        assert waker.wait(LONG_S) == (set(), {signal.SIGUSR1, signal.SIGTERM})


def test_nothing_wakes_before_the_time_is_over(pipe: tuple[int, int]) -> None:
    with closing(Waker([pipe[0]], WAKE)) as waker:
        start = time.monotonic()
        assert waker.wait(0.05) == (set(), set())
        assert time.monotonic() - start >= 0.05
        assert waker.wait(-1) == (set(), set())  # already late: not for ever


def test_a_ring_wakes_once_for_what_is_in_it(pipe: tuple[int, int]) -> None:
    with closing(Waker([pipe[0]], WAKE)) as waker:
        os.write(pipe[1], b"x")
        assert waker.wait(LONG_S) == ({pipe[0]}, set())
        assert waker.wait(0) == (set(), set())
        os.write(pipe[1], b"x")
        assert waker.wait(LONG_S) == ({pipe[0]}, set())


def test_a_ring_wakes_who_sleeps(pipe: tuple[int, int]) -> None:
    with closing(Waker([pipe[0]], WAKE)) as waker:
        later = threading.Timer(0.1, os.write, (pipe[1], b"x"))
        later.start()
        start = time.monotonic()
        assert waker.wait(LONG_S) == ({pipe[0]}, set())
        assert time.monotonic() - start < LONG_S / 2
        later.join()


def test_a_signal_is_told_however_many_rings_wake() -> None:
    pipes = [os.pipe() for _ in range(100)]
    with closing(Waker([read for read, _ in pipes], WAKE)) as waker:
        for _, write in pipes:
            os.write(write, b"x")
        send(signal.SIGTERM)
        assert waker.wait(LONG_S) == ({read for read, _ in pipes}, {signal.SIGTERM})
    for ends in pipes:
        for fd in ends:
            os.close(fd)


def test_its_descriptors_are_given_back(pipe: tuple[int, int]) -> None:
    before = os.listdir("/proc/self/fd")
    Waker([pipe[0]], WAKE).close()
    assert os.listdir("/proc/self/fd") == before
