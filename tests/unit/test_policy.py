"""The signing policy: each rule refuses by name, and binaries are seen as the user sees them."""

from __future__ import annotations

import os
import platform
import pwd
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datacrumbs.config import KernelArguments, Policy
from datacrumbs.errors import UserError
from datacrumbs.probes import elf_functions
from datacrumbs.probes.elf_functions import function_starts
from datacrumbs.probes.elf_identity import NotElfError, elf_identity
from datacrumbs.probes.model import (
    Argument,
    ArgumentType,
    CustomLayer,
    KernelFunction,
    KernelLayer,
    Layer,
    ProbeList,
    SyscallLayer,
    UsdtLayer,
    UsdtPoint,
    UserFunction,
    UserLayer,
)
from datacrumbs.probes.usdt import usdt_points
from datacrumbs.signing import policy
from datacrumbs.signing.policy import Peer

NOW = 1_800_000_000
PEER = Peer(pid=1, uid=1234, gid=1234, name="someone")
SYSCALLS = SyscallLayer(name="sys", functions=["read", "openat"])

SOURCE = """
int first(int x) { return x * 3; }
int second(int x) { return first(x) + 1; }
int main(void) { return second(2) - 7; }
"""


def _probes(*layers: Layer, **changes: Any) -> ProbeList:
    probes = ProbeList(
        format=1,
        uid=PEER.uid,
        user=PEER.name,
        created=NOW,
        expires=NOW + 3600,
        host="login1",
        cluster="tuxedo",
        machine=platform.machine(),
        layers=list(layers) or [SYSCALLS],
    )
    return msgspec.structs.replace(probes, **changes)


def _check(probes: ProbeList, rules: Policy | None = None, peer: Peer = PEER) -> None:
    policy.check(probes, peer, rules or Policy(), cluster="tuxedo", now=NOW)


def _refused(probes: ProbeList, rules: Policy | None = None, peer: Peer = PEER) -> str:
    with pytest.raises(UserError) as caught:
        _check(probes, rules, peer)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_plain_list_passes() -> None:
    _check(_probes())


RULES: dict[str, tuple[dict[str, Any], str]] = {
    "somebody else's uid": ({"uid": 4321}, "uid: uid 1234 (someone) asks for uid 4321"),
    "root's uid": ({"uid": 0}, "uid: uid 1234 (someone) asks for uid 0"),
    "another name": ({"user": "root"}, "user: uid 1234 is 'someone', not 'root'"),
    "format": ({"format": 2}, "format: 2, this service knows 1"),
    "cluster": ({"cluster": "other"}, "cluster: 'other', this service signs for 'tuxedo'"),
    "from the future": ({"created": NOW + 301}, "created: 301 s in the future"),
    "expired": ({"expires": NOW}, "expires: 0 s ago"),
    "too long": (
        {"expires": NOW + 30 * 24 * 3600 + 1},
        "policy.max_lifetime_s: 2592001 s, at most 2592000",
    ),
    "no layers": ({"layers": []}, "layers: no functions"),
    "empty layer": ({"layers": [SyscallLayer(name="sys", functions=[])]}, "layers: no functions"),
    "same layer twice": ({"layers": [SYSCALLS, SYSCALLS]}, "layers: two layers are called 'sys'"),
    "terminal escape": ({"host": "a\x1b[2J"}, "names: 'a\\x1b[2J' has characters that"),
    "line break": (
        {"layers": [SyscallLayer(name="sys", functions=["read\nx"])]},
        "names: 'read\\nx' has characters that",
    ),
}


def _argument(**changes: Any) -> Argument:
    plain = Argument(name="a", index=0, type=ArgumentType.UINT, bytes=8)
    return msgspec.structs.replace(plain, **changes)


def _kernel(name: str, *arguments: Argument) -> KernelLayer:
    return KernelLayer(name="k", functions=[KernelFunction(name=name, arguments=list(arguments))])


