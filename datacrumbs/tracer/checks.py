"""What ``datacrumbs_doctor`` checks: all that the daemon and the signing service need.

What can be tried is tried: programs are loaded, attached and detached again, rings are made.
Nothing that a check does outlives the process; nothing is written.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import pwd
import re
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from datacrumbs.config import SystemConfig, config_paths, load_system_config
from datacrumbs.errors import UserError
from datacrumbs.probes.kernel import TRACEFS, has_tracefs
from datacrumbs.probes.model import (
    FORMAT,
    KernelFunction,
    KernelLayer,
    Layer,
    ProbeList,
    SyscallLayer,
)
from datacrumbs.run import host_name
from datacrumbs.tracer import attach, io_uring, kernel_functions, layout, usdt
from datacrumbs.tracer.libbpf import OBJECT_PATH, Object
from datacrumbs.tracer.plan import Plan
from datacrumbs.tracer.ring_plan import plan_here
from datacrumbs.tracer.system_calls import plan_syscalls
from datacrumbs.tracer.user_functions import (
    CLIENT_FUNCTION,
    Attacher,
    Mechanism,
    Probe,
    attach_client,
    choose,
    prepare,
)

KERNEL_FLOOR = (5, 14)
MACHINES = ("x86_64", "aarch64")
BTF = Path("/sys/kernel/btf/vmlinux")
LOCKDOWN = Path("/sys/kernel/security/lockdown")
MEMINFO = Path("/proc/meminfo")

CAPABILITIES = {  # linux/capability.h; what the daemon does with them
    "CAP_CHOWN": 0,  # the log file becomes the user's
    "CAP_DAC_READ_SEARCH": 2,  # a probe file in a directory closed to others
    "CAP_KILL": 5,  # passing signals on to the half that is the user
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SYS_ADMIN": 21,  # perf uprobes: without it the kernel says "permission denied"
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}

DAEMON_BYTES = 256 << 20
"""Memory the daemon may take besides its rings."""

TRACE_FREE_BYTES = 1 << 30
LOG_FREE_BYTES = 16 << 20
RUN_FREE_BYTES = 1 << 20

NOBODY_UID = 0xFFFF_FFFE
"""The user the trial "traces": no process has this uid, so no event is ever recorded."""

PROGRAMS = ("on_fork", "on_exec", "on_exit", "on_cgroup", "sys_exit", "sys_enter")
ITERATORS = ("mark_job", "unfinished")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing checked.

    ``ok`` is None when it was not checked; ``found`` says why. ``remedy`` is one line, empty
    unless the check failed.
    """

    name: str
    ok: bool | None
    found: str
    remedy: str = ""


def run_checks(config_path: Path | None, *, user: pwd.struct_passwd) -> list[Check]:
    """All checks, for traces of ``user``; as an ordinary user, those which need root are not
    made and say so. With a wrong ``system.yaml`` the rest is checked with the defaults.
    """
    first, config = configuration(config_path)
    return [
        first,
        privileges(),
        kernel(),
        btf(),
        lockdown(),
        libbpf(),
        memory(config),
        *mechanisms(config),
        commands(),
        client_library(config),
        process_visibility(),
        tracefs(),
        run_directory(config),
        log_directory(config),
        trace_directory(config, user),
        leftovers(config),
        public_keys(config),
        private_key(config),
        signing_service(config),
    ]


def _from_error(name: str, error: UserError, remedy: str) -> Check:
    return Check(name, False, error.message, error.hint or remedy)


def _needs_root(name: str) -> Check:
    return Check(name, None, "needs root")


def _is_root() -> bool:
    return os.geteuid() == 0


def configuration(path: Path | None) -> tuple[Check, SystemConfig]:
    """``system.yaml`` is valid and, for root, safe from others."""
    name = "system configuration"
    try:
        config = load_system_config(path)
    except UserError as error:
        remedy = "correct it; the installed file's comments explain every key"
        return _from_error(name, error, remedy), SystemConfig()
    used = path or next((p for p in config_paths() if p.exists()), None)
    return Check(name, True, str(used or "none: the defaults")), config


