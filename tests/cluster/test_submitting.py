"""datacrumbs_sbatch and datacrumbs_salloc with the real commands of Slurm."""

from __future__ import annotations

import subprocess

from cluster.bed import ON_ONE_SUITE, PREFIX, PYTHON, Bed, install
from cluster.test_slurm import COUNT, DD, SIZE, job_of, sh

SBATCH = PREFIX / "bin/datacrumbs_sbatch"
SALLOC = PREFIX / "bin/datacrumbs_salloc"
OPTION = "--datacrumbs-probe-file"


def _comment(cluster: Bed, job: str) -> str:
    shown = cluster.out("n1", "scontrol", "show", "job", job)
    return next(line.strip() for line in shown.splitlines() if line.strip().startswith("Comment="))


def _submit(cluster: Bed, *arguments: str) -> str:
    return cluster.out("n1", SBATCH, "--parsable", *arguments, user="alice").splitlines()[-1]


def test_sbatch_passes_on_all_and_adds_to_the_comment(cluster: Bed) -> None:
    path = cluster.sign()
    home = cluster.shared / "home/alice"
    text = f"#!/bin/sh\n#SBATCH --comment='of the script' -N2\necho $*\nsrun {' '.join(DD)}\n"
    install(text, home / "own.sh", 0o755)
    job = _submit(cluster, "-n", "2", OPTION, "probes.json.gz", "own.sh", "--comment", "mine")
    said = _comment(cluster, job)
    assert (
        said == f'Comment=of the script {{"datacrumbs":{{"enable":"yes","probe_file":"{path}"}}}}'
    )
    cluster.wait_idle()
    assert (home / f"slurm-{job}.out").read_text() == "--comment mine\n"
    assert sum(cluster.writes(job, SIZE).values()) == 2 * COUNT


@ON_ONE_SUITE
def test_sbatch_reads_scripts_from_standard_input_too(cluster: Bed) -> None:
    cluster.sign()
    text = f"#!/bin/sh\n#SBATCH --comment=piped\n{' '.join(DD)}\n"
    install(text, cluster.shared / "home/alice/piped.sh")
    piped = f"{SBATCH} --parsable {OPTION}=probes.json.gz <piped.sh"
    job = cluster.out("n1", "sh", "-c", piped, user="alice")
    assert _comment(cluster, job).startswith('Comment=piped {"datacrumbs"')
    wrapped = _submit(cluster, OPTION, "probes.json.gz", "--wrap", " ".join(DD))
    cluster.wait_idle()
    for one in (job, wrapped):
        assert sum(cluster.writes(one, SIZE).values()) == COUNT


@ON_ONE_SUITE
def test_salloc_traces_its_steps(cluster: Bed) -> None:
    cluster.sign()
    command = ("-Q", "-N2", OPTION, "probes.json.gz", *sh(f"srun {' '.join(DD)}"))
    said = cluster.run("n1", SALLOC, *command, user="alice")
    cluster.wait_idle()
    assert said.stderr == ""
    assert cluster.writes(job_of(said.stdout), SIZE).keys() == {"n1", "n2"}


@ON_ONE_SUITE
def test_bad_probe_files_are_refused_at_submission(cluster: Bed) -> None:
    expired = cluster.sign(name="old.gz", expires=1)
    for arguments, told in (
        ((OPTION, "none.gz", "x.sh"), "/shared/home/alice/none.gz: No such file or directory"),
        ((OPTION, str(expired), "x.sh"), "expired 1970-01-01"),
        ((OPTION, "/etc/passwd", "x.sh"), "not a probe file"),
        (("--datacrumbs-enable", "x.sh"), "add --datacrumbs-probe-file FILE"),
        ((OPTION, str(cluster.sign()), "--comment", "x" * 1000, "x.sh"), "1024 are possible"),
    ):
        said = cluster.run(
            "n1", SBATCH, *arguments, user="alice", expect=2 if told != "expired 1970-01-01" else 1
        )
        assert told in said.stderr and said.stderr.startswith("datacrumbs_sbatch: error: ")
    assert cluster.out("n1", "squeue", "-h") == ""


@ON_ONE_SUITE
def test_a_job_is_looked_up_by_its_id(cluster: Bed) -> None:
    job = cluster.sbatch("sleep 5", "-wn2", "--comment", "x")
    cluster.wait_job(job)
    code = f"from datacrumbs.jobs.slurm import look_up; print(look_up({job}))"
    said = cluster.out("n1", PYTHON, "-I", "-c", code)
    assert said == (
        f"SlurmJob(job_id={job}, user='alice', state='RUNNING', nodes='n2', comment='x')"
    )
    cluster.out("n1", "scancel", job)
    missing: subprocess.CompletedProcess[str] = cluster.run(
        "n1", PYTHON, "-I", "-c", code.replace(job, "4999"), expect=1
    )
    assert "UserError: Slurm has no job 4999" in missing.stderr
