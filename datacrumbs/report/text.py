"""The report as one page of text, 80 columns wide unless the terminal is wider."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TextIO

from rich.table import Table
from rich.text import Text

from datacrumbs.analysis.model import (
    AccessSummary,
    FileSummary,
    FilesystemSummary,
    FunctionSummary,
    LayerSummary,
    Summary,
)
from datacrumbs.printable import printable
from datacrumbs.report.layout import (
    bytes_or_dash,
    console_on,
    count_or_dash,
    cut,
    labelled,
    more,
    name_width,
    new_table,
    tight,
)
from datacrumbs.trace.runfile import FilteredBy, State
from datacrumbs.units import (
    human_bytes,
    human_count,
    human_ns,
    human_power,
    human_share,
    short_ns,
)

SIZES_SHOWN = 4

_STATE = {
    State.COMPLETE: ("green", "Complete: "),
    State.RUNNING: ("yellow", "Still running: up to now, "),
    State.CUT_OFF: ("yellow", "Cut off: the daemon ended without closing the trace; "),
}
_MORE = {
    State.COMPLETE: "",
    State.RUNNING: "What happened in the last second or two may not be here yet.",
    State.CUT_OFF: "The last second or so before that is missing.",
}


def write_text(summary: Summary, stream: TextIO, *, top: int) -> None:
    """Write ``summary``: at most ``top`` functions, processes and hosts.

    Files are as many as ``summary`` holds. Colour only on a terminal and without ``NO_COLOR``.
    """
    console = console_on(stream)
    for part in _parts(summary, console.width, top):
        console.print(part)


def _parts(summary: Summary, width: int, top: int) -> Iterator[Text | Table]:
    yield facts(summary)
    yield from honesty(summary)
    yield from (Text(printable(note), "yellow") for note in summary.notes)
    yield from _skipped(summary)
    if not summary.events and not summary.profiled:
        return
    yield from _times(summary)
    if len(summary.hosts) > 1:
        yield from _hosts(summary, width, top)
    yield from _functions(summary, width, top)
    yield from _processes(summary, width, top)
    yield from _files(summary, width)
    yield from _accesses(summary)


def _unless_unknown(value: float | None, show: Callable[[float], str]) -> str:
    return "?" if value is None else show(value)


def facts(summary: Summary) -> Text:
    """Which run this is, on one line."""
    hosts = [host.host for host in summary.hosts]
    where = hosts[0] if len(hosts) == 1 else f"{len(hosts)} hosts"
    known = [f"Run {summary.run_id}"]
    known += [f"user {summary.user}"] if summary.user else []
    known += [f"on {where}"]
    if summary.started:
        known += [summary.started.replace("T", " ").replace("+00:00", " UTC")]
    return Text(printable(", ".join(known) + f", {human_ns(summary.wall_ns)}"), "bold")


def honesty(summary: Summary) -> Iterator[Text]:
    """Lines that say how far to trust the rest."""
    colour, state = _STATE[summary.state]
    lost = f"{human_count(summary.lost)} LOST" if summary.lost else "none lost"
    line = Text(state, colour)
    line.append(f"{human_count(summary.events)} events kept, ", "default")
    if summary.profiled:
        line.append(f"{human_count(summary.profiled)} calls profiled, ", "default")
    line.append(lost, "bold red" if summary.lost else "default")
    line.append(
        f", {human_count(summary.filtered)} filtered, "
        f"{human_count(summary.unfinished)} unfinished; {human_bytes(summary.bytes_on_disk)}.",
        "default",
    )
    residuals = [host.clock_residual_ns or 0 for host in summary.hosts]
    if not summary.clocks_agree:
        line.append(" Clocks of the hosts DISAGREE.", "bold red")
    elif len(residuals) > 1:
        line.append(f" Clocks of the hosts to {human_ns(max(residuals))}.", "default")
    yield line
    if _MORE[summary.state]:
        yield Text(_MORE[summary.state], colour)
    yield from _losses(summary)


def _losses(summary: Summary) -> Iterator[Text]:
    by = summary.lost_by
    others = f"{human_count(by.profile)} in a full profile, " * bool(by.profile)
    others += f"{human_count(by.missed)} missed by the kernel, " * bool(by.missed)
    if summary.lost:
        yield Text(
            f"Lost: {human_count(by.ring)} in a full ring, {others}"
            f"{human_count(by.disk)} to a full disk. "
            "Counts, times and bytes below are too low by what was lost.",
            "red",
        )
    if by.strings:
        yield Text(f"{human_count(by.strings)} names or paths were lost.", "red")
    yield from _filtered(summary.filtered_by)


def _filtered(by: FilteredBy) -> Iterator[Text]:
    reasons = (
        (by.duration, "shorter than min_duration"),
        (by.rate, "over max_per_s"),
        (by.path, "by their paths"),
        (by.other, "of another layer's processes or 32-bit programs"),
    )
    parts = [f"{human_count(count)} {reason}" for count, reason in reasons if count]
    if parts:
        yield Text(f"Filtered: {', '.join(parts)}.")


def _skipped(summary: Summary) -> Iterator[Text]:
    if summary.skipped:
        first = summary.skipped[0]
        rest = f", and {len(summary.skipped) - 1} more" * (len(summary.skipped) > 1)
        yield Text(
            printable(f"Not probed: {first.layer} {first.name} ({first.reason}){rest}."), "yellow"
        )


def _times(summary: Summary) -> Iterator[Text]:
    whole = human_ns(summary.host_wall_ns)
    hosts = f"{len(summary.hosts)} hosts' " if len(summary.hosts) > 1 else "run's "
    yield Text()
    if summary.unoverlapped_ns is None or summary.unoverlapped_share is None:
        yield labelled("In I/O", f"{human_ns(summary.io_ns)} summed over all threads")
        yield labelled("", f"not known for how much of the {hosts}{whole}: profile mode")
    else:
        yield labelled(
            "In I/O",
            f"{human_ns(summary.unoverlapped_ns)} with one thread or more in I/O, "
            f"{human_share(summary.unoverlapped_share)} of the {hosts}{whole}",
        )
        yield labelled("", f"{human_ns(summary.io_ns)} summed over all threads")
    if len(summary.layers) > 1:
        layers = (f"{printable(row.layer)} {human_ns(row.io_ns)}" for row in summary.layers)
        yield labelled("By layer", ", ".join(layers) + " (nested calls count in each)")
    yield labelled(
        "Data",
        f"{human_bytes(summary.bytes_read)} read, {human_bytes(summary.bytes_written)} written",
    )
    if summary.wait_ns:
        yield labelled("Waiting", f"{human_ns(summary.wait_ns)} in poll, select, epoll: not in I/O")
    if summary.unfinished:
        yield labelled(
            "Unfinished",
            f"calls that had not returned at the end: {human_count(summary.unfinished)}, "
            "not in times",
        )


_HOST_COLUMNS = (
    ("Host", 0),
    ("state", 8),
    ("calls", 7),
    ("lost", 6),
    ("I/O", 8),
    ("unoverl.", 8),
    ("share", 7),
    ("read", 8),
    ("written", 8),
)


def _hosts(summary: Summary, width: int, top: int) -> Iterator[Text | Table]:
    table = new_table(width, *_HOST_COLUMNS)
    name = name_width(width, _HOST_COLUMNS)
    for host in sorted(summary.hosts, key=lambda h: -h.io_ns)[:top]:
        table.add_row(
            cut(host.host, name),
            host.state,
            count_or_dash(host.counts.events + host.counts.profiled),
            Text(count_or_dash(host.counts.lost), "red"),
            short_ns(host.io_ns),
            _unless_unknown(host.unoverlapped_ns, short_ns),
            _unless_unknown(host.unoverlapped_share, lambda share: tight(human_share(share))),
            bytes_or_dash(host.bytes_read),
            bytes_or_dash(host.bytes_written),
        )
    yield Text()
    yield table
    yield from more(len(summary.hosts) - top, "hosts")


_FUNCTION_COLUMNS = (
    ("Function", 0),
    ("calls", 6),
    ("err", 4),
    ("total", 6),
    ("mean", 6),
    ("p50", 6),
    ("p99", 6),
    ("max", 6),
    ("bytes", 7),
    ("bytes/s", 7),
)


def _functions(summary: Summary, width: int, top: int) -> Iterator[Text | Table]:
    table = new_table(width, *_FUNCTION_COLUMNS)
    name = name_width(width, _FUNCTION_COLUMNS)
    shown = summary.functions[:top]
    for layer in summary.layers:
        _add_layer(table, layer, [f for f in shown if f.layer == layer.layer], name)
    yield Text()
    yield table
    yield from more(len(summary.functions) - top, "functions")


def _add_layer(
    table: Table, layer: LayerSummary, functions: list[FunctionSummary], width: int
) -> None:
    numbers = _function_numbers(layer)
    table.add_row(cut(layer.layer, width), *numbers[:3], "", "", "", "", *numbers[3:], style="bold")
    for function in functions:
        count, errors, total, moved, rate = _function_numbers(function)
        spread = (function.mean_ns, function.p50_ns, function.p99_ns, function.max_ns)
        table.add_row(
            " " + cut(function.name, width - 1),
            *(count, errors, total),
            *(short_ns(value) for value in spread),
            *(moved, rate),
        )


def _short_count(count: int) -> str:
    """Four characters: ``9999``, ``123k``, ``12M``."""
    if count < 10_000:
        return count_or_dash(count)
    return f"{count // 1000}k" if count < 1_000_000 else f"{count // 1_000_000}M"


def _function_numbers(row: LayerSummary | FunctionSummary) -> tuple[str, str, str, str, str]:
    return (
        count_or_dash(row.count),
        _short_count(row.errors),
        short_ns(row.time_ns),
        bytes_or_dash(row.bytes),
        bytes_or_dash(row.bytes_per_s),
    )


_PROCESS_COLUMNS = (
    ("Process", 0),
    ("pid", 7),
    ("threads", 7),
    ("calls", 7),
    ("I/O", 8),
    ("waiting", 8),
    ("read", 8),
    ("written", 8),
)


def _processes(summary: Summary, width: int, top: int) -> Iterator[Text | Table]:
    table = new_table(width, *_PROCESS_COLUMNS)
    name = name_width(width, _PROCESS_COLUMNS)
    for process in summary.processes[:top]:
        table.add_row(
            cut(process.comm or process.exe or "?", name),
            str(process.pid),
            count_or_dash(process.threads),
            count_or_dash(process.count),
            short_ns(process.io_ns),
            short_ns(process.wait_ns) if process.wait_ns else "-",
            bytes_or_dash(process.bytes_read),
            bytes_or_dash(process.bytes_written),
        )
    yield Text()
    yield table
    yield from more(summary.processes_total - top, "processes")


_FILE_COLUMNS = (
    ("File", 0),
    ("opens", 6),
    ("reads", 6),
    ("writes", 6),
    ("read", 7),
    ("written", 7),
    ("time", 7),
)


def _files(summary: Summary, width: int) -> Iterator[Text | Table]:
    if not summary.files:
        if summary.profiled:
            yield Text()
            yield Text("Files and access sizes: not known in profile mode.")
        return
    table = new_table(width, *_FILE_COLUMNS)
    name = name_width(width, _FILE_COLUMNS)
    for row in summary.files:
        table.add_row(cut(row.path, name), *_file_numbers(row))
    yield Text()
    yield table
    yield from more(summary.files_total - len(summary.files), "files")
    yield Text()
    table = new_table(width, ("File system", 0), *_FILE_COLUMNS[1:])
    for system in summary.filesystems[:8]:
        label = f"{system.fstype} ({human_count(system.files)} files)"
        table.add_row(cut(label, name), *_file_numbers(system))
    yield table


def _file_numbers(row: FileSummary | FilesystemSummary) -> tuple[str, ...]:
    return (
        count_or_dash(row.opens),
        count_or_dash(row.reads),
        count_or_dash(row.writes),
        bytes_or_dash(row.bytes_read),
        bytes_or_dash(row.bytes_written),
        short_ns(row.time_ns),
    )


def _accesses(summary: Summary) -> Iterator[Text]:
    both = (("reads", summary.reads), ("writes", summary.writes))
    if not any(access.count for _, access in both):
        return
    yield Text()
    yield Text("Access sizes (4 KiB+: from 4 KiB up to 8 KiB)", "bold")
    for name, access in both:
        if access.count:
            yield Text(f"{name:<7}{_sizes(access)}")
            if access.compared:
                yield Text(f"       {_order(access)}")


def _sizes(access: AccessSummary) -> str:
    top = sorted(access.sizes, key=lambda size: -size.count)[:SIZES_SHOWN]
    parts = [f"{human_power(s.from_bytes)}+ {human_share(s.share)}" for s in top]
    return ", ".join(parts) + ", ..." * (len(access.sizes) > len(top))


def _order(access: AccessSummary) -> str:
    return (
        f"{human_share(access.consecutive_share)} where the last one ended, "
        f"{human_share(access.sequential_share)} there or further on"
    )
