"""File systems in a file, mounted for one test."""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
from collections.abc import Iterator
from pathlib import Path

SIZES = {"ext4": 64 << 20, "xfs": 320 << 20}
"""Bytes of an image; mkfs.xfs takes nothing smaller than 300 MiB."""
MKFS = {"ext4": ("-b", "4096"), "xfs": ()}


@contextlib.contextmanager
def mounted(fstype: str, at: Path, owner: pwd.struct_passwd) -> Iterator[Path]:
    """A new ``fstype`` on a loop device, mounted at ``at``, which belongs to ``owner``."""
    image = at.with_suffix(f".{fstype}.img")
    image.touch()
    os.truncate(image, SIZES[fstype])
    subprocess.run([f"mkfs.{fstype}", "-q", *MKFS[fstype], image], check=True)
    at.mkdir()
    subprocess.run(["mount", "-o", "loop", image, at], check=True)
    try:
        os.chown(at, owner.pw_uid, owner.pw_gid)
        # what mkfs and mount left to write belongs to no test
        subprocess.run(["sync", "-f", at], check=True)
        yield at
    finally:
        subprocess.run(["umount", at], check=True)
        image.unlink()
