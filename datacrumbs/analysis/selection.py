"""Which calls are to be explained: by function, layer, file, process and host."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datacrumbs.analysis.functions import MAX_FUNCTIONS, Flags, Functions
from datacrumbs.analysis.ranks import Ranks
from datacrumbs.errors import BadInputError
from datacrumbs.trace.reader import HostTrace, Trace
from datacrumbs.trace.schema import Op

_MEANS_IO = frozenset(Op) - {Op.OTHER, Op.WAIT}


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Calls of function ``call`` (a name or shell glob), in ``layer``, on the file ``path`` (or
    with a call inside that is), of processes ``pids``, ``ranks``, on ``hosts``; empty or None:
    all. Without ``call`` and ``layer``: calls that do I/O by their op.
    """

    call: str | None = None
    layer: str | None = None
    path: str | None = None
    pids: frozenset[int] = frozenset()
    ranks: frozenset[int] = frozenset()
    hosts: frozenset[str] = frozenset()

    def text(self) -> str:
        """What was selected, for people."""
        parts = [self.call or ("calls" if self.layer else "I/O calls")]
        parts += [f"of layer {self.layer}"] if self.layer else []
        parts += [f"on {self.path}"] if self.path else []
        for name, values in (("process", self.pids), ("rank", self.ranks), ("host", self.hosts)):
            listed = ", ".join(map(str, sorted(values)))
            parts += [f"of {name} {listed}"] if values else []
        return " ".join(parts)

    def functions(self, known: Functions) -> Flags:
        """The functions whose outermost calls are targets, by number."""
        chosen = np.zeros(MAX_FUNCTIONS, bool)
        for number in known.kinds():
            function = known[number]
            if self.call is not None:
                chosen[number] = fnmatch.fnmatchcase(function.name, self.call)
            else:
                chosen[number] = self.layer is not None or function.op in _MEANS_IO
            if self.layer is not None:
                chosen[number] &= function.layer == self.layer
        return chosen

    def processes(self, host: str, ranks: Ranks) -> set[int] | None:
        """Numbers of the processes of ``host`` that have one of the ranks; None: any."""
        if not self.ranks:
            return None
        return {
            number for (name, number), rank in ranks.items() if name == host and rank in self.ranks
        }

    def files(self, host: HostTrace) -> frozenset[int] | None:
        """Keys of the files meant on ``host``; None: any, also none."""
        if self.path is None:
            return None
        table = host.table("files").select(["file", "path"])
        wanted = _path_pattern(self.path)
        paths = zip(table["file"].to_pylist(), table["path"].to_pylist(), strict=True)
        return frozenset(key for key, path in paths if wanted.fullmatch(path))


def _path_pattern(path: str) -> re.Pattern[str]:
    """A glob; without a leading slash, of the end of a path."""
    pattern = fnmatch.translate(path)
    return re.compile(pattern if path.startswith("/") else f"(?:.*/)?{pattern}")


def check_selection(selection: Selection, trace: Trace, ranks: Ranks) -> list[HostTrace]:
    """The hosts selected; `BadInputError` for what is not in the trace at all."""
    names = {host.host for host in trace.hosts}
    if unknown := sorted(selection.hosts - names):
        raise _absent(trace, f"host {unknown[0]}", unknown[0], names)
    hosts = [host for host in trace.hosts if not selection.hosts or host.host in selection.hosts]
    tables = (Functions(host.table("functions")) for host in hosts)  # large: one at a time
    known = [table[number] for table in tables for number in table.kinds()]
    layers = {function.layer for function in known}
    if selection.layer is not None and selection.layer not in layers:
        raise _absent(trace, f"layer {selection.layer}", selection.layer, layers)
    here = {f.name for f in known if selection.layer in (None, f.layer)}
    if selection.call is not None and not fnmatch.filter(here, selection.call):
        raise _absent(trace, f"function {selection.call}", selection.call, here)
    if unranked := sorted(selection.ranks - set(ranks.values())):
        have = f"ranks 0 to {max(ranks.values())}" if ranks else "no ranks"
        raise BadInputError(f"{trace.path}: no rank {unranked[0]}", hint=f"it has {have}")
    if unseen := sorted(_unseen(selection.pids, hosts)):
        pids = {str(pid) for host in hosts for pid in host.table("processes")["pid"].to_pylist()}
        raise _absent(trace, f"process {unseen[0]}", str(unseen[0]), pids)
    if selection.path is not None and not any(selection.files(host) for host in hosts):
        paths = {str(path) for host in hosts for path in host.table("files")["path"].to_pylist()}
        raise _absent(trace, f"file {selection.path}", selection.path, paths)
    return hosts


def _unseen(pids: frozenset[int], hosts: Sequence[HostTrace]) -> set[int]:
    """Those of ``pids`` that no table of processes names, nor any event: a row may be lost."""
    left = set(pids)
    for host in hosts:
        left -= set(host.table("processes")["pid"].to_pylist())
    for host in hosts if left else ():
        for batch in host.events(["pid"]):
            left -= set(np.unique(batch.column(0).to_numpy()).tolist())
    return left


def _absent(trace: Trace, what: str, name: str, known: set[str]) -> BadInputError:
    near = difflib.get_close_matches(name, sorted(known)[:10_000], n=3, cutoff=0.5)
    shown = near or sorted(known)[:8]
    hint = f"it has {', '.join(shown)}" if shown else "it has none"
    return BadInputError(f"{trace.path}: no {what} in this trace", hint=hint)
