"""Functions without a symbol: debug files, unwind tables, and what must not be probed in them."""

from __future__ import annotations

import lzma
import os
import platform
import re
import shutil
import struct
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datacrumbs.errors import BadInputError
from datacrumbs.probes import debugfile
from datacrumbs.probes.elf import NO_START, ElfFunctions, read_functions
from datacrumbs.probes.elf_functions import function_map, function_starts
from datacrumbs.probes.elf_identity import NotElfError, elf_identity

MACHINE = platform.machine()

SOURCE = r"""
#include <stdio.h>
#include <stdlib.h>
int counter = 23;
static int __attribute__((noinline, used)) hidden(int x) { return x * counter; }
int __attribute__((noinline)) other(int x) { return hidden(x) + 1; }
void __attribute__((cold, noinline)) seldom(const char *text, int n) { printf("%d%s", n, text); }
int __attribute__((noinline)) split(int x, char **v)
{
    char text[64];
    int n = snprintf(text, sizeof text, "%d %s", x, v[0]);
    if (__builtin_expect(x > 100, 0)) {
        for (int i = 0; i < n; i++) seldom(text + i, n);
    }
    return n + hidden(n);
}
int _setjmp(void *x) { return x != 0; }
int main(int argc, char **argv) { return split(argc, argv) + other(argc); }
"""


