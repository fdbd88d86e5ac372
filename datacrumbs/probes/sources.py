"""What one entry of a capture config matches on this host, by where its names come from."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

from datacrumbs.errors import BadInputError
from datacrumbs.probes import dynamic, elf, headers, kernel, model, mounts, syscalls, usdt
from datacrumbs.probes.arguments import Parameters, kernel_parameters, usdt_parameters
from datacrumbs.probes.capture import CaptureConfig, CaptureProbe, ProbeType, compile_regex
from datacrumbs.probes.dwarf import user_parameters
from datacrumbs.probes.elf_identity import NotElfError, elf_identity
from datacrumbs.probes.software import Found as Objects
from datacrumbs.probes.software import SharedObject, find_objects

CPP_NOTE = (
    "exceptions may pass its functions: they are probed at their exits, at a higher cost per call"
)
Function = str | model.UserFunction | model.KernelFunction | model.UsdtPoint
Key = tuple[str, str | int]
"""What identifies a function whatever it is called: its kind or file, and its name or offset."""


@dataclass(frozen=True, slots=True)
class Match:
    """What an entry, or its part for one file, matches: the makings of one layer.

    ``make`` takes the layer's common fields and ``functions``. ``target`` is what status
    entries know the file by: its build-id or digest, "" for the kernel. ``parameters`` finds
    out the parameters of a function.
    """

    name: str
    functions: dict[Key, Function]
    skipped: list[tuple[str, str]]
    known: Collection[str]  # the names that the regex chose from
    source: str
    make: Callable[..., model.Layer]
    target: str = ""
    notes: list[str] = field(default_factory=list)
    parameters: Callable[[Function], Parameters] | None = None


def match_entry(config: CaptureConfig, index: int, machine: str) -> list[Match]:
    """The matches of an entry: one, or with `from:` one for each file. Raises `BadInputError`."""
    probe = config.probes[index]
    by_source: dict[ProbeType | None, Callable[[CaptureConfig, int, str], list[Match]]] = {
        ProbeType.SET: _set,
        ProbeType.KSYM: _ksym,
        ProbeType.TRACEPOINT: _tracepoints,
        ProbeType.BINARY: _binaries,
        ProbeType.USDT: _usdt,
        ProbeType.CUSTOM: _custom,
        ProbeType.HEADER: _kernel_header if probe.probe.value == "kprobe" else _syscall_header,
    }
    return by_source[probe.source](config, index, machine)


@contextmanager
def located(where: str) -> Iterator[None]:
    """Begin errors with the place in the capture config that leads to them."""
    try:
        yield
    except BadInputError as error:
        raise BadInputError(f"{where}: {error.message}", hint=error.hint) from error


def name_of(function: Function) -> str:
    """The name of a function as reports show it."""
    return function if isinstance(function, str) else function.name


def names_of(function: Function) -> list[str]:
    """All names that a regex may mean it by."""
    if isinstance(function, model.UserFunction):
        return [function.name, *function.aliases]
    if isinstance(function, model.KernelFunction):
        return [function.name, kernel.base_name(function.name)]
    return [name_of(function)]


@cache
def _system_calls(machine: str) -> dict[str, int]:
    return syscalls.available(machine)


def _set(config: CaptureConfig, index: int, machine: str) -> list[Match]:
    probe = config.probes[index]
    assert probe.set is not None
    members = syscalls.select(probe.set, _system_calls(machine))
    pattern = compile_regex(probe.regex or ".*")
    names = [name for name in members if pattern.fullmatch(name)]
    return [_syscall_match(probe, names, [], members, f"system calls of set {probe.set.value}")]


def _syscall_header(config: CaptureConfig, index: int, machine: str) -> list[Match]:
    probe = config.probes[index]
    assert probe.file and probe.regex
    with located(config.where(index, "file")):
        path = headers.find_header(probe.file, machine)
        named = headers.header_syscalls(path)
    pattern = compile_regex(probe.regex)
    wanted = {
        syscalls.USER_NAMES.get(name, name)
        for name, identifier in named.items()
        if pattern.fullmatch(name) or pattern.fullmatch(identifier)
    }
    missing = wanted - _system_calls(machine).keys()
    skipped = [(name, "not a system call of this kernel") for name in sorted(missing)]
    names = sorted(wanted - missing)
    return [_syscall_match(probe, names, skipped, named, f"system calls in {path}")]


def _syscall_match(
    probe: CaptureProbe,
    names: list[str],
    skipped: list[tuple[str, str]],
    known: Collection[str],
    source: str,
) -> Match:
    functions: dict[Key, Function] = {("syscall", name): name for name in names}
    return Match(probe.name, functions, skipped, known, source, model.SyscallLayer)


def _ksym(config: CaptureConfig, index: int, machine: str) -> list[Match]:
    probe = config.probes[index]
    names = kernel.kernel_names()
    functions, skipped = kernel.select(names, compile_regex(probe.regex or ""))
    return [_kernel_match(probe, functions, skipped, known=names.functions, source="functions")]


def _tracepoints(config: CaptureConfig, index: int, machine: str) -> list[Match]:
    probe = config.probes[index]
    pattern = compile_regex(probe.regex or "")
    names = {name: kernel.plain_name(name) for name in kernel.tracepoints()}
    functions: dict[Key, Function] = {
        ("kernel", name): model.KernelFunction(name=name)
        for name, plain in names.items()
        if pattern.fullmatch(name) or pattern.fullmatch(plain)
    }
    source = "tracepoints of the kernel"
    return [Match(probe.name, functions, [], names.values(), source, model.KernelLayer)]


def _kernel_header(config: CaptureConfig, index: int, machine: str) -> list[Match]:
    probe = config.probes[index]
    assert probe.file
    with located(config.where(index, "file")):
        path = headers.find_kernel_header(probe.file, machine)
        declared = headers.header_functions(path)
    pattern = compile_regex(probe.regex or ".*")
    functions, skipped = kernel.select(kernel.kernel_names(), pattern, declared)
    there = {kernel.base_name(name) for name in (*(f.name for f in functions), *dict(skipped))}
    skipped += [
        (name, "not a function of this kernel (inline, or not built in)")
        for name in sorted(declared - there)
        if pattern.fullmatch(name)
    ]
    source = f"functions in {path}"
    return [_kernel_match(probe, functions, skipped, known=declared, source=source)]


def _kernel_match(
    probe: CaptureProbe,
    functions: Sequence[model.KernelFunction],
    skipped: list[tuple[str, str]],
    *,
    known: Collection[str],
    source: str,
) -> Match:
    return Match(
        name=probe.name,
        functions={("kernel", function.name): function for function in functions},
        skipped=skipped,
        known=known,
        source=f"kernel {source}",
        make=model.KernelLayer,
        notes=[note] if (note := kernel.kernel_names().note) else [],
        parameters=kernel_parameters,
    )


def _binaries(config: CaptureConfig, index: int, machine: str) -> list[Match]:
    return _of_files(config, index, machine, "file", _binary)


def _binary(config: CaptureConfig, index: int, machine: str, path: Path) -> Match:
    probe = config.probes[index]
    found = elf.read_functions(
        path,
        compile_regex(probe.regex or ""),
        machine,
        include_offsets=bool(probe.include_offsets),
    )
    return Match(
        name=probe.name,
        functions={(str(path), function.offset): function for function in found.functions},
        skipped=found.skipped,
        known=found.names,
        source=f"functions of {path}",
        make=_pinned(model.UserLayer, path, found.build_id, found.digest),
        target=found.build_id or found.digest or "",
        notes=[*([CPP_NOTE] if found.throws else []), *mounts.notes(path)],
        parameters=user_parameters(path, found.build_id, machine),
    )


def _pinned(
    kind: Callable[..., model.Layer], path: Path, build_id: str | None, digest: str | None
) -> Callable[..., model.Layer]:
    return partial(kind, binary=str(path), build_id=build_id, digest=digest)


def _usdt(config: CaptureConfig, index: int, machine: str) -> list[Match]:
    matches = _of_files(config, index, machine, "binary_path", _usdt_points)
    for match in matches:
        pairs = config.probes[index].pairs or {}
        _check_pairs(pairs, match.known, config.where(index, "pairs"))
    return matches


def _usdt_points(config: CaptureConfig, index: int, machine: str, path: Path) -> Match:
    probe = config.probes[index]
    points, (build_id, digest) = _read_points(path, machine)
    here = {point.name: point for point in points if point.provider == probe.provider}
    if not here:
        providers = sorted({point.provider for point in points})
        raise BadInputError(
            f"{path}: no USDT points of provider {probe.provider!r}",
            hint="its providers: " + ", ".join(providers) if providers else "it has no USDT points",
        )
    pairs = probe.pairs or {}
    pattern = compile_regex(probe.regex) if probe.regex else None
    ends = set(pairs.values())
    functions: dict[Key, Function] = {}
    for name in sorted(here):
        wanted = pattern.fullmatch(name) if pattern else (name in pairs or not pairs)
        if wanted and name not in ends:
            point = model.UsdtPoint(
                provider=probe.provider or "", name=name, returns=pairs.get(name)
            )
            functions[f"{path}:{probe.provider}", name] = point
    return Match(
        name=probe.name,
        functions=functions,
        skipped=[],
        known=here,
        source=f"USDT points of {probe.provider} in {path}",
        make=_pinned(model.UsdtLayer, path, build_id, digest),
        target=build_id or digest or "",
        notes=mounts.notes(path),
        parameters=partial(usdt_parameters, here),
    )


def _check_pairs(pairs: dict[str, str], here: Collection[str], where: str) -> None:
    for begin, end in pairs.items():
        for name in (begin, end):
            if name not in here:
                raise BadInputError(
                    f"{where}: {name!r} is no point of this provider",
                    hint="its points: " + ", ".join(sorted(here)),
                )
        if begin == end or end in pairs:
            raise BadInputError(f"{where}: {end!r} cannot both begin and end a call")
    if len(set(pairs.values())) < len(pairs):
        raise BadInputError(f"{where}: two points end with the same one")


def _read_points(
    path: Path, machine: str
) -> tuple[list[usdt.Point], tuple[str | None, str | None]]:
    try:
        dynamic.read_dynamic(path, machine)
    except dynamic.NotForUsError as error:
        raise BadInputError(f"{path}: {error.message}") from error
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise BadInputError(f"{path}: not a regular file")
        return usdt.usdt_points(fd), elf_identity(fd)
    except NotElfError as error:
        raise BadInputError(f"{path}: {error.message}") from error
    finally:
        os.close(fd)


def _custom(config: CaptureConfig, index: int, machine: str) -> list[Match]:
    probe = config.probes[index]
    assert probe.file and probe.functions
    with located(config.where(index, "file")):
        path = config.beside(probe.file)
        source = _program_text(path)
    functions: dict[Key, Function] = {(f"custom {probe.name}", n): n for n in probe.functions}
    make = partial(model.CustomLayer, source=source)
    known = probe.functions
    return [Match(probe.name, functions, [], known, f"functions that {path} emits", make)]


def _program_text(path: Path) -> str:
    limit = model.SOURCE_MAX
    try:
        with open(path, "rb") as file:
            data = file.read(4 * limit + 1)
        text = data.decode()
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path}: not a text in UTF-8") from error
    if len(text) > limit:
        raise BadInputError(f"{path}: longer than {limit} characters")
    if not text.strip():
        raise BadInputError(f"{path}: empty")
    for number, line in enumerate(text.split("\n"), 1):
        if not line.replace("\t", " ").isprintable():
            raise BadInputError(f"{path}:{number}: a character that cannot be printed")
    return text


def _of_files(
    config: CaptureConfig,
    index: int,
    machine: str,
    key: str,
    read: Callable[[CaptureConfig, int, str, Path], Match],
) -> list[Match]:
    """``read`` for the file that ``key`` names, or for each that it chooses of `from:`'s."""
    probe = config.probes[index]
    file: str = getattr(probe, key)
    if probe.origin is None:
        with located(config.where(index, key)):
            return [read(config, index, machine, elf.find_binary(file, machine))]
    with located(config.where(index, "from")):
        objects = find_objects(probe.origin, machine)
    chosen = _choose(objects, file, config.where(index, key), str(probe.origin))
    matches: list[Match] = []
    skipped: list[tuple[str, str]] = []
    last: BadInputError | None = None
    for item in chosen:
        try:
            match = read(config, index, machine, item.path)
        except BadInputError as error:
            last = error
            skipped.append((str(item.path), error.message.removeprefix(f"{item.path}: ")))
        else:
            matches.append(match)
    if not matches and last is not None:
        raise BadInputError(f"{config.where(index, key)}: {last.message}", hint=last.hint)
    kept = [match for match in matches if match.functions] or matches[:1]
    return _named(probe.name, kept, skipped, {other.name for other in config.probes})