def _user(*arguments: Argument) -> UserLayer:
    function = UserFunction(name="f", offset=1, arguments=list(arguments))
    return UserLayer(name="u", binary="/x", build_id="ab", functions=[function])


CUSTOM = CustomLayer(name="c", functions=["mine"], source="int x;\n\tint y;\n")
COUNT = _argument(name="count", index=2)

NEW_RULES: dict[str, tuple[list[Layer], Policy, str]] = {
    "a lock of the kernel's": (
        [_kernel("_raw_spin_lock")],
        Policy(),
        "policy.kernel_functions: layer 'k': '_raw_spin_lock' is not allowed",
    ),
    "a kernel function the site does not allow": (
        [_kernel("vfs_read")],
        Policy(kernel_functions=("ext4_*",)),
        "policy.kernel_functions: layer 'k': 'vfs_read' is not allowed",
    ),
    "any kernel argument": (
        [_kernel("vfs_read", COUNT)],
        Policy(kernel_arguments=KernelArguments.NONE),
        "policy.kernel_arguments: layer 'k': vfs_read: no arguments are allowed",
    ),
    "what a kernel pointer leads to": (
        [_kernel("vfs_read", _argument(name="file", type=ArgumentType.BYTES, bytes=64))],
        Policy(),
        "policy.kernel_arguments: layer 'k': vfs_read: argument 'file' is not a number",
    ),
    "a text of the kernel's": (
        [_kernel("vfs_read", _argument(name="buf", index=1, type=ArgumentType.STRING))],
        Policy(),
        "policy.kernel_arguments: layer 'k': vfs_read: argument 'buf' is not a number",
    ),
    "a kernel pointer as a number": (
        [_kernel("vfs_read", COUNT, _argument(name="file"))],
        Policy(),
        "policy.kernel_arguments: layer 'k': vfs_read: argument 'file' is not a number",
    ),
    "more than a kernel number has": (
        [_kernel("vfs_fsync_range", _argument(name="datasync", index=3))],
        Policy(),
        "policy.kernel_arguments: layer 'k': vfs_fsync_range: argument 'datasync' is not a number",
    ),
    "an argument that the kernel function has not": (
        [_kernel("vfs_read", _argument(index=4))],
        Policy(),
        "policy.kernel_arguments: layer 'k': vfs_read: argument 'a' is not a number",
    ),
    "arguments of what this kernel has no types of": (
        [_kernel("vfs_no_such_function", COUNT)],
        Policy(),
        "policy.kernel_arguments: layer 'k': vfs_no_such_function: this kernel's types",
    ),
    "custom programs": (
        [CUSTOM],
        Policy(),
        "policy.custom: layer 'c': custom programs are not allowed",
    ),
    "a terminal escape in a custom program": (
        [msgspec.structs.replace(CUSTOM, source="// \x1b[2J")],
        Policy(custom=True),
        "names: '// \\x1b[2J' has characters that cannot be printed",
    ),
    "two arguments of one name": (
        [_user(_argument(), _argument(index=1))],
        Policy(),
        "arguments: layer 'u': f: two are called 'a'",
    ),
    "a number of three bytes": (
        [_user(_argument(bytes=3))],
        Policy(),
        "arguments: layer 'u': f: 'a': no number has 3 bytes",
    ),
    "too many bytes of arguments": (
        [
            _user(
                _argument(type=ArgumentType.BYTES, bytes=256),
                _argument(name="b", type=ArgumentType.STRING, bytes=256),
                _argument(name="c", bytes=1),
            )
        ],
        Policy(),
        "policy.max_argument_bytes: layer 'u': f: 513 bytes of arguments, at most 512",
    ),
    "a name of an argument that cannot be printed": (
        [_user(_argument(name="a\u202eb"))],
        Policy(),
        "names: ",
    ),
    "a provider that cannot be printed": (
        [
            UsdtLayer(
                name="u",
                binary="/x",
                build_id="ab",
                functions=[UsdtPoint(provider="py\x07", name="line")],
            )
        ],
        Policy(),
        "names: 'py\\x07' has characters",
    ),
    "a return point that cannot be printed": (
        [
            UsdtLayer(
                name="u",
                binary="/x",
                build_id="ab",
                functions=[UsdtPoint(provider="py", name="line", returns="a\nb")],
            )
        ],
        Policy(),
        "names: 'a\\nb' has characters",
    ),
}


