"""The probe file: written whole, read bounded, and refused in one clear line."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import random
import stat
import threading
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from datacrumbs.errors import UserError
from datacrumbs.probes import model
from datacrumbs.probes.file import (
    Verified,
    load_verified,
    read_probe_file,
    write_probe_file,
)
from datacrumbs.signing.envelope import sign
from datacrumbs.signing.keys import key_id

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEYID = key_id(KEY.public_key())
NOW = 1_800_000_000
MAX_BYTES = 1 << 20

PROBES = model.ProbeList(
    format=model.FORMAT,
    uid=1234,
    user="someone",
    created=NOW,
    expires=NOW + 3600,
    host="login1",
    cluster="tuxedo",
    machine="x86_64",
    layers=[model.SyscallLayer(name="sys", functions=["read"])],
)


def _write(path: Path, payload: bytes | None = None, **changes: Any) -> Path:
    if payload is None:
        payload = model.encode(msgspec.structs.replace(PROBES, **changes))
    write_probe_file(path, sign(payload, KEY))
    return path


def _load(path: Path | int, **changes: Any) -> Verified:
    settings: dict[str, Any] = {
        "public_keys": {KEYID: KEY.public_key()},
        "keys_dir": Path("/etc/keys"),
        "max_bytes": MAX_BYTES,
        "now": NOW,
        "cluster": "tuxedo",
        "machine": "x86_64",
    }
    return load_verified(path, **(settings | changes))


def _refused(path: Path | int, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        _load(path, **changes)
    assert caught.value.message.isprintable()
    return caught.value.message


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    path = _write(tmp_path / "p.json.gz")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert _load(path, expect_user_uid=1234) == (PROBES, KEYID, digest)


def test_a_descriptor_is_read_from_its_start_and_stays_open(tmp_path: Path) -> None:
    with open(_write(tmp_path / "p.json.gz"), "rb") as file:
        file.seek(17)
        assert _load(file.fileno()).probes == PROBES
        assert _load(file.fileno()).probes == PROBES


def test_the_same_envelope_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = _write(tmp_path / "a"), _write(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes()[4:8] == b"\0\0\0\0"  # no time in the header
    assert gzip.decompress(first.read_bytes()) == sign(model.encode(PROBES), KEY)


def test_an_old_file_is_replaced_whole_and_nothing_is_left_beside(tmp_path: Path) -> None:
    path = tmp_path / "p.json.gz"
    path.write_bytes(b"old" * 10_000)
    with open(path, "rb") as old:
        _write(path)
        assert old.read() == b"old" * 10_000  # who reads the old one is not disturbed
    assert _load(path).probes == PROBES
    assert os.listdir(tmp_path) == ["p.json.gz"]
    before = os.umask(0)
    os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~before


def test_a_symbolic_link_is_followed_when_writing(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    _write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert _load(tmp_path / "target").probes == PROBES


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, message in {
        tmp_path: f"{tmp_path}: not a regular file",
        tmp_path / "fifo": f"{tmp_path}/fifo: not a regular file",
        Path("/dev/null"): "/dev/null: not a regular file",
        tmp_path / "no" / "p.gz": f"{tmp_path}/no/p.gz: cannot write it: No such file or directory",
    }.items():
        with pytest.raises(UserError) as caught:
            write_probe_file(path, b"{}")
        assert caught.value.message == message
    assert os.listdir(tmp_path) == ["fifo"]
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = _write(tmp_path / "p").read_bytes()
    cut = tmp_path / "cut"
    for size in range(len(whole)):
        cut.write_bytes(whole[:size])
        message = _refused(cut)
        expected = "truncated" if size >= 2 else "not a probe file (not gzip)"
        assert message == f"{cut}: {expected}"


def test_every_damaged_byte_is_refused(tmp_path: Path) -> None:
    whole = _write(tmp_path / "p").read_bytes()
    bad = tmp_path / "bad"
    generator = random.Random(1)
    # bytes 4 to 9 of the header (time, flags, system) say nothing about the contents
    for position in [n for n in range(len(whole)) if not 4 <= n <= 9]:
        changed = bytearray(whole)
        changed[position] ^= generator.randrange(1, 256)
        bad.write_bytes(changed)
        with contextlib.suppress(EOFError, OSError, zlib.error):
            if gzip.decompress(changed) == gzip.decompress(whole):
                continue  # the bits that fill up deflate's last byte
        assert str(bad) in _refused(bad)


def test_bytes_after_the_end_are_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "p")
    whole = path.read_bytes()
    for tail in (b"x", whole):
        path.write_bytes(whole + tail)
        assert _refused(path) == f"{path}: damaged: {len(tail)} bytes after its end"


def test_a_gzip_bomb_is_refused_without_unpacking_it(tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    packer = zlib.compressobj(9, wbits=31)
    path.write_bytes(b"".join(packer.compress(bytes(1 << 20)) for _ in range(512)) + packer.flush())
    assert path.stat().st_size < MAX_BYTES
    tracemalloc.start()
    message = _refused(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert message == f"{path}: too large: unpacks to more than {MAX_BYTES} bytes of probe list"
    assert peak_bytes < 8 * MAX_BYTES


def test_a_large_file_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with open(path, "wb") as file:
        file.write(b"\x1f\x8b")
        file.truncate(1 << 40)
    assert _refused(path) == f"{path}: too large: more than {MAX_BYTES * 4 // 3 + 4096} bytes"


def test_the_largest_list_that_is_signed_is_also_read(tmp_path: Path) -> None:
    functions = [f"f{n:08d}" for n in range(80_000)]
    layers: list[model.Layer] = [model.SyscallLayer(name="sys", functions=functions)]
    payload = model.encode(msgspec.structs.replace(PROBES, layers=layers))
    path = _write(tmp_path / "p", payload)
    assert _load(path, max_bytes=len(payload)).probes.probe_count() == 80_000
    assert "too large" in _refused(path, max_bytes=len(payload) - 4096)


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "expired": ({"expires": NOW}, "expired 2027-01-15 08:00:00 UTC"),
    "early": (
        {"created": NOW + 301},
        "not valid before 2027-01-15 08:05:01 UTC; this host's clock says 2027-01-15 08:00:00 UTC",
    ),
    "cluster": ({"cluster": "x\x1b"}, "made for cluster 'x\\x1b', this host's is 'tuxedo'"),
    "machine": ({"machine": "aarch64"}, "made for machine 'aarch64', this host's is 'x86_64'"),
    "format": ({"format": 2}, "format 2, this version of datacrumbs knows 1"),
    "user": (
        {"uid": 99, "user": "else\n"},
        "made for else\\n (uid 99), not for uid 1234",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_signed_file_that_does_not_fit_is_refused(tmp_path: Path, case: str) -> None:
    changes, message = REFUSALS[case]
    path = _write(tmp_path / "p", **changes)
    assert _refused(path, expect_user_uid=1234) == f"{path}: {message}"


def test_clocks_may_differ_by_five_minutes(tmp_path: Path) -> None:
    assert _load(_write(tmp_path / "p", created=NOW + 300)).probes.created == NOW + 300


def test_any_user_is_taken_when_none_is_expected(tmp_path: Path) -> None:
    assert _load(_write(tmp_path / "p", uid=99)).probes.uid == 99


def test_a_newer_format_is_named_before_its_fields(tmp_path: Path) -> None:
    payload = b'{"format":7,"something":"new"}'
    path = _write(tmp_path / "p", payload)
    assert _refused(path) == f"{path}: format 7, this version of datacrumbs knows 1"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"format":"1"}',
        b'{"format":1}',
        model.encode(PROBES)[:-1] + b',"extra\\n":1}',
        model.encode(PROBES).replace(b'"syscalls"', b'"kprobe"'),
        model.encode(PROBES).replace(b'"name":"sys"', b'"name":"sys\\n"'),
        model.encode(PROBES).replace(b'"mode":"trace"', b'"mode":"all"'),
        model.encode(PROBES).replace(b'"uid":1234', b'"uid":4294967295'),
    ],
)
def test_a_signed_payload_that_is_no_probe_list_is_refused(tmp_path: Path, payload: bytes) -> None:
    path = _write(tmp_path / "p", payload)
    assert _refused(path).startswith(f"{path}: not a probe list: ")


def test_an_unknown_key_and_a_bad_signature_are_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "p")
    assert f"signed with key {KEYID}, which is not in /etc/keys" in _refused(path, public_keys={})
    other = Ed25519PrivateKey.generate().public_key()
    assert "bad signature" in _refused(path, public_keys={KEYID: other})


def test_the_new_and_the_old_key_are_both_taken(tmp_path: Path) -> None:
    new = Ed25519PrivateKey.generate()
    both = {KEYID: KEY.public_key(), key_id(new.public_key()): new.public_key()}
    write_probe_file(tmp_path / "new", sign(model.encode(PROBES), new))
    assert _load(_write(tmp_path / "old"), public_keys=both).keyid == KEYID
    assert _load(tmp_path / "new", public_keys=both).keyid == key_id(new.public_key())


def test_what_is_no_regular_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/zero")):
        assert _refused(path) == f"{path}: not a regular file"
    assert _refused(tmp_path / "no") == f"{tmp_path}/no: No such file or directory"
    reader, writer = os.pipe()
    assert _refused(reader, name="standard input") == "standard input: not a regular file"
    os.close(reader)
    os.close(writer)


def test_a_file_that_changes_while_it_is_read_is_either_good_or_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "p")
    whole, stop = path.read_bytes(), threading.Event()

    def spoil() -> None:
        with open(path, "r+b", buffering=0) as file:
            while not stop.is_set():
                os.pwrite(file.fileno(), b"\xff" * 40, 30)
                os.pwrite(file.fileno(), whole, 0)

    thread = threading.Thread(target=spoil)
    thread.start()
    outcomes = set()
    try:
        for _ in range(500):
            try:
                outcomes.add(_load(path).probes == PROBES)
            except UserError as error:
                outcomes.add(str(path) in error.message)
    finally:
        stop.set()
        thread.join()
    assert outcomes == {True}


@given(st.binary(max_size=2000))
def test_garbage_is_refused(data: bytes) -> None:
    descriptor = os.memfd_create("probe file")
    try:
        os.write(descriptor, b"\x1f\x8b" + data)
        with pytest.raises(UserError):
            read_probe_file(descriptor, max_bytes=MAX_BYTES, name="memory")
    finally:
        os.close(descriptor)
