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

from datacrumbs.acting import acting_as
from datacrumbs.config import KernelArguments, Policy
from datacrumbs.errors import UserError
from datacrumbs.probes.elf_functions import function_starts
from datacrumbs.probes.elf_identity import NotElfError, elf_identity
from datacrumbs.probes.file import CLOCK_SKEW_S
from datacrumbs.probes.kernel import plain_name
from datacrumbs.probes.kernel_arguments import not_a_number
from datacrumbs.probes.model import (
    FORMAT,
    Argument,
    ArgumentType,
    CustomLayer,
    KernelFunction,
    KernelLayer,
    ProbeList,
    SyscallLayer,
    UsdtLayer,
    UsdtPoint,
    UserFunction,
    UserLayer,
)
from datacrumbs.probes.usdt import usdt_points


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
        if isinstance(layer, UserLayer | UsdtLayer):
            with acting_as(peer.name, peer.uid, peer.gid):
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
        match layer:
            case SyscallLayer():
                _check_names(layer.name, layer.functions, "policy.syscalls", policy.syscalls)
            case KernelLayer():
                _check_kernel(layer, policy)
            case CustomLayer():
                _check_custom(layer, policy)
            case UserLayer() | UsdtLayer():
                for function in layer.functions:
                    _check_arguments(f"layer {layer.name!r}: {function.name}", function, policy)


def _check_layer_names(probes: ProbeList) -> None:
    seen = set()
    for layer in probes.layers:
        if layer.name in seen:
            raise _refusal("layers", f"two layers are called {layer.name!r}")
        seen.add(layer.name)


def _texts(probes: ProbeList) -> Iterator[str]:
    yield from (probes.host, probes.machine, *probes.include, *probes.exclude)
    for layer in probes.layers:
        if isinstance(layer, UserLayer | UsdtLayer):
            yield layer.binary
        if isinstance(layer, CustomLayer):
            # a text of many lines, whose tabs are as good as blanks
            yield layer.source.replace("\n", " ").replace("\t", " ")
        for function in layer.functions:
            yield from _names(function)


def _names(function: str | UserFunction | KernelFunction | UsdtPoint) -> Iterator[str]:
    if isinstance(function, str):
        yield function
        return
    yield function.name
    yield from (argument.name for argument in function.arguments)
    if isinstance(function, UserFunction):
        yield from function.aliases
    if isinstance(function, UsdtPoint):
        yield from (function.provider, function.returns or "")


def _check_names(layer: str, names: list[str], rule: str, allowed: tuple[str, ...]) -> None:
    for name in names:
        if not _matches(name, allowed):
            raise _refusal(
                rule,
                f"layer {layer!r}: {name!r} is not allowed",
                hint="allowed: " + " ".join(allowed),
            )


def _check_kernel(layer: KernelLayer, policy: Policy) -> None:
    # a tracepoint counts by its name: the group in front of it is the user's own words
    names = [plain_name(function.name) for function in layer.functions]
    _check_names(layer.name, names, "policy.kernel_functions", policy.kernel_functions)
    for function in layer.functions:
        where = f"layer {layer.name!r}: {function.name}"
        _check_arguments(where, function, policy)
        if function.arguments and policy.kernel_arguments is KernelArguments.NONE:
            raise _refusal("policy.kernel_arguments", f"{where}: no arguments are allowed")
        if policy.kernel_arguments is KernelArguments.NUMBERS and (why := not_a_number(function)):
            raise _refusal(
                "policy.kernel_arguments",
                f"{where}: {why}",
                hint="pointers of the kernel's are shown only where policy.kernel_arguments is all",
            )


def _check_custom(layer: CustomLayer, policy: Policy) -> None:
    if not policy.custom:
        raise _refusal(
            "policy.custom",
            f"layer {layer.name!r}: custom programs are not allowed",
            hint="your administrator decides, in system.yaml",
        )


def _check_arguments(
    where: str, function: UserFunction | KernelFunction | UsdtPoint, policy: Policy
) -> None:
    seen: set[str] = set()
    for argument in function.arguments:
        if argument.name in seen:
            raise _refusal("arguments", f"{where}: two are called {argument.name!r}")
        seen.add(argument.name)
        if _is_odd(argument):
            raise _refusal(
                "arguments", f"{where}: {argument.name!r}: no number has {argument.bytes} bytes"
            )
    size = sum(argument.bytes for argument in function.arguments)
    if size > policy.max_argument_bytes:
        raise _refusal(
            "policy.max_argument_bytes",
            f"{where}: {size} bytes of arguments, at most {policy.max_argument_bytes}",
        )


def _is_odd(argument: Argument) -> bool:
    number = argument.type in (ArgumentType.INT, ArgumentType.UINT)
    return number and argument.bytes not in (1, 2, 4, 8)


def _matches(text: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns)


def _check_binary(layer: UserLayer | UsdtLayer, peer: Peer, policy: Policy) -> None:
    """Runs with the rights of ``peer``, so that nobody learns of files they cannot read."""
    where = f"layer {layer.name!r}: {layer.binary}"
    _check_path(where, layer.binary, policy)
    with _opened(where, layer.binary, peer) as fd:
        # what a symbolic link leads to must be allowed as well as its own name
        _check_path(where, os.readlink(f"/proc/self/fd/{fd}"), policy)  # noqa: PTH115
        try:
            build_id, digest = elf_identity(fd)
            _check_identity(where, layer, build_id, digest)
            if isinstance(layer, UserLayer):
                _check_offsets(where, layer, fd)
            else:
                _check_points(where, layer, fd)
        except NotElfError as error:
            raise _refusal("binary", f"{where}: {error.message}") from error


def _check_identity(
    where: str, layer: UserLayer | UsdtLayer, build_id: str | None, digest: str | None
) -> None:
    if (layer.build_id, layer.digest) != (build_id, digest):
        raise _refusal(
            "build_id",
            f"{where}: is {build_id or digest}, the probe list says "
            f"{layer.build_id or layer.digest or 'nothing'}",
            hint="the file has changed: run datacrumbs_probe_configurator again",
        )


def _check_offsets(where: str, layer: UserLayer, fd: int) -> None:
    starts = function_starts(fd)
    for function in layer.functions:
        if function.offset not in starts:
            raise _refusal(
                "offset",
                f"{where}: no function that may be probed begins at {function.offset:#x} "
                f"({function.name})",
            )


def _check_points(where: str, layer: UsdtLayer, fd: int) -> None:
    """That the file has the points: the daemon takes their places from it as well."""
    there = {(point.provider, point.name) for point in usdt_points(fd)}
    for function in layer.functions:
        for name in (function.name, function.returns):
            if name is not None and (function.provider, name) not in there:
                raise _refusal("usdt", f"{where}: has no point {function.provider}:{name}")


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
