"""The prolog and epilog as Flux runs them, with a `flux` that replays a real one's answers.

What they do for a job that is traced is tried on nodes with systemd, in tests/cluster, and with a
real Flux, in test_instance.py. Here: that they cost nothing and hurt nobody.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flux_jobs.conftest import SCHEDULER
from flux_jobs.replay import ERRORS, JOBS, RECORDED, Replay

from datacrumbs.errors import BadInputError, UserError
from datacrumbs.jobs import flux
from datacrumbs.jobs.metadata import Metadata

PYTHON = """#!/bin/sh
# in the place of the environment's python: notes how it was called
{{ printf '%s\\n' "$*" "$FLUX_JOB_ID"; [ "$5" = stop ] || cat; }} >>{root}/called
[ ! -e {root}/hangs ] || exec sleep 60
exit "$(cat {root}/rc 2>/dev/null || echo 0)"
"""


@dataclass(frozen=True)
class Hooks:
    """Hooks as they are installed, below ``root``, with another python and short deadlines."""

    root: Path
    replay: Replay

    def __post_init__(self) -> None:
        (self.root / "run").mkdir()
        for name, text in (
            ("python", PYTHON.format(root=self.root)),
            ("systemd-run", f'#!/bin/sh\necho "$*" >>{self.root}/later\n'),
            ("logger", f'#!/bin/sh\necho "$*" >>{self.root}/logged\n'),
        ):
            (self.root / name).write_text(text)
            (self.root / name).chmod(0o755)
        for name in ("prolog", "epilog"):
            text = (SCHEDULER / f"{name}.d/50-datacrumbs").read_text()
            text = text.replace("/opt/datacrumbs/bin/python", f"{self.root}/python")
            text = text.replace("/run/datacrumbs", f"{self.root}/run")
            (self.root / name).write_text(re.sub(r"(?m)^(limit|ask)_s=\d+", r"\1_s=1", text))
            (self.root / name).chmod(0o755)

    def start(self, name: str, environ: dict[str, str], **settings: Any) -> subprocess.Popen[str]:
        path = {"PATH": f"{self.root}:{self.replay.directory}:/usr/sbin:/usr/bin:/sbin:/bin"}
        return subprocess.Popen(
            [self.root / name],
            env=path | environ,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **settings,
        )

    def run(self, name: str, environ: dict[str, str]) -> tuple[int, str]:
        with self.start(name, environ) as process:
            out, err = process.communicate(timeout=30)
        assert out == ""
        return process.returncode, err

    def called(self) -> list[str]:
        """How python was called: arguments, FLUX_JOB_ID, standard input."""
        path = self.root / "called"
        return path.read_text().splitlines() if path.exists() else []

    def text(self, name: str) -> str:
        path = self.root / name
        return path.read_text() if path.exists() else ""


@pytest.fixture(params=["dash", "bash"])
def hooks(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Hooks]:
    """The hooks under two shells that a distribution's /bin/sh may be."""
    (tmp_path / "answers").mkdir()
    hooks = Hooks(tmp_path, Replay(tmp_path / "answers"))
    for name in ("prolog", "epilog"):
        path = tmp_path / name
        path.write_text(path.read_text().replace("#!/bin/sh", f"#!/bin/{request.param}", 1))
    return hooks


# a job that is not ours


@pytest.mark.parametrize("name", ["no metadata", "single user, no metadata"])
def test_a_job_without_metadata_costs_one_question(hooks: Hooks, name: str) -> None:
    environ = hooks.replay.job(name)
    assert hooks.run("prolog", environ) == (0, "")
    assert hooks.replay.asked() == [f"info {environ['FLUX_JOB_ID']} jobspec"]
    assert hooks.run("epilog", environ) == (0, "")
    assert hooks.replay.asked() == [] and hooks.called() == []


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_a_question_that_fails_is_told_to_the_admin(hooks: Hooks, name: str) -> None:
    environ = hooks.replay.job("traced")
    hooks.replay.answer("jobspec", stderr=ERRORS[name]["stderr"], rc=ERRORS[name]["rc"])
    code, said = hooks.run("prolog", environ)
    ours = f"datacrumbs: the attributes of job {environ['FLUX_JOB_ID']} could not be read\n"
    assert (code, said) == (0, ERRORS[name]["stderr"] + ours)
    assert hooks.called() == []


def test_root_that_may_not_read_jobs_traces_nothing(hooks: Hooks) -> None:
    code, said = hooks.run("prolog", hooks.replay.job("root may not read"))
    assert code == 0 and "access is restricted to job/instance owner" in said


