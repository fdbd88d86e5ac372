"""What a kernel function is about, by the running kernel's own types; what stands for it."""

from __future__ import annotations

import pytest

from datacrumbs.probes.btf import (
    BTF_DIRECTORY,
    Btf,
    KernelTypes,
    Kind,
    Prototype,
    Type,
    kernel_types,
)
from datacrumbs.trace.schema import Op
from datacrumbs.tracer import layout, points
from datacrumbs.tracer.kernel_functions import why_not
from datacrumbs.tracer.kernel_roles import Roles, op_of, result_of, roles_of
from datacrumbs.tracer.layout import Returns, Subject

pytestmark = pytest.mark.skipif(not BTF_DIRECTORY.exists(), reason="a kernel without BTF")


def roles(function: str) -> Roles:
    found = kernel_types().function(function)
    assert found, function
    return roles_of(*found)


def prototype(function: str) -> Prototype:
    found = kernel_types().function(function)
    assert found, function
    return found[0]


def test_a_transfer_has_file_size_and_position() -> None:
    assert roles("vfs_read") == Roles(
        kind=Subject.FILE,
        object=0,
        offset=3,
        size=2,
        how=layout.OFFSET_POINTER,
        returns=Returns.LONG,
    )
    parameters = prototype("vfs_read").parameters
    assert [name for name, _ in parameters] == ["file", "buf", "count", "pos"]


def test_an_iocb_tells_more_than_any_other_argument() -> None:
    found = roles("generic_file_read_iter")
    assert (found.kind, found.object, found.offset) == (Subject.KIOCB, 0, -1)
    assert (found.size, found.how) == (1, layout.SIZE_ITER)


def test_nothing_returned_and_an_int_returned_are_told_apart() -> None:
    assert roles("vfs_fsync_range").returns is Returns.INT
    assert roles("vfs_fsync_range").offset == 1
    assert roles("iput").returns is Returns.NOTHING
    assert roles("iput").kind is Subject.INODE


def test_a_structure_by_value_hides_the_arguments_behind_it() -> None:
    value = Type("big", Kind.STRUCT, 16)
    count = Type("size_t", Kind.INT, 8)
    made = Prototype((("value", value), ("count", count)), Type("int", Kind.INT, 4, signed=True))
    (types, *_) = [kernel_types().function("vfs_read")]
    assert types
    assert roles_of(made, types[1]).size == -1


def test_an_inode_inside_a_file_systems_own_structure_is_found() -> None:
    found = kernel_types().function("ext4_sync_fs") or kernel_types().function("vfs_read")
    assert found
    at = found[1].embedded("ext4_inode_info", "inode")
    assert at is not None and 0 < at < 4096
    assert found[1].embedded("ext4_inode_info", "no_such_struct") is None
    assert found[1].embedded("no_such_struct", "inode") is None


def test_operations_come_from_the_words_of_the_name() -> None:
    assert op_of("vfs_read", prototype("vfs_read")) is Op.READ
    assert op_of("vfs_fsync_range", prototype("vfs_fsync_range")) is Op.SYNC
    assert op_of("ext4:ext4_sync_file", None) is Op.SYNC
    assert op_of("thread_pool", None) is Op.OTHER
    # bytes are promised of reads and writes: not where a pointer or nothing known is returned
    assert op_of("some_read", None) is Op.OTHER
    pointer = Prototype((), Type("", Kind.POINTER, 8))
    assert op_of("some_read", pointer) is Op.OTHER


def test_tracepoints_are_found_with_names_of_their_arguments() -> None:
    found = kernel_types().tracepoint("writeback_single_inode")
    assert found
    assert "inode" in [name for name, _ in found[0].parameters]
    assert "__data" not in [name for name, _ in found[0].parameters]
    assert kernel_types().tracepoint("no_such_event") is None


def test_a_journal_is_known_by_the_name_of_its_type() -> None:
    found = kernel_types().tracepoint("jbd2_start_commit")
    assert found
    assert roles_of(*found).kind is Subject.JOURNAL


def test_a_function_is_the_pair_that_bears_its_name() -> None:
    found = points.find("ext4_sync_file", kernel_types())
    assert isinstance(found, points.Found)
    assert [event for event, *_ in found.events] == ["ext4_sync_file_enter", "ext4_sync_file_exit"]
    assert result_of(found.events[1][1], arguments=2) == (1, Returns.INT)


def test_an_explicit_tracepoint_is_that_one_or_the_pair_of_that_name() -> None:
    single = points.find("ext4:ext4_sync_file_enter", kernel_types())
    assert isinstance(single, points.Found) and len(single.events) == 1
    pair = points.find("ext4:ext4_sync_file", kernel_types())
    assert isinstance(pair, points.Found) and len(pair.events) == 2
    assert points.find("ext4:nothing", kernel_types()) == "this kernel has no such tracepoint"
    assert isinstance(points.find("nothing", kernel_types()), str)


def test_requests_are_from_their_issue_to_their_end() -> None:
    for name in ("block:block_rq", "blk_mq_start_request"):
        found = points.find(name, kernel_types())
        assert isinstance(found, points.Found)
        assert tuple(event for event, *_ in found.events) == points.BLOCK


def test_programs_of_points_are_numbered_in_octal() -> None:
    assert [points.program(slot) for slot in (0, 7, 8, 63)] == [
        "point_00",
        "point_07",
        "point_010",
        "point_077",
    ]


def test_why_a_function_cannot_be_probed() -> None:
    assert why_not(["no_such_function"]) == {"no_such_function": "this kernel has no such function"}
    assert "vfs_read" not in why_not(["vfs_read"])


def test_what_is_no_btf_is_refused() -> None:
    with pytest.raises(ValueError, match="not BTF"):
        Btf(bytes(64))
    with pytest.raises(OSError, match="vmlinux"):
        KernelTypes(BTF_DIRECTORY.parent / "nowhere")