def privileges() -> Check:
    """Root, with the capabilities that the daemon uses."""
    name = "privileges"
    if not _is_root():
        return Check(name, None, f"uid {os.geteuid()}: the daemon needs root")
    status = Path("/proc/self/status").read_text()
    effective = int(re.findall(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)[0], 16)
    missing = [cap for cap, bit in CAPABILITIES.items() if not effective >> bit & 1]
    if missing:
        remedy = "grant them: CapabilityBoundingSet= of the unit, or --cap-add of the container"
        return Check(name, False, "root without " + ", ".join(missing), remedy)
    return Check(name, True, "root, with " + ", ".join(CAPABILITIES))


def kernel() -> Check:
    """A kernel of a machine and version that the BPF programs are written for."""
    release, machine = platform.release(), platform.machine()
    numbers = re.match(r"(\d+)\.(\d+)", release)
    version = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    floor = ".".join(map(str, KERNEL_FLOOR))
    ok = version >= KERNEL_FLOOR and machine in MACHINES
    remedy = "" if ok else f"boot a later Linux, on {' or '.join(MACHINES)}"
    found = f"{release} on {machine}; wanted: 5.17, or an enterprise {floor}, or later"
    return Check("kernel", ok, found, remedy)


def btf(path: Path = BTF) -> Check:
    """The kernel's type information, by which the BPF object fits itself to this kernel."""
    name = "kernel types (BTF)"
    try:
        with open(path, "rb") as file:
            magic = file.read(2)
    except OSError as error:
        remedy = "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y"
        return Check(name, False, f"{path}: {error.strerror}", remedy)
    if magic not in (b"\x9f\xeb", b"\xeb\x9f"):
        return Check(name, False, f"{path}: not BTF", "mount sysfs at /sys")
    return Check(name, True, str(path))


def lockdown(path: Path = LOCKDOWN) -> Check:
    """Kernel lockdown; its mode "confidentiality" forbids BPF to read kernel memory."""
    name = "kernel lockdown"
    try:
        text = path.read_text()
    except FileNotFoundError:
        return Check(name, True, "not known here (no securityfs); loading below tells")
    except OSError as error:
        return Check(name, None, f"{path}: {error.strerror}")
    mode = re.search(r"\[(\w+)\]", text)
    if mode and mode[1] == "confidentiality":
        remedy = "boot with lockdown=integrity, or without lockdown="
        return Check(name, False, "confidentiality: BPF may not read the kernel", remedy)
    return Check(name, True, mode[1] if mode else text.strip())


def libbpf() -> Check:
    """libbpf 1.x can be loaded."""
    name = "libbpf"
    try:
        version = ctypes.CDLL("libbpf.so.1").libbpf_version_string
    except (OSError, AttributeError) as error:
        remedy = "install libbpf 1.x (Debian: libbpf1, RHEL: libbpf)"
        return Check(name, False, str(error), remedy)
    version.restype = ctypes.c_char_p
    return Check(name, True, version().decode())


def memory(config: SystemConfig, path: Path = MEMINFO) -> Check:
    """Memory for the configured rings, for sums in profile mode and for the daemon."""
    text = path.read_text()
    available = int(re.findall(r"^MemAvailable:\s*(\d+) kB", text, re.MULTILINE)[0]) * 1024
    profile = attach.profile_bytes(config.profile.entries)
    needed = _ring_bytes(config) + DAEMON_BYTES
    found = f"{_mib(available)} available; {_mib(needed)} needed, rings and daemon"
    found += f"; {_mib(profile)} more in profile mode"
    ok = available >= needed + profile
    remedy = "" if ok else "lower ring.total_bytes or profile.entries in system.yaml"
    return Check("memory", ok, found, remedy)


def _ring_bytes(config: SystemConfig) -> int:
    rings = plan_here(config.ring)
    return rings.events_bytes + rings.strings_bytes


def _mib(size_bytes: int) -> str:
    return f"{size_bytes >> 20} MiB"


# --- the kernel, by trying ------------------------------------------------------------------

MECHANISMS = (
    *("BPF programs", "rings", "tracepoints", "task iterators", "uprobes", "uprobe links"),
    *("kernel functions", "io_uring"),
)


