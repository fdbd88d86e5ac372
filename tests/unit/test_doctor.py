"""datacrumbs_doctor: each check tells a good host from a bad one, and how to mend it."""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from datacrumbs.config import Keys, Ring, Signing, SystemConfig
from datacrumbs.signing.keys import create_private_key
from datacrumbs.tracer import checks

ME = pwd.getpwuid(os.geteuid())
SOMEBODY = pwd.struct_passwd(("somebody", "x", 54321, 54321, "", "/nowhere", "/bin/sh"))


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from datacrumbs.cli.doctor import main; main(prog_name='datacrumbs_doctor')"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def as_json(*arguments: str) -> tuple[int, dict[str, Any]]:
    done = doctor("--format", "json", *arguments)
    document: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, document


def system_yaml(directory: Path, **keys: Any) -> Path:
    """A system.yaml that only we can change."""
    path = directory / "system.yaml"
    path.write_text(json.dumps(keys))
    path.chmod(0o644)
    return path


def assert_failed(check: checks.Check, *, found: str, remedy: str) -> None:
    assert check.ok is False
    assert found in check.found
    assert remedy in check.remedy
    assert "\n" not in check.remedy


def test_a_wrong_system_yaml_fails_and_the_rest_is_still_checked(tmp_path: Path) -> None:
    path = system_yaml(tmp_path, run_dri="/run/x")
    code, document = as_json("--config", str(path))
    first, *rest = document["checks"]
    assert code == 1
    assert first["name"] == "system configuration" and first["ok"] is False
    assert "run_dri" in first["found"] and "run_dir" in first["remedy"]
    assert any(check["ok"] for check in rest)


def test_every_failure_has_a_one_line_remedy_and_counts_add_up(tmp_path: Path) -> None:
    path = system_yaml(tmp_path, keys={"public_dir": str(tmp_path / "none")})
    code, document = as_json("--config", str(path))
    failed = [check for check in document["checks"] if check["ok"] is False]
    assert code == 1 and "public keys" in [check["name"] for check in failed]
    assert all(check["remedy"] and "\n" not in check["remedy"] for check in failed)
    assert not any(check["remedy"] for check in document["checks"] if check["ok"] is not False)
    assert document["failed"] == len(failed)
    assert sum(document[key] for key in ("ok", "failed", "unchecked")) == len(document["checks"])


def test_the_table_fits_80_columns_and_has_no_colour_in_a_pipe() -> None:
    done = doctor()
    assert "kernel" in done.stdout and not done.stderr
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_an_unknown_user_is_bad_input() -> None:
    done = doctor("--user", "no-such-user")
    assert done.returncode == 2
    assert "no-such-user" in done.stderr


def test_kernel_and_types_of_this_host_are_good() -> None:
    assert checks.kernel().ok and checks.btf().ok and checks.libbpf().ok


def test_missing_or_wrong_types_fail(tmp_path: Path) -> None:
    assert_failed(checks.btf(tmp_path / "vmlinux"), found="No such file", remedy="BTF=y")
    (tmp_path / "vmlinux").write_bytes(b"ELF?")
    assert_failed(checks.btf(tmp_path / "vmlinux"), found="not BTF", remedy="/sys")


@pytest.mark.parametrize(
    ("text", "ok"),
    [
        ("[none] integrity confidentiality\n", True),
        ("none [integrity] confidentiality\n", True),
        ("none integrity [confidentiality]\n", False),
    ],
)
def test_only_the_strictest_lockdown_fails(tmp_path: Path, text: str, ok: bool) -> None:
    path = tmp_path / "lockdown"
    path.write_text(text)
    assert checks.lockdown(path).ok is ok


def test_rings_larger_than_memory_fail(tmp_path: Path) -> None:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal: 2097152 kB\nMemAvailable:    524288 kB\n")
    large = SystemConfig(ring=Ring(total_bytes=1 << 30, max_ring_bytes=1 << 29))
    assert_failed(checks.memory(large, path), found="512 MiB available", remedy="ring.total_bytes")
    assert checks.memory(SystemConfig(ring=Ring(total_bytes=1 << 20)), path).ok


@pytest.mark.parametrize("options", ["hidepid=invisible", "hidepid=2"])
def test_hidden_processes_fail(tmp_path: Path, options: str) -> None:
    path = tmp_path / "mountinfo"
    line = "22 1 0:21 / /proc rw,nosuid shared:5 - proc proc rw"
    path.write_text(f"{line},{options}\n")
    assert_failed(checks.process_visibility(path), found="hidepid", remedy="hidepid=0")
    path.write_text(f"{line},hidepid=0\n")
    assert checks.process_visibility(path).ok
    path.write_text(f"{line}\n")
    assert checks.process_visibility(path).ok


