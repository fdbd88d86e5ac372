"""A real Slurm cluster of three nodes with systemd, in namespaces of this host."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pytest
from cluster.image import image

from datacrumbs.probes import model
from datacrumbs.probes.file import write_probe_file
from datacrumbs.signing import envelope, keys

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PREFIX = Path(sys.prefix)
PYTHON = PREFIX / "bin" / "python"
LIBRARY = PREFIX / "lib/datacrumbs/libdatacrumbs_client.so"
SCHEDULER = PREFIX / "share/datacrumbs/scheduler/slurm"
BEDS = Path("/var/tmp")
NODES = ("n1", "n2", "n3")
ON_ONE_SUITE = pytest.mark.parametrize("cluster_of", ["trixie"], indirect=True)
"""Marks what is tried on one version of Slurm only."""
UIDS = {"alice": 2001, "bob": 2002}
DISTRIBUTION = ("/usr/lib/python3/dist-packages",)
"""Where the environment sees the host's own packages (--system-site-packages)."""
CALLS = ("openat", "read", "write", "pwrite64", "close")
"""The system calls that the tests' probe files name."""


@dataclass(frozen=True, slots=True)
class Bed:
    """A running cluster; ``root`` is its directory on this host."""

    root: Path
    name: str
    suite: str
    units: str = ""

    @property
    def shared(self) -> Path:
        """What the nodes see as /shared."""
        return self.root / "shared"

    def _environ(self) -> dict[str, str]:
        plain = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
        return plain | {
            "BED_DIR": str(self.root),
            "BED_NAME": self.name,
            "BED_UNITS": self.units,
        }

    def control(self, verb: str, *arguments: str) -> None:
        """Run ``bed.sh verb``."""
        subprocess.run([HERE / "bed.sh", verb, *arguments], env=self._environ(), check=True)

    def popen(
        self, node: str, *command: str | Path, user: str = "root", **settings: Any
    ) -> subprocess.Popen[str]:
        """Start a command on a node."""
        login = [] if user == "root" else ["runuser", "-u", user, "--"]
        if user != "root":
            login += ["env", "-C", f"/shared/home/{user}", f"HOME=/shared/home/{user}"]
        return subprocess.Popen(
            [str(HERE / "bed.sh"), "x", node, *login, *map(str, command)],
            env=self._environ(),
            text=True,
            stdin=subprocess.DEVNULL,
            **settings,
        )

    def run(
        self,
        node: str,
        *command: str | Path,
        user: str = "root",
        expect: int | None = 0,
        timeout_s: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a node to its end; ``expect``: its exit code, None: any."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with self.popen(node, *command, user=user, **pipes) as process:
            try:
                out, err = process.communicate(timeout=timeout_s)
            except BaseException:
                process.kill()
                raise
        assert expect is None or process.returncode == expect, (
            f"{command}: {process.returncode}\n{out}\n{err}"
        )
        return subprocess.CompletedProcess(list(command), process.returncode, out, err)

    def out(self, node: str, *command: str | Path, **settings: Any) -> str:
        """A command's standard output, stripped."""
        return self.run(node, *command, **settings).stdout.strip()

    def wait(self, true: Any, what: str, timeout_s: float = 30) -> None:
        """Wait for ``true()``."""
        deadline = time.monotonic() + timeout_s
        while not true():
            assert time.monotonic() < deadline, f"not in time: {what}"
            time.sleep(0.1)

    def sign(self, owner: str = "alice", name: str = "probes.json.gz", **changes: Any) -> Path:
        """A probe file of ``owner``'s in the home directory, as the nodes name it."""
        now = int(time.time())
        fields: dict[str, Any] = {
            "format": model.FORMAT,
            "uid": UIDS[owner],
            "user": owner,
            "created": now,
            "expires": now + 3600,
            "host": "login",
            "cluster": "",
            "machine": platform.machine(),
            "layers": [model.SyscallLayer(name="syscall", functions=list(CALLS))],
        }
        probes = model.ProbeList(**(fields | changes))
        key = keys.load_private_key(self.root / "private.pem")
        path = self.shared / "home" / owner / name
        write_probe_file(path, envelope.sign(model.encode(probes), key))
        os.chown(path, UIDS[owner], UIDS[owner])
        path.chmod(0o600)
        return Path("/shared/home", owner, name)

    def srun(
        self, *arguments: str | Path, user: str = "alice", **settings: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run ``srun`` on n1."""
        return self.run("n1", "srun", *arguments, user=user, **settings)

    def sbatch(self, script: str, *options: str, user: str = "alice") -> str:
        """Submit a job on n1; its id."""
        home = self.shared / "home" / user
        install(f"#!/bin/sh\n{script}\n", home / "job.sh", 0o755)
        said = self.out("n1", "sbatch", "--parsable", *options, "job.sh", user=user)
        return said.splitlines()[-1]

    def wait_job(self, job: str, state: str = "R") -> None:
        """Wait until a job is in ``state``: a letter or two of Slurm's, "" for gone."""
        self.wait(
            lambda: (
                self.run("n1", "squeue", "-h", "-o", "%t", "-j", job, expect=None).stdout.strip()
                == state
            ),
            f"job {job} in {state!r}",
        )

    @contextlib.contextmanager
    def drop_in(self, node: str, *lines: str) -> Iterator[None]:
        """Change ``datacrumbs@.service`` on a node for a while."""
        directory = "/etc/systemd/system/datacrumbs@.service.d"
        self._write(node, f"{directory}/test.conf", "\n".join(["[Service]", *lines]))
        self.out(node, "systemctl", "daemon-reload")
        try:
            yield
        finally:
            self.out(node, "rm", "-r", directory)
            self.out(node, "systemctl", "daemon-reload")

    @contextlib.contextmanager
    def site(self, node: str, text: str) -> Iterator[None]:
        """Another ``system.yaml`` on a node for a while."""
        place = str(PREFIX / "etc/datacrumbs/system.yaml")
        self._write(node, "/etc/test-system.yaml", text)
        self.out(node, "mount", "--bind", "/etc/test-system.yaml", place)
        try:
            yield
        finally:
            self.out(node, "umount", place)

    def _write(self, node: str, path: str, text: str) -> None:
        self.out(node, "sh", "-c", 'mkdir -p "${1%/*}"; printf "%s\n" "$2" >"$1"', "sh", path, text)

    def unit(self, node: str, job: str, what: str) -> str:
        """A property of a run's unit."""
        return self.out(node, "systemctl", "show", "-P", what, f"datacrumbs@{job}")

    def hook(
        self, node: str, name: str, job: str, comment: str = "", user: str = "alice"
    ) -> subprocess.Popen[str]:
        """Start a hook as slurmd does: without PATH, with what Slurm says about the job."""
        about = {"SLURM_JOB_ID": job, "SLURM_JOB_UID": str(UIDS[user]), "SLURM_JOB_USER": user}
        about |= {"SLURM_JOB_COMMENT": comment} if comment else {}
        words = [f"{key}={value}" for key, value in about.items()]
        program = f"/etc/slurm/{name}.d/50-datacrumbs"
        return self.popen(node, "env", "-i", *words, program, stderr=subprocess.PIPE)

    def log(self, node: str, job: str, user: str = "alice") -> str:
        """The run's log on a node, read as its user."""
        return self.out(
            node, "cat", f"/var/log/datacrumbs/datacrumbs_{user}_{job}_{node}.log", user=user
        )

    def runs(self, user: str = "alice") -> set[str]:
        """The ids of all of a user's runs of which there is a trace."""
        traces = self.shared / "home" / user / "datacrumbs"
        return {path.name for path in traces.iterdir()} if traces.exists() else set()

    def hosts(self, job: str, user: str = "alice") -> dict[str, Path]:
        """The trace of a run: the directory of each of its hosts."""
        run = self.shared / "home" / user / "datacrumbs" / job
        return {path.name.removeprefix("host="): path for path in run.glob("host=*")}

    def writes(self, job: str, size: int, user: str = "alice") -> dict[str, int]:
        """How many write()s of ``size`` bytes each host of a complete trace holds."""
        hosts = self.hosts(job, user)
        for host, path in hosts.items():
            info = json.loads((path / "run.json").read_text())
            assert (info["state"], info["counts"]["lost"]) == ("complete", 0), (host, info)
        return {
            host: duckdb.sql(
                f"SELECT count(*) FROM '{path}/events-*.parquet' JOIN '{path}/functions-*.parquet' "
                f"USING (func) WHERE name = 'write' AND ret = {size}"
            ).fetchall()[0][0]
            for host, path in hosts.items()
            if list(path.glob("events-*.parquet"))
        }

    def node_states(self) -> set[str]:
        """Slurm's states of all nodes."""
        return set(self.out("n1", "sinfo", "-h", "-N", "-o", "%T").split())

    def wait_idle(self, timeout_s: float = 60) -> None:
        """Wait until no job is left and all nodes are idle: none is drained or down."""
        self.wait(
            lambda: not self.out("n1", "squeue", "-h") and self.node_states() == {"idle"},
            f"idle: {self.node_states()}, {self.out('n1', 'sinfo', '-R')}",
            timeout_s,
        )

    def leftovers(self, node: str) -> list[str]:
        """Units and files of runs on a node."""
        units = self.out(
            node, "systemctl", "list-units", "--all", "--plain", "--no-legend", "datacrumbs*"
        )
        files = self.out(node, "sh", "-c", "ls -A /run/datacrumbs 2>/dev/null || true")
        return units.splitlines() + files.split()


@contextlib.contextmanager
def bed(suite: str, *, root: Path | None = None, units: str = "") -> Iterator[Bed]:
    """A cluster of ``suite``, up; on leaving it is gone, whatever happened.

    ``root``: an image of that suite with more in it; ``units``: what its nodes start instead of
    Slurm.
    """
    remove_stale()
    name = f"dcbed{os.getpid()}-{suite[0]}"
    made = Bed(BEDS / f"datacrumbs-{name}", name, suite, units)
    made.root.mkdir(mode=0o755)
    try:
        _furnish(made)
        made.control("up", str(root or image(suite)), str(len(NODES)))
        yield made
    finally:
        made.control("down")


def remove_stale() -> None:
    """Remove beds whose test session was killed."""
    for path in BEDS.glob("datacrumbs-dcbed*"):
        match = re.fullmatch(r"datacrumbs-(dcbed(\d+)-\w)", path.name)
        if match and path.is_dir() and not Path("/proc", match[2]).exists():
            Bed(path, match[1], "").control("down")


def rendered(path: Path) -> str:
    """A hook or unit with this environment's paths in it, as an installation has."""
    text = path.read_text().replace("/opt/datacrumbs", str(PREFIX))
    return text.replace("ExecStart=datacrumbs", f"ExecStart={PREFIX}/bin/datacrumbs")


def install(text: str, path: Path, mode: int = 0o644) -> None:
    """Write a file, its directories included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _furnish(bed: Bed) -> None:
    conf = bed.root / "conf"
    slurm = conf / "etc/slurm"
    install((HERE / "slurm.conf").read_text(), slurm / "slurm.conf")
    plugin = "CgroupPlugin=" + ("disabled" if bed.suite == "trixie" else "cgroup/v1")
    install(plugin + "\n", slurm / "cgroup.conf")
    for hook in ("prolog.d", "epilog.d"):
        text = rendered(SCHEDULER / hook / "50-datacrumbs")
        install(text, slurm / f"{hook}/50-datacrumbs", 0o755)
    install(rendered(SCHEDULER / "task_prolog.sh"), slurm / "task_prolog.sh", 0o755)
    _spank_plugin(bed.suite, slurm / "spank_datacrumbs.so")
    line = f"optional /etc/slurm/spank_datacrumbs.so run_dir=/run/datacrumbs library={LIBRARY}\n"
    install(line, slurm / "plugstack.conf")
    unit = rendered(ROOT / "systemd/datacrumbs@.service")
    install(unit, conf / "etc/systemd/system/datacrumbs@.service")
    _python(bed, conf)
    keys.create_private_key(bed.root / "private.pem", conf / "etc/datacrumbs/keys")
    bed.shared.mkdir(mode=0o755)
    bed.shared.chmod(0o1777)
    for user, uid in UIDS.items():
        home = bed.shared / "home" / user
        home.mkdir(mode=0o700, parents=True)
        os.chown(home, uid, uid)


def _spank_plugin(suite: str, path: Path) -> None:
    """The plugin for the suite's Slurm: its header is in the image, its compiler is ours."""
    with tempfile.TemporaryDirectory() as include:
        Path(include, "slurm").symlink_to(image(suite) / "usr/include/slurm")
        source = str(SCHEDULER / "spank_datacrumbs.c")
        command = ["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{include}"]
        subprocess.run([*command, "-o", str(path), source], check=True)


def _python(bed: Bed, conf: Path) -> None:
    """Let the nodes see this environment, and the interpreter it is made of, where they are."""
    binary = Path(os.path.realpath(sys.executable))
    places = [PREFIX, binary, Path(sysconfig.get_path("stdlib"))]
    places += [place for place in map(Path, DISTRIBUTION) if place.is_dir()]
    (bed.root / "bind").write_text("".join(f"{place}\n" for place in places))
    link = Path(sys.executable)
    while link.is_symlink():
        target = link.parent / link.readlink()
        if not link.is_relative_to(PREFIX):
            there = conf / link.relative_to("/")
            there.parent.mkdir(parents=True, exist_ok=True)
            there.symlink_to(link.readlink())
        link = target
