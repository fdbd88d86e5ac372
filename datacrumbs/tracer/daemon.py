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
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path
from pwd import struct_passwd

from datacrumbs.config import KernelArguments, SystemConfig
from datacrumbs.errors import BadInputError, UserError
from datacrumbs.notify import notify
from datacrumbs.printable import printable
from datacrumbs.probes.file import load_verified
from datacrumbs.probes.kernel_arguments import numbers_only
from datacrumbs.probes.model import Select
from datacrumbs.run import host_name, lock_file, make_run_dir, probes_file, ready_file
from datacrumbs.runlog import Log
from datacrumbs.signing.keys import load_public_keys
from datacrumbs.trace.rundir import create_run_directory
from datacrumbs.trace.runfile import ProbeFileFacts, write_run_info
from datacrumbs.tracer import layout, privileges, signals
from datacrumbs.tracer.attach import Attached, JobCgroup, attach, check_profiles
from datacrumbs.tracer.job import Job
from datacrumbs.tracer.recorder import Recorder, Run, first_run_info

READY = "ready"
JOB_IS_OVER = 75
"""Exit code of the recorder when it has ended by itself."""
STANDARD_ERROR = 2


def run_daemon(
    probe_path: Path,
    run_id: str,
    *,
    config: SystemConfig,
    job: Job,
) -> int:
    """Trace until SIGTERM or SIGINT, or until ``job`` is over; returns the exit code. Needs root.

    A probe file made for anybody else than the job's user is refused. Raises `UserError` for
    everything that stops it before it is ready; the unit's status then says so too.
    """
    if os.geteuid() != 0:
        raise UserError("needs root", hint="start datacrumbs@<run-id>.service, or use sudo")
    signals.hold()
    _open_standard_streams()
    _allow_descriptors()
    try:
        return _run(probe_path, run_id, config, job)
    except UserError as error:
        notify(f"STATUS={printable(error.message)}")
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        notify(f"STATUS={printable(where)}{error.strerror or error}")
        raise UserError(f"{where}{error.strerror or error}") from error


def _open_standard_streams() -> None:
    """Whoever starts us may have closed them: a log line must not end up in another file."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= STANDARD_ERROR:
        os.set_inheritable(fd, True)
    os.close(fd)


def _allow_descriptors() -> None:
    """A ring takes three, and the usual limit is 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _run(probe_path: Path, run_id: str, config: SystemConfig, job: Job) -> int:
    run_dir = Path(config.run_dir)
    make_run_dir(run_dir)
    lock_fd = _lock(run_dir, run_id)
    ready = ready_file(run_dir, run_id)
    ready.unlink(missing_ok=True)  # of a daemon that was killed: the lock was free
    try:
        run = _verified(probe_path, run_id, config, job)
        entry = privileges.account(run.probes.uid, run.probes.user)
        log = Log(f"datacrumbs[{run_id}]")
        log.open(Path(config.log_dir), entry, run_id)
        run = _without_pointers(run, log)
        cgroup = _job_cgroup(job.cgroup) if job.cgroup and _selects_job(run) else None
        attached = attach(run.probes, config=config, run_id=run_id, job=cgroup, log=log.say)
        _remember_refusals(run, attached, log)
        return _supervise(run, attached, entry, ready, log, lock_fd=lock_fd)
    finally:
        ready.unlink(missing_ok=True)
        lock_file(run_dir, run_id).unlink(missing_ok=True)
        os.close(lock_fd)


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


def _verified(path: Path, run_id: str, config: SystemConfig, job: Job) -> Run:
    keys_dir = Path(config.keys.public_dir)
    verified = load_verified(
        path,
        public_keys=load_public_keys(keys_dir),
        keys_dir=keys_dir,
        max_bytes=config.limits.probe_file_bytes,
        now=time.time(),
        cluster=config.cluster,
        machine=platform.machine(),
        expect_user_uid=job.uid,
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
    return Run(run_id, probes, facts, config, job)


def _selects_job(run: Run) -> bool:
    return any(layer.select is Select.JOB for layer in run.probes.layers)


def _without_pointers(run: Run, log: Log) -> Run:
    """What was signed on a host with another kernel may be a pointer here."""
    if run.config.policy.kernel_arguments is KernelArguments.ALL:
        return run
    probes, lost = numbers_only(run.probes)
    for layer, name, reason in lost[:20]:
        log.say(f"arguments not captured: {layer}: {name}: {reason}")
    return replace(run, probes=probes)


def _remember_refusals(run: Run, attached: Attached, log: Log) -> None:
    """Note what the kernel refused, for the configurator; a run goes on without that."""
    if not attached.plan.skipped:
        return
    from datacrumbs.probes import status

    try:
        entries = status.refusals(run.probes, attached.plan.skipped)
        status.remember(Path(run.config.state_dir), entries)
    except UserError as error:
        log.say(f"what could not be attached is not remembered: {error.message}")


def _job_cgroup(cgroup: Path) -> JobCgroup:
    """A directory of version 2, by its inode number; or a name that is to come."""
    if len(cgroup.parts) == 1 and not cgroup.is_absolute():
        if len(cgroup.name.encode()) >= layout.JOB_NAME_BYTES:
            raise BadInputError(f"{cgroup}: longer than {layout.JOB_NAME_BYTES - 1} bytes")
        return JobCgroup(name=cgroup.name)
    if not (cgroup / "cgroup.procs").exists() or not (cgroup / "cgroup.controllers").exists():
        raise BadInputError(
            f"{cgroup}: not a cgroup of version 2",
            hint="give the job's directory below the mount, or its name alone",
        )
    return JobCgroup(id=cgroup.stat().st_ino)


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
    if code == JOB_IS_OVER:  # nobody else may come to remove it; a small .env, the unit's, stays
        probes_file(Path(run.config.run_dir), run.run_id).unlink(missing_ok=True)
        return 0
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

    for number in signals.WAKE:
        # an interactive Ctrl-C reaches both; the child's own copy is the same request
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.WAKE)
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
            os.write(write_fd, (printable(word) + "\n").encode())

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
        check_profiles(attached)
        tell(READY)
        over = Recorder(run, attached, directory, info, say=say, beat=tell).record()
    except UserError as error:
        say(f"error: {error.message}" + (f" ({error.hint})" if error.hint else ""))
        return 1
    except OSError as error:  # a full disk, a file system that went away
        say(f"error: {error.filename or 'the trace'}: {error.strerror}")
        return 1
    except Exception:
        import traceback

        for line in traceback.format_exc().splitlines():
            say(f"error: {line}")
        return 1
    return JOB_IS_OVER if over else 0
