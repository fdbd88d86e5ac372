"""``bpf/datacrumbs.h`` for Python: the same structures, checked against it in the tests."""

from __future__ import annotations

import ctypes
import struct
from enum import IntEnum

LAYOUT = 9
SYSCALLS = 512
FUNCTIONS = 65536
LAYERS = 256
POINTS = 64
POINT_ARGUMENTS = 8
URING_OPERATIONS = 64
MAX_CPUS = 1024
RUN_ID_BYTES = 64
JOB_NAME_BYTES = 64
EVENT_BYTES = 64
RULES = 32
RULE_BYTES = 256
POWERS = 48

JOINED, IN_JOB = 1, 2
USES_POS, RETURNS_FD, LEAN, PROBED, CHANGES_DIR = 1, 2, 4, 8, 16
URING_FILE, URING_TRANSFER, URING_VECTOR, URING_OPENS = 1, 2, 4, 8
PROFILED, MOVES, ERRNO, LIMITED = 1, 2, 4, 8


class Call(ctypes.Structure):
    """struct dc_call: what to do about one system call."""

    _fields_ = (
        ("func", ctypes.c_uint16),
        ("select", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        *(
            (name, ctypes.c_int8)
            for name in (
                *("fd", "path", "dirfd", "size", "iov", "iovcnt", "offset", "offset_ptr"),
                *("fd2", "offset2_ptr", "path2", "dirfd2"),
            )
        ),
    )


class Operation(ctypes.Structure):
    """struct dc_operation: what to do about one opcode of io_uring."""

    _fields_ = (
        ("func", ctypes.c_uint16),
        ("bits", ctypes.c_uint8),
        ("unused", ctypes.c_uint8),
    )


class Function(ctypes.Structure):
    """struct dc_function: one function, by its number."""

    _fields_ = (
        ("select", ctypes.c_uint8),
        ("layer", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("kind", ctypes.c_uint8),
        ("object", ctypes.c_int8),
        ("offset", ctypes.c_int8),
        ("size", ctypes.c_int8),
        ("how", ctypes.c_uint8),
        ("returns", ctypes.c_uint8),
        ("unused", ctypes.c_uint8),
        ("embedded", ctypes.c_uint16),
    )


class Subject(IntEnum):
    """What argument ``object`` of a kernel function is (``DC_OF_...``)."""

    NONE = 0
    FILE = 1
    KIOCB = 2
    INODE = 3
    DENTRY = 4
    PATH = 5
    FOLIO = 6
    PAGE = 7
    MAPPING = 8
    FAULT = 9
    READAHEAD = 10
    BIO = 11
    REQUEST = 12
    JOURNAL = 13
    NFS_IO = 14
    NFS_COMMIT = 15


OFFSET_POINTER, SIZE_ITER, OFFSET_PAGES, SIZE_32, KEEPS = 1, 2, 4, 8, 16
"""``how`` of a function: what its arguments ``offset`` and ``size`` are."""


class Returns(IntEnum):
    """What a kernel function returns (``DC_RETURNS_...``)."""

    LONG = 0
    NOTHING = 1
    INT = 2
    UINT = 3
    BYTE = 4


class Part(IntEnum):
    """What a tracepoint is to its function."""

    SINGLE = 1
    ENTER = 2
    LEAVE = 3
    ISSUE = 4
    DONE = 5
    REPLY = 6


class Point(ctypes.Structure):
    """struct dc_point: one tracepoint."""

    _fields_ = (
        ("func", ctypes.c_uint16),
        ("part", ctypes.c_uint8),
        ("arguments", ctypes.c_uint8),
        ("result", ctypes.c_int8),
        ("unused", ctypes.c_uint8 * 3),
        ("roles", Function),
    )


class Layer(ctypes.Structure):
    """struct dc_layer: one entry of the probe file."""

    _fields_ = (
        ("min_duration_ns", ctypes.c_uint64),
        ("max_per_s", ctypes.c_uint32),
        ("unused", ctypes.c_uint32 * 5),
    )


class Rule(ctypes.Structure):
    """struct dc_rule: a path prefix, forward and as a file record has it."""

    _fields_ = (
        ("path", ctypes.c_char * RULE_BYTES),
        ("names", ctypes.c_uint8 * RULE_BYTES),
        ("length", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
    )


class Nfs(ctypes.Structure):
    """struct dc_nfs: offsets in bytes; ``count`` 0: they are not known."""

    _fields_ = tuple((name, ctypes.c_uint16) for name in ("inode", "offset", "count", "done"))


class Config(ctypes.Structure):
    """struct dc_config: set before load, constant afterwards."""

    _fields_ = (
        ("calls", Call * SYSCALLS),
        ("functions", Function * FUNCTIONS),
        ("layers", Layer * LAYERS),
        ("points", Point * POINTS),
        ("operations", Operation * URING_OPERATIONS),
        ("rules", Rule * RULES),
        ("includes", ctypes.c_uint32),
        ("rules_used", ctypes.c_uint32),
        ("run_id", ctypes.c_char * RUN_ID_BYTES),
        ("job_name", ctypes.c_char * JOB_NAME_BYTES),
        ("job_cgroup", ctypes.c_uint64),
        ("secret", ctypes.c_uint64 * 2),
        ("uid", ctypes.c_uint32),
        ("ns_inum", ctypes.c_uint32),
        ("layout", ctypes.c_uint32),
        ("page_shift", ctypes.c_uint32),
        ("cells", ctypes.c_uint32),
        ("wake_events", ctypes.c_uint32),
        ("wake_strings", ctypes.c_uint32),
        ("ring_of_cpu", ctypes.c_uint16 * MAX_CPUS),
        ("nfs_io", Nfs),
        ("nfs_commit", Nfs),
        ("rpc_status", ctypes.c_uint16),
    )


class Counters(ctypes.Structure):
    """struct dc_counters: of one CPU."""

    _fields_ = (
        ("lost", ctypes.c_uint64),
        ("lost_strings", ctypes.c_uint64),
        ("filtered", ctypes.c_uint64),
        ("kept", ctypes.c_uint64),
        ("filtered_duration", ctypes.c_uint64),
        ("filtered_rate", ctypes.c_uint64),
        ("filtered_path", ctypes.c_uint64),
        ("lost_profile", ctypes.c_uint64),
    )


class ProfileKey(ctypes.Structure):
    """struct dc_profile_key: what calls are added up by."""

    _fields_ = (("pid", ctypes.c_int32), ("func", ctypes.c_uint16), ("cpu", ctypes.c_uint16))


class Profile(ctypes.Structure):
    """struct dc_profile: the calls of one key, added up."""

    _fields_ = (
        ("time", ctypes.c_int64),
        ("max", ctypes.c_int64),
        ("bytes", ctypes.c_int64),
        ("errors", ctypes.c_uint64),
        ("calls", ctypes.c_uint32 * POWERS),
    )


class Cell(ctypes.Structure):
    """struct dc_cell: the calls of one function on one thread, added up."""

    _fields_ = (
        ("who", ctypes.c_uint64),
        ("pid", ctypes.c_int32),
        ("unused", ctypes.c_uint32),
        ("sums", Profile),
        ("unused_too", ctypes.c_uint64 * 2),
    )


class Banks(ctypes.Structure):
    """struct dc_banks: which cells are in use, and whether maps were needed besides."""

    _fields_ = (("used", ctypes.c_uint32), ("spilled", ctypes.c_uint32 * 2))


ARGUMENTS = 6
ARGUMENT_TYPES = ("int", "uint", "string", "bytes")
"""Values of `ArgumentType` in the order of DC_INT ..."""

TAIL, KEEP, PLACE_SHIFT = 1 << 16, 1 << 17, 32
"""What an attach cookie has besides the function's number."""


class Argument(ctypes.Structure):
    """struct dc_argument: one argument to keep."""

    _fields_ = tuple((name, ctypes.c_uint16) for name in ("index", "type", "bytes", "unused"))


class Arguments(ctypes.Structure):
    """struct dc_arguments: those of one function."""

    _fields_ = (("list", Argument * ARGUMENTS), ("count", ctypes.c_uint64))


class Operand(ctypes.Structure):
    """struct dc_operand: where a USDT point has an argument."""

    _fields_ = (
        *((name, ctypes.c_uint8) for name in ("how", "bytes", "is_signed", "scale")),
        ("base", ctypes.c_uint16),
        ("index", ctypes.c_uint16),
        ("value", ctypes.c_int64),
    )


class Place(ctypes.Structure):
    """struct dc_place: where one place of a USDT point has its arguments."""

    _fields_ = (("list", Operand * ARGUMENTS),)


class Record(IntEnum):
    """Kinds of records on the string ring."""

    FILE = 1
    NAME = 2
    PROCESS = 3
    PEER = 4
    ARGUMENTS = 5


class What(IntEnum):
    """What a process record tells."""

    START = 1
    FORK = 2
    EXEC = 3
    EXIT = 4


STRING_HEAD = struct.Struct("=IIqQQQIIIIiiiiq16s")
"""struct dc_string up to its text: kind, length, ts, file, base, ino, dev, generation, mode,
what, pid, ppid, fd, exit_code, offset, fstype (or comm)."""

DELETED, CUT_SHORT = 1, 2
"""``what`` of a file record."""
