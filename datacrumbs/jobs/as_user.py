"""Reading a user's file with that user's rights, and no others.

Root's own rights are of no use where home directories are on NFS with root squashed, and too
many everywhere else: a child becomes the user, reads, and passes the bytes on.
"""

from __future__ import annotations

import os
import pwd
import select
import signal
import stat
import time

from datacrumbs.errors import BadInputError, UserError
from datacrumbs.tracer.privileges import become

_OK, _ERROR = b"=", b"!"


def read_as_user(user: pwd.struct_passwd, path: str, *, max_bytes: int, timeout_s: float) -> bytes:
    """The content of the regular file ``path`` as ``user`` sees it.

    Raises `UserError` when that user cannot read it, when it is no regular file, larger than
    ``max_bytes`` or not read after ``timeout_s`` (a file system that hangs).
    """
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if not child:
        _serve(user, path, max_bytes, write_fd)
    os.close(write_fd)
    try:
        answer = _collect(read_fd, max_bytes, time.monotonic() + timeout_s)
    finally:
        os.close(read_fd)
        os.kill(child, signal.SIGKILL)
        # one that hangs in its file system cannot be waited for; init inherits it
        os.waitpid(child, os.WNOHANG)
    if answer is None:
        raise UserError(f"{path}: not read within {timeout_s:.0f} s; does its file system answer?")
    if answer[:1] == _OK:
        return answer[1:]
    reason = answer[1:].decode(errors="replace") or "the reading process was killed"
    raise BadInputError(f"{path}: {reason}", hint=f"{user.pw_name} must be able to read it here")


def _collect(fd: int, max_bytes: int, deadline: float) -> bytes | None:
    """Everything from ``fd`` up to its end; None when the deadline passes first."""
    data = bytearray()
    while len(data) <= max_bytes + 1:
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not select.select([fd], [], [], left_s)[0]:
            return None
        piece = os.read(fd, 1 << 20)
        if not piece:
            break
        data += piece
    return bytes(data)


def _serve(user: pwd.struct_passwd, path: str, max_bytes: int, fd: int) -> None:
    """The child: write the file's bytes, or why not, to ``fd``, and end."""
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        become(user)
        answer = _OK + _read(path, max_bytes)
    except UserError as error:
        answer = _ERROR + error.message.encode(errors="replace")
    except OSError as error:
        answer = _ERROR + (error.strerror or "cannot be read").encode()
    except BaseException as error:
        answer = _ERROR + type(error).__name__.encode()
    try:
        view = memoryview(answer)
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os._exit(0)


def _read(path: str, max_bytes: int) -> bytes:
    # O_NONBLOCK: a FIFO in the file's place must not stop us
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise UserError("not a regular file")
    data = bytearray()
    while piece := os.read(fd, min(1 << 20, max_bytes + 1 - len(data))):
        data += piece
        if len(data) > max_bytes:
            raise UserError(f"larger than {max_bytes} bytes")
    return bytes(data)
