"""Telling systemd how a service is doing (the protocol of sd_notify(3))."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> bool:
    """Send ``state`` (``READY=1``, ``STATUS=...``; lines separated by newlines) to systemd.

    Returns whether it was sent: False without a service manager (``NOTIFY_SOCKET`` is not
    set) and when the manager does not take it, which is no reason for a service to stop.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):  # an abstract socket: systemd writes its leading zero byte as @
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.settimeout(1)
            sender.sendto(state.encode(), address)
        except OSError:
            return False
    return True
