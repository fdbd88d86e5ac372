"""datacrumbs_sbatch takes a command line of sbatch's apart as sbatch does."""

from __future__ import annotations

import json

import pytest

from datacrumbs.errors import BadInputError, UserError
from datacrumbs.jobs.slurm import SlurmJob, job_in, look_up
from datacrumbs.jobs.slurm_submit import options_in, script_comment, take_apart

HELP = """
Usage: sbatch [OPTIONS(0)...] [ : [OPTIONS(N)...]] script(0) [args(0)...]

Parallel run options:
  -A, --account=name          charge job to specified account
      --comment=name          arbitrary comment
      --container             Path to OCI container bundle
  -H, --hold                  submit job in held state
  -k, --no-kill               do not kill job on node failure
  -n, --ntasks=ntasks         number of tasks to run
      --nice[=value]          decrease scheduling priority by value
  -N, --nodes=N               number of nodes on which to run (N = min[-max])
      --parsable              outputs only the jobid and cluster name (if present),
      --wrap[=command string] wrap command string in a sh script and submit
"""
OPTIONS = options_in(HELP)
OURS = '{"datacrumbs":{"enable":"yes","probe_file":"/p"}}'


@pytest.mark.parametrize(
    ("given", "options", "comment", "rest"),
    [
        (["job.sh", "--comment", "x"], [], None, ["job.sh", "--comment", "x"]),
        (["-n", "4", "--comment", "a b", "j"], ["-n", "4", "--comment", "a b"], "a b", ["j"]),
        (["-n4", "--comment=a=b", "j"], ["-n4", "--comment=a=b"], "a=b", ["j"]),
        (["-Hn", "4", "j"], ["-Hn", "4"], None, ["j"]),
        (["-nH", "j"], ["-nH"], None, ["j"]),
        (["-HkN2", "j", "-n"], ["-HkN2"], None, ["j", "-n"]),
        (["--comm", "x", "j"], ["--comm", "x"], "x", ["j"]),
        (["--comment=x", "--comment=", "j"], ["--comment=x", "--comment="], "", ["j"]),
        (["--nice", "j"], ["--nice"], None, ["j"]),
        (["--container", "/c", "j"], ["--container", "/c"], None, ["j"]),
        (["--unknown=1", "j"], ["--unknown=1"], None, ["j"]),
        (["--hold", "--", "-j"], ["--hold"], None, ["--", "-j"]),
        (["--wrap", "a --comment b"], ["--wrap", "a --comment b"], None, []),
        (["--comment"], ["--comment"], "", []),
    ],
)  # fmt: skip
def test_options_end_where_getopt_ends_them(
    given: list[str], options: list[str], comment: str | None, rest: list[str]
) -> None:
    for place in range(len(options) + 1 if rest and options == given[: len(options)] else 0):
        if place and given[place - 1] in ("-n", "-Hn", "--comm", "--comment", "--container"):
            continue  # between an option and its value
        mixed = [*given[:place], "--datacrumbs-probe-file", "/p", *given[place:]]
        assert take_apart(mixed, OPTIONS).probe_file == "/p"
        assert take_apart(mixed, OPTIONS).components[0].arguments == options
    taken = take_apart(given, OPTIONS)
    (component,) = taken.components
    assert (component.arguments, component.comment, taken.rest) == (options, comment, rest)


def test_our_part_is_added_behind_the_options() -> None:
    taken = take_apart(["-N2", "--comment=x", "job.sh", "-a"], OPTIONS)
    assert taken.with_comment("/p", "of the script") == [
        "-N2",
        "--comment=x",
        f"--comment=x {OURS}",
        "job.sh",
        "-a",
    ]
    taken = take_apart(["-N2", "job.sh"], OPTIONS)
    assert taken.with_comment("/p", "script's")[1] == f"--comment=script's {OURS}"


def test_each_part_of_a_heterogeneous_job_gets_it() -> None:
    taken = take_apart(["-n1", ":", "-n2", "--comment=y", "job.sh"], OPTIONS)
    assert taken.with_comment("/p", None) == [
        *("-n1", f"--comment={OURS}", ":"),
        *("-n2", "--comment=y", f"--comment=y {OURS}", "job.sh"),
    ]


def test_ours_need_values() -> None:
    assert take_apart(["--datacrumbs-enable"], OPTIONS).enabled
    with pytest.raises(BadInputError, match="needs a file"):
        take_apart(["--datacrumbs-probe-file"], OPTIONS)


@pytest.mark.parametrize(
    ("script", "comment"),
    [
        (b'#!/bin/sh\n#SBATCH -N2 --comment="a b"\ntrue\n', "a b"),
        (b"#!/bin/sh\n\n# text\n#SBATCH --comment=a\n#SBATCH --comment 'b c' # why\n", "b c"),
        (b"#!/bin/sh\ntrue\n#SBATCH --comment=late\n", None),
        (b"#!/bin/sh\n##SBATCH --comment=off\n # SBATCH --comment=off\n", None),
        (b'#!/bin/sh\n#SBATCH --comment="open\n#SBATCH -n2\n', None),
        (b"\xff\xfe\x00", None),
        (b"", None),
    ],
)
def test_comments_of_scripts(script: bytes, comment: str | None) -> None:
    assert script_comment(script, OPTIONS) == comment


def test_scripts_of_heterogeneous_jobs_are_refused() -> None:
    with pytest.raises(BadInputError, match="heterogeneous"):
        script_comment(b"#!/bin/sh\n#SBATCH -n1\n#SBATCH hetjob\n#SBATCH -n2\n", OPTIONS)


def test_what_scontrol_answers_is_understood() -> None:
    job = {"job_id": 7, "user_name": "alice", "nodes": "n[1-3]", "comment": "x"}
    for state, text in (("RUNNING", "RUNNING"), (["RUNNING", "RESIZING"], "RUNNING,RESIZING")):
        answer = json.dumps({"jobs": [job | {"job_state": state}]})
        assert job_in(answer, 7) == SlurmJob(7, "alice", text, "n[1-3]", "x")
    with pytest.raises(UserError, match="Slurm has no job 8"):
        job_in('{"jobs":[]}', 8)
    for impossible in (-1, 0, 1 << 32):
        with pytest.raises(UserError, match="Slurm has no job"):
            look_up(impossible)
    for broken in ("", "[]", '{"jobs":[{}]}', '{"jobs":null}'):
        with pytest.raises(UserError, match="not understood"):
            job_in(broken, 8)