def _choose(objects: Objects, regex: str, where: str, origin: str) -> list[SharedObject]:
    pattern = compile_regex(regex)
    chosen = [
        item
        for item in objects.objects
        if any(pattern.fullmatch(name) for name in (item.name, item.path.name, str(item.path)))
    ]
    if not chosen:
        names = sorted({item.name for item in objects.objects})
        raise BadInputError(
            f"{where}: {regex!r} matches none of the {len(names)} files of {origin}",
            hint="there are: " + ", ".join(names[:12]) + (" ..." if len(names) > 12 else ""),
        )
    return chosen


def _named(
    name: str, matches: list[Match], skipped: list[tuple[str, str]], taken: set[str]
) -> list[Match]:
    """One layer keeps the entry's name; of several, each adds its file's."""
    if len(matches) == 1:
        return [replace(matches[0], skipped=[*matches[0].skipped, *skipped])]
    named = []
    for match in matches:
        layer = _free(f"{name}.{_stem(match)}"[:32], taken)
        taken.add(layer)
        named.append(replace(match, name=layer, skipped=[*match.skipped, *skipped]))
        skipped = []  # told once
    return named


def _stem(match: Match) -> str:
    """``hdf5_hl`` for /usr/lib/libhdf5_hl.so.100.1, in a layer name's characters."""
    file = match.make.keywords["binary"] if isinstance(match.make, partial) else match.name
    stem = Path(file).name.partition(".so")[0].removeprefix("lib")
    return "".join(c if c.isascii() and (c.isalnum() or c in "_.+-") else "_" for c in stem)


def _free(name: str, taken: Collection[str]) -> str:
    number = 2
    free = name
    while free in taken:
        free = f"{name[:29]}-{number}"
        number += 1
    return free
