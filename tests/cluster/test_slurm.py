"""Jobs of a real Slurm are traced, refused, cancelled, requeued; no node is ever drained."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from cluster.bed import NODES, ON_ONE_SUITE, PREFIX, Bed

SIZE = 4097
COUNT = 23
DD = ("dd", "if=/dev/zero", "of=/dev/null", f"bs={SIZE}", f"count={COUNT}", "status=none")


def comment(path: Path | str) -> str:
    """A job's metadata."""
    return json.dumps({"datacrumbs": {"enable": "yes", "probe_file": str(path)}})


def job_of(said: str) -> str:
    """The job id that a job printed, on a line ``job N``."""
    return next(line.split()[1] for line in said.splitlines() if line.startswith("job "))


def sh(*commands: str) -> tuple[str, ...]:
    """A shell that says its job id and runs ``commands``."""
    return ("sh", "-c", "; ".join(["echo job $SLURM_JOB_ID", *commands]))


def test_srun_is_traced_on_every_node_by_its_comment(cluster: Bed) -> None:
    said = cluster.srun("-N3", "--comment", comment(cluster.sign()), *sh(" ".join(DD)))
    cluster.wait_idle()
    assert said.stderr == ""
    assert cluster.writes(job_of(said.stdout), SIZE) == dict.fromkeys(NODES, COUNT)


def test_a_node_whose_daemon_never_started_is_named(cluster: Bed) -> None:
    with cluster.drop_in("n3", "ExecStart=", "ExecStart=/nowhere/datacrumbs"):
        said = cluster.srun("-N3", "--comment", comment(cluster.sign()), *sh(" ".join(DD)))
        cluster.wait_idle()
    trace = f"/shared/home/alice/datacrumbs/{job_of(said.stdout)}"
    report = PREFIX / "bin/datacrumbs_report"
    found = json.loads(cluster.out("n1", report, "--format", "json", trace, user="alice"))
    assert ([host["host"] for host in found["hosts"]], found["missing_hosts"]) == (
        ["n1", "n2"],
        ["n3"],
    )
    shown = cluster.out("n1", report, trace, user="alice")
    assert "Nothing here from n3, which the job ran on too." in shown


def test_options_of_the_plugin_trace_a_batch_job_and_its_steps(cluster: Bed) -> None:
    cluster.sign()
    script = f"srun -N2 {' '.join(DD)}\nsrun -N1 -n1 {' '.join(DD)}\n"
    job = cluster.sbatch(
        script, "-N2", "--datacrumbs-enable", "--datacrumbs-probe-file=probes.json.gz"
    )
    cluster.wait_idle()
    said = (cluster.shared / f"home/alice/slurm-{job}.out").read_text()
    assert said == ""
    assert sum(cluster.writes(job, SIZE).values()) == 3 * COUNT
    assert len(cluster.hosts(job)) == 2


def test_an_untraced_job_costs_nothing_and_leaves_nothing(cluster: Bed) -> None:
    said = cluster.srun("-N3", "--comment", "nightly run", "sh", "-c", "echo [$LD_PRELOAD]")
    assert said.stdout == "[]\n" * 3
    for node in NODES:
        assert cluster.run(node, "ls", "/run/datacrumbs", expect=None).stdout == ""


@ON_ONE_SUITE
def test_a_variable_too_long_to_add_to_stays_as_it_is(cluster: Bed) -> None:
    asked = comment(cluster.sign())
    command = (
        f"ASAN_OPTIONS=$(printf %040000d 0) srun -Q -wn1 --comment '{asked}' "
        "sh -c 'echo ${#ASAN_OPTIONS} ${DATACRUMBS_RUN_ID:+joins}'"
    )
    assert cluster.out("n1", "sh", "-c", command, user="alice") == "40000 joins"
    cluster.wait_idle()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (comment("/shared/home/alice/none"), "/shared/home/alice/none: No such file or directory"),
        (comment("/etc/shadow"), "/etc/shadow: Permission denied (alice must be able to read it"),
        (comment("/etc/passwd"), "/etc/passwd: not a probe file (not gzip)"),
        (comment("p.json.gz"), "job metadata: \"probe_file\" must be an absolute path"),
        ('{"datacrumbs":{"enable":"yes"}}', 'job metadata: "probe_file" is missing'),
        ('{"datacrumbs":{"composite":"x"}}', "job metadata: unknown key 'composite'"),
        ('{"datacrumbs":', "job metadata: not valid JSON"),
        ('a\nb"\'$(reboot) {datacrumbs:{}}', "quotes lost in the shell?"),
    ],
)  # fmt: skip
@ON_ONE_SUITE
def test_a_refusal_is_told_to_the_user_and_the_job_runs(cluster: Bed, text: str, told: str) -> None:
    said = cluster.srun("-Q", "-wn1", "-n2", "--comment", text, *sh())
    lines = said.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("datacrumbs: not traced: ") and told in lines[0]
    log = cluster.log("n1", job_of(said.stdout))
    assert told in log and len(log.splitlines()) == 1
    assert said.stdout.count("job ") == 2


