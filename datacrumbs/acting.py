"""Acting as a user for a moment: root opens what that user may open, and nothing else."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def acting_as(name: str, uid: int, gid: int) -> Iterator[None]:
    """Have the rights of user ``name`` over files, and none of root's, inside the block; as root.

    The effective user and group and the other groups are the user's, of all threads of the
    process: none of them should do anything else meanwhile. The real and the saved user stay
    root, so that the user can neither trace nor signal the process, and a file system that the
    user serves (FUSE) does not answer it.
    """
    groups = os.getgroups()
    try:
        os.setgroups(os.getgrouplist(name, gid))
        os.setegid(gid)
        os.seteuid(uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