def test_a_broker_that_does_not_answer_costs_a_deadline(hooks: Hooks) -> None:
    environ = hooks.replay.job("traced")
    (hooks.replay.directory / "jobspec.hangs").touch()
    started = time.monotonic()
    assert hooks.run("prolog", environ)[0] == 0
    assert time.monotonic() - started < 5


def test_without_flux_or_python_or_a_job_id_nothing_happens(hooks: Hooks) -> None:
    environ = hooks.replay.job("traced")
    (hooks.root / "python").unlink()
    assert hooks.run("prolog", environ)[0] == 0
    assert "ended with exit code 127" in hooks.text("logged")
    assert hooks.run("prolog", {})[0] == 0
    assert hooks.run("epilog", {})[0] == 0
    for name in ("flux", "exec/flux-job"):
        (hooks.replay.directory / name).unlink()
    assert hooks.run("prolog", environ)[0] == 0
    assert hooks.run("epilog", environ | {"FLUX_JOB_ID": "1234"})[0] == 0


# a job that is


FORMS = {
    "f58plain": JOBS["single user, traced"]["ids"]["f58plain"],
    "f58": JOBS["single user, traced"]["ids"]["f58"],
    "decimal": JOBS["single user, traced"]["ids"]["dec"],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_python_gets_the_jobspec_and_the_plain_id(hooks: Hooks, form: str, locale: str) -> None:
    environ = hooks.replay.job("single user, traced") | {"LC_ALL": locale}
    environ["FLUX_JOB_ID"] = FORMS[form]
    assert hooks.run("prolog", environ) == (0, "")
    arguments, job_id, *jobspec = hooks.called()
    assert arguments == "-I -m datacrumbs.jobs.flux_hook start"
    assert job_id == FORMS["f58plain"]
    assert "\n".join(jobspec) == JOBS["single user, traced"]["jobspec"].rstrip("\n")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("left", ["env", "failed"])
def test_the_epilog_acts_on_what_the_prolog_left(hooks: Hooks, form: str, left: str) -> None:
    environ = hooks.replay.job("single user, traced") | {"FLUX_JOB_ID": FORMS[form]}
    assert hooks.run("epilog", environ) == (0, "")
    assert hooks.called() == []
    (hooks.root / f"run/datacrumbs-{FORMS['f58plain']}.{left}").touch()
    assert hooks.run("epilog", environ) == (0, "")
    assert hooks.called() == ["-I -m datacrumbs.jobs.flux_hook stop", FORMS["f58plain"]]


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (1, 0), (2, 0), (3, 1), (126, 0), (255, 0)])
def test_only_on_error_fail_fails_a_hook(hooks: Hooks, code: int, expected: int) -> None:
    (hooks.root / "rc").write_text(str(code))
    environ = hooks.replay.job("traced")
    (hooks.root / f"run/datacrumbs-{environ['FLUX_JOB_ID']}.env").touch()
    assert hooks.run("prolog", environ)[0] == expected
    assert hooks.run("epilog", environ)[0] == expected
    assert hooks.text("logged").count("ended with exit code") == (2 if code not in (0, 3) else 0)


@pytest.mark.parametrize("name", ["prolog", "epilog"])
def test_python_that_hangs_is_left_to_somebody_else(hooks: Hooks, name: str) -> None:
    environ = hooks.replay.job("traced")
    job_id = environ["FLUX_JOB_ID"]
    (hooks.root / f"run/datacrumbs-{job_id}.env").touch()
    (hooks.root / "hangs").touch()
    assert hooks.run(name, environ)[0] == 0
    assert f"-m datacrumbs.jobs.clean {job_id}" in hooks.text("later")


@pytest.mark.parametrize("name", ["prolog", "epilog"])
def test_a_log_that_hangs_does_not_hold_the_node(hooks: Hooks, name: str) -> None:
    (hooks.root / "logger").write_text("#!/bin/sh\nexec sleep 60\n")
    (hooks.root / "rc").write_text("5")
    environ = hooks.replay.job("traced")
    (hooks.root / f"run/datacrumbs-{environ['FLUX_JOB_ID']}.env").touch()
    started = time.monotonic()
    assert hooks.run(name, environ)[0] == 0
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("name", ["prolog", "epilog"])
def test_a_signal_ends_it_at_once_with_success(
    hooks: Hooks, name: str, number: signal.Signals
) -> None:
    path = hooks.root / name
    path.write_text(path.read_text().replace("limit_s=1", "limit_s=30"))
    environ = hooks.replay.job("traced")
    (hooks.root / f"run/datacrumbs-{environ['FLUX_JOB_ID']}.env").touch()
    (hooks.root / "hangs").touch()
    with hooks.start(name, environ) as process:
        deadline = time.monotonic() + 10
        while not hooks.called():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        # timeout(1) passes nothing on until it knows its child's number, which may be after
        # the child has begun; what it then leaves running, the cleaner stops
        time.sleep(0.5)
        started = time.monotonic()
        os.kill(process.pid, number)
        process.communicate(timeout=20)
    assert process.returncode == 0 and time.monotonic() - started < 5
    assert "-m datacrumbs.jobs.clean " in hooks.text("later")


