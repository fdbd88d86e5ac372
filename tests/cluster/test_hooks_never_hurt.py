"""Whatever fails, jobs run, nodes stay in service, and nothing is left."""

from __future__ import annotations

import signal
import time

from cluster.bed import ON_ONE_SUITE, PREFIX, Bed
from cluster.test_slurm import COUNT, DD, SIZE, comment, job_of, sh

WRAPPER = PREFIX / "bin/datacrumbs_service_wrapper"
HANGS = ("ExecStart=", "ExecStart=/bin/sleep infinity")
SOON = "jobs: {start_timeout_s: 3, stop_timeout_s: 2}"


def _ended(cluster: Bed, name: str, job: str, asked: str = "") -> float:
    """Run a hook, which must succeed; how long it took, in seconds."""
    started = time.monotonic()
    with cluster.hook("n1", name, job, asked) as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    return time.monotonic() - started


def test_a_daemon_that_hangs_delays_the_job_until_the_deadline(cluster: Bed) -> None:
    with cluster.drop_in("n1", *HANGS), cluster.site("n1", SOON):
        started = time.monotonic()
        said = cluster.srun("-Q", "-wn1", "--comment", comment(cluster.sign()), *sh())
        took_s = time.monotonic() - started
        assert 2 < took_s < 8
        assert "datacrumbs: not traced: systemctl --quiet start took too long" in said.stderr
        cluster.wait_idle()
        cluster.wait(lambda: not cluster.leftovers("n1"), "the cleaner is done")


def test_a_job_cancelled_in_its_prolog_leaves_nothing(cluster: Bed) -> None:
    with cluster.drop_in("n1", *HANGS), cluster.site("n1", SOON):
        job = cluster.sbatch("sleep 60", "-wn1", "--comment", comment(cluster.sign()))
        cluster.wait_job(job, "R")
        cluster.out("n1", "scancel", job, user="alice")
        cluster.wait_idle()
        cluster.wait(lambda: not cluster.leftovers("n1"), "the cleaner is done")


@ON_ONE_SUITE
def test_slurms_own_deadline_is_taken_at_once(cluster: Bed) -> None:
    """PrologEpilogTimeout sends SIGTERM to the hook and all it has started."""
    with cluster.drop_in("n1", *HANGS):
        process = cluster.hook("n1", "prolog", "900", comment(cluster.sign()))
        cluster.wait(lambda: cluster.unit("n1", "900", "ActiveState") == "activating", "starting")
        started = time.monotonic()
        for line in cluster.out("n1", "pgrep", "-f", "prolog.d/50-datacrumbs").split():
            cluster.run("n1", "kill", line, expect=None)
        with process:
            assert process.wait(timeout=20) == 0
        assert time.monotonic() - started < 3
        cluster.wait(lambda: not cluster.leftovers("n1"), "the cleaner is done")


@ON_ONE_SUITE
def test_a_recorder_that_its_user_has_stopped_does_not_hold_the_node(cluster: Bed) -> None:
    with cluster.site("n1", SOON):
        job = cluster.sbatch(
            f"{' '.join(DD)}; sleep 1.5", "-wn1", "--comment", comment(cluster.sign())
        )
        cluster.wait(lambda: cluster.unit("n1", job, "ActiveState") == "active", "ready")
        recorder = cluster.out("n1", "cat", f"/run/datacrumbs/datacrumbs-{job}.ready")
        cluster.out("n1", "kill", f"-{signal.SIGSTOP.value}", recorder, user="alice")
        cluster.wait_idle(20)
        assert cluster.unit("n1", job, "ActiveState") == "deactivating"
        cluster.out("n1", "kill", f"-{signal.SIGCONT.value}", recorder)
        cluster.wait(lambda: not cluster.leftovers("n1"), "the cleaner is done")
    assert "systemd goes on stopping it" in cluster.log(
        "n1", job
    ) or "took too long" in cluster.log("n1", job)
    assert cluster.writes(job, SIZE) == {"n1": COUNT}


@ON_ONE_SUITE
def test_the_watchdog_ends_a_recorder_that_hangs(cluster: Bed) -> None:
    with cluster.drop_in("n1", "WatchdogSec=4", "TimeoutAbortSec=2"):
        job = cluster.sbatch("sleep 12", "-wn1", "--comment", comment(cluster.sign()))
        cluster.wait(lambda: cluster.unit("n1", job, "ActiveState") == "active", "ready")
        time.sleep(5)  # it beats: it lives
        assert cluster.unit("n1", job, "ActiveState") == "active"
        recorder = cluster.out("n1", "cat", f"/run/datacrumbs/datacrumbs-{job}.ready")
        cluster.out("n1", "kill", f"-{signal.SIGSTOP.value}", recorder)
        cluster.wait(lambda: cluster.unit("n1", job, "ActiveState") == "failed", "ended")
        assert cluster.unit("n1", job, "Result") == "watchdog"
        cluster.wait_idle()


