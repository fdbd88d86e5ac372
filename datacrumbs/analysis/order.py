"""Events of one host in the order of their start, as a stream.

A segment is sorted by start, but events reach it when the call *returns* and by one ring after
the other, so a segment may hold events that start before the end of the one before it. Those
stand at its head. They are read first, kept, and handed out in their place: memory is what
overlaps, not what was recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datacrumbs.trace.reader import HostTrace, read_segment

if TYPE_CHECKING:
    import pyarrow as pa

Columns = dict[str, NDArray[Any]]
"""Some columns of ``events``, all of one length."""

_LEAST = -(1 << 63)


@dataclass(frozen=True, slots=True)
class Piece:
    """A segment that reads the same each time; ``held``: its rows, if it may still grow."""

    path: Path
    min_ts: int
    max_ts: int
    held: list[pa.RecordBatch] | None

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        return read_segment(self.path, names) if self.held is None else iter(self.held)


def in_order(
    host: HostTrace, columns: Sequence[str], pieces: Sequence[Piece] | None = None
) -> Iterator[Columns]:
    """All events of ``host`` there are now, sorted by ``ts`` within and across batches.

    ``pieces``, from `pieces_of` with the same columns, give the same events in the same batches
    each time, also of a run that goes on.
    """
    names = list(dict.fromkeys(("ts", *columns)))
    pieces = pieces_of(host, names) if pieces is None else pieces
    late = _late(pieces, names)
    newest = _LEAST
    for piece in pieces:
        for batch in piece.batches(names):
            rows = _split(_columns(batch, names), newest)[1]
            if len(rows["ts"]):
                due, late = _split(late, int(rows["ts"][-1]) + 1)
                yield _merged(due, rows)
        newest = max(newest, piece.max_ts)
    if len(late["ts"]):  # of pieces that leave out what came before
        yield late


def pieces_of(host: HostTrace, names: Sequence[str]) -> list[Piece]:
    """What `in_order` reads of ``host``, as it is now; ``names`` with ``ts`` first."""
    segments = host.segments()
    pieces = []
    for segment in segments:
        if segment is segments[-1] and not segment.closed:  # the one that may be growing
            pieces += _held(segment.path, names)
        elif segment.min_ts is not None and segment.max_ts is not None:
            pieces.append(Piece(segment.path, segment.min_ts, segment.max_ts, None))
    return pieces


def _held(path: Path, names: Sequence[str]) -> list[Piece]:
    batches = list(read_segment(path, names))
    if not batches:
        return []
    first, last = batches[0]["ts"][0].as_py(), batches[-1]["ts"][-1].as_py()
    return [Piece(path, first, last, batches)]


def _late(pieces: Sequence[Piece], names: list[str]) -> Columns:
    """The events that start before the newest one of all earlier pieces, sorted."""
    found = [{name: np.empty(0, np.int64) for name in names}]
    newest = _LEAST
    for piece in pieces:
        if piece.min_ts < newest:
            found += _head(piece, names, newest)
        newest = max(newest, piece.max_ts)
    return _merged(*found)


def _head(piece: Piece, names: list[str], newest: int) -> list[Columns]:
    parts = []
    for batch in piece.batches(names):
        rows = _columns(batch, names)
        head, rest = _split(rows, newest)
        # copies: a slice would keep the whole batch in memory
        parts.append({name: values.copy() for name, values in head.items()})
        if len(rest["ts"]):
            break
    return parts


def _columns(batch: pa.RecordBatch, names: list[str]) -> Columns:
    return {name: batch.column(name).to_numpy() for name in names}


def _split(rows: Columns, before: int) -> tuple[Columns, Columns]:
    """The rows that start before ``before``, and the rest."""
    at = int(np.searchsorted(rows["ts"], before))
    return (
        {name: values[:at] for name, values in rows.items()},
        {name: values[at:] for name, values in rows.items()},
    )


def _merged(*parts: Columns) -> Columns:
    """The rows of all ``parts`` by ``ts``."""
    filled = [part for part in parts if len(part["ts"])] or [parts[0]]
    if len(filled) == 1:
        return filled[0]
    rows = {name: np.concatenate([part[name] for part in filled]) for name in filled[0]}
    order = np.argsort(rows["ts"], kind="stable")
    return {name: values[order] for name, values in rows.items()}
