"""What the daemon is told about the run's job, and how a job ends whose end nobody tells.

A scheduler's epilog stops the run. Where that never comes (slurmd or the Flux broker died, the
node was given up), a daemon must not stay for good: probes slow the node down for everybody.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from datacrumbs.config import SystemConfig

LOOK_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run's job, as far as it is known.

    ``uid``: its user; ``cgroup``: a directory or the last part of a name; ``nodes``: a node list;
    ``end_s``: the Unix time at which its time limit is over, 0 when there is none.
    """

    uid: int | None = None
    cgroup: Path | None = None
    nodes: str = ""
    end_s: int = 0


class End:
    """Whether the job must be over: its time is, and its user has left the node.

    Both, because a job may be given more time after its start, and may do nothing for long.
    ``look_at``: when to ask next, on the monotonic clock.
    """

    def __init__(self, uid: int, end_s: int, config: SystemConfig) -> None:
        self._uid, self._end_s = uid, end_s
        self._run_dir, self._alone_s = Path(config.run_dir), config.jobs.abandoned_after_s
        self._step_s = min(LOOK_S, self._alone_s / 4)
        self._seen_at = self.look_at = time.monotonic()
        if not end_s or not self._alone_s:
            self.look_at = float("inf")

    def has_come(self, now: float) -> bool:
        """Look; ``now`` is on the monotonic clock."""
        self.look_at = now + self._step_s
        if time.time() < self._end_s or is_here(self._uid, self._run_dir):
            self._seen_at = now
        return now - self._seen_at >= self._alone_s

    def why(self) -> str:
        """For the log."""
        return (
            f"no process of its user has been here for {self._alone_s} s, its job must be over, "
            "and nobody has ended the run: it ends"
        )


def is_here(uid: int, run_dir: Path) -> bool:
    """Whether a process of ``uid`` is on this node, besides daemons of ours."""
    ours = {str(os.getpid())}
    for ready in run_dir.glob("datacrumbs-*.ready"):
        with contextlib.suppress(OSError):
            ours.add(ready.read_text().strip())
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and entry.name not in ours:
            with contextlib.suppress(OSError):  # it has ended
                if entry.stat().st_uid == uid:
                    return True
    return False
