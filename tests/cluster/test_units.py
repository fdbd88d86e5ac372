"""The units, under a real systemd: how much they may do, and what they tell."""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from pathlib import Path

import duckdb
import pytest
from cluster.bed import ON_ONE_SUITE, PREFIX, PYTHON, SCHEDULER, Bed, install
from cluster.test_slurm import comment, job_of, sh
from kernel.tracing import user_layer

from datacrumbs.probes.model import KernelFunction, KernelLayer, SyscallLayer

pytestmark = ON_ONE_SUITE


@pytest.mark.parametrize(
    ("unit", "most"), [("datacrumbs_sign_probes.service", 3.0), ("datacrumbs@x.service", 3.0)]
)
def test_the_units_may_do_little(cluster: Bed, unit: str, most: float) -> None:
    source = PREFIX / "lib/systemd/system" / unit.replace("@x", "@")
    install(source.read_text(), cluster.shared / "units" / unit)
    said = cluster.run(
        "n1", "systemd-analyze", "security", "--offline=yes", f"/shared/units/{unit}", expect=None
    ).stdout
    found = re.search(r"Overall exposure level for \S+ ([0-9.]+)", said)
    assert found and float(found[1]) <= most, said


def test_the_status_line_tells_rate_and_losses(cluster: Bed) -> None:
    script = "dd if=/dev/zero of=/dev/null bs=1 count=20000 status=none; sleep 8"
    job = cluster.sbatch(script, "-wn1", "--comment", comment(cluster.sign()))
    cluster.wait(lambda: "events" in cluster.unit("n1", job, "StatusText"), "a status line")
    said = cluster.unit("n1", job, "StatusText")
    found = re.fullmatch(r"(\d+) events, (\d+)/s, 0 lost, 0 filtered, \d+ bytes written", said)
    assert found and int(found[1]) > 40_000 and int(found[2]) > 0, said
    for name, value in (("Restart", "no"), ("KillMode", "mixed"), ("Type", "notify")):
        assert cluster.unit("n1", job, name) == value
    assert cluster.unit("n1", job, "MemoryMax") == str(2 << 30)
    cluster.wait_idle()


def test_all_kinds_of_layers_attach_with_the_little_the_unit_may_do(cluster: Bed) -> None:
    python = Path(os.path.realpath(sys.executable))  # the same file on the nodes
    main = user_layer("python", python, "Py_BytesMain|PyImport_ImportModule")
    fsync = KernelLayer(name="kernel", functions=[KernelFunction(name="ext4_sync_file")])
    calls = SyscallLayer(name="syscall", functions=["fsync"])
    asked = comment(cluster.sign(layers=[main, fsync, calls]))
    code = "import os; fd = os.open('x', os.O_RDWR | os.O_CREAT); os.write(fd, b'x'); os.fsync(fd)"
    said = cluster.srun("-Q", "-wn1", "--comment", asked, *sh(f'{PYTHON} -I -c "{code}"'))
    assert said.stderr == ""
    cluster.wait_idle()
    path = cluster.hosts(job_of(said.stdout))["n1"]
    info = json.loads((path / "run.json").read_text())
    assert info["skipped"] == []
    names = (
        f"SELECT name, count(*) FROM '{path}/events-*.parquet' JOIN '{path}/functions-*.parquet'"
    )
    found = dict(duckdb.sql(f"{names} USING (func) GROUP BY name").fetchall())
    assert found["Py_BytesMain"] == found["fsync"] == found["ext4_sync_file"] == 1, found


def test_the_compiler_of_custom_programs_may_fence_itself_in(cluster: Bed) -> None:
    code = "import ctypes; print(ctypes.CDLL(None).syscall(444, None, 0, 1))"  # Landlock's version
    with cluster.drop_in("n1", "Type=oneshot", "ExecStart=", f"ExecStart={PYTHON} -I -c '{code}'"):
        cluster.out("n1", "mkdir", "-p", "/run/datacrumbs")
        cluster.out("n1", "touch", "/run/datacrumbs/datacrumbs-fence.env")
        cluster.out("n1", "systemctl", "start", "datacrumbs@fence")
        said = cluster.out(
            "n1", "journalctl", "-o", "cat", "-u", "datacrumbs@fence", "-t", "python"
        )
        cluster.out("n1", "rm", "/run/datacrumbs/datacrumbs-fence.env")
    with_nothing_in_the_way = ctypes.CDLL(None).syscall(444, None, 0, 1)
    assert said == str(with_nothing_in_the_way)


def test_an_admin_starts_and_stops_a_run_by_the_unit_alone(cluster: Bed) -> None:
    record = f"PROBE_FILE={cluster.sign()}"
    cluster.out("n1", "mkdir", "-p", "/run/datacrumbs")
    cluster.out("n1", "sh", "-c", f"echo {record} >/run/datacrumbs/datacrumbs-adm.env")
    cluster.out("n1", "systemctl", "start", "datacrumbs@adm")
    assert cluster.out("n1", "ls", "/run/datacrumbs/datacrumbs-adm.ready")
    cluster.out("n1", "systemctl", "stop", "datacrumbs@adm")
    assert cluster.unit("n1", "adm", "ActiveState") == "inactive"
    assert '"state":"complete"' in (
        cluster.shared / "home/alice/datacrumbs/adm/host=n1/run.json"
    ).read_text().replace(" ", "")
    cluster.out("n1", "rm", "/run/datacrumbs/datacrumbs-adm.env")


def test_hooks_are_posix_and_quick(cluster: Bed) -> None:
    for hook in ("prolog.d/50-datacrumbs", "epilog.d/50-datacrumbs", "task_prolog.sh"):
        text = (SCHEDULER / hook).read_text()
        assert text.startswith("#!/bin/sh\n")
        assert not re.search(r"\b(scontrol|squeue|sacct|sinfo)\b", text)
        cluster.out("n1", "dash", "-n", f"/etc/slurm/{hook}")
