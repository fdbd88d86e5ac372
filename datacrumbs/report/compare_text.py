"""A comparison as one page of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

from rich.table import Table
from rich.text import Text

from datacrumbs.analysis.compare import Comparison, FunctionChange, RunFacts, Verdict
from datacrumbs.printable import printable
from datacrumbs.report.layout import (
    bytes_or_dash,
    console_on,
    count_or_dash,
    cut,
    more,
    name_width,
    new_table,
    tight,
)
from datacrumbs.units import human_ns, human_share, short_ns

_COLOUR = {
    Verdict.SLOWER: "red",
    Verdict.SLOW_TAIL: "red",
    Verdict.FASTER: "green",
    Verdict.FAST_TAIL: "green",
}


def write_comparison(found: Comparison, stream: TextIO, *, top: int) -> None:
    """Write ``found``: at most ``top`` functions; files are as many as it holds."""
    console = console_on(stream)
    for part in _parts(found, console.width, top):
        console.print(part)


def _parts(found: Comparison, width: int, top: int) -> Iterator[Text | Table]:
    yield Text(f"A: {_title(found.a)}\nB: {_title(found.b)}", "bold")
    yield from (Text(printable(note), "yellow") for note in found.notes)
    yield Text()
    yield _totals(found, width)
    yield from _sentences(found)
    yield Text()
    yield _functions(found, width, top)
    yield from more(len(found.functions) - top, "functions")
    yield from _files(found, width)


def _title(run: RunFacts) -> str:
    hosts = run.hosts[0] if len(run.hosts) == 1 else f"{len(run.hosts)} hosts"
    profiled = f", {run.profiled} profiled calls" * bool(run.profiled)
    return printable(f"run {run.run_id} on {hosts}, {run.events} events{profiled}")


def signed(time_ns: int) -> str:
    """``+1.20ms``, ``-3.40us``, ``0``."""
    if not time_ns:
        return "0"
    return ("+" if time_ns > 0 else "-") + short_ns(abs(time_ns))


_TOTALS = (
    ("wall time", "wall_ns"),
    ("in I/O, unoverlapped", "unoverlapped_ns"),
    ("in I/O, all threads", "io_ns"),
)


def _totals(found: Comparison, width: int) -> Table:
    table = new_table(width, ("", 0), ("A", 9), ("B", 9), ("change", 9), ("", 7))
    rows = [(name, getattr(found.a, key), getattr(found.b, key)) for name, key in _TOTALS]
    rows = [row for row in rows if None not in row]  # of profiled runs, not known
    rows += [(f"  {layer.layer}", layer.a_ns, layer.b_ns) for layer in found.layers]
    for name, a, b in rows:
        table.add_row(cut(name, 30), short_ns(a), short_ns(b), signed(b - a), _change(a, b))
    for name, key in (("read", "bytes_read"), ("written", "bytes_written")):
        a, b = getattr(found.a, key), getattr(found.b, key)
        table.add_row(name, bytes_or_dash(a), bytes_or_dash(b), "", _change(a, b))
    return table


def _change(a: int, b: int) -> str:
    if not a or a == b:
        return "" if a == b else "new"
    return f"{'+' if b > a else '-'}{tight(human_share(abs(b - a) / a))}"


def _sentences(found: Comparison) -> Iterator[Text]:
    """The two or three changes that matter most, in words."""
    told = [c for c in found.functions if c.verdict in _COLOUR and c.change_ns][:3]
    if told:
        yield Text()
    for change in told:
        yield Text(printable(sentence(change)), _COLOUR[change.verdict])


def sentence(change: FunctionChange) -> str:
    """What happened to a function that both runs called, with numbers."""
    a, b, found = change.a, change.b, change.distributions
    assert a and b and found
    name = f"{change.layer} {change.name}"
    if change.verdict in (Verdict.SLOWER, Verdict.FASTER):
        chance = found.superiority if change.verdict is Verdict.SLOWER else 1 - found.superiority
        said = (
            f"{name} is {change.verdict}: of a call of each run, B's takes "
            f"{'longer' if change.verdict is Verdict.SLOWER else 'less'} with a chance of "
            f"{human_share(chance)} (p50 {human_ns(a.p50_ns)} -> {human_ns(b.p50_ns)})"
        )
    else:
        said = (
            f"{name}, {change.verdict}: {found.tail_ratio:.1f} times as many calls take longer "
            f"than all but 1 % did in A (p99 {human_ns(a.p99_ns)} -> {human_ns(b.p99_ns)})"
        )
    return (
        f"{said}; time {signed(change.change_ns)}, of which {signed(change.by_duration_ns)} by "
        f"how long calls take and {signed(change.by_count_ns)} by how many there are."
    )


_FUNCTIONS = (
    ("Function", 0),
    ("calls A", 8),
    ("calls B", 8),
    ("p50 A", 7),
    ("p50 B", 7),
    ("change", 8),
    ("", 9),
)


def _functions(found: Comparison, width: int, top: int) -> Table:
    table = new_table(width, *_FUNCTIONS)
    table.columns[-1].justify = "left"
    for change in found.functions[:top]:
        a, b = change.a, change.b
        table.add_row(
            cut(f"{change.layer} {change.name}", name_width(width, _FUNCTIONS)),
            count_or_dash(a.count if a else 0),
            count_or_dash(b.count if b else 0),
            short_ns(a.p50_ns) if a else "-",
            short_ns(b.p50_ns) if b else "-",
            signed(change.change_ns),
            Text(str(change.verdict), _COLOUR.get(change.verdict, "dim")),
        )
    return table


_FILES = (("File", 0), ("time A", 8), ("time B", 8), ("change", 8), ("bytes A", 8), ("bytes B", 8))


def _files(found: Comparison, width: int) -> Iterator[Text | Table]:
    if not found.files:
        return
    table = new_table(width, *_FILES)
    for row in found.files:
        table.add_row(
            cut(row.path, name_width(width, _FILES)),
            short_ns(row.a_ns),
            short_ns(row.b_ns),
            signed(row.change_ns),
            bytes_or_dash(row.a_bytes),
            bytes_or_dash(row.b_bytes),
        )
    yield Text()
    yield table
    yield from more(found.files_total - len(found.files), "files")
