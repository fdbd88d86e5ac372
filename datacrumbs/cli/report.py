"""``datacrumbs_report``: where the I/O time of a run went, on one page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from datacrumbs.cli.app import command
from datacrumbs.cli.progress import progress
from datacrumbs.errors import BadInputError

if TYPE_CHECKING:
    from datacrumbs.trace.reader import Trace

DEFAULT_TOP = 8
HTML_TOP = 10_000

EPILOG = """\b
Examples:
  datacrumbs_report ~/datacrumbs/4711
  datacrumbs_report --top 20 ~/datacrumbs/4711
  datacrumbs_report --format json ~/datacrumbs/4711 | jq '.functions[0]'
  datacrumbs_report --html 4711.html ~/datacrumbs/4711
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
def main(trace: Path, output: str, html: Path | None, top: int | None) -> None:
    """Say where the I/O time of a run went.

    TRACE is the directory of a run, with all its hosts, or of one host (host=NAME) in it. It
    may be still growing: then the report is of what has happened so far.

    Time in I/O counts nested calls of a thread once and leaves out waiting (poll, select,
    epoll). Files are the first by time and the first by bytes. Calls of layers in profile mode
    have no files, access sizes and threads; the report says so.

    The page that --html writes shows when and by which process data moved, time by layer, sizes
    and latencies, and the slowest calls with what datacrumbs_explain says of them.
    """
    from datacrumbs.analysis.summary import summarise
    from datacrumbs.report.json_report import write_json
    from datacrumbs.report.text import write_text
    from datacrumbs.trace.reader import open_trace

    if html and output == "json":
        raise BadInputError("--html and --format json: one or the other, please")
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    opened = open_trace(trace)
    if html:
        _write_page(opened, html, top or HTML_TOP)
    elif output == "json":
        write_json(summarise(opened, top=top), sys.stdout)
    else:
        top = top or DEFAULT_TOP
        write_text(summarise(opened, top=top), sys.stdout, top=top)


def _write_page(trace: Trace, out: Path, top: int) -> None:
    from datacrumbs.analysis.pictures import draw
    from datacrumbs.analysis.summary import summarise_with_durations
    from datacrumbs.report.html import write_html
    from datacrumbs.whole_file import whole_file

    with whole_file(out) as file:  # first: that it can be written should not take a minute to see
        summary, durations = summarise_with_durations(trace, top=top)
        with progress("Drawing", summary.events) as advance:
            pictures = draw(trace, summary, durations, progress=advance)
        write_html(summary, pictures, file)


if __name__ == "__main__":
    main()
