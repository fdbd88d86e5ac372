"""``datacrumbs_export``: a trace in the format of another tool."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from datacrumbs.cli.app import command
from datacrumbs.cli.progress import progress
from datacrumbs.errors import BadInputError

FORMATS = ("dftracer", "chrome", "csv", "perfetto")

EPILOG = """\b
Examples:
  datacrumbs_export ~/datacrumbs/4711 -o 4711.pfw.gz
  datacrumbs_export ~/datacrumbs/4711 -o 4711.json.gz --start 10 --end 12.5
  datacrumbs_export ~/datacrumbs/4711 -o - --format csv --layer syscall | head
"""


@command("datacrumbs_export", epilog=EPILOG)
@click.argument("trace", type=click.Path(path_type=Path))
@click.option(
    *("-o", "--output", "out"),
    type=click.Path(path_type=Path),
    required=True,
    help="The file to write, - for standard output.",
)
@click.option("--format", "form", type=click.Choice(FORMATS), help="Instead of by OUTPUT's name.")
@click.option("--host", "hosts", multiple=True, help="Only this host (may be given again).")
@click.option("--pid", "pids", type=int, multiple=True, help="Only this process (again: or that).")
@click.option("--layer", "layers", multiple=True, help="Only this layer (again: or that).")
@click.option("--start", type=float, help="Calls from this on, seconds after the run's start.")
@click.option("--end", type=float, help="Calls up to this, seconds after the run's start.")
@click.option("--quiet", is_flag=True, help="No progress and no summary.")
def main(
    *,
    trace: Path,
    out: Path,
    form: str | None,
    hosts: tuple[str, ...],
    pids: tuple[int, ...],
    layers: tuple[str, ...],
    start: float | None,
    end: float | None,
    quiet: bool,
) -> None:
    """Write a trace in the format of another tool.

    By the name of OUTPUT: .pfw is DFTracer's format, which DFAnalyzer and Perfetto read; .json
    is Chrome's trace event format, for Perfetto and chrome://tracing; .csv; .pftrace is
    Perfetto's own. With .gz behind it, compressed in pieces that are read in parallel.

    TRACE is the directory of a run or of one of its hosts; what an open trace holds so far is
    written.
    """
    from datacrumbs.export.select import Selection
    from datacrumbs.export.write import Format, export, format_of
    from datacrumbs.trace.reader import open_trace
    from datacrumbs.units import human_bytes

    named, gzip = format_of(out)
    wanted = Format(form) if form else named
    if wanted is None:
        raise BadInputError(
            f"{out}: the name does not say which format",
            hint="end it with .pfw.gz, .json, .csv or .pftrace, or give --format",
        )
    selection = Selection(hosts, pids, layers, _ns(start, "--start"), _ns(end, "--end"))
    opened = open_trace(trace)
    total = sum(host.count() for host in opened.hosts)
    with progress("Writing events", total, quiet=quiet) as advance:
        done = export(opened, out, wanted, gzip=gzip, selection=selection, advance=advance)
    if not quiet:
        print(f"{done.events} events, {human_bytes(done.bytes)}, {wanted}: {out}", file=sys.stderr)
        if profiled := sum(host.run.counts.profiled for host in opened.hosts if host.run):
            print(f"not exported: {profiled} calls of profile mode, no events", file=sys.stderr)


def _ns(seconds: float | None, option: str) -> int | None:
    if seconds is None:
        return None
    if not 0 <= seconds <= 1e9:
        raise BadInputError(f"{option}: {seconds}: not seconds after the run's start")
    return round(seconds * 1e9)


if __name__ == "__main__":
    main()
