"""Assembler functions in a shared library, and where they lie in it."""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
from pathlib import Path

from datacrumbs.probes import elf
from datacrumbs.tracer.placement import Code

AARCH64_COMPILER = "aarch64-linux-gnu-gcc"
HERE_ONLY = Path("/usr/include", sysconfig.get_config_var("MULTIARCH"))
"""Has headers that are the same everywhere (sys/sdt.h), but only this machine's are installed."""


def compile_aarch64(target: Path, source: str, *flags: str) -> None:
    """A program or, by ``flags``, a library from C."""
    command = [AARCH64_COMPILER, "-x", "c", "-idirafter", HERE_ONLY, *flags, "-o", target, "-"]
    subprocess.run(command, input=source.encode(), check=True)


def code_of(path: Path) -> Code:
    """Of ``path``; its descriptor stays open with the test."""
    return Code(os.open(path, os.O_RDONLY))


def assemble(directory: Path, text: str, compiler: str = "gcc", directives: str = "") -> Path:
    """A shared library of assembler functions: name, then its lines up to an empty one."""
    source = directory / "code.s"
    parts = [directives]
    for block in text.strip().split("\n\n"):
        name, *lines = [line.strip() for line in block.splitlines()]
        body = "\n".join(lines)
        parts.append(
            f".globl {name}\n.type {name},%function\n{name}:\n{body}\n.size {name}, .-{name}"
        )
    source.write_text("\n".join(parts) + "\n.section .note.GNU-stack\n")
    library = directory / "code.so"
    subprocess.run([compiler, "-shared", "-nostdlib", "-o", library, source], check=True)
    return library


def branch_targets(listing: str) -> set[int]:
    """Where the direct branches of objdump's listing lead."""
    branch = (
        r"\t(?:b|bl|b\.\w+|cbn?z|tbn?z|callq?|j[a-z]+)(?:,p[nt])?\s+(?:[^<\n]*, )?([0-9a-f]+) <"
    )
    return {int(target, 16) for target in re.findall(branch, listing)}


def offsets(path: Path, machine: str) -> dict[str, int]:
    """File offset of each function of ``path`` by name."""
    found = elf.read_functions(path, re.compile(".*"), machine)
    return {name: f.offset for f in found.functions for name in (f.name, *f.aliases)}
