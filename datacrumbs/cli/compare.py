"""``datacrumbs_compare``: two runs side by side."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from datacrumbs.cli.app import command

DEFAULT_TOP = 8

EPILOG = """\b
Examples:
  datacrumbs_compare ~/datacrumbs/4711 ~/datacrumbs/4712
  datacrumbs_compare --format json monday tuesday | jq '.functions[0]'
"""


@command("datacrumbs_compare", epilog=EPILOG)
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="A page to read, or all numbers.",
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    help=f"How many functions and files to list: text {DEFAULT_TOP}, json all.",
)
def main(a: Path, b: Path, output: str, top: int | None) -> None:
    """Say what got slower from run A to run B: which layer, which functions, which files.

    A function's calls count as slower or faster when their distributions differ by more than
    chance and by more than a little, not when a mean has moved; the user's guide says how that
    is decided.
    """
    from datacrumbs.analysis.compare import compare
    from datacrumbs.report.compare_text import write_comparison
    from datacrumbs.report.json_report import write_json
    from datacrumbs.trace.reader import open_trace

    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    opened = open_trace(a), open_trace(b)
    if output == "json":
        write_json(compare(*opened, top=top), sys.stdout)
    else:
        top = top or DEFAULT_TOP
        write_comparison(compare(*opened, top=top), sys.stdout, top=top)


if __name__ == "__main__":
    main()
