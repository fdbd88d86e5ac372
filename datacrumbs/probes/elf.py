"""Functions of an ELF file: which there are, where they start, and which cannot be probed."""

from __future__ import annotations

import os
import re
import shutil
import stat
import struct
import subprocess
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from elftools.elf.elffile import ELFFile

from datacrumbs.errors import BadInputError
from datacrumbs.probes.elf_identity import NotElfError, elf_identity
from datacrumbs.probes.model import UserFunction
from datacrumbs.strict_yaml import nearest, nearest_path

MAX_NAME = 255
"""Longest name a probe file takes (`model.Name`); mangled C++ names can be longer."""

_MACHINE = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}
_LDCONFIG_FLAG = {"x86_64": "x86-64", "aarch64": "AArch64"}

_SYMBOL = struct.Struct("<IBBHQQ")  # Elf64_Sym: name, info, other, shndx, value, size
_LOCAL = 0
_FUNC, _IFUNC = 2, 10
_VARIABLES = (1, 5, 6)  # OBJECT, COMMON, TLS
_NOT_NAMES = (3, 4)  # SECTION, FILE
_ABSOLUTE = 0xFFF1  # SHN_ABS: a constant, such as the names of versions (GLIBC_2.2.5)
_PF_X = 1

UNSAFE = (
    (
        re.compile(r"_{0,2}(sig)?setjmp|savectx|getcontext|swapcontext"),
        "returns more than once: a return probe would kill the program",
    ),
    (
        re.compile(r"_Unwind_\w+|__cxa_(re)?throw|_ZSt\d+(__throw_|rethrow_exception)\w*"),
        "walks up the stack, which a return probe breaks",
    ),
    (
        re.compile(r"dlv?sym|dlm?open|_?mcount|__fentry__"),
        "depends on who calls it, which a return probe hides",
    ),
    (
        re.compile(r"_start|_dl_start\w*|_dl_runtime_\w+|__restore_rt|__start_context"),
        "is not entered by a call, so it has no return to probe",
    ),
    (
        re.compile(r".+\.cold(\.\d+)?"),
        "is a part of another function that is jumped to, not called",
    ),
)
"""Names of functions that a program does not survive being probed in, and why.

A return probe replaces the return address on the stack. Seen on Linux 6.18: a probed
`setjmp` or `getcontext` ends in SIGILL, `__cxa_throw` in std::terminate, and `dlsym` with
RTLD_NEXT finds nothing.
"""

IFUNC = "IFUNC: which implementation runs is decided when the program starts"


@dataclass(frozen=True, slots=True)
class ElfFunctions:
    """The functions of one file whose names a regex matches, and what of it was left out.

    Exactly one of ``build_id`` and ``digest`` is set, as in `model.UserLayer`. ``names`` are
    those of all functions of the file, for hints. ``throws``: C++ exceptions can pass
    through the file's functions.
    """

    path: Path
    build_id: str | None
    digest: str | None
    functions: list[UserFunction]
    skipped: list[tuple[str, str]]
    names: list[str]
    throws: bool


class _Symbol(NamedTuple):
    name: str
    kind: int
    public: bool
    defined: bool
    address: int


class _Segment(NamedTuple):
    address: int
    size: int
    offset: int
    executable: bool


def find_binary(file: str, machine: str) -> Path:
    """The file that ``file`` means: an absolute path, or a library's name (``libc.so.6``).

    Links are resolved, so that the path names the file that is pinned. Raises `BadInputError`.
    """
    if "/" not in file:
        return _library(file, machine).resolve()
    if not file.startswith("/"):
        raise BadInputError(
            f"{file!r} is not an absolute path",
            hint=f"did you mean {str(Path(file).resolve())!r}?",
        )
    return Path(os.path.realpath(file))


def _library(name: str, machine: str) -> Path:
    libraries = _ldconfig(machine)
    if name not in libraries:
        raise BadInputError(
            f"{name!r} is not a library that the dynamic linker knows",
            hint=_near_library(name, libraries),
        )
    return Path(libraries[name])


def _near_library(name: str, libraries: Iterable[str]) -> str:
    hint = nearest(name, libraries)
    return hint if hint.startswith("did") else "give an absolute path (`ldd PROGRAM` shows it)"


