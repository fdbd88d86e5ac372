"""Records of the string ring become rows; the layouts of C and Python are the same."""

from __future__ import annotations

import ctypes
import stat
import struct
import subprocess
from pathlib import Path

from datacrumbs.probes.model import Argument, ArgumentType
from datacrumbs.trace.schema import ARGUMENTS, EVENT_DTYPE, FILES, PEERS, PROCESSES, arrow_schema
from datacrumbs.tracer import layout
from datacrumbs.tracer.names import Names, join, shown

HEADER = Path(__file__).parents[2] / "bpf" / "datacrumbs.h"


def record(kind: int, text: bytes = b"", **fields: object) -> memoryview:
    names = (
        "kind length ts file base ino dev generation mode what pid ppid fd exit_code offset fstype"
    )
    values = dict.fromkeys(names.split(), 0) | {"kind": kind, "length": len(text), "fstype": b""}
    return memoryview(layout.STRING_HEAD.pack(*(values | fields).values()) + text)


def rows(names: Names, table: str) -> list[dict[str, object]]:
    columns = dict(zip(arrow_schema(table).names, names.take(table), strict=False))
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def regular(path: str, **fields: object) -> memoryview:
    text = b"".join(p.encode() + b"\0" for p in reversed(path.strip("/").split("/")))
    return record(layout.Record.FILE, text, **({"mode": stat.S_IFREG, "fstype": b"ext4"} | fields))


def test_a_file_is_one_row_however_often_it_is_announced() -> None:
    names = Names(max_files=10)
    names.add([regular("/a/b c", file=5, ino=9, ts=3), regular("/a/b c", file=5, ino=9, ts=4)])
    (row,) = rows(names, FILES)
    assert (row["path"], row["ino"], row["ts"]) == ("/a/b c", 9, 3)
    assert (row["kind"], row["fstype"]) == ("regular", "ext4")
    assert names.take(FILES) == []


def test_relative_names_stand_below_their_directory() -> None:
    names = Names(max_files=10)
    where = regular("/home/u", file=7, mode=stat.S_IFDIR)
    names.add([where, record(layout.Record.NAME, b"./x//y", file=8, base=7)])
    names.add([record(layout.Record.NAME, b"/etc/passwd", file=10)])
    assert [r["path"] for r in rows(names, FILES)] == ["/home/u", "/home/u/x/y", "/etc/passwd"]


def test_what_is_no_file_is_named_as_such() -> None:
    names = Names(max_files=10)
    names.add(
        [
            regular("", file=1, mode=stat.S_IFSOCK, fstype=b"sockfs", ino=44),
            regular("", file=2, mode=stat.S_IFIFO, fstype=b"pipefs", ino=45),
            regular("[eventfd]", file=3, mode=0o600, fstype=b"anon_inodefs"),
            regular("memfd:x", file=4, fstype=b"tmpfs", what=layout.DELETED),
            regular("/tmp/gone", file=5, what=layout.DELETED),
            regular("deep/down", file=6, what=layout.CUT_SHORT),
            record(layout.Record.FILE, file=7, mode=stat.S_IFBLK, dev=4095 << 20 | 7),
        ]
    )
    found = [(r["path"], r["kind"]) for r in rows(names, FILES)]
    assert found == [
        ("socket:[44]", "socket"),
        ("pipe:[45]", "pipe"),
        ("anon_inode:[eventfd]", "anon"),
        ("/memfd:x", "memfd"),
        ("/tmp/gone (deleted)", "regular"),
        (".../deep/down", "regular"),
        ("/dev/block/4095:7", "block"),
    ]


def test_more_files_than_the_limit_are_counted() -> None:
    names = Names(max_files=2)
    names.add([regular(f"/{i}", file=i) for i in range(1, 6)])
    assert len(rows(names, FILES)) == 2
    assert names.over_limit == 3


def test_processes_and_peers() -> None:
    names = Names(max_files=2)
    names.add([regular("/bin/dd", file=6)])
    fork = {"ts": 1, "pid": 10, "ppid": 9, "fstype": b"dd", "file": 6}
    names.add([record(layout.Record.PROCESS, what=layout.What.FORK, **fork)])
    names.add([record(layout.Record.PEER, ts=4, pid=10, file=6, fd=3, offset=99)])
    (process,) = rows(names, PROCESSES)
    assert process == {
        "ts": 1, "pid": 10, "what": "fork", "ppid": 9, "comm": "dd", "exe": "/bin/dd",
        "exit_code": 0,
    }  # fmt: skip
    assert rows(names, PEERS) == [{"ts": 4, "tid": 10, "file": 6, "fd": 3, "offset": 99}]


