"""Tracepoints of the kernel's I/O path: page cache, file systems, writeback, block layer.

A probe list names them ``group:event`` (``ext4:ext4_da_write_begin``). A pair becomes calls with
a length: ``ext4:ext4_sync_file`` is ``ext4_sync_file_enter`` and ``..._exit``. On a kernel that
has no probes on functions, a function is looked for among the tracepoints: by its own name, or
in `STANDS_FOR`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from datacrumbs.probes.btf import Btf, KernelTypes, Prototype
from datacrumbs.probes.kernel import PAIRS, REQUESTS
from datacrumbs.probes.model import KernelLayer
from datacrumbs.trace.schema import Op
from datacrumbs.tracer import layout
from datacrumbs.tracer.kernel_roles import op_of, result_of, roles_of
from datacrumbs.tracer.layout import Part
from datacrumbs.tracer.libbpf import Object
from datacrumbs.tracer.plan import Plan

SLOTS = layout.POINTS
BLOCK, NFS, RPC = (REQUESTS[name] for name in ("block_rq", "nfs_rq", "rpc_task"))
BLOCK_KINDS = {"read": Op.READ, "write": Op.WRITE, "other": Op.OTHER}
NFS_KINDS = {"read": Op.READ, "write": Op.WRITE, "commit": Op.SYNC}

STANDS_FOR: dict[str, tuple[str, ...]] = {
    "ext4_writepages": ("ext4_writepages", "ext4_writepages_result"),
    "jbd2_journal_commit_transaction": ("jbd2_start_commit", "jbd2_end_commit"),
    "jbd2__journal_start": ("jbd2_handle_start",),
    "__writeback_single_inode": ("writeback_single_inode_start", "writeback_single_inode"),
    "writeback_single_inode": ("writeback_single_inode_start", "writeback_single_inode"),
    "__mark_inode_dirty": ("writeback_mark_inode_dirty",),
    "filemap_add_folio": ("mm_filemap_add_to_page_cache",),
    "__filemap_add_folio": ("mm_filemap_add_to_page_cache",),
    "filemap_remove_folio": ("mm_filemap_delete_from_page_cache",),
    "filemap_fault": ("mm_filemap_fault",),
    "filemap_map_pages": ("mm_filemap_map_pages",),
    "filemap_get_pages": ("mm_filemap_get_pages",),
    "filemap_dirty_folio": ("writeback_dirty_folio",),
    "block_dirty_folio": ("writeback_dirty_folio",),
    "submit_bio": ("block_bio_queue",),
    "submit_bio_noacct": ("block_bio_queue",),
    "blk_mq_submit_bio": ("block_bio_queue",),
    "blk_mq_start_request": BLOCK,
    "bio_endio": ("block_bio_complete",),
    "xfs_file_write_iter": ("xfs_file_buffered_write",),
    "xfs_file_read_iter": ("xfs_file_buffered_read",),
    "xfs_vn_update_time": ("xfs_update_time",),
    "nfs_file_fsync": ("nfs_fsync_enter", "nfs_fsync_exit"),
    "nfs_readahead": ("nfs_aop_readahead", "nfs_aop_readahead_done"),
    "nfs_wb_all": ("nfs_writeback_inode_enter", "nfs_writeback_inode_exit"),
}
"""Kernel functions whose tracepoints have other names: one, or first and last of a pair."""

DIRT_EVENTS = ("writeback_dirty_folio", "writeback_dirty_page")  # since, and before, Linux 5.18


@dataclass(frozen=True, slots=True)
class Found:
    """The tracepoints that stand for a function, with what each hands over."""

    name: str
    events: tuple[tuple[str, Prototype, Btf], ...]


@dataclass(frozen=True, slots=True)
class Used:
    """A function's name, and its tracepoints with the slots they have."""

    name: str
    events: tuple[tuple[str, int], ...]


def is_point(name: str) -> bool:
    """Whether a probe list's name is one of a tracepoint, not of a function."""
    return ":" in name


def program(slot: int) -> str:
    """The BPF program of a slot (bpf/points.h counts in octal)."""
    return f"point_0{slot:o}"


