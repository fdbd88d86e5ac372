"""Work on a host that tests let others do, in other processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from datacrumbs.trace.reader import HostTrace


def endless(host: HostTrace, progress: Callable[[int], None]) -> None:
    """Ends only when ``progress`` says so; leaves the files "began" and "ended"."""
    (host.path / "began").touch()
    try:
        while True:
            progress(1)
            time.sleep(0.01)
    finally:
        (host.path / "ended").touch()


def killed(host: HostTrace, progress: Callable[[int], None]) -> None:
    """What the kernel does when there is no memory left."""
    os.kill(os.getpid(), signal.SIGKILL)


def begun(host: HostTrace, progress: Callable[[int], None]) -> str:
    """Leaves the file "began"; fails at host n2."""
    (host.path / "began").touch()
    progress(7)
    if host.host == "n2":
        raise ValueError(host.host)
    return host.host
