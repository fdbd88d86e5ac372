"""datacrumbs_deploy below a directory: what it installs, leaves alone, removes and says."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from datacrumbs.config import SystemConfig
from datacrumbs.deploy import Places, untrusted

PREFIX = Path(sys.prefix)
UNITS = "etc/systemd/system"


class Host:
    """A host's files below ``root``, with Slurm and Flux as far as named."""

    def __init__(self, root: Path, *schedulers: str) -> None:
        self.root = root
        for name in schedulers:
            (root / "etc" / name).mkdir(parents=True)

    def deploy(self, *words: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [PREFIX / "bin/datacrumbs_deploy", *words, "--root", self.root],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    def files(self) -> dict[str, str]:
        """All files but the manifest, by their path from the root."""
        return {
            str(path.relative_to(self.root)): path.read_text()
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and path.name != "deployed.json"
        }

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path


HOOKS = ["prolog.d/50-datacrumbs", "epilog.d/50-datacrumbs"]
SERVICES = [
    f"{UNITS}/{name}"
    for name in (
        "datacrumbs@.service",
        "datacrumbs_sign_probes.service",
        "datacrumbs_sign_probes.socket",
    )
]
FLUX_PLUGIN = ["etc/flux/cli/plugins/datacrumbs.py", "etc/flux/shell/lua.d/datacrumbs.lua"]
SLURM = [*(f"etc/slurm/{hook}" for hook in HOOKS), "etc/slurm/datacrumbs_task_prolog.sh"]
FLUX = [f"etc/flux/system/{hook}" for hook in HOOKS]


@pytest.mark.parametrize(
    ("words", "schedulers", "expected"),
    [
        (["services"], [], SERVICES),
        (["scheduler-hooks"], ["slurm"], SLURM),
        (["scheduler-hooks"], ["flux"], FLUX),
        (["scheduler-hooks"], ["slurm", "flux"], SLURM + FLUX),
        (["scheduler-hooks", "--scheduler", "flux"], [], FLUX),
        (["flux-plugin"], [], FLUX_PLUGIN),
        (["all"], [], SERVICES),
        (["all"], ["slurm", "flux"], SERVICES + SLURM + FLUX + FLUX_PLUGIN),
    ],
)
def test_each_part_is_its_files_and_goes_without_a_trace(
    tmp_path: Path, words: list[str], schedulers: list[str], expected: list[str]
) -> None:
    host = Host(tmp_path, *schedulers)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = host.deploy(*words)
    assert (code, err) == (0, "")
    assert sorted(host.files()) == sorted(expected)
    for name in expected:
        assert f"install    /{name}\n" in out
    assert host.deploy(*words)[1].count("unchanged ") == len(expected)
    code, out, err = host.deploy(*words, "--remove")
    assert (code, err) == (0, "") and out.count("remove ") == len(expected)
    own = {tmp_path / "etc", tmp_path / "etc/datacrumbs"}  # where the manifest was
    assert set(tmp_path.rglob("*")) - own == set(before) - own


def test_paths_of_this_environment_are_in_them(tmp_path: Path) -> None:
    host = Host(tmp_path, "slurm", "flux")
    host.deploy("all")
    for name, text in host.files().items():
        assert "/opt/datacrumbs" not in text, name
    unit = host.files()[f"{UNITS}/datacrumbs@.service"]
    assert f"\nExecStart={PREFIX}/bin/datacrumbs ${{PROBE_FILE}} %i\n" in unit
    service = host.files()[f"{UNITS}/datacrumbs_sign_probes.service"]
    assert f"\nExecStart={PREFIX}/bin/datacrumbs_sign_probes\n" in service
    for name in (*SLURM[:2], *FLUX):
        assert f"\npython={PREFIX}/bin/python " in host.files()[name]
        assert os.access(tmp_path / name, os.X_OK)
        subprocess.run(["sh", "-n", tmp_path / name], check=True)
    library = PREFIX / "lib/datacrumbs/libdatacrumbs_client.so"
    assert f'local library = "{library}"' in host.files()[FLUX_PLUGIN[1]]
    assert library.is_file() and (PREFIX / "bin/python").exists()


def test_settings_of_the_site_are_in_them(tmp_path: Path) -> None:
    """As if system.yaml said so: what the command does, with another configuration."""
    import msgspec

    from datacrumbs.deploy import Part, files_of

    config = msgspec.convert(
        {
            "run_dir": "/run/dc",
            "client_library": "/lib/dc.so",
            "jobs": {"start_timeout_s": 20.5, "stop_timeout_s": 60},
            "signing": {"socket": "/run/dc-sign/s"},
        },
        SystemConfig,
    )
    texts = {
        str(file.path): file.content.decode()
        for part in Part
        for file in files_of(part, Places(), config, slurm=True, flux=True)
    }
    assert "\nrun_dir=/run/dc " in texts["/etc/flux/system/epilog.d/50-datacrumbs"]
    assert "\nlimit_s=65 " in texts["/etc/flux/system/epilog.d/50-datacrumbs"]
    assert "\nlimit_s=26 " in texts["/etc/flux/system/prolog.d/50-datacrumbs"]
    assert 'local run_dir = "/run/dc"' in texts["/etc/flux/shell/lua.d/datacrumbs.lua"]
    assert 'local library = "/lib/dc.so"' in texts["/etc/flux/shell/lua.d/datacrumbs.lua"]
    units = texts["/etc/systemd/system/datacrumbs@.service"]
    assert "\nEnvironmentFile=/run/dc/datacrumbs-%i.env\n" in units
    socket = texts["/etc/systemd/system/datacrumbs_sign_probes.socket"]
    assert "\nListenStream=/run/dc-sign/s\n" in socket


def test_dry_run_changes_nothing(tmp_path: Path) -> None:
    host = Host(tmp_path, "slurm", "flux")
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = host.deploy("all", "--dry-run")
    assert code == 0 and out.count("install ") == len(SERVICES + SLURM + FLUX + FLUX_PLUGIN)
    assert sorted(tmp_path.rglob("*")) == before
    host.deploy("all")
    files = host.files()
    code, out, _ = host.deploy("all", "--dry-run", "--remove")
    assert code == 0 and "remove " in out and host.files() == files


def test_files_of_others_are_not_replaced_and_then_nothing_of_the_part_is(tmp_path: Path) -> None:
    host = Host(tmp_path, "slurm")
    host.write("etc/slurm/epilog.d/50-datacrumbs", "theirs\n")
    code, _, err = host.deploy("scheduler-hooks")
    assert code == 1
    assert "refused    /etc/slurm/epilog.d/50-datacrumbs    not ours: move it away first" in err
    assert host.files() == {"etc/slurm/epilog.d/50-datacrumbs": "theirs\n"}
    assert host.deploy("scheduler-hooks", "--remove")[1] == ""
    assert host.files() == {"etc/slurm/epilog.d/50-datacrumbs": "theirs\n"}


@pytest.mark.parametrize("kind", ["link", "directory", "dangling"])
def test_what_is_no_file_is_not_replaced(tmp_path: Path, kind: str) -> None:
    host = Host(tmp_path, "slurm")
    target = host.write("elsewhere", "x")
    path = tmp_path / "etc/slurm/prolog.d/50-datacrumbs"
    path.parent.mkdir()
    if kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(target if kind == "link" else "/nowhere")
    assert host.deploy("scheduler-hooks")[0] == 1
    assert path.is_symlink() or path.is_dir()
    assert target.read_text() == "x"


def test_an_edited_file_is_neither_replaced_nor_removed(tmp_path: Path) -> None:
    host = Host(tmp_path, "flux")
    host.deploy("flux-plugin")
    name = FLUX_PLUGIN[0]
    host.write(name, "# ours now\n")
    code, _, err = host.deploy("flux-plugin")
    assert code == 1 and "changed since it was installed: move it away first" in err
    code, out, err = host.deploy("flux-plugin", "--remove")
    assert code == 1 and f"remove     /{FLUX_PLUGIN[1]}" in out
    assert f"refused    /{name}    changed since it was installed" in err
    assert host.files() == {name: "# ours now\n"}
    (tmp_path / name).unlink()
    assert host.deploy("flux-plugin", "--remove")[:2] == (0, f"absent     /{name}\n")
    assert not (tmp_path / "etc/datacrumbs/deployed.json").exists()


def test_a_file_of_an_earlier_version_is_replaced(tmp_path: Path) -> None:
    host = Host(tmp_path, "slurm")
    host.deploy("scheduler-hooks")
    name = SLURM[0]
    manifest = tmp_path / "etc/datacrumbs/deployed.json"
    old = host.write(name, "#!/bin/sh\n# version 0\n")
    plain = json.loads(manifest.read_text())
    digest = hashlib.sha256(old.read_bytes()).hexdigest()
    plain["files"][f"/{name}"]["sha256"] = [digest]
    manifest.write_text(json.dumps(plain))
    code, out, _ = host.deploy("scheduler-hooks")
    assert code == 0 and f"replace    /{name}" in out
    assert "version 0" not in host.files()[name]


def test_a_manifest_that_cannot_be_read_stops_everything(tmp_path: Path) -> None:
    host = Host(tmp_path, "slurm")
    for text in ("", "[]", '{"files": {}}'):
        host.write("etc/datacrumbs/deployed.json", text)
        for words in (["all"], ["all", "--remove"]):
            code, out, err = host.deploy(*words)
            assert (code, out) == (1, "") and "cannot tell what was deployed" in err
    assert host.files() == {}


def test_a_crash_after_the_manifest_is_mended_by_doing_it_again(tmp_path: Path) -> None:
    host = Host(tmp_path, "slurm")
    host.deploy("scheduler-hooks")
    (tmp_path / SLURM[0]).unlink()
    (tmp_path / "etc/slurm/prolog.d/.50-datacrumbs.new").write_text("half")
    code, out, _ = host.deploy("scheduler-hooks")
    assert code == 0 and f"install    /{SLURM[0]}" in out
    assert sorted(host.files()) == sorted(SLURM)


# what it says


def test_slurms_configuration_is_read_and_what_lacks_is_said(tmp_path: Path) -> None:
    host = Host(tmp_path, "slurm")
    conf = host.write("etc/slurm/slurm.conf", "ClusterName=x\n#Epilog=/etc/slurm/epilog.d/*\n")
    before = conf.read_text()
    out = host.deploy("scheduler-hooks")[1]
    assert "/etc/slurm/slurm.conf: Prolog=/etc/slurm/prolog.d/*\n" in out
    assert "/etc/slurm/slurm.conf: Epilog=/etc/slurm/epilog.d/*\n" in out
    assert "/etc/slurm/slurm.conf: PrologFlags=Alloc,DeferBatch" in out
    assert conf.read_text() == before
    plugin = PREFIX / "lib/datacrumbs/spank_datacrumbs.so"
    line = next(line for line in out.splitlines() if str(plugin) in line)
    host.write("etc/slurm/plugstack.conf", line.partition(": ")[2] + "\n")
    conf.write_text(
        "prolog = /etc/slurm/prolog.d/*\nEpilog=/etc/slurm/epilog.d/* # x\nPrologFlags=X11,alloc\n"
    )
    assert "to be done" not in host.deploy("scheduler-hooks")[1]
    conf.write_text(f"Prolog=/site/prolog\n{conf.read_text()}".replace("prolog =", "X ="))
    assert "(now /site/prolog: " in host.deploy("scheduler-hooks")[1]


def test_fluxs_configuration_is_read_and_what_lacks_is_said(tmp_path: Path) -> None:
    host = Host(tmp_path, "flux")
    out = host.deploy("scheduler-hooks")[1]
    for wanted in (
        "[access] allow-root-owner = true",
        '[job-manager] plugins = [{ load = "perilog.so" }]',
        "[job-manager.prolog] per-rank = true",
        "[job-manager.epilog] per-rank = true",
    ):
        assert f"/etc/flux/system/conf.d: {wanted}\n" in out
    # the snippet that is there to be included is all of it, also when it is cut in two
    snippet = (PREFIX / "share/datacrumbs/scheduler/flux/conf/system.toml").read_text()
    access, manager = snippet.split("[job-manager]", 1)
    host.write("etc/flux/system/conf.d/a.toml", access)
    host.write("etc/flux/system/conf.d/b.toml", "[job-manager]" + manager)
    assert "to be done" not in host.deploy("scheduler-hooks")[1]
    host.write("etc/flux/system/conf.d/c.toml", '[job-manager.epilog]\ncommand = ["/x"]\n')
    assert "job-manager.epilog.command is set" in host.deploy("scheduler-hooks")[1]
    host.write("etc/flux/system/conf.d/d.toml", "[[[")
    assert "d.toml: cannot be read" in host.deploy("scheduler-hooks")[1]


def test_a_site_with_housekeeping_in_the_epilogs_place(tmp_path: Path) -> None:
    host = Host(tmp_path, "flux")
    snippet = (PREFIX / "share/datacrumbs/scheduler/flux/conf/system.toml").read_text()
    changed = snippet.replace("[job-manager.epilog]", "[job-manager.housekeeping]")
    host.write("etc/flux/system/conf.d/a.toml", changed)
    wanted = "ln -s ../epilog.d/50-datacrumbs /etc/flux/system/housekeeping.d/50-datacrumbs "
    assert wanted in host.deploy("scheduler-hooks")[1]
    host.write("etc/flux/system/housekeeping.d/50-datacrumbs", "")
    assert "to be done" not in host.deploy("scheduler-hooks")[1]


def test_the_imp_takes_a_table_from_one_file_only(tmp_path: Path) -> None:
    host = Host(tmp_path, "flux")
    share = PREFIX / "share/datacrumbs/scheduler/flux/conf"
    host.write("etc/flux/system/conf.d/a.toml", (share / "system.toml").read_text())
    host.write("etc/flux/imp/conf.d/a.toml", '[exec]\nallowed-users = ["flux"]\n')
    out = host.deploy("scheduler-hooks")[1]
    for name in ("prolog", "epilog"):
        assert f"/etc/flux/imp/conf.d: [run.{name}] as in scheduler/flux/conf/imp.toml, in a" in out
    host.write("etc/flux/imp/conf.d/b.toml", (share / "imp.toml").read_text())
    assert "to be done" not in host.deploy("scheduler-hooks")[1]
    host.write("etc/flux/imp/conf.d/c.toml", "[run.housekeeping]\n")
    assert "[run.prolog] as in " in host.deploy("scheduler-hooks")[1]


def test_without_a_scheduler_there_are_no_hooks(tmp_path: Path) -> None:
    code, _, err = Host(tmp_path).deploy("scheduler-hooks")
    assert code == 1 and "no scheduler here" in err and "--scheduler" in err


def test_ordinary_users_may_look_but_not_touch() -> None:
    command = [PREFIX / "bin/datacrumbs_deploy", "services"]
    user = {"user": 65534, "group": 65534, "extra_groups": [], "cwd": "/"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, **user)
    assert done.returncode == 1 and "needs root" in done.stderr
    done = subprocess.run(
        [*command, "--dry-run"], capture_output=True, text=True, check=False, **user
    )
    assert done.returncode == 0 and "/etc/systemd/system/datacrumbs@.service" in done.stdout


def test_an_environment_that_others_can_change_is_not_made_roots(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))
    assert not any(str(tmp_path) in problem for problem in untrusted(Places()))
    tmp_path.chmod(0o777)
    assert any(problem.startswith(f"{tmp_path}: ") for problem in untrusted(Places()))
    tmp_path.chmod(0o700)
    os.chown(tmp_path, 65534, -1)
    assert any("uid 65534" in problem for problem in untrusted(Places()))
    assert list(untrusted(Places(root=tmp_path))) == []
