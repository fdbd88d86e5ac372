"""Types of the running kernel's functions: BTF, read with libbpf."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

from datacrumbs.errors import BadInputError
from datacrumbs.probes.model import ArgumentType
from datacrumbs.probes.parameters import Parameter

BTF_DIR = Path("/sys/kernel/btf")

# include/uapi/linux/btf.h
INT, PTR, ENUM, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO = 1, 2, 6, 8, 9, 10, 11, 12, 13
FLOAT, TYPE_TAG, ENUM64 = 16, 18, 19
_TRANSPARENT = (TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG)
_SIGNED, _CHAR = 1, 2  # BTF_INT_ENCODING
_KIND_FLAG = 1 << 31  # of an enumeration: it has negative values


class _Type(ctypes.Structure):
    """struct btf_type."""

    _fields_ = (
        ("name_off", ctypes.c_uint32),
        ("info", ctypes.c_uint32),
        ("size_or_type", ctypes.c_uint32),
    )


class _Parameter(ctypes.Structure):
    """struct btf_param."""

    _fields_ = (("name_off", ctypes.c_uint32), ("type", ctypes.c_uint32))


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise BadInputError(f"kernel types need libbpf.so.1: {error}") from error
    handle, number, text = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_char_p
    for name, result, arguments in (
        ("btf__parse", handle, (text, handle)),
        ("btf__parse_split", handle, (text, handle)),
        ("btf__find_by_name_kind", ctypes.c_int32, (handle, text, number)),
        ("btf__type_by_id", handle, (handle, number)),
        ("btf__name_by_offset", text, (handle, number)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class KernelTypes:
    """The types of the kernel and of its loaded modules."""

    def __init__(self) -> None:
        self._c = _library()
        self._base = self._c.btf__parse(os.fsencode(BTF_DIR / "vmlinux"), None)
        if not self._base:
            raise BadInputError(
                f"{BTF_DIR}/vmlinux: {os.strerror(ctypes.get_errno())}: this kernel has no types"
            )

    @functools.cached_property
    def _modules(self) -> list[int]:
        paths = sorted(p for p in BTF_DIR.iterdir() if p.name != "vmlinux")
        made = (self._c.btf__parse_split(os.fsencode(path), self._base) for path in paths)
        return [handle for handle in made if handle]

    def parameters(self, function: str) -> list[Parameter]:
        """The parameters of a function; raises `BadInputError` if no types name it."""
        for handle in self._handles():
            found = self._c.btf__find_by_name_kind(handle, function.encode(), FUNC)
            if found > 0:
                prototype = self._type(handle, self._type(handle, found).size_or_type)
                return self._of_prototype(handle, prototype)
        raise BadInputError("this kernel's types (BTF) do not have it")

    def _handles(self) -> list[int]:
        return [self._base, *self._modules]

    def _type(self, handle: int, number: int) -> _Type:
        address = self._c.btf__type_by_id(handle, number)
        if not address:
            raise BadInputError("this kernel's types (BTF) are damaged")
        return _Type.from_address(address)

    def _of_prototype(self, handle: int, prototype: _Type) -> list[Parameter]:
        count = prototype.info & 0xFFFF
        first = ctypes.addressof(prototype) + ctypes.sizeof(_Type)
        found: list[Parameter] = []
        lost = ""
        for at, raw in enumerate((_Parameter * count).from_address(first)):
            name = (self._c.btf__name_by_offset(handle, raw.name_off) or b"").decode()
            if not raw.type:
                break  # `...`
            kind, size, pointer = self._shape(handle, raw.type)
            if kind is None:
                lost = lost or "it is, or comes after, a structure passed by value"
            if lost:
                found.append(Parameter(name, None, None, 0, lost))
            else:
                found.append(Parameter(name, at, kind, size, pointer=pointer))
        return found

    def _shape(self, handle: int, number: int) -> tuple[ArgumentType | None, int, bool]:
        """(how to capture it, bytes, is it a pointer); None for what is not in one register."""
        kind = self._plain(handle, number)
        match _kind(kind):
            case _ if number == 0:
                return None, 0, False
            case value if value == INT and kind.size_or_type <= 8:
                signed = self._encoding(kind) & _SIGNED
                return (ArgumentType.INT if signed else ArgumentType.UINT), kind.size_or_type, False
            case value if value in (ENUM, ENUM64):
                signed = kind.info & _KIND_FLAG
                return (ArgumentType.INT if signed else ArgumentType.UINT), kind.size_or_type, False
            case value if value == PTR:
                if self._is_text(handle, kind.size_or_type):
                    return ArgumentType.STRING, 0, True
                return ArgumentType.UINT, 8, True
        return None, 0, False

    def _plain(self, handle: int, number: int) -> _Type:
        """The type without its other names and qualifiers."""
        kind = self._type(handle, number)
        for _ in range(64):
            if _kind(kind) not in _TRANSPARENT or not kind.size_or_type:
                break
            kind = self._type(handle, kind.size_or_type)
        return kind

    def _is_text(self, handle: int, number: int) -> bool:
        """Whether what is pointed to is ``const char``: a text that the function reads."""
        if not number:
            return False
        first = self._type(handle, number)
        kind = self._plain(handle, number)
        name = self._c.btf__name_by_offset(handle, kind.name_off)
        return _kind(first) == CONST and _kind(kind) == INT and name == b"char"

    def _encoding(self, kind: _Type) -> int:
        after = ctypes.addressof(kind) + ctypes.sizeof(_Type)
        return ctypes.c_uint32.from_address(after).value >> 24 & 0xF


def _kind(kind: _Type) -> int:
    return int(kind.info) >> 24 & 0x1F


@functools.cache
def kernel_types() -> KernelTypes:
    """This kernel's types, read once. Raises `BadInputError` where there are none."""
    return KernelTypes()