# what python makes of it


@pytest.mark.parametrize("name", ["traced", "single user, traced", "sdexec", "batch"])
def test_recorded_jobs_that_ask(name: str) -> None:
    found = flux.metadata_in(JOBS[name]["jobspec"])
    assert found and found.probe_file == "/etc/datacrumbs/probes/io.json"


def test_an_odd_name_is_taken_as_it_is() -> None:
    found = flux.metadata_in(JOBS["odd name"]["jobspec"])
    assert found and found.probe_file == '/tmp/p "a" ü;$(id).json'


def test_a_recorded_job_that_does_not_ask() -> None:
    assert flux.metadata_in(JOBS["no metadata"]["jobspec"]) is None


@pytest.mark.parametrize(
    "name",
    ["not to be traced", "relative path", "no path", "a string", "a list", "null", "not yes"],
)
def test_recorded_metadata_that_cannot_be_taken(name: str) -> None:
    with pytest.raises(BadInputError) as caught:
        flux.metadata_in(JOBS[name]["jobspec"])
    assert caught.value.hint.startswith('write {"datacrumbs":')


@pytest.mark.parametrize(
    "text", ["", "[]", "3", '{"attributes": 3}', '{"attributes": {}}', "[" * 100_000, "\ud800"]
)
def test_what_is_no_jobspec_is_one_error(text: str) -> None:
    with pytest.raises(UserError, match="jobspec"):
        flux.metadata_in(text)


def test_a_jobspec_made_to_be_large_costs_its_size_and_no_more() -> None:
    resources = "[[],{},[1.5,3]]," * 1_000_000
    system = '{"datacrumbs":{"enable":"yes","probe_file":"/p"}}'
    jobspec = f'{{"resources":[{resources}0],"attributes":{{"system":{system}}}}}'.encode()
    tracemalloc.start()
    try:
        assert flux.metadata_in(jobspec) == Metadata("/p")
        assert tracemalloc.get_traced_memory()[1] < len(jobspec)
    finally:
        tracemalloc.stop()
    with pytest.raises(BadInputError, match="longer than 65536 bytes"):
        flux.metadata_in(b'{"attributes":{"system":{"datacrumbs":"%s"}}}' % (b"x" * 65536))


@pytest.mark.parametrize("name", JOBS)
def test_job_ids_in_all_forms_are_one(name: str) -> None:
    ids = JOBS[name]["ids"]
    assert {flux.f58plain(form) for form in ids.values()} == {ids["f58plain"]}


@pytest.mark.parametrize(
    "text",
    ["", "f", "x1", "f0", "fO", "-1", "1" * 21, str(1 << 64), "f" + "1" * 12, "f1/..", "\u0661"],
)
def test_what_is_no_job_id(text: str) -> None:
    with pytest.raises(BadInputError, match="is not a Flux job id"):
        flux.f58plain(text)


def test_what_a_user_was_told_is_read_from_the_eventlog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = Replay(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    replay.answer("eventlog", RECORDED["eventlog"])
    assert flux.notes("f1") == ["job runs untraced: probe file missing"]
    replay.answer("eventlog", "what is this\n")
    with pytest.raises(UserError, match="eventlog"):
        flux.notes("f1")


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_flux_errors_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    Replay(tmp_path).answer("jobspec", stderr=ERRORS[name]["stderr"], rc=ERRORS[name]["rc"])
    with pytest.raises(UserError) as caught:
        flux.lookup("f1")
    assert caught.value.message.startswith("flux job info: ")
    assert "\n" not in caught.value.message and "flux-job" not in caught.value.message


@pytest.mark.parametrize(
    ("answer", "nodes"),
    [
        (JOBS["traced"]["R"], "fx[0-1]"),
        ('{"execution": {"nodelist": ["a[1-3]", "b"]}}', "a[1-3],b"),
        ('{"execution": {}}', ""),
    ],
)
def test_the_nodes_a_job_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, nodes: str
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    Replay(tmp_path).answer("R", answer)
    assert flux.node_list("f1") == nodes


@pytest.mark.parametrize("answer", ["", "[]", '{"execution": {"nodelist": 3}}'])
def test_what_is_no_resource_set_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    Replay(tmp_path).answer("R", answer)
    with pytest.raises(UserError, match="resource set"):
        flux.node_list("f1")


def test_without_flux_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="flux: not found"):
        flux.lookup("f1")
