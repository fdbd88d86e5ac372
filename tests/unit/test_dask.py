"""``--scheduler``: the same results from a Dask cluster, and what can go wrong there.

Scheduler and workers are real processes on this machine.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dask_cluster import DaskProcesses, dask_processes, wait_until
from generate.runs import Host, random_hosts, write_run
from works import endless

import datacrumbs
from datacrumbs.analysis import cluster as cluster_module
from datacrumbs.analysis.cluster import connected
from datacrumbs.errors import BadInputError, UserError
from datacrumbs.trace.reader import open_trace
from datacrumbs.trace.runfile import State

BIN = Path(sys.executable).parent


def command(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([BIN / name, *arguments], capture_output=True, check=False)


def output(name: str, *arguments: str | Path) -> bytes:
    done = command(name, *arguments)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def error_of(name: str, *arguments: str | Path, code: int = 1) -> tuple[str, str]:
    """The error and the hint of a command that fails with ``code`` and says nothing else."""
    done = command(name, *arguments)
    assert (done.returncode, done.stdout) == (code, b""), done.stderr.decode()
    return said(name, done.stderr)


def said(name: str, stderr: bytes) -> tuple[str, str]:
    error, hint = stderr.decode().splitlines()
    assert error.startswith(f"{name}: error: ")
    assert hint.startswith(f"{name}: hint: ")
    return error, hint


def some_hosts(seed: int) -> list[Host]:
    """Six, one of which was cut off and one of which left no ``run.json``."""
    hosts = random_hosts(seed, hosts=6, threads=4, calls=60)
    hosts[1].state = State.CUT_OFF
    hosts[4].run_file = False
    for host in hosts:
        host.facts["run_id"] = str(4710 + seed)
    return hosts


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    home = tmp_path_factory.mktemp("traces")
    return (
        write_run(home / "monday", some_hosts(1), segment_events=97),
        write_run(home / "tuesday", some_hosts(2), segment_events=97),
    )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskProcesses]:
    with dask_processes(tmp_path_factory.mktemp("dask"), workers=2) as started:
        yield started


@pytest.mark.parametrize(
    "arguments",
    [
        ("datacrumbs_report", "--format", "json"),
        ("datacrumbs_report", "--top", "2"),
        ("datacrumbs_report", "--html", "-"),
        ("datacrumbs_explain", "--format", "json"),
        ("datacrumbs_explain", "--format", "json", "--rank", "1", "--file", "file-2"),
        ("datacrumbs_compare", "--format", "json"),
    ],
    ids=" ".join,
)
def test_the_same_to_the_last_digit(
    traces: tuple[Path, Path], cluster: DaskProcesses, arguments: tuple[str, ...]
) -> None:
    chosen = traces if arguments[0] == "datacrumbs_compare" else traces[:1]
    here = output(*arguments, *chosen)
    assert output(*arguments, "--scheduler", cluster.address, *chosen) == here
    assert len(here) > 1000


def test_from_python_and_by_the_schedulers_file(
    traces: tuple[Path, Path], cluster: DaskProcesses, tmp_path: Path
) -> None:
    first, second = map(datacrumbs.open_trace, traces)
    there = str(cluster.file)
    assert first.report(scheduler=there) == first.report()
    assert first.explain(layer="vfs", scheduler=f"file:{there}") == first.explain(layer="vfs")
    assert first.compare(second, scheduler=there) == first.compare(second)
    first.html(tmp_path / "there.html", scheduler=there)
    first.html(tmp_path / "here.html")
    assert (tmp_path / "there.html").read_bytes() == (tmp_path / "here.html").read_bytes()


def test_a_relative_path_is_seen_by_workers_that_are_elsewhere(
    traces: tuple[Path, Path], cluster: DaskProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(traces[0])
    here = output("datacrumbs_report", "host=n3")
    assert output("datacrumbs_report", "--scheduler", cluster.address, "host=n3") == here


def test_progress_is_told_of_every_event(traces: tuple[Path, Path], cluster: DaskProcesses) -> None:
    from datacrumbs.analysis.summary import summarise

    told: list[int] = []
    with connected(cluster.address) as there:
        found = summarise(open_trace(traces[0]), progress=told.append, cluster=there)
        wait_until(lambda: sum(told) >= found.events, "all was told")
    assert sum(told) == found.events > 1000


def test_what_is_wrong_with_the_trace_is_said_as_here(
    cluster: DaskProcesses, tmp_path: Path
) -> None:
    write_run(tmp_path / "run", random_hosts(7, hosts=2))
    segment = tmp_path / "run" / "host=n2" / "events-000001.parquet"
    segment.write_bytes(segment.read_bytes()[:-1000] + b"x" * 992 + b"PAR1")
    here = error_of("datacrumbs_report", tmp_path / "run", code=2)
    assert str(segment) in here[0]
    there = error_of("datacrumbs_report", "--scheduler", cluster.address, tmp_path / "run", code=2)
    assert there == here


def test_nobody_answers(traces: tuple[Path, Path]) -> None:
    begin = time.monotonic()
    error, hint = error_of("datacrumbs_report", "--scheduler", "tcp://127.0.0.1:1", traces[0])
    assert "tcp://127.0.0.1:1: no Dask scheduler answers there" in error
    assert "is it running" in hint
    assert time.monotonic() - begin < 30


def test_what_is_no_scheduler(traces: tuple[Path, Path], tmp_path: Path) -> None:
    for word in ("login1", "carrier://pigeon:1", "tcp://login1", str(tmp_path)):
        error, hint = error_of("datacrumbs_explain", "--scheduler", word, traces[0], code=2)
        assert f"--scheduler: {word}: neither an address nor a file" in error
        assert "tcp://HOST:PORT" in hint
    run, file = datacrumbs.open_trace(traces[0]), tmp_path / "file.json"
    for text in ("{}", "[1]", "nonsense", '{"address": 5}', '{"address": "5"}', "\xff"):
        file.write_text(text, encoding="latin-1")
        with pytest.raises(BadInputError, match="not a file of a Dask scheduler"):
            run.report(scheduler=str(file))


def test_without_the_package(traces: tuple[Path, Path]) -> None:
    code = (
        "import sys; sys.modules['distributed'] = None; sys.argv[0] = 'datacrumbs_report'; "
        "from datacrumbs.cli.report import main; main()"
    )
    program = [sys.executable, "-P", "-c", code]
    done = subprocess.run(
        [*program, "--scheduler", "tcp://localhost:1", traces[0]], capture_output=True, check=False
    )
    error, hint = said("datacrumbs_report", done.stderr)
    assert "--scheduler needs dask.distributed, which is not installed" in error
    assert 'pip install "datacrumbs[dask]"' in hint
    # and nothing else needs it
    done = subprocess.run([*program, traces[0]], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_scheduler_without_workers(
    traces: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cluster_module.WORKERS_S <= 30
    monkeypatch.setattr(cluster_module, "WORKERS_S", 1.0)
    with dask_processes(tmp_path) as started:
        with pytest.raises(UserError, match="this Dask scheduler has no workers") as raised:
            datacrumbs.open_trace(traces[0]).report(scheduler=started.address)
        assert f"dask worker --nthreads 1 {started.address}" in raised.value.hint


@pytest.mark.root
@pytest.mark.parametrize("instead", ["nothing", "another trace"])
def test_a_worker_that_does_not_see_the_trace(
    traces: tuple[Path, Path], tmp_path: Path, instead: str
) -> None:
    first, second = traces
    hide = f"mount -t tmpfs none {first}" if instead == "nothing" else f"mount -B {second} {first}"
    with dask_processes(tmp_path) as started:
        # in a mount namespace of its own
        started.start_worker("unshare", "--mount", "sh", "-c", f'{hide} && exec "$@"', "sh")
        error, hint = error_of("datacrumbs_report", "--scheduler", started.address, first)
    assert f"{first}/host=n1" in error
    assert ("no directory" if instead == "nothing" else "another trace at") in error
    assert os.uname().nodename in error
    assert "the trace must be on a file system that the workers see" in hint


def test_another_version_of_datacrumbs(traces: tuple[Path, Path], tmp_path: Path) -> None:
    library = tmp_path / "lib"
    package = shutil.copytree(Path(datacrumbs.__file__).parent, library / "datacrumbs")
    text = (package / "__init__.py").read_text()
    assert datacrumbs.__version__ in text
    (package / "__init__.py").write_text(text.replace(datacrumbs.__version__, "9.9.9"))
    facts = library / "datacrumbs-9.9.9.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: datacrumbs\nVersion: 9.9.9\n")
    other = {"PYTHONPATH": str(library)}
    with dask_processes(tmp_path / "dask") as started:
        started.start_worker(**other)
        error, hint = error_of("datacrumbs_report", "--scheduler", started.address, traces[0])
    assert "the worker tcp://127.0.0.1:" in error
    assert f"has datacrumbs 9.9.9, this is {datacrumbs.__version__}" in error
    assert "start it from the environment" in hint
    with dask_processes(tmp_path / "dask", workers=1, **other) as started:
        error, _ = error_of("datacrumbs_report", "--scheduler", started.address, traces[0])
    assert f"the scheduler {started.address} has datacrumbs 9.9.9" in error


def test_another_version_of_python(traces: tuple[Path, Path], tmp_path: Path) -> None:
    """There is only one Python here: the worker says it is another one."""
    claim = tmp_path / "claim.py"
    claim.write_text(
        "import sys\ndef dask_setup(worker):\n    sys.version_info = (3, 99, 0, 'final', 0)\n"
    )
    with dask_processes(tmp_path / "dask") as started:
        started.start_worker(options=("--preload", str(claim)))
        error, _ = error_of("datacrumbs_report", "--scheduler", started.address, traces[0])
    assert "has Python 3.99, this is 3." in error


class Blocked:
    """A run of which the events of host n2 are a pipe: whoever reads them waits."""

    def __init__(self, run: Path) -> None:
        self.run = write_run(run, random_hosts(9, hosts=3), segment_events=10_000)
        self._segment = run / "host=n2" / "events-000001.parquet"
        self._away = self._segment.rename(run / "events")
        self._pipe = self._segment.with_suffix(".arrows")
        os.mkfifo(self._pipe)
        self._writers: list[int] = []

    def reader(self, started: DaskProcesses) -> subprocess.Popen[bytes]:
        """The worker that waits, as soon as one does."""
        return wait_until(lambda: self._reader(started), "a worker reads the pipe")

    def restore(self) -> None:
        """The real events; whoever waits goes on waiting."""
        self._pipe.unlink()
        self._away.rename(self._segment)

    def close(self) -> None:
        for writer in self._writers:
            os.close(writer)

    def _reader(self, started: DaskProcesses) -> subprocess.Popen[bytes] | None:
        try:
            self._writers.append(os.open(self._pipe, os.O_WRONLY | os.O_NONBLOCK))
        except OSError as error:
            assert error.errno == errno.ENXIO
        for worker in started.workers:
            files = Path(f"/proc/{worker.pid}/fd") if worker.poll() is None else None
            for descriptor in files.iterdir() if files else ():
                if os.path.realpath(descriptor) == str(self._pipe):
                    return worker
        return None


@pytest.fixture
def blocked(tmp_path: Path) -> Iterator[Blocked]:
    made = Blocked(tmp_path / "blocked")
    yield made
    made.close()


@contextlib.contextmanager
def start(name: str, *arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [BIN / name, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_worker_that_dies_is_replaced(blocked: Blocked, tmp_path: Path) -> None:
    with dask_processes(tmp_path / "dask", workers=2) as started:
        arguments = ("--format", "json", "--scheduler", started.address, blocked.run)
        with start("datacrumbs_report", *arguments) as process:
            reader = blocked.reader(started)
            blocked.restore()
            reader.kill()
            there, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, b"")
    assert there == output("datacrumbs_report", "--format", "json", blocked.run)


def test_a_host_at_which_every_worker_dies(blocked: Blocked, tmp_path: Path) -> None:
    allowed = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}
    with (
        dask_processes(tmp_path / "dask", workers=3, **allowed) as started,
        start("datacrumbs_explain", "--scheduler", started.address, blocked.run) as process,
    ):
        first = blocked.reader(started)
        first.kill()
        first.wait()
        blocked.reader(started).kill()
        stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    error, hint = said("datacrumbs_explain", stderr)
    assert "host n2: 2 workers died one after the other while they read it" in error
    assert "memory" in hint


def test_all_workers_go_away(
    blocked: Blocked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "WORKERS_S", 2.0)
    with dask_processes(tmp_path / "dask", workers=1) as started:
        killer = threading.Thread(target=lambda: blocked.reader(started).kill())
        killer.start()
        with pytest.raises(UserError, match="this Dask scheduler has no workers"):
            datacrumbs.open_trace(blocked.run).report(scheduler=started.address)
        killer.join()


def test_the_scheduler_goes_away(blocked: Blocked, tmp_path: Path) -> None:
    with dask_processes(tmp_path / "dask", workers=1) as started:
        with start("datacrumbs_report", "--scheduler", started.address, blocked.run) as process:
            blocked.reader(started)
            started.processes[0].kill()
            stderr = process.communicate(timeout=60)[1]
        address = started.address
    assert process.returncode == 1
    assert f"{address}: the Dask scheduler went away" in said("datacrumbs_report", stderr)[0]


def test_ctrl_c_leaves_nothing_on_the_cluster(blocked: Blocked, tmp_path: Path) -> None:
    from distributed import Client

    with dask_processes(tmp_path / "dask", workers=1) as started:
        with start("datacrumbs_report", "--scheduler", started.address, blocked.run) as process:
            blocked.reader(started)
            process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate(timeout=60)
        assert (process.returncode, stdout) == (1, b"")
        assert stderr.decode().split() == ["Aborted!"]
        with Client(started.address, timeout=30, set_as_default=False) as client:
            tasks = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.tasks))
    assert tasks == []


@pytest.mark.parametrize("gone", ["client", "scheduler"])
def test_work_that_nobody_waits_for_ends(tmp_path: Path, gone: str) -> None:
    write_run(tmp_path / "run", random_hosts(9, hosts=1))
    trace = open_trace(tmp_path / "run")
    home = trace.hosts[0].path
    told: list[int] = []

    def wait(found: Iterator[None]) -> None:
        with contextlib.suppress(UserError):
            next(found)

    with dask_processes(tmp_path / "dask", workers=1) as started:
        with connected(started.address) as there:
            assert there is not None
            found = there.on_each(trace.hosts, [endless], told.append)
            waiting = threading.Thread(target=wait, args=(found,))
            waiting.start()
            wait_until((home / "began").exists, "the work has begun")
            wait_until(lambda: told, "progress is told")
            if gone == "scheduler":
                started.processes[0].kill()
                waiting.join()
        wait_until((home / "ended").exists, "the work has ended")
        waiting.join()


def test_errors_of_an_address_come_before_anything_is_written(
    traces: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(BadInputError):
        datacrumbs.open_trace(traces[0]).html(tmp_path / "out.html", scheduler="nonsense")
    assert list(tmp_path.iterdir()) == []