def test_arguments_by_name() -> None:
    kept = [
        Argument(name="count", index=2, type=ArgumentType.UINT, bytes=4),
        Argument(name="delta", index=1, bytes=2),
        Argument(name="path", index=0, type=ArgumentType.STRING, bytes=64),
        Argument(name="gone", index=3, type=ArgumentType.BYTES, bytes=8),
    ]
    parts = [struct.pack("=qq", 8, 0xDEADBEEF_FFFFFFFF - 2**64), struct.pack("=qq", 8, 0xFFFE)]
    text = b"".join([*parts, struct.pack("=q", 5), b"/a/\xff\xc3...", struct.pack("=q", -1)])
    names = Names(max_files=10, kept={7: kept})
    names.add([record(layout.Record.ARGUMENTS, text, ts=5, what=7, pid=12)])
    found = rows(names, ARGUMENTS)
    assert {(row["ts"], row["tid"], row["func"]) for row in found} == {(5, 12, 7)}
    assert [(row["name"], row["value"], row["text"]) for row in found] == [
        ("count", 0xFFFFFFFF, None),
        ("delta", -2, None),
        ("path", None, "/a/\\xff\\xc3"),
        ("gone", None, None),
    ]


def test_bytes_that_are_not_utf8_are_kept() -> None:
    assert shown(b"/a\xff") == ("/a\\xff", b"/a\xff")
    assert shown("/ä".encode()) == ("/ä", None)
    assert shown(b"/a\\xff") == ("/a\\xff", None)
    assert join(b"/a", b"../b") == b"/a/../b"


def test_python_and_c_agree_on_every_size_and_offset(tmp_path: Path) -> None:
    program = tmp_path / "sizes.c"
    program.write_text(
        f'#include "{HEADER}"\n#include <stdio.h>\n#include <stddef.h>\n'
        "int main(void) {\n"
        'printf("%d %zu %zu %zu %zu %zu %zu\\n", DC_LAYOUT, sizeof(struct dc_call),'
        " sizeof(struct dc_function), sizeof(struct dc_point) + sizeof(struct dc_operation),"
        " sizeof(struct dc_config), sizeof(struct dc_counters), sizeof(struct dc_event));\n"
        'printf("%zu %zu %zu %zu\\n", offsetof(struct dc_string, text),'
        " offsetof(struct dc_string, pid), offsetof(struct dc_config, uid),"
        " offsetof(struct dc_event, func));\n"
        'printf("%zu %zu %zu\\n", sizeof(struct dc_cell), offsetof(struct dc_cell, sums),'
        " sizeof(struct dc_banks));\n"
        'printf("%zu %zu %zu %d %d", sizeof(struct dc_arguments), sizeof(struct dc_place),'
        " offsetof(struct dc_operand, value), DC_BYTES, DC_ARGUMENTS_RECORD);}\n"
    )
    binary = tmp_path / "sizes"
    subprocess.run(["gcc", "-o", binary, program], check=True)
    said = subprocess.run([binary], check=True, capture_output=True, text=True).stdout.split()
    expected = [
        layout.LAYOUT,
        ctypes.sizeof(layout.Call),
        ctypes.sizeof(layout.Function),
        ctypes.sizeof(layout.Point) + ctypes.sizeof(layout.Operation),
        ctypes.sizeof(layout.Config),
        ctypes.sizeof(layout.Counters),
        layout.EVENT_BYTES,
        layout.STRING_HEAD.size,
        struct.calcsize("=IIqQQQIIII"),
        layout.Config.uid.offset,
        EVENT_DTYPE.fields["func"][1] if EVENT_DTYPE.fields else None,
        ctypes.sizeof(layout.Cell),
        layout.Cell.sums.offset,
        ctypes.sizeof(layout.Banks),
        ctypes.sizeof(layout.Arguments),
        ctypes.sizeof(layout.Place),
        layout.Operand.value.offset,
        layout.ARGUMENT_TYPES.index("bytes"),
        layout.Record.ARGUMENTS,
    ]
    assert [int(word) for word in said] == expected
    assert EVENT_DTYPE.itemsize == layout.EVENT_BYTES
