"""``datacrumbs_service_wrapper``: what the hooks of a scheduler do, without a scheduler."""

from __future__ import annotations

import os
import pwd
import time

import click

from datacrumbs.cli.app import command
from datacrumbs.config import load_system_config
from datacrumbs.errors import BadInputError, UserError
from datacrumbs.jobs import unit
from datacrumbs.jobs.metadata import check_path
from datacrumbs.jobs.unit import Source
from datacrumbs.run import check_run_id


@command("datacrumbs_service_wrapper")
@click.argument("action", type=click.Choice(["start", "stop"]))
@click.argument("job")
@click.argument("user")
@click.argument("probe_file", required=False)
@click.option(
    "--node-list",
    default="",
    metavar="NODES",
    help='All nodes of the run, "node[1-4]": a report then names those that left nothing.',
)
def main(action: str, job: str, user: str, probe_file: str | None, node_list: str) -> None:
    """Start or stop tracing JOB of USER on this node, as a scheduler's prolog and epilog do.

    For schedulers without hooks of ours, and to try by hand what they do. Needs root and
    systemd. `start` reads PROBE_FILE with the rights of USER (a name or a number), copies it
    and starts datacrumbs@JOB.service; it returns when the daemon is ready, or says why the job
    is not traced: here, in the run's log and in the journal. `stop` returns when the trace is
    closed. Both may be repeated. Deadlines are `jobs.*` of system.yaml. A run of that name which a
    scheduler's hook, systemctl or another user has started is neither taken over nor stopped.

    \b
    Examples:
      datacrumbs_service_wrapper start 4711 alice /home/alice/probes.json.gz
      datacrumbs_service_wrapper stop 4711 alice
    """
    if os.geteuid() != 0:
        raise UserError("needs root", hint="use sudo")
    config = load_system_config()
    run_id, entry = check_run_id(job, source="JOB"), _user(user)
    deadline = time.monotonic() + config.jobs.start_timeout_s
    unit.check_is_ours(run_id, Source.WRAPPER, entry, config, deadline)
    if action == "stop":
        unit.stop(run_id, config, Source.WRAPPER)
        return
    if probe_file is None:
        raise BadInputError("start needs PROBE_FILE", hint="give its absolute path")
    try:
        wanted = unit.Job(
            run_id=run_id,
            user=entry,
            probe_file=check_path(probe_file),
            source=Source.WRAPPER,
            nodes=node_list,
        )
        unit.start(wanted, config)
    except UserError as error:
        unit.not_traced(run_id, entry, config, error)
        raise


def _user(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return unit.job_user(name)
