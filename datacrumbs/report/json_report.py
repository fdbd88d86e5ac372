"""What an analysis found as JSON, field by field."""

from __future__ import annotations

import re
from typing import TextIO

import msgspec

_NOT_PLAIN = re.compile(r"[\x7f-\U0010ffff]")


def write_json(found: msgspec.Struct, stream: TextIO, *, indent: int = 1) -> None:
    """Write ``found`` and a newline, on one line with an ``indent`` of 0.

    ASCII only: a file name cannot reach the terminal raw.
    """
    text = msgspec.json.format(msgspec.json.encode(found), indent=indent or -1).decode()
    stream.write(_NOT_PLAIN.sub(_escaped, text) + "\n")


def _escaped(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))
