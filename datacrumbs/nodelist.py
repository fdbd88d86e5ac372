"""Lists of nodes as schedulers write them: ``n[1-64,70],login1``.

Hooks and the daemon pass them on as they are; they are unfolded where a trace is read.
"""

from __future__ import annotations

import re

from datacrumbs.errors import BadInputError

MAX_NODES = 65_536
MAX_BYTES = 64 * 1024

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:,\[\]-]*")
_RANGE = re.compile(r"([0-9]+)-([0-9]+)")
_MAX_DIGITS = 18
_OUTSIDE_BRACKETS = re.compile(r",(?![^\[]*\])")


def checked(node_list: str) -> str:
    """``node_list`` if it may stand in a file of root's as it is, else nothing.

    It holds letters, digits and ``. _ : , - [ ]``, `MAX_BYTES` at most.
    """
    return node_list if len(node_list) <= MAX_BYTES and _PLAIN.fullmatch(node_list) else ""


def unfolded(node_list: str, *, groups: bool = False) -> list[str]:
    """The names in a list, each once; with ``groups``, those of ClusterShell as well.

    Raises `BadInputError` for what is no list, and for more than `MAX_NODES` names.
    """
    from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetException
    from ClusterShell.NodeUtils import GroupResolverError

    _check_size(node_list)
    try:
        found = NodeSet(node_list, resolver=None if groups else RESOLVER_NOGROUP)
        if len(found) <= MAX_NODES:
            return list(found)
    except (NodeSetException, GroupResolverError, ValueError) as error:
        raise BadInputError(" ".join(str(error).split())) from error
    raise _too_many()


def _check_size(node_list: str) -> None:
    """Before they are made: ``n[1-999999999]`` is short."""
    total = 0
    for pattern in _OUTSIDE_BRACKETS.split(node_list):
        count = 1
        for ranges in re.findall(r"\[([^\]]*)\]", pattern):
            count *= sum(map(_length, ranges.split(",")))
        total += count
        if total > MAX_NODES:
            raise _too_many()


def _length(numbers: str) -> int:
    found = _RANGE.match(numbers)
    if not found:
        return 1
    if max(map(len, found.groups())) > _MAX_DIGITS:
        raise _too_many()
    return max(int(found[2]) - int(found[1]) + 1, 1)


def _too_many() -> BadInputError:
    return BadInputError(f"more than {MAX_NODES} nodes")
