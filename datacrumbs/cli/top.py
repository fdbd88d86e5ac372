"""``datacrumbs_top``: what a running run is doing now."""

from __future__ import annotations

import os
import pwd
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from datacrumbs.cli.app import command
from datacrumbs.errors import BadInputError

if TYPE_CHECKING:
    from datacrumbs.analysis.live import Picture

EPILOG = """\b
Examples:
  datacrumbs_top
  datacrumbs_top 4711
  datacrumbs_top --once --format json ~/datacrumbs/4711 | jq .hosts
"""


@command("datacrumbs_top", epilog=EPILOG)
@click.argument("run", required=False)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.2, max=3600),
    default=1.0,
    show_default=True,
    help="Seconds between two pictures.",
)
@click.option(
    "--top", type=click.IntRange(min=1), default=8, show_default=True, help="Rows a list."
)
@click.option("--once", is_flag=True, help="One picture, then end.")
@click.option(
    "--format",
    "output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="A screen, or a line of JSON for each picture.",
)
@click.option(
    "--config", type=click.Path(path_type=Path), help="System configuration to use instead."
)
def main(
    *,
    run: str | None,
    interval: float,
    top: int,
    once: bool,
    output: str,
    config: Path | None,
) -> None:
    """Show what a run is doing: rates, layers, functions, files, losses.

    RUN is a run id, or a trace's directory, by a path with a / in it (./4711); without it, your
    run on this host, if there is one.
    It reads the trace that the daemon writes, a bounded part of it, and disturbs nobody. It
    ends with the run, or with Ctrl-C. Root sees every run, and reads as its user.
    """
    from datacrumbs.report.json_report import write_json
    from datacrumbs.report.top_text import screen
    from datacrumbs.tracer.privileges import become

    directory, owner = _find(run, config)
    if os.geteuid() == 0 and owner != 0:
        become(pwd.getpwuid(owner))
    if output == "json":
        for picture in _pictures(directory, interval, top, once=once):
            write_json(picture, sys.stdout, indent=0)
            sys.stdout.flush()
        return
    with screen(sys.stdout, once=once) as show:
        for picture in _pictures(directory, interval, top, once=once):
            show(picture)


def _pictures(directory: Path, interval_s: float, top: int, *, once: bool) -> Iterator[Picture]:
    """Until the run has ended. The first one has no rates, and is not shown."""
    from datacrumbs.analysis.live import Watch
    from datacrumbs.trace.reader import open_trace
    from datacrumbs.trace.runfile import State

    watch = Watch.start()
    watch.picture(open_trace(directory), time.monotonic(), top=top)
    while True:
        time.sleep(interval_s)
        picture = watch.picture(open_trace(directory), time.monotonic(), top=top)
        yield picture
        if once or all(host.state is not State.RUNNING for host in picture.hosts):
            return


def _find(run: str | None, config_path: Path | None) -> tuple[Path, int]:
    """The trace's directory, and the uid to read it as."""
    from datacrumbs.config import load_system_config
    from datacrumbs.jobs.running import trace_of

    if run is not None and "/" in run:
        return Path(run), _owner(Path(run))
    config = load_system_config(config_path)
    directory, owner = trace_of(run, config)
    if run and Path(run).is_dir() and not directory.exists():
        raise BadInputError(
            f"no run {run!r} of yours on this host: there is no {directory}",
            hint=f"give ./{run} for the directory here",
        )
    return directory, owner


def _owner(directory: Path) -> int:
    return directory.stat().st_uid if directory.exists() else os.geteuid()


if __name__ == "__main__":
    main()
