"""This kernel's system calls: their names and numbers, and what their arguments mean.

Names come from the running kernel, numbers from libseccomp (or the C library's headers). The
names are those that users know (``stat``, ``sendfile``), not the kernel's own
(``newstat``, ``sendfile64``).
"""

from __future__ import annotations

import ctypes
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from datacrumbs.errors import UserError
from datacrumbs.trace.schema import Op

KALLSYMS = Path("/proc/kallsyms")
BTF = Path("/sys/kernel/btf/vmlinux")
INCLUDE = Path("/usr/include")

_ENTRY_PREFIX = {"x86_64": "__x64_sys_", "aarch64": "__arm64_sys_"}
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

USER_NAMES = {
    "newstat": "stat",
    "newfstat": "fstat",
    "newlstat": "lstat",
    "newuname": "uname",
    "sendfile64": "sendfile",
    "fadvise64_64": "fadvise64",
    "umount": "umount2",
    "arm64_personality": "personality",
}
"""Kernel entry points whose name differs from the system call's; all others are the same."""

_NOT_WIRED = frozenset({"get_thread_area", "set_thread_area"})
"""Numbered and compiled on x86_64, but only the 32-bit table has an entry for them."""


@dataclass(frozen=True, slots=True)
class Roles:
    """What the arguments of one system call mean: indices 0..5 of its arguments, -1 for none.

    ``dirfd`` -1 with a ``path`` means relative to the working directory. A path may be NULL
    or empty (``utimensat``, ``newfstatat`` with AT_EMPTY_PATH); then ``dirfd`` is the file.
    Where ``offset`` (a value) or ``offset_ptr`` (a pointer to one) goes with ``uses_pos``, the
    file position counts when the value is -1 or the pointer is NULL.
    """

    op: Op
    fd: int = -1
    path: int = -1
    dirfd: int = -1
    size: int = -1  # bytes asked for
    iov: int = -1  # struct iovec array, which holds the bytes asked for
    iovcnt: int = -1
    offset: int = -1  # bytes; a value
    offset_ptr: int = -1  # pointer to 64-bit bytes, of `fd`
    uses_pos: bool = False  # the transfer happens at the position of `fd`
    returns_fd: bool = False
    fd2: int = -1
    offset2_ptr: int = -1  # pointer to 64-bit bytes, of `fd2`
    path2: int = -1
    dirfd2: int = -1
    changes_dir: bool = False  # to `path`, where relative paths start afterwards
    uncounted: bool = False  # does I/O (or has it done) whose bytes `ret` does not tell


NO_ROLES = Roles(Op.OTHER)
"""The roles of a call that `ROLES` does not name: no argument is a file."""


def _same(names: str, roles: Roles) -> dict[str, Roles]:
    return dict.fromkeys(names.split(), roles)


ROLES: dict[str, Roles] = {
    # bytes to and from a descriptor
    "read": Roles(Op.READ, fd=0, size=2, uses_pos=True),
    "readv": Roles(Op.READ, fd=0, iov=1, iovcnt=2, uses_pos=True),
    "pread64": Roles(Op.READ, fd=0, size=2, offset=3),
    # arg 4 is the upper half of the offset on 32-bit machines only
    "preadv": Roles(Op.READ, fd=0, iov=1, iovcnt=2, offset=3),
    "preadv2": Roles(Op.READ, fd=0, iov=1, iovcnt=2, offset=3, uses_pos=True),
    **_same("getdents getdents64", Roles(Op.READ, fd=0, size=2, uses_pos=True)),
    "recvfrom": Roles(Op.READ, fd=0, size=2),
    "recvmsg": Roles(Op.READ, fd=0),
    "mq_timedreceive": Roles(Op.READ, fd=0, size=2),
    "write": Roles(Op.WRITE, fd=0, size=2, uses_pos=True),
    "writev": Roles(Op.WRITE, fd=0, iov=1, iovcnt=2, uses_pos=True),
    "pwrite64": Roles(Op.WRITE, fd=0, size=2, offset=3),
    "pwritev": Roles(Op.WRITE, fd=0, iov=1, iovcnt=2, offset=3),
    "pwritev2": Roles(Op.WRITE, fd=0, iov=1, iovcnt=2, offset=3, uses_pos=True),
    "sendto": Roles(Op.WRITE, fd=0, size=2),
    "sendmsg": Roles(Op.WRITE, fd=0),
    "mq_timedsend": Roles(Op.WRITE, fd=0, size=2),
    # these return how many messages or requests, so Op.READ and Op.WRITE would be wrong
    **_same("recvmmsg sendmmsg", Roles(Op.OTHER, fd=0, uncounted=True)),
    "io_uring_setup": Roles(Op.OTHER, returns_fd=True, uncounted=True),
    **_same("io_uring_enter io_uring_register", Roles(Op.OTHER, fd=0, uncounted=True)),
    **_same("io_setup io_submit io_cancel io_destroy", Roles(Op.OTHER, uncounted=True)),
    **_same("io_getevents io_pgetevents", Roles(Op.WAIT, uncounted=True)),
    # from one descriptor (fd) to another (fd2)
    "sendfile": Roles(Op.COPY, fd=1, offset_ptr=2, size=3, uses_pos=True, fd2=0),
    **_same(
        "copy_file_range splice",
        Roles(Op.COPY, fd=0, offset_ptr=1, fd2=2, offset2_ptr=3, size=4, uses_pos=True),
    ),
    "tee": Roles(Op.COPY, fd=0, fd2=1, size=2),
    "vmsplice": Roles(Op.COPY, fd=0, iov=1, iovcnt=2),
    # new descriptors
    "open": Roles(Op.OPEN, path=0, returns_fd=True),
    "creat": Roles(Op.OPEN, path=0, returns_fd=True),
    **_same(
        "openat openat2 open_tree open_tree_attr fspick",
        Roles(Op.OPEN, dirfd=0, path=1, returns_fd=True),
    ),
    # a listening socket, a mount, a process, ... leads to a new descriptor
    **_same(
        "dup accept accept4 open_by_handle_at fsmount pidfd_getfd",
        Roles(Op.OPEN, fd=0, returns_fd=True),
    ),
    **_same("dup2 dup3", Roles(Op.OPEN, fd=0, fd2=1, returns_fd=True)),
    # -1 for a new one, else an existing descriptor
    **_same("signalfd signalfd4", Roles(Op.OPEN, fd=0, returns_fd=True)),
    "perf_event_open": Roles(Op.OPEN, fd=3, returns_fd=True),
    **_same(
        "socket memfd_create memfd_secret epoll_create epoll_create1 eventfd eventfd2"
        " timerfd_create inotify_init inotify_init1 fanotify_init userfaultfd pidfd_open"
        " fsopen mq_open landlock_create_ruleset",
        Roles(Op.OPEN, returns_fd=True),
    ),
    # these write their descriptors into an array
    **_same("pipe pipe2 socketpair", Roles(Op.OPEN)),
    "connect": Roles(Op.OPEN, fd=0),
    "close": Roles(Op.CLOSE, fd=0),
    "close_range": Roles(Op.CLOSE, fd=0),  # the first of them
    "shutdown": Roles(Op.CLOSE, fd=0),
    # between page cache and device
    **_same("fsync fdatasync syncfs", Roles(Op.SYNC, fd=0)),
    "sync": Roles(Op.SYNC),
    "msync": Roles(Op.SYNC, size=1),
    **_same("sync_file_range readahead fadvise64", Roles(Op.SYNC, fd=0, offset=1, size=2)),
    "lseek": Roles(Op.SEEK, fd=0, offset=1),
    # files in memory
    "mmap": Roles(Op.MAP, fd=4, size=1, offset=5),
    "mremap": Roles(Op.MAP, size=2),
    **_same("munmap remap_file_pages madvise mincore mlock mlock2", Roles(Op.MAP, size=1)),
    # questions about a file
    **_same("stat lstat statfs access", Roles(Op.STAT, path=0)),
    **_same("fstat fstatfs cachestat", Roles(Op.STAT, fd=0)),
    **_same(
        "newfstatat statx faccessat faccessat2 name_to_handle_at file_getattr getxattrat",
        Roles(Op.STAT, dirfd=0, path=1),
    ),
    "readlink": Roles(Op.STAT, path=0, size=2),
    "readlinkat": Roles(Op.STAT, dirfd=0, path=1, size=3),
    **_same("getxattr lgetxattr", Roles(Op.STAT, path=0, size=3)),
    "fgetxattr": Roles(Op.STAT, fd=0, size=3),
    **_same("listxattr llistxattr", Roles(Op.STAT, path=0, size=2)),
    "flistxattr": Roles(Op.STAT, fd=0, size=2),
    "listxattrat": Roles(Op.STAT, dirfd=0, path=1, size=4),
    "getcwd": Roles(Op.STAT, size=1),
    "chdir": Roles(Op.STAT, path=0, changes_dir=True),
    "chroot": Roles(Op.STAT, path=0),
    "fchdir": Roles(Op.STAT, fd=0),
    # changes of names, attributes and length
    **_same(
        "mkdir rmdir unlink mknod chmod chown lchown utime utimes removexattr lremovexattr umount2",
        Roles(Op.NAME, path=0),
    ),
    **_same(
        "mkdirat unlinkat mknodat fchmodat fchmodat2 fchownat futimesat utimensat"
        " file_setattr setxattrat removexattrat mount_setattr",
        Roles(Op.NAME, dirfd=0, path=1),
    ),
    **_same("fchmod fchown fremovexattr", Roles(Op.NAME, fd=0)),
    **_same("setxattr lsetxattr", Roles(Op.NAME, path=0, size=3)),
    "fsetxattr": Roles(Op.NAME, fd=0, size=3),
    **_same("rename link pivot_root", Roles(Op.NAME, path=0, path2=1)),
    **_same(
        "renameat renameat2 linkat move_mount",
        Roles(Op.NAME, dirfd=0, path=1, dirfd2=2, path2=3),
    ),
    # the target (argument 0) is text that nobody looks up
    "symlink": Roles(Op.NAME, path=1),
    "symlinkat": Roles(Op.NAME, dirfd=1, path=2),
    "mount": Roles(Op.NAME, path=1),
    "truncate": Roles(Op.NAME, path=0, size=1),
    "ftruncate": Roles(Op.NAME, fd=0, size=1),
    "fallocate": Roles(Op.NAME, fd=0, offset=2, size=3),
    "mq_unlink": Roles(Op.NAME),
    # waiting until I/O is possible
    **_same("poll ppoll select pselect6", Roles(Op.WAIT)),
    **_same("epoll_wait epoll_pwait epoll_pwait2 epoll_wait_old", Roles(Op.WAIT, fd=0)),
    # the rest that names a file
    **_same(
        "ioctl fcntl flock bind listen getsockname getpeername getsockopt setsockopt"
        " mq_notify mq_getsetattr inotify_rm_watch timerfd_settime timerfd_gettime"
        " fsconfig quotactl_fd setns pidfd_send_signal process_madvise process_mrelease"
        " landlock_add_rule landlock_restrict_self finit_module",
        Roles(Op.OTHER, fd=0),
    ),
    "epoll_ctl": Roles(Op.OTHER, fd=0, fd2=2),
    "kexec_file_load": Roles(Op.OTHER, fd=0, fd2=1),
    "inotify_add_watch": Roles(Op.OTHER, fd=0, path=1),
    "fanotify_mark": Roles(Op.OTHER, fd=0, dirfd=3, path=4),
    **_same("execve acct swapon swapoff uselib", Roles(Op.OTHER, path=0)),
    "execveat": Roles(Op.OTHER, dirfd=0, path=1),
    "quotactl": Roles(Op.OTHER, path=1),
}
"""Every system call that names a file, moves bytes or waits for I/O; others have `NO_ROLES`."""