@pytest.mark.parametrize("rule", NEW_RULES)
def test_each_rule_about_other_layers_refuses_by_name(rule: str) -> None:
    layers, rules, message = NEW_RULES[rule]
    assert _refused(_probes(*layers), rules).startswith(message)


def test_paths_that_cannot_be_printed_are_refused() -> None:
    for key in ("include", "exclude"):
        assert _refused(_probes(**{key: ["/a\x1b"]})).startswith("names: '/a\\x1b'")


def test_what_the_rules_allow_passes() -> None:
    _check(_probes(_kernel("vfs_read", COUNT)))
    _check(_probes(_kernel("_raw_spin_lock")), Policy(kernel_functions=("*",)))
    everything = Policy(kernel_arguments=KernelArguments.ALL)
    _check(_probes(_kernel("vfs_read", _argument(type=ArgumentType.BYTES, bytes=64))), everything)
    _check(_probes(CUSTOM), Policy(custom=True))
    _check(_probes(include=["/scratch"], exclude=["/scratch/tmp"]))


@pytest.mark.parametrize(
    "name", ["vfs_write", "ext4_file_write_iter", "submit_bio", "ll_fsync", "jbd2:jbd2_run_stats"]
)
def test_the_io_path_is_allowed_by_default(name: str) -> None:
    _check(_probes(_kernel(name)))


@pytest.mark.parametrize(
    "name",
    [
        "vfs_read:sched_switch",
        "schedule",
        "mutex_lock",
        "kfree",
        "__alloc_pages",
        "copy_from_user",
        "do_syscall_64",
        "tcp_sendmsg",
        "security_file_open",
        "crypto_aead_setkey",
        "generic_handle_irq",
    ],
)
def test_what_everybody_on_the_node_runs_is_not(name: str) -> None:
    assert "is not allowed" in _refused(_probes(_kernel(name)))


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_refuses_by_name(rule: str) -> None:
    changes, message = RULES[rule]
    assert _refused(_probes(**changes)).startswith(message)


def test_the_edges_of_the_limits_pass() -> None:
    _check(_probes(created=NOW + 300, expires=NOW + 301))
    _check(_probes(expires=NOW + 30 * 24 * 3600))
    _check(_probes(), Policy(max_functions=2))
    _check(_probes(), Policy(min_uid=1234))


def test_the_sites_limits_refuse() -> None:
    assert _refused(_probes(), Policy(max_functions=1)) == (
        "policy.max_functions: 2 functions, at most 1"
    )
    assert _refused(_probes(), Policy(min_uid=1235)) == (
        "policy.min_uid: uid 1234 (someone), at least 1235"
    )
    assert _refused(_probes(), Policy(syscalls=("read", "p*64"))) == (
        "policy.syscalls: layer 'sys': 'openat' is not allowed"
    )


def test_a_million_layers_are_refused_quickly() -> None:
    layers = [SyscallLayer(name=f"l{n}", functions=["read"]) for n in range(100_000)]
    layers.append(layers[0])
    assert _refused(_probes(*layers), Policy(max_functions=200_000)).startswith("layers: two")


# --- binaries; these need root, because they are opened as somebody else


@pytest.fixture
def public(ordinary_user: pwd.struct_passwd) -> Iterator[Path]:
    """A directory that ordinary users reach; pytest's own is root's alone."""
    assert ordinary_user.pw_uid
    directory = Path(tempfile.mkdtemp(prefix="dc-policy-")).resolve()
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def peer(ordinary_user: pwd.struct_passwd) -> Peer:
    return Peer(
        pid=1, uid=ordinary_user.pw_uid, gid=ordinary_user.pw_gid, name=ordinary_user.pw_name
    )


