"""What the compiled BPF programs must hold, whatever kernel they are loaded into later."""

from __future__ import annotations

import itertools

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from datacrumbs.tracer.libbpf import OBJECT_PATH

TAIL_CALL = bytes((0x85, 0, 0, 0, 12, 0, 0, 0))  # BPF_CALL of helper 12
INSTRUCTION_BYTES = 8


def _programs(section: str) -> dict[str, bytes]:
    """The programs in a section, by name."""
    with open(OBJECT_PATH, "rb") as file:
        elf = ELFFile(file)
        table = elf.get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        found = elf.get_section_by_name(section)
        code, index = found.data(), elf.get_section_index(section)
        functions = [
            symbol
            for symbol in table.iter_symbols()
            if symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_shndx"] == index
        ]
    return {s.name: code[s["st_value"] :][: s["st_size"]] for s in functions}


def test_programs_on_uprobes_have_a_tail_call() -> None:
    """Without one, two threads may use one stack, and the kernel dies (see bpf/task.h)."""
    programs = _programs("uprobe") | _programs("uretprobe")
    assert {"client_start", "user_session", "user_leave", "usdt_enter"} <= set(programs)
    for name, code in programs.items():
        assert len(code) % INSTRUCTION_BYTES == 0
        steps = range(0, len(code), INSTRUCTION_BYTES)
        calls = [code[at : at + INSTRUCTION_BYTES] == TAIL_CALL for at in steps]
        assert any(calls), name


def test_no_other_program_has_one() -> None:
    """Programs with tail calls may use half as much stack."""
    others = itertools.chain(_programs("kprobe").items(), _programs("raw_tp").items())
    for name, code in others:
        assert TAIL_CALL not in code, name
