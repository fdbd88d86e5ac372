"""Jobs of guests in a real multi-user instance of Flux: flux-security's IMP, systemd, three nodes.

DATACRUMBS_TEST_FLUX_IMAGE names a Debian 12 root file system with flux-core and flux-security
below /usr (system instance, IMP setuid root) and munge; Flux is in no package registry, so without
one these are skipped. Tasks are in cgroups of their own (sdexec).
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cluster.bed import CALLS, NODES, PREFIX, Bed, bed, install

from datacrumbs.probes.model import Select, SyscallLayer

DEPLOY = PREFIX / "bin/datacrumbs_deploy"
CONF = PREFIX / "share/datacrumbs/scheduler/flux/conf"
DD = "dd if=/dev/zero of=/dev/null bs=4097 count=23"
ID = "flux job id --to=f58plain $(flux job last)"

SITE = """
[systemd]
enable = true
[exec]
service = "sdexec"
imp = "/usr/libexec/flux/flux-imp"
[access]
allow-guest-user = true
[bootstrap]
curve_cert = "/etc/flux/system/curve.cert"
default_port = 8050
default_bind = "tcp://eth0:%p"
default_connect = "tcp://%h:%p"
hosts = [{ host = "n[1-3]" }]
[resource]
noverify = true
[[resource.config]]
hosts = "n[1-3]"
cores = "0-1"
"""
IMP = """
[exec]
allowed-users = ["flux"]
allowed-shells = ["/usr/libexec/flux/flux-shell"]
"""


@dataclass(frozen=True, slots=True)
class Flux:
    """The instance; n1 is its leader."""

    bed: Bed

    def alice(self, script: str, expect: int = 0) -> tuple[list[str], str]:
        """Run a script as a guest: lines of its output, and what it said besides."""
        done = self.bed.run("n1", "bash", "-c", script, user="alice", expect=expect, timeout_s=120)
        return done.stdout.splitlines(), done.stderr

    def owner(self, *command: str) -> str:
        """Run a command of Flux as the instance's owner."""
        return self.bed.out("n1", "runuser", "-u", "flux", "--", "flux", *command)

    def run(self, *command: str, probe_file: str = "probes.json.gz", nodes: int = 3) -> str:
        """A traced job, to its end; its id."""
        lines, _ = self.alice(f"flux run -N{nodes} {_asked(probe_file)} {' '.join(command)}; {ID}")
        return self.ended(lines[-1])

    def ended(self, job: str) -> str:
        """Wait until a job's epilogs are done."""
        self.owner("job", "wait-event", "-t", "60", job, "clean")
        return job


def _asked(probe_file: str = "probes.json.gz") -> str:
    return f"--datacrumbs-enable --datacrumbs-probe-file={probe_file}"


@pytest.fixture(scope="module")
def running() -> Iterator[Flux]:
    image = os.environ.get("DATACRUMBS_TEST_FLUX_IMAGE")
    if not image:
        pytest.skip("Flux: DATACRUMBS_TEST_FLUX_IMAGE names no image with it")
    with bed("bookworm", root=Path(image), units="munge") as made:
        _configure(made)
        flux = Flux(made)
        made.wait(lambda: "n[1-3]" in flux.owner("resource", "list", "-no", "{nodelist}"), "up", 60)
        yield flux


def _configure(made: Bed) -> None:
    """As the administrator's guide has it, our snippets as files of their own."""
    shared = made.shared / "site"
    for name, text in (("system", SITE), ("imp", IMP)):
        install(text, shared / name / "conf.d/a-site.toml")
        install((CONF / f"{name}.toml").read_text(), shared / name / "conf.d/datacrumbs.toml")
    made.out("n1", "flux", "keygen", "/shared/site/system/curve.cert")
    for node in NODES:
        made.out(node, "cp", "-r", "/shared/site/system", "/shared/site/imp", "/etc/flux/")
        made.out(node, "chown", "flux:", "/etc/flux/system/curve.cert")
        for part in ("scheduler-hooks", "flux-plugin"):
            said = made.out(node, DEPLOY, part, "--scheduler", "flux")
            assert "to be done" not in said
        made.out(node, "systemctl", "start", "--no-block", "flux")


