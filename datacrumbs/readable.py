"""A file of root's that one user may read, and not change."""

from __future__ import annotations

import errno
import os
import pwd
import struct

_ACL = "system.posix_acl_access"
_VERSION = struct.pack("<I", 2)  # linux/posix_acl_xattr.h
_ENTRY = struct.Struct("<HHI")  # tag, permissions, id
_NOBODY = 0xFFFF_FFFF
_OWNER, _USER, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
_READ, _WRITE = 4, 2


def let_read(fd: int, user: pwd.struct_passwd) -> None:
    """Let ``user`` read the open file, which stays the caller's; nobody else but the owner may.

    By an access control list; where the file system has none, all of the user's login group may.
    Raises `OSError`.
    """
    entries = (
        (_OWNER, _READ | _WRITE, _NOBODY),
        (_USER, _READ, user.pw_uid),
        (_GROUP, 0, _NOBODY),
        (_MASK, _READ, _NOBODY),
        (_OTHER, 0, _NOBODY),
    )
    try:
        os.setxattr(fd, _ACL, _VERSION + b"".join(_ENTRY.pack(*entry) for entry in entries))
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        os.fchown(fd, -1, user.pw_gid)
        os.fchmod(fd, 0o640)
