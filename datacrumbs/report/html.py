"""The report as one HTML file that needs no network: ``report.html``, its style and its script.

Everything that differs from run to run is JSON in the page; the script draws it and sets text
only as text. The page allows its own style and script and nothing else, so that not even a name
in a trace that got past all that could load or run anything.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from datacrumbs import __version__
from datacrumbs.analysis.causes import Cause
from datacrumbs.analysis.explanation import Explained
from datacrumbs.analysis.flame import Flame
from datacrumbs.analysis.model import AccessSummary, ProcessSummary, Summary
from datacrumbs.analysis.on_each import Cluster, Progress
from datacrumbs.analysis.pictures import LATENCY_EDGES, Latency, Pictures, draw
from datacrumbs.analysis.summary import summarise_with_durations
from datacrumbs.analysis.timeline import Timeline
from datacrumbs.printable import printable
from datacrumbs.report.explain_text import FINDINGS, numbers_of, shares, slow_call
from datacrumbs.report.json_report import ascii_json
from datacrumbs.report.sentences import sentence, split_sentence
from datacrumbs.report.text import facts, honesty
from datacrumbs.trace.reader import Trace
from datacrumbs.units import human_bytes, human_count, human_ns, human_share
from datacrumbs.whole_file import whole_file

FILES_BYTES = 3_000_000
"""How much of the page the rows of files may take."""

PROCESSES_BYTES = 1_000_000
FUNCTIONS = 2_000
LATENCIES = 200
SKIPPED = 500
HOSTS = 2_000
MOUNTS = 500


def write_page(
    trace: Trace,
    out: Path,
    *,
    top: int,
    progress: Progress | None = None,
    cluster: Cluster | None = None,
) -> None:
    """Write the page of ``trace`` to ``out`` (``-``: standard output), with ``top`` files and
    processes. The events are read twice, on ``cluster`` or here; ``progress`` is told of both.
    """
    with whole_file(out) as file:  # first: that it can be written should not take a minute to see
        summary, durations = summarise_with_durations(
            trace, top=top, progress=progress, cluster=cluster
        )
        pictures = draw(trace, summary, durations, progress=progress, cluster=cluster)
        write_html(summary, pictures, file)


def write_html(summary: Summary, pictures: Pictures, stream: BinaryIO) -> None:
    """Write the page, at most 10 MB whatever the trace holds: the page says what it leaves out."""
    data = ascii_json(msgspec.json.encode(_printable(_data(summary, pictures))))
    # no "<" at all: nothing in the data can end the element it is in
    parts = {
        "style": _asset("report.css"),
        "script": _asset("report.js"),
        "data": data.replace("<", "\\u003c"),
    }
    parts["policy"] = _policy(parts["script"])
    for number, piece in enumerate(_asset("report.html").split("{{")):
        name, _, after = piece.partition("}}")
        text = parts[name] + after if number else piece
        stream.write(text.encode())


def _asset(name: str) -> str:
    return files("datacrumbs.report").joinpath(name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """Allow exactly this script; styles also where the script sets them on elements."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'"


def _printable(value: Any) -> Any:
    """``value`` with control characters in all its strings made visible."""
    match value:
        case str():
            return printable(value)
        case list() | tuple():
            return [_printable(item) for item in value]
        case dict():
            return {key: _printable(item) for key, item in value.items()}
        case _:
            return value


def _data(summary: Summary, pictures: Pictures) -> dict[str, Any]:
    names = _Names()
    explanation = pictures.explanation
    return {
        "run_id": summary.run_id,
        "state": summary.state,
        "lost": summary.lost,
        "facts": facts(summary).plain,
        "honesty": [line.plain for line in honesty(summary)],
        "notes": _notes(summary, pictures),
        "skipped": [f"{s.layer} {s.name}: {s.reason}" for s in summary.skipped[:SKIPPED]],
        "skipped_total": len(summary.skipped),
        "tiles": _tiles(summary),
        "footer": f"DataCrumbs {__version__}. All numbers: datacrumbs_report --format json.",
        "no_events": "" if summary.events else _no_events(summary),
        "hosts": _hosts(summary),
        "hosts_total": len(summary.hosts),
        "functions": _functions(summary),
        "functions_total": len(summary.functions),
        "mounts": _mounts(summary),
        "mounts_total": len(summary.mounts),
        "files": _within(FILES_BYTES, _files(summary)),
        "files_total": summary.files_total,
        "processes": _within(PROCESSES_BYTES, _processes(summary)),
        "processes_total": summary.processes_total,
        "timeline": _timeline(pictures.timeline),
        "flame": _flame(pictures.flame, names),
        "layers": names.layers,
        "names": names.names,
        "slow": [_slow(explained) for explained in explanation.explained],
        "slow_total": explanation.functions,
        "sizes": _sizes(summary),
        "order": _order(summary),
        "edges": _edges(pictures.latencies),
        "latencies": _latencies(summary, pictures.latencies),
    }


