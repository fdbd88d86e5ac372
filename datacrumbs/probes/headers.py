"""What a C header names: system calls, or functions of the kernel."""

from __future__ import annotations

import platform
import re
from pathlib import Path

from datacrumbs.errors import BadInputError

INCLUDE = Path("/usr/include")
SOURCES = Path("/usr/src")
MODULES = Path("/lib/modules")

# `#define __NR_read 0` (asm/unistd_64.h) or `long sys_read(` (linux/syscalls.h)
_IDENTIFIER = re.compile(r"^#[ \t]*define[ \t]+(__NR_\w+)\b|\b(sys_\w+)[ \t\n]*\(", re.MULTILINE)


def find_header(file: str, machine: str) -> Path:
    """The header ``file`` that names system calls: itself when absolute, else where it lies.

    That is below /usr/include, its directory for ``machine``, or the include directories of
    installed kernel headers, newest first. Raises `BadInputError` that names them.
    """
    return _find(
        file,
        [INCLUDE, INCLUDE / f"{machine}-linux-gnu", *_kernel_include_dirs()],
        "asm/unistd_64.h comes with the C library's headers (linux-libc-dev, kernel-headers)",
    )


def find_kernel_header(file: str, machine: str) -> Path:
    """As `find_header`, but the kernel's own headers come first, the running kernel's before all.

    ``linux/fs.h`` below /usr/include is another file: what programs may know of the kernel.
    """
    return _find(
        file,
        [*_kernel_include_dirs(), INCLUDE, INCLUDE / f"{machine}-linux-gnu"],
        "install the running kernel's headers (linux-headers-$(uname -r), kernel-devel), "
        "or use type: ksym, which needs none",
    )


def _find(file: str, directories: list[Path], hint: str) -> Path:
    if Path(file).is_absolute():
        if not Path(file).is_file():
            raise BadInputError(f"{file}: no such file")
        return Path(file)
    for directory in directories:
        if (directory / file).is_file():
            return directory / file
    places = ", ".join(str(directory) for directory in directories)
    raise BadInputError(f"{file}: no such header in {places}", hint=hint)


def _kernel_include_dirs() -> list[Path]:
    """The running kernel's, then those of other installed kernels, newest first."""
    release = platform.release()
    running = [
        MODULES / release / "source/include",
        MODULES / release / "build/include",
        SOURCES / f"linux-headers-{release}/include",
        # Debian keeps what all flavours share apart
        SOURCES / f"linux-headers-{release.rpartition('-')[0]}-common/include",
    ]
    others = [*SOURCES.glob("linux-headers-*/include"), *SOURCES.glob("kernels/*/include")]
    found = [path for path in (*running, *sorted(others, reverse=True)) if path.is_dir()]
    return list(dict.fromkeys(found))


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


_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", re.MULTILINE)
_CALLED = re.compile(r"\b([A-Za-z_]\w*)\s*\(")
_ATTRIBUTE = re.compile(r"__attribute__|__(printf|scanf|aligned|section|alloc_size|malloc)|sizeof")


def header_functions(path: Path) -> set[str]:
    """Names of functions that the C header ``path`` declares or defines.

    Read without a compiler: macros are not expanded, so a name may be one that only looks
    like a function. Raises `BadInputError` if there is none.
    """
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror}") from error
    plain = _DIRECTIVE.sub("", _COMMENT.sub(" ", text))
    found = {name for text in _declarations(plain) if (name := _declared(text))}
    if not found:
        raise BadInputError(f"{path}: declares no functions", hint="linux/pagemap.h does")
    return found


def _declarations(text: str) -> list[str]:
    """The text outside braces, cut where declarations end."""
    depth, start, parts = 0, 0, []
    for match in re.finditer(r"[{};]", text):
        if match[0] == "}":
            depth = max(depth - 1, 0)
            start = match.end() if depth == 0 else start
            continue
        if depth == 0:
            parts.append(text[start : match.start()])
            start = match.end()
        depth += match[0] == "{"
    return parts


def _declared(declaration: str) -> str:
    """The function that ``declaration`` is of; "" if it is of none."""
    for match in _CALLED.finditer(declaration):
        before = declaration[: match.start()]
        words = re.findall(r"\w+", before)
        if "typedef" in words or "=" in before:
            return ""
        if words and before.count("(") == before.count(")") and not _ATTRIBUTE.match(match[1]):
            return match[1]
    return ""
