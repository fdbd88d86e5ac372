"""`select: job`: what is in the job's cgroup is traced, in containers too; other nodes' are not."""

from __future__ import annotations

import duckdb
import pytest
from cluster.bed import CALLS, ON_ONE_SUITE, Bed
from cluster.test_slurm import COUNT, SIZE, comment

from datacrumbs.probes.model import Select, SyscallLayer

pytestmark = ON_ONE_SUITE

DD = f"dd if=/dev/zero of=/dev/null bs={SIZE} count={COUNT} status=none"
JOB = "950"

# As slurmstepd: root makes the job's cgroup, enters it, becomes the user. The shell says its pid
# as this node's /proc has it, and becomes dd.
ENTER = """
mkdir -p /sys/fs/cgroup/uid_2001/job_950/step_0
echo $$ >/sys/fs/cgroup/uid_2001/job_950/step_0/cgroup.procs
exec setpriv --reuid 2001 --regid 2001 --clear-groups "$@"
"""
LEAVE = "cd /sys/fs/cgroup && rmdir -p uid_2001/job_950/step_0"
SAY = f"read -r pid rest </proc/self/stat; echo $pid; exec {DD}"
CONTAINER = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount")


@pytest.mark.parametrize("container", [(), CONTAINER], ids=["plain", "container"])
def test_the_cgroup_of_the_job_decides(cluster: Bed, container: tuple[str, ...]) -> None:
    layer = SyscallLayer(name="syscall", functions=list(CALLS), select=Select.JOB)
    asked = comment(cluster.sign(layers=[layer]))
    with cluster.hook("n1", "prolog", JOB, asked) as prolog:
        assert prolog.wait(30) == 0
    assert cluster.unit("n1", JOB, "ActiveState") == "active"
    try:
        pid = cluster.out("n1", "sh", "-c", ENTER, "sh", *container, "sh", "-c", SAY)
        cluster.out("n1", "sh", "-c", SAY, user="alice")  # hers, but not of the job
        cluster.out("n2", "sh", "-c", ENTER, "sh", "sh", "-c", SAY)  # the job on another node
    finally:
        with cluster.hook("n1", "epilog", JOB) as epilog:
            assert epilog.wait(30) == 0
        for node in ("n1", "n2"):
            cluster.run(node, "sh", "-c", LEAVE, expect=None)
    assert cluster.writes(JOB, SIZE) == {"n1": COUNT}
    path = cluster.hosts(JOB)["n1"]
    events = f"SELECT DISTINCT pid FROM '{path}/events-*.parquet' WHERE ret = {SIZE}"
    assert duckdb.sql(events).fetchall() == [(int(pid),)]
    running = f"SELECT count(*) FROM '{path}/processes-*.parquet' WHERE pid = {pid}"
    assert duckdb.sql(running).fetchall() != [(0,)]