def _ldconfig(machine: str) -> dict[str, str]:
    """The dynamic linker's cache: library name -> path, first match wins as it does there."""
    program = shutil.which("ldconfig", path=os.environ.get("PATH", "") + ":/sbin:/usr/sbin")
    if program is None:
        return {}
    listing = subprocess.run([program, "-p"], capture_output=True, text=True, check=False).stdout
    found: dict[str, str] = {}
    for name, flags, path in re.findall(r"^\t(\S+) \((.*?)\) => (/.*)$", listing, re.MULTILINE):
        if _LDCONFIG_FLAG.get(machine, "") in flags:
            found.setdefault(name, path)
    return found


def read_functions(path: Path, pattern: re.Pattern[str], machine: str) -> ElfFunctions:
    """Functions of the ELF file at ``path`` that have a name ``pattern`` matches as a whole.

    Names at one address become one function. ``skipped`` holds (name, reason) of what matches
    and cannot be probed. Raises `BadInputError` for what is not a program or shared library
    for ``machine``.
    """
    with _open_regular(path) as file:
        _check_magic(file, path)
        try:
            elf = ELFFile(file)
            _check_kind(elf, path, machine)
            symbols = _read_symbols(elf)
            segments = _read_segments(elf)
        except BadInputError:
            raise
        except Exception as error:
            # pyelftools meets a damaged file with whatever its parser runs into first
            raise BadInputError(f"{path}: a damaged ELF file ({error})") from error
        build_id, digest = _identity(file, path)
    if not symbols:
        raise BadInputError(f"{path}: has no symbols (stripped)")
    functions, skipped = _select(symbols, segments, pattern)
    names = sorted({s.name for s in symbols if s.kind == _FUNC and s.defined})
    throws = any(symbol.name == "__gxx_personality_v0" for symbol in symbols)
    return ElfFunctions(path, build_id, digest, functions, skipped, names, throws)


def _identity(file: BinaryIO, path: Path) -> tuple[str | None, str | None]:
    try:
        return elf_identity(file.fileno())
    except NotElfError as error:
        raise BadInputError(f"{path}: {error.message}") from error


def _open_regular(path: Path) -> BinaryIO:
    try:
        # O_NONBLOCK: opening a pipe must not wait for a writer
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror}", hint=nearest_path(path)) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        kind = "a directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "not a regular file"
        os.close(fd)
        raise BadInputError(f"{path}: {kind}, not an ELF file")
    return os.fdopen(fd, "rb")


def _check_magic(file: BinaryIO, path: Path) -> None:
    magic = file.read(8)
    file.seek(0)
    if magic.startswith(b"\x7fELF"):
        return
    if magic in (b"!<arch>\n", b"!<thin>\n"):
        raise BadInputError(
            f"{path}: a static archive, not an ELF file",
            hint="give the program it is linked into",
        )
    hint = "a linker script names the real library inside" if magic.startswith(b"/*") else ""
    raise BadInputError(f"{path}: not an ELF file", hint=hint)


def _check_kind(elf: ELFFile, path: Path, machine: str) -> None:
    if elf.elfclass != 64:
        raise BadInputError(f"{path}: a {elf.elfclass}-bit ELF file; only 64-bit can be probed")
    if elf["e_machine"] != _MACHINE.get(machine):
        raise BadInputError(f"{path}: for {elf.get_machine_arch()}, and this is {machine}")
    if elf["e_type"] not in ("ET_DYN", "ET_EXEC"):
        what = {"ET_REL": "an object file", "ET_CORE": "a core dump"}.get(elf["e_type"], "an image")
        raise BadInputError(f"{path}: {what}, neither a program nor a shared library")


def _read_segments(elf: ELFFile) -> list[_Segment]:
    """What is loaded from the file, as far as the file goes."""
    file_size = elf.stream.seek(0, os.SEEK_END)
    return [
        _Segment(
            header["p_vaddr"],
            min(header["p_filesz"], file_size - header["p_offset"]),
            header["p_offset"],
            bool(header["p_flags"] & _PF_X),
        )
        for header in (segment.header for segment in elf.iter_segments("PT_LOAD"))
    ]


