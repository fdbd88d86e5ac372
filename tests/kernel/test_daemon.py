"""The daemon as a command: start, stop, what it refuses, what it leaves."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from kernel.tracing import wait_until

from datacrumbs.probes import model, status
from datacrumbs.probes.elf import read_functions
from datacrumbs.probes.elf_identity import elf_identity
from datacrumbs.probes.file import write_probe_file
from datacrumbs.signing import envelope, keys

BIN = Path(sys.executable).parent
READY_S = 20.0


@dataclass(slots=True)
class Site:
    """A system configuration of its own, a key, and a probe file of one user."""

    root: Path
    user: pwd.struct_passwd

    def path(self, name: str) -> Path:
        return self.root / name

    @property
    def config(self) -> Path:
        return self.path("system.yaml")

    def host(self, run_id: str) -> Path:
        (found,) = (self.path("traces") / run_id).glob("host=*")
        return found

    def info(self, run_id: str) -> dict[str, object]:
        loaded: dict[str, object] = json.loads((self.host(run_id) / "run.json").read_text())
        return loaded

    def ready(self, run_id: str) -> Path:
        return self.path("run") / f"datacrumbs-{run_id}.ready"

    def sign(self, name: str, **changes: object) -> Path:
        now = int(time.time())
        fields: dict[str, object] = {
            "format": model.FORMAT,
            "uid": self.user.pw_uid,
            "user": self.user.pw_name,
            "created": now,
            "expires": now + 3600,
            "host": "test",
            "cluster": "",
            "machine": os.uname().machine,
            "layers": [
                model.SyscallLayer(
                    name="syscall", functions=["read", "write", "openat", "close", "pread64"]
                )
            ],
        }
        probes = model.ProbeList(**(fields | changes))  # type: ignore[arg-type]
        key = keys.load_private_key(self.path("private.pem"))
        write_probe_file(self.path(name), envelope.sign(model.encode(probes), key))
        return self.path(name)

    def command(self, probe_file: Path, *arguments: str) -> list[str]:
        return [str(BIN / "datacrumbs"), "--config", str(self.config), str(probe_file), *arguments]

    @contextlib.contextmanager
    def daemon(
        self, probe_file: Path, run_id: str, **settings: object
    ) -> Iterator[subprocess.Popen[str]]:
        """A daemon that is ready; ended on leaving, if it has not ended by then."""
        settings = {"stderr": subprocess.PIPE, "text": True} | settings
        with subprocess.Popen(self.command(probe_file, run_id), **settings) as process:  # type: ignore[call-overload]
            try:
                deadline = time.monotonic() + READY_S
                while not self.ready(run_id).exists():
                    assert process.poll() is None, process.stderr and process.stderr.read()
                    assert time.monotonic() < deadline, "not ready"
                    time.sleep(0.01)
                yield process
            finally:
                if process.poll() is None:
                    process.terminate()
                process.wait(30)

    def traced(self, run_id: str, *arguments: str, **settings: object) -> subprocess.Popen[bytes]:
        """Start a program of the user that joins the run."""
        return subprocess.Popen(
            [str(BIN / "datacrumbs_wrap"), *arguments],
            env={"PATH": "/usr/bin:/bin", "DATACRUMBS_RUN_ID": run_id},
            user=self.user.pw_uid,
            group=self.user.pw_gid,
            extra_groups=[],
            cwd="/",
            **settings,  # type: ignore[call-overload]
        )

    def query(self, run_id: str, sql: str) -> list[tuple[object, ...]]:
        """Run ``sql`` on the closed trace; ``events`` and ``functions`` are its tables."""
        import duckdb

        with duckdb.connect() as database:
            for table in ("events", "functions", "files"):
                database.execute(
                    f"CREATE VIEW {table} AS SELECT * FROM '{self.host(run_id)}/{table}-*.parquet'"
                )
            return database.execute(sql).fetchall()


def await_status(site: Site, daemon: subprocess.Popen[str], enough: Callable[..., bool]) -> None:
    """Ask for status lines (SIGUSR1) until ``enough(events, lost)``."""

    def found() -> bool:
        daemon.send_signal(signal.SIGUSR1)
        time.sleep(0.1)
        (log,) = site.path("log").iterdir()
        said = re.findall(r": (\d+) events, \d+/s, (\d+) lost, ", log.read_text())
        return bool(said) and enough(*map(int, said[-1]))

    wait_until(found, "the status", READY_S)


def stop(process: subprocess.Popen[str]) -> str:
    """SIGTERM; the daemon must leave with 0. Its standard error."""
    process.terminate()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    return str(errors)


@pytest.fixture
def site(ordinary_user: pwd.struct_passwd) -> Iterator[Site]:
    root = Path("/var/tmp", f"datacrumbs-test-{os.getpid()}-{time.monotonic_ns()}")
    root.mkdir(mode=0o755)
    made = Site(root, ordinary_user)
    made.path("traces").mkdir(mode=0o755)
    os.chown(made.path("traces"), ordinary_user.pw_uid, ordinary_user.pw_gid)
    keys.create_private_key(made.path("private.pem"), made.path("keys"))
    made.config.write_text(
        f"trace_dir: {root}/traces\nrun_dir: {root}/run\nlog_dir: {root}/log\n"
        f"state_dir: {root}/state\n"
        f"keys: {{private: {root}/private.pem, public_dir: {root}/keys}}\n"
    )
    yield made
    shutil.rmtree(root)


def refused(site: Site, probe_file: Path, *arguments: str) -> str:
    """Run the daemon where it must refuse; what it says, which is an error line and a hint."""
    done = subprocess.run(
        site.command(probe_file, *arguments),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode in (1, 2), done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith("datacrumbs: error: ")
    assert len(lines) <= 2, done.stderr
    assert not list((site.path("run")).glob("*.ready")) if site.path("run").exists() else True
    return done.stderr


def test_traces_a_program_and_leaves_a_complete_trace(site: Site) -> None:
    with site.daemon(site.sign("p.gz"), "r1") as daemon:
        assert site.traced("r1", "dd", "if=/dev/zero", "of=/dev/null", "bs=4097", "count=23",
                           "status=none").wait(30) == 0  # fmt: skip
        daemon.send_signal(signal.SIGUSR1)
        said = stop(daemon)
    line = r"datacrumbs\[r1\]: \d+ events, \d+/s, 0 lost, \d+ filtered, \d+ bytes written"
    assert len(re.findall(f"^{line}$", said, re.MULTILINE)) == 2, "one asked for, one at the end"
    assert not site.ready("r1").exists()
    info = site.info("r1")
    assert info["state"] == "complete"
    counts = info["counts"]
    assert isinstance(counts, dict)
    assert counts["lost"] == 0
    (kept,) = site.query("r1", "SELECT count(*) FROM events")
    assert counts["events"] == kept[0]
    writes = site.query(
        "r1",
        "SELECT count(*), sum(ret), min(size), max(size) FROM events JOIN functions USING (func)"
        " JOIN files USING (file) WHERE name = 'write' AND path = '/dev/null'",
    )
    assert writes == [(23, 23 * 4097, 4097, 4097)]
    assert site.host("r1").stat().st_uid == site.user.pw_uid
    (log,) = site.path("log").iterdir()
    assert log.name.startswith(f"datacrumbs_{site.user.pw_name}_r1_")
    assert log.stat().st_uid == site.user.pw_uid


def test_user_functions_are_counted(site: Site) -> None:
    libc = next(Path("/lib").glob("*/libc.so.6"))
    found = read_functions(libc, re.compile("^(fread|fopen|fclose)$"), os.uname().machine).functions
    with open(libc, "rb") as file:
        build_id, digest = elf_identity(file.fileno())
    layer = model.UserLayer(
        name="libc", binary=str(libc), functions=list(found), build_id=build_id, digest=digest
    )
    source = site.path("program.c")
    source.write_text(
        '#include <stdio.h>\nint main(void){char b[10];FILE*f=fopen("/dev/zero","r");'
        "for(int i=0;i<37;i++)fread(b,1,10,f);return fclose(f);}\n"
    )
    subprocess.run(["gcc", "-O0", "-w", "-o", site.path("program"), source], check=True)
    with site.daemon(site.sign("p.gz", layers=[layer]), "r1") as daemon:
        assert site.traced("r1", str(site.path("program"))).wait(30) == 0
        stop(daemon)
    rows = site.query(
        "r1",
        "SELECT name, count(*), min(ret), max(ret) FROM events JOIN functions USING (func)"
        " WHERE name = 'fread' GROUP BY name",
    )
    assert rows == [("fread", 37, 10, 10)]


def test_two_runs_at_once_keep_apart(site: Site) -> None:
    probe_file = site.sign("p.gz")
    with site.daemon(probe_file, "a") as first, site.daemon(probe_file, "b") as second:
        dd = ("dd", "if=/dev/zero", "of=/dev/null", "bs=1", "status=none")
        programs = [site.traced("a", *dd, "count=1001"), site.traced("b", *dd, "count=2003")]
        assert [p.wait(30) for p in programs] == [0, 0]
        stop(first)
        stop(second)
    sql = (
        "SELECT count(*) FROM events JOIN functions USING (func) JOIN files USING (file)"
        " WHERE name = 'write' AND path = '/dev/null'"
    )
    assert site.query("a", sql) == [(1001,)]
    assert site.query("b", sql) == [(2003,)]


def test_second_run_of_the_same_id_is_refused(site: Site) -> None:
    probe_file = site.sign("p.gz")
    with site.daemon(probe_file, "same") as daemon:
        assert "being traced on this host already" in refused_while_running(site, probe_file)
        assert site.ready("same").exists()
        stop(daemon)


def refused_while_running(site: Site, probe_file: Path) -> str:
    done = subprocess.run(
        site.command(probe_file, "same"), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    return done.stderr


@pytest.mark.parametrize("after_s", [0.2, 0.4, 0.6, 0.8, 1.2])
def test_a_daemon_that_is_stopped_while_it_starts_leaves_nothing(
    site: Site, after_s: float
) -> None:
    """Threads of libraries took SIGTERM where the main thread had blocked it."""
    command = site.command(site.sign("probes.json.gz"), "early")
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        time.sleep(after_s)
        process.terminate()
    assert process.returncode in (0, -signal.SIGTERM)  # the latter: before it has done anything
    run_dir = site.path("run")
    assert not run_dir.exists() or list(run_dir.iterdir()) == []


def test_killed_daemon_leaves_a_readable_trace_and_may_start_again(site: Site) -> None:
    from datacrumbs.trace.runfile import State, state_of

    probe_file = site.sign("p.gz")
    with site.daemon(probe_file, "k") as daemon:
        dd = ("dd", "if=/dev/zero", "of=/dev/null", "bs=1", "count=5000", "status=none")
        assert site.traced("k", *dd).wait(30) == 0
        wait_until(lambda: _rows(site.host("k")) >= 10_000, "a flush", READY_S)
        recorder = int(site.ready("k").read_text())
        os.kill(recorder, signal.SIGKILL)
        assert daemon.wait(10) == 1
    assert not site.ready("k").exists()
    assert state_of(site.host("k")) is State.CUT_OFF
    assert _rows(site.host("k")) >= 10_000
    with site.daemon(probe_file, "k") as daemon:
        stop(daemon)
    assert state_of(site.host("k")) is State.COMPLETE
    assert list((site.path("traces") / "k").glob("previous-*.host=*"))


def _rows(host: Path) -> int:
    import pyarrow as pa

    rows = 0
    for stream in host.glob("events-*.arrows"):
        # a daemon at work may be in the middle of a batch
        with pa.OSFile(str(stream)) as file, contextlib.suppress(pa.ArrowInvalid, OSError):
            for batch in pa.ipc.open_stream(file):
                rows += batch.num_rows
    return rows


def test_killed_root_half_stops_the_recorder_and_its_ready_file_is_replaced(site: Site) -> None:
    probe_file = site.sign("p.gz")
    with site.daemon(probe_file, "k") as daemon:
        recorder = int(site.ready("k").read_text())
        daemon.kill()
        daemon.wait(10)
        wait_until(lambda: not Path(f"/proc/{recorder}").exists(), "the recorder's end", READY_S)
        assert site.ready("k").exists()
    assert site.info("k")["state"] == "complete"
    with subprocess.Popen(site.command(probe_file, "k")) as daemon:
        others = (None, recorder)
        wait_until(lambda: _recorder_of(site.ready("k")) not in others, "ready", READY_S)
        daemon.terminate()
        assert daemon.wait(30) == 0


def _recorder_of(ready: Path) -> int | None:
    return int(ready.read_text()) if ready.exists() else None


@pytest.mark.parametrize("run_id", ["../x", "a/b", ".hidden", "a b", "x" * 64, "ü"])
def test_run_ids_are_checked(site: Site, run_id: str) -> None:
    assert "is not a run id" in refused(site, site.sign("p.gz"), run_id)


def test_what_the_probe_file_may_not_be(site: Site) -> None:
    now = int(time.time())
    assert "expired" in refused(site, site.sign("old.gz", created=now - 99, expires=now - 9), "r")
    assert "cluster" in refused(site, site.sign("far.gz", cluster="elsewhere"), "r")
    assert "on this host" in refused(site, site.sign("who.gz", user="somebody-else"), "r")
    assert "No such file" in refused(site, site.path("none.gz"), "r")
    forged = site.sign("forged.gz")
    shutil.rmtree(site.path("keys"))
    keys.create_private_key(site.path("other.pem"), site.path("keys"))
    assert "key" in refused(site, forged, "r")


def test_ordinary_users_are_told_that_root_is_needed(site: Site) -> None:
    done = subprocess.run(
        site.command(site.sign("p.gz"), "r"),
        capture_output=True,
        text=True,
        user=site.user.pw_uid,
        group=site.user.pw_gid,
        extra_groups=[],
        check=False,
    )
    assert done.returncode == 1
    assert "needs root" in done.stderr


def test_changed_binary_is_skipped_by_name(site: Site) -> None:
    binary = site.path("program")
    shutil.copy("/bin/true", binary)
    layers = [
        model.SyscallLayer(name="syscall", functions=["read"]),
        model.UserLayer(
            name="app",
            binary=str(binary),
            functions=[model.UserFunction(name="f", offset=4096)],
            build_id="00" * 20,
        ),
    ]
    with site.daemon(site.sign("p.gz", layers=layers), "r") as daemon:
        assert "not the file the probe file was made for" in stop(daemon)
    skipped = site.info("r")["skipped"]
    assert isinstance(skipped, list)
    assert [entry["layer"] for entry in skipped] == ["app"]


def test_no_probe_is_set_where_no_function_begins(site: Site) -> None:
    binary = Path("/bin/true").resolve()
    with open(binary, "rb") as file:
        build_id, digest = elf_identity(file.fileno())
    layers = [
        model.SyscallLayer(name="syscall", functions=["read"]),
        model.UserLayer(
            name="app",
            binary=str(binary),
            functions=[model.UserFunction(name="inside", offset=4097)],
            build_id=build_id,
            digest=digest,
        ),
    ]
    with site.daemon(site.sign("p.gz", layers=layers), "r") as daemon:
        assert "inside: no function begins there" in stop(daemon)
    (entry,) = status.known(site.path("state"), site.user.pw_uid)
    assert (entry.target, entry.name, entry.offset) == (build_id or digest, "inside", 4097)
    assert (entry.reason, entry.uid) == ("no function begins there", status.EVERYBODY)


def test_what_cannot_be_remembered_stops_no_run(site: Site) -> None:
    state = site.path("state")
    state.mkdir()
    state.chmod(0o777)
    layers = [
        model.SyscallLayer(name="syscall", functions=["read"]),
        model.UserLayer(
            name="app",
            binary="/bin/true",
            functions=[model.UserFunction(name="inside", offset=4097)],
            digest="sha256:" + "0" * 64,
        ),
    ]
    with open("/bin/true", "rb") as file:
        build_id, digest = elf_identity(file.fileno())
    layers[1] = msgspec.structs.replace(layers[1], build_id=build_id, digest=digest)
    with site.daemon(site.sign("p.gz", layers=layers), "r") as daemon:
        words = stop(daemon)
    assert f"not remembered: {state}/status.sqlite: others than root can write" in words


def test_trace_directory_of_somebody_else_is_refused(site: Site) -> None:
    os.chown(site.path("traces"), 0, 0)
    done = subprocess.run(
        site.command(site.sign("p.gz"), "r"),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "error:" in done.stderr
    assert not list(site.path("traces").iterdir())


@pytest.fixture
def small_disk(site: Site) -> Iterator[Path]:
    """The traces of `site` on a file system of 2 MiB."""
    traces = site.path("traces")
    options = f"size=2m,uid={site.user.pw_uid},gid={site.user.pw_gid},mode=755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", traces], check=True)
    yield traces
    subprocess.run(["umount", "--lazy", traces], check=True)


def fill(disk: Path) -> Path:
    """A file that takes all the room there is."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    return filler


