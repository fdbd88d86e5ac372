"""Asking the signing service for a signature."""

from __future__ import annotations

import contextlib
import socket

import msgspec

from datacrumbs.config import Signing
from datacrumbs.errors import UserError
from datacrumbs.printable import printable
from datacrumbs.signing.protocol import REPLY_OVERHEAD_BYTES, Reply, frame, receive_frame

START = (
    "as root: systemctl start datacrumbs_sign_probes.socket (without systemd: run "
    "datacrumbs_sign_probes)"
)


def request_signature(payload: bytes, signing: Signing) -> bytes:
    """The signed envelope of ``payload`` (an encoded `ProbeList`), from this host's service.

    Raises `UserError` when there is no service (the hint says how to start it), when it
    refuses (its words), and when it does not answer in time.
    """
    if len(payload) > signing.max_request_bytes:
        raise UserError(
            f"the probe list has {len(payload)} bytes, the signing service takes "
            f"{signing.max_request_bytes}",
            hint="capture fewer functions, or ask for a larger signing.max_request_bytes",
        )
    try:
        reply = msgspec.json.decode(_exchange(payload, signing), type=Reply)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{signing.socket}: not the signing service: bad reply") from error
    if not reply.ok:
        raise UserError(f"signing service: {printable(reply.error)}", hint=printable(reply.hint))
    return bytes(reply.envelope)


def _exchange(payload: bytes, signing: Signing) -> bytes:
    path = signing.socket
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        # the service answers within its own limit, also that it is late; this is for none at all
        connection.settimeout(signing.timeout_s + 5)
        try:
            connection.connect(path)
        except OSError as error:
            raise UserError(
                f"no signing service at {path}: {error.strerror or error}", hint=START
            ) from error
        try:
            # a service that refuses early (busy) answers and closes before it has read all
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(frame(payload))
            max_bytes = 2 * signing.max_request_bytes + REPLY_OVERHEAD_BYTES
            return receive_frame(connection, max_bytes=max_bytes, what="the reply")
        except OSError as error:
            raise UserError(
                f"signing service at {path}: {error.strerror or error}",
                hint="try again; as root, see: journalctl -u datacrumbs_sign_probes",
            ) from error
