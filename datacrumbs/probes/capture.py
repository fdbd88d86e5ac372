"""The capture config: a user's YAML that says which functions to capture."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from datacrumbs.errors import BadInputError
from datacrumbs.probes.model import ArgumentType, LayerName, Mode, Name, Select
from datacrumbs.probes.software import Origin, parse_origin
from datacrumbs.probes.syscalls import SyscallSet
from datacrumbs.strict_yaml import load_with_lines, nearest

MAX_CONFIG_BYTES = 1 << 20
MAX_LIFETIME_S = 10 * 366 * 24 * 3600
MAX_DURATION_NS = 3600 * 10**9
MAX_PATHS = 16
MAX_PATH = 255

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}
_NANOSECONDS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}


class ProbeKind(StrEnum):
    """What ``probe:`` may say."""

    SYSCALLS = "syscalls"
    UPROBE = "uprobe"
    KPROBE = "kprobe"
    USDT = "usdt"
    CUSTOM = "custom"


class ProbeType(StrEnum):
    """Where ``type:`` takes names from."""

    HEADER = "header"  # what a C header names: system calls, or functions of the kernel
    SET = "set"  # system calls of a named set
    KSYM = "ksym"  # symbols of the running kernel
    TRACEPOINT = "tracepoint"  # tracepoints of the running kernel
    BINARY = "binary"  # functions of an ELF file
    USDT = "usdt"  # USDT points of an ELF file
    CUSTOM = "custom"  # what a BPF program of the user's emits


@dataclass(frozen=True, slots=True)
class _Keys:
    """The keys of one type besides those that all have."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


_COMMON = ("name", "probe", "type", "select")
_FILTERS = ("mode", "min_duration", "max_per_s")
_TYPES: dict[ProbeKind, dict[ProbeType, _Keys]] = {
    ProbeKind.SYSCALLS: {
        ProbeType.HEADER: _Keys(("file", "regex"), _FILTERS),
        ProbeType.SET: _Keys(("set",), ("regex", *_FILTERS)),
    },
    ProbeKind.UPROBE: {
        ProbeType.BINARY: _Keys(
            ("file", "regex"), ("from", "include_offsets", "arguments", *_FILTERS)
        ),
    },
    ProbeKind.KPROBE: {
        ProbeType.HEADER: _Keys(("file",), ("regex", "arguments", *_FILTERS)),
        ProbeType.KSYM: _Keys(("regex",), ("arguments", *_FILTERS)),
        ProbeType.TRACEPOINT: _Keys(("regex",), _FILTERS),
    },
    ProbeKind.USDT: {
        ProbeType.USDT: _Keys(
            ("binary_path", "provider"), ("from", "regex", "pairs", "arguments", *_FILTERS)
        ),
    },
    # what a custom program emits, and how often, is its own business
    ProbeKind.CUSTOM: {ProbeType.CUSTOM: _Keys(("file", "functions"))},
}


