"""This kernel's system calls, their numbers and sets, and the C headers that name them."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

import pytest

from datacrumbs.errors import BadInputError, UserError
from datacrumbs.probes import headers, syscalls
from datacrumbs.probes.syscalls import ROLES, SyscallSet, available, entry_points, select
from datacrumbs.trace.schema import Op

MACHINE = platform.machine()


def test_numbers_are_those_that_calls_go_by() -> None:
    """Made by number, a call does what its name says."""
    table = available(MACHINE)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    assert libc.syscall(table["getpid"]) == os.getpid()
    assert libc.syscall(table["gettid"]) == os.getpid()
    fd = os.memfd_create("x")
    try:
        assert libc.syscall(table["write"], fd, b"23 bytes, more or less.", ctypes.c_long(23)) == 23
        assert libc.syscall(table["lseek"], fd, ctypes.c_long(-3), os.SEEK_CUR) == 20
        room = ctypes.create_string_buffer(256)
        assert libc.syscall(table["pread64"], fd, room, ctypes.c_long(9), ctypes.c_long(3)) == 9
        assert room.value == b"bytes, mo"
        assert libc.syscall(table["fstat"], fd, room) == 0
        assert libc.syscall(table["uname"], ctypes.create_string_buffer(6 * 65)) == 0
    finally:
        os.close(fd)


def test_names_are_those_that_users_know() -> None:
    table = available(MACHINE)
    assert {"fstat", "newfstatat", "uname", "sendfile", "umount2", "fadvise64"} <= table.keys()
    assert not table.keys() & {"newfstat", "newuname", "sendfile64", "umount", "ni_syscall"}
    assert len(set(table.values())) == len(table)


def test_what_only_32_bit_programs_call_is_left_out() -> None:
    assert not available(MACHINE).keys() & {"chown16", "stime", "socketcall", "set_thread_area"}


def test_another_machine_is_refused() -> None:
    with pytest.raises(UserError, match="'riscv64' are not known") as caught:
        available("riscv64")
    assert caught.value.hint == "known machines: x86_64, aarch64"


def test_no_source_of_names_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(syscalls, "KALLSYMS", tmp_path / "none")
    monkeypatch.setattr(syscalls, "BTF", tmp_path / "none")
    with pytest.raises(UserError, match="cannot find this kernel's system calls"):
        available(MACHINE)


def test_kallsyms_without_addresses_serves_and_stubs_do_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Other users see every address as zero; type W is what the kernel puts for ENOSYS."""
    fake = tmp_path / "kallsyms"
    prefix = syscalls._ENTRY_PREFIX[MACHINE]
    fake.write_text(
        f"{0:016x} T {prefix}read\n{0:016x} W {prefix}write\n{0:016x} t {prefix}newuname\n"
        f"{0:016x} T {prefix}close\t[some_module]\n{0:016x} T __ia32_sys_open\n"
    )
    monkeypatch.setattr(syscalls, "KALLSYMS", fake)
    assert available(MACHINE).keys() == {"read", "uname"}


def test_headers_have_the_numbers_where_libseccomp_is_missing() -> None:
    names = set(available(MACHINE))
    by_library = syscalls._libseccomp_numbers(names, MACHINE)
    by_header = syscalls._header_numbers(MACHINE)
    assert len(by_library) > 300
    both = by_library.keys() & by_header.keys()
    assert len(both) > 300
    assert {n: by_library[n] for n in both} == {n: by_header[n] for n in both}


def test_the_library_knows_another_machines_numbers() -> None:
    names = {"openat", "open", "getdents64", "io_uring_enter"}
    arm = {"openat": 56, "getdents64": 61, "io_uring_enter": 426}
    assert syscalls._libseccomp_numbers(names, "aarch64") == arm


def test_neither_library_nor_headers_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(syscalls, "INCLUDE", tmp_path)

    def missing(_: str) -> ctypes.CDLL:
        raise OSError("libseccomp.so.2: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(UserError, match="numbers of system calls") as caught:
        available(MACHINE)
    assert "libseccomp" in caught.value.hint


def test_asm_generic_headers_are_followed_one_step() -> None:
    text = (
        "#define __NR3264_fstat 80\n#define __NR_fstat __NR3264_fstat\n"
        "#define __NR_read 63\n#define __NR_syscalls  (__NR_read+1)\n#define __NR_x __NR_read_\n"
    )
    assert syscalls._defined_numbers(text) == {"fstat": 80, "read": 63}


def test_sets_follow_from_roles() -> None:
    table = available(MACHINE)
    data, metadata = (set(select(s, table)) for s in (SyscallSet.DATA, SyscallSet.METADATA))
    everything = select(SyscallSet.IO, table)
    assert {"read", "pwritev2", "splice", "fsync", "mmap", "recvfrom"} <= data
    assert {"openat", "close", "statx", "renameat2", "lseek", "memfd_create"} <= metadata
    assert not data & metadata
    rest = set(everything) - data - metadata
    assert {"io_uring_enter", "io_submit", "sendmmsg"} <= rest
    assert all(ROLES[name].uncounted for name in rest)
    assert not {"poll", "ioctl", "getpid", "futex"} & set(everything)
    assert select(SyscallSet.ALL, table) == sorted(table)


def test_what_returns_a_count_of_messages_is_no_read_or_write() -> None:
    for name in ("recvmmsg", "sendmmsg", "io_submit", "io_getevents", "io_uring_enter"):
        assert ROLES[name].op not in (Op.READ, Op.WRITE, Op.COPY), name


def test_a_header_is_found_where_compilers_look(tmp_path: Path) -> None:
    assert headers.find_header("asm/unistd_64.h", "x86_64").name == "unistd_64.h"
    own = tmp_path / "mine.h"
    own.write_text("long sys_read(int);\nlong sys_pread64 (int);\n#define __NR_statx 332\n")
    names = headers.header_syscalls(headers.find_header(str(own), MACHINE))
    assert names == {"read": "sys_read", "pread64": "sys_pread64", "statx": "__NR_statx"}


def test_headers_that_do_not_help_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"no/such\.h: no such header in /usr/include, "):
        headers.find_header("no/such.h", MACHINE)
    with pytest.raises(BadInputError, match=r"/no/such\.h: no such file"):
        headers.find_header("/no/such.h", MACHINE)
    empty = tmp_path / "empty.h"
    empty.write_text("int main(void);\n")
    with pytest.raises(BadInputError, match=r"empty\.h: names no system calls"):
        headers.header_syscalls(empty)


def test_entry_points_are_those_that_numbers_lead_to() -> None:
    """The second of two names, the newer of two functions; nothing of the 32-bit table."""
    functions = [
        *("__x64_sys_newstat", "__x64_sys_stat", "__do_sys_sync", "__x64_sys_read"),
        *("__do_sys_read", "__ia32_sys_write", "vfs_read", "__x64_sys_sendfile64"),
    ]
    for order in (functions, functions[::-1]):
        assert entry_points(order, "x86_64") == {
            "stat": "__x64_sys_newstat",
            "sync": "__do_sys_sync",
            "read": "__x64_sys_read",
            "sendfile": "__x64_sys_sendfile64",
        }