def mechanisms(config: SystemConfig) -> list[Check]:
    """Load all programs and attach each in every way the daemon may, for some milliseconds."""
    if not _is_root():
        return [_needs_root(name) for name in MECHANISMS]
    words: list[str] = []
    try:
        bpf = Object(OBJECT_PATH, log=words.append)
    except UserError as error:
        return [
            _from_error(MECHANISMS[0], error, "reinstall datacrumbs"),
            *(Check(name, None, "needs the BPF programs") for name in MECHANISMS[1:]),
        ]
    try:
        return list(_tried(bpf, config, words))
    finally:
        bpf.close()


def _tried(bpf: Object, config: SystemConfig, words: list[str]) -> Iterator[Check]:
    try:
        mechanism = _load(bpf, config)
    except UserError as error:
        last = f" ({words[-1].splitlines()[-1]})" if words else ""
        remedy = "mend what failed above; a container needs CAP_BPF, CAP_PERFMON and no seccomp ban"
        yield Check(MECHANISMS[0], False, error.message + last, remedy)
        yield from (Check(name, None, "needs the BPF programs") for name in MECHANISMS[1:])
        return
    yield Check(MECHANISMS[0], True, f"{OBJECT_PATH.name} loaded")
    yield _try_rings(bpf, config)
    yield _trial("tracepoints", lambda: _attach_all(bpf), "tp_btf: " + ", ".join(PROGRAMS))
    yield _trial("task iterators", lambda: _iterate(bpf), ", ".join(ITERATORS))
    yield from _try_uprobes(bpf, config.client_library_path(), mechanism)
    yield _try_kernel_functions()
    yield _try_io_uring()


def _try_kernel_functions() -> Check:
    """A function and tracepoints of the block layer, by the best that this kernel has."""
    name, tried = "kernel functions", [kernel_functions.TRIAL_FUNCTION, "block:block_rq"]
    layer = KernelLayer(name="trial", functions=[KernelFunction(name=one) for one in tried])
    bpf, plan = _trial_plan(layer)
    try:
        probes = kernel_functions.plan_kernel([layer], plan)
        kernel_functions.leave_out(bpf, probes)
        bpf.only(*probes.programs())
        bpf.load()
        kernel_functions.attach_kernel(bpf, probes, plan)
    except UserError as error:
        return _from_error(name, error, "see the kernel's log: dmesg | grep -i bpf")
    finally:
        bpf.close()
    if probes.mechanism is kernel_functions.Mechanism.NONE:
        found = "no probes on functions in this kernel: tracepoints stand in where there are any"
        return Check(name, True, found)
    failed = [f"{what}: {why}" for _, what, why in plan.skipped]
    if failed:
        return Check(name, False, "; ".join(failed), "see the kernel's log: dmesg | grep -i probe")
    return Check(name, True, f"{probes.mechanism}; tracepoints: raw_tp")


def _try_io_uring() -> Check:
    """The tracepoints of io_uring's operations, in the form that this kernel has."""
    name, layer = "io_uring", SyscallLayer(name="trial", functions=[io_uring.ENTRY])
    bpf, plan = _trial_plan(layer)
    plan_syscalls(layer, plan)
    if plan.skipped:
        return Check(name, True, "not in this kernel")
    try:
        bpf.only(*io_uring.PROGRAMS)
        bpf.load()
        code = io_uring.attach_operations(bpf, plan)
    except UserError as error:
        return _from_error(name, error, "see the kernel's log: dmesg | grep -i bpf")
    finally:
        bpf.close()
    if code == errno.ENOENT:
        return Check(name, True, "its system calls only: no tracepoints of operations (Linux 5.19)")
    if code:
        remedy = "see the kernel's log: dmesg | grep -i bpf"
        return Check(name, False, os.strerror(code), remedy)
    return Check(name, True, "operations: raw_tp")


def _trial_plan(layer: Layer) -> tuple[Object, Plan]:
    """An object that is not loaded, and a plan to fill for a user who does not exist."""
    bpf = Object(OBJECT_PATH, log=lambda _: None)
    constants = bpf.memory(".rodata.config", layout.Config)
    constants.uid = NOBODY_UID
    bpf.set_entries("strings", 1 << 16)
    return bpf, Plan(_nobodys([layer]), constants)


def _nobodys(layers: list[Layer]) -> ProbeList:
    return ProbeList(
        format=FORMAT,
        uid=NOBODY_UID,
        user="nobody",
        created=0,
        expires=0,
        host=host_name(),
        cluster="",
        machine=platform.machine(),
        layers=layers,
    )