def test_full_disk_loses_events_by_number_and_recording_resumes(
    site: Site, small_disk: Path
) -> None:
    with site.config.open("a") as config:
        config.write("segment: {events: 1024}\n")
    dd = ("dd", "if=/dev/zero", "of=/dev/null", "bs=1", "count=20000", "status=none")
    with site.daemon(site.sign("p.gz"), "full") as daemon:
        filler = fill(small_disk)
        assert site.traced("full", *dd).wait(30) == 0
        await_status(site, daemon, lambda events, lost: events + lost >= 40_000 and lost > 10_000)
        filler.unlink()
        assert site.traced("full", *dd).wait(30) == 0
        stop(daemon)
    info = site.info("full")
    assert info["state"] == "complete"
    counts, lost_by = info["counts"], info["lost_by"]
    assert isinstance(counts, dict)
    assert isinstance(lost_by, dict)
    (kept,) = site.query("full", "SELECT count(*) FROM events")
    assert kept[0] == counts["events"]
    assert counts["lost"] == lost_by["disk"] > 10_000
    assert counts["events"] + counts["lost"] >= 80_000
    assert counts["events"] >= 40_000  # the second program's


def test_full_disk_at_the_start_is_told(site: Site, small_disk: Path) -> None:
    fill(small_disk)
    done = subprocess.run(
        site.command(site.sign("p.gz"), "full"),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_full_run_directory_is_told(site: Site) -> None:
    run_dir = site.path("run")
    run_dir.mkdir(mode=0o755)
    options = "size=4k,mode=755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", run_dir], check=True)
    try:
        fill(run_dir)
        command = site.command(site.sign("p.gz"), "full")
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    finally:
        subprocess.run(["umount", "--lazy", run_dir], check=True)
    assert done.returncode == 1
    assert "datacrumbs: error: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_terminal_that_goes_away_stops_no_tracing(site: Site) -> None:
    with site.daemon(site.sign("p.gz"), "gone") as daemon:
        assert daemon.stderr
        daemon.stderr.close()
        await_status(site, daemon, lambda events, lost: True)  # something to say, to nobody
        dd = ("dd", "if=/dev/zero", "of=/dev/null", "bs=1", "count=1001", "status=none")
        assert site.traced("gone", *dd).wait(30) == 0
        daemon.terminate()
        assert daemon.wait(30) == 0
    assert site.info("gone")["state"] == "complete"
    (log,) = site.path("log").iterdir()
    assert log.read_text().count(" events, ") >= 2


