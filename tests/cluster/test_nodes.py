"""datacrumbs_run, datacrumbs_stop and datacrumbs_deploy over ssh, on three nodes with systemd."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from cluster.bed import NODES, ON_ONE_SUITE, PREFIX, Bed

pytestmark = ON_ONE_SUITE

BIN = PREFIX / "bin"
DD = ("dd", "if=/dev/zero", "of=/dev/null", "bs=4097", "count=23", "status=none")
SSH = "-o StrictHostKeyChecking=accept-new -o LogLevel=ERROR"


@pytest.fixture
def cluster(cluster: Bed) -> Iterator[Bed]:
    """The cluster, with root's way by ssh from n1 to all nodes."""
    key = "/root/.ssh/id_ed25519"
    cluster.run("n1", "sh", "-c", f"[ -e {key} ] || ssh-keygen -qt ed25519 -N '' -f {key}")
    public = cluster.out("n1", "cat", f"{key}.pub")
    for node in NODES:
        add = f"mkdir -p /root/.ssh && echo '{public}' >/root/.ssh/authorized_keys"
        cluster.run(node, "sh", "-c", add)
        cluster.run(node, "systemctl", "start", "ssh")
    yield cluster
    for node in NODES:
        cluster.run(node, "systemctl", "stop", "ssh")


def _on_all(cluster: Bed, name: str, *options: str, expect: int = 0) -> dict[str, str]:
    """Run a command of ours on n1 for all nodes; their states."""
    words = ("--node-list", "n[1-3]", "--run-id", "by-ssh", "--user", "alice", "--format", "json")
    done = cluster.run("n1", BIN / name, *words, "--ssh-options", SSH, *options, expect=expect)
    return {node["node"]: node["state"] for node in json.loads(done.stdout)["nodes"]}


def test_a_run_on_three_nodes(cluster: Bed) -> None:
    probes = str(cluster.sign())
    started = _on_all(cluster, "datacrumbs_run", "--probe-file", probes)
    assert started == dict.fromkeys(NODES, "tracing")
    for node in NODES:
        cluster.run(node, BIN / "datacrumbs_wrap", "--run-id", "by-ssh", *DD, user="alice")
    assert _on_all(cluster, "datacrumbs_stop") == dict.fromkeys(NODES, "stopped")
    assert cluster.writes("by-ssh", 4097) == dict.fromkeys(NODES, 23)
    infos = [
        json.loads((path / "run.json").read_text()) for path in cluster.hosts("by-ssh").values()
    ]
    assert [info["nodes"] for info in infos] == [["n[1-3]"]] * 3
    assert _on_all(cluster, "datacrumbs_stop") == dict.fromkeys(NODES, "stopped")


def test_a_run_that_one_node_cannot_trace_is_taken_back(cluster: Bed) -> None:
    cluster.run("n3", "systemctl", "stop", "ssh")
    probes = str(cluster.sign())
    states = _on_all(cluster, "datacrumbs_run", "--probe-file", probes, expect=1)
    assert states == {"n1": "rolled back", "n2": "rolled back", "n3": "unreachable"}
    for node in NODES:
        assert cluster.leftovers(node) == []


def test_a_file_of_somebody_else_is_refused_on_every_node(cluster: Bed) -> None:
    probes = str(cluster.sign("bob"))
    states = _on_all(cluster, "datacrumbs_run", "--probe-file", probes, expect=1)
    assert states == dict.fromkeys(NODES, "failed")
    for node in NODES:
        cluster.run(node, BIN / "datacrumbs_service_wrapper", "stop", "by-ssh", "alice")


def test_deploying_to_three_nodes_and_back(cluster: Bed) -> None:
    command = (BIN / "datacrumbs_deploy", "flux-plugin", "--node-list", "n[1-3]")
    command += ("--ssh-options", SSH)
    assert cluster.out("n1", *command).splitlines() == [f"{node}  done" for node in NODES]
    plugin = "/etc/flux/cli/plugins/datacrumbs.py"
    for node in NODES:
        cluster.run(node, "test", "-r", plugin)
    cluster.run("n2", "sh", "-c", f"echo '# mine' >>{plugin}")
    removed = cluster.run("n1", *command, "--remove", expect=1).stdout.splitlines()
    assert [line.split()[:2] for line in removed] == [
        ["n1", "done"],
        ["n2", "failed"],
        ["n3", "done"],
    ]
    assert "changed since it was installed" in removed[1]
    cluster.run("n2", "rm", plugin)
    cluster.run("n1", *command, "--remove")
    for node in NODES:
        cluster.run(node, "test", "!", "-e", "/etc/flux")
