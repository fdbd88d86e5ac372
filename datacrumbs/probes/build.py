"""From a capture config to the list of probes to sign, and what was left out of it."""

from __future__ import annotations

import difflib
import os
import platform
import pwd
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from datacrumbs.config import SystemConfig
from datacrumbs.errors import BadInputError, UserError
from datacrumbs.probes import model, status
from datacrumbs.probes.arguments import Parameters, wants, with_argument
from datacrumbs.probes.capture import (
    MAX_PATH,
    ArgumentRule,
    CaptureConfig,
    CaptureProbe,
    compile_regex,
)
from datacrumbs.probes.kernel import plain_name
from datacrumbs.probes.sources import Function, Key, Match, match_entry, name_of, names_of
from datacrumbs.run import host_name


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """What became of one layer: an entry of the capture config, or its part for one file."""

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
    notes: list[str] = field(default_factory=list)  # about the whole of it


def build(
    config: CaptureConfig,
    system: SystemConfig,
    *,
    progress: Callable[[int], None] = lambda entries: None,
) -> Built:
    """Resolve every entry of ``config`` on this host, for the calling user, from now on.

    ``progress`` is called with how many more entries are done. Raises `BadInputError` for a
    layer that comes out empty and for more functions than ``limits.functions`` of the system
    configuration.
    """
    notes: list[str] = []
    resolver = _Resolver(config, platform.machine(), system, _known_refusals(system, notes))
    made = []
    for index in range(len(config.probes)):
        made += resolver.resolve(index)
        progress(1)
    include = _real_paths(config.include, config.source, notes)
    exclude = _real_paths(config.exclude, config.source, notes)
    now = int(time.time())
    probes = model.ProbeList(
        format=model.FORMAT,
        uid=os.getuid(),
        user=_user_name(os.getuid()),
        created=now,
        expires=now + config.lifetime_s,
        host=host_name(),
        cluster=system.cluster,
        machine=platform.machine(),
        layers=[layer for layer, _ in made],
        include=include,
        exclude=exclude,
    )
    if probes.probe_count() > system.limits.functions:
        raise BadInputError(
            f"{config.source}: {probes.probe_count()} functions are more than the "
            f"{system.limits.functions} that limits.functions of the system configuration allows",
            hint="make a regex narrower",
        )
    return Built(probes, [summary for _, summary in made], notes)


def _known_refusals(system: SystemConfig, notes: list[str]) -> dict[status.Place, str]:
    try:
        entries = status.known(Path(system.state_dir), os.getuid(), kernel=platform.release())
    except UserError as error:
        notes.append(f"what is known not to attach cannot be read: {error.message}")
        return {}
    return {status.place_of_entry(entry): entry.reason for entry in entries}


def _real_paths(paths: list[str], source: str, notes: list[str]) -> list[str]:
    """Paths as the kernel compares them, without links."""
    real = [os.path.realpath(path) for path in paths]
    for path, place in zip(paths, real, strict=True):
        if place != path:
            notes.append(f"paths: {path} is a link: it stands for {place}")
        if len(place.encode()) > MAX_PATH:
            raise BadInputError(f"{source}: paths: {place}: longer than {MAX_PATH} bytes")
    return real


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError as error:
        raise UserError(
            f"uid {uid} has no name on this host",
            hint=f"the user database has to know it: see `getent passwd {uid}`",
        ) from error


@dataclass(slots=True)
class _Claimed:
    """What of a match is to be probed, and what was skipped."""

    match: Match
    functions: list[Function]
    skipped: list[tuple[str, str]]
    parameters: dict[int, Parameters] = field(default_factory=dict)  # by place in `functions`

    def capture(self, rule: ArgumentRule) -> tuple[int, list[tuple[str, str]]]:
        """Add the argument that ``rule`` asks for: to how many, and (name, reason) of the rest."""
        done = 0
        failed = []
        for place, function in enumerate(self.functions):
            if isinstance(function, str) or not wants(rule, names_of(function)):
                continue
            try:
                if place not in self.parameters:
                    assert self.match.parameters is not None
                    self.parameters[place] = self.match.parameters(function)
                self.functions[place] = with_argument(function, rule, self.parameters[place])
            except ValueError as error:
                failed.append((function.name, str(error)))
            else:
                done += 1
        return done, failed


