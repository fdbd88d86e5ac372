"""From a capture config to the list of probes to sign, and what was left out of it."""

from __future__ import annotations

import difflib
import os
import platform
import pwd
import re
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from datacrumbs.config import SystemConfig
from datacrumbs.errors import BadInputError, UserError
from datacrumbs.probes import elf, headers, model, syscalls
from datacrumbs.probes.capture import CaptureConfig, CaptureProbe, ProbeType, compile_regex
from datacrumbs.run import host_name

CPP_NOTE = (
    "exceptions may pass its functions: they are probed at their exits, at a higher cost per call"
)


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """What became of one entry of the capture config."""

    name: str
    probe: str  # capture.ProbeKind
    source: str  # what its names were chosen from
    functions: int
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (name, reason)
    notes: list[str] = field(default_factory=list)  # what the user should know about it

    def reasons(self) -> list[tuple[str, list[str]]]:
        """Names that were skipped, by reason, most frequent first."""
        counts = Counter(reason for _, reason in self.skipped)
        return [
            (reason, [name for name, why in self.skipped if why == reason])
            for reason, _ in counts.most_common()
        ]


@dataclass(frozen=True, slots=True)
class Built:
    """The probe list and one summary per layer, in the order of the capture config."""

    probes: model.ProbeList
    layers: list[LayerSummary]


def build(config: CaptureConfig, system: SystemConfig) -> Built:
    """Resolve every entry of ``config`` on this host, for the calling user, from now on.

    Raises `BadInputError` for a layer that comes out empty and for more functions than
    ``limits.functions`` of the system configuration.
    """
    resolver = _Resolver(config, platform.machine())
    made = [resolver.resolve(index) for index in range(len(config.probes))]
    probes = _probe_list([layer for layer, _ in made], config, system)
    if probes.probe_count() > system.limits.functions:
        raise BadInputError(
            f"{config.source}: {probes.probe_count()} functions are more than the "
            f"{system.limits.functions} that limits.functions of the system configuration allows",
            hint="make a regex narrower",
        )
    return Built(probes, [summary for _, summary in made])


def _probe_list(
    layers: list[model.Layer], config: CaptureConfig, system: SystemConfig
) -> model.ProbeList:
    now = int(time.time())
    return model.ProbeList(
        format=model.FORMAT,
        uid=os.getuid(),
        user=_user_name(os.getuid()),
        created=now,
        expires=now + config.lifetime_s,
        host=host_name(),
        cluster=system.cluster,
        machine=platform.machine(),
        layers=layers,
    )


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError as error:
        raise UserError(
            f"uid {uid} has no name on this host",
            hint=f"the user database has to know it: see `getent passwd {uid}`",
        ) from error


Key = str | tuple[Path, int]
"""What identifies a function whatever it is called: a system call, or (binary, offset)."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What an entry matches on this host."""

    functions: dict[Key, str | model.UserFunction]
    skipped: list[tuple[str, str]]
    known: Collection[str]  # the names that the regex chose from
    source: str


