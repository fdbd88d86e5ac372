"""A run traced by the installed commands: a site of its own, a daemon, programs, the trace."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datacrumbs.probes import model
from datacrumbs.probes.elf import find_binary, read_functions
from datacrumbs.probes.elf_identity import elf_identity
from datacrumbs.probes.file import write_probe_file
from datacrumbs.probes.syscalls import ROLES, available
from datacrumbs.signing import envelope, keys

BIN = Path(sys.executable).parent
LIBRARY = Path(sys.prefix, "lib/datacrumbs/libdatacrumbs_client.so")
PYTHON = ("/usr/bin/python3", "-I", "-S", "-B")
READY_S = 20.0
RUN_ID = "run"
UNFINISHED = 1

CALLS = """
CREATE TABLE calls AS
SELECT e.ts, e.pid, e.tid, n.name, e.fd, e."offset" AS pos, e.size, e.ret, e.flags, e.dur, e.file,
       f.path, f.path_raw, f.kind, p.fd AS peer_fd, p."offset" AS peer_pos,
       g.path AS peer_path, g.kind AS peer_kind
FROM events e JOIN functions n USING (func) LEFT JOIN files f USING (file)
     LEFT JOIN peers p ON e.flags & 2 > 0 AND p.ts = e.ts AND p.tid = e.tid
     LEFT JOIN files g ON g.file = p.file
ORDER BY e.ts
"""
"""Every event with its names, in the order of the calls' starts."""


@functools.cache
def traced_names() -> list[str]:
    """The system calls that the tests trace: all that name a file or move bytes."""
    return [name for name in available(platform.machine()) if name in ROLES]


def io_calls(**settings: Any) -> model.SyscallLayer:
    """A layer of all I/O system calls; ``settings`` are fields of the layer."""
    fields: dict[str, Any] = {"name": "syscall", "functions": traced_names()} | settings
    return model.SyscallLayer(**fields)


def user_layer(
    name: str, binary: Path, regex: str, *, machine: str = platform.machine(), **settings: Any
) -> model.UserLayer:
    """A layer of the functions of ``binary`` whose names match ``regex``."""
    found = read_functions(binary, re.compile(f"^({regex})$"), machine).functions
    with open(binary, "rb") as file:
        build_id, digest = elf_identity(file.fileno())
    return model.UserLayer(
        name=name,
        binary=str(binary),
        functions=list(found),
        build_id=build_id,
        digest=digest,
        **settings,
    )


def library_layer(soname: str, regex: str, name: str) -> model.UserLayer:
    """A layer of the functions of a system library."""
    return user_layer(name, find_binary(soname, platform.machine()), regex)


