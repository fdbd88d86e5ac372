"""datacrumbs_doctor as root: a good host passes whole, and nothing stays behind."""

from __future__ import annotations

import json
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

pytestmark = pytest.mark.root

CODE = "from datacrumbs.cli.doctor import main; main(prog_name='datacrumbs_doctor')"


@pytest.fixture
def host() -> Iterator[Path]:
    """A directory of root's, with a system.yaml that keeps everything below it."""
    root = Path(mkdtemp(prefix="dc-doctor-", dir="/run"))
    root.chmod(0o755)
    config = {
        "run_dir": f"{root}/run",
        "log_dir": f"{root}/log",
        "trace_dir": f"{root}/traces",
        "keys": {"private": f"{root}/signing/private.pem", "public_dir": f"{root}/keys"},
        "signing": {"socket": f"{root}/socket/sign.sock"},
    }
    (root / "system.yaml").write_text(json.dumps(config))
    yield root
    shutil.rmtree(root)


@pytest.fixture
def service(host: Path) -> Iterator[Path]:
    """The signing service at work; its log is ``host/service.log``."""
    with open(host / "service.log", "w") as log:
        code = "from datacrumbs.cli.sign_probes import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", code, "--config", host / "system.yaml"], stderr=log
        )
    try:
        for _ in range(200):
            if (host / "socket/sign.sock").exists():
                break
            time.sleep(0.05)
        yield host
    finally:
        process.terminate()
        process.wait(timeout=20)


def doctor(host: Path, *prefix: str) -> tuple[int, dict[str, dict[str, Any]]]:
    done = subprocess.run(
        [*prefix, sys.executable, "-c", CODE, "--config", host / "system.yaml", "--format", "json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd="/",
    )
    assert not done.stderr
    document = json.loads(done.stdout)
    return done.returncode, {check["name"]: check for check in document["checks"]}


def bpf_links() -> set[str]:
    """What is attached on this host now, as far as our programs go."""
    listed = subprocess.run(["bpftool", "-j", "link"], capture_output=True, text=True, check=True)
    return {str(link["id"]) for link in json.loads(listed.stdout or "[]")}


def test_a_good_host_passes_every_check(service: Path) -> None:
    code, found = doctor(service)
    assert [check for check in found.values() if check["ok"] is not True] == []
    assert code == 0
    assert "entry and return" in found["uprobe links"]["found"]
    assert '"decision": "refused"' in (service / "service.log").read_text()


def test_nothing_stays_attached_or_on_disk(host: Path) -> None:
    links, files = bpf_links(), sorted(host.rglob("*"))
    doctor(host)
    assert bpf_links() <= links
    assert sorted(host.rglob("*")) == files


def test_a_service_that_stopped_fails_on_the_host_that_has_the_key(host: Path) -> None:
    from datacrumbs.signing.keys import create_private_key

    keyid = create_private_key(host / "signing/private.pem", host / "keys")
    code, found = doctor(host)
    assert code == 1 and found["signing service"]["ok"] is False
    assert "systemctl start" in found["signing service"]["remedy"]
    assert keyid in found["private key"]["found"]
    (host / "keys" / f"{keyid}.pem").unlink()
    assert "public half" in doctor(host)[1]["private key"]["found"]


def test_without_capabilities_the_programs_do_not_load(host: Path) -> None:
    code, found = doctor(host, "setpriv", "--bounding-set=-bpf,-sys_admin")
    assert code == 1
    assert found["privileges"]["found"] == "root without CAP_SYS_ADMIN, CAP_BPF"
    assert "not permitted" in found["BPF programs"]["found"]
    assert found["uprobes"]["ok"] is None


def test_without_sys_admin_uprobes_fail_and_the_doctor_lives(host: Path) -> None:
    _, found = doctor(host, "setpriv", "--bounding-set=-sys_admin")
    assert found["tracepoints"]["ok"] is True
    assert found["uprobes"]["ok"] is False
    assert "ermission denied" in found["uprobes"]["found"]


def test_an_ordinary_user_is_told_what_needs_root(
    host: Path, ordinary_user: pwd.struct_passwd
) -> None:
    prefix = ("setpriv", f"--reuid={ordinary_user.pw_uid}", "--clear-groups")
    _, found = doctor(host, *prefix)
    unchecked = {name for name, check in found.items() if check["ok"] is None}
    assert {"BPF programs", "rings", "uprobes", "private key"} <= unchecked
    assert found["kernel types (BTF)"]["ok"] is True
