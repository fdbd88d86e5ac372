"""Functions of ELF files: found where the program runs them, and refused where it matters."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datacrumbs.errors import BadInputError
from datacrumbs.probes.elf import IFUNC, ElfFunctions, find_binary, read_functions

MACHINE = platform.machine()
OTHER_MACHINE = {"x86_64": "aarch64", "aarch64": "x86_64"}[MACHINE]

SOURCE = r"""
#include <stdio.h>
int counter = 23;
static int __attribute__((noinline, used)) hidden(int x) { return x * counter; }
int lead_read(int x) { return hidden(x) + 1; }
int __lead_read(int x) __attribute__((alias("lead_read")));
int lead_read_v1(int x) __attribute__((weak, alias("lead_read")));
int lead_write(int x) { printf("%d\n", x); return x; }
static int fast(int x) { return x; }
static void *choose(void) { return fast; }
int lead_fast(int x) __attribute__((ifunc("choose")));
int _setjmp(void *x) { return x != 0; }
int lead_jump(void *x) __attribute__((alias("_setjmp")));
int LONG(int x) { return x - 1; }
int lead_cold(int x) __attribute__((section(".text.unlikely")));
int lead_cold(int x) { return x + 2; }
__asm__(".globl lead_write.cold\n.type lead_write.cold, @function\nlead_write.cold: ret\n"
        ".globl lead_label\nlead_label: ret\n"
        ".data\n.globl lead_odd\n.type lead_odd, @function\nlead_odd: .byte 0\n.text\n");
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("elf")
    source = directory / "lead.c"
    source.write_text(SOURCE.replace("LONG", "lead_" + "x" * 300))
    made = directory / "liblead.so"
    options = ["-shared", "-fPIC", "-O1", "-w", "-Wl,--build-id=0x00112233445566778899"]
    subprocess.run(["cc", *options, "-o", made, source], check=True)
    return made


def find(path: Path, regex: str) -> ElfFunctions:
    return read_functions(path, re.compile(regex), MACHINE)


def test_names_at_one_address_are_one_function(library: Path) -> None:
    found = find(library, "lead_read.*|__lead_read")
    (function,) = found.functions
    assert function.name == "lead_read"
    assert function.aliases == ["lead_read_v1", "__lead_read"]
    assert found.skipped == []
    assert found.build_id == "00112233445566778899"
    assert found.digest is None


def test_the_name_that_was_asked_for_goes_first(library: Path) -> None:
    (function,) = find(library, "__lead_read").functions
    assert function.name == "__lead_read"
    assert set(function.aliases) == {"lead_read", "lead_read_v1"}


def test_static_functions_are_found(library: Path) -> None:
    assert [f.name for f in find(library, "hidden").functions] == ["hidden"]


def test_an_offset_is_where_the_running_code_comes_from(library: Path) -> None:
    loaded = ctypes.CDLL(str(library))
    for name in ("lead_read", "lead_write", "lead_cold"):
        address = ctypes.cast(getattr(loaded, name), ctypes.c_void_p).value
        assert address is not None
        (function,) = find(library, name).functions
        assert function.offset == _mapped_from(address, library)