class SyscallSet(StrEnum):
    """Named sets of system calls, for capture configs."""

    IO = "io"
    DATA = "data"
    METADATA = "metadata"
    ALL = "all"


_DATA = frozenset({Op.READ, Op.WRITE, Op.COPY, Op.SYNC, Op.MAP})
_METADATA = frozenset({Op.OPEN, Op.CLOSE, Op.STAT, Op.NAME, Op.SEEK})


def select(wanted: SyscallSet, names: Iterable[str]) -> list[str]:
    """Those of ``names`` that belong to the set ``wanted``, sorted. `ROLES` decides.

    ``data`` moves, syncs or maps bytes; ``metadata`` opens, closes, seeks, asks about or
    changes files; ``io`` is both and the calls that do I/O without counting its bytes
    (io_uring, AIO, sendmmsg); ``all`` is every system call.
    """
    return sorted(name for name in names if _belongs(wanted, ROLES.get(name, NO_ROLES)))


def _belongs(wanted: SyscallSet, roles: Roles) -> bool:
    match wanted:
        case SyscallSet.DATA:
            return roles.op in _DATA
        case SyscallSet.METADATA:
            return roles.op in _METADATA
        case SyscallSet.IO:
            return roles.uncounted or roles.op in _DATA | _METADATA
        case SyscallSet.ALL:
            return True


def available(machine: str) -> dict[str, int]:
    """The system calls of the running kernel, name to number, for ``machine`` (``uname -m``).

    A call is listed when the kernel has a body for it and its number is known; those of the
    32-bit and x32 tables are not. Raises `UserError` where neither can be found out.
    """
    if machine not in _ENTRY_PREFIX:
        raise UserError(
            f"system calls of {machine!r} are not known",
            hint="known machines: " + ", ".join(_ENTRY_PREFIX),
        )
    names = {USER_NAMES.get(name, name) for name in _kernel_names(_ENTRY_PREFIX[machine])}
    return dict(sorted(_numbers(names - _NOT_WIRED, machine).items()))