def _layer(probe: CaptureProbe, claimed: _Claimed) -> model.Layer:
    return claimed.match.make(
        name=claimed.match.name,
        functions=claimed.functions,
        mode=probe.mode,
        select=probe.select,
        min_duration_ns=probe.min_duration_ns,
        max_per_s=probe.max_per_s or 0,
    )


def _summary(probe: CaptureProbe, claimed: _Claimed, notes: list[str]) -> LayerSummary:
    return LayerSummary(
        name=claimed.match.name,
        probe=probe.probe.value,
        source=claimed.match.source,
        functions=len(claimed.functions),
        skipped=claimed.skipped,
        notes=[*claimed.match.notes, *notes],
    )


class _Resolver:
    """Turns entries into layers; one function is probed once, for the first that names it."""

    def __init__(
        self,
        config: CaptureConfig,
        machine: str,
        system: SystemConfig,
        refused: Mapping[status.Place, str],
    ) -> None:
        self.config = config
        self.machine = machine
        self.system = system
        self.refused = refused
        self.taken: dict[Key, str] = {}  # function -> its layer

    def resolve(self, index: int) -> list[tuple[model.Layer, LayerSummary]]:
        probe = self.config.probes[index]
        claimed = [self._claim(match) for match in match_entry(self.config, index, self.machine)]
        if not any(one.functions for one in claimed):
            raise self._empty(probe, index, claimed[0])
        notes = self._capture_arguments(probe, index, claimed)
        return [
            (_layer(probe, one), _summary(probe, one, notes)) for one in claimed if one.functions
        ]

    def _claim(self, match: Match) -> _Claimed:
        """The functions that nothing speaks against, and (name, reason) of all others."""
        functions: list[Function] = []
        skipped = list(match.skipped)
        for key, function in match.functions.items():
            if reason := self._objection(key, function, match):
                skipped.append((name_of(function), reason))
            else:
                functions.append(function)
        self.taken = dict.fromkeys(match.functions, match.name) | self.taken
        return _Claimed(match, functions, sorted(skipped))

    def _objection(self, key: Key, function: Function, match: Match) -> str:
        if key in self.taken:
            return f"already in layer {self.taken[key]}"
        if isinstance(function, model.KernelFunction):
            allowed = self.system.policy.kernel_functions
            if not any(fnmatchcase(plain_name(function.name), pattern) for pattern in allowed):
                return "this site does not allow it (policy.kernel_functions)"
        if not isinstance(function, str):
            why = self.refused.get(status.place_of(match.target, function))
            return f"{status.KNOWN}: {why}" if why else ""
        return ""

    def _capture_arguments(
        self, probe: CaptureProbe, index: int, claimed: list[_Claimed]
    ) -> list[str]:
        """Give functions the arguments that the entry's rules ask for; returns notes."""
        notes = []
        for at, rule in enumerate(probe.arguments or []):
            results = [one.capture(rule) for one in claimed]
            done = sum(count for count, _ in results)
            failed = [failure for _, failures in results for failure in failures]
            where = self.config.where(index, f"arguments[{at}]")
            notes += _argument_notes(where, rule.function, done, failed)
        return notes

    def _empty(self, probe: CaptureProbe, index: int, claimed: _Claimed) -> BadInputError:
        match, skipped = claimed.match, claimed.skipped
        key = next(k for k in ("regex", "set", "provider", "file") if getattr(probe, k))
        where = f"{self.config.where(index, key)}: {str(getattr(probe, key))!r}"
        if skipped:
            name, reason = skipped[0]
            return BadInputError(
                f"{where}: nothing is left to probe: of the {match.source} it matches "
                f"{len(skipped)}, all skipped, such as {name} ({reason})",
            )
        return BadInputError(
            f"{where} matches none of the {len(match.known)} {match.source}",
            hint=near_hint(probe.regex or "", match.known),
        )


def _argument_notes(
    where: str, regex: str | None, done: int, failed: list[tuple[str, str]]
) -> list[str]:
    """One line about functions that a rule gave nothing; an error if it is all of them."""
    if not failed and not done:
        raise BadInputError(f"{where}.function: {regex!r} matches none of the entry's functions")
    if not failed:
        return []
    name, reason = failed[0]
    if not done:
        raise BadInputError(f"{where}: {name}: {reason}")
    total = done + len(failed)
    key = where.rpartition(".")[2]
    return [f"{key}: not captured for {len(failed)} of {total} functions, such as {name}: {reason}"]


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
