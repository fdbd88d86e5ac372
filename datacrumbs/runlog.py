"""The log of one run on one host: root opens it, its user owns it."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from pwd import struct_passwd

from datacrumbs.errors import UserError
from datacrumbs.printable import printable
from datacrumbs.run import host_name, make_public_dir

STANDARD_ERROR = 2


@dataclass(slots=True)
class Log:
    """Standard error (under systemd: the journal) and, once it is open, the run's log file."""

    prefix: str
    fd: int = -1

    def open(self, log_dir: Path, user: struct_passwd, run_id: str) -> None:
        """Append to ``<log_dir>/datacrumbs_<user>_<run-id>_<host>.log`` from now on.

        Says so when that cannot be, and goes on with standard error alone.
        """
        path = log_dir / f"datacrumbs_{user.pw_name}_{run_id}_{host_name()}.log"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            make_public_dir(log_dir)
            self.fd = _open(path, flags, user.pw_uid)
            # user "a_b" with run "c" and user "a" with run "b_c" have one name
            if os.fstat(self.fd).st_uid not in (0, user.pw_uid):
                raise UserError(f"{path}: the log of somebody else")
            os.fchown(self.fd, user.pw_uid, user.pw_gid)
        except (OSError, UserError) as error:
            self.close()
            why = error.message if isinstance(error, UserError) else f"{path}: {error.strerror}"
            self.say(f"{why}; logging to standard error only")

    def close(self) -> None:
        """Go on with standard error alone."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def say(self, text: str) -> None:
        """One line to both, printable: what users name forges no line of its own."""
        line = f"{self.prefix}: {printable(text)}\n".encode(errors="backslashreplace")
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z ").encode()
        # a full disk or a terminal that has gone stops no tracing
        with contextlib.suppress(OSError):
            os.write(STANDARD_ERROR, line)
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                os.write(self.fd, stamp + line)


def _open(path: Path, flags: int, uid: int) -> int:
    """Root opens the log; the one an earlier run of a requeued job left is for its user to open.

    The unit's root may not write to other users' files.
    """
    try:
        return os.open(path, flags, 0o600)
    except PermissionError:
        os.seteuid(uid)
        try:
            return os.open(path, flags & ~os.O_CREAT)
        finally:
            os.seteuid(0)
