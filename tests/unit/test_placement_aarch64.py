"""Where probes go in aarch64 code, on any machine; an emulator checks what is known of it."""

from __future__ import annotations

import platform
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import unicorn
from unicorn import arm64_const as arm64
from unit.assembled import AARCH64_COMPILER, assemble, branch_targets, code_of, offsets

from datacrumbs.probes import elf
from datacrumbs.tracer.instructions import Exit, Instruction
from datacrumbs.tracer.instructions_aarch64 import PASSABLE, Aarch64

MACHINE = "aarch64"
LIBC = (
    elf.find_binary("libc.so.6", MACHINE)
    if platform.machine() == MACHINE
    else Path("/usr/aarch64-linux-gnu/lib/libc.so.6")
)

MOVES = """
compares
bti c
cmp x0, #0
b.eq 1f
nop
1: ret

branches_at_once
cbz x0, compares
ret

loads_third_argument
mov x2, #1
b branches_at_once

writes_memory
strb wzr, [x0]
adr x9, .
ret

adds_atomically
stadd x9, [x1]
b branches_at_once

saves_the_return_address
stp x29, x30, [sp, #-16]!
bl compares
ldp x29, x30, [sp], #16
ret

signs_the_return_address
paciasp
cbz x0, 1f
1: autiasp
ret

copies_the_return_address
mov x9, x30
bl compares
ret x9

makes_room
sub sp, sp, #32
b.eq 1f
1: add sp, sp, #32
ret

reads_the_stack
ldr x9, [sp]
ret

returns_at_once
mov w0, #0
ret

asks_the_kernel
mov x8, #172
svc #0
ret

is_where_a_trap_is
mov x9, #1
brk #1
ret

waits_for_an_event
mov x9, #1
wfe
ret

reads_a_literal
ldr x9, 1f
ret
1: .quad 5

reads_the_thread_pointer
mrs x9, tpidr_el0
cbz x9, 1f
1: ret

adds_exclusively
1: ldxr w9, [x0]
cbz w9, 1b
ret

acquires
ldar w9, [x0]
ret

loops
mov x9, x0
1: cbz x9, 2f
sub x9, x9, #1
b 1b
2: ret

is_jumped_into
mov x9, x0
into: mov x10, x0
cbz x10, 1f
1: ret

jumps_there
add x9, x9, #1
tbz w0, #3, into
ret

is_compared_into
mov x9, x0
below: mov x10, x0
cbz x10, 1f
1: ret

compares_and_jumps
add x9, x9, #1
.inst 0x74010000 + (((below - .) / 4 & 0x1ff) << 5)
ret

switches
mov x9, x0
cbz x9, 1f
br x9
1: ret

switches_by_a_signed_pointer
mov x9, x0
cbz x9, 1f
.inst 0xd71f0921
1: ret

holds_no_instruction
mov x9, x0
.inst 0x00000000
ret
"""

STAY = {
    *("saves_the_return_address", "signs_the_return_address", "copies_the_return_address"),
    *("makes_room", "reads_the_stack", "asks_the_kernel", "is_where_a_trap_is"),
    *("waits_for_an_event", "adds_exclusively", "acquires", "loops", "is_jumped_into"),
    *("is_compared_into", "compares_and_jumps"),
    *("switches", "switches_by_a_signed_pointer", "holds_no_instruction", "branches_at_once"),
}
MOVE = {
    **{"compares": 8, "loads_third_argument": 4, "writes_memory": 4, "adds_atomically": 4},
    **{"returns_at_once": 4, "reads_a_literal": 4, "reads_the_thread_pointer": 4},
    "jumps_there": 4,
}
CHANGE_ARGUMENTS = {"loads_third_argument", "writes_memory", "adds_atomically", "returns_at_once"}


def test_the_probe_moves_only_where_nothing_can_tell(tmp_path: Path) -> None:
    library = assemble(tmp_path, MOVES, AARCH64_COMPILER, ".arch armv8.5-a")
    starts, code = offsets(library, MACHINE), code_of(library)
    places = code.places((start, False) for start in starts.values())
    moved = {name: places[start] - start for name, start in starts.items()}
    assert moved == dict.fromkeys(STAY, 0) | MOVE
    kept = code.places((start, True) for start in starts.values())
    moved = {name: kept[start] - start for name, start in starts.items()}
    assert moved == dict.fromkeys(STAY | CHANGE_ARGUMENTS, 0) | {
        name: by for name, by in MOVE.items() if name not in CHANGE_ARGUMENTS
    }


def test_without_the_disassembler_all_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "capstone", None)
    code = code_of(LIBC)
    places = code.places((start, False) for start in code.starts)
    assert places and all(start == place for start, place in places.items())


def test_every_branch_of_libc_is_seen() -> None:
    command = ["aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn", LIBC]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    targets = branch_targets(listing)
    assert len(targets) > 10000
    # libc's code lies in the file where it does in memory
    assert targets <= set(Aarch64().targets(LIBC.read_bytes()).tolist())