def test_started_without_standard_streams_it_writes_to_its_log_only(site: Site) -> None:
    probe_file = site.sign("p.gz")
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *site.command(probe_file, "mute")]
    with subprocess.Popen(shell) as process:
        wait_until(site.ready("mute").exists, "ready", READY_S)
        assert site.ready("mute").with_suffix(".lock").read_bytes() == b""
        process.terminate()
        assert process.wait(30) == 0
    assert site.info("mute")["state"] == "complete"


def test_a_run_directory_behind_a_link_guards_the_run_id_as_well(site: Site) -> None:
    site.path("elsewhere").mkdir(mode=0o755)
    site.path("run").symlink_to("elsewhere")
    probe_file = site.sign("p.gz")
    with site.daemon(probe_file, "same") as daemon:
        assert "being traced on this host already" in refused_while_running(site, probe_file)
        assert "Traceback" not in stop(daemon)
    assert not list(site.path("run").iterdir())


def test_users_see_that_a_run_is_traced_and_read_its_log_whatever_the_umask(site: Site) -> None:
    with site.daemon(site.sign("p.gz"), "r", umask=0o077) as daemon:
        (log,) = site.path("log").iterdir()
        for path in (site.ready("r"), log):
            as_user = {"user": site.user.pw_uid, "group": site.user.pw_gid, "extra_groups": []}
            subprocess.run(["cat", path], check=True, stdout=subprocess.DEVNULL, **as_user)
        assert site.ready("r").with_suffix(".lock").stat().st_mode & 0o777 == 0o600
        stop(daemon)


