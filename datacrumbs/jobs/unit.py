"""Starting and stopping the unit ``datacrumbs@<run-id>.service`` of a job on this node.

Called as root from a scheduler's prolog and epilog. Everything is keyed by the run id and may be
done twice; everything has a deadline, and what is not done by then is left to systemd. What the
unit is started with lies in the run directory, root's own:

- ``datacrumbs-<run-id>.probes``: the copy of the probe file, read as the job's user;
- ``datacrumbs-<run-id>.env``: named values for the unit; while it exists, the job is ours to stop;
- ``datacrumbs-<run-id>.failed``: why the job is not traced here; its user may read it, and not
  write to it: what a user owns there fills the memory that ``/run`` is kept in.

Little is imported: this is on the way of every traced job's start.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
import sys
import syslog
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from datacrumbs.config import OnError, SystemConfig
from datacrumbs.errors import UserError
from datacrumbs.jobs.as_user import read_as_user
from datacrumbs.nodelist import checked
from datacrumbs.printable import printable
from datacrumbs.readable import let_read
from datacrumbs.run import check_run_id, env_file, failed_file, make_run_dir, probes_file
from datacrumbs.runlog import Log

JOB_FAILS = 3
"""Exit code of our part of a hook that asks for failing the job. A crash has other codes, and is
no reason to fail one."""

SPARE_S = 0.5
"""What is left of a deadline for cleaning up after it has passed."""


class Source(StrEnum):
    """Who starts a run and is the one to stop it: a job's id may be a run id of somebody else's."""

    SLURM = "slurm"
    FLUX = "flux"
    WRAPPER = "wrapper"
    ADMIN = ""  # by the unit alone


_NAMES = {
    Source.SLURM: "started by Slurm's prolog",
    Source.FLUX: "started by Flux's prolog",
    Source.WRAPPER: "started by datacrumbs_run or datacrumbs_service_wrapper",
    Source.ADMIN: "started with systemctl",
}


@dataclass(frozen=True, slots=True)
class Job:
    """A job that is to be traced on this node.

    ``cgroup`` is the last part of the name of the job's cgroup, for `select: job`; it need not
    exist yet.
    ``attempt`` tells a requeued job from its earlier life: another one is a new run.
    ``nodes``: all of the job's, as its scheduler writes them. ``end_s``: the Unix time at which
    its time limit is over; 0: not known.
    """

    run_id: str
    user: pwd.struct_passwd
    probe_file: str
    source: Source
    cgroup: str = ""
    attempt: str = "0"
    nodes: str = ""
    end_s: int = 0


def job_user(uid: str) -> pwd.struct_passwd:
    """The password entry of a scheduler's ``uid``. Raises `UserError`."""
    try:
        return pwd.getpwuid(int(uid))
    except (ValueError, KeyError, OverflowError):
        raise UserError(
            f"uid {uid[:20]!r} is not known on this host", hint="check the host's user database"
        ) from None


def unit_name(run_id: str) -> str:
    """The systemd unit of a run."""
    return f"datacrumbs@{check_run_id(run_id)}.service"


def start(job: Job, config: SystemConfig) -> None:
    """Trace ``job`` from now on: returns when its daemon is ready.

    Does nothing when it is being traced already. Raises `UserError` when it cannot be traced,
    at the latest after ``jobs.start_timeout_s``; nothing of it then stays. A run of this id that
    somebody else has started goes on, and is one reason.
    """
    deadline = time.monotonic() + config.jobs.start_timeout_s
    run_dir, unit = Path(config.run_dir), unit_name(job.run_id)
    make_run_dir(run_dir)
    record = env_file(run_dir, job.run_id)
    values = _values(job, config)
    before = _recorded(record)
    state = check_is_ours(job.run_id, job.source, job.user, config, deadline)
    if state == "active" and _is_same(before or {}, values):
        return
    if before is not None:
        _systemctl("stop", unit, deadline=deadline)
    remove_files(job.run_id, config)
    try:
        probes = read_as_user(
            job.user,
            job.probe_file,
            max_bytes=config.limits.probe_file_bytes * 4 // 3 + 4096,
            timeout_s=deadline - SPARE_S - time.monotonic(),
        )
        _write(probes_file(run_dir, job.run_id), probes)
        _write(record, "".join(f"{k}={v}\n" for k, v in values.items()).encode())
        problem = _systemctl("start", unit, deadline=deadline - SPARE_S)
        if problem:
            raise UserError(_reason(job, config, problem, deadline))
    except UserError:
        _give_up(job, config, deadline)
        raise


