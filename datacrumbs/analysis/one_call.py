"""One call by itself: what was inside it, read from the part of the trace where it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from datacrumbs.analysis.attribution import COLUMNS, Attribution, Attributor, Choice, SlowCall
from datacrumbs.analysis.functions import MAX_FUNCTIONS, Flags, Functions
from datacrumbs.analysis.keys import Index
from datacrumbs.analysis.nesting import Nested, Nester, column_names
from datacrumbs.analysis.order import Columns, Piece, in_order, pieces_of
from datacrumbs.analysis.processes import ProcessIndex
from datacrumbs.trace.reader import HostTrace

if TYPE_CHECKING:
    import pyarrow as pa


def calls_inside(host: HostTrace, call: SlowCall) -> Attribution:
    """The sums of one call, as of all targets; empty if it is in the trace no more."""
    functions = Functions(host.table("functions"))
    nester = Nester(functions, ProcessIndex(host.table("processes")))
    is_target = np.zeros(MAX_FUNCTIONS, bool)
    is_target[call.func] = True

    def this_one(batch: Nested, rows: Index) -> Flags:
        same: Flags = batch.rows["ts"][rows] == call.ts
        same &= batch.rows["dur"][rows] == call.dur_ns
        return same

    attributor = Attributor(functions, Choice(is_target, this_one))
    for batch in nester.batches(_events(host, call)):
        attributor.add(batch)
    return attributor.result()


def _events(host: HostTrace, call: SlowCall) -> Iterator[Columns]:
    """The events of the call's thread while it ran, by start, in batches."""
    names = column_names(COLUMNS)
    pieces = [
        _Part(piece.path, piece.min_ts, piece.max_ts, piece.held, call)
        for piece in pieces_of(host, names)
        if piece.min_ts <= call.ts + call.dur_ns and piece.max_ts >= call.ts
    ]
    return (rows for rows in in_order(host, names, pieces) if len(rows["ts"]))


@dataclass(frozen=True, slots=True)
class _Part(Piece):
    """Of a piece, what the call's thread did while it ran."""

    call: SlowCall

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Reads the row groups whose statistics allow for such rows."""
        import pyarrow as pa
        import pyarrow.compute as pc
        from pyarrow import dataset

        call, ts, tid = self.call, pc.field("ts"), pc.field("tid")
        end = call.ts + call.dur_ns
        wanted = (ts >= call.ts) & (ts <= end) & (tid == call.tid)
        if self.held is None:
            segment = dataset.dataset(self.path, format="parquet", partitioning=None)
            found = segment.scanner(names, wanted, use_threads=False).to_batches()
        else:
            found = pa.Table.from_batches(self.held).filter(wanted).to_batches()
        return (batch for batch in found if len(batch))
