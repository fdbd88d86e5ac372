"""System calls that a C header names."""

from __future__ import annotations

import re
from pathlib import Path

from datacrumbs.errors import BadInputError

INCLUDE = Path("/usr/include")
SOURCES = Path("/usr/src")

# `#define __NR_read 0` (asm/unistd_64.h) or `long sys_read(` (linux/syscalls.h)
_IDENTIFIER = re.compile(r"^#[ \t]*define[ \t]+(__NR_\w+)\b|\b(sys_\w+)[ \t\n]*\(", re.MULTILINE)


def find_header(file: str, machine: str) -> Path:
    """The header ``file``: itself when absolute, else below the usual include directories.

    Those are /usr/include, its directory for ``machine``, and those of installed kernel
    headers, newest first. Raises `BadInputError` that names them.
    """
    if Path(file).is_absolute():
        places = [Path(file)]
    else:
        places = [directory / file for directory in _include_dirs(machine)]
    for place in places:
        if place.is_file():
            return place
    if len(places) == 1:
        raise BadInputError(f"{file}: no such file")
    raise BadInputError(
        f"{file}: no such header in " + ", ".join(str(d) for d in _include_dirs(machine)),
        hint="asm/unistd_64.h comes with the C library's headers (linux-libc-dev, kernel-headers)",
    )


def _include_dirs(machine: str) -> list[Path]:
    kernels = sorted(SOURCES.glob("linux-headers-*/include"), reverse=True)
    return [INCLUDE, INCLUDE / f"{machine}-linux-gnu", *kernels]


def header_syscalls(path: Path) -> dict[str, str]:
    """System calls that the header names, without prefix: name -> identifier in the header."""
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror}") from error
    identifiers = (defined or declared for defined, declared in _IDENTIFIER.findall(text))
    found = {_bare(identifier): identifier for identifier in identifiers}
    if not found:
        raise BadInputError(
            f"{path}: names no system calls (no '#define __NR_x', no 'sys_x(')",
            hint="asm/unistd_64.h and linux/syscalls.h do",
        )
    return found


def _bare(identifier: str) -> str:
    return identifier.removeprefix("__NR_").removeprefix("sys_")
