"""Files of root's for one user: why a job is not traced."""

from __future__ import annotations

import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from datacrumbs.config import SystemConfig
from datacrumbs.errors import UserError
from datacrumbs.jobs.unit import not_traced
from datacrumbs.run import failed_file


@pytest.fixture(params=["/dev/shm", "/var/tmp"])
def directory(request: pytest.FixtureRequest) -> Iterator[Path]:
    """In memory, as /run is, and on a disk; every user may look into it."""
    made = Path(tempfile.mkdtemp(prefix="dc-readable-", dir=request.param))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def can(user: pwd.struct_passwd, test: str, path: Path) -> bool:
    """What test(1) says to ``user``."""
    done = subprocess.run(
        ["test", test, path],
        check=False,
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=[],
    )
    return done.returncode == 0


def test_why_a_job_is_not_traced_is_roots_and_its_users_to_read(
    directory: Path, ordinary_user: pwd.struct_passwd, other_user: pwd.struct_passwd
) -> None:
    run_dir = directory / "run"
    config = SystemConfig(run_dir=str(run_dir), log_dir=str(directory / "log"))
    not_traced("r", ordinary_user, config, UserError("no\x1b[2J\nprobe", hint="sign it"))
    path = failed_file(run_dir, "r")
    assert path.read_text() == r"no\x1b[2J\nprobe (sign it)" + "\n"
    assert path.stat().st_uid == 0
    assert can(ordinary_user, "-r", path)
    assert not can(ordinary_user, "-w", path)
    assert not can(other_user, "-r", path)
    assert list(run_dir.iterdir()) == [path]


ON_RAMFS = """
mount -t ramfs none "$1" && exec "$2" -P -c '
import os, pwd, sys
from datacrumbs.readable import let_read
fd = os.open(sys.argv[1] + "/file", os.O_RDWR | os.O_CREAT, 0o600)
let_read(fd, pwd.getpwnam(sys.argv[2]))
status = os.fstat(fd)
print(status.st_uid, status.st_gid, oct(status.st_mode & 0o7777))
' "$1" "$3"
"""
"""A file system without access control lists, which only this process sees."""


def test_without_access_control_lists_the_login_group_reads(
    directory: Path, ordinary_user: pwd.struct_passwd
) -> None:
    command = ["unshare", "--mount", "sh", "-c", ON_RAMFS, "sh", directory, sys.executable]
    done = subprocess.run(
        [*command, ordinary_user.pw_name], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout == f"0 {ordinary_user.pw_gid} 0o640\n"
