"""Work ahead: the next items of an iterator are made on another thread meanwhile."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

AHEAD = 2
"""How many items wait, at most."""


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items. An exception of theirs is raised here; the thread ends with us."""
    waiting: queue.Queue[T | _End] = queue.Queue(AHEAD)
    stopped = threading.Event()
    thread = threading.Thread(target=_fill, args=(items, waiting, stopped), daemon=True)
    thread.start()
    try:
        while not isinstance(item := waiting.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stopped.set()
        while thread.is_alive():
            _drain(waiting)
            thread.join(0.01)


class _End:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def _fill(items: Iterable[T], waiting: queue.Queue[T | _End], stopped: threading.Event) -> None:
    error: BaseException | None = None
    try:
        for item in items:
            if stopped.is_set():
                return
            waiting.put(item)
    except BaseException as caught:  # raised where the items are used
        error = caught
    waiting.put(_End(error))


def _drain(waiting: queue.Queue[T | _End]) -> None:
    try:
        while True:
            waiting.get_nowait()
    except queue.Empty:
        return
