"""USDT points: read from notes as readelf does, and never trusted."""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from unit.assembled import compile_aarch64

from datacrumbs.probes.elf_identity import NotElfError
from datacrumbs.probes.model import Argument
from datacrumbs.probes.usdt import Point, PointArgument, parse_arguments, usdt_points
from datacrumbs.tracer.layout import Operand
from datacrumbs.tracer.usdt import CONSTANT, MEMORY, NO_INDEX, REGISTER, operands

SOURCE = r"""
#define _SDT_HAS_SEMAPHORES 1
#include <sys/sdt.h>
#include <stdlib.h>
#define SEMAPHORE(name) __extension__ unsigned short lead_##name##_semaphore \
    __attribute__((unused, section(".probes")))
SEMAPHORE(step__entry);
SEMAPHORE(step__return);
SEMAPHORE(ratio);
int main(int argc, char **argv) {
    long total = argc;
    STAP_PROBE3(lead, step__entry, argv[0], argc, total);
    STAP_PROBE1(lead, step__return, (unsigned char)argc);
    STAP_PROBE1(lead, ratio, 0.5 * argc);
    return total == 23;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("usdt") / "lead"
    command = ["gcc", "-x", "c", "-O1", "-o", path, "-"]
    subprocess.run(command, input=SOURCE.encode(), check=True)
    return path


def _points(path: Path) -> list[Point]:
    with open(path, "rb") as file:
        return usdt_points(file.fileno())


def _readelf(path: Path) -> list[tuple[str, str, int, str]]:
    """(provider, name, address, arguments), as readelf shows them."""
    shown = subprocess.run(
        ["readelf", "-nW", str(path)], capture_output=True, text=True, check=True
    ).stdout
    pattern = r"Provider: (\S+)\n\s+Name: (\S+)\n\s+Location: (\w+),.*\n\s+Arguments: ?(.*)\n"
    return [(p, n, int(at, 16), a.strip()) for p, n, at, a in re.findall(pattern, shown)]


@pytest.mark.parametrize("which", ["ours", "/usr/bin/python3"])
def test_points_are_those_that_readelf_shows(which: str, program: Path) -> None:
    path = program if which == "ours" else Path(which).resolve()
    points = _points(path)
    assert len(points) >= 3
    shown = _readelf(path)
    assert [(p.provider, p.name, p.address) for p in points] == [s[:3] for s in shown]
    for point, (*_, arguments) in zip(points, shown, strict=True):
        assert point.arguments == parse_arguments(arguments)
        assert point.semaphore


def test_arguments_have_sizes_and_signs(program: Path) -> None:
    entry, leave, ratio = _points(program)
    assert [(a.size, a.signed) for a in entry.arguments] == [(8, False), (4, True), (8, True)]
    assert [(a.size, a.signed) for a in leave.arguments] == [(1, False)]
    assert len(ratio.arguments) <= 1  # older sdt.h cannot describe it


def test_a_stripped_program_keeps_its_points(program: Path, tmp_path: Path) -> None:
    stripped = tmp_path / "stripped"
    subprocess.run(["strip", "-o", stripped, program], check=True)
    assert _points(stripped) == _points(program)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("", ()),
        ("-4@$23", (PointArgument(4, True, False, "$23"),)),
        (
            "8@-8(%rbp) 2@%ax",
            (PointArgument(8, False, False, "-8(%rbp)"), PointArgument(2, False, False, "%ax")),
        ),
        ("8f@%xmm0", (PointArgument(8, False, True, "%xmm0"),)),
        (
            "8@[sp, 8] -4@x0",
            (PointArgument(8, False, False, "[sp,8]"), PointArgument(4, True, False, "x0")),
        ),
        (
            "8@[x0, x1, lsl 3] 4@w2",
            (PointArgument(8, False, False, "[x0,x1,lsl3]"), PointArgument(4, False, False, "w2")),
        ),
        ("3@%rax", ()),
        ("8@", ()),
        ("nonsense", ()),
    ],
)
def test_argument_texts(text: str, arguments: tuple[PointArgument, ...]) -> None:
    assert parse_arguments(text) == arguments


PLACES = st.sampled_from(
    ["%rax", "$-23", "-8(%rbp)", "(%rax,%rdx,8)", "name+4(%rip)", "[sp,8]", "x0", "%fs:-8"]
)


@given(st.lists(st.tuples(st.sampled_from([1, 2, 4, 8]), st.booleans(), PLACES), max_size=12))
def test_what_a_compiler_writes_is_read_back(parts: list[tuple[int, bool, str]]) -> None:
    text = " ".join(f"{'-' if signed else ''}{size}@{place}" for size, signed, place in parts)
    assert parse_arguments(text) == tuple(
        PointArgument(size, signed, False, place) for size, signed, place in parts
    )


@given(st.text(max_size=40))
def test_any_text_is_arguments_or_nothing(text: str) -> None:
    assert all(a.size in (1, 2, 4, 8) for a in parse_arguments(text))


@given(st.text(alphabet="0129xa$%#-()[], rspdi\u0663\u00b2", max_size=24))
@example("$010")
@example("[sp,--1]")
@example("[sp,\u00b2]")
@example("(%rdi,0x)")
@example("$" + "9" * 5000)
def test_any_place_is_understood_or_left_out(place: str) -> None:
    for machine in ("x86_64", "aarch64"):
        assert operand_of(place, machine).how in (0, CONSTANT, REGISTER, MEMORY)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("x3", (REGISTER, 24, NO_INDEX, 0, 0)),
        ("w30", (REGISTER, 240, NO_INDEX, 0, 0)),
        ("sp", (REGISTER, 248, NO_INDEX, 0, 0)),
        ("x31", (0, 0, NO_INDEX, 0, 0)),
        ("77", (CONSTANT, 0, NO_INDEX, 0, 77)),
        ("[x0]", (MEMORY, 0, NO_INDEX, 0, 0)),
        ("[sp,8]", (MEMORY, 248, NO_INDEX, 0, 8)),
        ("[x29,-4]", (MEMORY, 232, NO_INDEX, 0, -4)),
        ("[x29,#-4]", (MEMORY, 232, NO_INDEX, 0, -4)),
        ("[x4,x5]", (MEMORY, 32, 40, 0, 0)),
        ("[x4,x5,lsl3]", (MEMORY, 32, 40, 3, 0)),
        ("[x4,w5,uxtw]", (MEMORY, 32, 40, 4, 0)),
        ("[x4,w5,sxtw3]", (MEMORY, 32, 40, 15, 0)),
        ("[x4,w5,sxtx]", (0, 0, NO_INDEX, 0, 0)),
    ],
)
def test_places_of_aarch64(place: str, expected: tuple[int, ...]) -> None:
    """Registers by their offset in the kernel's ``struct pt_regs``."""
    found = operand_of(place, "aarch64")
    assert (found.how, found.base, found.index, found.scale, found.value) == expected


