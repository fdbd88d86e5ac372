"""``python -I -m datacrumbs.jobs.slurm_hook start|stop``: our part of Slurm's prolog and epilog.

Called by ``scheduler/slurm/{prolog,epilog}.d/50-datacrumbs`` for jobs that ask for tracing, as
root, with what Slurm says about the job in the environment.
"""

from __future__ import annotations

import os
import pwd
import re
import sys
from collections.abc import Mapping

from datacrumbs.config import SystemConfig, load_system_config
from datacrumbs.errors import BadInputError, UserError
from datacrumbs.jobs.metadata import Metadata, check_path, parse_comment
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
from datacrumbs.run import check_run_id

UNLIMITED_S = 365 * 24 * 3600
PROBE_FILE = b"SPANK_DATACRUMBS_PROBE_FILE"
"""Set by our SPANK plugin, for jobs submitted with ``--datacrumbs-probe-file``."""


def metadata(environ: Mapping[bytes, bytes]) -> Metadata | None:
    """What the job asks for, by its comment or by the plugin's options. Raises `UserError`."""
    commented = parse_comment(environ.get(b"SLURM_JOB_COMMENT", b""))
    if PROBE_FILE not in environ:
        return commented
    given = Metadata(check_path(os.fsdecode(environ[PROBE_FILE])))
    if commented and commented != given:
        raise BadInputError(
            f"--comment names {commented.probe_file}, --datacrumbs-probe-file {given.probe_file}",
            hint="name the probe file once",
        )
    return given


def start_job(environ: Mapping[bytes, bytes], config: SystemConfig) -> int:
    """The prolog; the exit code."""
    run_id = _job_id(environ)
    user = job_user(_text(environ, b"SLURM_JOB_UID"))
    try:
        wanted = metadata(environ)
        if wanted is None:
            return 0
        start(
            Job(
                run_id=run_id,
                user=user,
                probe_file=wanted.probe_file,
                source=Source.SLURM,
                cgroup=f"job_{run_id}",  # made by the job's first step, in versions 1 and 2
                attempt=_text(environ, b"SLURM_JOB_RESTART_COUNT") or "0",
                nodes=_text(environ, b"SLURM_NODELIST") or _text(environ, b"SLURM_JOB_NODELIST"),
                end_s=time_limit_end_s(environ),
            ),
            config,
        )
    except UserError as error:
        not_traced(run_id, user, config, error)
        return exit_code(config)
    return 0


def stop_job(environ: Mapping[bytes, bytes], config: SystemConfig) -> int:
    """The epilog; the exit code."""
    run_id = _job_id(environ)
    try:
        stop(run_id, config, Source.SLURM)
    except UserError as error:
        tell(run_id, _user_or_none(environ), config, error.message)
        return exit_code(config)
    return 0


def _job_id(environ: Mapping[bytes, bytes]) -> str:
    return check_run_id(_text(environ, b"SLURM_JOB_ID"), source="SLURM_JOB_ID")


def time_limit_end_s(environ: Mapping[bytes, bytes]) -> int:
    """The end of the job's time limit, in Unix seconds; 0: there is none, or none is said.

    22.05 says none, 24.11 does; of a job without a limit it says a year.
    """
    times = [_text(environ, b"SLURM_JOB_%s_TIME" % name) for name in (b"START", b"END")]
    if not all(re.fullmatch(r"[0-9]{1,18}", time) for time in times):
        return 0
    start_s, end_s = map(int, times)
    return end_s if end_s - start_s < UNLIMITED_S else 0


def _text(environ: Mapping[bytes, bytes], name: bytes) -> str:
    return environ.get(name, b"").decode(errors="replace")


def _user_or_none(environ: Mapping[bytes, bytes]) -> pwd.struct_passwd | None:
    try:
        return job_user(_text(environ, b"SLURM_JOB_UID"))
    except UserError:
        return None


def main(verb: str) -> int:
    """Do it; whatever goes wrong is told, and no reason to fail a job."""
    try:
        config = load_system_config()
        work = {"start": start_job, "stop": stop_job}[verb]
        return work(os.environb, config)
    except Exception as error:
        text = error.message if isinstance(error, UserError) else repr(error)
        to_journal(f"{verb}: {printable(text)}")
        return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
