"""Run ids, host names and the files of a run below the run directory."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from datacrumbs.errors import BadInputError, UserError

RUN_ID_MAX = 63
_RUN_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")

RUN_ID_VARIABLES = ("DATACRUMBS_RUN_ID", "FLUX_JOB_ID", "SLURM_JOB_ID")
"""Where a program's run id is looked for, in this order (``client.c`` does the same)."""


def check_run_id(run_id: str, *, source: str = "run id") -> str:
    """Return ``run_id`` if it may name files and units, else raise `BadInputError`.

    It holds 1 to 63 of ``A-Z a-z 0-9 . _ -`` and does not start with a dot, so it can
    never be a path or a hidden file.
    """
    if len(run_id) > RUN_ID_MAX or not _RUN_ID.fullmatch(run_id):
        raise BadInputError(
            f"{source}: {run_id[:80]!r} is not a run id",
            hint=f"use 1 to {RUN_ID_MAX} of A-Z a-z 0-9 . _ - and do not start with a dot",
        )
    return run_id


def default_run_id(environ: Mapping[str, str] = os.environ) -> str:
    """The run id of a daemon that was given none.

    The variable that ``DATACRUMBS_JOB_ID_VAR`` names, if that is set; else the local time.
    """
    variable = environ.get("DATACRUMBS_JOB_ID_VAR")
    if variable:
        value = environ.get(variable)
        if not value:
            raise BadInputError(
                f"DATACRUMBS_JOB_ID_VAR names {variable!r}, which is not set",
                hint=f"set {variable}, or give the run id as the second argument",
            )
        return check_run_id(_plain(value), source=variable)
    return time.strftime("%Y%m%d-%H%M%S") + f"-{os.getpid()}"


def program_run_id(environ: Mapping[str, str] = os.environ) -> tuple[str, str] | None:
    """The run a program joins, as (run id, variable it came from); None without one."""
    for variable in RUN_ID_VARIABLES:
        value = environ.get(variable)
        if value:
            return check_run_id(_plain(value), source=variable), variable
    return None


def _plain(run_id: str) -> str:
    """Flux writes its ids with U+0192 ("f" with a hook) in some locales and "f" in others."""
    return "f" + run_id[1:] if run_id.startswith("\u0192") else run_id


def host_name() -> str:
    """This host's name without its domain, as the trace's ``host=`` partition has it."""
    return socket.gethostname().split(".", 1)[0]


def ready_file(run_dir: Path, run_id: str) -> Path:
    """The file that exists while the run's daemon is tracing."""
    return run_dir / f"datacrumbs-{run_id}.ready"


def lock_file(run_dir: Path, run_id: str) -> Path:
    """The file whose lock the run's daemon holds, so that an id is never used twice at once."""
    return run_dir / f"datacrumbs-{run_id}.lock"


def make_public_dir(path: Path) -> None:
    """Make sure of a directory that everybody may look into and only root may write.

    Raises `UserError` when others may, and OSError.
    """
    if not path.exists():
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o755)  # whatever the umask took away
    status = path.stat()
    if status.st_uid != 0 or status.st_mode & 0o022:
        raise UserError(
            f"{path}: others than root can write there",
            hint=f"chown root {path} && chmod 755 {path}",
        )


def make_run_dir(run_dir: Path) -> None:
    """Make sure of the run directory, or raise `UserError`."""
    try:
        make_public_dir(run_dir)
    except OSError as error:
        raise UserError(
            f"{run_dir}: {error.strerror}", hint="set run_dir in system.yaml"
        ) from error


def env_file(run_dir: Path, run_id: str) -> Path:
    """What the run's unit is started with: named values, written by root."""
    return run_dir / f"datacrumbs-{run_id}.env"


def probes_file(run_dir: Path, run_id: str) -> Path:
    """Root's copy of a job's probe file."""
    return run_dir / f"datacrumbs-{run_id}.probes"


def failed_file(run_dir: Path, run_id: str) -> Path:
    """Why a job is not traced on this host: one line of root's, which the job's user may read."""
    return run_dir / f"datacrumbs-{run_id}.failed"