class _Resolver:
    """Turns entries into layers; one function is probed once, for the first that names it."""

    def __init__(self, config: CaptureConfig, machine: str) -> None:
        self.config = config
        self.machine = machine
        self.table: dict[str, int] = {}
        self.taken: dict[Key, str] = {}  # function -> its layer

    def resolve(self, index: int) -> tuple[model.Layer, LayerSummary]:
        probe = self.config.probes[index]
        if probe.type == ProbeType.BINARY:
            return self._binary(probe, index)
        self.table = self.table or syscalls.available(self.machine)
        header = probe.type == ProbeType.HEADER
        found = self._header(probe, index) if header else self._set(probe)
        functions, skipped = self._claim(found, index)
        layer = model.SyscallLayer(
            name=probe.name,
            functions=[str(name) for name in functions],
            mode=probe.mode,
            select=probe.select,
        )
        return layer, _summary(probe, found, functions, skipped)

    def _set(self, probe: CaptureProbe) -> _Found:
        assert probe.set is not None
        members = syscalls.select(probe.set, self.table)
        pattern = compile_regex(probe.regex or ".*")
        names = [name for name in members if pattern.fullmatch(name)]
        source = f"system calls of set {probe.set.value}"
        return _Found({name: name for name in names}, [], members, source)

    def _header(self, probe: CaptureProbe, index: int) -> _Found:
        assert probe.file and probe.regex
        with _located(self.config.where(index, "file")):
            path = headers.find_header(probe.file, self.machine)
            named = headers.header_syscalls(path)
        pattern = compile_regex(probe.regex)
        wanted = {
            syscalls.USER_NAMES.get(name, name)
            for name, identifier in named.items()
            if pattern.fullmatch(name) or pattern.fullmatch(identifier)
        }
        missing = wanted - self.table.keys()
        return _Found(
            {name: name for name in sorted(wanted - missing)},
            [(name, "not a system call of this kernel") for name in sorted(missing)],
            named,
            f"system calls in {path}",
        )

    def _binary(self, probe: CaptureProbe, index: int) -> tuple[model.Layer, LayerSummary]:
        assert probe.file and probe.regex
        with _located(self.config.where(index, "file")):
            path = elf.find_binary(probe.file, self.machine)
            binary = elf.read_functions(path, compile_regex(probe.regex), self.machine)
        matches: dict[Key, str | model.UserFunction] = {
            (path, function.offset): function for function in binary.functions
        }
        found = _Found(matches, binary.skipped, binary.names, f"functions of {path}")
        functions, skipped = self._claim(found, index)
        layer = model.UserLayer(
            name=probe.name,
            binary=str(path),
            functions=[f for f in functions if isinstance(f, model.UserFunction)],
            build_id=binary.build_id,
            digest=binary.digest,
            mode=probe.mode,
            select=probe.select,
        )
        notes = [CPP_NOTE] if binary.throws else []
        return layer, _summary(probe, found, functions, skipped, notes)

    def _claim(
        self, found: _Found, index: int
    ) -> tuple[list[str | model.UserFunction], list[tuple[str, str]]]:
        """The functions that no earlier layer has, and all that is skipped; never none."""
        probe = self.config.probes[index]
        again = [
            (_name(function), f"already in layer {self.taken[key]}")
            for key, function in found.functions.items()
            if key in self.taken
        ]
        functions = [f for key, f in found.functions.items() if key not in self.taken]
        skipped = sorted([*found.skipped, *again])
        if not functions:
            raise self._empty(probe, index, found, skipped)
        self.taken = dict.fromkeys(found.functions, probe.name) | self.taken
        return functions, skipped

    def _empty(
        self, probe: CaptureProbe, index: int, found: _Found, skipped: list[tuple[str, str]]
    ) -> BadInputError:
        key, value = ("regex", probe.regex) if probe.regex else ("set", str(probe.set))
        where = f"{self.config.where(index, key)}: {value!r}"
        if skipped:
            name, reason = skipped[0]
            return BadInputError(
                f"{where}: nothing is left to probe: of the {found.source} it matches "
                f"{len(skipped)}, all skipped, such as {name} ({reason})",
            )
        return BadInputError(
            f"{where} matches none of the {len(found.known)} {found.source}",
            hint=near_hint(probe.regex or "", found.known),
        )


def _name(function: str | model.UserFunction) -> str:
    return function if isinstance(function, str) else function.name


def _summary(
    probe: CaptureProbe,
    found: _Found,
    functions: Collection[object],
    skipped: list[tuple[str, str]],
    notes: list[str] | None = None,
) -> LayerSummary:
    return LayerSummary(
        name=probe.name,
        probe=probe.probe.value,
        source=found.source,
        functions=len(functions),
        skipped=skipped,
        notes=notes or [],
    )


@contextmanager
def _located(where: str) -> Iterator[None]:
    """Begin errors with the place in the capture config that leads to them."""
    try:
        yield
    except BadInputError as error:
        raise BadInputError(f"{where}: {error.message}", hint=error.hint) from error


def near_hint(regex: str, names: Collection[str]) -> str:
    """What to write instead of a regex that matches none of ``names`` as a whole name."""
    pattern = compile_regex(regex)
    inside = sorted(name for name in names if pattern.search(name))
    if inside:
        return f"it has to match whole names; put .* around it for {_some(inside)}"
    words = re.findall(r"\w{3,}", regex)
    near = [n for word in words for n in difflib.get_close_matches(word, names, n=3)]
    return f"near names: {', '.join(dict.fromkeys(near[:6]))}" if near else ""


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest
