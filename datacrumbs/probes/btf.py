"""The kernel's own description of its types (BTF): prototypes of functions and tracepoints.

The format is the kernel's (Documentation/bpf/btf.rst). All types are walked once, in about 50 ms
for a whole kernel; a function that only a module has is looked for in the modules' BTF, which
continues the numbers of types and the string offsets of the kernel's.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache
from pathlib import Path

from datacrumbs.errors import BadInputError
from datacrumbs.probes.model import ArgumentType
from datacrumbs.probes.parameters import Parameter

BTF_DIRECTORY = Path("/sys/kernel/btf")
_HEADER = struct.Struct("=HBBIIIII")
_MAGIC = 0xEB9F
_POINTER_BYTES = 8


class Kind(IntEnum):
    """Kinds of types, as far as prototypes need them."""

    INT = 1
    POINTER = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


_FIXED_WORDS = {Kind.INT: 1, Kind.ARRAY: 3, Kind.VAR: 1, Kind.DECL_TAG: 1}
_MEMBER_WORDS = {
    Kind.STRUCT: 3,
    Kind.UNION: 3,
    Kind.ENUM: 2,
    Kind.FUNC_PROTO: 2,
    Kind.DATASEC: 3,
    Kind.ENUM64: 3,
}
_QUALIFIERS = {Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG}
_ENUMS = {Kind.ENUM, Kind.ENUM64}
_SIZED = {Kind.INT, Kind.STRUCT, Kind.UNION, *_ENUMS}


@dataclass(frozen=True, slots=True)
class Type:
    """One C type: ``name`` is the outermost typedef's, or the struct's or integer's own.

    ``to`` is what a pointer points to. ``size_bytes`` is 0 for void and incomplete types.
    """

    name: str
    kind: Kind | None  # None: void, and what no register for integers holds
    size_bytes: int
    signed: bool = False
    to: Type | None = None
    const: bool = False


VOID = Type("void", None, 0)


@dataclass(frozen=True, slots=True)
class Prototype:
    """Parameters, by name, and the type that is returned."""

    parameters: tuple[tuple[str, Type], ...]
    returns: Type


class Btf:
    """One BTF file; a module's needs the kernel's as ``base``."""

    def __init__(self, data: bytes, base: Btf | None = None) -> None:
        magic, _, _, header_bytes, type_at, type_bytes, text_at, text_bytes = _HEADER.unpack_from(
            data
        )
        if magic != _MAGIC or sys.byteorder != "little":
            raise ValueError("not BTF of this machine")
        self._base = base
        self.type_count: int
        self.text_bytes: int
        self._first_type = base.type_count if base else 1
        self._first_text = base.text_bytes if base else 0
        start = header_bytes + type_at
        self._words = memoryview(data)[start : start + type_bytes].cast("I")
        start = header_bytes + text_at
        self._text = data[start : start + text_bytes]
        self.text_bytes = self._first_text + text_bytes
        self._starts: list[int] = []
        self._functions: dict[str, int] = {}
        self._typedefs: dict[str, int] = {}
        self._structs: dict[str, int] = {}
        self._embedded: dict[tuple[str, str], int | None] = {}
        self._walk()
        self.type_count = self._first_type + len(self._starts)

    def _walk(self) -> None:
        words, at, end = self._words, 0, len(self._words)
        fixed = [_FIXED_WORDS.get(kind, 0) + 3 for kind in range(32)]  # type: ignore[call-overload]
        member = [_MEMBER_WORDS.get(kind, 0) for kind in range(32)]  # type: ignore[call-overload]
        indexes = {
            int(Kind.FUNC): self._functions,
            int(Kind.TYPEDEF): self._typedefs,
            int(Kind.STRUCT): self._structs,
        }
        while at < end:
            info = words[at + 1]
            kind = info >> 24 & 0x1F
            if kind in indexes:
                indexes[kind][self._name(words[at])] = at
            self._starts.append(at)
            at += fixed[kind] + member[kind] * (info & 0xFFFF)

    def _name(self, offset: int) -> str:
        if offset < self._first_text and self._base:
            return self._base._name(offset)
        start = offset - self._first_text
        return self._text[start : self._text.index(0, start)].decode()

    def _at(self, number: int) -> tuple[Btf, int]:
        """Which file has that type, and where in its words it begins."""
        if number < self._first_type and self._base:
            return self._base._at(number)
        return self, self._starts[number - self._first_type]

    def type(self, number: int, *, depth: int = 0) -> Type:
        """The type of that number; pointers are followed one step."""
        if number == 0:
            return VOID
        owner, at = self._at(number)
        name_at, info, last = owner._words[at : at + 3]
        kind = Kind(info >> 24 & 0x1F) if info >> 24 & 0x1F in _KNOWN else None
        name = owner._name(name_at) if name_at else ""
        if kind is Kind.TYPEDEF:
            return replace(owner.type(last, depth=depth), name=name)
        if kind in _QUALIFIERS:
            found = owner.type(last, depth=depth)
            return replace(found, const=True) if kind is Kind.CONST else found
        if kind is Kind.POINTER:
            to = owner.type(last, depth=depth + 1) if depth < 1 else None
            return Type("", kind, _POINTER_BYTES, to=to)
        if kind is Kind.INT:
            signed = owner._words[at + 3] >> 24 & 1 == 1
        else:
            signed = kind in _ENUMS and info >> 31 == 1
        return Type(name, kind, last if kind in _SIZED else 0, signed)

    def _prototype(self, number: int) -> Prototype | None:
        owner, at = self._at(number)
        _, info, returns = owner._words[at : at + 3]
        if info >> 24 & 0x1F != Kind.FUNC_PROTO:
            return None
        parameters = []
        for i in range(at + 3, at + 3 + 2 * (info & 0xFFFF), 2):
            name_at, kind = owner._words[i : i + 2]
            parameters.append((owner._name(name_at) if name_at else "", owner.type(kind)))
        return Prototype(tuple(parameters), owner.type(returns))

    def function(self, name: str) -> Prototype | None:
        """The prototype of a function of the kernel (of this file)."""
        at = self._functions.get(name)
        return self._prototype(self._words[at + 2]) if at is not None else None

    def tracepoint(self, event: str) -> Prototype | None:
        """What a tracepoint hands over: its prototype without the first parameter, ``__data``."""
        typedef = self._typedefs.get(f"btf_trace_{event}")
        if typedef is None:
            return None
        owner, at = self._at(self._words[typedef + 2])  # a pointer to it
        # the function that calls the handlers has the parameters' names, the typedef has not
        found = self.function(f"__traceiter_{event}") or owner._prototype(owner._words[at + 2])
        return Prototype(found.parameters[1:], found.returns) if found else None

    def embedded(self, struct_name: str, member_type: str) -> int | None:
        """Where a ``struct struct_name`` holds a ``struct member_type`` by value, in bytes."""
        key = struct_name, member_type
        if key not in self._embedded:
            self._embedded[key] = self._find_embedded(*key)
        return self._embedded[key]

    def _find_embedded(self, struct_name: str, member_type: str) -> int | None:
        at = self._structs.get(struct_name)
        if at is None:
            return self._base.embedded(struct_name, member_type) if self._base else None
        for _, number, offset in self._members(at):
            found = self.type(number, depth=1)
            if found.kind is Kind.STRUCT and found.name == member_type:
                return offset
        return None

    def _members(self, at: int) -> Iterator[tuple[str, int, int]]:
        """Name, number of the type and place in bytes."""
        info = self._words[at + 1]
        for i in range(at + 3, at + 3 + 3 * (info & 0xFFFF), 3):
            name_at, number, bit = self._words[i : i + 3]
            name = self._name(name_at) if name_at else ""
            yield name, number, (bit & 0xFFFFFF if info >> 31 else bit) // 8

    def member(self, struct_name: str, path: str) -> int | None:
        """Where a ``struct struct_name`` has a member (``name``, ``struct.name``), in bytes."""
        at = self._structs.get(struct_name)
        if at is None:
            return self._base.member(struct_name, path) if self._base else None
        first, _, rest = path.partition(".")
        for name, number, offset in self._members(at):
            if name == first and not rest:
                return offset
            if name == first:
                inner = self.member(self.type(number, depth=1).name, rest)
                return None if inner is None else offset + inner
        return None


_KNOWN = {int(kind) for kind in Kind}


class KernelTypes:
    """The kernel's types and those of the modules that are loaded."""

    def __init__(self, directory: Path = BTF_DIRECTORY) -> None:
        self._directory = directory
        self._kernel = Btf((directory / "vmlinux").read_bytes())
        self._modules: list[Btf] | None = None

    def _files(self) -> Iterator[Btf]:
        yield self._kernel
        if self._modules is None:
            others = (p for p in sorted(self._directory.iterdir()) if p.name != "vmlinux")
            self._modules = [Btf(path.read_bytes(), self._kernel) for path in others]
        yield from self._modules

    def function(self, name: str) -> tuple[Prototype, Btf] | None:
        """A function's prototype and the file that has it; None when nothing tells it."""
        for file in self._files():
            if found := file.function(name):
                return found, file
        return None

    def member(self, struct_name: str, path: str) -> int | None:
        """Where a structure has a member, as `Btf.member`; None when nothing tells it."""
        for file in self._files():
            if (found := file.member(struct_name, path)) is not None:
                return found
        return None

    def parameters(self, name: str) -> list[Parameter]:
        """The parameters of a function; raises `BadInputError` if no types name it."""
        found = self.function(name)
        if not found:
            raise BadInputError("this kernel's types (BTF) do not have it")
        return _parameters(found[0])

    def tracepoint(self, event: str) -> tuple[Prototype, Btf] | None:
        """A tracepoint's arguments and the file that has it; None when there is none."""
        for file in self._files():
            if found := file.tracepoint(event):
                return found, file
        return None


