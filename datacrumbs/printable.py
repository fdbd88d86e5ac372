"""Text that others chose (names, paths, error messages), fit for terminals, logs and journals."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""``text`` in one line, with all that a terminal might obey escaped (``\x1b``, ``\u202e``)."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