def test_a_client_library_that_is_none_fails(tmp_path: Path) -> None:
    path = tmp_path / "libdatacrumbs_client.so"
    config = SystemConfig(client_library=str(path))
    assert_failed(checks.client_library(config), found="No such file", remedy="client_library")
    path.write_bytes(b"\x7fELF something else")
    assert_failed(checks.client_library(config), found="datacrumbs_start", remedy="reinstall")


def test_a_client_library_that_others_can_change_fails(tmp_path: Path) -> None:
    path = tmp_path / "libdatacrumbs_client.so"
    path.write_bytes(SystemConfig().client_library_path().read_bytes())
    path.chmod(0o666)
    config = SystemConfig(client_library=str(path))
    assert_failed(checks.client_library(config), found="change it", remedy=f"chmod go-w {path}")


def test_an_environment_whose_python_is_roots_own_fails(tmp_path: Path) -> None:
    assert checks.commands().ok
    tmp_path.chmod(0o755)
    (tmp_path / "home").mkdir(mode=0o700)
    shutil.copy("/bin/true", tmp_path / "home" / "python")
    (tmp_path / "python").symlink_to("home/python")
    check = checks.commands(tmp_path / "python")
    assert_failed(check, found=f"it is {tmp_path}/home/python", remedy="/usr/bin/python3")


def test_a_run_directory_that_others_can_write_fails(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    directory.chmod(0o777)
    config = SystemConfig(run_dir=str(directory), log_dir=str(directory))
    for check in (checks.run_directory(config), checks.log_directory(config)):
        assert_failed(check, found="others than root can write", remedy=f"chmod 755 {directory}")


def test_a_trace_directory_must_be_writable_for_the_user(tmp_path: Path) -> None:
    config = SystemConfig(trace_dir=f"{tmp_path}/{{user}}/traces")
    assert checks.trace_directory(config, ME).ok
    tmp_path.chmod(0o755)
    check = checks.trace_directory(config, SOMEBODY)
    assert_failed(check, found=f"{tmp_path}/somebody/traces", remedy="trace_dir")
    tmp_path.chmod(0o777)
    somebodys_group = pwd.struct_passwd((ME.pw_name, "x", 54321, ME.pw_gid, "", "/", "/bin/sh"))
    assert checks.trace_directory(config, somebodys_group).ok
    assert not (tmp_path / ME.pw_name).exists()


def test_files_of_dead_runs_are_told_from_those_of_living_ones(tmp_path: Path) -> None:
    config = SystemConfig(run_dir=str(tmp_path))
    for name in ("dead.lock", "dead.ready", "alive.lock", "alive.ready", "alone.ready"):
        (tmp_path / f"datacrumbs-{name}").touch()
    with open(tmp_path / "datacrumbs-alive.lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        check = checks.leftovers(config)
    dead = [f"{tmp_path}/datacrumbs-{name}" for name in ("alone.ready", "dead.lock", "dead.ready")]
    assert_failed(check, found="dead.ready", remedy="rm " + " ".join(dead))
    subprocess.run(check.remedy.split(), check=True)
    for path in tmp_path.glob("*alive*"):
        path.unlink()
    assert checks.leftovers(config).ok


def test_keys_that_others_can_change_or_that_are_none_fail(tmp_path: Path) -> None:
    directory = tmp_path / "keys"
    config = SystemConfig(keys=Keys(public_dir=str(directory)))
    assert_failed(checks.public_keys(config), found="No such file", remedy="copy")
    keyid = create_private_key(tmp_path / "private.pem", directory)
    assert keyid in checks.public_keys(config).found and checks.public_keys(config).ok
    (directory / f"{keyid}.pem").chmod(0o666)
    assert_failed(checks.public_keys(config), found="0666", remedy="chmod")


def test_no_signing_service_is_no_failure_unless_this_host_has_its_key(tmp_path: Path) -> None:
    config = SystemConfig(
        keys=Keys(private=str(tmp_path / "signing/private.pem"), public_dir=str(tmp_path / "keys")),
        signing=Signing(socket=str(tmp_path / "sign.sock")),
    )
    assert checks.signing_service(config).ok is None
    (tmp_path / "sign.sock").touch()
    check = checks.signing_service(config)
    assert_failed(check, found="no signing service", remedy="systemctl start")


def test_every_check_is_json(tmp_path: Path) -> None:
    code, document = as_json()
    names = [check["name"] for check in document["checks"]]
    assert len(names) == len(set(names)) == 26
    assert code == (1 if document["failed"] else 0)
    assert {tuple(check) for check in document["checks"]} == {("name", "ok", "found", "remedy")}
    assert msgspec.json.decode(json.dumps(document))
