"""libbpf's stable C API by ctypes, as far as the daemon needs it."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

from datacrumbs.errors import UserError

OBJECT_PATH = Path(__file__).with_name("datacrumbs.bpf.o")
PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_RINGBUF = 1, 27
BPF_LINK_CREATE = 28
BPF_PROG_TYPE_KPROBE, BPF_PROG_TYPE_RAW_TRACEPOINT = 2, 17
SLEEPABLE = 1 << 4  # BPF_F_SLEEPABLE
KPROBE_TYPE = Path("/sys/bus/event_source/devices/kprobe/type")
PERF_ATTR_BYTES = 112  # PERF_ATTR_SIZE_VER5
LINK_INFO_BYTES, LINK_INFO_MISSED = 256, 32  # struct bpf_link_info: .kprobe_multi.missed
THREADS = 32
_SYS_BPF = {"x86_64": 321, "aarch64": 280}
_SYS_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}


class UprobeOptions(ctypes.Structure):
    """struct bpf_uprobe_opts."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("ref_ctr_offset", ctypes.c_size_t),
        ("bpf_cookie", ctypes.c_uint64),
        ("retprobe", ctypes.c_bool),
        ("func_name", ctypes.c_char_p),
    )


KPROBE_MULTI, KPROBE_SESSION = 42, 56
UPROBE_MULTI, UPROBE_SESSION = 48, 57  # enum bpf_attach_type; libbpf 1.1 has no names for them


class ProgramOptions(ctypes.Structure):
    """struct bpf_prog_load_opts, as far as it is used."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_uint32),
        ("prog_btf_fd", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
    )


class KprobeOptions(ctypes.Structure):
    """struct bpf_kprobe_opts."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("bpf_cookie", ctypes.c_uint64),
        ("offset", ctypes.c_size_t),
        ("retprobe", ctypes.c_bool),
    )


class KprobeMulti(ctypes.Structure):
    """union bpf_attr for BPF_LINK_CREATE of a kprobe.multi link (include/uapi/linux/bpf.h)."""

    _fields_ = (
        ("prog_fd", ctypes.c_uint32),
        ("target_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("link_flags", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cnt", ctypes.c_uint32),
        ("syms", ctypes.c_uint64),
        ("addrs", ctypes.c_uint64),
        ("cookies", ctypes.c_uint64),
    )


