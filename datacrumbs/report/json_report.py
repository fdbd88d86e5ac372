"""Reports as JSON, field by field."""

from __future__ import annotations

import re
from typing import Any, TextIO

import msgspec

from datacrumbs.analysis.explanation import Explanation
from datacrumbs.report.sentences import sentence, split_sentence

_NOT_PLAIN = re.compile(r"[\x7f-\U0010ffff]")


def write_json(found: msgspec.Struct, stream: TextIO, *, indent: int = 1) -> None:
    """Write ``found`` and a newline, on one line with an ``indent`` of 0.

    ASCII only: a file name cannot reach the terminal raw.
    """
    _write(found, stream, indent)


def write_explanation_json(explanation: Explanation, stream: TextIO) -> None:
    """Write ``explanation`` likewise, each finding with its ``sentence``."""
    plain = msgspec.to_builtins(explanation)
    for explained, row in zip(explanation.explained, plain["explained"], strict=True):
        if explained.variation is None:
            continue
        variation = row["variation"]
        variation["sentence"] = split_sentence(explained, explained.variation)
        for finding, found in zip(explained.variation.findings, variation["findings"], strict=True):
            found["sentence"] = sentence(finding)
    _write(plain, stream)


def _write(data: Any, stream: TextIO, indent: int = 1) -> None:
    text = msgspec.json.format(msgspec.json.encode(data), indent=indent or -1)
    stream.write(ascii_json(text) + "\n")


def ascii_json(encoded: bytes) -> str:
    """The same JSON in ASCII."""
    return _NOT_PLAIN.sub(_escaped, encoded.decode())


def _escaped(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))
