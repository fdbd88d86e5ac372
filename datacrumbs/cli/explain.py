"""``datacrumbs_explain``: what was inside the calls of a run, and why some took longer."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from datacrumbs.cli.app import command, scheduler_option
from datacrumbs.cli.progress import progress

DEFAULT_TOP = 3

EPILOG = """\b
Examples:
  datacrumbs_explain ~/datacrumbs/4711
  datacrumbs_explain --call pwrite64 ~/datacrumbs/4711
  datacrumbs_explain --call 'H5D*' --rank 0 --file '*.h5' ~/datacrumbs/4711
  datacrumbs_explain --layer libc --host n3 --format json ~/datacrumbs/4711
  datacrumbs_explain --scheduler ~/dask.json /scratch/datacrumbs/4711
"""


@command("datacrumbs_explain", epilog=EPILOG)
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("--call", metavar="NAME", help="Calls of this function; * and ? stand for more.")
@click.option("--layer", metavar="LAYER", help="Calls of functions of this layer.")
@click.option(
    "--file",
    "path",
    metavar="PATH",
    help="Calls on this file, and calls with one inside that is. * and ? stand for more; "
    "without a leading / the end of the path.",
)
@click.option("--rank", "ranks", type=click.IntRange(min=0), multiple=True, help="Of this rank.")
@click.option("--pid", "pids", type=int, multiple=True, help="Of this process.")
@click.option("--host", "hosts", metavar="NAME", multiple=True, help="On this host.")
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
    help=f"How many functions to explain, by time: text {DEFAULT_TOP}, json all.",
)
@scheduler_option
def main(  # noqa: PLR0917 (click passes each option by name)
    trace: Path,
    call: str | None,
    layer: str | None,
    path: str | None,
    ranks: tuple[int, ...],
    pids: tuple[int, ...],
    hosts: tuple[str, ...],
    output: str,
    top: int | None,
    scheduler: str | None,
) -> None:
    """Say what the time of calls went into, and why some calls take longer than others.

    TRACE is the directory of a run, with all its hosts, or of one host (host=NAME) in it. It
    may be still growing.

    Without options the outermost I/O calls are explained, those that took most time first: by
    what was called inside them on the same thread, layer by layer, by what the kernel did for
    their file meanwhile, and by what the slow ones did that the fast ones did not.

    A rank is the number of a process of the run's program by host and start, which is MPI's
    rank where ranks are placed in blocks. --rank, --pid and --host may be given several times.
    """
    from datacrumbs.analysis.cluster import connected
    from datacrumbs.analysis.explain import explain
    from datacrumbs.analysis.selection import Selection
    from datacrumbs.report.explain_text import write_explanation
    from datacrumbs.report.json_report import write_explanation_json
    from datacrumbs.trace.reader import open_trace

    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    opened = open_trace(trace)
    selection = Selection(
        call=call,
        layer=layer,
        path=path,
        pids=frozenset(pids),
        ranks=frozenset(ranks),
        hosts=frozenset(hosts),
    )
    total = sum(host.about() for host in opened.hosts if not hosts or host.host in hosts)
    top = top or (DEFAULT_TOP if output == "text" else None)
    with progress("Reading events", total) as advance, connected(scheduler) as cluster:
        explanation = explain(opened, selection, top=top, progress=advance, cluster=cluster)
    if output == "json":
        write_explanation_json(explanation, sys.stdout)
    else:
        write_explanation(explanation, sys.stdout)


if __name__ == "__main__":
    main()
