"""Opening files that somebody else chose."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from datacrumbs.errors import BadInputError
from datacrumbs.regular_file import open_regular


def test_a_file_is_opened_for_reading_also_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"contents")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        fd = open_regular(tmp_path / name)
        try:
            assert os.read(fd, 100) == b"contents"
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.write(fd, b"x")
            assert not os.get_inheritable(fd)
        finally:
            os.close(fd)


@pytest.mark.parametrize("kind", ["directory", "fifo", "device"])
def test_anything_else_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/tty")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BadInputError, match=f"{path}: not a regular file"):
        open_regular(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_missing_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")