def _parameters(prototype: Prototype) -> list[Parameter]:
    found: list[Parameter] = []
    lost = ""
    for at, (name, kind) in enumerate(prototype.parameters):
        if kind is VOID:
            break  # `...`
        argument = _argument_type(kind)
        if argument is None:
            lost = lost or "it is, or comes after, a structure passed by value"
        if lost:
            found.append(Parameter(name, None, None, 0, lost))
            continue
        size_bytes = 0 if argument is ArgumentType.STRING else kind.size_bytes
        pointer = kind.kind is Kind.POINTER
        found.append(Parameter(name, at, argument, size_bytes, pointer=pointer))
    return found


def _argument_type(kind: Type) -> ArgumentType | None:
    """How to capture it; None for what is not in one register."""
    if kind.kind is Kind.POINTER:
        # a text that the function reads, not one that it fills
        text = kind.to and kind.to.const and (kind.to.kind, kind.to.name) == (Kind.INT, "char")
        return ArgumentType.STRING if text else ArgumentType.UINT
    if kind.kind in _ENUMS or (kind.kind is Kind.INT and kind.size_bytes <= 8):
        return ArgumentType.INT if kind.signed else ArgumentType.UINT
    return None


@cache
def kernel_types() -> KernelTypes:
    """The types of the running kernel, read once. Raises `BadInputError` where there are none."""
    try:
        return KernelTypes()
    except OSError as error:
        raise BadInputError(
            f"{error.filename}: {error.strerror}: this kernel has no types (BTF)",
            hint="run datacrumbs_doctor on this host",
        ) from error
