"""``python -I -m datacrumbs.jobs.flux_hook start|stop``: our part of Flux's prolog and epilog.

Called by ``scheduler/flux/{prolog,epilog}.d/50-datacrumbs`` for jobs that ask for tracing, as
root, with Flux's variables in the environment, FLUX_JOB_ID in its plain form, and for ``start``
with the jobspec on standard input.
"""

from __future__ import annotations

import os
import re
import sys
import syslog
import time

from datacrumbs.config import OnError, SystemConfig, load_system_config
from datacrumbs.errors import UserError
from datacrumbs.jobs import flux
from datacrumbs.jobs.unit import (
    Job,
    Source,
    exit_code,
    job_user,
    not_traced,
    start,
    stop,
    tell,
    to_journal,
)
from datacrumbs.printable import printable
from datacrumbs.run import host_name

FIRST_S = 2.0
"""How long a node waits for the job's first one to say the same, in steps of `POLL_S`."""

POLL_S = 0.2


def start_job(config: SystemConfig) -> int:
    """The prolog; the exit code."""
    run_id = flux.f58plain(os.environ.get("FLUX_JOB_ID", ""))
    user = job_user(os.environ.get("FLUX_JOB_USERID", ""))
    try:
        wanted = flux.metadata_in(_standard_input())
        if wanted is None:
            return 0
        job = Job(
            run_id=run_id,
            user=user,
            probe_file=wanted.probe_file,
            source=Source.FLUX,
            cgroup=_cgroup(run_id),
            nodes=_node_list(run_id),
            # a job has its shell, its user's process, on each of its nodes for as long as it lives
            end_s=int(time.time()),
        )
        start(job, config)
    except UserError as error:
        not_traced(run_id, user, config, error)
        return _tell_job(run_id, config, error)
    return 0


def stop_job(config: SystemConfig) -> int:
    """The epilog; the exit code."""
    run_id = flux.f58plain(os.environ.get("FLUX_JOB_ID", ""))
    try:
        stop(run_id, config, Source.FLUX)
    except UserError as error:
        user = job_user(os.environ.get("FLUX_JOB_USERID", ""))
        tell(run_id, user, config, error.message)
        return exit_code(config)
    return 0


def _node_list(run_id: str) -> str:
    """The job's nodes; it is traced without them as well."""
    try:
        return flux.node_list(run_id)
    except UserError as error:
        to_journal(f"run {run_id}: its nodes are not known: {printable(error.message)}")
        return ""


def _cgroup(run_id: str) -> str:
    """The cgroup of the job's shell on this node, for ``select: job``, with exec.service sdexec.

    Without that service, none of this name ever comes, and none is found. Empty when Flux does
    not say which node this is.
    """
    shell = "imp-shell" if "FLUX_OWNER_USERID" in os.environ else "shell"
    try:
        return f"{shell}-{flux.broker_rank()}-{run_id}.service"
    except UserError:
        return ""


def _standard_input() -> bytes:
    data = sys.stdin.buffer.read(flux.MAX_JOBSPEC_BYTES + 1)
    if len(data) > flux.MAX_JOBSPEC_BYTES:
        raise UserError(f"the jobspec is longer than {flux.MAX_JOBSPEC_BYTES} bytes")
    return data


def _tell_job(run_id: str, config: SystemConfig, error: UserError) -> int:
    """Let the job's user know, once for each reason; the exit code.

    With ``on_error: fail`` the job gets a fatal exception instead, which does not drain the node
    as a failed prolog does; that is for when not even this can be done.
    """
    reason = printable(error.message + (f" ({error.hint})" if error.hint else ""))
    fatal = config.jobs.on_error is OnError.FAIL
    severity = flux.FATAL if fatal else flux.NOTICE
    try:
        if not _is_told(run_id, reason, wait_s=0.0 if _is_first_node() else FIRST_S):
            flux.raise_exception(run_id, severity, f"not traced on {host_name()}: {reason}")
    except UserError as problem:
        tell(run_id, None, config, f"its user was not told: {problem.message}")
        return exit_code(config)
    return 0


def _is_told(run_id: str, reason: str, *, wait_s: float) -> bool:
    """Whether a node has told the user this reason, now or before ``wait_s`` is over."""
    deadline = time.monotonic() + wait_s
    while not any(reason in note for note in flux.notes(run_id)):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


def _is_first_node() -> bool:
    """Whether this is the node of the job's lowest rank (its ranks are an idset: "3-5,9")."""
    lowest = re.match(r"\d+", os.environ.get("FLUX_JOB_RANKS", ""))
    return lowest is None or lowest[0] == flux.broker_rank()


def main(verb: str) -> int:
    """Do it; whatever goes wrong is told, and no reason to fail a job."""
    try:
        config = load_system_config()
        return {"start": start_job, "stop": stop_job}[verb](config)
    except Exception as error:
        text = printable(error.message if isinstance(error, UserError) else repr(error))
        syslog.syslog(syslog.LOG_ERR, f"datacrumbs {verb}: {text}")
        print(f"datacrumbs: {text}", file=sys.stderr)
        return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