def test_what_a_compiler_writes_for_aarch64_is_understood(tmp_path: Path) -> None:
    source = r"""
    #include <sys/sdt.h>
    struct part { long first[10]; int second; };
    void step(struct part *part, long *of, long at, char *name, int i)
    {
        volatile long local = at;
        STAP_PROBE6(lead, step, part->first[3], of[at], local, name[i], 77, part->second);
    }
    """
    library = tmp_path / "lead.so"
    compile_aarch64(library, source, "-O2", "-shared", "-fPIC")
    (point,) = _points(library)
    assert len(point.arguments) == 6
    places = [operand_of(argument.place, "aarch64") for argument in point.arguments]
    assert {place.how for place in places} <= {CONSTANT, REGISTER, MEMORY}
    assert (places[4].how, places[4].value) == (CONSTANT, 77)


def operand_of(place: str, machine: str) -> Operand:
    """What is kept of one argument."""
    kept = [Argument(name="a", index=0)]
    return operands((PointArgument(8, True, False, place),), kept, machine).list[0]


def test_a_constant_is_what_the_note_says() -> None:
    for place, value in (("$-23", -23), ("$0x10", 16), ("$18446744073709551615", -1), ("$0", 0)):
        operand = operand_of(place, "x86_64")
        assert (operand.how, operand.value) == (CONSTANT, value)


@settings(max_examples=200)
@given(data=st.data())
def test_damaged_notes_are_left_out(data: st.DataObject, program: Path) -> None:
    image = bytearray(program.read_bytes())
    start = image.index(b"stapsdt\0") - 12
    for _ in range(data.draw(st.integers(1, 8))):
        image[start + data.draw(st.integers(0, 200))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryFile() as file:
        file.write(image)
        file.flush()
        points = usdt_points(file.fileno())
    assert len(points) <= 3
    assert all((p.provider + p.name).isprintable() and p.provider and p.name for p in points)


def test_a_section_header_that_lies_is_refused(program: Path) -> None:
    image = bytearray(program.read_bytes())
    (headers,) = struct.unpack_from("<Q", image, 40)
    (count,) = struct.unpack_from("<H", image, 60)
    for number in range(count):
        struct.pack_into("<Q", image, headers + number * 64 + 24, 1 << 60)  # sh_offset
    with tempfile.TemporaryFile() as file:
        file.write(image)
        file.flush()
        with pytest.raises(NotElfError):
            usdt_points(file.fileno())