def _within(most_bytes: int, rows: Iterable[list[Any]]) -> list[list[Any]]:
    """The first rows, as many as take ``most_bytes`` in the page."""
    kept, size = [], 0
    for row in rows:
        size += len(ascii_json(msgspec.json.encode(_printable(row)))) + 1
        if size > most_bytes:
            break
        kept.append(row)
    return kept


def _no_events(summary: Summary) -> str:
    if summary.profiled:
        return (
            "Not known in profile mode: calls were added up as they were made, and this needs "
            "each of them."
        )
    return "There are no events in this trace."


def _notes(summary: Summary, pictures: Pictures) -> list[str]:
    said = list(summary.notes)
    said += [note for note in pictures.explanation.notes if note not in said]
    if summary.events and summary.profiled:
        said.append("Pictures and explanations are of the events, not of profiled calls.")
    return said if summary.events else list(summary.notes)


def _tiles(summary: Summary) -> list[tuple[str, str, str]]:
    """Label, value, and what it is of."""
    hosts = f"of {len(summary.hosts)} hosts' " if len(summary.hosts) > 1 else "of the run's "
    whole = hosts + human_ns(summary.host_wall_ns)
    if summary.unoverlapped_ns is None or summary.unoverlapped_share is None:
        busy = ("In I/O, unoverlapped", "?", "not known in profile mode")
    else:
        part = human_share(summary.unoverlapped_share)
        busy = (
            "In I/O, unoverlapped",
            human_ns(summary.unoverlapped_ns),
            f"{part} {whole}: one thread or more in I/O",
        )
    calls = summary.events + summary.profiled
    found = [
        busy,
        ("In I/O, all threads", human_ns(summary.io_ns), "summed over threads"),
        ("Read", human_bytes(summary.bytes_read), f"{human_count(summary.reads.count)} accesses"),
        (
            "Written",
            human_bytes(summary.bytes_written),
            f"{human_count(summary.writes.count)} accesses",
        ),
        ("Calls", human_count(calls), f"of {_some(len(summary.functions), 'function')}"),
        (
            "Processes",
            human_count(summary.processes_total),
            f"on {_some(len(summary.hosts), 'host')}",
        ),
        (
            "Files",
            human_count(summary.files_total),
            f"on {_some(len(summary.mounts), 'file system')}",
        ),
    ]
    if summary.wait_ns:
        waiting = ("Waiting", human_ns(summary.wait_ns), "in poll, select, epoll: not in I/O")
        found.append(waiting)
    return found


def _some(count: int, what: str) -> str:
    return f"{human_count(count)} {what}{'s' * (count != 1)}"


def _hosts(summary: Summary) -> list[list[Any]]:
    rows = sorted(summary.hosts, key=lambda host: -host.io_ns)[:HOSTS]
    return [
        [
            *(host.host, host.state, host.counts.events, host.counts.lost, host.io_ns),
            *(host.unoverlapped_ns, host.unoverlapped_share, host.bytes_read, host.bytes_written),
        ]
        for host in rows
    ]


def _functions(summary: Summary) -> list[list[Any]]:
    return [
        [
            *(f.name, f.layer, f.count, f.errors, f.time_ns, f.mean_ns, f.p50_ns, f.p99_ns),
            *(f.max_ns, f.bytes, f.bytes_per_s),
        ]
        for f in summary.functions[:FUNCTIONS]
    ]


def _mounts(summary: Summary) -> list[list[Any]]:
    return [
        [
            *(m.fstype, m.device, m.under, m.files, m.opens, m.reads, m.writes),
            *(m.bytes_read, m.bytes_written, m.time_ns),
        ]
        for m in summary.mounts[:MOUNTS]
    ]


def _files(summary: Summary) -> Iterable[list[Any]]:
    for f in summary.files:
        yield [
            *(f.path, f.fstype or f.kind, f.opens, f.reads, f.writes, f.errors),
            *(f.bytes_read, f.bytes_written, f.time_ns),
        ]


