"""Root that acts as a user has the user's rights over files, and comes back."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from datacrumbs.acting import acting_as
from datacrumbs.regular_file import open_regular


def acting(user: pwd.struct_passwd) -> AbstractContextManager[None]:
    return acting_as(user.pw_name, user.pw_uid, user.pw_gid)


def rights() -> tuple[object, ...]:
    return os.getresuid(), os.getresgid(), os.getgroups()


@pytest.fixture
def files(ordinary_user: pwd.struct_passwd) -> Iterator[Path]:
    """Files that the user may read, owns, and may not read, where the user may look."""
    directory = Path(tempfile.mkdtemp(prefix="dc-acting-", dir="/var/tmp"))
    directory.chmod(0o755)
    for name, mode in (("open", 0o644), ("own", 0o400), ("closed", 0o600)):
        (directory / name).write_text(name)
        (directory / name).chmod(mode)
    os.chown(directory / "own", ordinary_user.pw_uid, ordinary_user.pw_gid)
    yield directory
    shutil.rmtree(directory)


def test_it_opens_what_the_user_may_open_and_nothing_else(
    ordinary_user: pwd.struct_passwd, files: Path
) -> None:
    before = rights()
    for name in ("open", "own"):
        with acting(ordinary_user):
            fd = open_regular(files / name)
        assert os.read(fd, 16).decode() == name
        os.close(fd)
    with pytest.raises(PermissionError), acting(ordinary_user):
        open_regular(files / "closed")
    with acting(ordinary_user):
        assert os.getgroups() == os.getgrouplist(ordinary_user.pw_name, ordinary_user.pw_gid)
        assert not os.access(files, os.W_OK, effective_ids=True)
    assert rights() == before
    assert (files / "closed").read_text() == "closed"


def test_the_user_can_neither_trace_nor_signal_root_acting_for_them(
    ordinary_user: pwd.struct_passwd,
) -> None:
    ready_read, ready_write = os.pipe()
    done_read, done_write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(done_write)
            with acting(ordinary_user):
                os.write(ready_write, f"{os.geteuid()}".encode())
                os.read(done_read, 1)
        finally:
            os._exit(0)
    os.close(done_read)
    try:
        assert os.read(ready_read, 16).decode() == str(ordinary_user.pw_uid)
        attack = (
            "import ctypes, os, sys\n"
            f"pid = {child}\n"
            "libc = ctypes.CDLL(None, use_errno=True)\n"
            "ptrace = libc.ptrace(16, pid, None, None), ctypes.get_errno()\n"
            "try: os.kill(pid, 9); kill = 0\n"
            "except OSError as error: kill = error.errno\n"
            "try: open(f'/proc/{pid}/mem', 'rb'); mem = 0\n"
            "except OSError as error: mem = error.errno\n"
            "print(ptrace, kill, mem)\n"
        )
        command = [sys.executable, "-I", "-c", attack]
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            user=ordinary_user.pw_uid,
            group=ordinary_user.pw_gid,
            extra_groups=[],
        )
        assert result.stdout == "(-1, 1) 1 13\n"
    finally:
        os.close(done_write)
        os.waitpid(child, 0)
        os.close(ready_read)
        os.close(ready_write)
