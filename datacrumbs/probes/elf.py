"""Functions of an ELF file: which there are, where they start, and which cannot be probed."""

from __future__ import annotations

import array
import os
import re
import stat
import struct
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from elftools.elf.elffile import ELFFile

from datacrumbs.errors import BadInputError
from datacrumbs.probes import dynamic
from datacrumbs.probes.debugfile import debug_symbols
from datacrumbs.probes.elf_functions import function_starts, unsafe_reason
from datacrumbs.probes.elf_identity import NotElfError, elf_identity
from datacrumbs.probes.model import UserFunction
from datacrumbs.strict_yaml import nearest, nearest_path

MAX_NAME = 255
"""Longest name a probe file takes (`model.Name`); mangled C++ names can be longer."""

_SYMBOL = struct.Struct("<IBBHQQ")  # Elf64_Sym: name, info, other, shndx, value, size
_LOCAL = 0
_FUNC, _IFUNC = 2, 10
_VARIABLES = (1, 5, 6)  # OBJECT, COMMON, TLS
_NOT_NAMES = (3, 4)  # SECTION, FILE
_ABSOLUTE = 0xFFF1  # SHN_ABS: a constant, such as the names of versions (GLIBC_2.2.5)
_PF_X = 1

IFUNC = "IFUNC: which implementation runs is decided when the program starts"
NO_START = "only its debug file says that a function begins there"
NOT_CALLED_SECTIONS = (".plt", ".plt.got", ".plt.sec", ".init", ".fini")


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
    version: str  # "", "@OLD" or "@@DEFAULT"
    kind: int
    public: bool
    defined: bool
    address: int

    @property
    def full_name(self) -> str:
        """``memcpy@GLIBC_2.14``: one @, whether the version is the default or not."""
        return f"{self.name}@{self.version.lstrip('@')}" if self.version else self.name


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
    libraries = dynamic.cache(machine)
    if name not in libraries:
        raise BadInputError(
            f"{name!r} is not a library that the dynamic linker knows",
            hint=_near_library(name, libraries),
        )
    return Path(libraries[name])


def _near_library(name: str, libraries: Iterable[str]) -> str:
    hint = nearest(name, libraries)
    return hint if hint.startswith("did") else "give an absolute path (`ldd PROGRAM` shows it)"


def read_functions(
    path: Path, pattern: re.Pattern[str], machine: str, *, include_offsets: bool = False
) -> ElfFunctions:
    """Functions of the ELF file at ``path`` that have a name ``pattern`` matches as a whole.

    Names at one address become one function; a name may be matched with its version
    (``memcpy@GLIBC_2.14``). ``include_offsets`` adds the names that the file's debug file has
    (by build-id, `.gnu_debuglink`, `.gnu_debugdata`), and functions without any name as
    ``sub_`` and their address. ``skipped`` holds (name, reason) of what matches and cannot be
    probed. Raises `BadInputError` for what is not a program or shared library for ``machine``.
    """
    with _open_regular(path) as file:
        _check_magic(file, path)
        try:
            elf = ELFFile(file)
            _check_kind(elf, path, machine)
            build_id, digest = elf_identity(file.fileno())
            symbols = _read_symbols(elf)
            segments = _read_segments(elf)
            starts = None
            if include_offsets:
                starts = function_starts(file.fileno())
                symbols += [s for f in debug_symbols(elf, path, build_id) for s in _read_symbols(f)]
                symbols += _unnamed(elf, symbols, segments, starts)
        except NotElfError as error:
            raise BadInputError(f"{path}: {error.message}") from error
        except BadInputError:
            raise
        except Exception as error:
            # pyelftools meets a damaged file with whatever its parser runs into first
            raise BadInputError(f"{path}: a damaged ELF file ({error})") from error
    if not symbols:
        raise BadInputError(
            f"{path}: has no symbols (stripped)",
            hint="" if include_offsets else "include_offsets: true finds functions without a name",
        )
    functions, skipped = _select(symbols, segments, pattern, starts)
    names = sorted({s.name for s in symbols if s.kind == _FUNC and s.defined})
    throws = any(symbol.name == "__gxx_personality_v0" for symbol in symbols)
    return ElfFunctions(path, build_id, digest, functions, skipped, names, throws)


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
    if elf["e_machine"] != dynamic.MACHINES.get(machine):
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
        versions = _versions(elf) if name == ".dynsym" else []
        found += _decode(section.data(), strings.data(), versions)
    return found


def _versions(elf: ELFFile) -> list[str]:
    """The version of each dynamic symbol that the file defines: "", "@OLD" or "@@DEFAULT"."""
    indices: Any = elf.get_section_by_name(".gnu.version")
    definitions: Any = elf.get_section_by_name(".gnu.version_d")
    if indices is None or definitions is None:
        return []
    names = {
        definition["vd_ndx"]: next(auxiliaries).name
        for definition, auxiliaries in definitions.iter_versions()
        if definition["vd_ndx"] > 1  # 1 is the file itself
    }
    numbers = array.array("H", indices.data())
    if elf.little_endian != (sys.byteorder == "little"):
        numbers.byteswap()
    hidden = 0x8000
    return [
        ("@" if number & hidden else "@@") + names[number & ~hidden]
        if number & ~hidden in names
        else ""
        for number in numbers
    ]


