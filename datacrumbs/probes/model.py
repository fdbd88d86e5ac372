"""What a probe file says: exactly which probes, for whom, until when, where.

This is the payload of the signed envelope (`datacrumbs.signing.envelope`). Decoding is
strict: a field we do not know is an error, so that an older daemon never half-understands
a newer file.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

FORMAT = 1
"""Version of the payload; a daemon takes only the one it knows."""

PAYLOAD_TYPE = "application/vnd.datacrumbs.probes+json"
"""DSSE payload type of a probe file."""

SOURCE_MAX = 1 << 18
"""Longest text of a custom program, in characters."""

Name = Annotated[str, Meta(min_length=1, max_length=255)]
LayerName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,31}\Z")]
BuildId = Annotated[str, Meta(pattern=r"^[0-9a-f]{2,64}\Z")]
AbsolutePath = Annotated[str, Meta(pattern=r"^/", max_length=4095)]
UnixSeconds = Annotated[int, Meta(ge=0, le=253402300799)]


class Mode(StrEnum):
    """``trace`` keeps every event, ``profile`` aggregates in the kernel."""

    TRACE = "trace"
    PROFILE = "profile"


class Select(StrEnum):
    """Whom a layer is recorded for: processes that joined the run, or the whole job."""

    PROCESS = "process"
    JOB = "job"


class ArgumentType(StrEnum):
    """How an argument is read: a number, or what a pointer points to."""

    INT = "int"  # signed, of `bytes` 1, 2, 4 or 8
    UINT = "uint"
    STRING = "string"  # up to NUL, `bytes` at most
    BYTES = "bytes"  # exactly `bytes`


class Argument(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An argument to keep, read at entry: ``index`` counts from 0; ``bytes`` is its size."""

    name: Name
    index: Annotated[int, Meta(ge=0, le=5)]
    type: ArgumentType = ArgumentType.INT
    bytes: Annotated[int, Meta(ge=1, le=256)] = 8


Arguments = Annotated[list[Argument], Meta(max_length=6)]


class UserFunction(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One function of an ELF file: its file offset, its name, and its other names."""

    name: Name
    offset: Annotated[int, Meta(ge=0, le=2**48)]
    aliases: list[Name] = []
    arguments: Arguments = []


class KernelFunction(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One function of the kernel, by the name ``/proc/kallsyms`` has, or a tracepoint.

    A tracepoint is ``group:event``; ``group:name`` of a pair (``name_enter``, ``name_exit``) is
    calls, ``block:block_rq`` requests to a device, ``nfs:nfs_rq`` to an NFS server. Arguments are
    numbers only.
    """

    name: Name
    arguments: Arguments = []


class UsdtPoint(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One USDT point; with ``returns``, the time from it to that point of the same provider."""

    provider: Name
    name: Name
    returns: Name | None = None
    arguments: Arguments = []


class _Layer(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind"):
    """What every layer has.

    Calls shorter than ``min_duration_ns``, and of one function on one CPU more than
    ``max_per_s`` a second (0: no limit), are filtered: counted, not kept.
    """

    name: LayerName
    mode: Mode = Mode.TRACE
    select: Select = Select.PROCESS
    min_duration_ns: Annotated[int, Meta(ge=0, le=2**62)] = 0
    max_per_s: Annotated[int, Meta(ge=0, le=2**31)] = 0


class _ElfLayer(_Layer, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A layer of one ELF file, which ``build_id`` (hexadecimal) pins.

    A file without a build-id note is pinned by ``sha256:`` of its contents in ``digest``
    instead; exactly one of the two is set.
    """

    binary: AbsolutePath
    build_id: BuildId | None = None
    digest: Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")] | None = None


class SyscallLayer(_Layer, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="syscalls"):
    """System calls by name, without prefix (``read``, ``openat``)."""

    functions: list[Name]


class UserLayer(_ElfLayer, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="uprobe"):
    """Functions of one ELF file."""

    functions: list[UserFunction]


class KernelLayer(_Layer, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="kprobe"):
    """Functions of the kernel."""

    functions: list[KernelFunction]


class UsdtLayer(_ElfLayer, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="usdt"):
    """USDT points of one ELF file."""

    functions: list[UsdtPoint]


class CustomLayer(_Layer, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="custom"):
    """A user's own BPF C, compiled where it runs; ``functions`` are the names it emits."""

    functions: list[Name]
    source: Annotated[str, Meta(min_length=1, max_length=SOURCE_MAX)]


Layer = SyscallLayer | UserLayer | KernelLayer | UsdtLayer | CustomLayer

PathPrefix = Annotated[str, Meta(pattern=r"^/", max_length=255)]


class ProbeList(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The payload. Times are Unix seconds.

    ``host`` is the host it was made on (the record of it); ``cluster`` is compared with the
    system configuration of the daemon's host, ``machine`` with its architecture. With
    ``include``, calls on files below none of these directories are filtered; ``exclude`` wins.
    """

    format: int
    uid: Annotated[int, Meta(ge=0, le=2**32 - 2)]
    user: Name
    created: UnixSeconds
    expires: UnixSeconds
    host: Name
    cluster: str
    machine: Name
    layers: Annotated[list[Layer], Meta(max_length=256)]
    include: Annotated[list[PathPrefix], Meta(max_length=16)] = []
    exclude: Annotated[list[PathPrefix], Meta(max_length=16)] = []

    def probe_count(self) -> int:
        """How many functions all layers name together."""
        return sum(len(layer.functions) for layer in self.layers)


def encode(probes: ProbeList) -> bytes:
    """The payload's bytes: JSON, keys in the order of the fields."""
    return msgspec.json.encode(probes)


def decode(payload: bytes) -> ProbeList:
    """Strict inverse of `encode`; raises `msgspec.ValidationError` or `DecodeError`."""
    return msgspec.json.decode(payload, type=ProbeList)