@dataclass(slots=True)
class TracedRun:
    """One run: its site below ``root``, and ``work``, a directory of its user."""

    root: Path
    user: pwd.struct_passwd

    @property
    def work(self) -> Path:
        return self.root / "work"

    @contextlib.contextmanager
    def daemon(
        self,
        *layers: model.Layer,
        cgroup: Path | None = None,
        program: Sequence[str | Path] = (BIN / "datacrumbs",),
        **probes: Any,
    ) -> Iterator[subprocess.Popen[str]]:
        """A daemon that is ready and, on leaving, has stopped with a complete trace.

        Without ``layers`` it traces system calls. ``probes`` are fields of `model.ProbeList`;
        ``program`` is what is started instead of the installed command.
        """
        select = model.Select.JOB if cgroup else model.Select.PROCESS
        probe_file = self.sign(*(layers or [io_calls(select=select)]), **probes)
        command = [*map(str, program), str(probe_file), RUN_ID]
        command += ["--config", str(self.root / "system.yaml")]
        command += ["--cgroup", str(cgroup)] if cgroup else []
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                self._await_ready(process)
                yield process
            finally:
                process.terminate()
                _, said = process.communicate(timeout=30)
            assert process.returncode == 0, said

    def _await_ready(self, process: subprocess.Popen[str]) -> None:
        ready = self.root / f"run/datacrumbs-{RUN_ID}.ready"
        deadline = time.monotonic() + READY_S
        while not ready.exists():
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline, "not ready"
            time.sleep(0.01)

    def sign(self, *layers: model.Layer, **changes: Any) -> Path:
        """The run's probe file, with ``layers``."""
        now = int(time.time())
        fields: dict[str, Any] = {
            "format": model.FORMAT,
            "uid": self.user.pw_uid,
            "user": self.user.pw_name,
            "created": now,
            "expires": now + 3600,
            "host": "test",
            "cluster": "",
            "machine": platform.machine(),
            "layers": list(layers),
        }
        probes = model.ProbeList(**(fields | changes))
        path = self.root / "probes.json.gz"
        key = keys.load_private_key(self.root / "private.pem")
        write_probe_file(path, envelope.sign(model.encode(probes), key))
        return path

    def start(
        self,
        *command: str | Path,
        run_id: str = RUN_ID,
        wrap: bool = True,
        user: pwd.struct_passwd | None = None,
        env: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> subprocess.Popen[Any]:
        """Start ``command`` in `work` as ``user``, by default the run's, joining ``run_id``."""
        user = user or self.user
        wrapper = [str(BIN / "datacrumbs_wrap"), "--quiet"] if wrap else []
        variables = {"PATH": "/usr/bin:/bin", "HOME": str(self.work), "LC_ALL": "C.UTF-8"}
        variables["PYTHONHASHSEED"] = "0"
        return subprocess.Popen(
            [*wrapper, *map(str, command)],
            env=variables | {"DATACRUMBS_RUN_ID": run_id} | dict(env or {}),
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=[],
            cwd=self.work,
            **settings,
        )

    def run(self, *command: str | Path, expect: int = 0, **settings: Any) -> str:
        """Run to the end as `start` does; its standard output."""
        with self.start(*command, stdout=subprocess.PIPE, text=True, **settings) as process:
            try:
                output, _ = process.communicate(timeout=60)
            except BaseException:
                process.kill()
                raise
        assert process.returncode == expect
        return str(output)

    def python(self, script: str, *arguments: str, **settings: Any) -> str:
        """Run a Python script in `work`."""
        return self.run(*PYTHON, "-c", script, *arguments, **settings)

    def compile(self, source: str, *flags: str, name: str = "program") -> Path:
        """A C program in `work`."""
        program = self.work / name
        (self.work / f"{name}.c").write_text(source)
        command: list[str | Path] = [
            "gcc",
            "-O1",
            "-w",
            "-pthread",
            *flags,
            "-o",
            program,
            program.with_suffix(".c"),
        ]
        subprocess.run(command, check=True)
        return program

    def trace(self, *, lost: int = 0) -> Trace:
        """The stopped run's trace, which must be complete and without loss (but ``lost``)."""
        info = self.info()
        assert info["state"] == "complete"
        assert info["counts"]["lost"] == lost, info["counts"]
        assert sum(info["lost_by"].values()) == lost
        return Trace(self._host())

    def info(self) -> dict[str, Any]:
        """``run.json`` of the run."""
        return dict(json.loads((self._host() / "run.json").read_text()))

    def _host(self) -> Path:
        (host,) = (self.root / "traces" / RUN_ID).glob("host=*")
        return host


def explain(run: TracedRun, *options: str) -> Any:
    """The JSON of the command for the run's trace, as the run's user."""
    done = subprocess.run(
        [BIN / "datacrumbs_explain", "--format", "json", *options, run.root / "traces" / RUN_ID],
        capture_output=True,
        text=True,
        check=True,
        user=run.user.pw_uid,
        group=run.user.pw_gid,
        extra_groups=[],
        env={"PATH": "/usr/bin:/bin", "HOME": str(run.work)},
    )
    assert done.stderr == ""
    return json.loads(done.stdout)


class Trace:
    """The tables of a trace and the view ``calls``, for SQL."""

    def __init__(self, host: Path) -> None:
        import duckdb

        self._database = duckdb.connect()
        for table in (
            *("events", "functions", "files", "processes", "peers"),
            *("arguments", "intervals"),
        ):
            pattern = f"{host}/{table}-*.parquet"
            if list(host.glob(f"{table}-*.parquet")):
                self._database.execute(f"CREATE TABLE {table} AS SELECT * FROM '{pattern}'")
            else:
                self._create_empty(table)
        self._database.execute(CALLS)

    def _create_empty(self, table: str) -> None:
        from datacrumbs.trace.schema import arrow_schema

        empty = arrow_schema(table).empty_table()
        self._database.register("empty_rows", empty)
        self._database.execute(f"CREATE TABLE {table} AS SELECT * FROM empty_rows")

    def sql(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """The rows that ``query`` gives."""
        return self._database.execute(query, values).fetchall()

    def calls(self, columns: str, where: str, *values: object) -> list[tuple[Any, ...]]:
        """``columns`` of the calls that ``where`` selects, in order of time."""
        return self.sql(f"SELECT {columns} FROM calls WHERE {where} ORDER BY ts", *values)


def make_site(root: Path, user: pwd.struct_passwd) -> TracedRun:
    """A site below ``root``, a directory of root's that everybody may enter."""
    root.chmod(0o755)
    for name in ("traces", "work"):
        (root / name).mkdir(mode=0o755)
        os.chown(root / name, user.pw_uid, user.pw_gid)
    keys.create_private_key(root / "private.pem", root / "keys")
    (root / "system.yaml").write_text(
        f"trace_dir: {root}/traces\nrun_dir: {root}/run\nlog_dir: {root}/log\n"
        f"state_dir: {root}/state\n"
        f"keys: {{private: {root}/private.pem, public_dir: {root}/keys}}\n"
        "ring: {total_bytes: 33554432}\n"
    )
    return TracedRun(root, user)


@contextlib.contextmanager
def site_for(user: pwd.struct_passwd) -> Iterator[TracedRun]:
    """A new site, removed on leaving; `TMPDIR` may be closed to users, /var/tmp is not."""
    root = Path(tempfile.mkdtemp(prefix="datacrumbs-test-", dir="/var/tmp"))
    try:
        yield make_site(root, user)
    finally:
        shutil.rmtree(root)


@contextlib.contextmanager
def job_cgroup(version: str = "cgroup2") -> Iterator[Path]:
    """A cgroup, below a mount of this host's of ``version``."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    mount = next(Path(fields[1]) for fields in mounts if fields[2] == version)
    cgroup = mount / f"datacrumbs-test-{os.getpid()}"
    cgroup.mkdir()
    try:
        yield cgroup
    finally:
        cgroup.rmdir()


def wait_until(true: Any, what: str, timeout_s: float = 30.0) -> None:
    """Wait for ``true()``."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.01)
