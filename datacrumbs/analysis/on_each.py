"""The same work on each host: here, on this machine's processors, or on a cluster.

What comes back is the same wherever it was done: one piece of work for each host, taken in the
order of the hosts. Only a few are done ahead of the one that is due, so that what waits here is
little, however many hosts there are.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Protocol, TypeVar

from datacrumbs.errors import UserError
from datacrumbs.trace.reader import HostTrace

WORTH_WORKERS = 1_000_000
"""Of fewer events all hosts are read here: a worker takes half a second to start."""

MOST_WORKERS = 4
"""Each takes up to a gigabyte: more are for a cluster, which may be of this machine alone."""

AHEAD = 4
"""How many hosts for each processor are worked on, or done and waiting for their turn."""

T = TypeVar("T")
F = TypeVar("F")
Progress = Callable[[int], None]
"""Called with how many more events are done."""


class Cluster(Protocol):
    """Other machines that do the work (`datacrumbs.analysis.cluster`)."""

    def on_each(
        self, hosts: Sequence[HostTrace], works: Iterable[Callable[..., T]], progress: Progress
    ) -> Iterator[T]:
        """As the function of that name."""
        ...


def on_each(
    hosts: Sequence[HostTrace],
    works: Iterable[Callable[..., T]],
    progress: Progress | None = None,
    cluster: Cluster | None = None,
) -> Iterator[T]:
    """What each of ``works`` gives for its host, in the order of ``hosts``.

    Each is called with the host and a ``progress`` to call. Both and what comes back get pickled:
    keep them small. Raises what they raise, and `UserError` when a process that works is killed.
    """
    told = progress or (lambda _: None)
    workers = min(len(hosts), len(os.sched_getaffinity(0)), MOST_WORKERS)
    if cluster is not None:
        yield from cluster.on_each(hosts, works, told)
    elif workers < 2 or sum(host.about() for host in hosts) < WORTH_WORKERS:
        for host, work in zip(hosts, works, strict=True):
            yield work(host, progress=told)
    else:
        yield from _beside(hosts, works, told, workers)


def in_turn(
    hosts: Iterable[HostTrace],
    works: Iterable[Callable[..., T]],
    submit: Callable[[HostTrace, Callable[..., T]], F],
    most: Callable[[], int],
) -> Iterator[F]:
    """Submits work; gives back what ``submit`` gave, in order, ``most()`` of them ahead."""
    waiting: deque[F] = deque()
    for host, work in zip(hosts, works, strict=True):
        waiting.append(submit(host, work))
        if len(waiting) > most():
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def _beside(
    hosts: Sequence[HostTrace],
    works: Iterable[Callable[..., T]],
    progress: Progress,
    workers: int,
) -> Iterator[T]:
    """Side by side, in processes of their own."""
    context = multiprocessing.get_context("spawn")  # fork is not safe beside pyarrow's threads
    told, tell = context.Pipe(duplex=False)
    listener = threading.Thread(target=_listen, args=(told, progress), daemon=True)
    listener.start()
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(tell,))
    try:
        for future in in_turn(hosts, works, partial(_submit, pool), lambda: AHEAD * workers):
            yield future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a process that read the trace was killed",
            hint="is there enough memory? taskset -c 0 in front of the command reads one host "
            "after the other",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        tell.close()  # which was the last one
        listener.join()


def _submit(pool: ProcessPoolExecutor, host: HostTrace, work: Callable[..., T]) -> Future[T]:
    with _hidden_main():  # it may start a process
        return pool.submit(_work, host, work)


@contextlib.contextmanager
def _hidden_main() -> Iterator[None]:
    """A process that starts now does not first run the program that called us once more.

    So a script of two lines needs no ``if __name__ == "__main__"``.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _listen(told: Connection, progress: Progress) -> None:
    with contextlib.suppress(EOFError):
        while True:
            progress(told.recv())


_tell: Connection


def _begin(tell: Connection) -> None:
    """In a process of the pool, before all else."""
    global _tell
    _tell = tell
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback


def _work(host: HostTrace, work: Callable[..., T]) -> T:
    # all write to one pipe; no lock, which one that is killed would keep: a number is one write
    return work(host, progress=_tell.send)