def _mapped_from(address: int, path: Path) -> int:
    """The file offset that ``address`` of this process maps, as the kernel says."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, offset, _, _, *name = line.split(maxsplit=5)
        start, end = (int(part, 16) for part in span.split("-"))
        if start <= address < end:
            assert name == [str(path)]
            return address - start + int(offset, 16)
    raise AssertionError(hex(address))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("lead_fast", "IFUNC: which implementation runs is decided when the program starts"),
        ("counter", "a variable"),
        ("printf|puts", "comes from another library: probe it there"),
        ("lead_label", "not marked as a function"),
        ("lead_odd", "its address holds no code"),
        ("lead_write[.]cold", "is a part of another function that is jumped to, not called"),
        ("_setjmp", "returns more than once: a return probe would kill the program"),
        ("lead_jump", "returns more than once: a return probe would kill the program"),
        ("lead_x+", "its name is longer than 255 bytes"),
    ],
)
def test_what_cannot_be_probed_is_skipped_with_the_reason(
    library: Path, name: str, reason: str
) -> None:
    found = find(library, name)
    assert found.functions == []
    ((skipped, why),) = found.skipped
    assert re.fullmatch(name, skipped)
    assert why == reason


def test_what_would_break_a_program_is_refused_in_real_libraries() -> None:
    libc = find(find_binary("libc.so.6", MACHINE), ".*")
    named = {name for f in libc.functions for name in (f.name, *f.aliases)}
    refused = {name for name, _ in libc.skipped}
    assert {"setjmp", "_setjmp", "getcontext", "dlsym", "dlopen", "memcpy"} <= refused
    assert {"fopen", "open64", "read", "__write", "fsync"} <= named
    twice = {name for name, reason in libc.skipped if name in named and reason != IFUNC}
    assert twice == set()
    gcc = find(find_binary("libgcc_s.so.1", MACHINE), "_Unwind_.*")
    assert gcc.functions == []
    assert len(gcc.skipped) > 10


def test_only_an_old_version_of_a_name_that_is_taken_is_shown(library: Path) -> None:
    libc = find(find_binary("libc.so.6", MACHINE), ".*")
    old = [f.name for f in libc.functions if "@" in f.name]
    assert old
    assert all(re.fullmatch(r"\w+@GLIBC_[0-9.]+", name) for name in old)
    names = Counter(f.name for f in libc.functions)
    assert [name for name in old if names[name] > 1] == []


def test_cpp_libraries_are_marked() -> None:
    assert find(find_binary("libstdc++.so.6", MACHINE), ".*").throws
    assert not find(find_binary("libc.so.6", MACHINE), ".*").throws


def test_a_library_without_build_id_has_a_digest(library: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.so"
    subprocess.run(["objcopy", "--remove-section", ".note.gnu.build-id", library, bare], check=True)
    found = find(bare, "lead_write")
    assert found.build_id is None
    assert found.digest is not None
    assert len(found.functions) == 1


def test_stripped_files_keep_what_they_export(library: Path, tmp_path: Path) -> None:
    stripped = tmp_path / "stripped.so"
    subprocess.run(["strip", "-o", stripped, library], check=True)
    assert [f.name for f in find(stripped, "lead_write|hidden").functions] == ["lead_write"]


def test_programs_work_as_libraries_do(tmp_path: Path) -> None:
    source = tmp_path / "a.c"
    source.write_text("int work(int x) { return x; }\nint main(void) { return work(0); }\n")
    for number, options in enumerate((["-no-pie"], ["-pie", "-fPIE"], ["-static"])):
        program = tmp_path / f"a{number}"
        subprocess.run(["cc", *options, "-O0", "-o", program, source], check=True)
        assert [f.name for f in find(program, "work|main").functions] == ["work", "main"]


def test_a_name_is_found_as_the_dynamic_linker_finds_it() -> None:
    path = find_binary("libc.so.6", MACHINE)
    maps = Path("/proc/self/maps").read_text()
    assert str(path) in maps or sys.platform != "linux"
    with pytest.raises(BadInputError, match=r"'libc\.so\.66' is not a library") as caught:
        find_binary("libc.so.66", MACHINE)
    assert caught.value.hint == "did you mean 'libc.so.6'?"
    with pytest.raises(BadInputError, match="is not an absolute path"):
        find_binary("lib/x.so", MACHINE)


def test_links_lead_to_the_file(library: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.so"
    link.symlink_to(library)
    assert find_binary(str(link), MACHINE) == library.resolve()


def test_files_that_are_no_programs_are_named(library: Path, tmp_path: Path) -> None:
    image = bytearray(library.read_bytes())
    kinds = {
        "text": (b"hello", "not an ELF file"),
        "empty": (b"", "not an ELF file"),
        "script.so": (b"/* GNU ld script */", "not an ELF file"),
        "a.a": (b"!<arch>\nx", "a static archive, not an ELF file"),
        "short.so": (bytes(image[:40]), "a damaged ELF file"),
        "bits.so": (bytes(image[:4] + b"\x01" + image[5:]), "32-bit|damaged"),
        "object.o": (bytes(image[:16] + b"\x01\x00" + image[18:]), "an object file, neither"),
        "arm.so": (bytes(image[:18] + b"\x28\x00" + image[20:]), f"for ARM, and this is {MACHINE}"),
    }
    for name, (content, message) in kinds.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(BadInputError, match=f"{re.escape(name)}: .*(?:{message})"):
            find(path, ".*")
    with pytest.raises(BadInputError, match=f"and this is {OTHER_MACHINE}"):
        read_functions(library, re.compile(".*"), OTHER_MACHINE)


def test_places_without_a_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="none: No such file"):
        find(tmp_path / "none", ".*")
    with pytest.raises(BadInputError, match="a directory, not an ELF file"):
        find(tmp_path, ".*")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(BadInputError, match="fifo: not a regular file"):
        find(tmp_path / "fifo", ".*")


@settings(max_examples=200)
@given(data=st.data())
def test_damaged_files_lead_to_one_line(
    data: st.DataObject, library: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    image = bytearray(library.read_bytes())
    headers = int.from_bytes(image[40:48], "little")  # e_shoff
    places = st.integers(0, 1023) | st.integers(headers, len(image) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        image[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.just(len(image)) | st.integers(0, len(image)))
    path = tmp_path_factory.getbasetemp() / "damaged.so"
    path.write_bytes(image[:cut])
    try:
        found = find(path, ".*")
    except BadInputError as error:
        assert error.message.startswith(f"{path}: ")
        assert "\n" not in error.message
    else:
        assert all(0 <= f.offset < cut for f in found.functions)


def test_a_path_that_is_nearly_right_is_hinted_at(library: Path) -> None:
    with pytest.raises(BadInputError, match="No such file") as raised:
        find(library.with_name("liblaed.so"), ".*")
    assert raised.value.hint == f"did you mean '{library}'?"
