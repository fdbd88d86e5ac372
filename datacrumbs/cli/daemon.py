"""``datacrumbs``: the daemon of one run on one node."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from datacrumbs.cli.app import command
from datacrumbs.config import load_system_config
from datacrumbs.nodelist import checked
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
@click.option(
    "--node-list",
    default="",
    envvar="DATACRUMBS_JOB_NODES",
    show_envvar=True,
    metavar="NODES",
    help='The job\'s nodes, for whoever reads the trace: "node[1-4]".',
)
@click.option(
    "--end",
    type=click.IntRange(min=0),
    default=0,
    envvar="DATACRUMBS_JOB_END",
    show_envvar=True,
    metavar="SECONDS",
    help="The Unix time at which the job's time limit is over. After that, and when no process of "
    "its user has been here for `jobs.abandoned_after_s`, the run ends by itself.",
)
def main(
    *,
    probe_file: Path,
    run_id: str | None,
    config: Path | None,
    cgroup: Path | None,
    uid: int | None,
    node_list: str,
    end: int,
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
    from datacrumbs.tracer.job import Job

    run = check_run_id(run_id) if run_id else default_run_id()
    site = load_system_config(config)
    job = Job(uid=uid, cgroup=cgroup, nodes=checked(node_list), end_s=end)
    sys.exit(run_daemon(probe_file, run, config=site, job=job))
