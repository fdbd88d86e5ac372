"""What wakes the daemon: a ring that fills, a signal, or time."""

from __future__ import annotations

import ctypes
import os
import select
from collections.abc import Collection, Iterable
from typing import Any

SIGINFO_BYTES = 128  # struct signalfd_siginfo; it begins with the signal's number
SIGSET_BYTES = 128  # sigset_t of glibc and musl


class Waker:
    """Sleeps until a BPF program wakes one of ``rings``, or one of ``signals`` comes.

    ``rings`` are descriptors of ring buffers, which stay the caller's and open. The signals must
    be blocked in all threads; one that has come before is not missed.
    """

    def __init__(self, rings: Iterable[int], signals: Collection[int]) -> None:
        self._signals = _signal_fd(signals)
        self._epoll = select.epoll()
        self._epoll.register(self._signals, select.EPOLLIN)
        # edge triggered: told when a program wakes it, not for as long as there is something
        for fd in rings:
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)

    def wait(self, timeout_s: float) -> tuple[set[int], set[int]]:
        """The descriptors of rings that woke us and the signals that came; at the latest after
        ``timeout_s``, then possibly none.
        """
        woken = {fd for fd, _ in self._epoll.poll(max(timeout_s, 0))}
        signals = self._take_signals() if self._signals in woken else set()
        return woken - {self._signals}, signals

    def _take_signals(self) -> set[int]:
        infos = os.read(self._signals, 16 * SIGINFO_BYTES)
        heads = range(0, len(infos), SIGINFO_BYTES)
        return {int.from_bytes(infos[at : at + 4], "little") for at in heads}

    def close(self) -> None:
        """Give its own descriptors back."""
        self._epoll.close()
        os.close(self._signals)


def _signal_fd(signals: Collection[int]) -> int:
    """signalfd(2), which Python has no function for."""
    libc: Any = ctypes.CDLL(None, use_errno=True)
    wanted = ctypes.create_string_buffer(SIGSET_BYTES)
    libc.sigemptyset(wanted)
    for number in signals:
        libc.sigaddset(wanted, int(number))
    fd = libc.signalfd(-1, wanted, os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "signalfd: " + os.strerror(ctypes.get_errno()))
    return int(fd)