class ArgumentRule(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One entry of ``arguments:``: an argument of the functions that ``function`` matches.

    It is found by ``index``, which counts from 0, or by ``name``, which takes type
    information. ``as`` is its name in the trace.
    """

    function: str | None = None
    index: Annotated[int, Meta(ge=0, le=31)] | None = None
    name: Name | None = None
    type: ArgumentType | None = None
    bytes: Annotated[int, Meta(ge=1, le=256)] | None = None
    as_: Name | None = msgspec.field(default=None, name="as")


class CaptureProbe(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One entry of ``capture_probes:``. A ``regex`` matches whole names."""

    name: LayerName
    probe: ProbeKind
    type: str = ""  # left out: the kind's only one
    file: str | None = None
    regex: str | None = None
    set: SyscallSet | None = None
    from_: str | None = msgspec.field(default=None, name="from")
    include_offsets: bool | None = None
    binary_path: str | None = None
    provider: Name | None = None
    pairs: dict[Name, Name] | None = None
    functions: Annotated[list[Name], Meta(max_length=1024)] | None = None
    arguments: Annotated[list[ArgumentRule], Meta(max_length=256)] | None = None
    mode: Mode = Mode.TRACE
    select: Select = Select.PROCESS
    min_duration: str | None = None
    max_per_s: Annotated[int, Meta(ge=1, le=2**31)] | None = None

    @property
    def source(self) -> ProbeType | None:
        """`type` as one of those there are, None if it is none."""
        types = list(_TYPES[self.probe])
        if not self.type and len(types) == 1:
            return types[0]
        return next((t for t in ProbeType if t.value == self.type), None)

    @property
    def min_duration_ns(self) -> int:
        """`min_duration` in nanoseconds, 0 without one. Checked when the config was read."""
        return nanoseconds(self.min_duration) if self.min_duration else 0

    @property
    def origin(self) -> Origin | None:
        """`from`, parsed. Checked when the config was read."""
        return parse_origin(self.from_) if self.from_ else None


class _Paths(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    include: Annotated[list[str], Meta(max_length=MAX_PATHS)] = []
    exclude: Annotated[list[str], Meta(max_length=MAX_PATHS)] = []


class _Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    capture_probes: Annotated[list[CaptureProbe], Meta(min_length=1)]
    lifetime: str = "30d"
    description: str = ""
    paths: _Paths = _Paths()


@dataclass(frozen=True, slots=True)
class CaptureConfig:
    """A checked capture config, and where each of its values stands in the file."""

    source: str
    probes: list[CaptureProbe]
    lifetime_s: int
    include: list[str]  # directories, without a slash at the end
    exclude: list[str]
    lines: dict[str, int]

    def where(self, index: int, key: str) -> str:
        """``lead.yaml:7: capture_probes[0].regex``, to begin an error with."""
        return _where(self.source, self.lines, f"capture_probes[{index}].{key}")

    def beside(self, file: str) -> Path:
        """The path that ``file`` means in this config: relative to the config's directory."""
        return Path(self.source).parent / file


def load_capture_config(path: Path) -> CaptureConfig:
    """Read and check the capture config at ``path``; `BadInputError` names line, key, value."""
    return parse_capture_config(_read(path), source=str(path))


def parse_capture_config(text: bytes, *, source: str) -> CaptureConfig:
    """`load_capture_config` for text at hand; ``source`` is its name in errors."""
    config, lines = load_with_lines(text, _Config, source=source)
    _check_names(config.capture_probes, source, lines)
    for index, probe in enumerate(config.capture_probes):
        _Checker(probe, f"capture_probes[{index}]", source, lines).check()
    lifetime_s = _seconds(config.lifetime, _where(source, lines, "lifetime"))
    include, exclude = (
        [_directory(path, _where(source, lines, f"paths.{key}[{at}]")) for at, path in paths]
        for key, paths in (
            ("include", enumerate(config.paths.include)),
            ("exclude", enumerate(config.paths.exclude)),
        )
    )
    return CaptureConfig(source, config.capture_probes, lifetime_s, include, exclude, lines)


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


def _check_names(probes: list[CaptureProbe], source: str, lines: dict[str, int]) -> None:
    seen: set[str] = set()
    for index, probe in enumerate(probes):
        if probe.name in seen:
            where = _where(source, lines, f"capture_probes[{index}].name")
            raise BadInputError(f"{where}: {probe.name!r}: an earlier entry has this name")
        seen.add(probe.name)


@dataclass(frozen=True, slots=True)
class _Checker:
    """Checks one entry; errors begin with the place of the key at fault."""

    probe: CaptureProbe
    path: str
    source: str
    lines: dict[str, int]

    def check(self) -> None:
        self._check_keys()
        self._check_regex("regex", self.probe.regex)
        if self.probe.from_ is not None:
            self._check_from(self.probe.from_)
        if self.probe.min_duration is not None:
            self._check_duration(self.probe.min_duration)
        for at, name in enumerate(self.probe.functions or []):
            self._check_c_name(name, f"functions[{at}]")
        for at, rule in enumerate(self.probe.arguments or []):
            self._check_argument(rule, f"arguments[{at}]")

    def where(self, key: str) -> str:
        return _where(self.source, self.lines, f"{self.path}.{key}")

    def _check_keys(self) -> None:
        kind = self.probe.probe
        source = self.probe.source
        keys = _TYPES[kind].get(source) if source else None
        if source is None or keys is None:
            wrong = f"{self.probe.type!r}: not a type of {kind.value} probes"
            raise BadInputError(
                f"{self.where('type')}: " + (wrong if self.probe.type else "needed"),
                hint=nearest(self.probe.type, [source.value for source in _TYPES[kind]]),
            )
        what = f"type {source.value!r}"
        for key in keys.required:
            if not _value(self.probe, key):
                raise BadInputError(f"{self.where(key)}: {what} needs this key")
        for key in self._given():
            if key not in (*_COMMON, *keys.required, *keys.optional):
                raise BadInputError(f"{self.where(key)}: {what} has no such key")

    def _given(self) -> Iterator[str]:
        prefix = f"$.{self.path}."
        for line in self.lines:
            key = line.removeprefix(prefix)
            if key != line and "." not in key and "[" not in key:
                yield key

    def _check_regex(self, key: str, regex: str | None) -> None:
        try:
            compile_regex(regex or "")
        except re.error as error:
            at = f" at column {error.colno}" if error.colno else ""
            raise BadInputError(f"{self.where(key)}: {regex!r}: {error.msg}{at}") from error
        except (OverflowError, RecursionError) as error:
            raise BadInputError(f"{self.where(key)}: {regex!r}: {error}") from error

    def _check_from(self, origin: str) -> None:
        try:
            parse_origin(origin)
        except BadInputError as error:
            where = self.where("from")
            raise BadInputError(f"{where}: {error.message}", hint=error.hint) from error
        key = "binary_path" if self.probe.probe is ProbeKind.USDT else "file"
        self._check_regex(key, _value(self.probe, key))  # of what `from` lists

    def _check_duration(self, duration: str) -> None:
        try:
            nanoseconds(duration)
        except BadInputError as error:
            where = self.where("min_duration")
            raise BadInputError(f"{where}: {error.message}", hint=error.hint) from error

    def _check_c_name(self, name: str, key: str) -> None:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise BadInputError(
                f"{self.where(key)}: {name!r}: not a name in C", hint="use A-Z a-z 0-9 and _"
            )

    def _check_argument(self, rule: ArgumentRule, key: str) -> None:
        self._check_regex(f"{key}.function", rule.function)
        where = self.where(key)
        if self.probe.mode is Mode.PROFILE:
            raise BadInputError(
                f"{where}: mode 'profile' keeps no arguments",
                hint="use mode: trace, or leave arguments: out",
            )
        if (rule.index is None) == (rule.name is None):
            raise BadInputError(f"{where}: needs one of index and name")
        number = rule.type in (ArgumentType.INT, ArgumentType.UINT)
        if number and rule.bytes not in (None, 1, 2, 4, 8):
            raise BadInputError(
                f"{self.where(key + '.bytes')}: {rule.bytes}: not the size of a number",
                hint="known: 1, 2, 4, 8",
            )


def _value(probe: CaptureProbe, key: str) -> str | None:
    value: str | None = getattr(probe, "from_" if key == "from" else key)
    return value


def compile_regex(regex: str) -> re.Pattern[str]:
    """``re.compile`` without its warnings about regexes of the future."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return re.compile(regex)


def nanoseconds(duration: str) -> int:
    """``10us`` in nanoseconds, more than 0 and up to an hour; raises `BadInputError`."""
    match = re.fullmatch(r"([0-9]{1,15})(ns|us|ms|s)", duration)
    value = int(match[1]) * _NANOSECONDS[match[2]] if match else 0
    if not 0 < value <= MAX_DURATION_NS:
        raise BadInputError(
            f"{duration!r}: not a length of time up to an hour",
            hint="give a number and one of ns, us, ms, s, such as 10us",
        )
    return value


def _seconds(lifetime: str, where: str) -> int:
    match = re.fullmatch(r"([0-9]{1,9})([smhdw])", lifetime)
    seconds = int(match[1]) * _SECONDS[match[2]] if match else 0
    if not 0 < seconds <= MAX_LIFETIME_S:
        raise BadInputError(
            f"{where}: {lifetime!r}: not a length of time up to ten years",
            hint="give a number and one of s, m, h, d, w, such as 12h or 30d",
        )
    return seconds


def _directory(path: str, where: str) -> str:
    """``path`` as the kernel would name it: what it must match is no link and has no dots."""
    plain = path.rstrip("/") or "/"
    parts = plain.split("/")[1:] if plain != "/" else []
    if not path.startswith("/") or not path.isprintable() or {".", "..", ""} & set(parts):
        raise BadInputError(f"{where}: {path!r}: not a plain absolute path")
    if len(plain.encode()) > MAX_PATH:
        raise BadInputError(f"{where}: longer than {MAX_PATH} bytes")
    return plain
