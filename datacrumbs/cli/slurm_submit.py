"""``datacrumbs_sbatch`` and ``datacrumbs_salloc``: Slurm's commands, for a job to be traced."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import NoReturn

import click

from datacrumbs.cli.app import command
from datacrumbs.config import load_system_config
from datacrumbs.errors import BadInputError, UserError
from datacrumbs.jobs.metadata import check_path
from datacrumbs.jobs.slurm_submit import (
    Submission,
    keep_standard_input,
    options_of,
    read_script,
    script_comment,
    take_apart,
)
from datacrumbs.probes.file import load_verified, read_probe_file

_SETTINGS = {"ignore_unknown_options": True, "allow_interspersed_args": False}


def _options(function: click.decorators.FC) -> click.decorators.FC:
    file = click.option(
        "--datacrumbs-probe-file",
        metavar="FILE",
        help="Trace the job as this probe file of yours says.",
    )
    enable = click.option(
        "--datacrumbs-enable",
        is_flag=True,
        help="Trace the job; needs a probe file, and is meant by one.",
    )
    rest = click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="ARGUMENTS...")
    return file(enable(rest(function)))


@command("datacrumbs_sbatch", context_settings=_SETTINGS)
@_options
def sbatch(
    datacrumbs_probe_file: str | None, datacrumbs_enable: bool, arguments: tuple[str, ...]
) -> None:
    """Submit a batch job to Slurm that is traced on all its nodes.

    All ARGUMENTS are sbatch's. What the daemons need to know is added to the job's comment; a
    comment that you give, here or in an #SBATCH line, is kept. The probe file is checked first.
    The programs of the job join by themselves where the site has set that up; else start them
    with datacrumbs_wrap. Where Slurm has the SPANK plugin of datacrumbs, plain sbatch, salloc and
    srun know the two options as well.

    \b
    Examples:
      datacrumbs_sbatch --datacrumbs-probe-file probes.json.gz -N4 job.sh
      datacrumbs_sbatch --datacrumbs-probe-file=probes.json.gz --comment nightly job.sh --steps 9
    """
    _submit("sbatch", datacrumbs_probe_file, datacrumbs_enable, arguments)


@command("datacrumbs_salloc", context_settings=_SETTINGS)
@_options
def salloc(
    datacrumbs_probe_file: str | None, datacrumbs_enable: bool, arguments: tuple[str, ...]
) -> None:
    """Allocate nodes of Slurm on which the job's steps are traced.

    All ARGUMENTS are salloc's. What the daemons need to know is added to the job's comment; a
    comment that you give is kept. The probe file is checked first. Each srun within is traced.

    \b
    Examples:
      datacrumbs_salloc --datacrumbs-probe-file probes.json.gz -N4 srun ./simulate
    """
    _submit("salloc", datacrumbs_probe_file, datacrumbs_enable, arguments)


def _submit(slurm: str, file: str | None, enabled: bool, arguments: tuple[str, ...]) -> NoReturn:
    program = shutil.which(slurm)
    if program is None:
        raise UserError(f"{slurm} is not on PATH", hint="is this a login node of Slurm?")
    options = options_of(program)
    submission = take_apart(arguments, options)
    file = submission.probe_file or file
    if file is None:
        if enabled or submission.enabled:
            raise BadInputError("--datacrumbs-enable: add --datacrumbs-probe-file FILE")
        os.execv(program, [slurm, *arguments])
    path = _checked(file)
    script = _script(submission) if slurm == "sbatch" else b""
    words = submission.with_comment(path, script_comment(script, options))
    os.execv(program, [slurm, *words])


def _script(submission: Submission) -> bytes:
    if submission.rest:
        return read_script(submission.rest)
    if submission.components[0].wraps or sys.stdin.isatty():
        return b""
    data = sys.stdin.buffer.read()
    keep_standard_input(data)
    return data


def _checked(file: str) -> str:
    """The probe file's absolute path, if the job's daemons would take it."""
    path = check_path(os.path.abspath(file))  # noqa: PTH100 (links are kept: they are the user's)
    config = load_system_config()
    keys_dir = Path(config.keys.public_dir)
    if not keys_dir.is_dir():  # not a host that verifies
        read_probe_file(Path(path), max_bytes=config.limits.probe_file_bytes)
        return path
    from datacrumbs.signing.keys import load_public_keys

    load_verified(
        Path(path),
        public_keys=load_public_keys(keys_dir),
        keys_dir=keys_dir,
        max_bytes=config.limits.probe_file_bytes,
        now=time.time(),
        cluster=config.cluster,
        machine=platform.machine(),
        expect_user_uid=os.getuid(),
    )
    return path
