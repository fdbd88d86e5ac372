"""Key files: the signing host's private key, and directories of public keys.

Both are PEM. A public key's file is ``<key id>.pem``; a directory may hold several, so that a
new key can be rolled out before the old one is dropped. Whoever can change one of these files
can sign or make others trust a forgery, so owner and mode are checked each time one is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from datacrumbs.errors import UserError

KEY_FILE_BYTES = 64 * 1024
"""A key file is smaller than this; anything larger is not one."""


class KeyExistsError(UserError):
    """There is a key already; it is never overwritten."""


def key_id(key: Ed25519PublicKey) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the raw public key."""
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


def create_private_key(path: Path, public_dir: Path) -> str:
    """Create the key ``path`` (mode 0600) and its public file; returns the key id.

    Missing directories are made: the key's with mode 0700, ``public_dir`` with 0755. Raises
    `UserError` when ``path`` exists: a key is never overwritten, also not by a second service
    that starts at the same moment.
    """
    _make_directories(path.parent, 0o700)
    key = Ed25519PrivateKey.generate()
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        _write_atomically(path, text, 0o600, replace=False)
    except FileExistsError as error:
        raise KeyExistsError(
            f"{path}: exists; a key is never overwritten",
            hint="move it away first if you want a new key",
        ) from error
    return publish_public_key(key, public_dir)


def ensure_private_key(path: Path, public_dir: Path) -> str:
    """The id of the key ``path``, which is created when there is none.

    Its public file is written again if it has gone missing.
    """
    if not path.exists():
        with contextlib.suppress(KeyExistsError):
            return create_private_key(path, public_dir)
    return publish_public_key(load_private_key(path), public_dir)


def publish_public_key(key: Ed25519PrivateKey, public_dir: Path) -> str:
    """Write ``<key id>.pem`` (0644) into ``public_dir`` unless it is there; returns the id."""
    public = key.public_key()
    keyid = key_id(public)
    _make_directories(public_dir, 0o755)
    text = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    path = public_dir / f"{keyid}.pem"
    if not path.exists() or _read_key_file(path, 0o022) != text:
        _write_atomically(path, text, 0o644, replace=True)
    return keyid


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """The key in ``path``.

    Raises `UserError` when it is missing, not an unencrypted Ed25519 key, owned by somebody
    else, readable by group or others, or in a directory that others can write.
    """
    _check_directory(path.parent)
    text = _read_key_file(path, 0o077)
    try:
        key = load_pem_private_key(text, password=None)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not an unencrypted private key in PEM") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{path}: not an Ed25519 key")
    return key


def load_public_keys(directory: Path) -> dict[str, Ed25519PublicKey]:
    """Every ``*.pem`` of ``directory`` by key id; at least one.

    Raises `UserError` that names the file when one is not an Ed25519 public key, or when (as
    root) somebody other than root can change it or the directory.
    """
    _check_directory(directory)
    keys = [_load_public_key(path) for path in sorted(directory.glob("*.pem"))]
    if not keys:
        raise UserError(
            f"{directory}: no public keys (*.pem)",
            hint="as root: copy them there from the same directory of the signing host",
        )
    return {key_id(key): key for key in keys}


def _load_public_key(path: Path) -> Ed25519PublicKey:
    text = _read_key_file(path, 0o022)
    if b"PRIVATE KEY" in text:
        raise UserError(
            f"{path}: a private key does not belong here",
            hint="remove it from this host, and make a new key if others could have read it",
        )
    try:
        key = load_pem_public_key(text)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not a public key in PEM") from error
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"{path}: not an Ed25519 key")
    return key


def _read_key_file(path: Path, forbidden: int) -> bytes:
    """The contents of ``path``, a regular file of ours without any mode bit of ``forbidden``."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path}: not a regular file")
        _check_owner(path, status, forbidden)
        text = file.read(KEY_FILE_BYTES + 1)
    if len(text) > KEY_FILE_BYTES:
        raise UserError(f"{path}: larger than {KEY_FILE_BYTES} bytes, not a key")
    return text


def _check_directory(directory: Path) -> None:
    try:
        status = directory.stat()
    except OSError as error:
        raise UserError(f"{directory}: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise UserError(f"{directory}: not a directory")
    _check_owner(directory, status, 0o022)


def _check_owner(path: Path, status: os.stat_result, forbidden: int) -> None:
    """An ordinary user may use the keys of root; root uses nobody else's."""
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid not in (0, os.geteuid()):
        raise UserError(f"{path}: owned by uid {status.st_uid}", hint=f"chown root {path}")
    if mode & forbidden:
        allowed = 0o777 & ~forbidden
        raise UserError(
            f"{path}: mode {mode:04o} lets others at it", hint=f"chmod {mode & allowed:04o} {path}"
        )


def _make_directories(directory: Path, mode: int) -> None:
    """`mkdir -p`: ``mode`` for ``directory`` if it is made, 0755 for its parents."""
    for missing in reversed([d for d in (directory, *directory.parents) if not d.exists()]):
        wanted = mode if missing == directory else 0o755
        try:
            with contextlib.suppress(FileExistsError):
                missing.mkdir(wanted)
                missing.chmod(wanted)  # whatever the umask took away
        except OSError as error:
            raise UserError(f"{missing}: {error.strerror}") from error
    _check_directory(directory)


def _write_atomically(path: Path, text: bytes, mode: int, *, replace: bool) -> None:
    """Write ``path`` so that it is complete or absent, also after a power cut.

    Raises `FileExistsError` when it exists and ``replace`` is not set.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        temporary.unlink(missing_ok=True)
        _write_new(temporary, text, mode)
        if replace:
            temporary.rename(path)
        else:
            path.hardlink_to(temporary)  # unlike rename, this fails when the name is taken
        _sync_directory(path.parent)
    except FileExistsError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot write it: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _write_new(path: Path, text: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(text)
        file.flush()
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