def _load(bpf: Object, config: SystemConfig) -> Mechanism:
    """Load as the daemon does, for a user who does not exist; how user functions are attached."""
    constants = bpf.memory(".rodata.config", layout.Config)
    if constants.layout != layout.LAYOUT:
        raise UserError(
            f"{OBJECT_PATH}: layout {constants.layout}, not {layout.LAYOUT}",
            hint="reinstall datacrumbs",
        )
    kernel_functions.leave_out(bpf, kernel_functions.KernelProbes())
    bpf.leave_out(*io_uring.PROGRAMS)
    constants.uid = NOBODY_UID
    rings = plan_here(config.ring)
    rings.tell(constants)
    bpf.set_entries("rings", rings.count)
    bpf.set_entries("strings", rings.strings_bytes)
    mechanism = choose()
    prepare(bpf, mechanism)
    usdt.prepare(bpf, [], mechanism)
    bpf.load()
    return mechanism


def _trial(name: str, action: Callable[[], None], found: str) -> Check:
    try:
        action()
    except UserError as error:
        return Check(name, False, error.message, "see the kernel's log: dmesg | grep -i bpf")
    return Check(name, True, found)


def _try_rings(bpf: Object, config: SystemConfig) -> Check:
    rings = plan_here(config.ring)
    try:
        made = bpf.add_rings("rings", rings.count, rings.ring_bytes)
    except UserError as error:
        return _from_error("rings", error, "lower ring.total_bytes in system.yaml")
    for fd in made:
        os.close(fd)
    return Check("rings", True, f"{rings.count} of {_mib(rings.ring_bytes)}")


def _attach_all(bpf: Object) -> None:
    try:
        for name in PROGRAMS:
            bpf.attach(name)
    finally:
        bpf.detach()


def _iterate(bpf: Object) -> None:
    for name in ITERATORS:
        fd = bpf.iterator(name)
        try:
            attach.read_all(fd)
        finally:
            os.close(fd)


def _try_uprobes(bpf: Object, library: Path, mechanism: Mechanism) -> Iterator[Check]:
    """On the client library's own functions, so that no other program meets a breakpoint."""
    try:
        attach_client(bpf, library)
    except UserError as error:
        remedy = "grant the capabilities above; the library must be on a local file system"
        yield _from_error("uprobes", error, remedy)
        yield Check("uprobe links", None, "needs uprobes")
        return
    finally:
        bpf.detach()
    yield Check("uprobes", True, f"perf uprobe on {CLIENT_FUNCTION} of the client library")
    yield _try_links(bpf, library, mechanism)


def _try_links(bpf: Object, library: Path, mechanism: Mechanism) -> Check:
    from datacrumbs.probes.elf_functions import function_starts

    name = "uprobe links"
    if mechanism is Mechanism.SINGLE:
        return Check(name, True, "not in this kernel: functions are attached one by one, slower")
    with open(library, "rb") as file:
        probes = [Probe(0, hex(start), start) for start in function_starts(file.fileno())]
    try:
        for probe, error in Attacher(bpf, library, mechanism).attach(probes):
            remedy = "see the kernel's log: dmesg | grep -i uprobe"
            return Check(name, False, f"{mechanism}: {probe.name}: {error}", remedy)
    finally:
        bpf.detach()
    return Check(name, True, f"{mechanism}: entry and return of {len(probes)} functions")


# --- files ----------------------------------------------------------------------------------


def commands(python: Path = Path(sys.executable)) -> Check:
    """What runs the commands: users start them too, root's own Python does not serve them."""
    name, real = "commands", python.resolve()
    if not _is_root():
        return Check(name, True, f"{python}: yours to run")
    if not _everybody(real, 0o001):
        found = f"{python}: ordinary users cannot run it"
        found += f": it is {real}" if real != python else ""
        remedy = "make the environment with a Python that all may run, such as /usr/bin/python3"
        return Check(name, False, found, remedy)
    return Check(name, True, f"{python}: everybody may run it")


