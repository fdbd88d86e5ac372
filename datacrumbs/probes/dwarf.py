"""Parameters of functions of programs and libraries: DWARF, in the file or its debug file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from elftools.common.exceptions import DWARFError, ELFError
from elftools.dwarf.compileunit import CompileUnit
from elftools.dwarf.die import DIE
from elftools.elf.elffile import ELFFile

from datacrumbs.probes import model
from datacrumbs.probes.debugfile import find_debug_file
from datacrumbs.probes.model import ArgumentType
from datacrumbs.probes.parameters import Parameter, refuse_reshaped

NO_DWARF = "the file has no debug info that tells its parameters"
_UNSIGNED = (2, 7, 8, 16)  # DW_ATE_boolean, unsigned, unsigned_char, UTF
_SIGNED = (5, 6)  # DW_ATE_signed, signed_char
_FLOATS = (3, 4)  # DW_ATE_complex_float, float
_TRANSPARENT = (
    *("DW_TAG_const_type", "DW_TAG_volatile_type", "DW_TAG_restrict_type"),
    *("DW_TAG_atomic_type", "DW_TAG_typedef"),
)
_POINTERS = ("DW_TAG_pointer_type", "DW_TAG_reference_type", "DW_TAG_rvalue_reference_type")


def user_parameters(
    path: Path, build_id: str | None, machine: str
) -> Callable[[object], list[Parameter] | str]:
    """What finds out the parameters of functions of the file at ``path``; it is read when asked.

    That raises `ValueError` for a function whose parameters are not those of its source.
    """
    reader: list[_Reader | None] = []

    def parameters(function: object) -> list[Parameter] | str:
        assert isinstance(function, model.UserFunction)
        refuse_reshaped(function.name)
        if not reader:
            reader.append(_open(path, build_id, machine))
        if reader[0] is None:
            return NO_DWARF
        try:
            found = reader[0].parameters(function.offset)
        except Exception as error:
            # pyelftools meets damaged debug info with whatever its parser runs into first
            return f"its debug info cannot be read ({' '.join(str(error).split())})"
        return NO_DWARF if found is None else found

    return parameters


def _open(path: Path, build_id: str | None, machine: str) -> _Reader | None:
    with ExitStack() as files, suppress(OSError, ELFError, DWARFError):
        elf = ELFFile(files.enter_context(open(path, "rb")))
        place = path
        if not elf.has_dwarf_info(strict=True):
            found = find_debug_file(elf, path, build_id)
            if found is None:
                return None
            place = found
        debug = ELFFile(files.enter_context(open(place, "rb")), _relative_to(place))
        if not debug.has_dwarf_info(strict=True):
            return None
        reader = _Reader(elf, debug, machine)
        reader.files = files.pop_all()  # open for as long as the reader is
        return reader
    return None


def _relative_to(place: Path) -> Callable[[bytes | str], Any]:
    """Opens what a debug file refers to (`.gnu_debugaltlink`), which is named from there."""

    def load(name: bytes | str) -> Any:
        other = name.decode() if isinstance(name, bytes) else name
        return open(place.parent / other, "rb")

    return load


class _Reader:
    """Debug info of one file. Only the units of functions that are asked for are read."""

    files: ExitStack

    def __init__(self, elf: ELFFile, debug: ELFFile, machine: str) -> None:
        self.elf = elf
        self.machine = machine
        self.dwarf = debug.get_dwarf_info(relocate_dwarf_sections=False)
        self.aranges = self.dwarf.get_aranges()
        self.by_unit: dict[int, dict[int, DIE]] = {}

    def parameters(self, offset: int) -> list[Parameter] | None:
        """Parameters of the function at a file offset; None if nothing tells them."""
        address = next(
            segment["p_vaddr"] + offset - segment["p_offset"]
            for segment in self.elf.iter_segments("PT_LOAD")
            if 0 <= offset - segment["p_offset"] < segment["p_filesz"]
        )
        for unit in self._units(address):
            function = self._functions(unit).get(address)
            if function is not None:
                return self._of(function)
        return None

    def _units(self, address: int) -> Iterator[CompileUnit]:
        at = self.aranges.cu_offset_at_addr(address) if self.aranges else None
        if at is not None:
            yield self.dwarf.get_CU_at(at)
        else:
            yield from self.dwarf.iter_CUs()

    def _functions(self, unit: CompileUnit) -> dict[int, DIE]:
        if unit.cu_offset not in self.by_unit:
            found = {
                die.attributes["DW_AT_low_pc"].value: die
                for die in _subprograms(unit.get_top_DIE())
                if "DW_AT_low_pc" in die.attributes
            }
            self.by_unit[unit.cu_offset] = found
        return self.by_unit[unit.cu_offset]

    def _of(self, function: DIE) -> list[Parameter]:
        declared = [
            child for child in function.iter_children() if child.tag == "DW_TAG_formal_parameter"
        ]
        register = 0
        lost = ""
        returns = _type(_origin(function))
        if returns is not None and returns.tag in ("DW_TAG_class_type", "DW_TAG_structure_type"):
            lost = "it returns a structure, which may take the first register"
        found = []
        for child in declared:
            plain = _origin(child)
            name = plain.attributes.get("DW_AT_name") or child.attributes.get("DW_AT_name")
            text = name.value.decode("utf-8", "backslashreplace") if name else ""
            kind, size, pointer, is_float = _shape(_type(plain))
            if is_float:
                found.append(Parameter(text, None, None, 0, "a floating-point number"))
                continue
            if kind is None:
                lost = lost or "it is, or comes after, a structure passed by value"
            if lost:
                found.append(Parameter(text, None, None, 0, lost))
                continue
            found.append(Parameter(text, register, kind, size, pointer=pointer))
            register += 1
        return found


def _subprograms(top: DIE) -> Iterator[DIE]:
    """Functions of a unit, also those in namespaces and classes."""
    for child in top.iter_children():
        if child.tag == "DW_TAG_subprogram":
            yield child
        elif child.tag in ("DW_TAG_namespace", "DW_TAG_class_type", "DW_TAG_structure_type"):
            yield from _subprograms(child)


def _origin(die: DIE) -> DIE:
    """What the entry is an instance of: there are its name and its type."""
    for _ in range(8):
        for attribute in ("DW_AT_abstract_origin", "DW_AT_specification"):
            if attribute in die.attributes:
                die = die.get_DIE_from_attribute(attribute)
                break
        else:
            break
    return die


def _type(die: DIE) -> DIE | None:
    """The type of a parameter or function without its other names and qualifiers; None: void."""
    for _ in range(64):
        if "DW_AT_type" not in die.attributes:
            return None
        die = die.get_DIE_from_attribute("DW_AT_type")
        if die.tag not in _TRANSPARENT:
            return die
    return None


def _shape(kind: DIE | None) -> tuple[ArgumentType | None, int, bool, bool]:
    """(how to capture it, bytes, is it a pointer, is it a floating-point number)."""
    if kind is None:
        return None, 0, False, False
    size = _size(kind)
    if kind.tag in _POINTERS:
        text = kind.tag == "DW_TAG_pointer_type" and _is_text(kind)
        return (
            (ArgumentType.STRING, 0, True, False) if text else (ArgumentType.UINT, 8, True, False)
        )
    if kind.tag == "DW_TAG_enumeration_type" and size in (1, 2, 4, 8):
        return ArgumentType.INT, size, False, False
    encoding = kind.attributes.get("DW_AT_encoding")
    if kind.tag == "DW_TAG_base_type" and encoding is not None:
        if encoding.value in _FLOATS:
            return None, 0, False, True
        if size in (1, 2, 4, 8) and encoding.value in (*_SIGNED, *_UNSIGNED):
            signed = encoding.value in _SIGNED
            return (ArgumentType.INT if signed else ArgumentType.UINT), size, False, False
    return None, 0, False, False


def _size(kind: DIE) -> int:
    attribute = kind.attributes.get("DW_AT_byte_size")
    return int(attribute.value) if attribute is not None else 0


def _is_text(pointer: DIE) -> bool:
    """Whether it points to ``const char``: a text that the function reads."""
    if "DW_AT_type" not in pointer.attributes:
        return False
    qualified = pointer.get_DIE_from_attribute("DW_AT_type").tag == "DW_TAG_const_type"
    target = _type(pointer)
    return (
        qualified
        and target is not None
        and target.tag == "DW_TAG_base_type"
        and target.attributes["DW_AT_name"].value == b"char"
    )