def stop(run_id: str, config: SystemConfig, source: Source) -> None:
    """End the tracing of a job: returns when its trace is closed and its unit inactive.

    Does nothing for a run that ``source`` has not started. What takes longer than
    ``jobs.stop_timeout_s`` goes on in the background; that, and a daemon that did not end well,
    raises `UserError`.
    """
    deadline = time.monotonic() + config.jobs.stop_timeout_s
    run_dir, unit = Path(config.run_dir), unit_name(run_id)
    if owner(run_id, config) is not source:
        failed_file(run_dir, run_id).unlink(missing_ok=True)
        return
    problem = _systemctl("stop", unit, deadline=deadline - SPARE_S)
    if problem:
        clean_in_background(run_id, source, deadline)
        raise UserError(f"{unit}: {problem}", hint="systemd goes on stopping it")
    shown = _show(unit, deadline)
    failed = shown.get("ActiveState") == "failed"
    if failed:
        _systemctl("reset-failed", unit, deadline=deadline)
    remove_files(run_id, config)
    if failed:
        raise UserError(f"{unit}: {_result(shown)}", hint="the run's log has the details")


def owner(run_id: str, config: SystemConfig) -> Source | None:
    """Who has started the run of this id that is recorded on this node; None without one."""
    record = _recorded(env_file(Path(config.run_dir), run_id))
    return None if record is None else _source(record)


def check_is_ours(
    run_id: str,
    source: Source,
    user: pwd.struct_passwd,
    config: SystemConfig,
    deadline: float,
) -> str:
    """Raise `UserError` when a run of this id goes on here that is somebody else's.

    Of a scheduler, two jobs of one id are never there at once: the later one is the only one.
    Returns the state of the unit.
    """
    state = _show(unit_name(run_id), deadline).get("ActiveState", "")
    if state not in ("active", "activating"):
        return state
    record = _recorded(env_file(Path(config.run_dir), run_id)) or {}
    other, uid = _source(record), record.get(_UID, "")
    if other is not source or (source is Source.WRAPPER and uid != str(user.pw_uid)):
        raise UserError(
            f"run {run_id} goes on here already, {_NAMES[other]}{f' for uid {uid}' if uid else ''}",
            hint=f"as root, systemctl stop {unit_name(run_id)} ends it",
        )
    return state


def not_traced(
    run_id: str, user: pwd.struct_passwd, config: SystemConfig, error: UserError
) -> None:
    """Mark a job as not traced: for its user (file, log) and for the admin (journal)."""
    reason = printable(error.message + (f" ({error.hint})" if error.hint else ""))
    tell(run_id, user, config, f"not traced: {reason}")
    with contextlib.suppress(OSError, UserError):  # a full /run: the log has it
        make_run_dir(Path(config.run_dir))
        path = failed_file(Path(config.run_dir), run_id)
        _write(path, (reason + "\n").encode(errors="backslashreplace"), reader=user)


def tell(run_id: str, user: pwd.struct_passwd | None, config: SystemConfig, text: str) -> None:
    """One line to the run's log, standard error and the journal."""
    line = printable(text)
    log = Log(f"datacrumbs[{run_id}]")
    if user:
        log.open(Path(config.log_dir), user, run_id)
    log.say(line)
    log.close()
    to_journal(f"run {run_id}{f' of {user.pw_name}' if user else ''}: {line}")


def to_journal(line: str) -> None:
    """One line to the journal, as ``datacrumbs``."""
    syslog.openlog("datacrumbs", 0, syslog.LOG_DAEMON)
    syslog.syslog(syslog.LOG_WARNING, line)


def exit_code(config: SystemConfig) -> int:
    """What our part of a hook ends with after a failure: the admin's choice."""
    return JOB_FAILS if config.jobs.on_error is OnError.FAIL else 0


def remove_files(run_id: str, config: SystemConfig) -> None:
    """Remove what a job has in the run directory; the daemon's own goes with its unit."""
    failed_file(Path(config.run_dir), run_id).unlink(missing_ok=True)
    _remove_inputs(run_id, config)


def _remove_inputs(run_id: str, config: SystemConfig) -> None:
    for path in (probes_file, env_file):  # last what says that there is more
        path(Path(config.run_dir), run_id).unlink(missing_ok=True)