def test_a_killed_daemon_is_told_and_cleaned_up(cluster: Bed) -> None:
    job = cluster.sbatch(f"{' '.join(DD)}; sleep 8", "-wn1", "--comment", comment(cluster.sign()))
    cluster.wait(lambda: cluster.unit("n1", job, "ActiveState") == "active", "ready")
    time.sleep(1)
    recorder = cluster.out("n1", "cat", f"/run/datacrumbs/datacrumbs-{job}.ready")
    cluster.out("n1", "kill", "-9", recorder, user="alice")
    cluster.wait(lambda: cluster.unit("n1", job, "ActiveState") == "failed", "ended")
    cluster.wait_idle()
    log = cluster.log("n1", job)
    assert "the recorder was ended by SIGKILL; the trace is cut off" in log
    assert f"datacrumbs@{job}.service: it ended with: exit-code" in log


@ON_ONE_SUITE
def test_a_daemon_that_cannot_be_executed_is_told(cluster: Bed) -> None:
    with cluster.drop_in("n1", "ExecStart=", "ExecStart=/nowhere/datacrumbs"):
        said = cluster.srun("-Q", "-wn1", "--comment", comment(cluster.sign()), *sh())
        assert "datacrumbs: not traced: it ended with: exit-code" in said.stderr
        cluster.wait_idle()


def test_without_its_python_a_hook_lets_jobs_run(cluster: Bed) -> None:
    hooks = "/etc/slurm/prolog.d/50-datacrumbs"
    cluster.out("n1", "sed", "-i.was", "s,^python=.*,python=/nowhere/python,", hooks)
    try:
        cluster.out("n1", "mv", f"{hooks}.was", "/etc/slurm/hook.was")
        said = cluster.srun("-Q", "-wn1", "--comment", comment(cluster.sign()), *sh())
        assert job_of(said.stdout)
        cluster.wait_idle()
        assert "ended with exit code 127" in cluster.out("n1", "journalctl", "-t", "datacrumbs")
    finally:
        cluster.out("n1", "mv", "/etc/slurm/hook.was", hooks)


def test_on_error_fail_fails_the_job_only_if_the_admin_says_so(cluster: Bed) -> None:
    job = ""
    with cluster.site("n1", "jobs: {on_error: fail}"):
        job = cluster.sbatch("true", "-wn1", "--comment", comment("/none"))
        cluster.wait(lambda: "drained" in cluster.node_states(), "drained, as asked")
    cluster.out("n1", "scancel", job)
    cluster.out("n1", "scontrol", "update", "node=n1", "state=resume")
    assert "/none: No such file" in cluster.log("n1", job)


@ON_ONE_SUITE
def test_a_broken_system_yaml_lets_jobs_run(cluster: Bed) -> None:
    with cluster.site("n1", "jobs: {on_eror: fail}"):
        said = cluster.srun("-Q", "-wn1", "--comment", comment(cluster.sign()), *sh())
        assert job_of(said.stdout)
        assert "jobs.on_eror" in cluster.out("n1", "journalctl", "-t", "datacrumbs")
        cluster.wait_idle()


@ON_ONE_SUITE
def test_hooks_may_come_twice_or_without_each_other(cluster: Bed) -> None:
    asked = comment(cluster.sign())
    _ended(cluster, "epilog", "901")
    _ended(cluster, "prolog", "901", asked)
    since = cluster.unit("n1", "901", "ActiveEnterTimestampMonotonic")
    _ended(cluster, "prolog", "901", asked)
    assert cluster.unit("n1", "901", "ActiveEnterTimestampMonotonic") == since
    _ended(cluster, "epilog", "901")
    assert not cluster.leftovers("n1")
    _ended(cluster, "epilog", "901")
    _ended(cluster, "prolog", "902", comment("/none"))
    assert cluster.leftovers("n1") == ["datacrumbs-902.failed"]
    _ended(cluster, "epilog", "902")


@ON_ONE_SUITE
def test_a_run_whose_epilog_never_comes_ends_by_itself(cluster: Bed) -> None:
    with cluster.site("n2", "jobs: {abandoned_after_s: 2, time_limit_s: 1}"):
        sleeper = cluster.popen("n2", "sleep", "60", user="alice")
        process = cluster.hook("n2", "prolog", "903", comment(cluster.sign()))
        with process, sleeper:
            assert process.wait(30) == 0
            time.sleep(5)  # its time is over, but its user is here
            assert cluster.unit("n2", "903", "ActiveState") == "active"
            cluster.out("n2", "pkill", "-u", "alice", "sleep")
        cluster.wait(lambda: cluster.unit("n2", "903", "ActiveState") == "inactive", "over")
        assert cluster.unit("n2", "903", "Result") == "success"
        assert cluster.leftovers("n2") == ["datacrumbs-903.env"]
    assert "nobody has ended the run: it ends" in cluster.log("n2", "903")
    assert cluster.writes("903", SIZE) == {}
    with cluster.hook("n2", "epilog", "903") as late:
        assert late.wait(30) == 0


