"""What is known not to attach: written by root, read by all, and no way to fool others."""

from __future__ import annotations

import os
import platform
import pwd
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datacrumbs.errors import UserError
from datacrumbs.probes import model, status
from datacrumbs.probes.status import Entry, known, refusals, remember, reset

RELEASE = platform.release()


def _entry(name: str, **changes: object) -> Entry:
    values: dict[str, object] = {
        "target": "ab12",
        "name": name,
        "offset": 64,
        "reason": "Invalid argument",
        "uid": 0,
        "kernel": RELEASE,
        "time": 1_800_000_000,
    }
    return Entry(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def state() -> Iterator[Path]:
    """A directory that everybody reaches, as /var/lib is."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name, "state")


def test_what_is_remembered_is_known_until_it_is_reset(state: Path) -> None:
    assert known(state, 1000) == []
    remember(state, [])
    assert not state.exists()
    remember(state, [_entry("read"), _entry("vfs_read", target="", offset=-1)])
    remember(state, [_entry("read", reason="newer", time=1_800_000_001)])
    entries = known(state, 1000)
    assert [(e.target, e.name, e.offset, e.reason) for e in entries] == [
        ("", "vfs_read", -1, "Invalid argument"),
        ("ab12", "read", 64, "newer"),
    ]
    assert reset(state) == 2
    assert known(state, 1000) == []
    assert reset(state) == 0


def test_it_counts_for_this_kernel_and_whom_it_is_about(state: Path) -> None:
    remember(state, [_entry("a"), _entry("b", kernel="5.14.0"), _entry("c", uid=1000)])
    assert [e.name for e in known(state, 1000, kernel=RELEASE)] == ["a", "c"]
    assert [e.name for e in known(state, 1001, kernel=RELEASE)] == ["a"]
    assert [e.name for e in known(state, 1001, kernel="5.14.0")] == ["b"]
    assert len(known(state, 1000)) == 3


def test_the_newest_are_kept(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "ROWS_MAX", 10)
    remember(state, [_entry(f"f{n:02}", time=n) for n in range(23)])
    assert [e.time for e in known(state, 0)] == list(range(13, 23))


def test_everybody_may_read_whatever_the_umask(state: Path) -> None:
    before = os.umask(0o077)
    try:
        remember(state, [_entry("a")])
    finally:
        os.umask(before)
    assert (state / status.FILE).stat().st_mode & 0o777 == 0o644
    assert state.stat().st_mode & 0o777 == 0o755
    assert [p.name for p in state.iterdir()] == [status.FILE]


def test_a_damaged_database_is_one_line_and_reset_mends_it(state: Path) -> None:
    remember(state, [_entry("a")])
    (state / status.FILE).write_bytes(b"SQLite format 3\0" + b"\xff" * 4000)
    with pytest.raises(UserError) as caught:
        known(state, 0)
    assert str(state / status.FILE) in caught.value.message
    assert "--reset-skipped" in caught.value.hint
    with pytest.raises(UserError, match=str(state)):
        remember(state, [_entry("a")])
    reset(state)
    remember(state, [_entry("a")])
    assert len(known(state, 0)) == 1


def test_a_link_in_its_place_is_not_followed(state: Path, tmp_path: Path) -> None:
    state.mkdir(mode=0o755)
    (state / status.FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError):
        remember(state, [_entry("a")])
    assert not (tmp_path / "elsewhere").exists()


def test_a_directory_that_others_can_write_is_refused(state: Path) -> None:
    state.mkdir()
    state.chmod(0o777)
    with pytest.raises(UserError, match="others than root can write"):
        remember(state, [_entry("a")])


def test_two_daemons_at_once_both_remember(state: Path) -> None:
    code = (
        "import sys, platform; from pathlib import Path\n"
        "from datacrumbs.probes.status import Entry, remember\n"
        "who, state = sys.argv[1:]\n"
        "for n in range(20):\n"
        "    remember(Path(state), [Entry('ab', f'{who}{n}', n, 'why', 0, 'k', n)])\n"
    )
    children = [
        subprocess.Popen([sys.executable, "-P", "-c", code, who, state]) for who in ("a", "b", "c")
    ]
    assert [child.wait() for child in children] == [0, 0, 0]
    assert len(known(state, 0)) == 60


@settings(max_examples=25)
@given(st.text(max_size=300), st.text(max_size=300))
def test_texts_end_up_printable_and_short(name: str, reason: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        state = Path(directory, "s")
        remember(state, [_entry(name, reason=reason)])
        (entry,) = known(state, 0)
        assert entry.name.isprintable() and len(entry.name) <= 255
        assert entry.reason.isprintable() and len(entry.reason) <= 255


FUNCTIONS = [
    model.UserFunction(name="good", offset=16),
    model.UserFunction(name="bad", offset=32),
]


def _probes(binary: str) -> model.ProbeList:
    return model.ProbeList(
        format=1,
        uid=1234,
        user="ann",
        created=0,
        expires=9,
        host="h",
        cluster="",
        machine=platform.machine(),
        layers=[
            model.UserLayer(name="user", binary=binary, build_id="ab12", functions=FUNCTIONS),
            model.KernelLayer(name="kernel", functions=[model.KernelFunction(name="vfs_read")]),
            model.UsdtLayer(
                name="usdt",
                binary=binary,
                build_id="ab12",
                functions=[model.UsdtPoint(provider="python", name="line")],
            ),
            model.SyscallLayer(name="sys", functions=["read"]),
        ],
    )


def test_only_lasting_refusals_of_functions_are_remembered() -> None:
    skipped = [
        ("user", "bad", "Invalid argument"),
        ("user", "good", os.strerror(12)),  # no memory: may pass
        ("user", "/usr/bin/x", "Invalid argument"),
        ("kernel", "vfs_read", "the kernel allows no probe there"),
        ("usdt", "python:line", f"{os.strerror(524)} (ENOTSUPP)"),
        ("sys", "read", "Invalid argument"),
        ("gone", "bad", "Invalid argument"),
    ]
    found = refusals(_probes("/usr/bin/env"), skipped)
    assert [(e.target, e.name, e.offset, e.uid) for e in found] == [
        ("ab12", "bad", 32, 0),
        ("", "vfs_read", -1, 0),
        ("ab12", "python:line", -1, 0),
    ]
    assert {e.kernel for e in found} == {RELEASE}


def test_a_file_that_its_user_can_replace_counts_for_that_user_alone(tmp_path: Path) -> None:
    own = tmp_path / "libc.so.6"
    own.write_bytes(b"")
    link = tmp_path / "link"
    link.symlink_to("/usr/bin/env")
    skipped = [("user", "bad", "Invalid argument")]

    def uids(path: str) -> list[int]:
        return [e.uid for e in refusals(_probes(path), skipped)]

    assert uids("/usr/bin/env") == [0]
    assert uids(str(own)) == [1234]  # below /tmp, which everybody can write
    assert uids(str(link)) == [1234], "it may have led elsewhere when its functions were refused"
    assert uids("/no/such/file") == [1234]


@pytest.mark.root
def test_an_ordinary_user_reads_and_cannot_change(
    state: Path, ordinary_user: pwd.struct_passwd
) -> None:
    remember(state, [_entry("a")])

    def as_user(code: str) -> subprocess.CompletedProcess[str]:
        script = (
            "import sys; from pathlib import Path; from datacrumbs.errors import UserError\n"
            f"from datacrumbs.probes.status import *\nstate = Path({str(state)!r})\n"
            f"try: {code}\nexcept UserError as error: sys.exit(error.message)\n"
        )
        return subprocess.run(
            [sys.executable, "-P", "-c", script],
            user=ordinary_user.pw_uid,
            group=ordinary_user.pw_gid,
            extra_groups=[],
            capture_output=True,
            text=True,
            check=False,
        )

    assert as_user("print([e.name for e in known(state, 1)])").stdout == "['a']\n"
    for code in ("remember(state, known(state, 1))", "reset(state)"):
        done = as_user(code)
        assert done.returncode == 1 and str(state) in done.stderr
        assert "Traceback" not in done.stderr
    assert len(known(state, 0)) == 1


def test_a_run_that_is_writing_does_not_stop_readers(state: Path) -> None:
    remember(state, [_entry("a")])
    writer = sqlite3.connect(state / status.FILE, isolation_level=None)
    try:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("DELETE FROM refused")
        assert [e.name for e in known(state, 0)] == ["a"]
    finally:
        writer.close()


def test_a_function_is_known_by_its_place_whatever_its_name() -> None:
    (entry,) = refusals(_probes("/usr/bin/env"), [("user", "bad", "Invalid argument")])
    other_name = model.UserFunction(name="alias", offset=32)
    assert status.place_of("ab12", other_name) == status.place_of_entry(entry)
    assert status.place_of("cd34", other_name) != status.place_of_entry(entry)
    point = model.UsdtPoint(provider="python", name="line")
    assert status.place_of("ab", point) == ("ab", "python:line", -1)
    assert status.place_of("ab", model.KernelFunction(name="vfs_read")) == ("", "vfs_read", -1)
