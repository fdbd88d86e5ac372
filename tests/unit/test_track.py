"""datacrumbs_track and _untrack, as an ordinary user, on real programs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from datacrumbs.config import load_system_config

BIN = Path(sys.prefix, "bin")
LIBRARY = load_system_config().client_library_path()
MTIME_NS = 1_600_000_000_123_456_789
HELLO = '#include <stdio.h>\nint main(void) { puts("hello"); return 3; }\n'


class Workshop:
    """A directory of an ordinary user, who runs the commands there."""

    def __init__(self, directory: Path, user: pwd.struct_passwd) -> None:
        self.directory, self.user = directory, user

    def run(self, *command: str | Path, **settings: Any) -> subprocess.CompletedProcess[str]:
        settings = {"user": self.user.pw_uid, "group": self.user.pw_gid} | settings
        return subprocess.run(
            command,
            cwd=self.directory,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            extra_groups=[],
            capture_output=True,
            text=True,
            check=False,
            **settings,
        )

    def track(self, path: str | Path, **settings: Any) -> subprocess.CompletedProcess[str]:
        return self.run(BIN / "datacrumbs_track", "--executable", path, **settings)

    def untrack(self, path: str | Path, **settings: Any) -> subprocess.CompletedProcess[str]:
        return self.run(BIN / "datacrumbs_untrack", "--executable", path, **settings)

    def own(self, path: Path) -> Path:
        os.chown(path, self.user.pw_uid, self.user.pw_gid, follow_symlinks=False)
        return path

    def compile(self, *flags: str, name: str = "program", source: str = HELLO) -> Path:
        path = self.directory / name
        command = ["gcc", "-w", "-o", path, "-x", "c", "-", *flags]
        subprocess.run(command, input=source, text=True, check=True)
        return self.own(path)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir())


@pytest.fixture
def shop(ordinary_user: pwd.struct_passwd) -> Iterator[Workshop]:
    # pytest closes its own directory to users when another session of it starts
    with tempfile.TemporaryDirectory(prefix="datacrumbs-test-", dir="/var/tmp") as root:
        Path(root).chmod(0o755)
        shop = Workshop(Path(root, "shop"), ordinary_user)
        shop.directory.mkdir()
        shop.own(shop.directory)
        yield shop


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _libraries(path: Path) -> list[str]:
    listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    return [line.split()[0] for line in listed.splitlines()]


def _refused(result: subprocess.CompletedProcess[str], code: int = 2) -> str:
    assert (result.returncode, result.stdout) == (code, ""), result
    assert "Traceback" not in result.stderr
    return result.stderr


# what it does


PROGRAMS = {
    "pie": ("-pie",),
    "fixed-address": ("-no-pie",),
    "stripped": ("-s",),
    "old-hash": ("-Wl,--hash-style=sysv",),
    "packed-relocations": ("-Wl,-z,pack-relative-relocs",),
    "no-relro": ("-Wl,-z,norelro",),
    "rpath": ("-Wl,-rpath,$ORIGIN/../lib",),
    "runs-from-one-segment": ("-Wl,-z,noseparate-code",),
}


@pytest.mark.parametrize("flags", PROGRAMS.values(), ids=PROGRAMS)
def test_a_tracked_program_loads_the_library_and_comes_back(
    shop: Workshop, flags: tuple[str, ...]
) -> None:
    program = shop.compile(*flags)
    before, inode = _digest(program), program.stat().st_ino
    done = shop.track("program")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{program}: tracked\n", "")
    assert str(LIBRARY) in _libraries(program)
    assert (shop.run(program).stdout, shop.run(program).returncode) == ("hello\n", 3)
    assert shop.names() == [".program.datacrumbs-original", "program"]
    done = shop.untrack("program")
    assert (done.returncode, done.stderr) == (0, "")
    assert (_digest(program), program.stat().st_ino) == (before, inode)
    assert shop.names() == ["program"]


@pytest.mark.parametrize("name", ["gzip", "sqlite3", "git", "bash", "strace"])
def test_programs_of_the_distribution(shop: Workshop, name: str) -> None:
    source = Path(shutil.which(name) or "").resolve(strict=True)
    program = shop.own(Path(shutil.copy(source, shop.directory / name)))
    said = shop.run(program, "--version").stdout
    assert shop.track(program).returncode == 0
    assert str(LIBRARY) in _libraries(program)
    assert said and shop.run(program, "--version").stdout == said
    assert shop.untrack(program).returncode == 0
    assert program.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("flag", ["-fsanitize=address", "-fsanitize=undefined"])
def test_a_sanitizer_is_content(shop: Workshop, flag: str) -> None:
    program = shop.compile(flag)
    assert shop.track(program).returncode == 0
    ran = shop.run(program)
    assert (ran.returncode, ran.stdout, ran.stderr) == (3, "hello\n", "")
    assert str(LIBRARY) in _libraries(program)


def test_a_program_of_another_libc(shop: Workshop) -> None:
    path = shop.directory / "program"
    subprocess.run(["musl-gcc", "-o", path, "-x", "c", "-"], input=HELLO, text=True, check=True)
    shop.own(path)
    assert shop.track(path).returncode == 0
    assert shop.run(path).stdout == "hello\n"


def _metadata(path: Path) -> dict[str, Any]:
    status = path.stat()
    names = sorted(os.listxattr(path))
    return {
        "mode": stat.filemode(status.st_mode),
        "owner": (status.st_uid, status.st_gid),
        "mtime": status.st_mtime_ns,
        "attributes": {name: os.getxattr(path, name) for name in names},
    }


def test_mode_owner_times_acl_and_attributes_stay(shop: Workshop) -> None:
    program = shop.compile()
    program.chmod(0o1751)
    os.setxattr(program, "user.build", b"release \0 7")
    assert shop.run("setfacl", "-m", "u:65534:rx", program).returncode == 0
    os.utime(program, ns=(MTIME_NS, MTIME_NS))
    before = _metadata(program)
    assert set(before["attributes"]) == {"system.posix_acl_access", "user.build"}
    assert shop.track(program, umask=0o077).returncode == 0
    assert _metadata(program) == before
    assert shop.untrack(program, umask=0o077).returncode == 0
    assert _metadata(program) == before


def test_a_mode_changed_meanwhile_is_kept(shop: Workshop) -> None:
    program = shop.compile()
    before = _digest(program)
    os.setxattr(program, "user.old", b"x")
    assert shop.track(program).returncode == 0
    program.chmod(0o700)
    os.removexattr(program, "user.old")
    assert shop.untrack(program).returncode == 0
    assert stat.S_IMODE(program.stat().st_mode) == 0o700
    assert os.listxattr(program) == []
    assert _digest(program) == before


def test_a_link_stays_one(shop: Workshop) -> None:
    program = shop.compile()
    link = shop.directory / "link"
    link.symlink_to("program")
    assert shop.track(link).stdout == f"{program}: tracked\n"
    assert link.is_symlink() and str(LIBRARY) in _libraries(program)
    assert shop.untrack(link).returncode == 0


def test_a_running_program_goes_on(shop: Workshop) -> None:
    program = shop.own(Path(shutil.copy("/bin/cat", shop.directory / "program")))
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert shop.track(program).returncode == 0
        assert shop.untrack(program).returncode == 0
        output, _ = running.communicate(b"still here\n")
    assert (running.returncode, output) == (0, b"still here\n")


def test_tracked_programs_can_be_moved_with_their_originals(shop: Workshop) -> None:
    program = shop.compile()
    before = _digest(program)
    assert shop.track(program).returncode == 0
    names = shop.names()
    other = shop.directory / "other"
    other.mkdir()
    shop.own(other)
    for name in names:
        (shop.directory / name).rename(other / name)
    assert shop.untrack(other / "program").returncode == 0
    assert _digest(other / "program") == before


def test_a_program_that_was_built_again(shop: Workshop) -> None:
    program = shop.compile()
    assert shop.track(program).returncode == 0
    program.unlink()
    newer = shop.compile("-O3", "-DNEWER")
    before = _digest(newer)
    said = _refused(shop.untrack(program))
    assert f"{program}: is not tracked\n" in said and ".program.datacrumbs-original" in said
    assert _digest(program) == before
    assert shop.track(program).returncode == 0
    assert shop.untrack(program).returncode == 0
    assert _digest(program) == before


# what it refuses


def _check_untouched(shop: Workshop, path: Path, *, wanted: str, code: int = 2) -> None:
    before, metadata, names = _digest(path), _metadata(path), shop.names()
    assert wanted in _refused(shop.track(path), code)
    assert (_digest(path), _metadata(path), shop.names()) == (before, metadata, names)


@pytest.mark.parametrize("flag", ["-static", "-static-pie"])
def test_static_programs(shop: Workshop, flag: str) -> None:
    _check_untouched(shop, shop.compile(flag), wanted="is statically linked")


def test_shared_libraries_and_the_loader(shop: Workshop) -> None:
    library = shop.compile("-shared", "-fPIC", "-Wl,-soname,libx.so", name="libx.so")
    _check_untouched(shop, library, wanted="is statically linked")
    # the C library and the loader can be run, but are no programs
    libc = next(Path("/lib").glob("*-linux-gnu/libc.so.6")).resolve()
    copy = shop.own(Path(shutil.copy(libc, shop.directory / "libc")))
    copy.chmod(0o755)
    _check_untouched(shop, copy, wanted="is a shared library")


@pytest.mark.parametrize("mode", [0o4755, 0o2755])
def test_setuid_and_setgid(shop: Workshop, mode: int) -> None:
    program = shop.compile()
    program.chmod(mode)
    _check_untouched(shop, program, wanted="is setuid or setgid")


def test_capabilities(shop: Workshop) -> None:
    program = shop.compile()
    subprocess.run(["setcap", "cap_net_raw+ep", program], check=True)
    _check_untouched(shop, program, wanted="has file capabilities")


def test_scripts_and_other_files(shop: Workshop) -> None:
    for name, content, wanted in (
        ("script", b"#!/bin/sh\nexit 0\n", "is a script"),
        ("text", b"hello", "is not an ELF program"),
        ("empty", b"", "is not an ELF program"),
        ("cut", Path("/bin/cat").read_bytes()[:3000], "is not an ELF program"),
        ("header", b"\x7fELF\x02\x01\x01" + b"\xff" * 200, "is not an ELF program"),
    ):
        path = shop.directory / name
        path.write_bytes(content)
        path.chmod(0o755)
        shop.own(path)
        _check_untouched(shop, path, wanted=wanted)
        path.unlink()


def test_what_is_no_file(shop: Workshop) -> None:
    os.mkfifo(shop.directory / "fifo")
    shop.own(shop.directory / "fifo")
    (shop.directory / "loop").symlink_to("loop")
    assert "is not a regular file" in _refused(shop.track("fifo"))
    assert "is not a regular file" in _refused(shop.track("."))
    assert "loop" in _refused(shop.track("loop"))
    assert "No such file" in _refused(shop.track("nothing"))
    assert "No such file" in _refused(shop.untrack("nothing"))


def test_files_of_others(shop: Workshop) -> None:
    program = shop.compile()
    os.chown(program, 0, 0)
    _check_untouched(shop, program, wanted="only its owner")
    assert "only its owner" in _refused(shop.untrack(program))
    shop.own(program)
    assert "only its owner" in _refused(shop.track(program, user=0, group=0))


def test_a_group_that_its_owner_has_left(shop: Workshop) -> None:
    program = shop.compile()
    os.chown(program, -1, 4)
    _check_untouched(shop, program, wanted="cannot be kept", code=1)


def test_hard_links(shop: Workshop) -> None:
    program = shop.compile()
    os.link(program, shop.directory / "other")
    _check_untouched(shop, program, wanted="has 2 names")


def test_a_bundle(shop: Workshop) -> None:
    program = shop.compile()
    with open(program, "ab") as file:
        file.write(b"PK\5\6" + bytes(18))
    _check_untouched(shop, program, wanted="has data behind the program")


def test_not_executable(shop: Workshop) -> None:
    program = shop.compile()
    program.chmod(0o644)
    _check_untouched(shop, program, wanted="is not executable")


def test_tracked_already_and_tracked_by_hand(shop: Workshop) -> None:
    program = shop.compile()
    assert shop.track(program).returncode == 0
    _check_untouched(shop, program, wanted="is tracked already")
    assert shop.untrack(program).returncode == 0
    assert "is not tracked" in _refused(shop.untrack(program))
    subprocess.run(["patchelf", "--add-needed", LIBRARY, program], check=True)
    _check_untouched(shop, program, wanted="loads libdatacrumbs_client.so already")
    assert "is not tracked" in _refused(shop.untrack(program))


def test_an_original_that_is_gone_or_another(shop: Workshop) -> None:
    program = shop.compile()
    original = shop.directory / ".program.datacrumbs-original"
    assert shop.track(program).returncode == 0
    tracked = _digest(program)
    with open(original, "ab") as file:
        file.write(b"x")
    assert "is not the original" in _refused(shop.untrack(program), 1)
    original.unlink()
    said = _refused(shop.untrack(program))
    assert f"{original}: No such file" in said and "build or install" in said
    assert _digest(program) == tracked


def test_a_directory_that_may_not_be_written(shop: Workshop) -> None:
    program = shop.compile()
    shop.directory.chmod(0o555)
    _check_untouched(shop, program, wanted="Permission denied", code=1)
    shop.directory.chmod(0o755)
    assert shop.track(program).returncode == 0
    shop.directory.chmod(0o555)
    assert "Permission denied" in _refused(shop.untrack(program), 1)
    assert shop.run(program).stdout == "hello\n"


# what happens when it is cut off


@pytest.mark.parametrize(
    "call", ["pwrite64", "write", "fchown", "fchmod", "utimensat", "fsync", "linkat", "rename"]
)
@pytest.mark.parametrize("when", [1, 2])
def test_killed_at_any_step_it_leaves_a_program(shop: Workshop, call: str, when: int) -> None:
    program = shop.compile()
    before = _digest(program)
    killing = ["strace", "-qq", "-o", "/dev/null", "-e", f"trace={call}"]
    killing += ["-e", f"inject={call}:signal=SIGKILL:when={when}"]
    command = [BIN / "datacrumbs_track", "--executable", program]
    shop.run(*killing, *command)
    assert shop.run(program).stdout == "hello\n"
    (shop.directory / ".program.datacrumbs-new").unlink(missing_ok=True)
    if _digest(program) == before:
        assert shop.track(program).returncode == 0
    assert str(LIBRARY) in _libraries(program)
    shop.run(*killing, BIN / "datacrumbs_untrack", "--executable", program)
    assert shop.run(program).stdout == "hello\n"
    if _digest(program) != before:
        assert shop.untrack(program).returncode == 0
    assert _digest(program) == before
    assert shop.names() == ["program"]


def test_what_a_killed_one_left_is_named(shop: Workshop) -> None:
    program = shop.compile()
    left = shop.directory / ".program.datacrumbs-new"
    left.write_bytes(b"half")
    _check_untouched(shop, program, wanted=f"rm {left}", code=1)


def test_a_full_disk(shop: Workshop) -> None:
    """In a mount namespace, whose tmpfs holds the program but not a second one."""
    script = """
        mount -t tmpfs -o size=2m none . && cd "$PWD" && chmod 777 . && cp /bin/bash program &&
        chown "$1" program && before=$(sha256sum program) &&
        setpriv --reuid "$1" --regid "$1" --clear-groups "$2" --executable program
        echo "exit code $?"; ls -A; [ "$before" = "$(sha256sum program)" ] && echo the same
    """
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(shop.user.pw_uid)]
    done = shop.run(*command, BIN / "datacrumbs_track", user=0, group=0)
    assert done.stdout.splitlines() == ["exit code 1", "program", "the same"], done
    assert "nothing was changed" in done.stderr


def test_two_at_once(shop: Workshop) -> None:
    program = shop.compile()
    before = _digest(program)
    for _ in range(3):
        command = [BIN / "datacrumbs_track", "--executable", program]
        started = [
            subprocess.Popen(
                command,
                user=shop.user.pw_uid,
                group=shop.user.pw_gid,
                extra_groups=[],
                stderr=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for _ in range(3)
        ]
        codes = [(process.communicate(), process.returncode)[1] for process in started]
        assert 0 in codes and set(codes) <= {0, 1, 2}
        assert shop.run(program).stdout == "hello\n"
        assert shop.untrack(program).returncode == 0
        assert (_digest(program), shop.names()) == (before, ["program"])


def test_one_that_comes_late_leaves_the_original_of_the_other(shop: Workshop) -> None:
    """It has opened the program, and the other is done before it goes on."""
    program = shop.compile()
    before = _digest(program)
    new = shop.directory / ".program.datacrumbs-new"
    slow = ["strace", "-qq", "-o", "/dev/null", "-P", new, "-e", "trace=openat"]
    slow += ["-e", "inject=openat:delay_enter=4000000:when=1"]
    command = [*slow, BIN / "datacrumbs_track", "--executable", program]
    with subprocess.Popen(
        command,
        user=shop.user.pw_uid,
        group=shop.user.pw_gid,
        extra_groups=[],
        stderr=subprocess.PIPE,
        text=True,
    ) as late:
        opened = Path(f"/proc/{late.pid}/task/{late.pid}/children")
        deadline = time.monotonic() + 20
        while not _has_open(opened, program):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert shop.track(program).returncode == 0
        _, said = late.communicate(timeout=60)
    assert late.returncode == 1 and "was replaced meanwhile; nothing was changed" in said
    assert shop.untrack(program).returncode == 0
    assert (_digest(program), shop.names()) == (before, ["program"])


def _has_open(children: Path, program: Path) -> bool:
    links = [
        link
        for child in children.read_text().split()
        for link in Path("/proc", child, "fd").glob("*")
    ]
    with contextlib.suppress(OSError):
        return any(link.readlink() == program for link in links)
    return False
