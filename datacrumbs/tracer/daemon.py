"""The daemon: root verifies, attaches and watches; a child that is the user records.

Root is needed to attach and to keep the ready file, the user to write the trace. So the
daemon forks when everything is attached: the child becomes the user for good, and only it
holds the BPF descriptors, so that nothing stays attached when it goes, however it goes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from pwd import struct_passwd

from datacrumbs.config import SystemConfig
from datacrumbs.errors import BadInputError, UserError
from datacrumbs.notify import notify
from datacrumbs.probes.file import load_verified
from datacrumbs.run import host_name, lock_file, ready_file
from datacrumbs.signing.keys import load_public_keys
from datacrumbs.trace.rundir import create_run_directory
from datacrumbs.trace.runfile import ProbeFileFacts, write_run_info
from datacrumbs.tracer import privileges
from datacrumbs.tracer.attach import Attached, attach
from datacrumbs.tracer.recorder import WAKE, Recorder, Run, first_run_info

READY = "ready"
STANDARD_ERROR = 2


@dataclass(slots=True)
class Log:
    """Standard error and, once it is open, the run's log file."""

    prefix: str
    fd: int = -1

    def say(self, text: str) -> None:
        """One line to both."""
        line = f"{self.prefix}: {text}\n".encode(errors="backslashreplace")
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z ").encode()
        # a full disk or a terminal that has gone stops no tracing
        with contextlib.suppress(OSError):
            os.write(STANDARD_ERROR, line)
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                os.write(self.fd, stamp + line)


def run_daemon(
    probe_path: Path, run_id: str, *, config: SystemConfig, cgroup: Path | None = None
) -> int:
    """Trace until SIGTERM or SIGINT; returns the exit code. Needs root.

    Raises `UserError` for everything that stops it before it is ready.
    """
    if os.geteuid() != 0:
        raise UserError("needs root", hint="start datacrumbs@<run-id>.service, or use sudo")
    signal.pthread_sigmask(signal.SIG_BLOCK, WAKE)
    _open_standard_streams()
    try:
        return _run(probe_path, run_id, config, cgroup)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise UserError(f"{where}{error.strerror or error}") from error


def _open_standard_streams() -> None:
    """Whoever starts us may have closed them: a log line must not end up in another file."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= STANDARD_ERROR:
        os.set_inheritable(fd, True)
    os.close(fd)


def _run(probe_path: Path, run_id: str, config: SystemConfig, cgroup: Path | None) -> int:
    run_dir = Path(config.run_dir)
    _make_run_dir(run_dir)
    lock_fd = _lock(run_dir, run_id)
    ready = ready_file(run_dir, run_id)
    ready.unlink(missing_ok=True)  # of a daemon that was killed: the lock was free
    try:
        run = _verified(probe_path, run_id, config)
        entry = privileges.account(run.probes.uid, run.probes.user)
        log = Log(f"datacrumbs[{run_id}]")
        _open_log(log, config, entry, run_id)
        job_cgroup = _cgroup_id(cgroup) if cgroup else 0
        attached = attach(
            run.probes, config=config, run_id=run_id, job_cgroup=job_cgroup, log=log.say
        )
        return _supervise(run, attached, entry, ready, log, lock_fd=lock_fd)
    finally:
        ready.unlink(missing_ok=True)
        lock_file(run_dir, run_id).unlink(missing_ok=True)
        os.close(lock_fd)


def _make_run_dir(run_dir: Path) -> None:
    try:
        _make_directory(run_dir)
    except OSError as error:
        raise UserError(
            f"{run_dir}: {error.strerror}", hint="set run_dir in system.yaml"
        ) from error


def _make_directory(path: Path) -> None:
    """A directory that everybody may look into and only root may write."""
    if not path.exists():
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o755)  # whatever the umask took away
    status = path.stat()
    if status.st_uid != 0 or status.st_mode & 0o022:
        raise UserError(
            f"{path}: others than root can write there",
            hint=f"chown root {path} && chmod 755 {path}",
        )


def _lock(run_dir: Path, run_id: str) -> int:
    path = lock_file(run_dir, run_id)
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise UserError(
                f"run {run_id!r} is being traced on this host already",
                hint="choose another run id, or stop that run first",
            ) from None
        # the daemon before us may have removed the file we have just locked
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(fd).st_ino:
                return fd
        os.close(fd)


def _verified(path: Path, run_id: str, config: SystemConfig) -> Run:
    keys_dir = Path(config.keys.public_dir)
    verified = load_verified(
        path,
        public_keys=load_public_keys(keys_dir),
        keys_dir=keys_dir,
        max_bytes=config.limits.probe_file_bytes,
        now=time.time(),
        cluster=config.cluster,
        machine=platform.machine(),
    )
    probes = verified.probes
    if probes.probe_count() > config.limits.functions:
        raise UserError(
            f"{path}: {probes.probe_count()} functions; the limit is {config.limits.functions}"
        )
    facts = ProbeFileFacts(
        path=str(path.absolute()),
        sha256=verified.sha256,
        keyid=verified.keyid,
        created=probes.created,
        expires=probes.expires,
    )
    return Run(run_id, probes, facts, config)


def _open_log(log: Log, config: SystemConfig, entry: struct_passwd, run_id: str) -> None:
    name = f"datacrumbs_{entry.pw_name}_{run_id}_{host_name()}.log"
    path = Path(config.log_dir, name)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        _make_directory(path.parent)
        log.fd = os.open(path, flags, 0o600)
        # user "a_b" with run "c" and user "a" with run "b_c" have one name
        if os.fstat(log.fd).st_uid not in (0, entry.pw_uid):
            raise UserError(f"{path}: the log of somebody else")
        os.fchown(log.fd, entry.pw_uid, entry.pw_gid)
    except (OSError, UserError) as error:
        if log.fd >= 0:
            os.close(log.fd)
            log.fd = -1
        why = error.message if isinstance(error, UserError) else f"{path}: {error.strerror}"
        log.say(f"{why}; logging to standard error only")


def _cgroup_id(path: Path) -> int:
    """The kernel's id of a cgroup of version 2: the inode number of its directory."""
    if not (path / "cgroup.procs").exists() or not (path / "cgroup.controllers").exists():
        raise BadInputError(
            f"{path}: not a cgroup of version 2", hint="give the job's directory below the mount"
        )
    return path.stat().st_ino