def _compile(path: Path, *flags: str) -> Path:
    command = ["gcc", "-x", "c", "-O0", "-o", str(path), *flags, "-"]
    subprocess.run(command, input=SOURCE.encode(), check=True)
    path.chmod(0o755)
    return path


def _identity(path: Path) -> tuple[str | None, str | None]:
    with open(path, "rb") as file:
        return elf_identity(file.fileno())


def _symbol(path: Path, name: str) -> int:
    """The file offset of a function of a small program, by nm and readelf."""
    symbols = subprocess.run(["nm", str(path)], capture_output=True, text=True, check=True).stdout
    address = next(int(x.split()[0], 16) for x in symbols.splitlines() if x.endswith(f" {name}"))
    headers = subprocess.run(
        ["readelf", "-lW", str(path)], capture_output=True, text=True, check=True
    ).stdout
    for line in headers.splitlines():
        fields = line.split()
        if fields[:1] == ["LOAD"] and " R E " in line:
            start, base, size = (int(x, 16) for x in (fields[1], fields[2], fields[4]))
            if base <= address < base + size:
                return address - base + start
    raise AssertionError(f"{name} is in no segment of {path}")


def _binary_probes(path: Path, peer: Peer, **changes: Any) -> ProbeList:
    build_id, digest = _identity(path.resolve())
    layer = UserLayer(
        name="app",
        binary=str(path),
        functions=[UserFunction(name="second", offset=_symbol(path.resolve(), "second"))],
        build_id=build_id,
        digest=digest,
    )
    return _probes(msgspec.structs.replace(layer, **changes), uid=peer.uid, user=peer.name)


