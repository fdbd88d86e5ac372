"""A progress bar on standard error, for what takes longer than people wait in silence."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SILENT_S = 2.0
"""Nothing is shown before this time, so that quick work shows nothing at all."""


@contextmanager
def progress(what: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Gives a function to call with how many of ``total`` have been done since the last call.

    The bar appears on a terminal only, and is gone at the end.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    bar = Progress(
        BarColumn(), MofNCompleteColumn(), what, TimeRemainingColumn(),
        console=Console(stderr=True), transient=True, disable=False,
    )  # fmt: skip
    task = bar.add_task(what, total=total)
    begin = time.monotonic()

    def advance(count: int) -> None:
        if not bar.live.is_started and time.monotonic() > begin + SILENT_S:
            bar.start()
        bar.advance(task, count)

    try:
        yield advance
    finally:
        bar.stop()
