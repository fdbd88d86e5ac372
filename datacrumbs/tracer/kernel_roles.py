"""What a kernel function's arguments are about, by its prototype: file, offset, size, result."""

from __future__ import annotations

import re
from dataclasses import dataclass

from datacrumbs.probes.btf import Btf, KernelTypes, Kind, Prototype, Type
from datacrumbs.trace.schema import Op
from datacrumbs.tracer import layout
from datacrumbs.tracer.layout import Returns, Subject

SUBJECTS = {  # by preference: what tells most comes first
    "kiocb": Subject.KIOCB,
    "file": Subject.FILE,
    "vm_fault": Subject.FAULT,
    "readahead_control": Subject.READAHEAD,
    "path": Subject.PATH,
    "folio": Subject.FOLIO,
    "page": Subject.PAGE,
    "dentry": Subject.DENTRY,
    "inode": Subject.INODE,
    "address_space": Subject.MAPPING,
    "request": Subject.REQUEST,
    "bio": Subject.BIO,
    "journal_t": Subject.JOURNAL,
    "nfs_pgio_header": Subject.NFS_IO,
    "nfs_commit_data": Subject.NFS_COMMIT,
}
NFS_MEMBERS = {
    "nfs_io": (
        "nfs_pgio_header",
        {"inode": "inode", "offset": "args.offset", "count": "args.count", "done": "res.count"},
    ),
    "nfs_commit": (
        "nfs_commit_data",
        {"inode": "inode", "offset": "args.offset", "count": "args.count"},
    ),
}
"""Fields of `layout.Config` and `layout.Nfs`: the structure, and its members."""

OFFSETS = {"pos", "ppos", "offset", "off", "start", "from", "iocb_pos", "lstart"}
PAGE_OFFSETS = {"index", "pgoff", "start_index"}
SIZES = {"count", "len", "length", "size", "nbytes", "bytes", "nr_bytes"}
RESULTS = {"ret", "err", "error", "rc", "status"}
OPS = {
    **dict.fromkeys(("fsync", "sync", "fdatasync", "flush", "commit"), Op.SYNC),
    **dict.fromkeys(("read", "readv", "readahead", "readpage", "readpages", "pread"), Op.READ),
    **dict.fromkeys(("write", "writev", "writepage", "writepages", "pwrite"), Op.WRITE),
    **dict.fromkeys(("splice", "sendfile", "remap"), Op.COPY),
    "open": Op.OPEN,
    **dict.fromkeys(("release", "close"), Op.CLOSE),
    **dict.fromkeys(("llseek", "seek"), Op.SEEK),
    **dict.fromkeys(("getattr", "stat", "statfs", "statx", "permission"), Op.STAT),
    **dict.fromkeys(("fault", "mmap", "mkwrite"), Op.MAP),
    **dict.fromkeys(
        ("lookup", "create", "unlink", "rename", "mkdir", "rmdir", "link", "symlink", "readlink"),
        Op.NAME,
    ),
    **dict.fromkeys(("wait", "schedule"), Op.WAIT),
}
"""By a word of the name. `Op.READ`, `WRITE` and `COPY` promise that a positive result is bytes."""

_MOVES = {Op.READ, Op.WRITE, Op.COPY}
_RESULT_OF_INT = {(4, True): Returns.INT, (4, False): Returns.UINT, (1, False): Returns.BYTE}


@dataclass(frozen=True, slots=True)
class Roles:
    """Indices of arguments, -1 for none; fields of `layout.Function` by name."""

    kind: Subject = Subject.NONE
    object: int = -1
    offset: int = -1
    size: int = -1
    how: int = 0
    returns: Returns = Returns.NOTHING
    embedded: int = 0

    def fill(self, function: layout.Function) -> None:
        """Tell the BPF programs."""
        for name in self.__slots__:
            setattr(function, name, getattr(self, name))


