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


class UserFunction(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One function of an ELF file: its file offset, its name, and its other names."""

    name: Name
    offset: Annotated[int, Meta(ge=0, le=2**48)]
    aliases: list[Name] = []


class SyscallLayer(
    Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="syscalls"
):
    """System calls by name, without prefix (``read``, ``openat``)."""

    name: LayerName
    functions: list[Name]
    mode: Mode = Mode.TRACE
    select: Select = Select.PROCESS


class UserLayer(
    Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="uprobe"
):
    """Functions of one ELF file, which ``build_id`` (hexadecimal) pins.

    A file without a build-id note is pinned by ``sha256:`` of its contents in ``digest``
    instead; exactly one of the two is set.
    """

    name: LayerName
    binary: AbsolutePath
    functions: list[UserFunction]
    build_id: BuildId | None = None
    digest: Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")] | None = None
    mode: Mode = Mode.TRACE
    select: Select = Select.PROCESS


Layer = SyscallLayer | UserLayer


class ProbeList(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The payload. Times are Unix seconds.

    ``host`` is the host it was made on (the record of it); ``cluster`` is compared with the
    system configuration of the daemon's host, ``machine`` with its architecture.
    """

    format: int
    uid: Annotated[int, Meta(ge=0, le=2**32 - 2)]
    user: Name
    created: UnixSeconds
    expires: UnixSeconds
    host: Name
    cluster: str
    machine: Name
    layers: list[Layer]

    def probe_count(self) -> int:
        """How many functions all layers name together."""
        return sum(len(layer.functions) for layer in self.layers)


def encode(probes: ProbeList) -> bytes:
    """The payload's bytes: JSON, keys in the order of the fields."""
    return msgspec.json.encode(probes)


def decode(payload: bytes) -> ProbeList:
    """Strict inverse of `encode`; raises `msgspec.ValidationError` or `DecodeError`."""
    return msgspec.json.decode(payload, type=ProbeList)
