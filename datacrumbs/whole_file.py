"""A file that is there when it is complete, and not before."""

from __future__ import annotations

import contextlib
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from datacrumbs.errors import BadInputError, UserError


@contextlib.contextmanager
def whole_file(out: Path) -> Iterator[BinaryIO]:
    """A file to write, which becomes ``out`` at the end; ``-``: standard output.

    What was there before stays until then, and for good when an exception leaves the block.
    Raises `BadInputError` for what is no regular file, `UserError` when it cannot be written.
    """
    if str(out) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    out = out.resolve()
    if out.exists() and not out.is_file():
        raise BadInputError(f"{out}: not a regular file", hint="give the name of a file to write")
    temporary = out.with_name(f".{out.name[:200]}.{secrets.token_hex(4)}.new")
    try:
        with open(temporary, "xb") as file:
            try:
                yield file
                file.flush()
                temporary.rename(out)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise UserError(f"{out}: cannot write it: {error.strerror}") from error
