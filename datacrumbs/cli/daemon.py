"""``datacrumbs``: the daemon of one run on one node."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from datacrumbs.cli.app import command
from datacrumbs.config import load_system_config
from datacrumbs.run import check_run_id, default_run_id


@command("datacrumbs")
@click.argument("probe_file", type=click.Path(path_type=Path))
@click.argument("run_id", required=False)
@click.option("--config", type=click.Path(path_type=Path), help="Another system.yaml.")
@click.option(
    "--cgroup",
    type=click.Path(path_type=Path),
    envvar="DATACRUMBS_JOB_CGROUP",
    show_envvar=True,
    metavar="DIRECTORY|NAME",
    help="The job's cgroup, for layers with `select: job`: its directory (version 2), or the last "
    "part of its name (any hierarchy; it may come later).",
)
@click.option(
    "--uid",
    type=click.IntRange(min=0),
    envvar="DATACRUMBS_JOB_UID",
    show_envvar=True,
    help="The job's user: a probe file made for anybody else is refused.",
)
def main(
    probe_file: Path, run_id: str | None, config: Path | None, cgroup: Path | None, uid: int | None
) -> None:
    """Trace the run RUN_ID as the signed PROBE_FILE says, until SIGTERM or SIGINT.

    Needs root; writes the trace as the probe file's user. RUN_ID defaults to the value of the
    variable that DATACRUMBS_JOB_ID_VAR names, else to the time. SIGUSR1 asks for a status line.

    \b
    Examples:
      datacrumbs probes.json.gz my-run
      systemctl start datacrumbs@my-run
    """
    from datacrumbs.tracer import signals

    signals.hold()
    from datacrumbs.tracer.daemon import run_daemon

    run = check_run_id(run_id) if run_id else default_run_id()
    site = load_system_config(config)
    sys.exit(run_daemon(probe_file, run, config=site, uid=uid, cgroup=cgroup))
