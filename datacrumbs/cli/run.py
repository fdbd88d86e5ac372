"""``datacrumbs_run`` and ``datacrumbs_stop``: a run on several nodes, without a scheduler."""

from __future__ import annotations

import getpass
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from datacrumbs.cli.app import command
from datacrumbs.cli.progress import progress
from datacrumbs.errors import BadInputError
from datacrumbs.run import check_run_id

if TYPE_CHECKING:
    from datacrumbs.jobs.nodes import Outcome, Remote

WRAPPER = "datacrumbs_service_wrapper"
SPARE_S = 15.0
"""What ssh and Python may take beside the deadlines of the nodes' own work."""


def _shared(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of both commands."""
    for option in reversed(
        (
            click.option(
                "--node-list",
                required=True,
                metavar="NODES",
                help='The nodes: "node[1-4],node7", or a group of ClusterShell\'s: "@compute".',
            ),
            click.option("--run-id", required=True, metavar="ID", help="The run's name."),
            click.option(
                "--user",
                metavar="NAME",
                help="Whose run it is. Default: who called sudo, else you.",
            ),
            click.option(
                "--login",
                metavar="NAME",
                help="The account that ssh uses on the nodes. If it is not root, sudo -n is used "
                "there. Default: ssh's own choice.",
            ),
            click.option(
                "--ssh-options",
                default="",
                metavar="TEXT",
                help='More options for ssh, in one word: "-p 2222 -F /etc/ssh/nodes".',
            ),
            click.option(
                "--command",
                "wrapper",
                metavar="FILE",
                help=f"{WRAPPER} on the nodes. Default: where it is here.",
            ),
            click.option(
                "--format",
                "form",
                type=click.Choice(["text", "json"]),
                default="text",
                show_default=True,
                help="A table, or JSON.",
            ),
        )
    ):
        function = option(function)
    return function


@command(
    "datacrumbs_run",
    epilog="""\b
Examples:
  datacrumbs_run --node-list "node[1-4]" --probe-file probes.json.gz --run-id my-run
  DATACRUMBS_RUN_ID=my-run mpirun -x DATACRUMBS_RUN_ID datacrumbs_wrap ./simulate
  datacrumbs_stop --node-list "node[1-4]" --run-id my-run
""",
)
@click.option(
    "--probe-file",
    required=True,
    metavar="FILE",
    help="What to trace. Each node reads it under this name, as the user.",
)
@click.option("--keep", is_flag=True, help="When a node fails, let the others go on tracing.")
@_shared
def run(*, probe_file: str, keep: bool, node_list: str, form: str, **options: Any) -> None:
    """Start tracing a run on several nodes at once, over ssh, where there is no scheduler.

    On each node datacrumbs_service_wrapper does what a scheduler's prolog would do. It needs
    root there: log in as root, or have sudo without a password. When one node fails, those that
    have started are stopped again.

    The exit code is 0 when every node is tracing, 1 when one is not, 2 when the input cannot be
    taken.
    """
    from datacrumbs.jobs import nodes
    from datacrumbs.jobs.metadata import check_path

    names = nodes.node_names(node_list)
    run_id, user = _whose(options)
    path = Path(check_path(str(Path(probe_file).absolute())))
    remote = _remote(options)
    with progress("Starting on the nodes", None):
        outcome = nodes.start(names, run_id, user, path, remote, keep=keep)
    _show(outcome, form)


@command(
    "datacrumbs_stop",
    epilog="""\b
Examples:
  datacrumbs_stop --node-list "node[1-4]" --run-id my-run
""",
)
@_shared
def stop(*, node_list: str, form: str, **options: Any) -> None:
    """End a run that datacrumbs_run started: returns when all its traces are closed.

    May be repeated; a node on which nothing runs is stopped already.

    The exit code is 0 when every node has stopped, 1 when one has not, 2 when the input cannot
    be taken.
    """
    from datacrumbs.jobs import nodes

    names = nodes.node_names(node_list)
    run_id, user = _whose(options)
    remote = _remote(options)
    with progress("Stopping on the nodes", None):
        outcome = nodes.stop(names, run_id, user, remote)
    _show(outcome, form)


def _whose(options: dict[str, Any]) -> tuple[str, str]:
    user = options["user"] or (os.environ.get("SUDO_USER") if os.geteuid() == 0 else None)
    user = user or getpass.getuser()
    if user.startswith("-") or not user.isprintable() or len(user) > 255:
        raise BadInputError(f"--user: {user[:80]!r} is not a user's name")
    return check_run_id(options["run_id"], source="--run-id"), user


def _remote(options: dict[str, Any]) -> Remote:
    from datacrumbs.config import load_system_config
    from datacrumbs.jobs.nodes import Remote

    jobs = load_system_config().jobs
    login = options["login"]
    if login is not None and (not login or login.startswith("-")):
        raise BadInputError(f"--login: {login!r} is not a user's name")
    return Remote(
        command=options["wrapper"] or str(Path(sys.prefix, "bin", WRAPPER)),
        login=login,
        ssh_options=options["ssh_options"],
        timeout_s=max(jobs.start_timeout_s, jobs.stop_timeout_s) + SPARE_S,
    )


def _show(outcome: Outcome, form: str) -> None:
    if form == "json":
        click.echo(json.dumps(outcome.plain(), indent=2))
    else:
        _table(outcome)
    sys.exit(0 if outcome.ok else 1)


def _table(outcome: Outcome) -> None:
    """One line for each node, aligned; the message goes to the end of the line."""
    width = max(len(node.node) for node in outcome.nodes)
    for node in outcome.nodes:
        click.echo(f"{node.node:<{width}}  {node.state:<11}  {node.message}".rstrip())
    good = sum(node.state in ("tracing", "stopped") for node in outcome.nodes)
    click.echo(f"run {outcome.run_id}: {good} of {len(outcome.nodes)} nodes")