def _decode(table: bytes, strings: bytes, versions: list[str]) -> list[_Symbol]:
    usable = memoryview(table)[: len(table) // _SYMBOL.size * _SYMBOL.size]
    return [
        _Symbol(name, of_name or of_table, info & 0xF, info >> 4 != _LOCAL, section != 0, address)
        for (at, info, _, section, address, _), of_table in zip(
            _SYMBOL.iter_unpack(usable), chain(versions, repeat("")), strict=False
        )
        if info & 0xF not in _NOT_NAMES and section != _ABSOLUTE
        for name, of_name in [_name(strings, at)]
        if name
    ]


def _name(strings: bytes, at: int) -> tuple[str, str]:
    """The string at ``at`` and its version (``memcpy``, ``@@GLIBC_2.14``).

    Bytes that are not printable are escaped: names end up on terminals.
    """
    raw = strings[at : strings.index(b"\0", at)]
    name = raw.decode("utf-8", "backslashreplace")
    name = name if name.isprintable() else ascii(name)[1:-1]
    bare, at_sign, version = name.partition("@")
    return bare, at_sign + version


def _unnamed(
    elf: ELFFile, symbols: list[_Symbol], segments: list[_Segment], starts: frozenset[int]
) -> list[_Symbol]:
    """The functions that no symbol names, called ``sub_`` and the address in hexadecimal."""
    named = {_file_offset(s.address, segments) for s in symbols if not _not_a_function(s)}
    sections = [elf.get_section_by_name(name) for name in NOT_CALLED_SECTIONS]
    spans = [(s["sh_addr"], s["sh_addr"] + s["sh_size"]) for s in sections if s is not None]
    return [
        _Symbol(f"sub_{address:x}", "", _FUNC, False, True, address)
        for offset in sorted(starts - named)
        for address in [_address(offset, segments)]
        if not any(first <= address < end for first, end in spans)
    ]


def _address(offset: int, segments: list[_Segment]) -> int:
    """Where the code at ``offset`` in the file is loaded: the inverse of `_file_offset`."""
    return next(
        offset - segment.offset + segment.address
        for segment in segments
        if segment.executable and 0 <= offset - segment.offset < segment.size
    )


def _select(
    symbols: list[_Symbol],
    segments: list[_Segment],
    pattern: re.Pattern[str],
    starts: frozenset[int] | None,
) -> tuple[list[UserFunction], list[tuple[str, str]]]:
    wanted = {s for s in symbols if pattern.fullmatch(s.name) or _matches_version(s, pattern)}
    skipped: dict[str, str] = {}
    names_at: defaultdict[int, set[_Symbol]] = defaultdict(set)
    for symbol in symbols:
        reason = _not_a_function(symbol)
        offset = None if reason else _file_offset(symbol.address, segments)
        if offset is not None:
            names_at[offset].add(symbol)
        elif symbol in wanted:
            skipped.setdefault(symbol.name, reason or "its address holds no code")
    shared = _shared_names(symbols)
    functions: list[UserFunction] = []
    for offset, group in sorted(names_at.items()):
        if wanted.isdisjoint(group):
            continue
        unknown = NO_START if starts is not None and offset not in starts else ""
        if reason := _unsafe(group) or unknown:
            skipped |= {s.name: reason for s in group if s in wanted}
        else:
            functions.append(_function(offset, group, wanted, shared))
    # a name may be in both: memcpy@GLIBC_2.2.5 is a function, memcpy@@GLIBC_2.14 an IFUNC
    return functions, sorted(skipped.items())


def _matches_version(symbol: _Symbol, pattern: re.Pattern[str]) -> bool:
    return bool(symbol.version) and bool(
        pattern.fullmatch(symbol.full_name) or pattern.fullmatch(symbol.name + symbol.version)
    )


def _shared_names(symbols: list[_Symbol]) -> set[str]:
    """Names that versions of different functions have in common."""
    addresses: defaultdict[str, set[int]] = defaultdict(set)
    for symbol in symbols:
        if symbol.defined and symbol.public and symbol.kind in (_FUNC, _IFUNC):
            addresses[symbol.name].add(symbol.address)
    return {name for name, places in addresses.items() if len(places) > 1}


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
        if len(symbol.full_name.encode()) > MAX_NAME:
            return f"its name is longer than {MAX_NAME} bytes"
        if reason := unsafe_reason(symbol.name):
            return reason
    return ""


def _function(
    offset: int, group: Iterable[_Symbol], wanted: set[_Symbol], shared: set[str]
) -> UserFunction:
    """One function under its best name: asked for, public, plain, short.

    An old version of a function whose name another has now is shown with its version.
    """

    def rank(symbol: _Symbol) -> tuple[bool, bool, int, int, str]:
        name = symbol.name
        underscores = len(name) - len(name.lstrip("_"))
        return symbol not in wanted, not symbol.public, underscores, len(name), name

    def shown(symbol: _Symbol) -> str:
        old = symbol.name in shared and not symbol.version.startswith("@@")
        return symbol.full_name if old else symbol.name

    names = list(dict.fromkeys(shown(symbol) for symbol in sorted(group, key=rank)))
    return UserFunction(name=names[0], offset=offset, aliases=names[1:])
