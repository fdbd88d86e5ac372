"""One run on several nodes, without a scheduler: over ssh, what its hooks do on each node.

Each node runs ``datacrumbs_service_wrapper``; ClusterShell calls them at once and gathers what
they say. Root's rights are the nodes' affair: ssh as root, or sudo without a password there.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from datacrumbs.errors import BadInputError
from datacrumbs.nodelist import checked, unfolded
from datacrumbs.printable import printable

_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")  # never an option of ssh
_SSH_FAILED = 255
_OPTION = re.compile(r"^datacrumbs\w*: (?:error|hint): ")


class State(StrEnum):
    """What became of a node."""

    TRACING = "tracing"
    STOPPED = "stopped"
    DONE = "done"
    FAILED = "failed"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    ROLLED_BACK = "rolled back"


GOOD = (State.TRACING, State.STOPPED, State.DONE)


@dataclass(frozen=True, slots=True)
class Node:
    """A node's result. ``exit_code`` is the command's, None when it gave none."""

    node: str
    state: State
    exit_code: int | None
    message: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one action on all nodes, in the order of their names."""

    run_id: str
    nodes: list[Node]

    @property
    def ok(self) -> bool:
        """Whether every node did it."""
        return all(node.state in GOOD for node in self.nodes)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {"run_id": self.run_id, "ok": self.ok, "nodes": [asdict(n) for n in self.nodes]}


@dataclass(frozen=True, slots=True)
class Remote:
    """How nodes are reached: ``login`` is ssh's user there (None: ssh's own choice).

    ``command`` is ``datacrumbs_service_wrapper`` as the nodes have it. ``timeout_s`` is for the
    whole action on one node.
    """

    command: str
    login: str | None = None
    ssh_options: str = ""
    connect_timeout_s: int = 10
    timeout_s: float = 60.0
    fanout: int = 64

    def line(self, *arguments: str) -> str:
        """The command line for a node's shell."""
        root = self.login == "root" or (self.login is None and os.geteuid() == 0)
        prefix = [] if root else ["sudo", "-n"]
        return shlex.join([*prefix, self.command, *arguments])


def node_names(node_list: str) -> list[str]:
    """The nodes of ``node[1-4],login0`` (ClusterShell's syntax, groups as well), sorted.

    Raises `BadInputError`.
    """
    try:
        names = unfolded(node_list, groups=True)
    except BadInputError as error:
        raise BadInputError(
            f"--node-list: {printable(error.message)}", hint='write it as "node[1-4],node7"'
        ) from error
    if not names:
        raise BadInputError("--node-list: no nodes in it", hint='write it as "node[1-4],node7"')
    for name in names:
        if not _NODE.fullmatch(name):
            raise BadInputError(f"--node-list: {printable(name)!r} is not a host's name")
    return names


def start(
    names: list[str], run_id: str, user: str, probe_file: Path, remote: Remote, *, keep: bool
) -> Outcome:
    """Start tracing on all nodes.

    When a node fails, the others are stopped again, unless ``keep``.
    """
    line = remote.line("start", run_id, user, str(probe_file), *_node_list(names))
    results: list[Node] = []
    try:
        results = everywhere(names, line, remote, State.TRACING)
    except KeyboardInterrupt:
        everywhere(names, remote.line("stop", run_id, user), remote, State.STOPPED)
        raise
    outcome = Outcome(run_id, results)
    if outcome.ok or keep:
        return outcome
    return Outcome(run_id, list(_rolled_back(results, run_id, user, remote)))


def _node_list(names: list[str]) -> list[str]:
    """The option by which a node learns of the others, for whoever reads its trace."""
    from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet

    folded = checked(str(NodeSet.fromlist(names, resolver=RESOLVER_NOGROUP)))
    return ["--node-list", folded] if folded else []


def stop(names: list[str], run_id: str, user: str, remote: Remote) -> Outcome:
    """End tracing on all nodes."""
    return Outcome(
        run_id, everywhere(names, remote.line("stop", run_id, user), remote, State.STOPPED)
    )


def _rolled_back(results: list[Node], run_id: str, user: str, remote: Remote) -> Iterable[Node]:
    # one that took too long may trace by now
    started = [n.node for n in results if n.state in (State.TRACING, State.TIMEOUT)]
    stopped = {
        node.node: node for node in (stop(started, run_id, user, remote).nodes if started else [])
    }
    for node in results:
        after = stopped.get(node.node)
        if after is None:
            yield node
        elif after.state is not State.STOPPED:
            yield replace(after, message=f"not rolled back: {after.message}")
        elif node.state is State.TRACING:
            yield replace(node, state=State.ROLLED_BACK, message="another node failed")
        else:
            yield node


def everywhere(names: list[str], line: str, remote: Remote, good: State) -> list[Node]:
    """Run ``line`` on all nodes at once; where it succeeds, the node's state is ``good``."""
    from ClusterShell.Task import task_self

    task = task_self()
    task.set_default("stderr", True)
    for key, value in (
        ("fanout", remote.fanout),
        ("connect_timeout", remote.connect_timeout_s),
        ("ssh_user", remote.login),
        ("ssh_options", remote.ssh_options),
    ):
        task.set_info(key, value)
    worker = task.shell(line, nodes=",".join(names), timeout=remote.timeout_s, stdin=False)
    try:
        task.resume()
    except BaseException:
        task.abort()
        raise
    late = set(task.iter_keys_timeout())
    codes = {str(key): code for code, keys in task.iter_retcodes() for key in keys}
    return [
        _result(name, codes.get(name), worker.node_error(name) or b"", name in late, good)
        for name in names
    ]


def _result(name: str, code: int | None, said: bytes, late: bool, good: State) -> Node:
    if code == 0:  # what it wrote besides is a host's greeting, or the like
        return Node(name, good, 0, "")
    text = _message(said)
    if late:
        return Node(name, State.TIMEOUT, None, text or "no answer in time")
    if code is None or code == _SSH_FAILED:
        return Node(name, State.UNREACHABLE, code, text or "ssh failed")
    return Node(name, State.FAILED, code, text or f"exit code {code}")


def _message(said: bytes) -> str:
    """One line of what a node wrote to standard error: our own errors, else the last line."""
    lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
    ours = [_OPTION.sub("", line) for line in lines if _OPTION.match(line)]
    return printable("; ".join(ours) if ours else lines[-1] if lines else "")[:500]