def _read_symbols(elf: ELFFile) -> list[_Symbol]:
    """All named symbols. Decoded in bulk: pyelftools takes 15 us for each, 3 s for 200,000."""
    found: list[_Symbol] = []
    for name in (".dynsym", ".symtab"):
        section = elf.get_section_by_name(name)
        if section is None or section["sh_type"] == "SHT_NOBITS":
            continue
        strings = elf.get_section(section["sh_link"])
        found += _decode(section.data(), strings.data())
    return found


def _decode(table: bytes, strings: bytes) -> list[_Symbol]:
    usable = memoryview(table)[: len(table) // _SYMBOL.size * _SYMBOL.size]
    return [
        _Symbol(name, info & 0xF, info >> 4 != _LOCAL, section != 0, address)
        for at, info, _, section, address, _ in _SYMBOL.iter_unpack(usable)
        if info & 0xF not in _NOT_NAMES and section != _ABSOLUTE and (name := _name(strings, at))
    ]


def _name(strings: bytes, at: int) -> str:
    """The string at ``at``, without a version (``memcpy@@GLIBC_2.14``).

    Bytes that are not printable are escaped: names end up on terminals.
    """
    raw = strings[at : strings.index(b"\0", at)]
    name = raw.decode("utf-8", "backslashreplace").partition("@")[0]
    return name if name.isprintable() else ascii(name)[1:-1]


def _select(
    symbols: list[_Symbol], segments: list[_Segment], pattern: re.Pattern[str]
) -> tuple[list[UserFunction], list[tuple[str, str]]]:
    wanted = {s.name for s in symbols if pattern.fullmatch(s.name)}
    skipped: dict[str, str] = {}
    names_at: defaultdict[int, set[_Symbol]] = defaultdict(set)
    for symbol in symbols:
        reason = _not_a_function(symbol)
        offset = None if reason else _file_offset(symbol.address, segments)
        if offset is not None:
            names_at[offset].add(symbol)
        elif symbol.name in wanted:
            skipped.setdefault(symbol.name, reason or "its address holds no code")
    functions: list[UserFunction] = []
    for offset, group in sorted(names_at.items()):
        if not any(symbol.name in wanted for symbol in group):
            continue
        if reason := _unsafe(group):
            skipped |= {s.name: reason for s in group if s.name in wanted}
        else:
            functions.append(_function(offset, group, wanted))
    # a name may be in both: memcpy@GLIBC_2.2.5 is a function, memcpy@@GLIBC_2.14 an IFUNC
    return functions, sorted(skipped.items())


def _not_a_function(symbol: _Symbol) -> str:
    """Why the symbol is not a function of this file that has an address; "" if it is one."""
    if not symbol.defined:
        return "comes from another library: probe it there"
    if symbol.kind == _IFUNC:
        return IFUNC
    if symbol.kind in _VARIABLES:
        return "a variable"
    if symbol.kind != _FUNC:
        return "not marked as a function"
    return ""


def _file_offset(address: int, segments: list[_Segment]) -> int | None:
    """Where in the file the code at ``address`` is; None when no code is loaded there."""
    for segment in segments:
        if segment.executable and 0 <= address - segment.address < segment.size:
            return address - segment.address + segment.offset
    return None


def _unsafe(group: Iterable[_Symbol]) -> str:
    """Why the function with these names must not be probed; "" if it may be."""
    for symbol in sorted(group):
        if len(symbol.name.encode()) > MAX_NAME:
            return f"its name is longer than {MAX_NAME} bytes"
        for pattern, reason in UNSAFE:
            if pattern.fullmatch(symbol.name):
                return reason
    return ""


def _function(offset: int, group: Iterable[_Symbol], wanted: set[str]) -> UserFunction:
    """One function under its best name: asked for, public, plain, short."""

    def rank(symbol: _Symbol) -> tuple[bool, bool, int, int, str]:
        name = symbol.name
        underscores = len(name) - len(name.lstrip("_"))
        return name not in wanted, not symbol.public, underscores, len(name), name

    names = list(dict.fromkeys(symbol.name for symbol in sorted(group, key=rank)))
    return UserFunction(name=names[0], offset=offset, aliases=names[1:])
