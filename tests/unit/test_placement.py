"""Where probes go: cheaper places are found, and only where the move is certain to be safe."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
from unit.assembled import assemble, branch_targets, code_of, offsets

from datacrumbs.probes import elf
from datacrumbs.tracer.instructions_x86 import X86

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64 code")

LIBC = elf.find_binary("libc.so.6", "x86_64")


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

writes_memory
movb $0, (%rdi)
nop
ret
"""


def test_the_probe_moves_only_where_nothing_can_tell(tmp_path: Path) -> None:
    library = assemble(tmp_path, MOVES)
    starts = offsets(library, "x86_64")
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
        "writes_memory": 3,
    }
    kept = code.places((start, True) for start in starts.values())
    assert kept[starts["compares"]] == starts["compares"] + 4
    for name in ("loads_third_argument", "writes_memory"):  # where a string may be
        assert kept[starts[name]] == starts[name]


def test_without_the_disassembler_all_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "iced_x86", None)
    code = code_of(LIBC)
    assert all(
        start == place for start, place in code.places((s, False) for s in code.starts).items()
    )
    assert code.exits(min(code.starts)) is None


def test_every_branch_of_libc_is_seen() -> None:
    command = ["objdump", "-d", "--no-show-raw-insn", LIBC]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    targets = branch_targets(listing)
    assert len(targets) > 10000
    # libc's code lies in the file where it does in memory
    assert targets <= set(X86().targets(LIBC.read_bytes()).tolist())


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
    names = offsets(LIBC, "x86_64")
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
    starts, code = offsets(library, "x86_64"), code_of(library)

    def exits(name: str) -> list[tuple[int, bool]] | None:
        found = code.exits(starts[name])
        return None if found is None else [(e.offset - starts[name], e.tail) for e in found]

    assert exits("two_returns") == [(7, False), (8, False)]
    assert exits("tail_call") == [(2, True)]
    assert exits("virtual_tail_call") == [(3, True)]
    assert exits("table") == []
    assert exits("into_the_middle") is None


def test_which_files_exceptions_pass() -> None:
    assert not code_of(LIBC).passed_by_exceptions()
    assert code_of(elf.find_binary("libstdc++.so.6", "x86_64")).passed_by_exceptions()
