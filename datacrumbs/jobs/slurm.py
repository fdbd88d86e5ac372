"""What Slurm knows about a job: for users' commands, never for a hook."""

from __future__ import annotations

import importlib
import json
import subprocess
from dataclasses import dataclass
from typing import Any

from datacrumbs.errors import UserError

TIMEOUT_S = 30

_ID_END = 1 << 32
_INVALID_JOB_ID = 2017  # slurm_errno.h


@dataclass(frozen=True, slots=True)
class SlurmJob:
    """A job of Slurm's; ``nodes`` is a node set such as ``n[1-3]``, empty before it starts."""

    job_id: int
    user: str
    state: str
    nodes: str
    comment: str


def look_up(job_id: int) -> SlurmJob:
    """Ask Slurm about a job. Raises `UserError` when it has none of that id, or cannot be asked.

    Through pyslurm where it can be imported (it fits one release of Slurm exactly), else through
    ``scontrol show job --json``, which Slurm has from 23.02 on.
    """
    if not 0 < job_id < _ID_END:
        raise _no_such_job(job_id)
    try:
        pyslurm = importlib.import_module("pyslurm")
    except ImportError:
        return _by_scontrol(job_id)
    return _by_pyslurm(pyslurm, job_id)


def _by_pyslurm(pyslurm: Any, job_id: int) -> SlurmJob:
    try:
        job = pyslurm.Job.load(job_id)
    except pyslurm.RPCError as error:
        if error.errno == _INVALID_JOB_ID:
            raise _no_such_job(job_id) from error
        raise UserError(f"job {job_id}: {error}", hint="is slurmctld running?") from error
    return SlurmJob(
        job_id=int(job.id),
        user=job.user_name or "",
        state=job.state or "",
        nodes=job.allocated_nodes or "",
        comment=job.comment or "",
    )


def _by_scontrol(job_id: int) -> SlurmJob:
    command = ["scontrol", "show", "job", str(job_id), "--json"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{' '.join(command)}: {error}", hint="is Slurm installed here?") from error
    if done.returncode:
        said = done.stderr.strip().partition("\n")[0]
        raise UserError(
            f"{' '.join(command)}: {said}",
            hint="--json needs Slurm 23.02 and its serializer plugin; else install pyslurm",
        )
    return job_in(done.stdout, job_id)


def job_in(answer: str, job_id: int) -> SlurmJob:
    """The job in an answer of ``scontrol show job --json``."""
    try:
        jobs = json.loads(answer)["jobs"]
        found = next((job for job in jobs if job["job_id"] == job_id), None)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"job {job_id}: scontrol's answer is not understood: {error!r}") from error
    if found is None:
        raise _no_such_job(job_id)
    state = found.get("job_state", "")  # a list of flags since 23.11
    return SlurmJob(
        job_id=job_id,
        user=found.get("user_name", ""),
        state=state if isinstance(state, str) else ",".join(state),
        nodes=found.get("nodes", ""),
        comment=found.get("comment", ""),
    )


def _no_such_job(job_id: int) -> UserError:
    return UserError(f"Slurm has no job {job_id}", hint="squeue lists the jobs")
