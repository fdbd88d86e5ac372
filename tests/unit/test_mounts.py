"""What the mount of a binary means: told once, in a line."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from datacrumbs.probes import mounts

MOUNTINFO = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 0:45 / /home/ann/remote rw,nosuid,nodev - fuse.sshfs host:/ rw,user_id=1000
41 22 8:17 / /media/disk rw - fuseblk /dev/sdb1 rw
42 22 0:46 / /proc/x rw shared:7 master:1 - tmpfs tmpfs rw
"""


def test_the_kind_of_a_mount_is_that_of_its_device() -> None:
    assert mounts._kind(MOUNTINFO, "254:0") == "ext4"
    assert mounts._kind(MOUNTINFO, "0:45") == "fuse.sshfs"
    assert mounts._kind(MOUNTINFO, "0:46") == "tmpfs"
    assert mounts._kind(MOUNTINFO, "9:9") == ""


def test_an_ordinary_file_has_no_notes(tmp_path: Path) -> None:
    assert mounts.notes(Path("/usr/bin/env")) == []
    assert mounts.notes(tmp_path / "none") == []


@pytest.fixture
def noexec(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "mnt"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "noexec,size=1m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.root
def test_noexec_is_told(noexec: Path) -> None:
    binary = noexec / "lib.so"
    binary.write_bytes(b"x")
    assert mounts.notes(binary) == [mounts.NOEXEC]


@pytest.fixture
def fuse(tmp_path: Path) -> Iterator[Path]:
    image, place = tmp_path / "image", tmp_path / "fuse"
    place.mkdir()
    subprocess.run(["truncate", "-s", "4M", image], check=True)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    subprocess.run(["fuse2fs", "-o", "rw,fakeroot", image, place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.root
def test_fuse_is_told(fuse: Path) -> None:
    binary = fuse / "lib.so"
    binary.write_bytes(b"x")
    assert mounts.notes(binary) == [mounts.FUSE]
