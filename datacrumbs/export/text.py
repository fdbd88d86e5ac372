"""Lines of text from columns: whole batches at a time, no Python per event."""

from __future__ import annotations

import json
from collections.abc import Iterator

import polars as pl

PIECE_BYTES = 1 << 20
"""About what one gzip member holds, before compression: readers work on members in parallel."""


def lines(frame: pl.DataFrame, *parts: pl.Expr | str) -> memoryview:
    """One line for each row: the parts, one after the other; a column's null is nothing."""
    whole = [pl.lit(part) if isinstance(part, str) else part for part in parts]
    text = frame.select(pl.concat_str([*whole, pl.lit("\n")], ignore_nulls=True)).to_series()
    array = text.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    offsets, data = array.buffers()[1:]
    if not len(array) or data is None:
        return memoryview(b"")
    first, last = memoryview(offsets).cast("q")[array.offset], 0
    last = memoryview(offsets).cast("q")[array.offset + len(array)]
    return memoryview(data)[first:last]


def quoted(names: pl.Series) -> pl.Series:
    """Each of ``names`` as a JSON string."""
    made = [json.dumps(name) if name is not None else None for name in names]
    return pl.Series(names.name, made, pl.String)


def pieces(text: memoryview) -> Iterator[memoryview]:
    """``text`` cut after line ends into pieces of about `PIECE_BYTES`."""
    start = 0
    while start < len(text):
        end = start + PIECE_BYTES
        if end < len(text):
            tail = bytes(text[end : end + 65536])
            end = end + tail.index(b"\n") + 1 if b"\n" in tail else len(text)
        yield text[start:end]
        start = end