def test_what_the_daemon_refuses_is_told_to_the_user(cluster: Bed) -> None:
    for changes, told in (
        ({"expires": int(time.time()) - 5}, "/shared/home/alice/bad.gz: expired 20"),
        ({"uid": 2002, "user": "bob"}, "made for bob (uid 2002), not for uid 2001"),
        ({"cluster": "other"}, "made for cluster 'other', this host's is ''"),
    ):
        path = cluster.sign(name="bad.gz", **changes)
        said = cluster.srun("-wn1", "--comment", comment(path), *sh())
        assert told in said.stderr, said.stderr
        assert told in cluster.log("n1", job_of(said.stdout))
    cluster.wait_idle()


def test_the_plugin_refuses_at_submission(cluster: Bed) -> None:
    for option, told in (
        ("--datacrumbs-probe-file=none.gz", "none.gz: No such file or directory"),
        ("--datacrumbs-probe-file=/etc/shadow", "/etc/shadow: Permission denied"),
        ("--datacrumbs-probe-file=/dev/null", "/dev/null: not a regular file"),
        ("--datacrumbs-probe-file=a\nb", "without control characters"),
        ("--datacrumbs-enable", "add --datacrumbs-probe-file=FILE"),
    ):
        said = cluster.run("n1", "sbatch", option, "--wrap=true", user="alice", expect=None)
        assert said.returncode != 0 and told in said.stderr
    assert cluster.out("n1", "squeue", "-h") == ""


@ON_ONE_SUITE
def test_the_example_is_a_traced_job(cluster: Bed) -> None:
    cluster.sign()
    example = PREFIX / "share/datacrumbs/examples/slurm_job.sh"
    command = ("sbatch", "--parsable", "--datacrumbs-probe-file=probes.json.gz", example)
    job = cluster.out("n1", *command, user="alice")
    cluster.wait_idle()
    assert list(cluster.writes(job, SIZE).values()) == [COUNT] * 2


@ON_ONE_SUITE
def test_two_probe_files_are_refused(cluster: Bed) -> None:
    cluster.sign()
    said = cluster.srun(
        "--comment", comment("/other"), "--datacrumbs-probe-file=probes.json.gz", "true"
    )
    assert "not traced: --comment names /other, --datacrumbs-probe-file /shared" in said.stderr


@ON_ONE_SUITE
def test_the_comment_may_change_while_the_job_runs(cluster: Bed) -> None:
    job = cluster.sbatch(f"sleep 2; {' '.join(DD)}", "--comment", comment(cluster.sign()))
    cluster.wait_job(job)
    cluster.out("n1", "scontrol", "update", f"job={job}", "comment=nothing", user="alice")
    cluster.wait_idle()
    assert sum(cluster.writes(job, SIZE).values()) == COUNT
    plain = cluster.sbatch("sleep 1")
    cluster.wait_job(plain)
    asked = f"comment={comment(cluster.sign())}"
    cluster.out("n1", "scontrol", "update", f"job={plain}", asked, user="alice")
    cluster.wait_idle()
    assert not cluster.hosts(plain)


def test_users_and_jobs_of_one_node_do_not_see_each_other(cluster: Bed) -> None:
    jobs = {}
    for name, user, size in (("a", "alice", 4097), ("b", "bob", 4099), ("c", "alice", 4111)):
        dd = f"dd if=/dev/zero of=/dev/null bs={size} count={COUNT} status=none"
        script = f"sleep 1; for i in 1 2 3; do {dd}; sleep 0.3; done"
        asked = comment(cluster.sign(user))
        jobs[name] = cluster.sbatch(script, "-wn2", "--comment", asked, user=user)
    cluster.wait_idle()
    seen = {
        name: [cluster.writes(jobs[name], size, user)["n2"] for size in (4097, 4099, 4111)]
        for name, user in (("a", "alice"), ("b", "bob"), ("c", "alice"))
    }
    each = 3 * COUNT
    assert seen == {"a": [each, 0, 0], "b": [0, each, 0], "c": [0, 0, each]}


def test_arrays_and_heterogeneous_jobs(cluster: Bed) -> None:
    before = cluster.runs()
    asked = comment(cluster.sign())
    said = cluster.srun(
        "-n1", "-wn1", "--comment", asked, *sh(" ".join(DD)),
        ":", "-n1", "-wn2", "--comment", "untraced", *sh(" ".join(DD)),
    )  # fmt: skip
    cluster.sbatch(" ".join(DD), "--array=1-3", "--comment", asked)
    cluster.wait_idle()
    first = min(int(line.split()[1]) for line in said.stdout.splitlines())
    assert cluster.writes(str(first), SIZE) == {"n1": COUNT}
    info = json.loads((cluster.hosts(str(first))["n1"] / "run.json").read_text())
    assert info["nodes"] == ["n1"]
    of_array = cluster.runs() - before - {str(first)}
    assert len(of_array) == 3
    assert all(sum(cluster.writes(one, SIZE).values()) == COUNT for one in of_array)


