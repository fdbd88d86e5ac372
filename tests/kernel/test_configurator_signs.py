"""The configurator as an ordinary user, with the real signing service (which needs root)."""

from __future__ import annotations

import os
import platform
import pwd
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from datacrumbs.config import load_system_config
from datacrumbs.probes.file import Verified, load_verified
from datacrumbs.probes.model import KernelLayer, Mode, UsdtLayer, UserLayer
from datacrumbs.signing.keys import load_public_keys

pytestmark = pytest.mark.root

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@dataclass(frozen=True)
class Site:
    """A signing service at work, a directory of the user's, and who the user is."""

    system: Path
    home: Path
    user: pwd.struct_passwd

    def configure(self, config: Path, out: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*_python("probe_configurator"), config, out, "--config", self.system],
            user=self.user.pw_uid,
            group=self.user.pw_gid,
            extra_groups=[],
            cwd=self.home,
            env=_environment(),
            capture_output=True,
            text=True,
            check=False,
        )

    def verified(self, out: Path) -> Verified:
        config = load_system_config(self.system)
        keys_dir = Path(config.keys.public_dir)
        return load_verified(
            out,
            public_keys=load_public_keys(keys_dir),
            keys_dir=keys_dir,
            max_bytes=config.limits.probe_file_bytes,
            now=time.time(),
            cluster=config.cluster,
            machine=platform.machine(),
            expect_user_uid=self.user.pw_uid,
        )


def _python(command: str) -> list[str]:
    call = f"from datacrumbs.cli.{command} import main; main()"
    return [sys.executable, "-c", call]


def _environment() -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(scope="module")
def site(ordinary_user: pwd.struct_passwd) -> Iterator[Site]:
    # not tmp_path: its parents are closed to other users
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        home = directory / "home"
        home.mkdir()
        os.chown(home, ordinary_user.pw_uid, ordinary_user.pw_gid)
        system = directory / "system.yaml"
        system.write_text(
            "cluster: lead\n"
            f"keys: {{private: {name}/key/private.pem, public_dir: {name}/keys}}\n"
            f"signing: {{socket: {name}/run/sign.sock}}\n"
        )
        system.chmod(0o644)
        with _service(system, directory / "run" / "sign.sock"):
            yield Site(system, home, ordinary_user)


@contextmanager
def _service(system: Path, socket: Path) -> Iterator[None]:
    command = [*_python("sign_probes"), "--config", str(system)]
    with subprocess.Popen(command, env=_environment(), stderr=subprocess.PIPE) as service:
        try:
            deadline = time.monotonic() + 20
            while not socket.exists() and service.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            assert socket.exists(), service.communicate()
            yield
        finally:
            service.terminate()
            service.communicate(timeout=20)


def test_an_ordinary_user_gets_a_probe_file_that_verifies(site: Site) -> None:
    out = site.home / "probes.json.gz"
    done = site.configure(EXAMPLES / "libc.yaml", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{out}: signed; for {site.user.pw_name}" in done.stdout
    probes = site.verified(out).probes
    libc, syscall = probes.layers
    assert isinstance(libc, UserLayer)
    assert (probes.user, probes.cluster) == (site.user.pw_name, "lead")
    assert len(libc.functions) > 50
    assert len(syscall.functions) > 100
    assert out.stat().st_uid == site.user.pw_uid


def test_everything_of_the_c_library_is_signed_too(site: Site) -> None:
    """The service checks each offset against the file: all that we find are starts."""
    config = site.home / "all.yaml"
    config.write_text(
        "capture_probes: [{name: libc, probe: uprobe, type: binary, file: libc.so.6, regex: .*}]"
    )
    done = site.configure(config, site.home / "all.json.gz")
    assert (done.returncode, done.stderr) == (0, "")
    assert site.verified(site.home / "all.json.gz").probes.probe_count() > 2000


EVERY_LAYER = """\
paths: {exclude: [/proc]}
capture_probes:
  - {name: vfs, probe: kprobe, type: ksym, regex: 'vfs_(read|write)', arguments: [{name: count}]}
  - {name: ext4, probe: kprobe, type: tracepoint, regex: ext4_sync_file, max_per_s: 100}
  - name: python
    probe: usdt
    binary_path: /usr/bin/python3
    provider: python
    pairs: {function__entry: function__return}
    arguments: [{index: 1, type: string, bytes: 64, as: function}]
  - {name: c, probe: uprobe, from: command /bin/ls, file: 'libc[.].*', regex: '.*', mode: profile,
     include_offsets: true}
  - {name: sys, probe: syscalls, type: set, set: io, min_duration: 10us}
"""


def test_every_kind_of_layer_is_signed(site: Site) -> None:
    """Root's own look at files and types agrees with the configurator's."""
    config, out = site.home / "every.yaml", site.home / "every.json.gz"
    config.write_text(EVERY_LAYER)
    done = site.configure(config, out)
    assert (done.returncode, done.stderr) == (0, "")
    probes = site.verified(out).probes
    vfs, ext4, python, libc, system_calls = probes.layers
    assert isinstance(vfs, KernelLayer) and isinstance(python, UsdtLayer)
    assert [[a.name for a in f.arguments] for f in vfs.functions] == [["count"], ["count"]]
    assert (ext4.max_per_s, system_calls.min_duration_ns) == (100, 10_000)
    assert python.functions[0].returns == "function__return"
    assert (libc.mode, len(libc.functions) > 2000) == (Mode.PROFILE, True)
    assert probes.exclude == ["/proc"]


@pytest.mark.parametrize(
    ("entry", "rule"),
    [
        (
            "probe: kprobe, type: ksym, regex: vfs_read, arguments: [{name: file}]",
            "policy.kernel_arguments: layer 'a': vfs_read: argument 'file' is not a number",
        ),
        (
            "probe: custom, file: mine.bpf.c, functions: [mine]",
            "policy.custom: layer 'a': custom programs are not allowed",
        ),
    ],
)
def test_what_the_site_does_not_allow_is_refused_in_one_line(
    site: Site, entry: str, rule: str
) -> None:
    config, out = site.home / "refused.yaml", site.home / "refused.json.gz"
    config.write_text(f"capture_probes: [{{name: a, {entry}}}]")
    (site.home / "mine.bpf.c").write_text("int x;\n")
    done = site.configure(config, out)
    assert done.returncode == 1
    assert f"signing service: {rule}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_an_existing_file_is_replaced_whole(site: Site) -> None:
    out = site.home / "again.json.gz"
    out.write_text("an old one")
    before = out.stat().st_ino
    assert site.configure(EXAMPLES / "io.yaml", out).returncode == 0
    assert out.stat().st_ino != before
    assert site.verified(out).probes.probe_count() > 100
    assert not [path for path in site.home.iterdir() if path.name.startswith(".")]


def test_a_directory_of_somebody_else_is_refused_before_signing(site: Site) -> None:
    out = site.home.parent / "probes.json.gz"
    done = site.configure(EXAMPLES / "io.yaml", out)
    assert done.returncode == 2
    assert f"{out}: cannot write to directory {out.parent}" in done.stderr


def test_a_lifetime_beyond_the_policy_is_the_services_refusal(site: Site) -> None:
    config = site.home / "long.yaml"
    config.write_text((EXAMPLES / "io.yaml").read_text().replace("lifetime: 30d", "lifetime: 52w"))
    out = site.home / "long.json.gz"
    done = site.configure(config, out)
    assert done.returncode == 1
    assert "signing service: policy.max_lifetime_s" in done.stderr
    assert not out.exists()
