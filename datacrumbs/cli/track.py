"""``datacrumbs_track`` and ``datacrumbs_untrack``: programs that join runs by themselves."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import click

from datacrumbs.cli.app import command
from datacrumbs.printable import printable

EXECUTABLE = click.option(
    "--executable",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The program. Of a symbolic link, the file that it leads to.",
)


@command(
    "datacrumbs_track",
    epilog="""\b
Examples:
  datacrumbs_track --executable ./simulate
  DATACRUMBS_RUN_ID=my-run ./simulate --steps 100
  datacrumbs_untrack --executable ./simulate
""",
)
@EXECUTABLE
def track(*, executable: Path) -> None:
    """Make a program of yours join traced runs by itself, without datacrumbs_wrap.

    The program is replaced by a copy that loads the client library. Its original stays
    beside it, as .NAME.datacrumbs-original, for datacrumbs_untrack. Processes that run it are
    not disturbed. Under Flux or Slurm, or with DATACRUMBS_RUN_ID set, it joins the run of that
    id; where no daemon traces the run, it runs as ever.

    Refused are files of others, scripts, shared libraries, and programs that are statically
    linked, setuid, setgid or carry data behind the program.

    Functions may be at other places of the new file: make probe files that name functions of
    the program after this.
    """
    from datacrumbs.client.track import track as make_tracked
    from datacrumbs.config import load_system_config

    _end_on_signals()
    path = make_tracked(executable, load_system_config().client_library_path())
    click.echo(f"{printable(str(path))}: tracked")


@command(
    "datacrumbs_untrack",
    epilog="""\b
Examples:
  datacrumbs_untrack --executable ./simulate
""",
)
@EXECUTABLE
def untrack(*, executable: Path) -> None:
    """Put back the program that datacrumbs_track replaced, bit for bit.

    Only a file that is tracked is taken. One that was built again since is not tracked any
    more, and stays as it is.
    """
    from datacrumbs.client.track import untrack as make_untracked

    _end_on_signals()
    path = make_untracked(executable)
    click.echo(f"{printable(str(path))}: not tracked any more")


def _end_on_signals() -> None:
    """End by an exception, so that no unfinished file is left."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
