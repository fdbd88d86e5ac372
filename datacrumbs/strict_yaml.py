"""YAML into typed structs, with errors that name file, position, key, value and nearest name."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from datacrumbs.errors import BadInputError

T = TypeVar("T")

_WORDS = {
    "object": "a mapping",
    "array": "a list",
    "set": "a set",
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "null": "nothing",
    "date": "a date",
    "datetime": "a date",
    "bytes": "binary data",
}
"""What msgspec calls JSON's types, and what the reader of a YAML file does."""

_FORMS = {
    "object": "a mapping has lines of 'key: value'",
    "array": "a list has lines that begin with '- '",
    "str": "text that looks like something else in YAML needs 'quotes'",
}
"""How a value of the type is written."""

MOST_SHOWN = 80
"""Of a wrong value, characters."""

_STRING = "tag:yaml.org,2002:str"
_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """`SafeLoader` that refuses a key given twice and remembers where each value stands."""

    def __init__(self, text: bytes) -> None:
        super().__init__(text)
        self.lines: dict[str, int] = {}


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint: the known name closest to ``word``, else all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(names)


def nearest_path(path: Path) -> str:
    """A hint: what is called most like ``path`` in its directory; empty without one."""
    try:
        names = os.listdir(path.parent)
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean {str(path.parent / close[0])!r}?" if close else ""


def load_strict(text: bytes, kind: type[T], *, source: str) -> T:
    """Decode YAML ``text`` into the msgspec struct ``kind``.

    Raises `BadInputError` with one line: ``source:LINE: key.path: what is wrong``.
    """
    return load_with_lines(text, kind, source=source)[0]


def load_with_lines(text: bytes, kind: type[T], *, source: str) -> tuple[T, dict[str, int]]:
    """`load_strict`, and the line of every value by its path (``$.layers[0].name``)."""
    loader = _Loader(text) if _is_text(text) else None
    if loader is None:
        raise BadInputError(f"{source}: not a text file", hint="give a YAML file in UTF-8")
    try:
        node = loader.get_single_node()
        if node is None:
            plain: Any = {}
        else:
            _remember_lines(loader, node, "$", source)
            plain = loader.construct_document(node)
    except yaml.YAMLError as error:
        raise BadInputError(
            f"{source}{_mark(error)}: {_problem(error)}",
            hint="lines of one level begin in one column, with blanks and no tabs; text with one "
            "of []{}:*&@%!# in it needs 'quotes'",
        ) from error
    except RecursionError as error:
        raise BadInputError(f"{source}: nested too deeply") from error
    except (ValueError, LookupError, AttributeError) as error:
        # what PyYAML's constructors raise for 2001-99-99, `!!bool maybe`, `!!timestamp x`
        raise BadInputError(f"{source}: not a valid value: {error}") from error
    finally:
        loader.dispose()
    try:
        return msgspec.convert(plain, kind), loader.lines
    except msgspec.ValidationError as error:
        raise _named(error, loader.lines, kind, plain, source) from error


def _is_text(text: bytes) -> bool:
    try:
        return yaml.reader.Reader.NON_PRINTABLE.search(text.decode("utf-8")) is None
    except UnicodeDecodeError:
        return False


def _remember_lines(loader: _Loader, node: yaml.Node, path: str, source: str) -> None:
    loader.lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag not in (_STRING, _MERGE):
                where = f"{source}:{line}:{key.start_mark.column + 1}"
                raise BadInputError(f"{where}: a key that is not text", hint=_FORMS["str"])
            name = key.value
            if name in seen:
                raise BadInputError(f"{source}:{line}: {_shown(path, name)}: given twice")
            seen.add(name)
            loader.lines[f"{path}.{name}"] = line
            _remember_lines(loader, value, f"{path}.{name}", source)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _remember_lines(loader, value, f"{path}[{index}]", source)


