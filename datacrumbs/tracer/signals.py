"""The signals that a daemon waits for. Imports nothing, so that they can be blocked first."""

from __future__ import annotations

import signal

WAKE = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}
"""End (the first two), and say the status."""


def hold() -> None:
    """Keep `WAKE` pending from now on, in this thread and those that it starts.

    To be called before numpy is imported: that starts threads, and a thread which does not
    block SIGTERM lets it end the process half way, with files left behind.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, WAKE)
