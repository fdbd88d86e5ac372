"""Targets known not to attach on this host: a small database that the daemon keeps.

A function that the kernel refuses once it refuses every time, and finding that out costs a
run time to attach. So the daemon, which is root, notes what was refused, by kernel release,
file (build-id or digest; none for the kernel's own), name and offset; the configurator leaves
those out. Everybody may read the file, root alone writes it.

A user could name a file of their own like a system's, build-id and all, and have it refused.
So a note counts for the user whose run made it, and for everybody only if it is about the
kernel's own functions or a file that root alone can replace.
"""

from __future__ import annotations

import errno
import os
import platform
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from datacrumbs.errors import UserError
from datacrumbs.printable import printable
from datacrumbs.probes import model

FILE = "status.sqlite"
ROWS_MAX = 100_000
BUSY_S = 2.0
TEXT_MAX = 255
NO_OFFSET = -1
EVERYBODY = 0
KNOWN = "known not to attach on this host"

LASTING = (
    *map(os.strerror, (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOEXEC, errno.EILSEQ, errno.ENXIO)),
    os.strerror(524),  # the kernel's own ENOTSUPP: an instruction that uprobes cannot step over
    "have this name",
    "allows no probe",
    "no function begins there",
)
"""What is said of a function that will be refused the next time as well.

Nothing that may pass: memory, descriptors, a file or a kernel module that is not there now.
"""

_TABLE = """
CREATE TABLE IF NOT EXISTS refused (
    uid INTEGER NOT NULL, kernel TEXT NOT NULL, target TEXT NOT NULL, name TEXT NOT NULL,
    offset INTEGER NOT NULL, reason TEXT NOT NULL, time INTEGER NOT NULL,
    PRIMARY KEY (uid, kernel, target, name, offset)
) WITHOUT ROWID
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One refusal. ``target`` is a build-id or digest, "" for the kernel; ``time`` in Unix s.

    ``offset`` is a file offset in bytes, `NO_OFFSET` where a name is all there is. ``uid`` is
    whom it counts for: a user, or `EVERYBODY`.
    """

    target: str
    name: str
    offset: int
    reason: str
    uid: int
    kernel: str
    time: int


Place = tuple[str, str, int]
"""(target, name, offset) of a function; with an offset, the name is "": it may have several."""


def place_of(target: str, function: object) -> Place:
    """Where ``function`` of the file ``target`` is, to be compared with `place_of_entry`."""
    name, offset = _name_and_offset(function)
    return _place("" if isinstance(function, model.KernelFunction) else target, name, offset)


def place_of_entry(entry: Entry) -> Place:
    """Where the function is that the entry is about."""
    return _place(entry.target, entry.name, entry.offset)


def _place(target: str, name: str, offset: int) -> Place:
    return target, name if offset == NO_OFFSET else "", offset


def _name_and_offset(function: object) -> tuple[str, int]:
    match function:
        case model.UserFunction():
            return function.name, function.offset
        case model.UsdtPoint():
            return f"{function.provider}:{function.name}", NO_OFFSET
        case model.KernelFunction():
            return function.name, NO_OFFSET
    return str(function), NO_OFFSET


def refusals(probes: model.ProbeList, skipped: Iterable[tuple[str, str, str]]) -> list[Entry]:
    """What to remember of a run's skipped functions (layer, name, reason).

    Functions of the kernel and of files, and USDT points, refused for a reason that lasts.
    """
    reasons = {(layer, name): reason for layer, name, reason in skipped}
    now, kernel = int(time.time()), platform.release()
    return [
        Entry(target, *_name_and_offset(function), reason, uid, kernel, now)
        for layer in probes.layers
        if isinstance(layer, model.KernelLayer | model.UserLayer | model.UsdtLayer)
        for target, uid in [_counts_for(layer, probes.uid)]
        for function in layer.functions
        for name in dict.fromkeys((function.name, _name_and_offset(function)[0]))
        if (reason := reasons.get((layer.name, name), "")) and is_lasting(reason)
    ]


def is_lasting(reason: str) -> bool:
    """Whether a refusal for this reason will be one the next time."""
    return any(text in reason for text in LASTING)


