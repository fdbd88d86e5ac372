"""Key files: made once, guarded by owner and mode, and named when they are bad."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from datacrumbs.errors import UserError
from datacrumbs.signing import keys


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True, params=[0o022, 0o077, 0o000], ids=lambda mask: f"umask{mask:03o}")
def _umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.fixture
def private(tmp_path: Path) -> Path:
    return tmp_path / "etc" / "signing" / "private.pem"


@pytest.fixture
def public_dir(tmp_path: Path) -> Path:
    return tmp_path / "etc" / "keys"


def test_a_key_is_created_with_its_directories(private: Path, public_dir: Path) -> None:
    keyid = keys.create_private_key(private, public_dir)
    assert (_mode(private), _mode(private.parent)) == (0o600, 0o700)
    assert (_mode(public_dir / f"{keyid}.pem"), _mode(public_dir)) == (0o644, 0o755)
    assert _mode(public_dir.parent) == 0o755  # users reach the public keys through it
    assert os.listdir(private.parent) == ["private.pem"]
    assert os.listdir(public_dir) == [f"{keyid}.pem"]


def test_the_private_and_the_public_file_belong_together(private: Path, public_dir: Path) -> None:
    keyid = keys.create_private_key(private, public_dir)
    key = keys.load_private_key(private)
    keys.load_public_keys(public_dir)[keyid].verify(key.sign(b"text"), b"text")


def test_the_key_id_is_the_start_of_the_digest_of_the_raw_key() -> None:
    # RFC 8032, test 1: this secret key's public key; its SHA-256 by sha256sum(1)
    secret = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    public = ed25519.Ed25519PrivateKey.from_private_bytes(secret).public_key()
    assert keys.key_id(public) == "21fe31dfa154a261"


def test_a_key_is_never_overwritten(private: Path, public_dir: Path) -> None:
    keys.create_private_key(private, public_dir)
    before = private.read_bytes()
    with pytest.raises(UserError, match=r"private\.pem: exists; a key is never overwritten"):
        keys.create_private_key(private, public_dir)
    assert private.read_bytes() == before
    assert len(os.listdir(public_dir)) == 1


def test_an_empty_file_in_the_keys_place_is_not_overwritten(
    private: Path, public_dir: Path
) -> None:
    private.parent.mkdir(parents=True, mode=0o700)
    private.touch(0o600)
    with pytest.raises(UserError, match=r"private\.pem: not an unencrypted private key"):
        keys.ensure_private_key(private, public_dir)
    assert private.read_bytes() == b""


def test_ensure_creates_once_and_restores_the_public_file(private: Path, public_dir: Path) -> None:
    keyid = keys.ensure_private_key(private, public_dir)
    public = public_dir / f"{keyid}.pem"
    text = public.read_bytes()
    public.unlink()
    assert keys.ensure_private_key(private, public_dir) == keyid
    assert public.read_bytes() == text


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_private_key_that_others_can_read_is_refused(
    private: Path, public_dir: Path, mode: int
) -> None:
    keys.create_private_key(private, public_dir)
    private.chmod(mode)
    with pytest.raises(UserError) as caught:
        keys.load_private_key(private)
    assert f"{private}: mode {mode:04o}" in caught.value.message
    assert caught.value.hint == f"chmod 0600 {private}"


def test_a_private_key_in_a_directory_that_others_can_write_is_refused(
    private: Path, public_dir: Path
) -> None:
    keys.create_private_key(private, public_dir)
    private.parent.chmod(0o777)
    with pytest.raises(UserError, match="signing: mode 0777"):
        keys.load_private_key(private)


def test_somebody_elses_keys_are_refused(
    private: Path, public_dir: Path, ordinary_user: pwd.struct_passwd
) -> None:
    keyid = keys.create_private_key(private, public_dir)
    for path in (private, public_dir / f"{keyid}.pem"):
        os.chown(path, ordinary_user.pw_uid, -1)
    with pytest.raises(UserError, match=rf"private\.pem: owned by uid {ordinary_user.pw_uid}"):
        keys.load_private_key(private)
    with pytest.raises(UserError, match=rf"{keyid}\.pem: owned by uid {ordinary_user.pw_uid}"):
        keys.load_public_keys(public_dir)


def test_all_public_keys_of_a_directory_are_loaded(tmp_path: Path, public_dir: Path) -> None:
    ids = {keys.create_private_key(tmp_path / f"{n}" / "key.pem", public_dir) for n in range(3)}
    (public_dir / "README").write_text("not a key")
    (public_dir / "README").chmod(0o644)
    assert set(keys.load_public_keys(public_dir)) == ids


def _public_pem(key: ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _private_pem(key: ed25519.Ed25519PrivateKey, password: bytes = b"") -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


ED25519 = ed25519.Ed25519PrivateKey.generate()
P256 = ec.generate_private_key(ec.SECP256R1()).public_key()

BAD_PUBLIC = {
    "empty": (b"", "not a public key in PEM"),
    "text": (b"hello\n", "not a public key in PEM"),
    "cut": (_public_pem(ED25519.public_key())[:60], "not a public key in PEM"),
    "curve": (_public_pem(P256), "not an Ed25519 key"),
    "private": (_private_pem(ED25519), "a private key does not belong here"),
    "large": (b"x" * (keys.KEY_FILE_BYTES + 1), "larger than 65536 bytes"),
}


@pytest.mark.parametrize("case", BAD_PUBLIC)
def test_a_bad_public_key_is_named(public_dir: Path, tmp_path: Path, case: str) -> None:
    text, message = BAD_PUBLIC[case]
    keys.create_private_key(tmp_path / "key" / "key.pem", public_dir)
    (public_dir / "bad.pem").write_bytes(text)
    (public_dir / "bad.pem").chmod(0o644)
    with pytest.raises(UserError) as caught:
        keys.load_public_keys(public_dir)
    assert caught.value.message.startswith(f"{public_dir}/bad.pem: {message}")


def test_a_bad_private_key_is_named(private: Path, public_dir: Path) -> None:
    keys.create_private_key(private, public_dir)
    for text in (b"", b"hello", _public_pem(P256), _private_pem(ED25519, b"secret")):
        private.write_bytes(text)
        with pytest.raises(UserError, match=r"private\.pem: not an unencrypted private key"):
            keys.load_private_key(private)


def test_no_public_key_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing: No such file or directory"):
        keys.load_public_keys(tmp_path / "missing")
    empty = tmp_path / "empty"
    empty.mkdir()
    empty.chmod(0o755)
    with pytest.raises(UserError, match=r"empty: no public keys \(\*\.pem\)"):
        keys.load_public_keys(empty)


def test_a_public_key_that_others_can_write_is_refused(private: Path, public_dir: Path) -> None:
    keyid = keys.create_private_key(private, public_dir)
    (public_dir / f"{keyid}.pem").chmod(0o666)
    with pytest.raises(UserError, match=rf"{keyid}\.pem: mode 0666"):
        keys.load_public_keys(public_dir)
    (public_dir / f"{keyid}.pem").chmod(0o644)
    public_dir.chmod(0o777)
    with pytest.raises(UserError, match="keys: mode 0777"):
        keys.load_public_keys(public_dir)


def test_a_fifo_in_a_keys_place_does_not_hang(private: Path, public_dir: Path) -> None:
    keys.create_private_key(private, public_dir)
    private.unlink()
    os.mkfifo(private, 0o600)
    with pytest.raises(UserError, match=r"private\.pem: not a regular file"):
        keys.load_private_key(private)


def test_many_services_starting_at_once_agree_on_one_key(private: Path, public_dir: Path) -> None:
    start_read, start_write = os.pipe()
    children = []
    for _ in range(8):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.close(start_write)
                os.read(start_read, 1)
                keys.ensure_private_key(private, public_dir)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    os.close(start_read)
    os.close(start_write)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * 8
    keyid = keys.key_id(keys.load_private_key(private).public_key())
    assert set(keys.load_public_keys(public_dir)) == {keyid}
