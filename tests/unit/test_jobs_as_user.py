"""Reading a job's probe file with the rights of the job's user."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from datacrumbs.errors import UserError
from datacrumbs.jobs.as_user import read_as_user


@pytest.fixture
def home(ordinary_user: pwd.struct_passwd) -> Iterator[Path]:
    """A directory that only `ordinary_user` may enter, as a root-squashed home is for root."""
    path = Path(tempfile.mkdtemp(prefix="datacrumbs-test-", dir="/var/tmp"))
    os.chown(path, ordinary_user.pw_uid, ordinary_user.pw_gid)
    path.chmod(0o700)
    yield path
    shutil.rmtree(path)


def _read(user: pwd.struct_passwd, path: Path, max_bytes: int = 1000, wait_s: float = 5) -> bytes:
    return read_as_user(user, str(path), max_bytes=max_bytes, timeout_s=wait_s)


def _refused(user: pwd.struct_passwd, path: Path, **limits: float) -> str:
    with pytest.raises(UserError) as raised:
        _read(user, path, **limits)  # type: ignore[arg-type]
    return raised.value.message


def test_the_users_own_file_is_read(ordinary_user: pwd.struct_passwd, home: Path) -> None:
    path = home / "probes"
    path.write_bytes(b"x" * 1000)
    path.chmod(0o400)
    os.chown(path, ordinary_user.pw_uid, ordinary_user.pw_gid)
    assert _read(ordinary_user, path) == b"x" * 1000
    assert _refused(ordinary_user, path, max_bytes=999) == f"{path}: larger than 999 bytes"


def test_an_empty_file_is_empty(ordinary_user: pwd.struct_passwd, home: Path) -> None:
    (home / "probes").touch()
    assert _read(ordinary_user, home / "probes") == b""


def test_what_only_root_can_read_is_refused(ordinary_user: pwd.struct_passwd, home: Path) -> None:
    assert _refused(ordinary_user, Path("/etc/shadow")) == "/etc/shadow: Permission denied"
    (home / "link").symlink_to("/etc/shadow")
    assert "Permission denied" in _refused(ordinary_user, home / "link")


def test_what_another_user_alone_can_read_is_refused(
    ordinary_user: pwd.struct_passwd, other_user: pwd.struct_passwd, home: Path
) -> None:
    (home / "probes").write_bytes(b"x")
    assert "Permission denied" in _refused(other_user, home / "probes")


def test_roots_groups_do_not_help(ordinary_user: pwd.struct_passwd, home: Path) -> None:
    home.chmod(0o755)
    path = home / "probes"
    path.write_bytes(b"x")
    path.chmod(0o040)
    os.chown(path, 0, 0)
    assert "Permission denied" in _refused(ordinary_user, path)


def test_what_is_no_file_is_refused(ordinary_user: pwd.struct_passwd, home: Path) -> None:
    os.mkfifo(home / "fifo", 0o666)
    os.chown(home / "fifo", ordinary_user.pw_uid, ordinary_user.pw_gid)
    assert _refused(ordinary_user, home / "fifo").endswith("not a regular file")
    assert _refused(ordinary_user, Path("/dev/zero")).endswith("not a regular file")
    assert "directory" in _refused(ordinary_user, home) or "regular" in _refused(
        ordinary_user, home
    )
    assert "No such file" in _refused(ordinary_user, home / "none")


def test_a_deadline_ends_the_reading(ordinary_user: pwd.struct_passwd, home: Path) -> None:
    (home / "probes").write_bytes(b"x")
    started = time.monotonic()
    assert "not read within" in _refused(ordinary_user, home / "probes", wait_s=0)
    assert time.monotonic() - started < 2
