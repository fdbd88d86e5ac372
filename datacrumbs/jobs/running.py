"""Which runs are going on on this host, and where their traces are."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from datacrumbs.config import SystemConfig
from datacrumbs.errors import BadInputError
from datacrumbs.run import check_run_id, host_name

_READY, _PREFIX = ".ready", "datacrumbs-"


def running(config: SystemConfig) -> dict[str, int]:
    """Runs that are being traced on this host: run id and the uid of its user.

    By the ready files in ``run_dir``, each of which holds the recorder's process number.
    """
    found = {}
    for path in sorted(Path(config.run_dir).glob(f"{_PREFIX}*{_READY}")):
        uid = _uid_of(path)
        if uid is not None:
            found[path.name[len(_PREFIX) : -len(_READY)]] = uid
    return found


def _uid_of(ready: Path) -> int | None:
    """The user of the process that a ready file names; None when it has ended."""
    try:
        return Path("/proc", ready.read_text().strip()).stat().st_uid
    except (OSError, ValueError):
        return None


def trace_of(run_id: str | None, config: SystemConfig) -> tuple[Path, int]:
    """The trace's directory of a run of the caller's, or of anybody's for root; and whose it is.

    Without ``run_id``, of the only one that is going on. It need not exist. To be read as its
    user, who may have put a link to something of root's there. Raises `BadInputError` when there
    is none, or more than one.
    """
    me = os.geteuid()
    mine = {run: uid for run, uid in running(config).items() if me in (0, uid)}
    if run_id is None:
        if len(mine) != 1:
            raise BadInputError(
                f"{len(mine) or 'none'} of your runs are being traced on this host",
                hint="name one: " + ", ".join(mine) if mine else "give a trace's directory",
            )
        (run_id,) = mine
    entry = pwd.getpwuid(mine.get(check_run_id(run_id), me))
    root = config.trace_root(
        user=entry.pw_name,
        home=entry.pw_dir,
        uid=entry.pw_uid,
        run_id=run_id,
        host=host_name(),
    )
    return root / run_id, entry.pw_uid