def test_all_of_libc_stays_on_instructions() -> None:
    """objdump, which knows nothing of us, agrees about every place that a probe moved to."""
    code = code_of(LIBC)
    places = code.places((start, False) for start in code.starts)
    moved = {start: place for start, place in places.items() if start != place}
    assert len(moved) > 300
    command = ["aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn", LIBC]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # libc's code lies in the file where it does in memory
    found = {int(a, 16): op for a, op in re.findall(r"^ *([0-9a-f]+):\t(\S+)", listing, re.M)}
    kinds = re.compile(r"b(\.\w+)?|blr?|br|ret|cbn?z|tbn?z|adrp?")
    assert not [hex(place) for place in moved.values() if not kinds.fullmatch(found[place])]
    names = offsets(LIBC, MACHINE)
    for name in ("read", "write"):  # begin by saving the return address
        assert places[names[name]] == names[name], name


DATA, CODE = 0x10000000, 0x400000
SIZE = 1 << 22
REGISTERS = [getattr(arm64, f"UC_ARM64_REG_X{n}") for n in range(31)]


class Emulator:
    """Runs single instructions."""

    def __init__(self, words: list[int]) -> None:
        self._machine = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        self._machine.mem_map(CODE, -(-len(words) * 4 // 4096) * 4096)
        self._machine.mem_write(CODE, b"".join(word.to_bytes(4, "little") for word in words))
        self._machine.mem_map(DATA, SIZE)
        self._machine.hook_add(unicorn.UC_HOOK_MEM_WRITE, self._note)
        self._written: list[tuple[int, ...]] = []

    def _note(self, _: object, __: int, *write: object) -> None:
        self._written.append(tuple(int(str(part)) for part in write[:3]))

    def run(self, number: int, link: int, stack: int) -> tuple[list[int], list[object]] | None:
        """Registers x0 to x30 before; they, sp, pc and writes after. None: it faults."""
        machine = self._machine
        before = [DATA + SIZE // 2 + 256 * n for n in range(30)] + [link]
        for register, value in zip(REGISTERS, before, strict=True):
            machine.reg_write(register, value)
        machine.reg_write(arm64.UC_ARM64_REG_SP, stack)
        machine.reg_write(arm64.UC_ARM64_REG_NZCV, 0)
        self._written.clear()
        at = CODE + number * 4
        try:
            machine.emu_start(at, 0, count=1)
        except unicorn.UcError:
            return None
        after = [machine.reg_read(register) for register in REGISTERS]
        special = (arm64.UC_ARM64_REG_SP, arm64.UC_ARM64_REG_PC)
        return before, [*after, *map(machine.reg_read, special), *self._written]


def passable_words() -> Iterator[int]:
    """Random ones of each kind that a probe may move past."""
    chosen = random.Random(1)
    for mask, rest in PASSABLE:
        for _ in range(9000):
            yield chosen.getrandbits(32) & ~mask | rest


def test_an_emulator_agrees_about_what_instructions_keep() -> None:
    """Of random instructions, what is said to be kept is kept, and never said of one that faults
    or makes a difference by where the stack pointer and x30 point."""
    words = sorted(set(passable_words()))
    emulator, machine = Emulator(words), Aarch64()
    links, stacks = (DATA, DATA + 64), (DATA + SIZE // 4, DATA + SIZE // 4 + 4096)
    checked: Counter[str] = Counter()
    for number, word in enumerate(words):
        said = next(machine.decode(word.to_bytes(4, "little")), Instruction(0))
        first = emulator.run(number, links[0], stacks[0])
        other = emulator.run(number, links[1], stacks[1])
        if not said.goes_on or first is None or other is None:
            continue
        before, after = first
        assert after[32] == CODE + number * 4 + 4, hex(word)
        if said.keeps_return:
            checked["return"] += 1
            assert after[30:32] == [links[0], stacks[0]], hex(word)
            assert other[1][30:32] == [links[1], stacks[1]], hex(word)
            assert after[:30] + after[33:] == other[1][:30] + other[1][33:], hex(word)
        if said.keeps_arguments:
            checked["arguments"] += 1
            assert (after[:8], after[33:]) == (before[:8], []), hex(word)
    assert checked["return"] > 5000 and checked["arguments"] > 5000, checked


EXITS = """
two_returns
cbz x0, 1f
ret
1: ret x9

calls
bl two_returns
b 1f
1: .inst 0xd65f0bff

tail_call
b two_returns

virtual_tail_call
ldr x16, [x0]
br x16
"""


def test_exits(tmp_path: Path) -> None:
    library = assemble(tmp_path, EXITS, AARCH64_COMPILER)
    code = code_of(library)
    found = {name: code.exits(start) for name, start in offsets(library, MACHINE).items()}
    starts = offsets(library, MACHINE)
    assert found == {
        name: [Exit(starts[name] + at, tail) for at, tail in exits]
        for name, exits in {
            "two_returns": [(4, False), (8, False)],
            "calls": [(8, False)],
            "tail_call": [(0, True)],
            "virtual_tail_call": [(4, True)],
        }.items()
    }