def _wait_for_writes(cluster: Bed, job: str) -> None:
    marker = cluster.shared / f"home/alice/{job}.wrote"
    cluster.wait(marker.exists, "the job has written", 60)


def test_a_requeued_job_is_a_new_run(cluster: Bed) -> None:
    script = f"{' '.join(DD)}; touch $SLURM_JOB_ID.wrote; [ $SLURM_RESTART_COUNT ] || sleep 30"
    job = cluster.sbatch(script, "--requeue", "-wn3", "--comment", comment(cluster.sign()))
    _wait_for_writes(cluster, job)
    cluster.out("n1", "scontrol", "requeue", job, user="alice")
    cluster.wait_job(job, "PD")
    # Not Slurm's two minutes, but not the second in which slurmd was told to kill the job:
    # it starts none whose credential is that old
    cluster.out("n1", "scontrol", "update", f"job={job}", "StartTime=now+3")
    cluster.wait_idle()
    trace = cluster.shared / f"home/alice/datacrumbs/{job}"
    assert cluster.writes(job, SIZE) == {"n3": COUNT}
    assert len(list(trace.glob("previous-*"))) == 1
    assert cluster.log("n3", job).count(": ready\n") == 2


@ON_ONE_SUITE
def test_a_cancelled_job_has_a_complete_trace(cluster: Bed) -> None:
    script = f"{' '.join(DD)}; touch $SLURM_JOB_ID.wrote; sleep 60"
    job = cluster.sbatch(script, "-wn1", "--comment", comment(cluster.sign()))
    _wait_for_writes(cluster, job)
    cluster.out("n1", "scancel", job, user="alice")
    cluster.wait_idle()
    assert cluster.writes(job, SIZE) == {"n1": COUNT}


@ON_ONE_SUITE
def test_ten_jobs_at_once_on_one_node(cluster: Bed) -> None:
    asked = comment(cluster.sign())
    jobs = [cluster.sbatch(f"{' '.join(DD)}", "-n1", "-wn2", "--comment", asked) for _ in range(10)]
    cluster.wait_idle(120)
    assert [cluster.writes(job, SIZE) for job in jobs] == [{"n2": COUNT}] * 10


@ON_ONE_SUITE
def test_fifty_traced_jobs_on_each_of_three_nodes(cluster: Bed) -> None:
    """Back to back, four at a time on a node: none is lost and, as always, nothing is left."""
    asked = comment(cluster.sign())
    wide = ("-n1", "-c4", "--array=1-50", "-o", "/dev/null", "--comment", asked)
    before = cluster.runs()
    for node in NODES:
        cluster.sbatch(" ".join(DD), f"-w{node}", *wide)
    cluster.wait_idle(240)
    new = cluster.runs() - before
    assert len(new) == 150
    found = [cluster.writes(job, SIZE) for job in new]
    assert sorted(next(iter(hosts)) for hosts in found) == sorted(NODES * 50)
    assert all(list(hosts.values()) == [COUNT] for hosts in found)
    for node in NODES:
        pins = set(cluster.out(node, "ls", "/sys/fs/bpf").split())
        assert pins <= {"maps.debug", "progs.debug"}  # the kernel's own
        assert cluster.run(node, "pgrep", "-f", "bin/datacrumbs ", expect=None).stdout == ""


@ON_ONE_SUITE
def test_the_task_prolog_does_what_the_plugin_does(cluster: Bed) -> None:
    line = "TaskProlog=/etc/slurm/task_prolog.sh"
    for node in NODES:
        cluster.out(
            node, "sh", "-c", f"echo {line} >>/etc/slurm/slurm.conf; >/etc/slurm/plugstack.conf"
        )
    cluster.out("n1", "scontrol", "reconfigure")
    try:
        said = cluster.srun("-N2", "--comment", comment(cluster.sign()), *sh(" ".join(DD)))
        refused = cluster.srun("-n2", "-N1", "--comment", comment("/none"), "true")
        cluster.wait_idle()
    finally:
        plugin = f"optional /etc/slurm/spank_datacrumbs.so run_dir=/run/datacrumbs library={PREFIX}"
        plugin += "/lib/datacrumbs/libdatacrumbs_client.so"
        for node in NODES:
            cluster.out(node, "sed", "-i", "/^TaskProlog/d", "/etc/slurm/slurm.conf")
            cluster.out(node, "sh", "-c", f"echo {plugin} >/etc/slurm/plugstack.conf")
        cluster.out("n1", "scontrol", "reconfigure")
    assert sum(cluster.writes(job_of(said.stdout), SIZE).values()) == 2 * COUNT
    assert refused.stdout.count("datacrumbs: not traced: /none: No such file or directory") == 1
