"""Asking Flux about a job, and telling a job's user something, by Flux's own commands.

The commands, not the Python bindings: those are in no environment but Flux's own, and importing
them takes longer (measured: 100 ms) than ``flux job info`` in all (8 ms). Looking up a job is what
Flux's prolog has no other way to do: see ``scheduler/flux/prolog.d``.
"""

from __future__ import annotations

import json
import re
import subprocess

import msgspec

from datacrumbs.errors import BadInputError, UserError
from datacrumbs.jobs.metadata import MAX_BYTES, Metadata, parse_value

EXCEPTION = "datacrumbs"
"""The type of the exceptions that our hooks raise."""

FATAL = 0
NOTICE = 4
"""Severities: the job ends; the job goes on, and its user sees a line."""

MAX_JOBSPEC_BYTES = 64 * 1024 * 1024
ASK_S = 5.0

_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_F58 = re.compile(rf"f[{_BASE58}]{{1,11}}")
_MAX_ID = (1 << 64) - 1


def f58plain(job_id: str) -> str:
    """A job id as Flux's tools print it where there is no "ƒ": what names a run.

    Takes ``f...``, ``ƒ...`` and decimal; raises `BadInputError`.
    """
    text = "f" + job_id[1:] if job_id.startswith("ƒ") else job_id
    if _F58.fullmatch(text):
        return text
    # no other digits than ASCII's, and no more than an id can have
    if re.fullmatch(r"[0-9]{1,20}", text) and int(text) <= _MAX_ID:
        return "f" + _base58(int(text))
    raise BadInputError(f"{job_id[:80]!r} is not a Flux job id", hint="give it as flux jobs does")


def _base58(number: int) -> str:
    digits = ""
    while number or not digits:
        number, digit = divmod(number, 58)
        digits = _BASE58[digit] + digits
    return digits


class _System(msgspec.Struct):
    datacrumbs: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Attributes(msgspec.Struct):
    system: _System


class _Jobspec(msgspec.Struct):
    """No more of it than we need: all of it, as Python objects, may be twenty times its size."""

    attributes: _Attributes


def metadata_in(jobspec: str | bytes) -> Metadata | None:
    """What a jobspec says about tracing; None when it says nothing. Raises `UserError`."""
    try:
        value = msgspec.json.decode(jobspec, type=_Jobspec).attributes.system.datacrumbs
        if value is msgspec.UNSET:
            return None
        if len(value) > MAX_BYTES:
            raise BadInputError(f"job metadata: longer than {MAX_BYTES} bytes")
        found = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise UserError("the jobspec that Flux has is not of version 1") from error
    return parse_value(found)


class _Execution(msgspec.Struct):
    nodelist: list[str] = []


class _Allotted(msgspec.Struct):
    """Of R (RFC 20)."""

    execution: _Execution


def node_list(job_id: str) -> str:
    """The nodes that a job was given, folded. Raises `UserError`."""
    answer = _flux_job("info", job_id, "R")
    try:
        found = msgspec.json.decode(answer, type=_Allotted).execution
    except (msgspec.DecodeError, UnicodeError) as error:
        raise UserError("the resource set that Flux has is not of version 1") from error
    return ",".join(found.nodelist)


def lookup(job_id: str) -> Metadata | None:
    """What the job asked for when it was submitted. Raises `UserError`."""
    return metadata_in(_flux_job("info", f58plain(job_id), "jobspec"))


def raise_exception(job_id: str, severity: int, note: str) -> None:
    """Add an exception to the job, which its user sees. Raises `UserError`."""
    _flux_job("raise", f"--type={EXCEPTION}", f"--severity={severity}", job_id, note)


def notes(job_id: str) -> list[str]:
    """What our hooks have told the job's user so far. Raises `UserError`."""
    lines = _flux_job("info", job_id, "eventlog").splitlines()
    try:
        contexts = [
            event["context"]
            for event in map(json.loads, filter(None, lines))
            if event["name"] == "exception"
        ]
        return [context["note"] for context in contexts if context["type"] == EXCEPTION]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError("the eventlog that Flux has is of another form") from error


def broker_rank() -> str:
    """The rank of this node's broker. Raises `UserError`."""
    return _run("flux", "getattr", "rank").strip()


def _flux_job(*arguments: str) -> str:
    return _run("flux", "job", *arguments)


def _run(*command: str) -> str:
    """The output of a command of Flux. Raises `UserError` with what it said."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=ASK_S,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except FileNotFoundError:
        raise UserError("flux: not found", hint="load Flux, or set PATH") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{' '.join(command[:3])}: no answer within {ASK_S:.0f} s") from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(f"{' '.join(command[:3])}: {said[-1].removeprefix('flux-job: ')}")
    return done.stdout