@pytest.fixture
def flux(running: Flux) -> Iterator[Flux]:
    """The instance; afterwards no node is drained and nothing is left of any run."""
    running.bed.sign()
    yield running
    assert running.owner("resource", "drain", "-n") == ""
    for node in NODES:
        running.bed.wait(lambda node=node: not running.bed.leftovers(node), f"{node} is clean")


def test_a_guests_job_is_traced_on_every_node(flux: Flux) -> None:
    job = flux.run(DD)
    assert flux.bed.writes(job, 4097) == dict.fromkeys(NODES, 23)
    for path in flux.bed.hosts(job).values():
        assert path.stat().st_uid == 2001
        assert json.loads((path / "run.json").read_text())["nodes"] == ["n[1-3]"]


def test_all_of_a_guests_allocation_is_traced(flux: Flux) -> None:
    script = f"#!/bin/sh\nflux run -N2 {DD}\nflux run -n1 {_asked()} {DD}\n"
    install(script, flux.bed.shared / "home/alice/batch.sh", 0o755)
    flux.alice(f"flux batch -N2 --output=batch.out {_asked()} batch.sh")
    job = flux.ended(flux.alice(ID)[0][-1])
    assert sum(flux.bed.writes(job, 4097).values()) == 3 * 23
    said = (flux.bed.shared / "home/alice/batch.out").read_text()
    assert "this job is inside an allocation" in said


def test_a_job_that_cannot_be_traced_runs_and_is_told_so_once(flux: Flux) -> None:
    lines, said = flux.alice(f"flux run -N3 {_asked('none.gz')} echo ran; {ID}")
    assert lines[:3] == ["ran"] * 3
    told = [line for line in said.splitlines() if "severity=4" in line]
    assert len(told) == 1 and "none.gz: No such file or directory (alice must" in told[0]
    flux.ended(lines[-1])
    refused = flux.alice("flux run --setattr=system.datacrumbs.enable=yes true", expect=1)[1]
    assert refused.startswith("flux-run: ERROR: attributes.system.datacrumbs: ")


def test_the_cgroup_of_the_job_decides(flux: Flux) -> None:
    layer = SyscallLayer(name="syscall", functions=list(CALLS), select=Select.JOB)
    flux.bed.sign(name="job.gz", layers=[layer])
    static = shutil.copy("/usr/bin/busybox", flux.bed.shared / "busybox")  # which joins no run
    program = f"/shared/{Path(static).name} {DD}"
    flux.alice(f"(sleep 3; {program}) >/dev/null 2>&1 &")  # hers, but not of the job
    job = flux.run("sh", "-c", f"'{program}; exec sleep 4'", probe_file="job.gz")
    assert flux.bed.writes(job, 4097) == dict.fromkeys(NODES, 23)


def test_a_job_canceled_in_its_prolog_leaves_nothing(flux: Flux) -> None:
    for delay_s in (0.0, 0.5, 1.0):
        job = flux.alice(f"flux submit -N3 {_asked()} sleep 60")[0][-1]
        flux.alice(f"flux job wait-event {job} prolog-start; sleep {delay_s}; flux cancel {job}")
        flux.ended(job)


def test_a_broker_that_dies_leaves_no_run_behind(flux: Flux) -> None:
    with flux.bed.site("n2", "jobs: {abandoned_after_s: 3}"):
        flux.alice(f"flux submit -N3 {_asked()} sleep 30")
        job = flux.alice(ID)[0][-1]
        flux.bed.wait(lambda: flux.bed.unit("n2", job, "ActiveState") == "active", "ready")
        time.sleep(5)
        assert flux.bed.unit("n2", job, "ActiveState") == "active"
        flux.bed.out("n2", "systemctl", "kill", "-s", "KILL", "flux")
        flux.bed.wait(lambda: flux.bed.unit("n2", job, "ActiveState") == "inactive", "over", 60)
    flux.ended(job)
    assert "nobody has ended the run: it ends" in flux.bed.log("n2", job)
    flux.bed.out("n2", "rm", f"/run/datacrumbs/datacrumbs-{job}.env")
    flux.bed.out("n2", "systemctl", "start", "--no-block", "flux")
