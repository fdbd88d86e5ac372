"""The string ring's records as rows: tables ``files``, ``processes``, ``peers``, ``arguments``."""

from __future__ import annotations

import os
import posixpath
import stat
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datacrumbs.probes.model import Argument
from datacrumbs.trace.schema import ARGUMENTS, FILES, PEERS, PROCESSES
from datacrumbs.tracer import arguments
from datacrumbs.tracer.layout import CUT_SHORT, DELETED, STRING_HEAD, Record, What

DIRECTORIES_KEPT = 16 * 1024
_KINDS = {
    stat.S_IFREG: "regular",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
}


def shown(path: bytes) -> tuple[str, bytes | None]:
    r"""``path`` as text, bytes that are not UTF-8 as ``\xNN``, and the bytes if that differs."""
    text = path.decode("utf-8", "backslashreplace")
    return text, None if text.encode() == path else path


def join(base: bytes, path: bytes) -> bytes:
    """``path`` below ``base``, without ``./`` and doubled slashes; ``..`` stays (symlinks)."""
    whole = path if path.startswith(b"/") else base + b"/" + path
    parts = [p for p in whole.split(b"/") if p not in (b"", b".")]
    return b"/" + b"/".join(parts)


class Names:
    """Turns records into rows, each file id once; ``take`` gives and empties what is new."""

    def __init__(
        self, *, max_files: int, kept: Mapping[int, Sequence[Argument]] | None = None
    ) -> None:
        self._kept = kept or {}
        self._max_files = max_files
        self._seen: set[int] = set()
        self._paths: OrderedDict[int, bytes] = OrderedDict()
        self._rows: dict[str, list[tuple[Any, ...]]] = {
            table: [] for table in (FILES, PROCESSES, PEERS, ARGUMENTS)
        }
        self.over_limit = 0

    def add(self, records: Iterable[memoryview]) -> None:
        """Take records of the ring."""
        for record in records:
            self._add(record)

    def _add(self, record: memoryview) -> None:
        head = STRING_HEAD.unpack_from(record)
        text = bytes(record[STRING_HEAD.size : STRING_HEAD.size + head[1]])
        match head[0]:
            case Record.FILE:
                self._add_file(head, text)
            case Record.NAME:
                self._add_name(head, text)
            case Record.PROCESS:
                self._add_process(head)
            case Record.PEER:
                _, _, ts, file, *_ = head
                self._rows[PEERS].append((ts, head[10], file, head[12], head[14]))

            case Record.ARGUMENTS:
                self._add_arguments(head, text)

    def _add_arguments(self, head: tuple[Any, ...], text: bytes) -> None:
        _, _, ts, *_ = head
        func, tid = head[9], head[10]
        for name, value, raw in arguments.values(text, self._kept[func]):
            content = shown(raw)[0] if raw is not None else None
            self._rows[ARGUMENTS].append((ts, tid, func, name, value, content))

    def _add_file(self, head: tuple[Any, ...], text: bytes) -> None:
        _, _, ts, file, _, ino, dev, generation, mode, what, *_, fstype = head
        fs = fstype.split(b"\0", 1)[0].decode(errors="replace")
        path = b"/".join(reversed(text.split(b"\0")[:-1]))
        kind = _KINDS.get(stat.S_IFMT(mode), "anon")
        path, kind = _special(path, kind, fs, dev, ino)
        if what & CUT_SHORT:
            path = b".../" + path.lstrip(b"/")
        self._remember(file, path)
        if what & DELETED and kind == "regular":
            path += b" (deleted)"
        self._put_file(file, path, (kind, fs, dev, ino, generation, ts))

    def _add_name(self, head: tuple[Any, ...], text: bytes) -> None:
        _, _, ts, file, base, *_ = head
        path = join(self._paths.get(base, b"..."), text) if base else text
        self._put_file(file, path, ("name", None, 0, 0, 0, ts))

    def _put_file(self, file: int, path: bytes, rest: tuple[Any, ...]) -> None:
        if file in self._seen:
            return
        if len(self._seen) >= self._max_files:
            self.over_limit += 1
            return
        self._seen.add(file)
        self._rows[FILES].append((file, *shown(path), *rest))

    def _remember(self, file: int, path: bytes) -> None:
        self._paths[file] = path
        self._paths.move_to_end(file)
        if len(self._paths) > DIRECTORIES_KEPT:
            self._paths.popitem(last=False)

    def _add_process(self, head: tuple[Any, ...]) -> None:
        _, _, ts, exe, *_ = head
        what, pid, ppid, _, exit_code, _, comm = head[9:]
        path = self._paths.get(exe)
        name = comm.split(b"\0", 1)[0].decode(errors="backslashreplace")
        shown_path = shown(path)[0] if path is not None else None
        row = (ts, pid, What(what).name.lower(), ppid, name, shown_path, exit_code)
        self._rows[PROCESSES].append(row)

    def take(self, table: str) -> list[list[Any]]:
        """The new rows of ``table`` by column, in the schema's order; empty without any."""
        rows, self._rows[table] = self._rows[table], []
        return [list(column) for column in zip(*rows, strict=True)]


def device_path(dev: int) -> bytes:
    """A block device's path by its number, as the kernel names it; MAJOR:MINOR if it is gone."""
    number = f"{dev >> 20}:{dev & 0xFFFFF}"
    try:
        return b"/dev/" + os.fsencode(Path("/sys/dev/block", number).readlink().name)
    except OSError:
        return f"/dev/block/{number}".encode()


def _special(path: bytes, kind: str, fstype: str, dev: int, ino: int) -> tuple[bytes, str]:
    """Names as /proc/PID/fd shows them for what has no place in the file tree."""
    match fstype:
        case "sockfs":
            return b"socket:[%d]" % ino, "socket"
        case "pipefs":
            return b"pipe:[%d]" % ino, "pipe"
        case "anon_inodefs":
            return b"anon_inode:" + posixpath.basename(path), "anon"
        case "" if kind == "block" and not ino:
            return device_path(dev), kind
        case _ if posixpath.basename(path).startswith(b"memfd:"):
            return b"/" + posixpath.basename(path), "memfd"
        case _:
            return b"/" + path, kind
