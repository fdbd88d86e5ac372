"""Start a program so that the client library is preloaded into it and all it starts.

Imports little on purpose: this runs once per process of a job step.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO, NoReturn

from datacrumbs.errors import UserError

NOT_FOUND = 127
NOT_EXECUTABLE = 126
"""Exit codes as a shell has them."""

_MAX_INTERPRETERS = 5  # as the kernel: fs/exec.c, exec_binprm()
_HEAD_BYTES = 256  # what the kernel reads of a script's first line: BINPRM_BUF_SIZE
_PT_INTERP = 3


def find_program(command: str, environ: Mapping[str, str]) -> Path:
    """The file that a shell would run for ``command``.

    Raises `UserError` with exit code 127 when there is none and 126 when it is no program.
    """
    if "/" in command:
        candidates = [Path(command)]
    else:
        search = environ.get("PATH", os.defpath).split(":") if command else []
        candidates = [Path(directory, command) for directory in search]
    existing = [path for path in candidates if os.path.lexists(path)]
    for path in existing:
        if path.is_file() and os.access(path, os.X_OK):
            return path
    if not existing:
        raise UserError(f"{command}: command not found", exit_code=NOT_FOUND)
    raise UserError(f"{existing[0]}: {_why_not(existing[0])}", exit_code=NOT_EXECUTABLE)


def _why_not(path: Path) -> str:
    return "is a directory" if path.is_dir() else os.strerror(errno.EACCES).lower()


def obstacle(program: Path, library: Path) -> str | None:
    """Why ``library`` cannot be preloaded into ``program``, in words; None when it can.

    For a script it is the interpreter that counts.
    """
    path, about = program, str(program)
    for _ in range(_MAX_INTERPRETERS):
        try:
            with open(path, "rb") as file:
                head = file.read(_HEAD_BYTES)
                if head[:4] == b"\x7fELF":
                    reason = _elf_obstacle(file, head, library) or _privilege(path)
                    return f"{about} {reason}" if reason else None
        except OSError:  # may be run but not read: nothing to say about it
            return None
        interpreter = _interpreter(head)
        if interpreter is None:
            return None
        path, about = interpreter, f"{program}: its interpreter {interpreter}"
    return None


def _interpreter(head: bytes) -> Path | None:
    words = head[2:].splitlines()[0].split() if head.startswith(b"#!") and head[2:] else []
    return Path(os.fsdecode(words[0])) if words else None


def _elf_obstacle(file: IO[bytes], head: bytes, library: Path) -> str | None:
    if _machine(head) != _machine_of(library):
        return "is built for another machine than the client library"
    types = _segment_types(file, head)
    return "is statically linked" if types and _PT_INTERP not in types else None


def _segment_types(file: IO[bytes], head: bytes) -> set[int]:
    """The types of an ELF file's segments; none when it is damaged."""
    wide, order = head[4] == 2, "<" if head[5] == 1 else ">"
    try:
        offset = struct.unpack_from(f"{order}{'Q' if wide else 'I'}", head, 32 if wide else 28)[0]
        size, count = struct.unpack_from(f"{order}HH", head, 54 if wide else 42)
        file.seek(offset)
        table = file.read(size * count)
        return {struct.unpack_from(f"{order}I", table, i * size)[0] for i in range(count)}
    except (OSError, OverflowError, ValueError, struct.error):
        return set()


def _machine(head: bytes) -> bytes:
    """Word size, byte order and machine of an ELF file."""
    return head[4:6] + head[18:20]


def _machine_of(library: Path) -> bytes:
    with open(library, "rb") as file:
        return _machine(file.read(20))


def _privilege(path: Path) -> str | None:
    """The loader drops preloads of a program that runs with more rights than its caller."""
    if os.statvfs(path).f_flag & os.ST_NOSUID:
        return None
    status = path.stat()
    if status.st_mode & stat.S_ISUID and status.st_uid != os.getuid():
        return "is setuid"
    set_gid = stat.S_ISGID | stat.S_IXGRP
    if status.st_mode & set_gid == set_gid and status.st_gid != os.getgid():
        return "is setgid"
    if os.getuid() != 0 and _has_capabilities(path):
        return "has file capabilities"
    return None


def _has_capabilities(path: Path) -> bool:
    try:
        return bool(os.getxattr(path, "security.capability"))
    except OSError:
        return False


def preloading(environ: Mapping[str, str], library: Path) -> dict[str, str]:
    """``environ`` with ``library`` preloaded.

    It comes after what is preloaded already, because some libraries insist on being the
    first, and once. Raises `UserError` when the library is missing or its path cannot stand
    in ``LD_PRELOAD``.
    """
    if any(character in str(library) for character in ": "):
        raise UserError(
            f"{library}: a path with a blank or colon cannot be preloaded",
            hint="install datacrumbs elsewhere, or set client_library in system.yaml",
        )
    if not library.is_file():
        raise UserError(
            f"{library}: no client library there",
            hint="reinstall datacrumbs, or correct client_library in system.yaml",
        )
    added = {"LD_PRELOAD": _appended(environ.get("LD_PRELOAD", ""), str(library))}
    # A program built with gcc's AddressSanitizer stops when its runtime is not the first
    # library, to be sure that it intercepts malloc; ours defines nothing that hides it.
    sanitizer = environ.get("ASAN_OPTIONS", "")
    if "verify_asan_link_order" not in sanitizer:
        added["ASAN_OPTIONS"] = f"{sanitizer}:verify_asan_link_order=0".lstrip(":")
    return {**environ, **added}


def _appended(preloads: str, library: str) -> str:
    entries = [entry for entry in preloads.replace(" ", ":").split(":") if entry]
    if library in entries:
        return preloads
    return f"{preloads}:{library}" if entries else library


def own_environment() -> dict[str, str]:
    """The environment this process was started with.

    In the C locale, Python itself changes ``LC_CTYPE`` (PEP 538), which the program must not
    see.
    """
    environ = dict(os.environ)
    environ.pop("LC_CTYPE", None)
    for entry in Path("/proc/self/environ").read_bytes().split(b"\0"):
        if entry.startswith(b"LC_CTYPE="):
            environ["LC_CTYPE"] = os.fsdecode(entry.partition(b"=")[2])
    return environ


def is_tracing(ready: Path) -> bool:
    """Whether a run's ready file is there; also True when we may not look."""
    try:
        ready.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def execute(program: Path, arguments: tuple[str, ...], environ: Mapping[str, str]) -> NoReturn:
    """Become ``program``; ``arguments`` begins with its name.

    Raises `UserError` with a shell's exit code when the kernel refuses.
    """
    # Python ignores these two, and what is ignored stays so across exec
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execve(program, arguments, environ)
    except OSError as error:
        if error.errno == errno.ENOEXEC and _is_text(program):
            # a script without #!: what execvp() and shells do
            os.execve("/bin/sh", ["sh", str(program), *arguments[1:]], environ)
        if error.errno == errno.ENOENT:  # it was there: what is missing is what it starts with
            found = _interpreter(_head(program)) or "its loader"
            raise UserError(f"{program}: {found}: {error.strerror}", exit_code=NOT_FOUND) from error
        raise UserError(f"{program}: {error.strerror}", exit_code=NOT_EXECUTABLE) from error


def _is_text(program: Path) -> bool:
    first_line = _head(program).partition(b"\n")[0]
    return b"\0" not in first_line and not first_line.startswith(b"\x7fELF")


def _head(program: Path) -> bytes:
    """What the kernel looks at; one NUL when that may not be read."""
    try:
        with open(program, "rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError:
        return b"\0"
