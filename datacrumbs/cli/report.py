"""``datacrumbs_report``: where the I/O time of a run went, on one page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from datacrumbs.cli.app import command, scheduler_option
from datacrumbs.cli.progress import progress
from datacrumbs.errors import BadInputError
from datacrumbs.report import HTML_TOP

if TYPE_CHECKING:
    from datacrumbs.analysis.model import Summary
    from datacrumbs.trace.reader import Trace

DEFAULT_TOP = 8

EPILOG = """\b
Examples:
  datacrumbs_report ~/datacrumbs/4711
  datacrumbs_report --top 20 ~/datacrumbs/4711
  datacrumbs_report --format json ~/datacrumbs/4711 | jq '.functions[0]'
  datacrumbs_report --html 4711.html ~/datacrumbs/4711
  datacrumbs_report --scheduler tcp://login1:8786 /scratch/datacrumbs/4711
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
    "--html",
    "html",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="Write a page with pictures instead, one file that needs no network; - for standard "
    "output.",
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    help=f"How many functions, processes and files to list: text {DEFAULT_TOP}, json all, "
    f"html the first {HTML_TOP} of files and processes.",
)
@scheduler_option
def main(
    trace: Path, output: str, html: Path | None, top: int | None, scheduler: str | None
) -> None:
    """Say where the I/O time of a run went.

    TRACE is the directory of a run, with all its hosts, or of one host (host=NAME) in it. It
    may be still growing: then the report is of what has happened so far.

    Time in I/O counts nested calls of a thread once and leaves out waiting (poll, select,
    epoll). Files are the first by time and the first by bytes. Calls of layers in profile mode
    have no files, access sizes and threads; the report says so.

    The page that --html writes shows when and by which process data moved, time by layer, sizes
    and latencies, and the slowest calls with what datacrumbs_explain says of them.
    """
    from datacrumbs.report.json_report import write_json
    from datacrumbs.report.text import write_text
    from datacrumbs.trace.reader import open_trace

    if html and output == "json":
        raise BadInputError("--html and --format json: one or the other, please")
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    opened = open_trace(trace)
    if html:
        _write_page(opened, html, top or HTML_TOP, scheduler)
    elif output == "json":
        write_json(_summary(opened, top, scheduler), sys.stdout)
    else:
        top = top or DEFAULT_TOP
        write_text(_summary(opened, top, scheduler), sys.stdout, top=top)


def _summary(trace: Trace, top: int | None, scheduler: str | None) -> Summary:
    from datacrumbs.analysis.cluster import connected
    from datacrumbs.analysis.summary import summarise

    with progress("Reading events", trace.about()) as advance, connected(scheduler) as cluster:
        return summarise(trace, top=top, progress=advance, cluster=cluster)


def _write_page(trace: Trace, out: Path, top: int, scheduler: str | None) -> None:
    from datacrumbs.analysis.cluster import connected
    from datacrumbs.report.html import write_page

    with (
        progress("Reading events", 2 * trace.about()) as advance,
        connected(scheduler) as cluster,
    ):
        write_page(trace, out, top=top, progress=advance, cluster=cluster)


if __name__ == "__main__":
    main()
