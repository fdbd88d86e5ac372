"""A real Flux instance of three brokers, with our prolog, epilog, CLI plugin and shell plugin.

Skipped without Flux. Where process 1 is no systemd, `systemctl` next to this file starts the real
daemon in its place.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flux_jobs.conftest import SCHEDULER, real_flux

from datacrumbs.probes import model
from datacrumbs.probes.file import write_probe_file
from datacrumbs.signing import envelope, keys

HERE = Path(__file__).parent
PREFIX = Path(sys.prefix)
WRITES = ("dd", "if=/dev/zero", "of=/dev/null", "bs=4097", "count=23", "status=none")

TOML = """
[resource]
noverify = true
[[resource.config]]
hosts = "node[0-2]"
cores = "0-1"
[job-manager]
plugins = [{{ load = "perilog.so" }}]
[job-manager.prolog]
command = ["{root}/prolog"]
per-rank = true
timeout = "60s"
cancel-on-exception = true
[job-manager.epilog]
command = ["{root}/epilog"]
per-rank = true
timeout = "60s"
"""

SYSTEM_YAML = """
trace_dir: {root}/traces
run_dir: {root}/run
log_dir: {root}/log
keys: {{private: {root}/private.pem, public_dir: {root}/keys}}
ring: {{total_bytes: 33554432}}
"""

INITRC = """
plugin.load {{ file = "*.so", conf = {{}} }}
source ("{root}/datacrumbs.lua")
"""


@dataclass(frozen=True)
class Instance:
    """The running instance; ``root`` is its site."""

    root: Path
    environ: dict[str, str]

    @property
    def probes(self) -> Path:
        return self.root / "probes.json.gz"

    def run(self, *command: str | Path, expect: int | None = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            list(map(str, command)),
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            cwd="/",
        )
        assert expect in (None, done.returncode), done
        return done

    def flux(self, *arguments: str | Path, expect: int | None = 0) -> Any:
        return self.run("flux", *arguments, expect=expect)

    def last(self) -> str:
        return str(
            self.flux(
                "job", "id", "--to=f58plain", self.flux("job", "last").stdout.strip()
            ).stdout.strip()
        )

    def enable(self, path: Path | None = None) -> tuple[str, str]:
        return "--datacrumbs-enable", f"--datacrumbs-probe-file={path or self.probes}"

    def exceptions(self, job: str) -> list[dict[str, Any]]:
        lines = filter(None, self.flux("job", "info", job, "eventlog").stdout.splitlines())
        events = map(json.loads, lines)
        return [event["context"] for event in events if event["name"] == "exception"]

    def writes(self, job: str) -> int:
        """How many writes of 4097 bytes a complete trace holds."""
        import duckdb

        self.flux("job", "wait-event", job, "clean")
        (host,) = (self.root / "traces" / job).glob("host=*")
        info = json.loads((host / "run.json").read_text())
        assert (info["state"], info["counts"]["lost"]) == ("complete", 0)
        found = duckdb.sql(
            f"SELECT count(*) FROM '{host}/events-*.parquet' JOIN '{host}/functions-*.parquet' "
            "USING (func) WHERE name = 'write' AND ret = 4097"
        ).fetchall()
        return int(found[0][0])

    def check_nothing_is_left(self) -> None:
        assert list((self.root / "run").iterdir()) == []
        assert self.flux("resource", "drain", "-n").stdout.strip() == ""


def _render(source: Path, path: Path, root: Path) -> None:
    text = source.read_text().replace("/opt/datacrumbs", str(PREFIX))
    path.write_text(text.replace("/run/datacrumbs", f"{root}/run"))
    path.chmod(0o755)


def _furnish(root: Path) -> None:
    for name in ("run", "traces", "bin"):
        (root / name).mkdir()
    for hook in ("prolog", "epilog"):
        _render(SCHEDULER / f"{hook}.d/50-datacrumbs", root / hook, root)
    _render(SCHEDULER / "shell/lua.d/datacrumbs.lua", root / "datacrumbs.lua", root)
    for name in ("systemctl", "systemd-run"):
        (root / "bin" / name).symlink_to(HERE / "systemctl")
    for name, text in (
        ("system.yaml", SYSTEM_YAML),
        ("flux.toml", TOML),
        ("initrc.lua", INITRC),
    ):
        (root / name).write_text(text.format(root=root))
    keys.create_private_key(root / "private.pem", root / "keys")
    now = int(time.time())
    layer = model.SyscallLayer(name="syscall", functions=["read", "write", "openat", "close"])
    probes = model.ProbeList(
        format=model.FORMAT,
        uid=0,
        user="root",
        created=now,
        expires=now + 3600,
        host="test",
        cluster="",
        machine=platform.machine(),
        layers=[layer],
    )
    key = keys.load_private_key(root / "private.pem")
    write_probe_file(root / "probes.json.gz", envelope.sign(model.encode(probes), key))


@pytest.fixture(scope="module")
def running() -> Iterator[Instance]:
    flux = real_flux()
    if os.geteuid() != 0:
        pytest.skip("needs root: the hooks of Flux run as root")
    with tempfile.TemporaryDirectory(prefix="datacrumbs-test-", dir="/var/tmp") as name:
        root = Path(name)
        _furnish(root)
        environ = {
            "PATH": f"{root}/bin:{Path(flux).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(root),
            "LC_ALL": "C.UTF-8",
            "SITE": str(root),
            "PREFIX": str(PREFIX),
            "FLUX_CLI_PLUGINPATH_OVERRIDE": str(SCHEDULER / "cli/plugins"),
        }
        # the hooks read the installed configuration: ours, in a mount namespace of their own
        mount = f'mount --bind "$SITE/system.yaml" {PREFIX}/etc/datacrumbs/system.yaml'
        start = ["flux", "start", "--test-size=3", "--test-hosts=node[0-2]"]
        start += [f"--config-path={root}/flux.toml", f"-Sconf.shell_initrc={root}/initrc.lua"]
        started = "flux getattr local-uri >$SITE/new && mv $SITE/new $SITE/uri && exec cat"
        command = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh", *start]
        command += ["sh", "-c", started]
        with (
            open(root / "flux.log", "wb") as log,
            subprocess.Popen(
                command, env=environ, stdin=subprocess.PIPE, stdout=log, stderr=log
            ) as process,
        ):
            # on leaving, standard input is closed: the initial program ends, and the brokers
            yield Instance(root, environ | {"FLUX_URI": _uri(root, process)})


def _uri(root: Path, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + 60
    while not (root / "uri").exists():
        assert process.poll() is None and time.monotonic() < deadline, (
            root / "flux.log"
        ).read_text()
        time.sleep(0.05)
    return (root / "uri").read_text().strip()


@pytest.fixture
def instance(running: Instance) -> Iterator[Instance]:
    """The instance; afterwards no node is drained and nothing is left of any run."""
    yield running
    running.flux("queue", "drain")
    running.check_nothing_is_left()


def test_a_job_is_traced_when_it_asks(instance: Instance) -> None:
    done = instance.flux("run", "-N1", *instance.enable(), *WRITES)
    assert (done.stdout, done.stderr) == ("", "")
    assert instance.writes(instance.last()) == 23


def test_the_trace_names_the_jobs_nodes(instance: Instance) -> None:
    instance.flux("run", "-N1", "-t1m", *instance.enable(), *WRITES)
    job = instance.last()
    instance.writes(job)
    (path,) = (instance.root / "traces" / job).glob("host=*/run.json")
    ran_on = instance.flux("jobs", "-no", "{nodelist}", job).stdout.strip()
    assert json.loads(path.read_text())["nodes"] == [ran_on]


def test_a_job_that_does_not_ask_is_not(instance: Instance) -> None:
    instance.flux("run", "-N3", *WRITES)
    assert not (instance.root / "traces" / instance.last()).exists()


def test_tasks_keep_what_was_preloaded(instance: Instance) -> None:
    names = "LD_PRELOAD|DATACRUMBS_RUN_ID|ASAN_OPTIONS"
    shown = instance.flux(
        "run",
        "-N1",
        "--env=LD_PRELOAD=/lib/x86_64-linux-gnu/libm.so.6",
        "--env=ASAN_OPTIONS=a=1",
        *instance.enable(),
        "sh",
        "-c",
        f"env | grep -E '^({names})=' | sort",
    ).stdout
    library = PREFIX / "lib/datacrumbs/libdatacrumbs_client.so"
    assert shown.splitlines() == [
        "ASAN_OPTIONS=a=1:verify_asan_link_order=0",
        f"DATACRUMBS_RUN_ID={instance.last()}",
        f"LD_PRELOAD=/lib/x86_64-linux-gnu/libm.so.6:{library}",
    ]


def test_a_job_that_cannot_be_traced_runs_and_is_told_so_once(instance: Instance) -> None:
    done = instance.flux("run", "-N3", *instance.enable(Path("/nowhere")), "echo", "ran")
    assert done.stdout == "ran\n" * 3
    assert "type=datacrumbs severity=4 not traced on " in done.stderr
    (exception,) = instance.exceptions(instance.last())
    assert exception["severity"] == 4
    assert "/nowhere: No such file or directory" in exception["note"]


def test_metadata_that_cannot_be_taken_is_refused_at_submission(instance: Instance) -> None:
    for setting in ("datacrumbs=yes", "datacrumbs.enable=yes", "datacrumbs.probes=[1]"):
        done = instance.flux("run", "-N1", f"--setattr=system.{setting}", "true", expect=1)
        assert done.stderr.startswith("flux-run: ERROR: attributes.system.datacrumbs: ")
        assert "use --datacrumbs-enable" in done.stderr


def test_metadata_that_nobody_checked_is_refused_by_the_prolog(instance: Instance) -> None:
    done = instance.flux(
        "run", "-N1", "--flags=novalidate", "--setattr=system.datacrumbs.enable=yes", "true"
    )
    assert "severity=4" in done.stderr and '"probe_file" is missing' in done.stderr


def test_all_of_an_allocation_is_traced_and_a_job_inside_says_so(instance: Instance) -> None:
    inner = instance.root / "inner.sh"
    inner.write_text(
        f"#!/bin/sh\nflux run {' '.join(WRITES)}\n"
        f"flux run {' '.join(instance.enable())} {' '.join(WRITES)}\n"
    )
    inner.chmod(0o755)
    output = instance.root / "inner.out"
    done = instance.flux("batch", "-N1", *instance.enable(), f"--output={output}", inner)
    job = instance.flux("job", "id", "--to=f58plain", done.stdout.strip()).stdout.strip()
    assert instance.writes(job) == 46
    assert "this job is inside an allocation" in output.read_text()


def test_a_job_canceled_in_its_prolog_leaves_nothing(instance: Instance) -> None:
    for delay_s in (0.0, 0.1, 0.3, 0.6):
        job = instance.flux("submit", "-N1", *instance.enable(), "sleep", "60").stdout.strip()
        instance.flux("job", "wait-event", job, "prolog-start")
        time.sleep(delay_s)
        instance.flux("cancel", job)
        instance.flux("job", "wait-event", job, "clean")
    deadline = time.monotonic() + 20
    while list((instance.root / "run").iterdir()):
        assert time.monotonic() < deadline, list((instance.root / "run").iterdir())
        time.sleep(0.1)


def test_ten_jobs_at_once(instance: Instance) -> None:
    jobs = instance.flux("submit", "--cc=1-10", "-n1", *instance.enable(), *WRITES).stdout.split()
    for job in jobs:
        plain = instance.flux("job", "id", "--to=f58plain", job).stdout.strip()
        assert instance.writes(plain) == 23


def test_an_admin_may_want_such_jobs_to_fail(instance: Instance) -> None:
    config = instance.root / "system.yaml"
    before = config.read_text()
    config.write_text(before + "jobs: {on_error: fail}\n")
    try:
        done = instance.flux("run", "-N1", *instance.enable(Path("/nowhere")), "true", expect=None)
        assert done.returncode != 0 and "severity=0 not traced on" in done.stderr
        instance.flux("job", "wait-event", instance.last(), "clean")
    finally:
        config.write_text(before)


def test_a_job_id_in_each_form_is_one_run(instance: Instance) -> None:
    job = instance.flux("submit", "true").stdout.strip()
    from datacrumbs.jobs.flux import f58plain

    decimal = instance.flux("job", "id", "--to=dec", job).stdout.strip()
    plain = instance.flux("job", "id", "--to=f58plain", job).stdout.strip()
    assert {f58plain(form) for form in (job, decimal, plain)} == {plain}
