"""One call by itself: what was inside it, read from the part of the trace where it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from datacrumbs.analysis.attribution import COLUMNS, Attribution, Attributor, Choice, SlowCall
from datacrumbs.analysis.functions import MAX_FUNCTIONS, Flags, Functions
from datacrumbs.analysis.keys import Index
from datacrumbs.analysis.nesting import Nested, Nester, column_names
from datacrumbs.analysis.order import Columns
from datacrumbs.analysis.processes import ProcessIndex
from datacrumbs.trace.reader import HostTrace, Segment, read_segment

if TYPE_CHECKING:
    from pathlib import Path

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
    found = _read(host, call)
    for batch in nester.batches([found] if len(found["ts"]) else []):
        attributor.add(batch)
    return attributor.result()


def _read(host: HostTrace, call: SlowCall) -> Columns:
    """The events of the call's thread while it ran, by start."""
    import pyarrow as pa

    names = column_names(COLUMNS)
    parts = [part for segment in host.segments() for part in _rows(segment, call, names)]
    if not parts:
        return {name: np.zeros(0, np.int64) for name in names}
    rows = pa.concat_tables(parts).sort_by("ts")
    return {name: rows[name].to_numpy() for name in names}


def _rows(segment: Segment, call: SlowCall, names: list[str]) -> list[pa.Table]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if segment.min_ts is None or segment.max_ts is None:
        return []
    end = call.ts + call.dur_ns
    if segment.min_ts > end or segment.max_ts < call.ts:
        return []
    ts, tid = pc.field("ts"), pc.field("tid")
    wanted = (ts >= call.ts) & (ts <= end) & (tid == call.tid)
    if segment.closed:
        return [_parquet_rows(segment.path, names, wanted)]
    batches = list(read_segment(segment.path, names))
    return [pa.Table.from_batches(batches).filter(wanted)] if batches else []


def _parquet_rows(path: Path, names: list[str], wanted: pa.compute.Expression) -> pa.Table:
    """Reads the row groups whose statistics allow for such rows."""
    from pyarrow import dataset

    return dataset.dataset(path, format="parquet", partitioning=None).to_table(
        columns=names, filter=wanted, use_threads=False
    )