def _processes(summary: Summary) -> Iterable[list[Any]]:
    wall_ns = {host.host: host.wall_ns for host in summary.hosts}
    for p in summary.processes:
        busy_ns = _unoverlapped(p)
        whole_ns = wall_ns[p.host]
        share = busy_ns / whole_ns if busy_ns is not None and whole_ns else None
        yield [
            *(p.comm or p.exe, p.host, p.pid, p.rank, p.threads, p.count, p.io_ns, busy_ns),
            *(share, p.wait_ns, p.bytes_read, p.bytes_written),
        ]


def _unoverlapped(process: ProcessSummary) -> int | None:
    """None where all I/O of the process was profiled."""
    return None if process.io_ns and not process.unoverlapped_ns else process.unoverlapped_ns


def _timeline(found: Timeline) -> dict[str, Any]:
    begin = np.datetime64(found.begin_ns, "ns") if found.of_day else None
    return {
        "begin": "" if begin is None else f"{str(begin)[:23].replace('T', ' ')} UTC",
        "bin_ns": found.bin_ns,
        "bins": found.bins,
        "ranked": any(row.rank is not None for row in found.rows),
        "rows": [[row.host, row.pid, row.rank, row.comm, row.processes] for row in found.rows],
        "operations": _floats(found.operations),
        "bytes_read": _floats(found.bytes_read),
        "bytes_written": _floats(found.bytes_written),
    }


def _floats(values: NDArray[np.int64]) -> str:
    """Four bytes a value, seven digits: a fraction of what the digits would take."""
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


class _Names:
    """Names that come again and again, once each."""

    def __init__(self) -> None:
        self.layers: list[str] = []
        self.names: list[str] = []
        self._layer: dict[str, int] = {}
        self._name: dict[str, int] = {}

    def layer(self, layer: str) -> int:
        return _number(layer, self._layer, self.layers)

    def name(self, name: str) -> int:
        return _number(name, self._name, self.names)


def _number(text: str, known: dict[str, int], listed: list[str]) -> int:
    if text not in known:
        known[text] = len(listed)
        listed.append(text)
    return known[text]


def _flame(flame: Flame, names: _Names) -> dict[str, Any]:
    return {
        "time_ns": flame.time_ns,
        "frames_total": flame.frames_total,
        "frames": [
            [
                *(f.parent, names.layer(f.layer), names.name(f.name), f.count),
                *(f.time_ns, f.self_ns, f.left_out_ns),
            ]
            for f in flame.frames
        ],
    }


def _slow(explained: Explained) -> dict[str, Any]:
    causes = [part for part in explained.causes if part.name != Cause.NONE]
    variation = explained.variation
    return {
        "name": explained.name,
        "layer": explained.layer,
        "facts": numbers_of(explained),
        "causes": f"By layer: {shares(explained.layers)}"
        + (f"; by cause: {shares(causes)}" if causes else ""),
        "variation": split_sentence(explained, variation) if variation else "",
        "findings": [sentence(f) for f in variation.findings[:FINDINGS]] if variation else [],
        "slowest": [slow_call(call) for call in explained.slowest],
    }


def _sizes(summary: Summary) -> list[list[int]]:
    """Every power of two from the smallest to the largest that was seen."""
    reads, writes = ({s.from_bytes: s for s in a.sizes} for a in (summary.reads, summary.writes))
    seen = sorted(reads.keys() | writes.keys())
    if not seen:
        return []
    rows = []
    for power in range(seen[0].bit_length(), seen[-1].bit_length() + 1):
        row = [1 << power - 1]
        for found in (reads.get(row[0]), writes.get(row[0])):
            row += [found.count, found.bytes] if found else [0, 0]
        rows.append(row)
    return rows


def _order(summary: Summary) -> str:
    return " ".join(
        _order_of(name, access)
        for name, access in (("reads", summary.reads), ("writes", summary.writes))
        if access.compared
    )


def _order_of(name: str, access: AccessSummary) -> str:
    return (
        f"Of the {name}, {human_share(access.consecutive_share)} began where the last one ended, "
        f"{human_share(access.sequential_share)} there or further on."
    )


def _edges(latencies: list[Latency]) -> list[int]:
    """The classes of latency from the shortest call to the longest."""
    edges = sorted({edge for one in latencies for edge in (*one.from_ns, *one.to_ns)})
    return [edge for edge in LATENCY_EDGES if edges[0] <= edge <= edges[-1]] if edges else []


def _latencies(summary: Summary, found: list[Latency]) -> list[dict[str, Any]]:
    return [
        {
            "name": one.name,
            "layer": one.layer,
            "from": one.from_ns,
            "count": one.count,
            "p50": f.p50_ns,
            "p99": f.p99_ns,
        }
        for f, one in zip(summary.functions, found, strict=True)
        if one.count
    ][:LATENCIES]