def entry_points(functions: Iterable[str], machine: str) -> dict[str, str]:
    """Those of the kernel's ``functions`` that system calls enter by, by the calls' names.

    Where there is one of an older time besides (``sys_stat``, ``sys_newstat``), the one that
    the call's number leads to. The entry of a call without arguments has two names, of which
    ``functions`` may have either.
    """
    found: dict[str, str] = {}
    for prefix in ("__do_sys_", _ENTRY_PREFIX[machine]):
        ours = [name.removeprefix(prefix) for name in functions if name.startswith(prefix)]
        ours.sort(key=lambda name: name in USER_NAMES)
        found |= {USER_NAMES.get(name, name): prefix + name for name in ours}
    return found


def _kernel_names(prefix: str) -> set[str]:
    names = _kallsyms_names(prefix) or _btf_names(prefix)
    if not names:
        raise UserError(
            f"cannot find this kernel's system calls in {KALLSYMS} or {BTF}",
            hint="the kernel needs CONFIG_KALLSYMS or CONFIG_DEBUG_INFO_BTF",
        )
    return names


def _kallsyms_names(prefix: str) -> set[str]:
    """Entry points with a body: a weak one (type W) is the kernel's stub for ENOSYS."""
    try:
        text = KALLSYMS.read_text()
    except OSError:
        return set()
    return set(re.findall(rf"^\S+ [Tt] {prefix}(\w+)$", text, re.MULTILINE))


def _btf_names(prefix: str) -> set[str]:
    """Entry points named in the kernel's type information.

    Coarser than kallsyms: stubs cannot be told from bodies. Calls without arguments
    (``sync``) appear by the name of their body only.
    """
    try:
        data = BTF.read_bytes()
    except OSError:
        return set()
    header_len, _, _, strings_at, strings_len = struct.unpack_from("<5I", data, 4)
    start = header_len + strings_at
    strings = data[start : start + strings_len].split(b"\0")
    prefixes = (prefix.encode(), b"__do_sys_")
    return {s.split(b"_sys_", 1)[1].decode() for s in strings if s.startswith(prefixes)}


def _numbers(names: set[str], machine: str) -> dict[str, int]:
    """Numbers of ``names``: libseccomp's, and the headers' for calls it does not know yet."""
    found = _libseccomp_numbers(names, machine)
    if missing := names - found.keys():
        headers = _header_numbers(machine)
        found |= {name: headers[name] for name in missing if name in headers}
    if not found:
        raise UserError(
            "the numbers of system calls are nowhere to be found",
            hint="install libseccomp (libseccomp2) or the C library's headers (linux-libc-dev)",
        )
    return found


def _libseccomp_numbers(names: set[str], machine: str) -> dict[str, int]:
    """Empty without the library. It answers with a negative number for other machines' calls."""
    try:
        resolve = ctypes.CDLL("libseccomp.so.2").seccomp_syscall_resolve_name_arch
    except OSError:
        return {}
    resolve.argtypes = (ctypes.c_uint32, ctypes.c_char_p)
    resolve.restype = ctypes.c_int
    numbers = {name: resolve(_AUDIT_ARCH[machine], name.encode()) for name in names}
    return {name: number for name, number in numbers.items() if number >= 0}


def _header_numbers(machine: str) -> dict[str, int]:
    """What the first installed header of this machine's table defines; empty without one."""
    multiarch = INCLUDE / f"{machine}-linux-gnu"
    places = [multiarch / "asm/unistd_64.h", INCLUDE / "asm/unistd_64.h"]
    if machine == "aarch64":
        places += [INCLUDE / "asm-generic/unistd.h"]
    for place in places:
        if place.is_file():
            return _defined_numbers(place.read_text(errors="replace"))
    return {}


def _defined_numbers(header: str) -> dict[str, int]:
    """``#define __NR_x 1``, also by way of ``__NR3264_x`` as asm-generic does it."""
    pattern = r"^#define\s+(__NR(?:3264)?_\w+)\s+(\w+)\s*$"
    defines: dict[str, str] = dict(re.findall(pattern, header, re.MULTILINE))
    numbers = {key: defines.get(value, value) for key, value in defines.items()}
    return {
        key.removeprefix("__NR_"): int(value)
        for key, value in numbers.items()
        if key.startswith("__NR_") and value.isdecimal()
    }