def _counts_for(
    layer: model.KernelLayer | model.UserLayer | model.UsdtLayer, uid: int
) -> tuple[str, int]:
    if isinstance(layer, model.KernelLayer):
        return "", EVERYBODY
    target = layer.build_id or layer.digest or ""
    return target, EVERYBODY if _is_roots(Path(layer.binary)) else uid


def _is_roots(path: Path) -> bool:
    """Whether root alone can replace the file: it and all directories above it are root's.

    There is no link on the way, which a user could have turned since the file was opened.
    """
    try:
        for part in (path, *path.parents):
            status = part.lstat()
            shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            if stat.S_ISLNK(status.st_mode) or status.st_uid != 0 or shared:
                return False
    except OSError:
        return False
    return True


def remember(state_dir: Path, entries: Iterable[Entry]) -> None:
    """Note refusals; as root. Raises `UserError` when that cannot be done, having changed nothing.

    A known one is replaced. At most `ROWS_MAX` are kept, the newest.
    """
    rows = [
        (e.uid, e.kernel, e.target, *_texts(e.name), e.offset, *_texts(e.reason), e.time)
        for e in entries
    ]
    if not rows:
        return
    path = state_dir / FILE
    try:
        _make_dir(state_dir)
        with closing(_open_to_write(path)) as database, database:
            database.execute(_TABLE)
            database.executemany("INSERT OR REPLACE INTO refused VALUES (?,?,?,?,?,?,?)", rows)
            database.execute(
                "DELETE FROM refused WHERE (uid, kernel, target, name, offset) IN (SELECT "
                "uid, kernel, target, name, offset FROM refused ORDER BY time DESC "
                "LIMIT -1 OFFSET ?)",
                (ROWS_MAX,),
            )
    except (OSError, sqlite3.Error) as error:
        raise UserError(f"{path}: {error}") from error


def _texts(text: str) -> tuple[str]:
    """Printable and short: names come from users, and end up on other users' terminals."""
    return (printable(text)[:TEXT_MAX],)


def _make_dir(state_dir: Path) -> None:
    if not state_dir.is_dir():
        state_dir.mkdir(parents=True, exist_ok=True)
        state_dir.chmod(0o755)  # whatever the umask
    status = state_dir.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise PermissionError(f"others than root can write in {state_dir}")


def _open_to_write(path: Path) -> sqlite3.Connection:
    # made here, so that its mode does not hang on the umask of whoever started the daemon
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    os.fchmod(fd, 0o644)
    os.close(fd)
    database = sqlite3.connect(path, timeout=BUSY_S)
    # one file that others can read without writing: not what journal_mode=WAL needs
    database.execute("PRAGMA journal_mode=DELETE")
    return database


def known(state_dir: Path, uid: int, *, kernel: str | None = None) -> list[Entry]:
    """What is noted that counts for ``uid``, by name; with ``kernel``, for that release only.

    Nothing for a database that does not exist. Raises `UserError` if it cannot be read.
    """
    path = state_dir / FILE
    if not path.exists():
        return []
    wanted = (
        "SELECT target, name, offset, reason, uid, kernel, time FROM refused WHERE uid IN (?, ?)"
    )
    release = " AND kernel = ?" if kernel else ""
    values = (EVERYBODY, uid, *([kernel] if kernel else []))
    try:
        with closing(_open_to_read(path)) as database:
            rows = database.execute(f"{wanted}{release} ORDER BY target, name, offset", values)
            return [Entry(*row) for row in rows]
    except sqlite3.Error as error:
        raise UserError(
            f"{path}: {error}", hint="as root: datacrumbs_probe_configurator --reset-skipped"
        ) from error


def _open_to_read(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_S)


def reset(state_dir: Path) -> int:
    """Forget everything; returns how many refusals there were. As root. Raises `UserError`."""
    path = state_dir / FILE
    count = _count(path)
    try:
        for leftover in _files(path):
            leftover.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", hint="only root may: use sudo") from error
    return count


def _files(path: Path) -> Iterator[Path]:
    yield path
    yield path.with_name(path.name + "-journal")


def _count(path: Path) -> int:
    """0 as well for a database that cannot be read: it is thrown away in any case."""
    if not path.exists():
        return 0
    try:
        with closing(_open_to_read(path)) as database:
            return int(database.execute("SELECT count(*) FROM refused").fetchone()[0])
    except sqlite3.Error:
        return 0