def client_library(config: SystemConfig) -> Check:
    """The library that programs preload: there, ours, and readable by everybody."""
    name, path = "client library", config.client_library_path()
    remedy = "reinstall datacrumbs, or set client_library in system.yaml"
    try:
        status = path.stat()
        content = path.read_bytes()
    except OSError as error:
        return Check(name, False, f"{path}: {error.strerror}", remedy)
    if CLIENT_FUNCTION.encode() + b"\0" not in content:
        return Check(name, False, f"{path}: no {CLIENT_FUNCTION} in it", remedy)
    if status.st_mode & 0o022:
        return Check(name, False, f"{path}: others can change it", f"chmod go-w {path}")
    if _is_root() and not _everybody(path, 0o004):
        return Check(
            name,
            False,
            f"{path}: ordinary users cannot read it",
            "install datacrumbs where all users may read, such as /opt",
        )
    return Check(name, True, str(path))


def _everybody(path: Path, bit: int) -> bool:
    """May do what ``bit`` stands for, by the mode of the file and of all directories above."""
    above = all(directory.stat().st_mode & 0o001 for directory in path.resolve().parents)
    return above and bool(path.stat().st_mode & bit)


def run_directory(config: SystemConfig) -> Check:
    """Where ready and lock files are; root's alone."""
    return _root_directory("run directory", Path(config.run_dir), RUN_FREE_BYTES, "run_dir")


def log_directory(config: SystemConfig) -> Check:
    """Where the daemons' logs are; root's alone."""
    return _root_directory("log directory", Path(config.log_dir), LOG_FREE_BYTES, "log_dir")


def _root_directory(name: str, path: Path, free_bytes: int, key: str) -> Check:
    """It, or the directory it will be made in, is root's, and has room."""
    there = _nearest_existing(path)
    try:
        status, room = there.stat(), os.statvfs(there)
    except OSError as error:
        return Check(name, False, f"{path}: {error.strerror}", f"set {key} in system.yaml")
    if not stat.S_ISDIR(status.st_mode):
        return Check(name, False, f"{there}: not a directory", f"set {key} in system.yaml")
    if status.st_uid != 0 or status.st_mode & 0o022:
        found = f"{there}: owner uid {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}"
        remedy = f"mkdir -p {path} && chown root {path} && chmod 755 {path}"
        return Check(name, False, f"{found}: others than root can write there", remedy)
    return _with_room(name, path, there, room.f_bavail * room.f_frsize, free_bytes)


def _with_room(name: str, path: Path, there: Path, free_bytes: int, needed_bytes: int) -> Check:
    later = "" if path == there else " (made by the first run)"
    found = f"{path}{later}: {_mib(free_bytes)} free"
    if free_bytes < needed_bytes:
        remedy = f"free {_mib(needed_bytes)} on the file system of {there}"
        return Check(name, False, found, remedy)
    return Check(name, True, found)


def _nearest_existing(path: Path) -> Path:
    return next((p for p in (path, *path.parents) if p.exists()), Path("/"))


def trace_directory(config: SystemConfig, user: pwd.struct_passwd) -> Check:
    """Where traces of ``user`` go: that user may write there, and there is room."""
    name = f"traces of {user.pw_name}"
    root = config.trace_root(
        user=user.pw_name,
        home=user.pw_dir,
        uid=user.pw_uid,
        run_id="doctor",
        host=host_name(),
    )
    remedy = "set trace_dir in system.yaml to a directory that this user can write to"
    try:
        there = _nearest_existing(root)
        room = os.statvfs(there)
        allowed = there.is_dir() and _may_write(there.stat(), user)
    except OSError as error:
        return Check(name, False, f"{root}: {error.strerror}", remedy)
    if not allowed:
        return Check(name, False, f"{root}: {there} is not writable for the user", remedy)
    return _with_room(name, root, there, room.f_bavail * room.f_frsize, TRACE_FREE_BYTES)


def _may_write(status: os.stat_result, user: pwd.struct_passwd) -> bool:
    """By owner, group and mode (not by ACL)."""
    if user.pw_uid == 0:
        return True
    if status.st_uid == user.pw_uid:
        return status.st_mode & 0o300 == 0o300
    if status.st_gid in os.getgrouplist(user.pw_name, user.pw_gid):
        return status.st_mode & 0o030 == 0o030
    return status.st_mode & 0o003 == 0o003