def tell_nfs(constants: layout.Config, types: KernelTypes) -> None:
    """Where the kernel's requests to NFS servers have what; nothing of what is not all there."""
    for field, (struct_name, members) in NFS_MEMBERS.items():
        found = {name: types.member(struct_name, path) for name, path in members.items()}
        if None not in found.values():
            setattr(constants, field, layout.Nfs(**found))
    constants.rpc_status = types.member("rpc_task", "tk_status") or 0


NO_ROLES = Roles()


def roles_of(prototype: Prototype, types: Btf, *, arguments: int = 6) -> Roles:
    """The roles of a function whose first ``arguments`` arguments can be read."""
    parameters = _in_registers(prototype)[:arguments]
    kind, index, embedded = _subject(parameters, types)
    offset, offset_how = _offset(parameters)
    size, size_how = _size(parameters)
    return Roles(
        kind=kind,
        object=index,
        offset=offset,
        size=size,
        how=offset_how | size_how,
        returns=result_kind(prototype.returns),
        embedded=embedded,
    )


def _in_registers(prototype: Prototype) -> list[tuple[str, Type]]:
    """Parameters up to the first that takes no register of its own."""
    found: list[tuple[str, Type]] = []
    for name, kind in prototype.parameters:
        if kind.size_bytes > 8:
            break
        found.append((name, kind))
    return found


def _pointee(kind: Type) -> str:
    return kind.to.name if kind.kind is Kind.POINTER and kind.to else ""


def _subject(parameters: list[tuple[str, Type]], types: Btf) -> tuple[Subject, int, int]:
    names = [_pointee(kind) for _, kind in parameters]
    for name, kind in SUBJECTS.items():
        if name in names:
            return kind, names.index(name), 0
    for index, (_, parameter) in enumerate(parameters):
        to = parameter.to
        if to is None or to.kind is not Kind.STRUCT or not to.size_bytes:
            continue
        at = types.embedded(to.name, "inode")  # struct xfs_inode and its like
        if at is not None:
            return Subject.INODE, index, at
    return Subject.NONE, -1, 0


def _offset(parameters: list[tuple[str, Type]]) -> tuple[int, int]:
    for index, (name, kind) in enumerate(parameters):
        if kind.name == "loff_t" and name in OFFSETS:
            return index, 0
        if kind.kind is Kind.POINTER and kind.to and kind.to.name == "loff_t":
            return index, layout.OFFSET_POINTER
        if kind.name == "pgoff_t" and name in PAGE_OFFSETS:
            return index, layout.OFFSET_PAGES
    return -1, 0


def _size(parameters: list[tuple[str, Type]]) -> tuple[int, int]:
    for index, (name, kind) in enumerate(parameters):
        if name in SIZES and kind.kind is Kind.INT:
            return index, layout.SIZE_32 if kind.size_bytes == 4 else 0
    for index, (_, kind) in enumerate(parameters):
        if _pointee(kind) == "iov_iter":
            return index, layout.SIZE_ITER
    return -1, 0


def result_kind(kind: Type) -> Returns:
    """How to read a returned value."""
    if kind.kind is None:
        return Returns.NOTHING
    if kind.kind is Kind.ENUM:
        return Returns.INT
    return _RESULT_OF_INT.get((kind.size_bytes, kind.signed), Returns.LONG)


def result_of(prototype: Prototype, *, arguments: int) -> tuple[int, Returns]:
    """Which argument of a tracepoint is what its function returns, and how to read it."""
    for index, (name, kind) in enumerate(prototype.parameters[:arguments]):
        if name in RESULTS and kind.kind is Kind.INT:
            return index, result_kind(kind)
    return -1, Returns.NOTHING


def op_of(name: str, prototype: Prototype | None) -> Op:
    """What a function does with data, by the words of its name and what it returns."""
    found = next((OPS[word] for word in re.split(r"[_:.]+", name) if word in OPS), Op.OTHER)
    if found in _MOVES and not (prototype and _returns_bytes(prototype.returns)):
        return Op.OTHER
    return found


def _returns_bytes(kind: Type) -> bool:
    return kind.kind is None or kind.name == "ssize_t" or (kind.size_bytes == 4 and kind.signed)