def _mark(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f":{mark.line + 1}:{mark.column + 1}" if mark else ""


def _problem(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or error).splitlines()[0]


def _shown(path: str, name: str = "") -> str:
    parts = [p for p in (path.removeprefix("$").removeprefix("."), name) if p]
    return ".".join(parts)


def _at(plain: Any, path: str) -> Any:
    """The value at ``$.a[0].b``; None where the path leads nowhere."""
    for key, index in re.findall(r"\.([^.\[]+)|\[(\d+)\]", path):
        try:
            plain = plain[key] if key else plain[int(index)]
        except (KeyError, IndexError, TypeError):
            return None
    return plain


def _type_at(kind: Any, path: str) -> Any:
    """The type of what is at ``path`` below ``kind``; None where there is no such field."""
    info: Any = msgspec.inspect.type_info(kind)
    for key, _ in re.findall(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]", path):
        info = _struct_info(info)
        if key and info is not None:
            info = next((f.type for f in info.fields if f.encode_name == key), None)
    return info


def _field_names(kind: Any, path: str) -> list[str]:
    """The fields that the struct at ``path`` below ``kind`` may have."""
    info = _struct_info(_type_at(kind, path))
    return [f.encode_name for f in info.fields] if info is not None else []


def _enum_values(kind: Any, path: str) -> list[str]:
    """The values that the enum at ``path``, or its optional, may have."""
    info = _type_at(kind, path)
    kinds = getattr(info, "types", (info,))
    enums = (t.cls for t in kinds if isinstance(t, msgspec.inspect.EnumType))
    return [str(member.value) for enum in enums for member in enum]


def _struct_info(info: Any) -> Any:
    while info is not None and not isinstance(info, msgspec.inspect.StructType):
        inner = getattr(info, "item_type", None)
        if inner is None:
            members = getattr(info, "types", ())
            inner = next((t for t in members if isinstance(t, msgspec.inspect.StructType)), None)
        info = inner
    return info


def _in_words(message: str) -> tuple[str, str]:
    """msgspec's "Expected `object`, got `array`" in the words of YAML, and which of msgspec's
    types it wanted in place of another."""

    def words(found: re.Match[str]) -> str:
        kinds = [kind for kind in found[1].split(" | ") if kind != "null"] or ["null"]
        return " or ".join(_WORDS.get(kind, kind) for kind in kinds)

    expected, _, got = message.partition(", got ")
    text = expected[:1].lower() + expected[1:]
    if got == "`null`":
        text = f"nothing given, {text}"
    elif got:
        text += f", not {got}"
    wanted = re.search("`([a-z]+)", expected)
    return re.sub("`([^`]+)`", words, text), wanted[1] if wanted and got else ""


def _value_shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    shown = repr(value) if isinstance(value, str) else str(value)
    return shown if len(shown) <= MOST_SHOWN else shown[:MOST_SHOWN] + "..."


def _named(
    error: msgspec.ValidationError,
    lines: dict[str, int],
    kind: Any,
    plain: Any,
    source: str,
) -> BadInputError:
    message, _, path = str(error).partition(" - at `")
    path = path.rstrip("`") or "$"
    hint = ""
    unknown = re.search(r"unknown field `(.+)`", message)
    missing = re.search(r"missing required field `(.+)`", message)
    if unknown:
        name = unknown.group(1)
        hint = nearest(name, _field_names(kind, path))
        message = "unknown key"
        where, line = _shown(path, name), lines.get(f"{path}.{name}")
    elif missing:
        name, known = missing.group(1), _field_names(kind, path)
        message = "required key is missing"
        where, line = _shown(path, name), lines.get(path)
        others = [str(key) for key in _at(plain, path) or () if key not in known]
        for misspelt in difflib.get_close_matches(name, others, n=1):
            message, hint = "unknown key", f"did you mean {name!r}?"
            where, line = _shown(path, misspelt), lines.get(f"{path}.{misspelt}")
    else:
        where, line = _shown(path), lines.get(path)
        value = _at(plain, path)
        scalar = value is not None and not isinstance(value, dict | list | set)
        if message.startswith("Invalid enum value"):
            hint = nearest(str(value), _enum_values(kind, path))
            message = "not a valid value"
        else:
            message, wanted = _in_words(message)
            hint = _FORMS.get(wanted, "") if scalar or wanted != "str" else ""
        if scalar:
            message = f"{_value_shown(value)}: {message}"
    at = f":{line}" if line else ""
    return BadInputError(f"{source}{at}: {where + ': ' if where else ''}{message}", hint=hint)