def leftovers(config: SystemConfig) -> Check:
    """Ready and lock files that no living daemon holds."""
    name, run_dir = "leftovers of dead runs", Path(config.run_dir)
    dead = [path for path in _lock_files(run_dir) if not _is_locked(path)]
    dead += [p for p in _files(run_dir, ".ready") if not p.with_suffix(".lock").exists()]
    dead += [p.with_suffix(".ready") for p in dead if p.suffix == ".lock"]
    files = sorted({str(path) for path in dead if path.exists()})
    if files:
        return Check(name, False, ", ".join(files), "rm " + " ".join(files))
    return Check(name, True, f"none in {run_dir}")


def _lock_files(run_dir: Path) -> list[Path]:
    return _files(run_dir, ".lock")


def _files(run_dir: Path, suffix: str) -> list[Path]:
    return list(run_dir.glob(f"datacrumbs-*{suffix}"))


def _is_locked(path: Path) -> bool:
    """Asked of the kernel's list: taking the lock would turn away a daemon that starts now."""
    with contextlib.suppress(FileNotFoundError):
        inode = path.stat().st_ino
        locks = Path("/proc/locks").read_text()
        return re.search(rf" FLOCK .*:{inode} ", locks) is not None
    return True  # gone meanwhile: it was in use


def tracefs() -> Check:
    """Tracing does without, but for custom programs on tracepoints."""
    name = "tracefs"
    if not _is_root():
        return _needs_root(name)
    if has_tracefs():
        return Check(name, True, "mounted")
    found = "not mounted, so custom programs know no tracepoints"
    return Check(name, True, f"{found}: mount -t tracefs tracefs {TRACEFS[0]}")


def process_visibility(mounts: Path = Path("/proc/self/mountinfo")) -> Check:
    """/proc mounted with hidepid hides a running daemon from its own user."""
    name = "/proc"
    hidden = re.search(
        r"^\S+ \S+ \S+ \S+ /proc (.*hidepid=(?!0\b|off\b)\w+)", mounts.read_text(), re.MULTILINE
    )
    if hidden:
        found = "mounted with hidepid: users see their running traces as cut off"
        return Check(name, False, found, "mount -o remount,hidepid=0 /proc, and in /etc/fstab")
    return Check(name, True, "processes are visible to their users")


# --- keys and the signing service -----------------------------------------------------------


def public_keys(config: SystemConfig) -> Check:
    """Keys that probe files are verified with."""
    from datacrumbs.signing.keys import load_public_keys

    name, directory = "public keys", Path(config.keys.public_dir)
    try:
        keys = load_public_keys(directory)
    except UserError as error:
        remedy = f"as root: copy the signing host's {directory} here"
        return _from_error(name, error, remedy)
    return Check(name, True, f"{directory}: " + ", ".join(sorted(keys)))


def private_key(config: SystemConfig) -> Check:
    """The signing host's key, where there is one, and its public half among the public keys."""
    from datacrumbs.signing.keys import key_id, load_private_key

    name, path = "private key", Path(config.keys.private)
    if not _is_root():
        return _needs_root(name)
    if not path.exists():
        return Check(name, True, "none: this host does not sign")
    try:
        keyid = key_id(load_private_key(path).public_key())
    except UserError as error:
        return _from_error(name, error, "restore it from your backup, or move it away")
    public = Path(config.keys.public_dir, f"{keyid}.pem")
    if not public.exists():
        remedy = "systemctl restart datacrumbs_sign_probes, which writes it again"
        return Check(name, False, f"{path}: its public half {public} is missing", remedy)
    return Check(name, True, f"{path}: {keyid}")


def signing_service(config: SystemConfig) -> Check:
    """The service answers, where it runs. Asks for a signature of nothing, which is refused."""
    from datacrumbs.signing.client import START, request_signature

    name, path = "signing service", Path(config.signing.socket)
    if not path.exists():
        if _is_root() and Path(config.keys.private).exists():
            return Check(name, False, f"{path}: there is a key but no service", START)
        return Check(name, None, f"not on this host: no {path}")
    try:
        request_signature(b"{}", config.signing)
    except UserError as error:
        if error.message.startswith("signing service: "):
            return Check(name, True, f"{path}: answers")
        return _from_error(name, error, START)
    remedy = "stop it and reinstall datacrumbs"
    return Check(name, False, f"{path}: it signed an empty request", remedy)