def test_a_binary_is_signed_by_build_id_or_digest(public: Path, peer: Peer) -> None:
    with_id = _compile(public / "a", "-Wl,--build-id=sha1")
    without = _compile(public / "b", "-Wl,--build-id=none")
    notes = subprocess.run(
        ["readelf", "-n", str(with_id)], capture_output=True, text=True, check=True
    ).stdout
    assert f"Build ID: {_identity(with_id)[0]}" in notes
    digest = subprocess.run(
        ["sha256sum", str(without)], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    assert _identity(without) == (None, f"sha256:{digest}")
    for path in (with_id, without):
        _check(_binary_probes(path, peer), peer=peer)


def test_a_binary_that_changed_is_refused(public: Path, peer: Peer) -> None:
    path = _compile(public / "a", "-Wl,--build-id=sha1")
    claims: list[dict[str, Any]] = [
        {"build_id": "00" * 20},
        {"build_id": None, "digest": "sha256:" + "0" * 64},
        {"build_id": None},
        {"digest": "sha256:" + "0" * 64},
    ]
    for claim in claims:
        message = _refused(_binary_probes(path, peer, **claim), peer=peer)
        assert message.startswith(f"build_id: layer 'app': {path}: is {_identity(path)[0]}")


def test_only_the_beginnings_of_functions_are_signed(public: Path, peer: Peer) -> None:
    path = _compile(public / "a")
    start = _symbol(path, "second")
    for offset in (start + 1, start - 1, 0, 2**40):
        function = UserFunction(name="second", offset=offset)
        message = _refused(_binary_probes(path, peer, functions=[function]), peer=peer)
        assert message == (
            f"offset: layer 'app': {path}: no function that may be probed begins at {offset:#x} "
            "(second)"
        )


def test_a_stripped_binary_has_the_beginnings_in_its_unwind_table(public: Path) -> None:
    path = _compile(public / "a")
    wanted = {_symbol(path, name) for name in ("first", "second", "main")}
    subprocess.run(["strip", "--strip-all", str(path)], check=True)
    with open(path, "rb") as file:
        assert wanted <= function_starts(file.fileno())


def test_no_function_is_signed_that_a_program_does_not_survive(public: Path, peer: Peer) -> None:
    source = "int _setjmp(void *x) { return x != 0; }\nint main(void) { return _setjmp(0); }\n"
    path = public / "jumps"
    command = ["gcc", "-x", "c", "-fno-builtin", "-w", "-o", str(path), "-"]
    subprocess.run(command, input=source.encode(), check=True)
    path.chmod(0o755)
    for name in ("_setjmp", "_start"):
        function = UserFunction(name="harmless", offset=_symbol(path, name))
        layer = UserLayer(name="app", binary=str(path), functions=[function])
        build_id, digest = _identity(path)
        layer = msgspec.structs.replace(layer, build_id=build_id, digest=digest)
        probes = _probes(layer, uid=peer.uid, user=peer.name)
        assert _refused(probes, peer=peer).startswith("offset: layer 'app': ")


def test_usdt_points_must_be_in_the_very_file(public: Path, peer: Peer) -> None:
    path = public / "points"
    source = "#include <sys/sdt.h>\nint main(void) { STAP_PROBE(lead, step); return 0; }\n"
    subprocess.run(["gcc", "-x", "c", "-o", str(path), "-"], input=source.encode(), check=True)
    path.chmod(0o755)
    build_id, digest = _identity(path)

    def probes(point: UsdtPoint, **changes: Any) -> ProbeList:
        layer = UsdtLayer(
            name="app", binary=str(path), build_id=build_id, digest=digest, functions=[point]
        )
        layer = msgspec.structs.replace(layer, **changes)
        return _probes(layer, uid=peer.uid, user=peer.name)

    step = UsdtPoint(provider="lead", name="step")
    _check(probes(step), peer=peer)
    for point, name in (
        (UsdtPoint(provider="lead", name="stop"), "lead:stop"),
        (UsdtPoint(provider="other", name="step"), "other:step"),
        (UsdtPoint(provider="lead", name="step", returns="stop"), "lead:stop"),
    ):
        message = _refused(probes(point), peer=peer)
        assert message == f"usdt: layer 'app': {path}: has no point {name}"
    assert _refused(probes(step, build_id="00"), peer=peer).startswith("build_id: ")
    rules = Policy(binaries=("/usr/*",))
    assert _refused(probes(step), rules, peer=peer).startswith("policy.binaries: ")
    path.chmod(0o700)
    assert "cannot open it" in _refused(probes(step), peer=peer)


def test_a_binary_the_user_cannot_read_is_refused(public: Path, peer: Peer) -> None:
    path = _compile(public / "a")
    probes = _binary_probes(path, peer)
    path.chmod(0o700)
    assert _refused(probes, peer=peer) == (
        f"binary: layer 'app': {path}: {peer.name} cannot open it: Permission denied"
    )
    path.chmod(0o755)
    _check(probes, peer=peer)
    public.chmod(0o700)  # not through a closed directory either
    assert _refused(probes, peer=peer).endswith("cannot open it: Permission denied")


def test_roots_groups_do_not_help(public: Path, peer: Peer) -> None:
    path = _compile(public / "a")
    probes = _binary_probes(path, peer)
    path.chmod(0o750)  # root:root
    before = os.getgroups()
    os.setgroups([0])
    try:
        assert _refused(probes, peer=peer).endswith("cannot open it: Permission denied")
        assert (os.getresuid(), os.getresgid(), os.getgroups()) == ((0, 0, 0), (0, 0, 0), [0])
    finally:
        os.setgroups(before)


def test_binaries_must_match_the_sites_patterns_as_named_and_as_found(
    public: Path, peer: Peer
) -> None:
    allowed, secret = public / "allowed", public / "secret"
    for directory in (allowed, secret):
        directory.mkdir()
        directory.chmod(0o755)
    rules = Policy(binaries=(f"{allowed}/*",))
    _check(_binary_probes(_compile(allowed / "a"), peer), rules, peer)

    elsewhere = _compile(secret / "b")
    message = _refused(_binary_probes(elsewhere, peer), rules, peer)
    assert message.startswith(f"policy.binaries: layer 'app': {elsewhere}: {elsewhere} is not")

    link = allowed / "link"
    link.symlink_to(elsewhere)
    message = _refused(_binary_probes(link, peer), rules, peer)
    assert message.startswith(f"policy.binaries: layer 'app': {link}: {elsewhere} is not")

    for trick in (f"{allowed}/../secret/b", f"{allowed}//a", f"{allowed}/./a", f"{allowed}/"):
        probes = _binary_probes(elsewhere, peer, binary=trick)
        assert _refused(probes, rules, peer).endswith("not a plain absolute path")


def test_what_is_no_regular_elf_file_is_refused(public: Path, peer: Peer) -> None:
    good = _compile(public / "a")
    os.mkfifo(public / "fifo", 0o666)
    (public / "text").write_text("#!/bin/sh\n" * 20)
    (public / "text").chmod(0o644)
    for name, why in {
        str(public / "fifo"): "not a regular file",
        str(public): "not a regular file",
        "/dev/zero": "not a regular file",
        str(public / "text"): "not an ELF file",
        str(public / "missing"): f"{peer.name} cannot open it: No such file or directory",
        "/nul\0byte": None,
    }.items():
        message = _refused(_binary_probes(good, peer, binary=name), peer=peer)
        if why is None:
            assert message.startswith("names: ")
        else:
            assert message == f"binary: layer 'app': {name}: {why}"


# --- hostile ELF files


def _read_as_elf(data: bytes) -> None:
    """All parsers on ``data``; any answer or `NotElfError` will do, nothing else."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        for parse in (elf_identity, function_starts, usdt_points):
            try:
                parse(file.fileno())
            except NotElfError as error:
                assert error.message


with open("/bin/true", "rb") as _file:
    TRUE = _file.read()


@given(st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), min_size=1, max_size=20))
def test_a_damaged_head_never_breaks_the_parser(changes: list[tuple[int, int]]) -> None:
    data = bytearray(TRUE)
    for position, value in changes:
        data[position] = value
    _read_as_elf(bytes(data))


@given(st.integers(0, len(TRUE)))
def test_a_truncated_file_never_breaks_the_parser(size: int) -> None:
    _read_as_elf(TRUE[:size])


@given(st.binary(max_size=600))
def test_garbage_after_the_magic_never_breaks_the_parser(tail: bytes) -> None:
    _read_as_elf(b"\x7fELF" + tail)


@pytest.mark.parametrize(
    "fields", [(2**64 - 8, 56, 2), (64, 56, 65535), (64, 0, 1), (2**63, 56, 1)]
)
def test_absurd_program_headers_are_refused(fields: tuple[int, int, int]) -> None:
    offset, size, count = fields
    data = bytearray(TRUE)
    struct.pack_into("<Q", data, 32, offset)
    struct.pack_into("<HH", data, 54, size, count)
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        with pytest.raises(NotElfError):
            elf_identity(file.fileno())


def test_many_headers_of_one_symbol_table_do_not_multiply_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(elf_functions, "TABLE_BYTES_MAX", 100_000)
    header, table = struct.Struct("<IIQQQQIIQQ"), bytes(60_000)
    for count, refused in ((1, False), (2, True)):
        data = bytearray(64)
        data[:6] = b"\x7fELF\x02\x01"
        struct.pack_into("<Q", data, 40, 64)
        struct.pack_into("<HH", data, 58, header.size, count)
        at = 64 + count * header.size
        data += header.pack(0, 2, 0, 0, at, len(table), 0, 0, 0, 24) * count + table
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.flush()
            if refused:
                with pytest.raises(NotElfError, match="symbol tables of more than 100000 bytes"):
                    function_starts(file.fileno())
            else:
                assert function_starts(file.fileno()) == frozenset()
