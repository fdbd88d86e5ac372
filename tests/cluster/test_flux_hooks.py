"""Flux's prolog and epilog on nodes with systemd, with a `flux` that replays a real one's answers.

The hooks are where datacrumbs_deploy puts them. The jobs are recorded ones of a real multi-user
instance; alice's probe file is where they say.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from cluster.bed import LIBRARY, ON_ONE_SUITE, PREFIX, UIDS, Bed
from flux_jobs.replay import ERRORS, JOBS, Replay

pytestmark = ON_ONE_SUITE

JOB = JOBS["traced"]["ids"]["f58plain"]
RECORDED_PATH = "/etc/datacrumbs/probes/io.json"
DD = ("dd", "if=/dev/zero", "of=/dev/null", "bs=4097", "count=23", "status=none")
DEPLOY = (PREFIX / "bin/datacrumbs_deploy", "scheduler-hooks", "--scheduler", "flux")


class Flux:
    """What Flux does on a node for a job: its prolog, tasks and epilog."""

    def __init__(self, cluster: Bed, replay: Replay) -> None:
        self.cluster, self.replay = cluster, replay

    def hook(self, name: str, job: dict[str, str], *, expect: int = 0) -> str:
        """Run a hook as flux-prolog@.service does; what it writes to standard error."""
        environ = job | {"FLUX_EXEC_PATH": "/shared/replay/exec"}
        environ["PATH"] = "/shared/replay:/usr/sbin:/usr/bin:/sbin:/bin"
        words = [f"{key}={value}" for key, value in environ.items()]
        program = f"/etc/flux/system/{name}.d/50-datacrumbs"
        return self.cluster.run("n1", "env", "-i", *words, program, expect=expect).stderr

    def tasks(self, *command: str) -> None:
        """A task of the job, in the environment that the shell plugin makes."""
        variables = [f"FLUX_JOB_ID=ƒ{JOB[1:]}", f"LD_PRELOAD={LIBRARY}"]
        self.cluster.run("n1", "env", *variables, *command, user="alice")

    def raised(self) -> list[str]:
        """The exceptions that Flux was asked to raise."""
        return [line for line in self.replay.asked() if line.startswith("raise ")]


@pytest.fixture
def flux(cluster: Bed) -> Iterator[Flux]:
    cluster.run("n1", *DEPLOY)
    cluster.run("n1", "mkdir", "-p", "/etc/datacrumbs/probes")
    cluster.run("n1", "ln", "-sfn", cluster.sign(), RECORDED_PATH)
    replay = Replay(cluster.shared / "replay")
    yield Flux(cluster, replay)
    cluster.run("n1", *DEPLOY, "--remove")
    cluster.run("n1", "test", "!", "-e", "/etc/flux")
    shutil.rmtree(replay.directory)


def test_a_job_is_traced_from_its_prolog_to_its_epilog(flux: Flux) -> None:
    job = flux.replay.job("traced")
    assert job["FLUX_JOB_USERID"] == str(UIDS["alice"])
    for _ in range(2):  # a second prolog of the same job changes nothing
        flux.hook("prolog", job)
        flux.cluster.run("n1", "test", "-e", f"/run/datacrumbs/datacrumbs-{JOB}.ready")
        values = flux.cluster.out("n1", "cat", f"/run/datacrumbs/datacrumbs-{JOB}.env")
        assert f"DATACRUMBS_JOB_CGROUP=imp-shell-0-{JOB}.service" in values.splitlines()
        assert "DATACRUMBS_JOB_NODES=fx[0-1]" in values.splitlines()
        flux.tasks(*DD)
    for _ in range(2):
        flux.hook("epilog", job)
    assert flux.cluster.writes(JOB, 4097) == {"n1": 46}
    assert flux.raised() == []


def test_an_epilog_without_a_prolog_and_jobs_without_metadata_do_nothing(flux: Flux) -> None:
    flux.hook("epilog", flux.replay.job("traced"))
    plain = flux.replay.job("no metadata")
    flux.hook("prolog", plain)
    flux.hook("epilog", plain)
    assert flux.cluster.leftovers("n1") == []


@pytest.mark.parametrize("name", ["not to be traced", "relative path", "a string", "null"])
def test_metadata_that_cannot_be_taken_is_told_to_the_user(flux: Flux, name: str) -> None:
    job = flux.replay.job(name) | {"FLUX_JOB_USERID": str(UIDS["alice"])}
    run_id = JOBS[name]["ids"]["f58plain"]
    flux.hook("prolog", job)
    (raised,) = flux.raised()
    assert raised.startswith(f"raise --type=datacrumbs --severity=4 {run_id} not traced on n1: ")
    assert 'write {"datacrumbs":' in raised
    assert "not traced: " in flux.cluster.log("n1", run_id)
    flux.hook("epilog", job)


def test_a_file_that_the_user_cannot_read_is_told_and_the_job_runs(flux: Flux) -> None:
    flux.cluster.run("n1", "ln", "-sfn", flux.cluster.sign("bob"), RECORDED_PATH)
    job = flux.replay.job("traced")
    flux.hook("prolog", job)
    (raised,) = flux.raised()
    assert f"{RECORDED_PATH}: Permission denied" in raised
    flux.hook("epilog", job)


def test_what_another_node_has_said_is_not_said_again(flux: Flux) -> None:
    flux.cluster.run("n1", "rm", RECORDED_PATH)
    job = flux.replay.job("traced")
    flux.hook("prolog", job)
    (raised,) = flux.raised()
    note = raised.partition(f" {JOB} ")[2].replace(" on n1: ", " on n7: ")
    event = '{"name":"exception","context":{"type":"datacrumbs","severity":4,"note":"%s"}}'
    flux.replay.answer("eventlog", event % note + "\n")
    flux.replay.answer("rank", "1\n")  # and this is not the job's first node
    flux.hook("prolog", job)
    assert flux.raised() == []
    flux.hook("epilog", job)


def test_a_user_who_cannot_be_told_finds_it_in_the_log(flux: Flux) -> None:
    flux.cluster.run("n1", "rm", RECORDED_PATH)
    job = flux.replay.job("traced")
    error = ERRORS["raise-inactive"]
    flux.replay.answer("raise", stderr=error["stderr"], rc=error["rc"])
    flux.hook("prolog", job)
    flux.replay.answer("raise")
    assert f"{RECORDED_PATH}: No such file" in flux.cluster.log("n1", JOB)
    flux.hook("epilog", job)


def test_on_error_fail_ends_the_job_and_drains_no_node(flux: Flux) -> None:
    flux.cluster.run("n1", "rm", RECORDED_PATH)
    job = flux.replay.job("traced")
    with flux.cluster.site("n1", "jobs: {on_error: fail}"):
        flux.hook("prolog", job)
        assert " --severity=0 " in flux.raised()[0]
        # only when Flux cannot be told so does the prolog fail, which drains the node
        flux.replay.answer("raise", rc=1)
        flux.hook("prolog", job, expect=1)
        flux.replay.answer("raise")
    flux.hook("epilog", job)
