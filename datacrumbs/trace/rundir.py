"""The directory a run writes to, made as the run's user, without following a stranger's link.

Above the first directory that the user owns, symbolic links are the admin's business: those of
root and of the user are followed. From there on none is.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from datacrumbs.errors import BadInputError, UserError
from datacrumbs.run import check_run_id
from datacrumbs.trace.runfile import State, state_of

MAX_LINKS = 40  # as the kernel's own limit for one path

_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def create_run_directory(root: Path, run_id: str, host: str) -> Path:
    """Make ``root/run_id/host=<host>``, empty and mode 0700, for the user we run as.

    What an earlier run of the same id left under that name is moved aside, to
    ``previous-<n>.host=<host>``. Raises `UserError` when it cannot be made, a link or another
    user's directory stands in the way, or a living daemon writes there.
    """
    check_run_id(run_id)
    target = root / run_id
    with _opened(target) as run_fd:
        owner = os.fstat(run_fd).st_uid
        if owner != os.geteuid():
            raise UserError(
                f"{target}: owned by uid {owner}, not by uid {os.geteuid()}",
                hint="choose another run id, or another trace_dir in system.yaml",
            )
        name = f"host={host}"
        try:
            _move_aside(run_fd, target, host)
            os.mkdir(name, 0o700, dir_fd=run_fd)
        except OSError as error:
            raise UserError(f"{target / name}: {error.strerror}") from error
    return target / name


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A descriptor of ``path``, made where it is missing."""
    fd = os.open("/", _LOOK)
    try:
        fd = _walk(fd, path)
        yield fd
    finally:
        os.close(fd)


def _walk(fd: int, path: Path) -> int:
    """Follow ``path`` from the root directory ``fd``, which is closed or returned."""
    uid = os.geteuid()
    todo = list(reversed(path.parts[1:]))
    links = 0
    inside = False  # the user's own
    while todo:
        name = todo.pop()
        inside = inside or (uid != 0 and os.fstat(fd).st_uid == uid)
        child = _enter(fd, name, path)
        status = os.fstat(child)
        if stat.S_ISLNK(status.st_mode):
            links += 1
            target = _link_target(child, status.st_uid, name, path, inside or links > MAX_LINKS)
            os.close(child)
            if not target.is_absolute():
                todo += reversed(target.parts)
                continue
            todo += reversed(target.parts[1:])
            child = os.open("/", _LOOK)
        elif not stat.S_ISDIR(status.st_mode):
            os.close(child)
            raise UserError(f"{path}: {name!r} is not a directory")
        os.dup2(child, fd, inheritable=False)
        os.close(child)
    return fd


def _enter(fd: int, name: str, path: Path) -> int:
    """Open ``name``: a directory, made where there is nothing, or a link itself."""
    try:
        return _look(fd, name)
    except FileNotFoundError:
        _make(fd, name, path)
    except OSError as error:
        raise UserError(f"{path}: cannot open {name!r}: {error.strerror}") from error
    return _enter(fd, name, path)


def _look(fd: int, name: str) -> int:
    try:
        return os.open(name, _LOOK | os.O_DIRECTORY, dir_fd=fd)  # mounts what autofs has there
    except NotADirectoryError:
        return os.open(name, _LOOK, dir_fd=fd)


def _make(fd: int, name: str, path: Path) -> None:
    try:
        with contextlib.suppress(FileExistsError):  # another node of the run was faster
            os.mkdir(name, 0o700, dir_fd=fd)
    except OSError as error:
        raise UserError(
            f"{path}: cannot make {name!r}: {error.strerror}",
            hint="check trace_dir in system.yaml, its permissions and the quota",
        ) from error


def _link_target(child: int, owner: int, name: str, path: Path, refused: bool) -> Path:
    if refused or owner not in (0, os.geteuid()):
        raise UserError(
            f"{path}: {name!r} is a symbolic link of uid {owner}, which is not followed here",
            hint="set trace_dir in system.yaml to the directory the link points to",
        )
    return Path(os.readlink("", dir_fd=child))


def _exists(fd: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except OSError:
        return False
    return True


def _move_aside(run_fd: int, run: Path, host: str) -> None:
    name = f"host={host}"
    if not _exists(run_fd, name):
        return
    if _is_real_directory(run_fd, name) and _in_use(run / name):
        raise UserError(
            f"{run / name}: a running daemon writes there",
            hint="choose another run id, or stop that run",
        )
    number = 1
    while _exists(run_fd, f"previous-{number}.{name}"):
        number += 1
    os.rename(name, f"previous-{number}.{name}", src_dir_fd=run_fd, dst_dir_fd=run_fd)


def _in_use(directory: Path) -> bool:
    try:
        return state_of(directory) is State.RUNNING
    except BadInputError:  # damaged, or of a later version: no reason not to run
        return False


def _is_real_directory(fd: int, name: str) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)
