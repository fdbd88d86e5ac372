"""``datacrumbs_compare``: two runs side by side."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from datacrumbs.cli.app import command, scheduler_option
from datacrumbs.cli.progress import progress

DEFAULT_TOP = 8

EPILOG = """\b
Examples:
  datacrumbs_compare ~/datacrumbs/4711 ~/datacrumbs/4712
  datacrumbs_compare --format json monday tuesday | jq '.functions[0]'
  datacrumbs_compare --scheduler ~/dask.json /scratch/monday /scratch/tuesday
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
@scheduler_option
def main(a: Path, b: Path, output: str, top: int | None, scheduler: str | None) -> None:
    """Say what got slower from run A to run B: which layer, which functions, which files.

    A function's calls count as slower or faster when their distributions differ by more than
    chance and by more than a little, not when a mean has moved; the user's guide says how that
    is decided.
    """
    from datacrumbs.analysis.cluster import connected
    from datacrumbs.analysis.compare import compare
    from datacrumbs.report.compare_text import write_comparison
    from datacrumbs.report.json_report import write_json
    from datacrumbs.trace.reader import open_trace

    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    first, second = open_trace(a), open_trace(b)
    top = top or (DEFAULT_TOP if output == "text" else None)
    total = first.about() + second.about()
    with progress("Reading events", total) as advance, connected(scheduler) as cluster:
        found = compare(first, second, top=top, progress=advance, cluster=cluster)
    if output == "json":
        write_json(found, sys.stdout)
    else:
        write_comparison(found, sys.stdout, top=top or DEFAULT_TOP)


if __name__ == "__main__":
    main()
