"""The plan: which functions have which numbers, on what they ended up, what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from datacrumbs.errors import UserError
from datacrumbs.probes.model import Argument, Layer, Mode, ProbeList, Select
from datacrumbs.trace.schema import SYSCALL_KINDS, Op
from datacrumbs.tracer import layout

MOVING = {Op.READ, Op.WRITE, Op.COPY}

PLACES_MAX = 1 << 18
"""Of probes in files, in one run: the kernel keeps some 300 bytes for each, on nobody's account."""


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
    binaries: tuple[str, ...] = ("/*",)  # patterns of what this host lets be probed
    functions: list[Function] = field(default_factory=list)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)  # layer, name, reason
    mechanisms: list[tuple[str, str, str, int]] = field(default_factory=list)
    #                            layer, kind, mechanism, how many functions
    arguments: dict[int, Sequence[Argument]] = field(default_factory=dict)  # by function
    entries: dict[int, str] = field(default_factory=dict)
    """System calls, by number, that are probed at these functions of the kernel."""
    places: int = 0

    def __post_init__(self) -> None:
        for entry, layer in zip(self.config.layers, self.probes.layers, strict=False):
            entry.min_duration_ns = layer.min_duration_ns
            entry.max_per_s = layer.max_per_s
        prefixes = [*self.probes.include, *self.probes.exclude]
        for rule, prefix in zip(self.config.rules, prefixes, strict=False):
            fill_rule(rule, prefix)
        self.config.includes = len(self.probes.include)
        self.config.rules_used = len(prefixes)

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
        entry = self.config.functions[func]
        entry.select = select_bits(layer.select)
        entry.layer = self.probes.layers.index(layer)
        entry.bits = (
            (layer.mode is Mode.PROFILE) * layout.PROFILED
            | (op in MOVING) * layout.MOVES
            | (kind in SYSCALL_KINDS) * layout.ERRNO
            | bool(layer.min_duration_ns or layer.max_per_s) * layout.LIMITED
        )
        if arguments and layer.mode is Mode.TRACE:
            self.arguments[func] = arguments
        return func

    def add_places(self, count: int) -> None:
        """Count places in files that probes go to. Raises `UserError` when they are too many.

        A function may have as many exits, a USDT point as many places, as its user likes.
        """
        if self.places + count > PLACES_MAX:
            raise UserError(f"more than {PLACES_MAX} places to probe in one run")
        self.places += count

    def profiles(self) -> bool:
        """Is any layer in profile mode?"""
        return any(layer.mode is Mode.PROFILE for layer in self.probes.layers)

    def lean(self, layer: Layer) -> bool:
        """May calls of ``layer`` be observed without finding out which file they are about?"""
        return layer.mode is Mode.PROFILE and not self.config.rules_used

    def rate_entries(self) -> int:
        """Size of the map of rates: by function, if any layer has a limit."""
        limited = any(layer.max_per_s for layer in self.probes.layers)
        return len(self.functions) + 1 if limited else 1


def fill_rule(rule: layout.Rule, prefix: str) -> None:
    """Both forms of a path prefix: ``/a/b`` and ``b NUL a NUL``. Raises `UserError`."""
    parts = [part for part in prefix.encode().split(b"/") if part not in (b"", b".")]
    path = b"".join(b"/" + part for part in parts)
    if len(path) >= layout.RULE_BYTES or b".." in parts:
        raise UserError(
            f"path prefix {prefix!r}: it must be without .. and at most "
            f"{layout.RULE_BYTES - 1} bytes long",
            hint="correct include or exclude in the capture config",
        )
    rule.path, rule.length = path, len(path)
    names = b"".join(part + b"\0" for part in reversed(parts))
    rule.names[: len(names)] = names


def select_bits(kind: Select) -> int:
    """Which tasks a layer is recorded for."""
    return layout.IN_JOB | layout.JOINED if kind is Select.JOB else layout.JOINED
