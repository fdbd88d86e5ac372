"""The capture config: a user's YAML that says which functions to capture."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from datacrumbs.errors import BadInputError
from datacrumbs.probes.model import LayerName, Mode, Select
from datacrumbs.probes.syscalls import SyscallSet
from datacrumbs.strict_yaml import load_with_lines, nearest

MAX_CONFIG_BYTES = 1 << 20
MAX_LIFETIME_S = 10 * 366 * 24 * 3600

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}


class ProbeKind(StrEnum):
    """What ``probe:`` may say."""

    SYSCALLS = "syscalls"
    UPROBE = "uprobe"
    KPROBE = "kprobe"
    USDT = "usdt"
    CUSTOM = "custom"


class ProbeType(StrEnum):
    """Where ``type:`` takes names from."""

    HEADER = "header"  # system calls that a C header names
    SET = "set"  # system calls of a named set
    BINARY = "binary"  # functions of an ELF file


_TYPES = {
    ProbeKind.SYSCALLS: (ProbeType.HEADER, ProbeType.SET),
    ProbeKind.UPROBE: (ProbeType.BINARY,),
}
_REQUIRED = {
    ProbeType.HEADER: ("file", "regex"),
    ProbeType.SET: ("set",),
    ProbeType.BINARY: ("file", "regex"),
}
_OPTIONAL = {ProbeType.SET: ("regex",)}


class CaptureProbe(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One entry of ``capture_probes:``. A ``regex`` matches whole names."""

    name: LayerName
    probe: ProbeKind
    type: str
    file: str | None = None
    regex: str | None = None
    set: SyscallSet | None = None
    mode: Mode = Mode.TRACE
    select: Select = Select.PROCESS


class _Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    capture_probes: Annotated[list[CaptureProbe], Meta(min_length=1)]
    lifetime: str = "30d"
    description: str = ""


class _Kind(Struct, frozen=True, kw_only=True):
    """As much of an entry as every version of the format has."""

    probe: ProbeKind
    mode: Mode = Mode.TRACE


class _Kinds(Struct, frozen=True, kw_only=True):
    capture_probes: list[_Kind]


@dataclass(frozen=True, slots=True)
class CaptureConfig:
    """A checked capture config, and where each of its values stands in the file."""

    source: str
    probes: list[CaptureProbe]
    lifetime_s: int
    lines: dict[str, int]

    def where(self, index: int, key: str) -> str:
        """``lead.yaml:7: capture_probes[0].regex``, to begin an error with."""
        return _where(self.source, self.lines, f"capture_probes[{index}].{key}")


def load_capture_config(path: Path) -> CaptureConfig:
    """Read and check the capture config at ``path``; `BadInputError` names line, key, value."""
    return parse_capture_config(_read(path), source=str(path))


def parse_capture_config(text: bytes, *, source: str) -> CaptureConfig:
    """`load_capture_config` for text at hand; ``source`` is its name in errors."""
    _refuse_later_kinds(text, source)
    config, lines = load_with_lines(text, _Config, source=source)
    for index, probe in enumerate(config.capture_probes):
        _check_keys(probe, index, source, lines)
        _check_regex(probe, _where(source, lines, f"capture_probes[{index}].regex"))
    lifetime_s = _seconds(config.lifetime, _where(source, lines, "lifetime"))
    return CaptureConfig(source, config.capture_probes, lifetime_s, lines)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror}", hint="give a capture config") from error
    if len(text) > MAX_CONFIG_BYTES:
        raise BadInputError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes")
    return text


def _where(source: str, lines: dict[str, int], key: str) -> str:
    """Line of the key, or of what it is missing from."""
    line = lines.get(f"$.{key}") or lines.get(f"$.{key.rpartition('.')[0]}")
    return f"{source}:{line}: {key}" if line else f"{source}: {key}"


def _refuse_later_kinds(text: bytes, source: str) -> None:
    """Say "not yet" before any key that only a later version knows is called unknown."""
    kinds, lines = load_with_lines(text, _Kinds, source=source)
    for index, entry in enumerate(kinds.capture_probes):
        if entry.probe not in _TYPES:
            where = _where(source, lines, f"capture_probes[{index}].probe")
            raise BadInputError(
                f"{where}: not yet: this version cannot capture {entry.probe.value!r} probes",
                hint="it captures: " + ", ".join(_TYPES),
            )
        if entry.mode is Mode.PROFILE:
            where = _where(source, lines, f"capture_probes[{index}].mode")
            raise BadInputError(
                f"{where}: not yet: this version has no profile mode",
                hint="use mode: trace, or leave the key out",
            )


def _check_keys(probe: CaptureProbe, index: int, source: str, lines: dict[str, int]) -> None:
    def where(key: str) -> str:
        return _where(source, lines, f"capture_probes[{index}].{key}")

    allowed = _TYPES[probe.probe]
    if probe.type not in allowed:
        raise BadInputError(
            f"{where('type')}: {probe.type!r}: not a type of {probe.probe.value} probes",
            hint=nearest(probe.type, allowed),
        )
    kind = ProbeType(probe.type)
    required = _REQUIRED[kind]
    for key in ("file", "regex", "set"):
        value = getattr(probe, key)
        if key in required and not value:
            raise BadInputError(f"{where(key)}: type {kind.value!r} needs this key")
        if value is not None and key not in (*required, *_OPTIONAL.get(kind, ())):
            raise BadInputError(f"{where(key)}: type {kind.value!r} has no such key")


def _check_regex(probe: CaptureProbe, where: str) -> None:
    try:
        compile_regex(probe.regex or "")
    except re.error as error:
        at = f" at column {error.colno}" if error.colno else ""
        raise BadInputError(f"{where}: {probe.regex!r}: {error.msg}{at}") from error
    except (OverflowError, RecursionError) as error:
        raise BadInputError(f"{where}: {probe.regex!r}: {error}") from error


def compile_regex(regex: str) -> re.Pattern[str]:
    """``re.compile`` without its warnings about regexes of the future."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return re.compile(regex)


def _seconds(lifetime: str, where: str) -> int:
    match = re.fullmatch(r"([0-9]{1,9})([smhdw])", lifetime)
    seconds = int(match[1]) * _SECONDS[match[2]] if match else 0
    if not 0 < seconds <= MAX_LIFETIME_S:
        raise BadInputError(
            f"{where}: {lifetime!r}: not a length of time up to ten years",
            hint="give a number and one of s, m, h, d, w, such as 12h or 30d",
        )
    return seconds
