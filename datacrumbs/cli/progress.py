"""A progress bar on the terminal of whoever waits for longer than two seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE_S = 2.0


@contextmanager
def progress(what: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Gives a function to call with how much more of ``total`` is done.

    Shows nothing when ``quiet``, on a standard error that is no terminal, and in the first
    `PATIENCE_S`; what it showed is gone at the end.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    bar = _Bar(what, total)
    try:
        yield bar.advance
    finally:
        bar.stop()


class _Bar:
    def __init__(self, what: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._progress = Progress(console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task(what, total=total)
        self._begin = time.monotonic()
        self._shown = False

    def advance(self, amount: int) -> None:
        self._progress.advance(self._task, amount)
        if not self._shown and time.monotonic() - self._begin > PATIENCE_S:
            self._progress.start()
            self._shown = True

    def stop(self) -> None:
        if self._shown:
            self._progress.stop()
