"""``datacrumbs_doctor``: can this host trace, and if not, what is to be done?"""

from __future__ import annotations

import json
import os
import pwd
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from datacrumbs.cli.app import command
from datacrumbs.cli.progress import progress
from datacrumbs.errors import BadInputError
from datacrumbs.printable import printable
from datacrumbs.run import host_name

if TYPE_CHECKING:
    from datacrumbs.tracer.checks import Check

WIDTH = 80
WORDS = {True: ("ok", "green"), False: ("FAIL", "bold red"), None: ("-", "dim")}

EPILOG = """\b
Examples:
  sudo datacrumbs_doctor
  sudo datacrumbs_doctor --user alice
  datacrumbs_doctor --format json | jq '.checks[] | select(.ok == false)'
"""


@command("datacrumbs_doctor", epilog=EPILOG)
@click.option(
    "--config", type=click.Path(path_type=Path), metavar="FILE", help="Another system.yaml."
)
@click.option(
    "--user",
    metavar="NAME",
    help="Whose trace directory is checked. Default: who called sudo, else you.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="A table, or JSON.",
)
def main(*, config: Path | None, user: str | None, form: str) -> None:
    """Check that this host can trace, by trying, and say how to mend what fails.

    As root everything is checked; as an ordinary user, what can be, and the rest is listed.
    Nothing is changed and nothing stays attached.

    The exit code is 1 when a check fails, else 0.
    """
    from datacrumbs.tracer.checks import run_checks

    account = _account(user)
    with progress("Checking this host", None):
        checks = run_checks(config, user=account)
    if form == "json":
        click.echo(_as_json(checks))
    else:
        _print_table(checks)
    sys.exit(any(check.ok is False for check in checks))


def _account(name: str | None) -> pwd.struct_passwd:
    name = name or (os.environ.get("SUDO_USER") if os.geteuid() == 0 else None)
    try:
        return pwd.getpwnam(name) if name else pwd.getpwuid(os.geteuid())
    except KeyError:
        who = name or f"uid {os.geteuid()}"
        raise BadInputError(f"{who}: no such user on this host", hint="give --user NAME") from None


def _counts(checks: list[Check]) -> dict[str, int]:
    values = [check.ok for check in checks]
    return {
        "ok": values.count(True),
        "failed": values.count(False),
        "unchecked": values.count(None),
    }


def _as_json(checks: list[Check]) -> str:
    document = {
        "host": host_name(),
        "root": os.geteuid() == 0,
        **_counts(checks),
        "checks": [asdict(check) for check in checks],
    }
    return json.dumps(document, indent=2)


def _print_table(checks: list[Check]) -> None:
    """80 columns or the terminal's; colour on a terminal only."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(width=4)
    table.add_column(overflow="fold", width=24)
    table.add_column(overflow="fold")
    for check in checks:
        word, style = WORDS[check.ok]
        table.add_row(Text(word, style), Text(check.name), Text(printable(check.found)))
        if check.remedy:
            table.add_row("", Text("mend it:", "bold"), Text(printable(check.remedy), "bold"))
    console.print(table)
    counts = _counts(checks)
    console.print(
        f"{counts['ok']} ok, {counts['failed']} failed, {counts['unchecked']} not checked"
        + ("" if os.geteuid() == 0 else " (root checks more)")
    )