def test_a_log_of_somebody_else_is_not_given_away(site: Site) -> None:
    from datacrumbs.run import host_name

    site.path("log").mkdir(mode=0o755)
    log = site.path("log") / f"datacrumbs_{site.user.pw_name}_r_{host_name()}.log"
    log.write_text("of another user\n")
    os.chown(log, site.user.pw_uid + 1, site.user.pw_gid)
    with site.daemon(site.sign("p.gz"), "r") as daemon:
        assert f"{log}: the log of somebody else" in stop(daemon)
    assert log.read_text() == "of another user\n"
    assert log.stat().st_uid == site.user.pw_uid + 1


def test_a_log_directory_that_others_can_write_is_not_used(site: Site) -> None:
    site.path("log").mkdir()
    site.path("log").chmod(0o1777)
    with site.daemon(site.sign("p.gz"), "r") as daemon:
        assert "others than root can write there" in stop(daemon)
    assert not list(site.path("log").iterdir())


def test_the_recorder_has_no_rights_left_and_is_closed_to_its_user(site: Site) -> None:
    with site.daemon(site.sign("p.gz"), "r") as daemon:
        recorder = int(site.ready("r").read_text())
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{recorder}/status").read_text().splitlines()
        )
        assert set(status["Uid"].split()) == {str(site.user.pw_uid)}
        assert set(status["Gid"].split()) == {str(site.user.pw_gid)}
        groups = set(map(int, status["Groups"].split()))
        assert groups == set(os.getgrouplist(site.user.pw_name, site.user.pw_gid))
        for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert int(status[kind], 16) == 0, kind
        # it holds descriptors of BPF programs that reach into other users' processes
        done = subprocess.run(
            ["head", "-c1", f"/proc/{recorder}/environ"],
            capture_output=True,
            user=site.user.pw_uid,
            group=site.user.pw_gid,
            extra_groups=[],
            check=False,
        )
        assert b"Permission denied" in done.stderr
        # the half that stays root holds none
        held = [path.readlink() for path in Path(f"/proc/{daemon.pid}/fd").iterdir()]
        assert not [path for path in held if "bpf" in str(path)]
        stop(daemon)