class UprobeMulti(ctypes.Structure):
    """union bpf_attr for BPF_LINK_CREATE of a uprobe.multi link (include/uapi/linux/bpf.h)."""

    _fields_ = (
        ("prog_fd", ctypes.c_uint32),
        ("target_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("link_flags", ctypes.c_uint32),
        ("path", ctypes.c_uint64),
        ("offsets", ctypes.c_uint64),
        ("ref_ctr_offsets", ctypes.c_uint64),
        ("cookies", ctypes.c_uint64),
        ("cnt", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("pid", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    )


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise UserError(f"libbpf.so.1: {error}", hint="install libbpf 1.x (libbpf1)") from error
    pointers = (
        "bpf_object__open_file",
        "bpf_object__find_map_by_name",
        "bpf_object__find_program_by_name",
        "bpf_object__next_program",
        "bpf_object__next_map",
        "bpf_map__initial_value",
        "bpf_program__attach",
        "bpf_program__attach_uprobe_opts",
        "bpf_program__attach_kprobe_opts",
        "bpf_program__attach_raw_tracepoint",
        "bpf_program__attach_iter",
    )
    for name in pointers:
        getattr(library, name).restype = ctypes.c_void_p
    return library


def _link_uprobes(library: Any, attr: UprobeMulti, path: Path, offsets: list[int]) -> int:
    """A link of uprobes with what else ``attr`` says; a descriptor or -errno."""
    path_bytes = ctypes.c_char_p(os.fsencode(path))
    offset_array = (ctypes.c_ulong * len(offsets))(*offsets)
    attr.path = ctypes.cast(path_bytes, ctypes.c_void_p).value or 0
    attr.offsets, attr.cnt = ctypes.addressof(offset_array), len(offsets)
    return link_create(library, attr)


def takes_links(kind: int) -> bool:
    """Has this kernel uprobe links of ``kind``, `UPROBE_MULTI` or `UPROBE_SESSION`?

    Tried with the smallest of programs and a path that leads nowhere: a kernel that knows such
    links says so (ENOENT), any other that it does not know them (EINVAL). Nothing is attached.
    """
    library = _load()
    program = _trial_program(library, kind)
    if program < 0:
        return False
    attr = UprobeMulti(prog_fd=program, attach_type=kind)
    link = _link_uprobes(library, attr, Path("/proc/self/fd/nowhere"), [0])
    os.close(program)
    return link == -errno.ENOENT


def syscall_points_preempted() -> bool:
    """Can programs on the tracepoints of system calls be preempted on this kernel?

    The change that let them sleep did that (bpf: Add sleepable support for raw tracepoint
    programs, Linux 7.2); a kernel without it refuses to load one that says it may.
    """
    program = _trial_program(_load(), 0, program=BPF_PROG_TYPE_RAW_TRACEPOINT, flags=SLEEPABLE)
    if program >= 0:
        os.close(program)
    return program >= 0


def _trial_program(
    library: ctypes.CDLL, kind: int, *, program: int = BPF_PROG_TYPE_KPROBE, flags: int = 0
) -> int:
    """A program that does nothing, for links of ``kind``; its descriptor or -errno."""
    instructions = (ctypes.c_uint64 * 2)(0xB7, 0x95)  # r0 = 0; exit
    size = ctypes.sizeof(ProgramOptions)
    options = ProgramOptions(sz=size, expected_attach_type=kind, prog_flags=flags)
    return int(
        library.bpf_prog_load(program, b"dc_trial", b"GPL", instructions, 2, ctypes.byref(options))
    )


def _at_once(action: Callable[[Any], object], objects: list[Any]) -> None:
    """``action`` on each, several at a time: each waits for a grace period of the kernel (20 ms
    and more for a link of uprobes), and those that wait together wait once.

    Raises the first `UserError` of ``action``, when all are done.
    """
    if len(objects) < 2:
        for one in objects:
            action(one)
        return
    todo = iter(objects)  # next() of a list's iterator is atomic
    errors: list[UserError] = []

    def work() -> None:
        for one in todo:
            try:
                action(one)
            except UserError as error:
                errors.append(error)

    threads = [Thread(target=work) for _ in range(min(len(objects), THREADS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _recursion_misses(fd: int) -> int:
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "recursion_misses":
            return int(value)
    return 0


def _return_misses(library: ctypes.CDLL, link: int) -> int:
    """Calls of a kprobe link that the kernel had no room to follow; 0 before Linux 6.7."""
    info, size = bytearray(LINK_INFO_BYTES), ctypes.c_uint32(LINK_INFO_BYTES)
    buffer = (ctypes.c_char * LINK_INFO_BYTES).from_buffer(info)
    if library.bpf_obj_get_info_by_fd(link, buffer, ctypes.byref(size)):
        return 0
    return int(struct.unpack_from("=Q", info, LINK_INFO_MISSED)[0])


def link_create(library: ctypes.CDLL, attr: ctypes.Structure) -> int:
    """BPF_LINK_CREATE for what libbpf 1.1 has no function for; a descriptor or -errno."""
    number = _SYS_BPF[os.uname().machine]
    fd = library.syscall(number, BPF_LINK_CREATE, ctypes.byref(attr), ctypes.sizeof(attr))
    return -ctypes.get_errno() if fd < 0 else int(fd)


def kprobe_link(
    library: ctypes.CDLL,
    program: int,
    functions: list[str],
    cookies: list[int],
    *,
    kind: int,
    flags: int,
) -> int:
    """A kprobe.multi or kprobe.session link; a descriptor or -errno."""
    count = len(functions)
    names = (ctypes.c_char_p * count)(*(function.encode() for function in functions))
    cookie_array = (ctypes.c_uint64 * count)(*cookies)
    attr = KprobeMulti(
        prog_fd=program,
        attach_type=kind,
        flags=flags,
        cnt=count,
        syms=ctypes.addressof(names),
        cookies=ctypes.addressof(cookie_array),
    )
    return link_create(library, attr)


def try_kprobe_link(function: str, *, kind: int) -> int:
    """Attach a program that does nothing, in a kprobe.multi or session link, and detach it.

    Returns 0 or an errno. In microseconds: no object file, no types.
    """
    library = _load()
    program = _trial_program(library, kind)
    if program < 0:
        return -program
    fd = kprobe_link(library, program, [function], [0], kind=kind, flags=0)
    os.close(program)
    if fd < 0:
        return -fd
    os.close(fd)
    return 0


def try_kprobe(function: str) -> int:
    """Make a perf kprobe on a kernel function and remove it; returns 0 or an errno."""
    try:
        kind = int(KPROBE_TYPE.read_text())
    except OSError as error:
        return error.errno or errno.ENOENT
    name = ctypes.create_string_buffer(function.encode())
    attr = bytearray(PERF_ATTR_BYTES)
    struct.pack_into("=II", attr, 0, kind, PERF_ATTR_BYTES)
    struct.pack_into("=Q", attr, 56, ctypes.addressof(name))  # kprobe_func
    buffer = (ctypes.c_char * PERF_ATTR_BYTES).from_buffer(attr)
    number = _SYS_PERF_EVENT_OPEN[os.uname().machine]
    fd = _load().syscall(number, buffer, -1, 0, -1, ctypes.c_ulong(8))  # PERF_FLAG_FD_CLOEXEC
    if fd < 0:
        return ctypes.get_errno()
    os.close(fd)
    return 0


class Object:
    """One BPF object file. What it attached ends with `detach`, all of it with `close`.

    A process that ends gives back what it did not close; the kernel then frees all programs at
    once, which can hang it when there are over a thousand (seen with Linux 6.18).
    """

    def __init__(self, path: Path, *, log: Callable[[str], None]) -> None:
        self._c = _load()
        self._messages: list[str] = []
        self._print = PRINT(self._remember)
        self._c.libbpf_set_print(self._print)
        self._log = log
        handle = self._c.bpf_object__open_file(os.fsencode(path), None)
        if not handle:
            raise UserError(f"{path}: {self._error()}", hint="reinstall datacrumbs")
        self._handle = ctypes.c_void_p(handle)
        self._links: list[ctypes.c_void_p] = []
        self._fds: list[int] = []
        self._sessions: list[int] = []  # of these, the kprobe.session links
        self._misses = 0  # of those that are detached

    def _remember(self, level: int, text: bytes, arguments: int) -> int:
        """libbpf's messages: a C format and its va_list; what it says of a failed load counts."""
        if level > 1:
            return 0
        buffer = ctypes.create_string_buffer(4096)
        self._c.vsnprintf(buffer, len(buffer), text, ctypes.c_void_p(arguments))
        self._messages.append(buffer.value.decode(errors="replace").strip())
        return 0

    def _error(self) -> str:
        return os.strerror(ctypes.get_errno())

    def map(self, name: str) -> ctypes.c_void_p:
        """The map called ``name``."""
        return ctypes.c_void_p(self._c.bpf_object__find_map_by_name(self._handle, name.encode()))

    def map_fd(self, name: str) -> int:
        """Its descriptor, after `load`."""
        return int(self._c.bpf_map__fd(self.map(name)))

    def set_entries(self, name: str, entries: int) -> None:
        """Size of a map, before `load`."""
        self._c.bpf_map__set_max_entries(self.map(name), ctypes.c_uint32(entries))

    def shared(self, name: str, kind: type[Any]) -> Any:
        """A global variable's map as a ctypes ``kind``, as the programs change it; after `load`.

        What libbpf gives as its value is a copy, but for skeletons.
        """
        return kind.from_buffer(mmap.mmap(self.map_fd(name), ctypes.sizeof(kind)))

    def memory(self, name: str, kind: type[Any]) -> Any:
        """The contents of a global variable's map as a ctypes ``kind``, to set before `load`."""
        size = ctypes.c_size_t()
        address = self._c.bpf_map__initial_value(self.map(name), ctypes.byref(size))
        if not address or size.value < ctypes.sizeof(kind):
            raise UserError(
                f"BPF object: {name} is {size.value} bytes", hint="reinstall datacrumbs"
            )
        return kind.from_address(address)

    def program(self, name: str) -> ctypes.c_void_p:
        """The program called ``name``."""
        handle = self._c.bpf_object__find_program_by_name(self._handle, name.encode())
        return ctypes.c_void_p(handle)

    def without_maps(self, *names: str) -> None:
        """Do not make these maps, which no program uses that is loaded; all, if none is named."""
        maps = [self.map(name) for name in names] or list(self._all_maps())
        for one in maps:
            self._c.bpf_map__set_autocreate(one, ctypes.c_bool(False))

    def _all_maps(self) -> Iterator[ctypes.c_void_p]:
        one = self._c.bpf_object__next_map(self._handle, None)
        while one:
            yield ctypes.c_void_p(one)
            one = self._c.bpf_object__next_map(self._handle, ctypes.c_void_p(one))

    def set_expected_attach_type(self, name: str, kind: int) -> None:
        """Attach type of a program, before `load`."""
        self._c.bpf_program__set_expected_attach_type(self.program(name), kind)

    def only(self, *names: str) -> None:
        """Load no programs but these."""
        wanted = {self.program(name).value for name in names}
        program = self._c.bpf_object__next_program(self._handle, None)
        while program:
            self._c.bpf_program__set_autoload(
                ctypes.c_void_p(program), ctypes.c_bool(program in wanted)
            )
            program = self._c.bpf_object__next_program(self._handle, ctypes.c_void_p(program))

    def leave_out(self, *names: str) -> None:
        """Do not load these programs."""
        for name in names:
            self._c.bpf_program__set_autoload(self.program(name), ctypes.c_bool(False))

    def load(self) -> None:
        """Load all programs into the kernel; raises `UserError` with what the kernel said."""
        # one per process: an Object made after this one took it, and may be gone since
        self._c.libbpf_set_print(self._print)
        code = self._c.bpf_object__load(self._handle)
        if code:
            for line in "\n".join(self._messages).splitlines():
                self._log(line)
            why = os.strerror(-code)
            raise UserError(
                f"the kernel does not take the BPF programs: {why}",
                hint="run datacrumbs_doctor on this host; the log has the kernel's words",
            )

    def attach(self, name: str) -> None:
        """Attach a program where its section says."""
        link = self._c.bpf_program__attach(self.program(name))
        if not link:
            raise UserError(f"cannot attach {name}: {self._error()}", hint="run datacrumbs_doctor")
        self._links.append(ctypes.c_void_p(link))

    def attach_uprobe(
        self,
        name: str,
        path: Path,
        offset: int,
        *,
        cookie: int = 0,
        retprobe: bool = False,
        semaphore: int = 0,
    ) -> str:
        """A perf uprobe for all processes; returns the error, empty when it is attached."""
        options = UprobeOptions(ctypes.sizeof(UprobeOptions), semaphore, cookie, retprobe, None)
        link = self._c.bpf_program__attach_uprobe_opts(
            self.program(name),
            -1,
            os.fsencode(path),
            ctypes.c_size_t(offset),
            ctypes.byref(options),
        )
        if not link:
            return self._error()
        self._links.append(ctypes.c_void_p(link))
        return ""

    def attach_uprobes(
        self,
        name: str,
        path: Path,
        offsets: list[int],
        cookies: list[int],
        *,
        kind: int,
        flags: int = 0,
        semaphores: list[int] | None = None,
    ) -> int:
        """One link for many places; returns 0 or an errno (nothing attached).

        ``kind`` is `UPROBE_MULTI` or `UPROBE_SESSION`, for which the program was loaded.
        """
        count = len(offsets)
        semaphore_array = (ctypes.c_ulong * count)(*semaphores or [])
        cookie_array = (ctypes.c_uint64 * count)(*cookies)
        fd = _link_uprobes(
            self._c,
            UprobeMulti(
                prog_fd=self._c.bpf_program__fd(self.program(name)),
                attach_type=kind,
                ref_ctr_offsets=ctypes.addressof(semaphore_array) if semaphores else 0,
                cookies=ctypes.addressof(cookie_array),
                flags=flags,
            ),
            path,
            offsets,
        )
        return self._link(fd)

    def _link(self, fd: int) -> int:
        if fd < 0:
            return -fd
        self._fds.append(fd)
        return 0

    def attach_kprobe(
        self, name: str, function: str, *, cookie: int = 0, retprobe: bool = False
    ) -> int:
        """A perf kprobe on a kernel function; returns 0 or an errno."""
        options = KprobeOptions(ctypes.sizeof(KprobeOptions), cookie, 0, retprobe)
        link = self._c.bpf_program__attach_kprobe_opts(
            self.program(name), function.encode(), ctypes.byref(options)
        )
        return self._keep(link)

    def attach_kprobes(
        self, name: str, functions: list[str], cookies: list[int], *, kind: int, flags: int
    ) -> int:
        """One kprobe.multi or kprobe.session link for many; 0 or an errno (nothing attached)."""
        program = int(self._c.bpf_program__fd(self.program(name)))
        fd = kprobe_link(self._c, program, functions, cookies, kind=kind, flags=flags)
        if fd >= 0 and kind == KPROBE_SESSION:
            self._sessions.append(fd)
        return self._link(fd)

    def attach_point(self, name: str, event: str) -> int:
        """A raw tracepoint; returns 0 or an errno."""
        link = self._c.bpf_program__attach_raw_tracepoint(self.program(name), event.encode())
        return self._keep(link)

    def _keep(self, link: int | None) -> int:
        if not link:
            return ctypes.get_errno()
        self._links.append(ctypes.c_void_p(link))
        return 0

    def attached(self) -> tuple[int, int]:
        """A mark for `detach`: what is attached by now."""
        return len(self._links), len(self._fds)

    def add_rings(self, outer: str, count: int, size_bytes: int) -> list[int]:
        """Put ``count`` new ring buffers into the map of maps ``outer``; their descriptors.

        Raises `UserError`, with none of them left, if there is no memory for one.
        """
        fds: dict[int, int] = {}

        def add(index: int) -> None:
            fds[index] = self._new_ring(size_bytes)
            self.put(outer, index, ctypes.c_uint32(fds[index]))

        try:
            _at_once(add, list(range(count)))
        except UserError:
            for fd in fds.values():
                os.close(fd)
            raise
        return [fds[index] for index in range(count)]

    def _new_ring(self, size_bytes: int) -> int:
        fd = self._c.bpf_map_create(BPF_MAP_TYPE_RINGBUF, b"dc_events", 0, 0, size_bytes, None)
        if fd < 0:
            raise UserError(
                f"cannot make a ring of {size_bytes} bytes: {os.strerror(-fd)}",
                hint="lower ring.total_bytes in system.yaml",
            )
        return int(fd)

    def new_hash(self, name: str, key_bytes: int, value_bytes: int, entries: int) -> int:
        """The descriptor of a new hash map with memory for all its entries."""
        fd = self._c.bpf_map_create(
            BPF_MAP_TYPE_HASH, name.encode(), key_bytes, value_bytes, entries, None
        )
        if fd < 0:
            raise UserError(f"cannot make a map of {entries} entries: {os.strerror(-fd)}")
        return int(fd)

    def put(self, name: str, key: int, value: ctypes.Structure | ctypes.c_uint32) -> None:
        """Set the element ``key``, a 32-bit number, of a map.

        In a map of maps ``value`` is a descriptor; when it returns, no BPF program uses the
        map that was there any more.
        """
        number = ctypes.c_uint32(key)
        code = self._c.bpf_map_update_elem(
            self.map_fd(name), ctypes.byref(number), ctypes.byref(value), ctypes.c_uint64(0)
        )
        if code:
            raise UserError(f"cannot set {key} of map {name}: {os.strerror(-code)}")

    def take_batch(
        self, fd: int, position: ctypes.c_uint32 | None, keys: int, values: int, room: int
    ) -> tuple[int, ctypes.c_uint32 | None]:
        """Move up to ``room`` entries of hash map ``fd`` to the addresses ``keys``, ``values``.

        Starts at ``position``, None at first; returns how many, and the position to go on
        from: None at the end. Raises `UserError`.
        """
        after, count = ctypes.c_uint32(), ctypes.c_uint32(room)
        code = self._c.bpf_map_lookup_and_delete_batch(
            fd,
            position and ctypes.byref(position),
            ctypes.byref(after),
            ctypes.c_void_p(keys),
            ctypes.c_void_p(values),
            ctypes.byref(count),
            None,
        )
        if code == -errno.ENOENT:
            return count.value, None
        if code:
            raise UserError(f"cannot empty a map: {os.strerror(-code)}")
        return count.value, after

    def missed(self) -> int:
        """How often the kernel did not run a program of this object where it was attached.

        It runs a program once at a time on a CPU. Where programs can be preempted (at system
        calls: Linux 7.2), other threads' calls on that CPU pass by unseen until it is done. And
        before 6.14 it follows only so many calls of a kprobe.session link at a time (twice its
        functions times the CPUs); those of programs that are not traced are among the others.
        """
        total = self._misses + sum(_return_misses(self._c, fd) for fd in self._sessions)
        program = self._c.bpf_object__next_program(self._handle, None)
        while program:
            fd = self._c.bpf_program__fd(ctypes.c_void_p(program))
            if fd >= 0:
                total += _recursion_misses(fd)
            program = self._c.bpf_object__next_program(self._handle, ctypes.c_void_p(program))
        return total

    def iterator(self, name: str) -> int:
        """A descriptor whose reading runs the iterator program ``name`` over all tasks."""
        link = self._c.bpf_program__attach_iter(self.program(name), None)
        if not link:
            raise UserError(f"cannot attach {name}: {self._error()}", hint="run datacrumbs_doctor")
        fd = self._c.bpf_iter_create(self._c.bpf_link__fd(ctypes.c_void_p(link)))
        self._c.bpf_link__destroy(ctypes.c_void_p(link))
        if fd < 0:
            raise UserError(f"cannot iterate with {name}: {os.strerror(-fd)}")
        return int(fd)

    def detach(self, since: tuple[int, int] = (0, 0)) -> None:
        """Detach what was attached since a mark; what the maps and rings hold stays."""
        links, fds = since
        ended = [fd for fd in self._sessions if fd in self._fds[fds:]]
        self._misses += sum(_return_misses(self._c, fd) for fd in ended)
        self._sessions = [fd for fd in self._sessions if fd not in ended]
        _at_once(os.close, self._fds[fds:])
        del self._fds[fds:]
        _at_once(self._c.bpf_link__destroy, self._links[links:])
        del self._links[links:]

    def close(self) -> None:
        """Detach, and give programs and maps back; nothing of this object works after it."""
        self.detach()
        self._c.libbpf_set_print(self._print)
        self._c.bpf_object__close(self._handle)
        self._handle = ctypes.c_void_p()