def _run(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("offsets")
    source = directory / "lead.c"
    source.write_text(SOURCE)
    _run(
        "gcc", "-O2", "-g", "-w", "-fno-builtin", "-Wl,--build-id", "-o", directory / "lead", source
    )
    return directory / "lead"


def _addresses(program: Path) -> dict[str, int]:
    lines = (line.split() for line in _run("nm", program).splitlines())
    return {fields[2]: int(fields[0], 16) for fields in lines if len(fields) == 3}


def _find(path: Path, regex: str = ".*") -> ElfFunctions:
    return read_functions(path, re.compile(regex), MACHINE, include_offsets=True)


def _names(found: ElfFunctions) -> set[str]:
    return {name for f in found.functions for name in (f.name, *f.aliases)}


def _stripped(program: Path, directory: Path) -> Path:
    path = directory / "stripped"
    _run("strip", "-o", path, program)
    return path


def test_a_stripped_program_has_its_functions_by_address(program: Path, tmp_path: Path) -> None:
    stripped = _stripped(program, tmp_path)
    with pytest.raises(BadInputError, match=r"matches|stripped"):
        if not read_functions(stripped, re.compile("hidden|sub_.*"), MACHINE).functions:
            raise BadInputError("matches nothing")
    at = _addresses(program)
    with_symbols = {f.name: f.offset for f in _find(program).functions}
    found = {f.name: f.offset for f in _find(stripped, "sub_.*").functions}
    for name in ("hidden", "other", "split", "main"):
        assert found[f"sub_{at[name]:x}"] == with_symbols[name]


def test_no_part_of_a_function_is_taken_for_one(program: Path, tmp_path: Path) -> None:
    stripped = _stripped(program, tmp_path)
    at = _addresses(program)
    assert "split.cold" in at, "the compiler did not move a part of split() elsewhere"
    found = _names(_find(stripped))
    assert f"sub_{at['split.cold']:x}" not in found
    assert f"sub_{at['_start']:x}" not in found
    plt = re.findall(r"\.plt\S*\s+PROGBITS\s+(\w+)", _run("readelf", "-SW", stripped))
    assert plt and not [a for a in plt if f"sub_{int(a, 16):x}" in found]
    with open(stripped, "rb") as file:
        starts = function_starts(file.fileno())
    offset = {f.name: f.offset for f in _find(program).functions}
    assert {offset["split"], offset["hidden"]} <= starts
    assert at["split.cold"] not in starts  # a PIE's text: offset and address are the same here


def test_the_signing_service_knows_no_start_that_a_program_does_not_survive(program: Path) -> None:
    at = _addresses(program)
    with open(program, "rb") as file:
        found = function_map(file.fileno())
    assert [found[at[name]] for name in ("other", "_setjmp", "split.cold", "_start")] == [
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize("how", ["build-id", "beside", ".debug", "elsewhere", "minidebuginfo"])
def test_names_come_from_the_debug_file(
    how: str, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debugfile, "DEBUG_DIR", tmp_path / "debug-root")
    debug = tmp_path / "lead.debug"
    _run("objcopy", "--only-keep-debug", program, debug)
    stripped = _stripped(program, tmp_path)
    assert "hidden" not in _names(_find(stripped))
    if how == "minidebuginfo":
        symbols = tmp_path / "symbols"
        _run("objcopy", "--only-keep-debug", "--strip-debug", program, symbols)
        packed = tmp_path / "packed.xz"
        packed.write_bytes(lzma.compress(symbols.read_bytes()))
        _run("objcopy", f"--add-section=.gnu_debugdata={packed}", stripped)
    elif how == "build-id":
        with open(program, "rb") as file:
            build_id, _ = elf_identity(file.fileno())
        assert build_id
        place = debugfile.DEBUG_DIR / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug"
        place.parent.mkdir(parents=True)
        shutil.move(debug, place)
    else:
        _run("objcopy", f"--add-gnu-debuglink={debug}", stripped)
        places = {
            "beside": tmp_path,
            ".debug": tmp_path / ".debug",
            "elsewhere": debugfile.DEBUG_DIR / str(tmp_path).lstrip("/"),
        }
        places[how].mkdir(parents=True, exist_ok=True)
        shutil.move(debug, places[how] / debug.name)
    found = _find(stripped)
    assert {"hidden", "other", "split", "main"} <= _names(found)
    assert dict(found.skipped)["split.cold"].startswith("is a part of another function")
    assert dict(found.skipped)["_setjmp"].startswith("returns more than once")


def test_the_debug_file_of_another_build_is_not_taken(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debugfile, "DEBUG_DIR", tmp_path / "none")
    debug = tmp_path / "lead.debug"
    _run("objcopy", "--only-keep-debug", program, debug)
    stripped = _stripped(program, tmp_path)
    _run("objcopy", f"--add-gnu-debuglink={debug}", stripped)
    other = tmp_path / "other"
    source = tmp_path / "other.c"
    source.write_text("int hidden(void) { return 1; }\nint main(void) { return hidden(); }\n")
    _run("gcc", "-O0", "-g", "-o", other, source)
    _run("objcopy", "--only-keep-debug", other, debug)
    assert "hidden" not in _names(_find(stripped))


def test_a_name_that_only_the_debug_file_has_is_skipped(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root would not take the offset: nothing in the file itself says that a function is there."""
    monkeypatch.setattr(debugfile, "DEBUG_DIR", tmp_path / "none")
    bare = tmp_path / "bare"
    source = tmp_path / "bare.c"
    source.write_text(SOURCE)
    no_unwind = ["-fno-asynchronous-unwind-tables", "-fno-unwind-tables"]
    _run("gcc", "-O2", "-w", *no_unwind, "-Wl,--build-id", "-o", bare, source)
    debug = tmp_path / "bare.debug"
    _run("objcopy", "--only-keep-debug", bare, debug)
    _run("strip", bare)
    _run("objcopy", f"--add-gnu-debuglink={debug}", bare)
    assert dict(_find(bare).skipped)["hidden"] == NO_START


VERSIONED = r"""
__asm__(".symver old_work,work@LEAD_1.0");
__asm__(".symver new_work,work@@LEAD_2.0");
__asm__(".symver only,only@@LEAD_1.0");
int old_work(void) { return 1; }
int new_work(void) { return 2; }
int only_impl(void) { return 3; }
int only(void) { return 4; }
"""


@pytest.fixture(scope="module")
def versioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("versions")
    (directory / "v.c").write_text(
        VERSIONED.replace('__asm__(".symver only,only@@LEAD_1.0");\n', "")
    )
    (directory / "v.map").write_text(
        "LEAD_1.0 { global: work; only; local: *; };\nLEAD_2.0 { global: work; } LEAD_1.0;\n"
    )
    path = directory / "libv.so"
    script = f"-Wl,--version-script={directory}/v.map"
    _run("gcc", "-shared", "-fPIC", "-O1", script, "-o", path, directory / "v.c")
    return path


@pytest.mark.parametrize("strip", [False, True])
def test_each_version_of_a_function_can_be_asked_for(
    versioned: Path, tmp_path: Path, strip: bool
) -> None:
    path = tmp_path / "libv.so"
    shutil.copy(versioned, path)
    if strip:
        _run("strip", path)

    def names(regex: str) -> list[str]:
        found = read_functions(path, re.compile(regex), MACHINE)
        return sorted(f.name for f in found.functions)

    assert names("work") == ["work", "work@LEAD_1.0"]
    assert names("work@LEAD_1.0") == ["work@LEAD_1.0"]
    assert names("work@@?LEAD_2.0") == ["work"]
    assert names("only@LEAD_1.0") == ["only"]
    offsets = {
        f.name: f.offset for f in read_functions(path, re.compile("work"), MACHINE).functions
    }
    dynamic = _run("readelf", "--dyn-syms", "-W", versioned)
    for name, shown in (("work", "work@@LEAD_2.0"), ("work@LEAD_1.0", "work@LEAD_1.0")):
        (address,) = re.findall(rf"^ *\d+: (\w+) .* {re.escape(shown)}$", dynamic, re.MULTILINE)
        assert offsets[name] == int(address, 16)


def test_many_symbols_with_one_endless_name_take_no_time() -> None:
    header, entry = struct.Struct("<IIQQQQIIQQ"), struct.Struct("<IBBHQQ")
    strings, symbols = b"a" * (8 << 20), entry.pack(0, 2, 0, 1, 0, 0) * 20_000
    at = 64 + 2 * header.size
    image = bytearray(64)
    image[:6] = b"\x7fELF\x02\x01"
    struct.pack_into("<Q", image, 40, 64)
    struct.pack_into("<HH", image, 58, header.size, 2)
    image += header.pack(0, 2, 0, 0, at, len(symbols), 1, 0, 0, entry.size)
    image += header.pack(0, 3, 0, 0, at + len(symbols), len(strings), 0, 0, 0, 0)
    before = time.monotonic()
    with tempfile.TemporaryFile() as file:
        file.write(image + symbols + strings)
        file.flush()
        assert function_starts(file.fileno()) == frozenset()
    assert time.monotonic() - before < 5  # 160 GB of names, copied, take longer


@settings(max_examples=150)
@given(data=st.data())
def test_damaged_unwind_tables_break_nothing(data: st.DataObject, program: Path) -> None:
    image = bytearray(program.read_bytes())
    spans = re.findall(
        r"\.eh_frame(?:_hdr)?\s+PROGBITS\s+\w+ (\w+) (\w+)", _run("readelf", "-SW", program)
    )
    for _ in range(data.draw(st.integers(1, 12))):
        start, size = (int(x, 16) for x in data.draw(st.sampled_from(spans)))
        image[start + data.draw(st.integers(0, size - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryFile() as file:
        file.write(image)
        file.flush()
        try:
            found = function_map(file.fileno())
        except NotElfError:
            return
    assert all(0 < start < len(image) for start in found)


@given(st.binary(max_size=80))
def test_any_bytes_as_unwind_entries_break_nothing(tail: bytes) -> None:
    from datacrumbs.probes.unwind import _Frames

    frames = _Frames(struct.pack("<II", len(tail), 4) + tail, 0x1000, "<")
    for at in range(0x0FF8, 0x1008 + len(tail)):
        assert frames.is_function(at) in (True, False)


def test_other_peoples_files_are_refused_in_one_line(tmp_path: Path) -> None:
    for name, content in (("empty", b""), ("text", b"#!/bin/sh\n"), ("cut", b"\x7fELF\x02\x01")):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(BadInputError) as caught:
            _find(path)
        assert caught.value.message.startswith(f"{path}: ")
    with pytest.raises(BadInputError, match="No such file"):
        _find(tmp_path / "deleted")
    assert os.path.isdir(tmp_path)  # noqa: PTH112
