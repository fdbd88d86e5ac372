"""What the file system that a binary lies on means for probing it."""

from __future__ import annotations

import os
from pathlib import Path

NOEXEC = "on a file system mounted noexec: nothing can run from there on this host"
FUSE = "on a FUSE file system: root must be able to read it (allow_other), or it is not traced"


def notes(path: Path) -> list[str]:
    """What a user should know about the mount that ``path`` is on; often nothing."""
    try:
        noexec = os.statvfs(path).f_flag & os.ST_NOEXEC
        device = path.stat().st_dev
        table = Path("/proc/self/mountinfo").read_text()
    except OSError:
        return []
    kind = _kind(table, f"{os.major(device)}:{os.minor(device)}")
    fuse = kind == "fuseblk" or kind.split(".")[0] == "fuse"
    return [*([NOEXEC] if noexec else []), *([FUSE] if fuse else [])]


def _kind(mountinfo: str, device: str) -> str:
    """The file system type of ``device``; "" if it is not listed (proc(5), mountinfo)."""
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[2] == device:
            return rest.split()[0]
    return ""
