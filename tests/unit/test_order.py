"""Events of overlapping segments, put in order without holding them all."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_samples import sample

from datacrumbs.analysis.order import in_order
from datacrumbs.trace.reader import HostTrace, open_trace
from datacrumbs.trace.schema import EVENT_DTYPE
from datacrumbs.trace.writer import TraceWriter

COLUMNS = ("offset", "func", "file")


def _write(directory: Path, ends_and_lengths: list[tuple[int, int]], *, close: bool) -> HostTrace:
    """Calls that ended in this order, into segments of 7; ``offset`` numbers them."""
    writer = TraceWriter(directory, segment_events=7)
    events = np.zeros(len(ends_and_lengths), EVENT_DTYPE)
    events["offset"] = np.arange(len(events))
    events["ts"] = [end - length for end, length in ends_and_lengths]
    events["func"] = events["offset"] % 3
    writer.write_events(events)
    if close:
        writer.close()
    else:
        writer.flush()
    return open_trace(directory).hosts[0]


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 90)), min_size=1, max_size=60),
    st.booleans(),
)
def test_every_event_once_and_in_order(steps: list[tuple[int, int]], close: bool) -> None:
    """Long calls reach back over many segments; the last segment may still be open."""
    ends = itertools.accumulate(step for step, _ in steps)
    calls = [(100 + end, length) for end, (_, length) in zip(ends, steps, strict=True)]
    with tempfile.TemporaryDirectory() as directory:
        host = _write(Path(directory), calls, close=close)
        batches = list(in_order(host, COLUMNS))
    ts = np.concatenate([batch["ts"] for batch in batches])
    number = np.concatenate([batch["offset"] for batch in batches])
    assert sorted(number.tolist()) == list(range(len(calls)))
    assert ts.tolist() == sorted(end - length for end, length in calls)
    assert [calls[n][0] - calls[n][1] for n in number] == ts.tolist()
    func = np.concatenate([batch["func"] for batch in batches])
    assert (func == number % 3).all()


def test_no_event_is_missed_or_doubled_when_the_trace_grows_meanwhile(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, segment_events=1000)
    writer.write_events(sample(2300))
    writer.flush()
    host = open_trace(tmp_path).hosts[0]
    batches = in_order(host, ("offset",))
    first = next(batches)
    writer.write_events(sample(3000, first=2300))  # closes the segment that was open
    writer.flush()
    seen = [n for batch in (first, *batches) for n in batch["offset"].tolist()]
    assert sorted(seen) == list(range(2300))


def test_an_empty_trace_has_no_batches(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, segment_events=10)
    writer.write_rows(
        "functions",
        {"func": [1], "layer": ["a"], "name": ["b"], "kind": ["user"], "op": ["other"]}
        | {"binary": [None]},
    )
    writer.close()
    assert list(in_order(open_trace(tmp_path).hosts[0], COLUMNS)) == []
