"""The report as JSON: `datacrumbs.analysis.model.Summary`, field by field."""

from __future__ import annotations

import re
from typing import TextIO

import msgspec

from datacrumbs.analysis.model import Summary

_NOT_PLAIN = re.compile(r"[\x7f-\U0010ffff]")


def write_json(summary: Summary, stream: TextIO) -> None:
    """Write ``summary`` and a newline. ASCII only: a file name cannot reach the terminal raw."""
    text = msgspec.json.format(msgspec.json.encode(summary), indent=1).decode()
    stream.write(_NOT_PLAIN.sub(_escaped, text) + "\n")


def _escaped(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))
