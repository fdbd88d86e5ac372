"""The probe file: a signed envelope, gzipped. Written for users, read by root.

Root never works on a file that its owner can still change: it is read once, whole, bounded,
and everything after (unpacking, signature, decoding) is done on that copy.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import secrets
import stat
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from datacrumbs.errors import BadInputError, UserError
from datacrumbs.printable import printable
from datacrumbs.probes import model
from datacrumbs.regular_file import open_regular

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

CLOCK_SKEW_S = 300
"""How far the clocks of two hosts may be apart."""

AGAIN = "make it again with datacrumbs_probe_configurator"


class Verified(NamedTuple):
    """A probe file that root may act on; ``sha256`` is of the file as it lies on disk."""

    probes: model.ProbeList
    keyid: str
    sha256: str


class RawFile(NamedTuple):
    """A probe file's bytes: as on disk, and unpacked."""

    compressed: bytes
    envelope: bytes


class _Version(msgspec.Struct, frozen=True):
    format: int


def write_probe_file(path: Path, envelope: bytes) -> None:
    """Write ``envelope`` gzipped to ``path``, which is complete or untouched.

    The same envelope gives the same bytes. A symbolic link is followed; anything but a
    regular file is refused, so that ``/dev/stdout`` is never replaced.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise BadInputError(f"{path}: not a regular file", hint="give the name of a file to write")
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.new")
    try:
        with _created(temporary) as fd, open(fd, "wb") as file:
            file.write(gzip.compress(envelope, mtime=0))
            file.flush()
            os.fsync(fd)
            temporary.rename(path)
    except OSError as error:
        raise UserError(f"{path}: cannot write it: {error.strerror}") from error


@contextlib.contextmanager
def _created(path: Path) -> Iterator[int]:
    """A new file, open for writing, that is removed again if the caller fails."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        yield fd
    except BaseException:
        path.unlink()
        raise


def read_probe_file(source: Path | int, *, max_bytes: int, name: str = "") -> RawFile:
    """Read and unpack a probe file, given by path or by descriptor (read from its start).

    ``max_bytes`` bounds the probe list inside, which base64 makes a third larger; the file
    itself may not be larger either. Raises `UserError` with one line when it is missing, not
    a regular file, not gzip, truncated, damaged or too large.
    """
    name = name or str(source)
    limit = max_bytes * 4 // 3 + 4096
    compressed = _read(source, name, limit)
    return RawFile(compressed, _unpacked(compressed, name, limit, max_bytes))


def _read(source: Path | int, name: str, limit: int) -> bytes:
    try:
        fd = os.dup(source) if isinstance(source, int) else open_regular(source)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise BadInputError(f"{name}: not a regular file")
            data = bytearray()
            while piece := os.pread(fd, min(1 << 20, limit + 1 - len(data)), len(data)):
                data += piece
        finally:
            os.close(fd)
    except OSError as error:
        raise BadInputError(f"{name}: {error.strerror}") from error
    if len(data) > limit:
        raise BadInputError(f"{name}: too large: more than {limit} bytes")
    return bytes(data)


def _unpacked(compressed: bytes, name: str, limit: int, max_bytes: int) -> bytes:
    if not compressed.startswith(b"\x1f\x8b"):
        raise BadInputError(f"{name}: not a probe file (not gzip)", hint=AGAIN)
    unpacker = zlib.decompressobj(wbits=31)
    try:
        envelope = unpacker.decompress(compressed, limit + 1)
    except zlib.error as error:
        raise BadInputError(f"{name}: damaged: {error}", hint=AGAIN) from error
    if len(envelope) > limit:
        raise BadInputError(
            f"{name}: too large: unpacks to more than {max_bytes} bytes of probe list",
            hint="the limit is limits.probe_file_bytes of the system configuration",
        )
    if not unpacker.eof:
        raise BadInputError(f"{name}: truncated", hint=AGAIN)
    if unpacker.unused_data:
        raise BadInputError(f"{name}: damaged: {len(unpacker.unused_data)} bytes after its end")
    return envelope


def load_verified(
    source: Path | int,
    *,
    public_keys: Mapping[str, Ed25519PublicKey],
    keys_dir: Path,
    max_bytes: int,
    now: float,
    cluster: str,
    machine: str,
    expect_user_uid: int | None = None,
    name: str = "",
) -> Verified:
    """Read, verify and decode a probe file.

    ``now`` is in Unix seconds. ``keys_dir`` is where ``public_keys`` came from, ``name`` what
    to call a descriptor; both are for messages. Raises `UserError` with one line when the
    file is not to be acted on: see `read_probe_file`, `envelope.verify`, and besides: unknown
    format or field, made for another user, cluster or machine, expired, not yet valid.
    """
    # here, so that who only writes a probe file does not load the cryptography library
    from datacrumbs.signing.envelope import verify

    name = name or str(source)
    raw = read_probe_file(source, max_bytes=max_bytes, name=name)
    payload, keyid = verify(raw.envelope, public_keys, source=name, keys_dir=keys_dir)
    probes = decode_payload(payload, source=name)
    _check_time(probes, name, now)
    _check_place(probes, name, cluster, machine)
    if expect_user_uid is not None and probes.uid != expect_user_uid:
        raise UserError(
            f"{name}: made for {printable(probes.user)} (uid {probes.uid}), "
            f"not for uid {expect_user_uid}"
        )
    return Verified(probes, keyid, hashlib.sha256(raw.compressed).hexdigest())


def decode_payload(payload: bytes, *, source: str) -> model.ProbeList:
    """`model.decode` with one-line errors; says so if the format is another version's."""
    try:
        version = msgspec.json.decode(payload, type=_Version).format
        if version != model.FORMAT:
            raise UserError(
                f"{source}: format {version}, this version of datacrumbs knows {model.FORMAT}",
                hint="use the same version of datacrumbs everywhere",
            )
        return model.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInputError(f"{source}: not a probe list: {printable(str(error))}") from error


def _check_time(probes: model.ProbeList, name: str, now: float) -> None:
    if probes.expires <= now:
        raise UserError(f"{name}: expired {_utc(probes.expires)}", hint=AGAIN)
    if probes.created > now + CLOCK_SKEW_S:
        raise UserError(
            f"{name}: not valid before {_utc(probes.created)}; this host's clock says {_utc(now)}",
            hint="set the clocks of the hosts",
        )


def _check_place(probes: model.ProbeList, name: str, cluster: str, machine: str) -> None:
    for what, theirs, ours in (
        ("cluster", probes.cluster, cluster),
        ("machine", probes.machine, machine),
    ):
        if theirs != ours:
            raise UserError(
                f"{name}: made for {what} {theirs!r}, this host's is {ours!r}",
                hint="make it on a login node of this cluster",
            )


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
