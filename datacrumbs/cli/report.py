"""``datacrumbs_report``: where the I/O time of a run went, on one page."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from datacrumbs.cli.app import command

DEFAULT_TOP = 8

EPILOG = """\b
Examples:
  datacrumbs_report ~/datacrumbs/4711
  datacrumbs_report --top 20 ~/datacrumbs/4711
  datacrumbs_report --format json ~/datacrumbs/4711 | jq '.functions[0]'
"""


@command("datacrumbs_report", epilog=EPILOG)
@click.argument("trace", type=click.Path(path_type=Path))
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
    help=f"How many functions, processes and files to list: text {DEFAULT_TOP}, json all.",
)
def main(trace: Path, output: str, top: int | None) -> None:
    """Say where the I/O time of a run went.

    TRACE is the directory of a run, with all its hosts, or of one host (host=NAME) in it. It
    may be still growing: then the report is of what has happened so far.

    Time in I/O counts nested calls of a thread once and leaves out waiting (poll, select,
    epoll). Files are the first by time and the first by bytes. Calls of layers in profile mode
    have no files, access sizes and threads; the report says so.
    """
    from datacrumbs.analysis.summary import summarise
    from datacrumbs.report.json_report import write_json
    from datacrumbs.report.text import write_text
    from datacrumbs.trace.reader import open_trace

    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    opened = open_trace(trace)
    if output == "json":
        write_json(summarise(opened, top=top), sys.stdout)
    else:
        top = top or DEFAULT_TOP
        write_text(summarise(opened, top=top), sys.stdout, top=top)


if __name__ == "__main__":
    main()
