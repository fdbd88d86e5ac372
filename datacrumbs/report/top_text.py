"""The screen of a running run: drawn over and over on a terminal, else one below the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from datacrumbs.analysis.live import Picture
from datacrumbs.printable import printable
from datacrumbs.report.layout import console_on, cut, name_width, new_table, tight
from datacrumbs.units import human_count, human_ns, human_rate, human_share, short_ns


@contextmanager
def screen(stream: TextIO, *, once: bool) -> Iterator[Callable[[Picture], None]]:
    """Gives a function that shows a picture."""
    console = console_on(stream)
    if once or not console.is_terminal:
        yield lambda picture: console.print(drawing(picture, console.width))
        return
    with Live(console=console, auto_refresh=False, transient=False) as live:
        yield lambda picture: live.update(drawing(picture, console.width), refresh=True)


def drawing(picture: Picture, width: int) -> Group:
    """All of a picture, ``width`` columns wide."""
    parts: list[Text | Table] = [Text(printable(f"Run {picture.run_id}"), "bold")]
    parts.append(_hosts(picture, width))
    if picture.sampled_events:
        parts += [Text(), _sample(picture), _layers(picture, width), Text()]
        parts += [_functions(picture, width), Text(), _files(picture, width)]
    if picture.profiled:
        parts += [Text(), _profiled(picture, width)]
    return Group(*parts)


def _sample(picture: Picture) -> Text:
    return Text(
        f"Of the newest {human_count(picture.sampled_events)} events, "
        f"made in {human_ns(picture.sampled_ns)}:",
        "dim",
    )


_HOSTS = (("Host", 0), ("state", 9), ("events", 9), ("events/s", 9), ("lost", 8), ("filtered", 9))


def _hosts(picture: Picture, width: int) -> Table:
    table = new_table(width, *_HOSTS)
    for host in picture.hosts:
        table.add_row(
            cut(host.host, name_width(width, _HOSTS)),
            str(host.state),
            human_count(host.events),
            human_count(round(host.events_per_s)),
            Text(human_count(host.lost), "bold red" if host.lost else "default"),
            human_count(host.filtered),
        )
    return table


_LAYERS = (("Layer", 0), ("events", 8), ("mean", 8), ("bytes/s", 11))


def _layers(picture: Picture, width: int) -> Table:
    table = new_table(width, *_LAYERS)
    for row in picture.layers:
        table.add_row(
            cut(row.layer, name_width(width, _LAYERS)),
            tight(human_share(row.share)),
            short_ns(row.mean_ns),
            tight(human_rate(row.bytes_per_s)) if row.bytes_per_s else "-",
        )
    return table


_FUNCTIONS = (("Function", 0), ("events", 8), ("mean", 8))


def _functions(picture: Picture, width: int) -> Table:
    table = new_table(width, *_FUNCTIONS)
    for row in picture.functions:
        table.add_row(
            cut(f"{row.layer} {row.name}", name_width(width, _FUNCTIONS)),
            tight(human_share(row.share)),
            short_ns(row.mean_ns),
        )
    return table


_FILES = (("File", 0), ("time", 8), ("bytes/s", 11))


def _files(picture: Picture, width: int) -> Table:
    table = new_table(width, *_FILES)
    for row in picture.files:
        table.add_row(
            cut(row.path, name_width(width, _FILES)),
            tight(human_share(row.share)),
            tight(human_rate(row.bytes_per_s)) if row.bytes_per_s else "-",
        )
    return table


_PROFILED = (("Profiled", 0), ("calls/s", 9), ("mean", 8), ("bytes/s", 11))


def _profiled(picture: Picture, width: int) -> Table:
    table = new_table(width, *_PROFILED)
    for row in picture.profiled:
        table.add_row(
            cut(f"{row.layer} {row.name}", name_width(width, _PROFILED)),
            human_count(round(row.calls_per_s)),
            short_ns(row.mean_ns),
            tight(human_rate(row.bytes_per_s)) if row.bytes_per_s else "-",
        )
    return table