def clean(run_id: str, config: SystemConfig, source: Source) -> None:
    """Stop a job's unit however long it takes (its ``TimeoutStopSec``), then remove the rest.

    Why a job is not traced stays to be read by its user: its end removes that. What the
    job has been started with meanwhile, requeued, stays as well, and what is not ``source``'s.
    """
    unit, record = unit_name(run_id), env_file(Path(config.run_dir), run_id)
    if owner(run_id, config) not in (None, source):
        return
    before = _identity(record)
    subprocess.run(["systemctl", "stop", unit], check=False)
    if _identity(record) == before:
        subprocess.run(["systemctl", "reset-failed", unit], check=False, capture_output=True)
        _remove_inputs(run_id, config)


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another one written in its place; None when there is none."""
    with contextlib.suppress(FileNotFoundError):
        status = path.stat()
        return status.st_ino, status.st_mtime_ns
    return None


def clean_in_background(run_id: str, source: Source, deadline: float) -> None:
    """Have `clean` done by a unit of its own, which outlives the hook."""
    command = ["systemd-run", "--no-block", "--collect", "--quiet"]
    command += [f"--unit=datacrumbs-clean-{check_run_id(run_id)}"]
    command += [sys.executable, "-I", "-m", "datacrumbs.jobs.clean", run_id, source]
    _run(command, deadline)


_SOURCE, _UID, _END = "DATACRUMBS_JOB_SOURCE", "DATACRUMBS_JOB_UID", "DATACRUMBS_JOB_END"


def _values(job: Job, config: SystemConfig) -> dict[str, str]:
    """What the unit's environment file holds: no value in it is a user's free text."""
    values = {
        "PROBE_FILE": str(probes_file(Path(config.run_dir), job.run_id)),
        _SOURCE: job.source.value,
        _UID: str(job.user.pw_uid),
        "DATACRUMBS_JOB_ATTEMPT": check_run_id(job.attempt, source="attempt"),
        "DATACRUMBS_JOB_CGROUP": job.cgroup,
        "DATACRUMBS_JOB_NODES": checked(job.nodes),
        _END: str(job.end_s or int(time.time() + config.jobs.time_limit_s)),
    }
    return {name: value for name, value in values.items() if value}


def _recorded(record: Path) -> dict[str, str] | None:
    """The values of an environment file; None when there is none."""
    with contextlib.suppress(FileNotFoundError):
        lines = record.read_text(errors="replace").splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)
    return None


def _source(values: dict[str, str]) -> Source:
    return next((one for one in Source if one == values.get(_SOURCE)), Source.ADMIN)


def _is_same(before: dict[str, str], values: dict[str, str]) -> bool:
    """Whether both are of one life of a job: when it ends may have been counted from now."""
    return before | {_END: ""} == values | {_END: ""}


def _write(path: Path, data: bytes, *, reader: pwd.struct_passwd | None = None) -> None:
    """Write a file of the run directory, which is complete or not there; root's, as it stays."""
    new = path.with_name(f".{path.name}.new")
    try:
        new.unlink(missing_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(data)
            if reader:
                let_read(fd, reader)
        new.rename(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def _systemctl(verb: str, unit: str, *, deadline: float) -> str:
    """Run ``systemctl verb unit``; what went wrong, empty when nothing did."""
    return _run(["systemctl", "--quiet", verb, unit], deadline)


def _run(command: list[str], deadline: float) -> str:
    left_s = max(deadline - time.monotonic(), 0.1)
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=left_s, check=False
        )
    except subprocess.TimeoutExpired:
        return f"{' '.join(command[:3])} took too long"
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    if done.returncode == 0:
        return ""
    said = done.stderr.decode(errors="replace").strip().partition("\n")[0]
    return said or f"exit code {done.returncode}"


def _show(unit: str, deadline: float) -> dict[str, str]:
    command = ["systemctl", "show", "-p", "ActiveState,Result,StatusText", unit]
    try:
        text = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=max(deadline - time.monotonic(), 0.1),
            check=False,
        ).stdout.decode(errors="replace")
    except (subprocess.TimeoutExpired, OSError):
        return {}
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def _result(shown: dict[str, str]) -> str:
    return f"it ended with: {shown.get('Result', 'unknown')}"


def _reason(job: Job, config: SystemConfig, problem: str, deadline: float) -> str:
    """Why a unit did not start, in words of its user's: the daemon's own, where it said some."""
    shown = _show(unit_name(job.run_id), deadline)
    if shown.get("ActiveState") == "failed":
        problem = shown.get("StatusText") or _result(shown)
    copy = str(probes_file(Path(config.run_dir), job.run_id))
    return problem.replace(copy, job.probe_file)


def _give_up(job: Job, config: SystemConfig, deadline: float) -> None:
    """Leave nothing of a job that is not traced; a unit that hangs is left to systemd."""
    run_id, unit = job.run_id, unit_name(job.run_id)
    if not env_file(Path(config.run_dir), run_id).exists():
        remove_files(run_id, config)
        return
    if _show(unit, deadline).get("ActiveState") in ("failed", "inactive"):
        _systemctl("reset-failed", unit, deadline=deadline)
        remove_files(run_id, config)
    else:
        clean_in_background(run_id, job.source, deadline)
