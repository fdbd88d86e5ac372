"""The envelope: what was signed comes back, and nothing else does."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from datacrumbs.errors import UserError
from datacrumbs.probes.model import PAYLOAD_TYPE
from datacrumbs.signing.envelope import pae, sign, verify
from datacrumbs.signing.keys import key_id

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEYID = key_id(KEY.public_key())
KEYS_DIR = Path("/etc/keys")
PAYLOAD = b'{"format":1,"user":"someone"}'
SIGNED = sign(PAYLOAD, KEY)


def _verify(data: bytes, key: Ed25519PrivateKey = KEY) -> tuple[bytes, str]:
    public = key.public_key()
    return verify(data, {key_id(public): public}, source="p.json.gz", keys_dir=KEYS_DIR)


def _changed(**fields: Any) -> bytes:
    return json.dumps(json.loads(SIGNED) | fields).encode()


@given(st.binary(max_size=4096))
def test_what_was_signed_comes_back(payload: bytes) -> None:
    assert _verify(sign(payload, KEY)) == (payload, KEYID)


@given(st.integers(0, len(SIGNED) - 1), st.integers(1, 255))
def test_any_changed_byte_is_refused(position: int, flip: int) -> None:
    changed = bytearray(SIGNED)
    changed[position] ^= flip
    with pytest.raises(UserError):
        _verify(bytes(changed))


def test_every_single_bit_is_guarded() -> None:
    for position in range(len(SIGNED)):
        for bit in range(8):
            changed = bytearray(SIGNED)
            changed[position] ^= 1 << bit
            with pytest.raises(UserError):
                _verify(bytes(changed))


def test_every_truncation_is_refused() -> None:
    for size in range(len(SIGNED)):
        with pytest.raises(UserError, match="not a signed probe list"):
            _verify(SIGNED[:size])


@given(st.binary(max_size=300))
def test_garbage_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(UserError, match=r"^p\.json\.gz: not a signed probe list"):
        _verify(data)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(UserError, match="not a signed probe list"):
        _verify(b'{"payload":' + b"[" * 100_000)


def test_the_encoding_that_is_signed_is_dsse() -> None:
    # the example of DSSE's protocol.md
    expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert pae("http://example.com/HelloWorld", b"hello world") == expected


def test_the_json_is_dsse() -> None:
    envelope = json.loads(SIGNED)
    assert envelope["payloadType"] == PAYLOAD_TYPE
    assert base64.b64decode(envelope["payload"]) == PAYLOAD
    (signature,) = envelope["signatures"]
    assert signature["keyid"] == KEYID
    KEY.public_key().verify(base64.b64decode(signature["sig"]), pae(PAYLOAD_TYPE, PAYLOAD))


def test_an_unknown_key_is_named_with_the_directory() -> None:
    other = Ed25519PrivateKey.generate()
    with pytest.raises(UserError) as caught:
        _verify(SIGNED, other)
    assert KEYID in caught.value.message
    assert str(KEYS_DIR) in caught.value.message


def test_a_signature_under_a_borrowed_key_id_is_bad() -> None:
    forged = json.loads(sign(PAYLOAD, Ed25519PrivateKey.generate()))
    forged["signatures"][0]["keyid"] = KEYID
    with pytest.raises(UserError, match="bad signature"):
        _verify(json.dumps(forged).encode())


def test_a_payload_signed_as_another_type_is_refused() -> None:
    signature = base64.b64encode(KEY.sign(pae("text/plain", PAYLOAD))).decode()
    entry = {"keyid": KEYID, "sig": signature}
    with pytest.raises(UserError, match="its type is 'text/plain'"):
        _verify(_changed(payloadType="text/plain", signatures=[entry]))
    with pytest.raises(UserError, match="bad signature"):
        _verify(_changed(signatures=[entry]))


@pytest.mark.parametrize("count", [0, 2])
def test_one_signature_is_carried(count: int) -> None:
    with pytest.raises(UserError, match="not a signed probe list"):
        _verify(_changed(signatures=json.loads(SIGNED)["signatures"] * count))


def test_only_one_spelling_of_base64_is_taken() -> None:
    payload = base64.b64encode(PAYLOAD + b"\xff\xff").decode()  # ends in "//8=" or alike
    for spelling in (payload.replace("/", "_"), payload.rstrip("="), payload + "\n"):
        assert spelling != payload
        with pytest.raises(UserError, match="its payload is not"):
            _verify(_changed(payload=spelling))


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(UserError, match="not a signed probe list"):
        _verify(_changed(comment="hello"))
