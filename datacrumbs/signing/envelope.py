"""The signed envelope: DSSE v1 with one Ed25519 signature.

https://github.com/secure-systems-lab/dsse/blob/master/envelope.md says what the JSON looks like,
``protocol.md`` beside it what is signed: not the payload alone but its type as well, each with
its length in front (`pae`), so that nothing signed for another purpose passes for a probe file.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta, Struct

from datacrumbs.errors import UserError
from datacrumbs.probes.model import PAYLOAD_TYPE
from datacrumbs.signing.keys import key_id

SIGNATURE_BYTES = 64


class Signature(Struct, frozen=True, forbid_unknown_fields=True):
    """One signature: who (16 hexadecimal digits, `key_id`) and the 64 bytes in base64."""

    keyid: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
    sig: str


class Envelope(Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON object. DSSE allows several signatures; ours carry exactly one."""

    payload: str
    payloadType: str  # noqa: N815 (DSSE's spelling)
    signatures: Annotated[list[Signature], Meta(min_length=1, max_length=1)]


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: the bytes that are really signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign(payload: bytes, key: Ed25519PrivateKey) -> bytes:
    """The envelope (JSON) of ``payload``, signed with ``key``."""
    signature = Signature(
        keyid=key_id(key.public_key()), sig=_encode(key.sign(pae(PAYLOAD_TYPE, payload)))
    )
    envelope = Envelope(payload=_encode(payload), payloadType=PAYLOAD_TYPE, signatures=[signature])
    return msgspec.json.encode(envelope)


def verify(
    data: bytes,
    public_keys: Mapping[str, Ed25519PublicKey],
    *,
    source: str,
    keys_dir: Path,
) -> tuple[bytes, str]:
    """The payload of the envelope ``data`` and the id of the key that signed it.

    Raises `UserError` when ``data`` is no envelope of a probe list, names a key that is not
    in ``public_keys``, or does not carry that key's signature. ``source`` (the file) and
    ``keys_dir`` (where the keys came from) are for the message.
    """
    envelope = _decoded(data, source)
    payload = _base64(envelope.payload, source, "payload")
    signature = envelope.signatures[0]
    signed = _base64(signature.sig, source, "sig")
    key = public_keys.get(signature.keyid)
    if key is None:
        raise UserError(
            f"{source}: signed with key {signature.keyid}, which is not in {keys_dir}",
            hint="sign it again with datacrumbs_probe_configurator, or as root copy that key's "
            f"public file from the signing host to {keys_dir}",
        )
    try:
        key.verify(signed, pae(envelope.payloadType, payload))
    except InvalidSignature as error:
        raise UserError(
            f"{source}: bad signature: not what key {signature.keyid} signed",
            hint="make the file again with datacrumbs_probe_configurator",
        ) from error
    return payload, signature.keyid


def _decoded(data: bytes, source: str) -> Envelope:
    try:
        envelope = msgspec.json.decode(data, type=Envelope)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _not_an_envelope(source, "not the JSON of one") from error
    if envelope.payloadType != PAYLOAD_TYPE:
        raise _not_an_envelope(source, f"its type is {envelope.payloadType[:80]!r}")
    return envelope


def _not_an_envelope(source: str, why: str) -> UserError:
    return UserError(
        f"{source}: not a signed probe list: {why}",
        hint="make it with datacrumbs_probe_configurator",
    )


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _base64(text: str, source: str, field: str) -> bytes:
    """Decode ``text`` in the one way `_encode` writes it: no other alphabet, no stray bits."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _not_an_envelope(source, f"its {field} is not base64") from error
    if _encode(data) != text:
        raise _not_an_envelope(source, f"its {field} is not canonical base64")
    return data