def dirt_event(types: KernelTypes) -> str | None:
    """The tracepoint of a page becoming dirty."""
    return next((event for event in DIRT_EVENTS if types.tracepoint(event)), None)


def find(name: str, types: KernelTypes) -> Found | str:
    """The tracepoints for ``name``, or why there are none."""
    plain = name.rsplit(":", 1)[-1]
    for events in _candidates(plain, explicit=is_point(name)):
        found = [types.tracepoint(event) for event in events]
        if all(found):
            handed = (one for one in found if one)
            return Found(name, tuple((e, p, t) for e, (p, t) in zip(events, handed, strict=True)))
    if is_point(name):
        return "this kernel has no such tracepoint"
    return "this kernel has no probes on functions, and no tracepoint stands for this one"


def _candidates(plain: str, *, explicit: bool) -> list[tuple[str, ...]]:
    by_table = [STANDS_FOR[plain]] if plain in STANDS_FOR and not explicit else []
    request = [REQUESTS[plain]] if plain in REQUESTS else []
    pairs = [(plain + first, plain + last) for first, last in PAIRS]
    return [*by_table, *request, *([(plain,), *pairs] if explicit else [*pairs, (plain,)])]


def fill(layer: KernelLayer, found: Found, plan: Plan, slot: int) -> Used:
    """Number the function and tell the BPF programs of its tracepoints, from ``slot`` on."""
    events = [event for event, *_ in found.events]
    parts = _number(layer, found, plan)
    for at, ((func, part), (_, prototype, types)) in enumerate(
        zip(parts, found.events, strict=True)
    ):
        point = plan.config.points[slot + at]
        point.func, point.part = func, part
        _fill_roles(point, prototype, types)
        select = plan.config.functions[func]
        point.roles.select, point.roles.layer = select.select, select.layer
    return Used(found.name, tuple((event, slot + at) for at, event in enumerate(events)))


def _number(layer: KernelLayer, found: Found, plan: Plan) -> list[tuple[int, Part]]:
    """For each tracepoint, the number of its function and what it is to that."""
    events = tuple(event for event, *_ in found.events)
    if events == BLOCK:
        first, *_ = _number_kinds(layer, found, plan, BLOCK_KINDS)
        return [(first, Part.ISSUE), (first, Part.DONE)]
    if events == NFS:
        numbers = _number_kinds(layer, found, plan, NFS_KINDS)
        return [(func, part) for func in numbers for part in (Part.ISSUE, Part.REPLY)]
    pair = len(events) == 2
    # one that stands alone moves no bytes that a tracepoint could tell
    op = op_of(found.name, found.events[1][1] if pair else None)
    func = plan.add(layer, found.name, "kernel", op)
    if events == RPC:
        return [(func, Part.ISSUE), (func, Part.REPLY)]
    return [(func, Part.ENTER), (func, Part.LEAVE)] if pair else [(func, Part.SINGLE)]


def _number_kinds(layer: KernelLayer, found: Found, plan: Plan, kinds: dict[str, Op]) -> list[int]:
    return [plan.add(layer, f"{found.name}:{kind}", "kernel", op) for kind, op in kinds.items()]


def _fill_roles(point: layout.Point, prototype: Prototype, types: Btf) -> None:
    count = min(len(prototype.parameters), layout.POINT_ARGUMENTS)
    point.arguments = count
    roles_of(prototype, types, arguments=count).fill(point.roles)
    point.result, point.roles.returns = result_of(prototype, arguments=count)


def attach(bpf: Object, layer: KernelLayer, used: list[Used], plan: Plan) -> int:
    """Attach the tracepoints; how many functions failed, which the plan names."""
    failed = 0
    for function in used:
        # the last first: a start without its end would leave a frame behind
        for event, slot in reversed(function.events):
            if error := bpf.attach_point(program(slot), event):
                reason = f"tracepoint {event}: {os.strerror(error)}"
                plan.skipped.append((layer.name, function.name, reason))
                failed += 1
                break
    return failed
