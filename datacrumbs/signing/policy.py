"""What the signing service signs, rule by rule.

Each refusal names its rule; those with ``policy.`` in front are keys of ``system.yaml``.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from datacrumbs.config import Policy
from datacrumbs.errors import UserError
from datacrumbs.probes.elf_functions import function_starts
from datacrumbs.probes.elf_identity import NotElfError, elf_identity
from datacrumbs.probes.file import CLOCK_SKEW_S
from datacrumbs.probes.model import FORMAT, ProbeList, SyscallLayer, UserLayer


@dataclass(frozen=True, slots=True)
class Peer:
    """Who asks, as the kernel says (SO_PEERCRED): process, user, and the user's login group."""

    pid: int
    uid: int
    gid: int
    name: str


def check(probes: ProbeList, peer: Peer, policy: Policy, *, cluster: str, now: float) -> None:
    """Raise `UserError` naming the rule that ``probes`` breaks; return if it breaks none.

    ``now`` is in Unix seconds. Opens the binaries as the user who asks, for which it changes
    this process's effective user and groups for a moment: call it as root, in a process with
    one thread that does nothing else.
    """
    _check_who(probes, peer, policy)
    _check_where(probes, cluster)
    _check_when(probes, policy, now)
    _check_what(probes, policy)
    for layer in probes.layers:
        if isinstance(layer, UserLayer):
            with as_user(peer):
                _check_binary(layer, peer, policy)


def _refusal(rule: str, why: str, *, hint: str = "") -> UserError:
    return UserError(f"{rule}: {why}", hint=hint)


def _check_who(probes: ProbeList, peer: Peer, policy: Policy) -> None:
    if peer.uid < policy.min_uid:
        raise _refusal(
            "policy.min_uid",
            f"uid {peer.uid} ({peer.name}), at least {policy.min_uid}",
            hint="ask as an ordinary user",
        )
    if probes.uid != peer.uid:
        raise _refusal("uid", f"uid {peer.uid} ({peer.name}) asks for uid {probes.uid}")
    if probes.user != peer.name:
        raise _refusal("user", f"uid {peer.uid} is {peer.name!r}, not {probes.user!r}")


def _check_where(probes: ProbeList, cluster: str) -> None:
    if probes.format != FORMAT:
        raise _refusal(
            "format",
            f"{probes.format}, this service knows {FORMAT}",
            hint="use the configurator of the same datacrumbs version as the service",
        )
    if probes.cluster != cluster:
        raise _refusal("cluster", f"{probes.cluster!r}, this service signs for {cluster!r}")


def _check_when(probes: ProbeList, policy: Policy, now: float) -> None:
    lifetime_s = probes.expires - probes.created
    if probes.created > now + CLOCK_SKEW_S:
        raise _refusal("created", f"{probes.created - now:.0f} s in the future")
    if probes.expires <= now:
        raise _refusal("expires", f"{now - probes.expires:.0f} s ago")
    if lifetime_s > policy.max_lifetime_s:
        raise _refusal("policy.max_lifetime_s", f"{lifetime_s} s, at most {policy.max_lifetime_s}")


def _check_what(probes: ProbeList, policy: Policy) -> None:
    count = probes.probe_count()
    if count == 0:
        raise _refusal("layers", "no functions")
    if count > policy.max_functions:
        raise _refusal("policy.max_functions", f"{count} functions, at most {policy.max_functions}")
    _check_layer_names(probes)
    # names end up on root's terminal and in reports
    for text in _texts(probes):
        if not text.isprintable():
            raise _refusal("names", f"{text[:80]!r} has characters that cannot be printed")
    for layer in probes.layers:
        if isinstance(layer, SyscallLayer):
            _check_syscalls(layer, policy)
        elif not isinstance(layer, UserLayer):
            raise _refusal("layers", f"layer {layer.name!r}: this version signs no such layer")


def _check_layer_names(probes: ProbeList) -> None:
    seen = set()
    for layer in probes.layers:
        if layer.name in seen:
            raise _refusal("layers", f"two layers are called {layer.name!r}")
        seen.add(layer.name)


def _texts(probes: ProbeList) -> Iterator[str]:
    yield from (probes.host, probes.machine)
    for layer in probes.layers:
        if isinstance(layer, SyscallLayer):
            yield from layer.functions
        elif isinstance(layer, UserLayer):
            yield layer.binary
            for function in layer.functions:
                yield function.name
                yield from function.aliases


def _check_syscalls(layer: SyscallLayer, policy: Policy) -> None:
    for name in layer.functions:
        if not _matches(name, policy.syscalls):
            raise _refusal(
                "policy.syscalls",
                f"layer {layer.name!r}: {name!r} is not allowed",
                hint="allowed: " + " ".join(policy.syscalls),
            )


def _matches(text: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns)


def _check_binary(layer: UserLayer, peer: Peer, policy: Policy) -> None:
    """Runs with the rights of ``peer``, so that nobody learns of files they cannot read."""
    where = f"layer {layer.name!r}: {layer.binary}"
    _check_path(where, layer.binary, policy)
    with _opened(where, layer.binary, peer) as fd:
        # what a symbolic link leads to must be allowed as well as its own name
        _check_path(where, os.readlink(f"/proc/self/fd/{fd}"), policy)  # noqa: PTH115
        try:
            build_id, digest = elf_identity(fd)
            starts = function_starts(fd)
        except NotElfError as error:
            raise _refusal("binary", f"{where}: {error.message}") from error
    if (layer.build_id, layer.digest) != (build_id, digest):
        raise _refusal(
            "build_id",
            f"{where}: is {build_id or digest}, the probe list says "
            f"{layer.build_id or layer.digest or 'nothing'}",
            hint="the file has changed: run datacrumbs_probe_configurator again",
        )
    for function in layer.functions:
        if function.offset not in starts:
            raise _refusal(
                "offset", f"{where}: no function begins at {function.offset:#x} ({function.name})"
            )


def _check_path(where: str, path: str, policy: Policy) -> None:
    # "/usr/lib/../../home" would match "/usr/lib/*"
    if any(part in (".", "..", "") for part in path.split("/")[1:]):
        raise _refusal("binary", f"{where}: not a plain absolute path")
    if not _matches(path, policy.binaries):
        raise _refusal(
            "policy.binaries",
            f"{where}: {path} is not allowed",
            hint="allowed: " + " ".join(policy.binaries),
        )


@contextlib.contextmanager
def _opened(where: str, path: str, peer: Peer) -> Iterator[int]:
    # O_NONBLOCK: the open of a FIFO or of a device would wait or act otherwise
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise _refusal("binary", f"{where}: {peer.name} cannot open it: {why}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise _refusal("binary", f"{where}: not a regular file")
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def as_user(peer: Peer) -> Iterator[None]:
    """Become ``peer`` for file access only.

    The real and the saved user stay root, so ``peer`` can neither trace nor signal this process.
    """
    groups = os.getgroups()
    os.setgroups(os.getgrouplist(peer.name, peer.gid))
    os.setegid(peer.gid)
    os.seteuid(peer.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
