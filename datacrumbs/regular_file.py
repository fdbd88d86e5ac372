"""Opening files that somebody else chose, by name, without acting on anything but a file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from datacrumbs.errors import BadInputError


def open_regular(path: Path | str) -> int:
    """A descriptor of the regular file ``path``, for reading.

    What the name leads to is looked at before it is opened: to open a device can act on it (a
    watchdog starts to count, a tape rewinds), and root may open every one. Raises `OSError`,
    or `BadInputError` when it is not a regular file.
    """
    found = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise BadInputError(f"{path}: not a regular file")
        # the same file, whatever the name leads to by now
        return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(found)
