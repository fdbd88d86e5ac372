"""Per-file sums with the files' names, of one host or of many."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datacrumbs.analysis.keys import Numbers
from datacrumbs.analysis.tally import FileTally

if TYPE_CHECKING:
    import pyarrow as pa

NEVER_OPENED = "name"
"""Kind of what was only ever named: looked for in vain, removed, renamed."""

_FIRSTS = ("path", "kind", "fstype", "dev")
_COUNTED = ("files", *FileTally.NAMES)
_MINOR_BITS = 20


def named_files(tally: FileTally, files: pa.Table) -> pa.Table:
    """One row for each path: ``path``, ``kind``, ``fstype``, ``dev``, the sums `FileTally.NAMES`.

    ``files`` is the table of that name. A path that stood for several files one after the
    other is one row. Column ``ident`` holds the path's own bytes.
    """
    keys, sums = tally.result()
    rows = _described(keys, files)
    for name, values in sums.items():
        rows = rows.append_column(name, [values])
    return _sum_by("ident", rows, _FIRSTS)


def merged_files(parts: list[pa.Table]) -> pa.Table:
    """Rows of `named_files` of several hosts, summed by path."""
    import pyarrow as pa

    return parts[0] if len(parts) == 1 else _sum_by("ident", pa.concat_tables(parts), _FIRSTS)


def by_fstype(files: pa.Table) -> pa.Table:
    """Rows of `named_files` summed by ``fstype``, with how many ``files``; by time, falling.

    What is on no file system (a pipe, a socket) goes by its kind.
    """
    sums = _sum_by("fstype", _with_fstype(files), (), _COUNTED)
    return sums.sort_by([("time_ns", "descending"), ("fstype", "ascending")])


def by_mount(files: pa.Table) -> list[dict[str, Any]]:
    """The same by file system type and device, each with the directory ``under`` which all are.

    Device numbers of one file system may differ between hosts: a path counts for the first.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    named = pc.is_valid(files["fstype"])
    rows = _with_fstype(files)
    dev = pc.coalesce(pc.if_else(named, rows["dev"], pa.scalar(0, pa.uint32())), pa.scalar(0))
    rows = rows.set_column(rows.column_names.index("dev"), "dev", dev)
    wanted = [(name, "sum") for name in _COUNTED] + [("path", "min"), ("path", "max")]
    grouped = rows.group_by(["fstype", "dev"], use_threads=False).aggregate(wanted)
    found = []
    for row in grouped.sort_by(
        [("time_ns_sum", "descending"), ("fstype", "ascending")]
    ).to_pylist():
        major, minor = row["dev"] >> _MINOR_BITS, row["dev"] & (1 << _MINOR_BITS) - 1
        found.append(
            {"fstype": row["fstype"], "device": f"{major}:{minor}" if row["dev"] else ""}
            | {"under": _common_directory(row["path_min"], row["path_max"])}
            | {name: row[f"{name}_sum"] for name in _COUNTED}
        )
    return found


def _common_directory(first: str, last: str) -> str:
    """Of all paths sorted between these two; empty if there is none."""
    same = (n for n, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1])
    directory, slash, _ = first[: next(same, min(len(first), len(last)))].rpartition("/")
    return directory or slash


def _with_fstype(files: pa.Table) -> pa.Table:
    """With a column ``files`` of ones, and the kind of what is on no file system as its type."""
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = files.append_column("files", [np.ones(len(files), np.int64)])
    fstype = pc.coalesce(rows["fstype"], rows["kind"], pa.scalar(NEVER_OPENED))
    return rows.set_column(rows.column_names.index("fstype"), "fstype", fstype)


def top_files(files: pa.Table, top: int | None) -> pa.Table:
    """By time, falling: all, or the ``top`` by time and the ``top`` by bytes."""
    import pyarrow.compute as pc

    moved = pc.add(files["bytes_read"], files["bytes_written"])
    ranked = files.append_column("moved", moved)
    by_time = ranked.sort_by([("time_ns", "descending"), ("path", "ascending")])
    if top is None or len(files) <= top:
        return by_time
    least = moved.to_numpy()
    enough = max(1, int(np.partition(least, -top)[-top]))
    most = pc.greater_equal(by_time["moved"], enough).to_numpy()
    # of files with equal bytes the slower ones
    chosen = np.flatnonzero(most)
    chosen = chosen[np.argsort(-by_time["moved"].to_numpy()[chosen], kind="stable")][:top]
    return by_time.take(np.union1d(chosen, np.arange(top)))


def _described(keys: NDArray[np.uint64], files: pa.Table) -> pa.Table:
    """The rows of ``files`` for ``keys``; a key without one is named by its number."""
    import pyarrow as pa
    import pyarrow.compute as pc

    at, known = _last_rows(files["file"].to_numpy(), keys)
    rows = files.select(["path", "path_raw", "kind", "fstype", "dev"]).take(
        pa.array(at, mask=~known)
    )
    names = pa.array(
        [None if ok else f"<file {key:x}>" for key, ok in zip(keys, known, strict=True)],
        pa.string(),
    )
    path = pc.coalesce(rows["path"], names)
    # no kind, so that the kind it has under another key of the same path comes first
    kind = pc.if_else(pc.equal(rows["kind"], NEVER_OPENED), None, rows["kind"])
    kind = pc.if_else(pa.array(known), kind, "unknown")
    ident = pc.coalesce(rows["path_raw"], path.cast(pa.binary()))
    columns = {"ident": ident, "path": path, "kind": kind}
    columns |= {"fstype": rows["fstype"], "dev": rows["dev"]}
    return pa.table(columns)


def _last_rows(
    table: NDArray[np.uint64], keys: NDArray[np.uint64]
) -> tuple[Numbers, NDArray[np.bool_]]:
    """Where in ``table`` each key stands last, and whether it does at all."""
    order = np.argsort(table, kind="stable")
    at = np.searchsorted(table[order], keys, side="right") - 1
    if not len(table):
        return np.zeros(len(keys), np.int64), np.zeros(len(keys), bool)
    return order[at], (at >= 0) & (table[order[at]] == keys)


def _sum_by(
    key: str, rows: pa.Table, firsts: tuple[str, ...], sums: tuple[str, ...] = FileTally.NAMES
) -> pa.Table:
    """Rows of equal ``key``: the first value there is of ``firsts``, the total of ``sums``."""
    wanted: list[Any] = [(name, "first") for name in firsts] + [(name, "sum") for name in sums]
    grouped = rows.group_by(key, use_threads=False).aggregate(wanted)
    return grouped.select([key, *(f"{name}_{how}" for name, how in wanted)]).rename_columns(
        [key, *firsts, *sums]
    )
