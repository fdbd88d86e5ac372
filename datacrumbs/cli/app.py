"""What every command shares: ``--version``, ``--debug``, and one place that prints errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import click

from datacrumbs import __version__
from datacrumbs.errors import UserError
from datacrumbs.printable import printable


class Command(click.Command):
    """A click command that turns `UserError` into one line and an exit code.

    Exit codes: 0 done, 1 it failed, 2 the input cannot be taken.
    """

    def main(self, *args: Any, **kwargs: Any) -> Any:
        debug = "--debug" in sys.argv[1:] or "DATACRUMBS_DEBUG" in os.environ
        try:
            return super().main(*args, **kwargs)
        except UserError as error:
            if debug:
                raise
            report_error(self.name or "datacrumbs", error)
            sys.exit(error.exit_code)
        except BrokenPipeError:
            # the reader of our output went away (`| head`): what Unix tools do is stop
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)


def report_error(command: str, error: UserError) -> None:
    """Print ``command: error: message`` and the hint, a printable line each, to standard error."""
    print(f"{command}: error: {printable(error.message)}", file=sys.stderr)
    if error.hint:
        print(f"{command}: hint: {printable(error.hint)}", file=sys.stderr)


def command(name: str, **settings: Any) -> Callable[[Callable[..., Any]], Command]:
    """Decorator: a `Command` called ``name`` with ``--version`` and ``--debug``."""

    def decorate(function: Callable[..., Any]) -> Command:
        made = click.command(name, cls=Command, **settings)(function)
        made = click.version_option(__version__, prog_name=name, message="%(prog)s %(version)s")(
            made
        )
        return click.option(
            "--debug",
            is_flag=True,
            expose_value=False,
            help="Show tracebacks of errors.",
        )(made)

    return decorate


scheduler_option = click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Read the trace on this Dask cluster: tcp://HOST:PORT, or its scheduler's file.",
)
