"""A progress bar on the terminal of whoever waits for longer than two seconds."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

PATIENCE_S = 2.0


@contextmanager
def progress(
    what: str, total: int | None, *, quiet: bool = False
) -> Iterator[Callable[[int], None]]:
    """Gives a function to call, on any thread, with how much more of ``total`` is done.

    Without a ``total``, which is not known then, the bar shows only that it goes on.

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
    def __init__(self, what: str, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._progress = Progress(console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task(what, total=total)
        self.advance = partial(self._progress.advance, self._task)
        self._showing = threading.Timer(PATIENCE_S, self._progress.start)
        self._showing.daemon = True
        self._showing.start()

    def stop(self) -> None:
        self._showing.cancel()
        self._showing.join()  # it may just be starting
        if self._progress.live.is_started:
            self._progress.stop()
