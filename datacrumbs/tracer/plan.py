"""The plan: which functions have which numbers, on what they ended up, what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from datacrumbs.probes.model import Argument, Layer, ProbeList, Select
from datacrumbs.trace.schema import Op
from datacrumbs.tracer import layout


@dataclass(frozen=True, slots=True)
class Function:
    """One row of the trace's table ``functions``."""

    func: int
    layer: str
    name: str
    kind: str
    op: Op
    binary: str | None


@dataclass(slots=True)
class Plan:
    """What is traced in the end, and what is not and why."""

    probes: ProbeList
    config: layout.Config  # what the BPF programs are told, before they are loaded
    functions: list[Function] = field(default_factory=list)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)  # layer, name, reason
    mechanisms: list[tuple[str, str, str, int]] = field(default_factory=list)
    #                            layer, kind, mechanism, how many functions
    arguments: dict[int, Sequence[Argument]] = field(default_factory=dict)  # by function

    def add(
        self,
        layer: Layer,
        name: str,
        kind: str,
        op: Op,
        binary: str | None = None,
        *,
        arguments: Sequence[Argument] = (),
    ) -> int:
        """Number a function and tell the BPF programs of it; numbers count from 1."""
        func = len(self.functions) + 1
        self.functions.append(Function(func, layer.name, name, kind, op, binary))
        self.config.functions[func].select = select_bits(layer.select)
        self.config.functions[func].layer = self.probes.layers.index(layer)
        if arguments:
            self.arguments[func] = arguments
        return func


def select_bits(kind: Select) -> int:
    """Which tasks a layer is recorded for."""
    return layout.IN_JOB | layout.JOINED if kind is Select.JOB else layout.JOINED
