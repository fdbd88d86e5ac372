"""What goes over the signing service's socket, in both directions.

A frame is its length (4 bytes, big-endian) and that many bytes. The request is a probe list
(JSON, `datacrumbs.probes.model`); the reply is a `Reply` (JSON). One of each per connection.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

import msgspec
from msgspec import Struct

from datacrumbs.errors import UserError

LENGTH = struct.Struct(">I")
REPLY_OVERHEAD_BYTES = 64 * 1024


class Reply(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``envelope`` is the DSSE JSON object, null unless ``ok``; else ``error`` and ``hint``."""

    ok: bool
    envelope: msgspec.Raw = msgspec.Raw(b"null")
    error: str = ""
    hint: str = ""


def refusal(error: str, hint: str = "") -> Reply:
    """The reply that says no. Long texts are cut, so that it fits a socket's buffer."""
    return Reply(ok=False, error=error[:4000], hint=hint[:4000])


def frame(data: bytes) -> bytes:
    """``data`` with its length in front."""
    return LENGTH.pack(len(data)) + data


def receive_frame(
    connection: socket.socket,
    *,
    max_bytes: int,
    what: str,
    before: Callable[[int], None] = lambda _: None,
) -> bytes:
    """Read one frame. Raises `UserError` when it is cut off, empty or over ``max_bytes``.

    ``before`` is called with its size before any of it is read.
    """
    (size,) = LENGTH.unpack(_receive(connection, LENGTH.size, what))
    if not 0 < size <= max_bytes:
        raise UserError(f"{what} of {size} bytes, at least 1 and at most {max_bytes} are taken")
    before(size)
    return _receive(connection, size, what)


def _receive(connection: socket.socket, size: int, what: str) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(min(size - len(data), 1 << 18))
        if not piece:
            raise UserError(f"{what} is cut off: {len(data)} of {size} bytes")
        data += piece
    return bytes(data)