def test_a_run_that_has_a_jobs_id_is_not_taken_over(cluster: Bed) -> None:
    path, script = cluster.sign(), " ".join(DD)
    job = cluster.sbatch(script, "--hold", "-wn1", "--comment", comment(path))
    cluster.out("n1", WRAPPER, "start", job, "alice", path)
    cluster.out("n1", "scontrol", "release", job)
    cluster.wait_idle()
    said = (cluster.shared / f"home/alice/slurm-{job}.out").read_text()
    assert said.startswith(
        f"datacrumbs: not traced: run {job} goes on here already, started by datacrumbs_run or "
    )
    assert cluster.unit("n1", job, "ActiveState") == "active"
    refused = cluster.run("n1", WRAPPER, "stop", job, "bob", expect=1).stderr
    assert f"run {job} goes on here already, started by datacrumbs_run" in refused
    cluster.out("n1", WRAPPER, "stop", job, "alice")
    assert cluster.writes(job, SIZE) == {}


@ON_ONE_SUITE
def test_a_jobs_run_is_not_taken_over(cluster: Bed) -> None:
    path = cluster.sign()
    job = cluster.sbatch(f"{' '.join(DD)}; sleep 4", "-wn1", "--comment", comment(path))
    cluster.wait(lambda: cluster.unit("n1", job, "ActiveState") == "active", "ready")
    for action in (("start", job, "alice", str(path)), ("stop", job, "alice")):
        refused = cluster.run("n1", WRAPPER, *action, expect=1).stderr
        assert f"run {job} goes on here already, started by Slurm's prolog" in refused
    cluster.wait_idle()
    assert cluster.writes(job, SIZE) == {"n1": COUNT}


@ON_ONE_SUITE
def test_a_run_of_an_administrators_is_not_taken_over(cluster: Bed) -> None:
    path, run = cluster.sign(), "/run/datacrumbs"
    started = f"mkdir -p {run}; echo PROBE_FILE={path} >{run}/datacrumbs-904.env"
    cluster.out("n1", "sh", "-c", f"{started}; systemctl start datacrumbs@904")
    _ended(cluster, "prolog", "904", comment(path))
    assert cluster.unit("n1", "904", "ActiveState") == "active"
    assert "started with systemctl" in cluster.out("n1", "cat", f"{run}/datacrumbs-904.failed")
    _ended(cluster, "epilog", "904")
    assert cluster.unit("n1", "904", "ActiveState") == "active"
    cluster.out("n1", "systemctl", "stop", "datacrumbs@904")
    assert cluster.leftovers("n1") == ["datacrumbs-904.env"]
    cluster.out("n1", "rm", f"{run}/datacrumbs-904.env")


def test_a_node_that_goes_down_and_comes_back_is_clean(cluster: Bed) -> None:
    job = cluster.sbatch("sleep 60", "-wn3", "--no-requeue", "--comment", comment(cluster.sign()))
    cluster.wait(lambda: cluster.unit("n3", job, "ActiveState") == "active", "ready")
    cluster.out("n1", "scontrol", "update", "node=n3", "state=down", "reason=test")
    cluster.wait(lambda: not cluster.leftovers("n3"), "its epilog is done")
    # it has come back by itself, or is told to (ReturnToService)
    cluster.run("n1", "scontrol", "update", "node=n3", "state=resume", expect=None)


@ON_ONE_SUITE
def test_the_service_wrapper_is_the_same_without_a_scheduler(cluster: Bed) -> None:
    path = cluster.sign()
    cluster.out("n2", WRAPPER, "start", "by-hand", "alice", path)
    assert cluster.unit("n2", "by-hand", "ActiveState") == "active"
    program = (PREFIX / "bin/datacrumbs_wrap", "--run-id", "by-hand", *DD)
    cluster.out("n2", *program, user="alice")
    cluster.out("n2", WRAPPER, "stop", "by-hand", "2001")
    assert cluster.unit("n2", "by-hand", "ActiveState") == "inactive"
    assert cluster.writes("by-hand", SIZE) == {"n2": COUNT}
    refused = cluster.run("n2", WRAPPER, "start", "by-hand", "bob", path, expect=2)
    assert f"{path}: Permission denied" in refused.stderr
    cluster.out("n2", WRAPPER, "stop", "by-hand", "bob")
