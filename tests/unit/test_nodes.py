"""datacrumbs_run and _stop over a real sshd: one on this host that is several nodes.

What runs on a "node" here stands in for datacrumbs_service_wrapper, which needs systemd: a script
that notes how it was called and does what the test wants of that node. The real one is called in
tests/cluster.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from datacrumbs.errors import BadInputError
from datacrumbs.jobs import nodes
from datacrumbs.jobs.nodes import Node, Remote, State

BIN = Path(sys.prefix, "bin")

WRAPPER = """#!/bin/sh
cd "{root}" || exit 9
set -- $(echo "$SSH_CONNECTION" | cut -d' ' -f3) "$@"
printf '%s\\n' "$*" >>calls
[ ! -e "$1.$2.fails" ] || {{
    echo "datacrumbs_service_wrapper: error: no daemon
datacrumbs_service_wrapper: hint: look" >&2; exit 1; }}
[ ! -e "$1.$2.hangs" ] || sleep 60
echo noise; echo noise >&2
"""


@dataclass(frozen=True)
class Cluster:
    """Nodes node1 to node3 are this host's 127.0.0.1 to 3; node9 is refused."""

    root: Path
    ssh_options: str

    def calls(self) -> list[str]:
        """What was called, as "address action run user file", cleared by asking."""
        path = self.root / "calls"
        lines = sorted(path.read_text().splitlines()) if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def say(self, *names: str) -> None:
        for name in names:
            (self.root / name).touch()

    def forget(self) -> None:
        for pattern in ("*.fails", "*.hangs", "calls"):
            for path in self.root.glob(pattern):
                path.unlink()

    def command(self, name: str, node_list: str, *options: str) -> tuple[int, str, str]:
        command = [str(BIN / name), "--node-list", node_list, "--run-id", "r1", "--user", "alice"]
        command += ["--command", str(self.root / "wrapper"), "--login", "root"]
        command += ["--ssh-options", self.ssh_options, *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    def remote(self, **settings: Any) -> Remote:
        wrapper = str(self.root / "wrapper")
        return Remote(command=wrapper, login="root", ssh_options=self.ssh_options, **settings)


@pytest.fixture(scope="module")
def sshd() -> Iterator[Cluster]:
    if os.geteuid() != 0:
        pytest.skip("needs root, to log in as root: run the tests as root")
    root = Path(tempfile.mkdtemp(prefix="datacrumbs-test-", dir="/var/tmp"))
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-qt", "ed25519", "-N", "", "-f", root / key], check=True)
    (root / "wrapper").write_text(WRAPPER.format(root=root))
    (root / "wrapper").chmod(0o755)
    port = _free_port()
    (root / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nListenAddress 127.0.0.2\nListenAddress 127.0.0.3\n"
        f"HostKey {root}/host\nAuthorizedKeysFile {root}/user.pub\nPidFile none\nUsePAM no\n"
        "PermitRootLogin prohibit-password\nStrictModes no\nMaxStartups 100\n"
    )
    hosts = "".join(f"Host node{n}\n  HostName 127.0.0.{n}\n" for n in (1, 2, 3, 9))
    (root / "ssh_config").write_text(
        f"{hosts}Host *\n  Port {port}\n  IdentityFile {root}/user\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {root}/known\n  StrictHostKeyChecking accept-new\n  LogLevel ERROR\n"
    )
    # /run/sshd must be there, and not left here
    script = 'mount -t tmpfs none /run && mkdir /run/sshd && exec "$0" -D -e -f "$1"'
    server = shutil.which("sshd", path="/usr/sbin:/sbin:/usr/bin") or "sshd"
    command = ["unshare", "--mount", "sh", "-c", script, server, root / "sshd_config"]
    with open(root / "log", "w") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            _await_port(process, port)
            yield Cluster(root, f"-F {root}/ssh_config")
        finally:
            process.terminate()
    shutil.rmtree(root)


@pytest.fixture
def cluster(sshd: Cluster) -> Cluster:
    sshd.forget()
    return sshd


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_port(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.3", port), timeout=1).close()
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, "sshd does not start"
            time.sleep(0.05)


PROBES = ("--probe-file", "/p/io.gz")


def test_all_nodes_start_and_stop(cluster: Cluster) -> None:
    code, out, err = cluster.command("datacrumbs_run", "node[1-3]", *PROBES)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "node1  tracing",
        "node2  tracing",
        "node3  tracing",
        "run r1: 3 of 3 nodes",
    ]
    called = "start r1 alice /p/io.gz --node-list node[1-3]"
    assert cluster.calls() == [f"127.0.0.{n} {called}" for n in (1, 2, 3)]
    code, out, _ = cluster.command("datacrumbs_stop", "node[1-3]")
    assert (code, out.splitlines()[0]) == (0, "node1  stopped")
    assert cluster.calls() == [f"127.0.0.{n} stop r1 alice" for n in (1, 2, 3)]


def test_when_one_fails_the_others_are_stopped_again(cluster: Cluster) -> None:
    cluster.say("127.0.0.2.start.fails")
    code, out, _ = cluster.command("datacrumbs_run", "node[1-3]", *PROBES)
    assert code == 1
    assert out.splitlines() == [
        "node1  rolled back  another node failed",
        "node2  failed       no daemon; look",
        "node3  rolled back  another node failed",
        "run r1: 0 of 3 nodes",
    ]
    stopped = [call for call in cluster.calls() if " stop " in call]
    assert stopped == ["127.0.0.1 stop r1 alice", "127.0.0.3 stop r1 alice"]


def test_with_keep_the_others_go_on(cluster: Cluster) -> None:
    cluster.say("127.0.0.2.start.fails")
    code, out, _ = cluster.command(
        "datacrumbs_run", "node[1-3]", *PROBES, "--keep", "--format", "json"
    )
    assert code == 1
    document = json.loads(out)
    assert (document["run_id"], document["ok"]) == ("r1", False)
    assert document["nodes"] == [
        {"node": "node1", "state": "tracing", "exit_code": 0, "message": ""},
        {"node": "node2", "state": "failed", "exit_code": 1, "message": "no daemon; look"},
        {"node": "node3", "state": "tracing", "exit_code": 0, "message": ""},
    ]
    assert not any(" stop " in call for call in cluster.calls())


def test_a_node_that_cannot_be_reached(cluster: Cluster) -> None:
    code, out, _ = cluster.command("datacrumbs_run", "node[1,9]", *PROBES)
    assert code == 1
    first, second = out.splitlines()[:2]
    assert first == "node1  rolled back  another node failed"
    assert second.startswith("node9  unreachable  ") and "refused" in second


def test_a_node_that_cannot_be_rolled_back_is_named(cluster: Cluster) -> None:
    cluster.say("127.0.0.1.stop.fails", "127.0.0.2.start.fails")
    code, out, _ = cluster.command("datacrumbs_run", "node[1-2]", *PROBES)
    assert code == 1
    assert out.splitlines()[0] == "node1  failed       not rolled back: no daemon; look"


def test_a_node_that_hangs_costs_its_timeout_and_is_stopped(cluster: Cluster) -> None:
    cluster.say("127.0.0.3.start.hangs")
    began = time.monotonic()
    outcome = nodes.start(
        ["node1", "node3"], "r1", "alice", Path("/p"), cluster.remote(timeout_s=2), keep=False
    )
    assert time.monotonic() - began < 10
    assert [node.state for node in outcome.nodes] == [State.ROLLED_BACK, State.TIMEOUT]
    stopped = [call for call in cluster.calls() if " stop " in call]
    assert stopped == ["127.0.0.1 stop r1 alice", "127.0.0.3 stop r1 alice"]


def test_odd_names_arrive_as_they_are(cluster: Cluster) -> None:
    name = "/p/a b'c\"d;$(id)%h{}*.gz"
    code, _, _ = cluster.command("datacrumbs_run", "node1", "--probe-file", name)
    assert code == 0
    assert cluster.calls() == [f"127.0.0.1 start r1 alice {name} --node-list node1"]


def test_stopping_reports_what_did_not_stop(cluster: Cluster) -> None:
    cluster.say("127.0.0.2.stop.fails")
    code, out, _ = cluster.command("datacrumbs_stop", "node[1-2]")
    assert code == 1
    assert out.splitlines()[1] == "node2  failed       no daemon; look"


@pytest.mark.parametrize(
    ("node_list", "said"),
    [
        ("node[1-", "--node-list: "),
        ("", "--node-list: no nodes in it"),
        ("node[1-1000000]", "more than 65536 nodes"),
        ("-oProxyCommand=reboot", "is not a host's name"),
        ("a b", "is not a host's name"),
        ("@nowhere", "--node-list: "),
    ],
)
def test_node_lists_that_are_none(node_list: str, said: str) -> None:
    with pytest.raises(BadInputError) as caught:
        nodes.node_names(node_list)
    assert said in caught.value.message and "\n" not in caught.value.message


@pytest.mark.parametrize(
    "options",
    [
        ("--run-id", "../x"),
        ("--user", "-x"),
        ("--login", "-oProxyCommand=x"),
        ("--probe-file", "/a\nb"),
    ],
)
def test_bad_input_is_refused_before_any_node_is_asked(
    cluster: Cluster, options: tuple[str, str]
) -> None:
    code, out, err = cluster.command("datacrumbs_run", "node1", *PROBES, *options)
    assert (code, out) == (2, "") and err.startswith("datacrumbs_run: error: ")
    assert cluster.calls() == []


def test_who_needs_sudo() -> None:
    assert Remote(command="/x/w", login="alice").line("stop", "r 1") == "sudo -n /x/w stop 'r 1'"
    assert Remote(command="/x/w", login="root").line("stop", "r") == "/x/w stop r"


def test_an_outcome_is_good_when_every_node_is() -> None:
    good = Node("a", State.TRACING, 0, "")
    assert nodes.Outcome("r", [good]).ok
    assert not nodes.Outcome("r", [good, Node("b", State.ROLLED_BACK, 0, "")]).ok
