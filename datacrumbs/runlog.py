"""The log of one run on one host: root opens it, its user owns it."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from pwd import struct_passwd

from datacrumbs.run import host_name, make_public_dir


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
            self.fd = os.open(path, flags, 0o600)
            os.fchown(self.fd, user.pw_uid, user.pw_gid)
        except OSError as error:
            self.say(f"{path}: {error.strerror}; logging to standard error only")

    def say(self, text: str) -> None:
        """One line to both."""
        line = f"{self.prefix}: {text}\n"
        sys.stderr.write(line)
        sys.stderr.flush()
        if self.fd >= 0:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z ")
            with contextlib.suppress(OSError):  # a full disk stops no tracing
                os.write(self.fd, (stamp + line).encode(errors="backslashreplace"))
