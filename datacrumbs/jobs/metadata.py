"""What a job says about tracing: ``{"datacrumbs":{"enable":"yes","probe_file":"/abs/path"}}``.

Users, their scripts and other tools share the text this stands in (Slurm's comment, the value of
a Flux attribute). Whatever else is there is left alone: prose, other tools' JSON before or after
ours, other keys in the same object. What is ours is taken strictly.

Read by root in a job's prolog: bounded in size, depth and time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from datacrumbs.errors import BadInputError
from datacrumbs.printable import printable

KEY = "datacrumbs"
EXAMPLE = '{"datacrumbs":{"enable":"yes","probe_file":"/abs/path"}}'
HINT = f"write {EXAMPLE}"

MAX_BYTES = 64 * 1024
MAX_DEPTH = 100
MAX_PATH_BYTES = 4095
SLURM_MAX_BYTES = 1024
"""What a comment of a Slurm job may hold."""

_MAX_OBJECTS = 500

# ours by intention, though it is no JSON: cut off, or its quotes eaten by a shell
_MEANT = re.compile(r"""\{\s*['"“]?datacrumbs['"”]?\s*:|"datacrumbs"\s*:\s*\{""")


@dataclass(frozen=True, slots=True)
class Metadata:
    """A job that is to be traced, as ``probe_file`` (an absolute path) says."""

    probe_file: str


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it was written, so that a key given twice is seen."""


def parse_comment(comment: bytes | str) -> Metadata | None:
    """Our part of a comment; None when there is none.

    Raises `BadInputError`, one line and what to write instead, when what is meant for us
    cannot be taken.
    """
    text = _decoded(comment)
    if KEY not in text:
        return None
    if len(text.encode(errors="surrogateescape")) > MAX_BYTES:
        raise _bad(f"longer than {MAX_BYTES} bytes")
    if _MEANT.search(text) and _depth(text) > MAX_DEPTH:
        raise _bad(f"JSON nested deeper than {MAX_DEPTH}")
    found = [value for _, _, members in _objects(text) for name, value in members if name == KEY]
    if len(found) > 1:
        raise _bad(f'"{KEY}" is given {len(found)} times')
    if found:
        return parse_value(found[0])
    if _MEANT.search(text):
        raise _bad("not valid JSON, or not at its outermost level (quotes lost in the shell?)")
    return None


def parse_value(value: object) -> Metadata:
    """What stands behind ``"datacrumbs":``, decoded from JSON. Raises `BadInputError`."""
    if isinstance(value, dict):
        value = _Pairs(value.items())
    if not isinstance(value, _Pairs):
        raise _bad(f'"{KEY}" must be an object')
    members: dict[str, Any] = {}
    for name, member in value:
        if name not in ("enable", "probe_file"):
            raise _bad(f"unknown key {_quoted(name)}")
        if name in members:
            raise _bad(f"{_quoted(name)} is given twice")
        members[name] = member
    for name in ("enable", "probe_file"):
        if name not in members:
            raise _bad(f'"{name}" is missing')
    if members["enable"] != "yes":
        raise _bad('"enable" must be "yes"')
    return Metadata(check_path(members["probe_file"]))


def check_path(path: object) -> str:
    """``path`` if it can name a probe file on every node. Raises `BadInputError`."""
    if not isinstance(path, str):
        raise _bad('"probe_file" must be a string')
    if not path.startswith("/"):
        raise _bad(f'"probe_file" must be an absolute path, not {_quoted(path)}')
    if not path.isprintable():  # line breaks, escapes, bytes that are no UTF-8
        raise _bad(f'"probe_file" holds unprintable characters: {_quoted(path)}')
    if len(path.encode()) > MAX_PATH_BYTES:
        raise _bad(f'"probe_file" is longer than {MAX_PATH_BYTES} bytes')
    return path


def merged(comment: str, probe_file: str, *, max_bytes: int = SLURM_MAX_BYTES) -> str:
    """``comment`` with our part added; it says nothing else than before to anybody else.

    A comment that is one JSON object stays one: ours becomes a member of it. Raises
    `BadInputError` when it has a part for us already, or becomes longer than ``max_bytes``.
    """
    if parse_comment(comment) is not None:
        raise BadInputError(
            f'the comment has a "{KEY}" part already',
            hint="give the probe file there, or as an option, not both",
        )
    value = {"enable": "yes", "probe_file": check_path(probe_file)}
    ours = json.dumps({KEY: value}, ensure_ascii=False, separators=(",", ":"))
    text = _joined(comment, ours)
    size = len(text.encode(errors="surrogateescape"))
    if size > max_bytes:
        raise BadInputError(
            f"the job's comment would have {size} bytes with the probe file; {max_bytes} are "
            "possible",
            hint="shorten --comment, or move the probe file to a shorter path",
        )
    return text


def _joined(comment: str, ours: str) -> str:
    stripped = comment.strip()
    if not stripped:
        return ours
    whole = next(_objects(stripped), None)
    if whole is None or whole[:2] != (0, len(stripped)):
        return f"{comment} {ours}"
    inside = stripped[:-1].rstrip()
    return f"{inside}{',' if whole[2] else ''}{ours[1:]}"


def _decoded(comment: bytes | str) -> str:
    if isinstance(comment, str):
        return comment
    return comment.decode("utf-8", errors="surrogateescape")


def _depth(text: str) -> int:
    """At most how deep any JSON in ``text`` is nested; brackets in strings count as well."""
    depth = deepest = 0
    for character in text:
        if character in "{[":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "}]":
            depth = max(depth - 1, 0)
    return deepest


def _objects(text: str) -> Iterator[tuple[int, int, _Pairs]]:
    """The outermost JSON objects in ``text``: where each begins and ends, and its members."""
    # no number matters here, and one of a million digits must not be converted
    decoder = json.JSONDecoder(
        object_pairs_hook=_Pairs, parse_int=_zero, parse_float=_zero, strict=False
    )
    position = text.find("{")
    for _ in range(_MAX_OBJECTS):
        if position < 0:
            return
        end = position + 1
        try:
            value, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):  # prose with a brace in it
            pass
        else:
            yield position, end, value
        position = text.find("{", end)


def _zero(_: str) -> int:
    return 0


def _quoted(text: str) -> str:
    """Part of ``text``, fit for one line of a terminal or log."""
    shown = text if len(text) <= 80 else f"{text[:77]}..."
    return f"'{printable(shown)}'"


def _bad(what: str) -> BadInputError:
    return BadInputError(f"job metadata: {what}", hint=HINT)
