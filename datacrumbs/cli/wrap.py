"""``datacrumbs_wrap``: run a program as part of a traced run."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from datacrumbs.cli.app import command
from datacrumbs.client.wrap import (
    execute,
    find_program,
    is_tracing,
    obstacle,
    own_environment,
    preloading,
)
from datacrumbs.config import SystemConfig, load_system_config
from datacrumbs.errors import BadInputError
from datacrumbs.printable import printable
from datacrumbs.run import RUN_ID_VARIABLES, check_run_id, program_run_id, ready_file

NAME = "datacrumbs_wrap"

EPILOG = """\b
Examples:
  datacrumbs_wrap ./simulate --steps 100
  datacrumbs_wrap --run-id test1 tar czf out.tgz tree
  srun datacrumbs_wrap ./simulate
"""


def _complete(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Let the shell complete file names, as it would without us."""
    return [CompletionItem(incomplete, type="file")]


@command(NAME, context_settings={"allow_interspersed_args": False}, epilog=EPILOG)
@click.option(
    "--run-id",
    metavar="ID",
    help=f"The run to join. Default: what {', '.join(RUN_ID_VARIABLES[:-1])} or "
    f"{RUN_ID_VARIABLES[-1]} says, in this order.",
)
@click.option("-q", "--quiet", is_flag=True, help="Do not warn when nothing will be traced.")
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    help="Say which run is joined, and whether a daemon traces it, also when standard error "
    "is no terminal.",
)
@click.argument(
    "cmd",
    nargs=-1,
    required=True,
    type=click.UNPROCESSED,
    metavar="CMD [ARGS]...",
    shell_complete=_complete,
)
def main(*, run_id: str | None, quiet: bool, verbose: bool, cmd: tuple[str, ...]) -> None:
    """Run CMD, and all it starts, as part of a traced run.

    CMD replaces this command: process id, signals, standard streams and exit code are its
    own. It runs untraced when no daemon traces the run on this host. What is statically
    linked or setuid cannot be reached this way: a warning says so.

    The exit code is CMD's; 127 when it is not found, 126 when it cannot be executed.
    """
    environ = own_environment()
    joined = _join(run_id, environ)
    config = load_system_config()
    library = config.client_library_path()
    program = find_program(cmd[0], environ)
    environ = preloading(environ, library)
    if not quiet:
        _tell_run(config, joined, verbose=verbose)
        reason = obstacle(program, library)
        if reason:
            _say(f"warning: {reason}: traced only if the capture config says 'select: job'")
    execute(program, cmd, environ)


def _join(run_id: str | None, environ: dict[str, str]) -> str:
    """The run id; one that was given goes into ``environ``, where the client looks first."""
    if run_id is not None:
        environ[RUN_ID_VARIABLES[0]] = check_run_id(run_id, source="--run-id")
    found = program_run_id(environ)
    if found is None:
        raise BadInputError(
            "no run to join: give --run-id ID or set DATACRUMBS_RUN_ID; "
            f"{' and '.join(RUN_ID_VARIABLES[1:])} are not set either"
        )
    return found[0]


def _tell_run(config: SystemConfig, run_id: str, *, verbose: bool) -> None:
    # many ranks of a job step must not print the same line many times: terminals only
    if not (verbose or sys.stderr.isatty()):
        return
    if not is_tracing(ready_file(Path(config.run_dir), run_id)):
        _say(f"no daemon is tracing run {run_id} on this host; running untraced")
    elif verbose:
        _say(f"joining run {run_id}")


def _say(text: str) -> None:
    print(f"{NAME}: {printable(text)}", file=sys.stderr)