def test_what_is_no_regular_file_is_not_even_opened(site: Site) -> None:
    device = site.path("device")
    os.mkfifo(device)
    record = site.path("record")
    strace = ["strace", "-f", "-qq", "-e", "trace=open,openat", "-o", str(record)]
    done = subprocess.run(
        [*strace, *site.command(device, "r")], capture_output=True, text=True, check=False
    )
    assert "not a regular file" in done.stderr
    lines = [line for line in record.read_text().splitlines() if str(device) in line]
    assert lines
    assert all("O_PATH" in line for line in lines), lines


def test_systemd_is_told_when_it_is_ready_and_how_it_does(site: Site) -> None:
    address = site.path("notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(READY_S)
        environ = os.environ | {"NOTIFY_SOCKET": str(address)}
        with site.daemon(site.sign("p.gz"), "r", env=environ) as daemon:
            words = manager.recv(4096).decode().splitlines()
            assert words == ["READY=1", "STATUS=tracing", f"MAINPID={daemon.pid}"]
            assert manager.recv(4096) == b"WATCHDOG=1", "within each second"
            daemon.send_signal(signal.SIGUSR1)
            while b"STATUS=" not in (told := manager.recv(4096)):
                assert told == b"WATCHDOG=1"
            assert re.fullmatch(rb"WATCHDOG=1\nSTATUS=\d+ events, .* bytes written", told)
            stop(daemon)