def _supervise(
    run: Run, attached: Attached, entry: struct_passwd, ready: Path, log: Log, *, lock_fd: int
) -> int:
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if not child:
        os.close(read_fd)
        os._exit(_child(run, attached, entry, write_fd, log))
    child_fd = os.pidfd_open(child)
    _keep_only({0, 1, 2, read_fd, log.fd, lock_fd, child_fd})
    _watch(child, child_fd, read_fd, ready, log)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        log.say(f"the recorder was ended by {signal.Signals(-code).name}; the trace is cut off")
        return 1
    return code


def _keep_only(fds: set[int]) -> None:
    """Close all others: the BPF descriptors, so that attachments end with the child."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in fds:
            with contextlib.suppress(OSError):  # the listing's own
                os.close(int(name))


def _watch(child: int, child_fd: int, read_fd: int, ready: Path, log: Log) -> None:
    """Pass signals on and the child's words to systemd, until the child goes."""

    def pass_on(number: int, _frame: object) -> None:
        # by descriptor: a process that has the child's number after it is not meant
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(child_fd, number)

    for number in WAKE:
        # an interactive Ctrl-C reaches both; the child's own copy is the same request
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WAKE)
    with open(read_fd, encoding="utf-8") as words:
        for line in words:
            word = line.rstrip("\n")
            if word == READY:
                _write_ready(ready, child)
                notify(f"READY=1\nSTATUS=tracing\nMAINPID={os.getpid()}")
                log.say("ready")
            else:
                notify("WATCHDOG=1" + (f"\nSTATUS={word}" if word else ""))


def _write_ready(ready: Path, child: int) -> None:
    temporary = ready.with_suffix(".new")
    temporary.write_text(f"{child}\n")
    temporary.chmod(0o644)
    temporary.rename(ready)


def _child(run: Run, attached: Attached, entry: struct_passwd, write_fd: int, log: Log) -> int:
    def tell(word: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # root's half is gone: SIGTERM follows
            os.write(write_fd, (word.replace("\n", " ") + "\n").encode())

    def say(text: str) -> None:
        log.say(text)
        tell(text)

    try:
        privileges.become(entry)
        host = host_name()
        root = run.config.trace_root(
            user=entry.pw_name, home=entry.pw_dir, uid=entry.pw_uid, run_id=run.run_id, host=host
        )
        directory = create_run_directory(root, run.run_id, host)
        info = first_run_info(run, attached)
        write_run_info(directory, info)
        log.say(f"recording {len(attached.plan.functions)} functions to {directory}")
        for layer, name, reason in attached.plan.skipped[:20]:
            log.say(f"not traced: {layer}: {name}: {reason}")
        tell(READY)
        Recorder(run, attached, directory, info, say=say, beat=tell).record()
    except UserError as error:
        log.say(f"error: {error.message}" + (f" ({error.hint})" if error.hint else ""))
        return 1
    except OSError as error:  # a full disk, a file system that went away
        log.say(f"error: {error.filename or 'the trace'}: {error.strerror}")
        return 1
    except Exception:
        import traceback

        log.say("error: " + traceback.format_exc())
        return 1
    return 0
