"""What `datacrumbs_explain` says, as text."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TextIO

from rich.table import Table
from rich.text import Text

from datacrumbs.analysis.causes import Cause
from datacrumbs.analysis.explanation import Explained, Explanation, Inner, Part, SlowCall
from datacrumbs.printable import printable
from datacrumbs.report.layout import (
    console_on,
    count_or_dash,
    cut,
    name_width,
    new_table,
    paragraph,
    tight,
)
from datacrumbs.report.sentences import sentence, split_sentence
from datacrumbs.trace.runfile import State
from datacrumbs.units import human_bytes, human_count, human_ns, human_share, short_ns

ROWS = 16
"""Contexts shown of one function: those with most time."""

FINDINGS = 6
LEAST_SHARE = 0.005

Renderable = Text | Table

_STATE = {
    State.COMPLETE: ("default", "Complete"),
    State.RUNNING: ("yellow", "Still running: up to now"),
    State.CUT_OFF: ("yellow", "Cut off"),
}


def write_explanation(explanation: Explanation, stream: TextIO) -> None:
    """Write all that ``explanation`` holds, the longest contexts of each function."""
    console = console_on(stream)
    for part in _parts(explanation, console.width):
        console.print(part)


def _parts(explanation: Explanation, width: int) -> Iterator[Renderable]:
    yield _facts(explanation)
    yield _honesty(explanation)
    yield from (Text(printable(note), "yellow") for note in explanation.notes)
    for number, explained in enumerate(explanation.explained, 1):
        yield Text()
        yield from _function(number, explained, width)
    left = explanation.functions - len(explanation.explained)
    if left > 0:
        yield Text(f"\n{left} more functions took less: --top shows more.", "dim")


def _facts(explanation: Explanation) -> Text:
    hosts = [host.host for host in explanation.hosts]
    where = hosts[0] if len(hosts) == 1 else f"{len(hosts)} hosts"
    facts = [f"Run {explanation.run_id}"]
    facts += [f"user {explanation.user}"] if explanation.user else []
    text = Text(printable(", ".join([*facts, f"on {where}"])), "bold")
    functions = f"{explanation.functions} function" + "s" * (explanation.functions != 1)
    what = (
        f"Explained: {explanation.selection}; {_calls(explanation.targets)}, "
        f"{functions}, {human_ns(explanation.time_ns)} summed over threads"
    )
    return text.append("\n" + printable(what), "default")


def _calls(count: int) -> str:
    return f"{human_count(count)} call" + "s" * (count != 1)


def _honesty(explanation: Explanation) -> Text:
    colour, state = _STATE[explanation.state]
    text = Text(f"{state}: ", colour)
    text.append(f"{human_count(explanation.events)} events kept, ", "default")
    lost = f"{human_count(explanation.lost)} LOST" if explanation.lost else "none lost"
    text.append(lost, "bold red" if explanation.lost else "default")
    text.append(f", {human_count(explanation.filtered)} filtered", "default")
    residuals = [h.clock_residual_ns for h in explanation.hosts if h.clock_residual_ns is not None]
    if not explanation.clocks_agree:
        text.append("; clocks of the hosts DISAGREE", "bold red")
    elif len(explanation.hosts) > 1 and residuals:
        text.append(f"; clocks of the hosts to {human_ns(max(residuals))}", "default")
    return text.append(".", "default")


def _function(number: int, explained: Explained, width: int) -> Iterator[Renderable]:
    yield _headline(number, explained)
    if explained.unfinished:
        yield Text(printable(_unfinished(explained)), "yellow")
    if not explained.count:
        return
    yield from _contexts(explained.inside, width)
    yield Text()
    yield paragraph("By layer", shares(explained.layers))
    causes = [part for part in explained.causes if part.name != Cause.NONE]
    if causes:
        yield paragraph("By cause", shares(causes))
    for work in explained.later[:3]:
        yield paragraph(
            "Meanwhile",
            f"{work.name} ({work.layer}) on the same file, by the kernel, during "
            f"{human_ns(work.time_ns)} ({human_share(work.share)}) of these calls",
        )
    yield from _variation(explained)
    yield from _slowest(explained.slowest)


def _headline(number: int, explained: Explained) -> Text:
    text = Text(printable(f"{number}. {explained.name} ({explained.layer})"), "bold")
    return text.append(f": {numbers_of(explained)}", "default")


def numbers_of(explained: Explained) -> str:
    """Counts, times and bytes, on one line."""
    facts = [
        f"{_calls(explained.count)}, {human_ns(explained.time_ns)}, "
        f"{human_share(explained.share)} of the time",
        f"mean {human_ns(explained.mean_ns)}",
        f"p50 {human_ns(explained.p50_ns)}",
        f"p99 {human_ns(explained.p99_ns)}",
        f"max {human_ns(explained.max_ns)}",
    ]
    facts += [human_bytes(explained.bytes)] if explained.bytes else []
    facts += [f"{human_count(explained.failed)} failed"] if explained.failed else []
    return ", ".join(facts)


def _unfinished(explained: Explained) -> str:
    text = (
        f"{human_count(explained.unfinished)} calls did not return, "
        f"{human_ns(explained.unfinished_ns)} in all: not in what follows."
    )
    where = [f"{s.name} on {human_count(s.threads)}" for s in explained.stuck_in[:4]]
    more = ", ..." * (len(explained.stuck_in) > 4)
    return text + f" Threads still in them, by innermost call: {', '.join(where)}{more}." * bool(
        where
    )


_COLUMNS = (("Where the time went", 0), ("layer", 10), ("calls", 7), ("total", 7), ("self", 7))
_SELF = ("self %", 7)


def _contexts(inside: list[Inner], width: int) -> Iterator[Renderable]:
    columns = (*_COLUMNS, _SELF)
    table = new_table(width, *columns)
    name = name_width(width, columns)
    longest = sorted(inside, key=lambda i: (-i.time_ns, i.depth))[:ROWS]
    least = min((inner.time_ns for inner in longest), default=0)
    shown = [inner for inner in inside if inner.time_ns >= least and inner.share >= LEAST_SHARE]
    for inner in shown:
        indent = min(2 * inner.depth, name // 2)
        table.add_row(
            " " * indent + cut(inner.name, name - indent),
            cut(inner.layer, 10),
            count_or_dash(inner.count),
            short_ns(inner.time_ns),
            short_ns(inner.self_ns),
            tight(human_share(inner.self_share)),
        )
    yield table
    if len(shown) < len(inside):
        left = len(inside) - len(shown)
        yield Text(f" ... and {left} more places, shorter than these", "dim")


def shares(parts: list[Part]) -> str:
    """The largest parts with their shares."""
    shown = [f"{part.name} {human_share(part.share)}" for part in parts[:6]]
    return ", ".join(shown) + ", ..." * (len(parts) > 6)


def _variation(explained: Explained) -> Iterator[Renderable]:
    variation = explained.variation
    if variation is None:
        return
    yield paragraph("Variation", split_sentence(explained, variation))
    for number, finding in enumerate(variation.findings[:FINDINGS], 1):
        yield paragraph(f"{number:>9}.", sentence(finding), style="default")
    if not variation.findings:
        yield Text("Nothing in the trace tells the slow calls from the fast ones.", "dim")


def _slowest(calls: list[SlowCall]) -> Iterator[Renderable]:
    for number, call in enumerate(calls):
        yield paragraph("" if number else "Slowest", slow_call(call))


def slow_call(call: SlowCall) -> str:
    """One call: how long, when and where, on what, and where its time went."""
    where = [f"{human_ns(call.dur_ns)}: {_time_of_day(call.start_ns)}{call.host}"]
    where += [f"rank {call.rank}"] if call.rank is not None else []
    where += [f"pid {call.pid}" + f" tid {call.tid}" * (call.tid != call.pid)]
    where += [call.path] if call.path else []
    where += [f"{human_bytes(call.size)} at {call.offset}"] if call.offset >= 0 <= call.size else []
    where += [f"returned {call.ret}"] if call.ret < 0 else []
    top = sorted((i for i in call.inside if i.depth), key=lambda inner: -inner.self_ns)[:2]
    main = [f"{i.name} {human_share(i.self_share)}" for i in top if i.self_share >= 0.05]
    return ", ".join(where) + ("; in " + ", ".join(main) if main else "")


def _time_of_day(real_ns: int | None) -> str:
    if real_ns is None:
        return ""
    whole, rest = divmod(real_ns, 1_000_000_000)
    moment = datetime.fromtimestamp(whole, UTC)
    return f"{moment:%H:%M:%S}.{rest // 1_000_000:03d} UTC on "
