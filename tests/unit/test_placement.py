"""Where probes go: cheaper places are found, and only where the move is certain to be safe."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

import pytest

from datacrumbs.probes import elf
from datacrumbs.tracer import placement
from datacrumbs.tracer.placement import Code, Exit

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64 code")

LIBC = elf.find_binary("libc.so.6", "x86_64")


def code_of(path: Path) -> Code:
    """Of ``path``; its descriptor stays open with the test."""
    return Code(os.open(path, os.O_RDONLY))


def assemble(tmp_path: Path, text: str) -> Path:
    """A shared library of assembler functions: name, then its lines up to an empty one."""
    source = tmp_path / "code.s"
    parts = []
    for block in text.strip().split("\n\n"):
        name, *lines = [line.strip() for line in block.splitlines()]
        body = "\n".join(lines)
        parts.append(
            f".globl {name}\n.type {name},@function\n{name}:\n{body}\n.size {name}, .-{name}"
        )
    source.write_text("\n".join(parts) + "\n.section .note.GNU-stack\n")
    library = tmp_path / "code.so"
    subprocess.run(["gcc", "-shared", "-nostdlib", "-o", library, source], check=True)
    return library


def offsets(path: Path) -> dict[str, int]:
    """File offset of each function of ``path`` by name."""
    found = elf.read_functions(path, re.compile(".*"), "x86_64")
    return {name: f.offset for f in found.functions for name in (f.name, *f.aliases)}


MOVES = """
compares
cmpb $0, 64(%rdi)
je 1f
nop
1: ret

pushes
push %rbp
pop %rbp
ret

loads_third_argument
mov $1, %edx
jmp pushes

makes_room
sub $24, %rsp
call pushes
add $24, %rsp
ret

reads_the_stack
mov 8(%rsp), %rax
nop
ret

returns_at_once
xor %eax, %eax
ret

asks_the_kernel
mov $39, %eax
syscall
ret

loops
mov %rdi, %rax
1: nop
dec %rax
jne 1b
ret

is_jumped_into
mov %rdi, %rax
into: mov %rax, %rcx
nop
ret

jumps_there
push %rbp
pop %rbp
jmp into

switches
mov %rdi, %rax
nop
jmp *%rax
"""


def test_the_probe_moves_only_where_nothing_can_tell(tmp_path: Path) -> None:
    library = assemble(tmp_path, MOVES)
    starts = offsets(library)
    code = code_of(library)
    places = code.places((start, False) for start in starts.values())
    moved = {name: places[start] - start for name, start in starts.items()}
    assert moved == {
        "compares": 4,
        "pushes": 0,
        "loads_third_argument": 5,
        "makes_room": 0,
        "reads_the_stack": 0,
        "returns_at_once": 0,
        "asks_the_kernel": 0,
        "loops": 0,
        "is_jumped_into": 0,
        "jumps_there": 0,
        "switches": 0,
    }
    kept = code.places((start, True) for start in starts.values())
    assert kept[starts["compares"]] == starts["compares"] + 4
    assert kept[starts["loads_third_argument"]] == starts["loads_third_argument"]


def test_without_the_disassembler_all_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_disassembler", lambda: None)
    code = code_of(LIBC)
    assert all(
        start == place for start, place in code.places((s, False) for s in code.starts).items()
    )
    assert code.exits(min(code.starts)) is None


def test_all_of_libc_stays_on_instructions() -> None:
    """objdump, which knows nothing of us, agrees about every place that a probe moved to."""
    code = code_of(LIBC)
    places = code.places((start, False) for start in code.starts)
    moved = {start: place for start, place in places.items() if start != place}
    assert len(moved) > 100
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", LIBC], capture_output=True, text=True, check=True
    ).stdout
    # libc's code lies in the file where it does in memory
    found = {int(a, 16): op for a, op in re.findall(r"^ *([0-9a-f]+):\t(\S+)", listing, re.M)}
    assert not [hex(place) for place in moved.values() if place not in found]
    kinds = re.compile(r"push|nop|call|j[a-z]+|xchg")
    assert not [found[place] for place in moved.values() if not kinds.match(found[place])]
    names = offsets(LIBC)
    for name in ("read", "write", "close", "pread64", "pwrite64"):
        assert places[names[name]] > names[name], name
        assert found[places[names[name]]] == "je"


EXITS = """
two_returns
test %rdi, %rdi
je 1f
push %rbp
pop %rbp
ret
1: ret

tail_call
push %rbx
pop %rbx
jmp two_returns

virtual_tail_call
mov (%rdi), %rax
jmp *16(%rax)

table
jmp *(%rdi,%rsi,8)

into_the_middle
jmp . + 3
.byte 0x48, 0x89, 0xf8
ret
"""


def test_exits(tmp_path: Path) -> None:
    library = assemble(tmp_path, EXITS)
    starts, code = offsets(library), code_of(library)

    def exits(name: str) -> list[tuple[int, bool]] | None:
        found = code.exits(starts[name])
        return None if found is None else [(e.offset - starts[name], e.tail) for e in found]

    assert exits("two_returns") == [(7, False), (8, False)]
    assert exits("tail_call") == [(2, True)]
    assert exits("virtual_tail_call") == [(3, True)]
    assert exits("table") == []
    assert exits("into_the_middle") is None


def test_exits_of_aarch64() -> None:
    words = [0xD503233F, 0x94000002, 0xD65F03C0, 0x17FFFFF0, 0x14000002, 0xD65F0BFF, 0xD61F0200]
    body = b"".join(word.to_bytes(4, "little") for word in words)
    assert list(placement._exits_aarch64(body, 0x1000)) == [
        Exit(0x1008, False),
        Exit(0x100C, True),
        Exit(0x1014, False),
        Exit(0x1018, True),
    ]


def test_which_files_exceptions_pass() -> None:
    assert not code_of(LIBC).passed_by_exceptions()
    assert code_of(elf.find_binary("libstdc++.so.6", "x86_64")).passed_by_exceptions()
