"""Perfetto's own format (protobuf), by the library of that name: extra ``perfetto``.

An object for each event makes it some ten times slower than the others, which Perfetto's viewer
opens as well; what it has over them is whole nanoseconds since 1970, as Perfetto's other traces.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from datacrumbs.errors import UserError
from datacrumbs.export.chrome import host_pid
from datacrumbs.export.select import HostEvents
from datacrumbs.trace.schema import EventFlag

REALTIME = 1  # BUILTIN_CLOCK_REALTIME


class PerfettoPackets:
    """Turns one host's events into serialized packets, a begin and an end for each."""

    def __init__(self, events: HostEvents, number: int) -> None:
        self._pb = _library()
        self._events = events
        self._number = number
        self._tracks: set[tuple[int, int]] = set()
        self._comms = {row["pid"]: row["comm"] for row in events.processes.iter_rows(named=True)}

    def head(self) -> bytes:
        """Nothing: tracks are described when their first event comes."""
        return b""

    def prepare(self, frame: pl.DataFrame) -> tuple[bytes, pl.DataFrame]:
        """Descriptions of new tracks; the outer of two calls that begin together comes first."""
        frame = frame.with_columns(
            pl.when(pl.col("flags") & EventFlag.ASYNC != 0)
            .then(0)
            .otherwise(pl.col("tid"))
            .alias("_track")
        ).sort("time", "dur", descending=[False, True], maintain_order=True)
        trace = self._pb.Trace()
        for pid, tid in frame.select("pid", "_track").unique(maintain_order=True).iter_rows():
            if (pid, tid) not in self._tracks:
                self._tracks.add((pid, tid))
                self._describe(trace.packet.add(), pid, tid)
        return trace.SerializeToString(), frame

    def _uuid(self, pid: int, tid: int) -> int:
        return host_pid(self._number, pid) << 24 | tid  # a tid has 22 bits

    def _describe(self, packet: Any, pid: int, tid: int) -> None:
        track = packet.track_descriptor
        track.uuid = self._uuid(pid, tid)
        track.thread.pid = host_pid(self._number, pid)
        track.thread.tid = host_pid(self._number, tid)
        comm = self._comms.get(pid, "")
        track.thread.thread_name = f"{comm} on {self._events.host.host}" if tid else "done later"

    def render(self, frame: pl.DataFrame) -> memoryview:
        """The packets of a prepared batch."""
        files = self._events.files.join(frame.select("file").unique(), on="file", how="semi")
        rows = frame.join(files, on="file", how="left", maintain_order="left").select(
            *("pid", "_track", "name", "layer", "time", "dur", "path", "offset", "size", "ret")
        )
        trace = self._pb.Trace()
        for row in rows.iter_rows():
            self._add(trace, row)
        return memoryview(trace.SerializeToString())

    def _add(self, trace: Any, row: tuple[Any, ...]) -> None:
        pid, tid, name, layer, time, dur, path, offset, size, ret = row
        begin, end = trace.packet.add(), trace.packet.add()
        uuid = self._uuid(pid, tid)
        for packet, at, kind in ((begin, time, 1), (end, time + dur, 2)):  # TYPE_SLICE_BEGIN, END
            packet.timestamp = at
            packet.timestamp_clock_id = REALTIME
            packet.trusted_packet_sequence_id = 1
            packet.track_event.type = kind
            packet.track_event.track_uuid = uuid
        event = begin.track_event
        event.name = name or "unknown"
        event.categories.append(layer or "unknown")
        for key, value in (("ret", ret), ("size", size), ("offset", offset)):
            if key == "ret" or value >= 0:
                event.debug_annotations.add(name=key, int_value=value)
        if path is not None:
            event.debug_annotations.add(name="path", string_value=path)


def _library() -> Any:
    try:
        from perfetto.protos.perfetto.trace import perfetto_trace_pb2
    except ImportError as error:
        raise UserError(
            "the format perfetto needs the Python package perfetto",
            hint="pip install 'datacrumbs[perfetto]', or export .json, which Perfetto opens too",
        ) from error
    return perfetto_trace_pb2
