"""Software found for the user: the programs and shared objects that `from:` means.

``ldconfig``: what the dynamic linker knows. ``modules``: what the loaded environment modules
bring. ``spack [SPEC]``: an installed package, or the active environment. ``process PID``: what
a running program has mapped. ``command ./myapp``: what a program would be linked to at its
start, worked out from the files: nothing of it is run.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from datacrumbs.errors import BadInputError
from datacrumbs.probes import dynamic
from datacrumbs.strict_yaml import nearest

SPACK_TIMEOUT_S = 60


class OriginKind(StrEnum):
    """The first word of ``from:``."""

    MODULES = "modules"
    SPACK = "spack"
    LDCONFIG = "ldconfig"
    PROCESS = "process"
    COMMAND = "command"


_SYNTAX = "modules, spack [SPEC], ldconfig, process PID, command PROGRAM"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where to look: a kind, and what it asks for (a PID, a program, a spec, or nothing)."""

    kind: OriginKind
    argument: str = ""

    def __str__(self) -> str:
        return f"{self.kind.value} {self.argument}".strip()


@dataclass(frozen=True, slots=True)
class SharedObject:
    """A program or library: the name it goes by, and the file that is (links resolved)."""

    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class Found:
    """What there is at an origin, and one line for each thing that could not be taken."""

    objects: list[SharedObject]
    skipped: list[tuple[str, str]]


def parse_origin(text: str) -> Origin:
    """The value of ``from:``; raises `BadInputError`."""
    word, _, argument = text.strip().partition(" ")
    kind = next((k for k in OriginKind if k.value == word), None)
    argument = argument.strip()
    if kind is None:
        raise BadInputError(
            f"{text!r}: {nearest(word, [k.value for k in OriginKind])}", hint=f"known: {_SYNTAX}"
        )
    if kind in (OriginKind.MODULES, OriginKind.LDCONFIG) and argument:
        raise BadInputError(f"{text!r}: {kind.value} takes nothing after it")
    if kind in (OriginKind.PROCESS, OriginKind.COMMAND) and not argument:
        raise BadInputError(f"{text!r}: say which", hint=f"known: {_SYNTAX}")
    if kind is OriginKind.PROCESS and not re.fullmatch(r"[1-9][0-9]{0,9}", argument):
        raise BadInputError(f"{text!r}: {argument!r} is not a process id")
    if kind is OriginKind.COMMAND:
        _words(argument)
    return Origin(kind, argument)


def find_objects(origin: Origin, machine: str, environ: Mapping[str, str] = os.environ) -> Found:
    """Every program and shared object at ``origin`` that is for ``machine``, each file once.

    Raises `BadInputError` when there is no such place, process or program.
    """
    match origin.kind:
        case OriginKind.LDCONFIG:
            pairs: list[tuple[str, str]] = list(dynamic.cache(machine).items())
            found = _checked(pairs, machine)
        case OriginKind.MODULES:
            found = _in_directories(_module_directories(environ), machine)
        case OriginKind.SPACK:
            found = _in_directories(_spack_directories(origin.argument, environ), machine)
        case OriginKind.PROCESS:
            found = _of_process(int(origin.argument), machine)
        case OriginKind.COMMAND:
            found = _of_command(origin.argument, machine, environ)
    if not found.objects:
        raise BadInputError(f"{origin}: no program or shared object for {machine} found there")
    return found


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise BadInputError(f"{command!r}: {error}") from error
    while words and re.fullmatch(r"[A-Za-z_]\w*=.*", words[0]):
        words.pop(0)  # VARIABLE=value in front of the program
    if not words:
        raise BadInputError(f"{command!r}: names no program")
    return words


def _checked(pairs: list[tuple[str, str]], machine: str) -> Found:
    """The (name, path) that are ELF files for ``machine``; quiet about all that is not ELF."""
    objects: dict[Path, SharedObject] = {}
    skipped: list[tuple[str, str]] = []
    for name, place in pairs:
        path = Path(os.path.realpath(place))
        if path in objects:
            continue
        try:
            soname = dynamic.read_dynamic(path, machine).soname
        except dynamic.NotForUsError as error:
            skipped.append((str(path), error.message))
        except BadInputError:
            continue
        else:
            objects[path] = SharedObject(soname or name, path)
    return Found(list(objects.values()), skipped)


_LIBRARY = re.compile(r".+\.so(\.[\w.]+)?")


def _in_directories(directories: list[Path], machine: str) -> Found:
    pairs = []
    for directory in directories:
        try:
            names = sorted(os.listdir(directory))
        except OSError:
            continue  # a search path may name what is not there
        pairs += [(name, str(directory / name)) for name in names if _LIBRARY.fullmatch(name)]
    return _checked(pairs, machine)


def _module_directories(environ: Mapping[str, str]) -> list[Path]:
    """The library directories that loaded modules have put into the environment."""
    loaded = environ.get("LOADEDMODULES", "")
    if not loaded:
        raise BadInputError(
            "from modules: no environment module is loaded (LOADEDMODULES is empty)",
            hint="load those that your job loads, then run the configurator again",
        )
    texts = [_text(file) for file in environ.get("_LMFILES_", "").split(":") if file]
    named = [p for v in ("LD_LIBRARY_PATH", "LIBRARY_PATH") for p in _paths(environ.get(v, ""))]
    # many modules only set PATH and the like: the prefix that such a module names counts
    prefixes = [
        entry.parent
        for variable in ("PATH", "CPATH", "MANPATH", "PKG_CONFIG_PATH")
        for entry in _paths(environ.get(variable, ""))
        if any(str(entry.parent) in text for text in texts) and len(entry.parts) > 3
    ]
    prefixes += [p for p in _paths(environ.get("CMAKE_PREFIX_PATH", "")) if len(p.parts) > 2]
    return _unique([*named, *(prefix / lib for prefix in prefixes for lib in ("lib", "lib64"))])


def _paths(value: str) -> list[Path]:
    return [Path(entry) for entry in value.split(":") if entry.startswith("/")]


def _unique(paths: list[Path]) -> list[Path]:
    return list(dict.fromkeys(paths))


def _text(file: str) -> str:
    try:
        with open(file, errors="replace") as stream:
            return stream.read(1 << 20)
    except OSError:
        return ""


def _spack_directories(spec: str, environ: Mapping[str, str]) -> list[Path]:
    """Library directories of the packages that ``spec`` names, else of the environment.

    Without an active environment: of the packages that `spack load` has loaded.
    """
    view = Path(environ.get("SPACK_ENV", "/nowhere"), ".spack-env", "view")
    prefixes = [view] if not spec and view.is_dir() else _spack_prefixes(spec, environ)
    return _unique([prefix / lib for prefix in prefixes for lib in ("lib", "lib64")])


def _spack_prefixes(spec: str, environ: Mapping[str, str]) -> list[Path]:
    program = shutil.which("spack", path=environ.get("PATH"))
    if program is None and (root := environ.get("SPACK_ROOT")):
        program = shutil.which("spack", path=str(Path(root, "bin")))
    if program is None:
        raise BadInputError(
            "from spack: there is no spack on PATH",
            hint="source spack's setup-env.sh, or activate the environment (SPACK_ENV)",
        )
    asked = shlex.split(spec) if spec else ["--loaded"]
    command = [program, "find", "--format", "{prefix}", *asked]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=SPACK_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BadInputError(f"from spack: {error}") from error
    lines = [line for line in done.stdout.splitlines() if line.startswith("/")]
    if done.returncode or not lines:
        said = " ".join((done.stderr or done.stdout).split())[:200] or "none is loaded"
        raise BadInputError(
            f"{Origin(OriginKind.SPACK, spec)}: no installed package: {said}",
            hint=f"`{shlex.join(command)}` lists the packages that are taken",
        )
    return [Path(line.strip()) for line in lines]


def _of_process(pid: int, machine: str) -> Found:
    """The files that the process has mapped executable."""
    try:
        maps = Path(f"/proc/{pid}/maps").read_text(errors="backslashreplace")
        same_files = os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt")  # noqa: PTH115
    except (FileNotFoundError, ProcessLookupError) as error:
        raise BadInputError(f"process {pid}: there is no such process on this host") from error
    except OSError as error:
        raise BadInputError(
            f"process {pid}: {error.strerror}", hint="give a process of your own"
        ) from error
    if not same_files:
        raise BadInputError(
            f"process {pid}: runs in another mount namespace (a container): its paths are not "
            "those of this host",
            hint="run datacrumbs_probe_configurator inside the container",
        )
    pairs, skipped = [], []
    for place, inode in _executable_maps(maps):
        path = Path(place)
        if place.endswith(" (deleted)"):
            skipped.append((place, "deleted or replaced since the process has started"))
        elif not path.exists() or path.stat().st_ino != inode:
            skipped.append((place, "another file is there now: start the program again"))
        else:
            pairs.append((path.name, place))
    found = _checked(pairs, machine)
    return Found(found.objects, skipped + found.skipped)


def _executable_maps(maps: str) -> Iterator[tuple[str, int]]:
    """(path, inode) of each file in ``/proc/PID/maps`` of which code is mapped, once."""
    seen = set()
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and "x" in fields[1] and fields[5].startswith("/"):
            place, inode = fields[5].rstrip("\n"), int(fields[4])
            if (place, inode) not in seen:
                seen.add((place, inode))
                yield place, inode


def _of_command(command: str, machine: str, environ: Mapping[str, str]) -> Found:
    """The program, and what the dynamic linker would load for it."""
    path = _program(_words(command)[0], environ)
    program = _through_scripts(path, environ)
    try:
        objects, missing = dynamic.needed(program, machine, environ)
    except BadInputError as error:
        raise BadInputError(f"command {command}: {error.message}", hint=error.hint) from error
    return Found([SharedObject(name, place) for name, place in objects], missing)


def _program(word: str, environ: Mapping[str, str]) -> Path:
    found = shutil.which(word, path=environ.get("PATH", os.defpath))
    if found is None:
        raise BadInputError(
            f"command {word}: no such program, or it may not be executed",
            hint="give a path, or a name that is on PATH",
        )
    return Path(os.path.realpath(found))


def _through_scripts(path: Path, environ: Mapping[str, str]) -> Path:
    """The ELF file that runs when ``path`` is executed: ``#!`` lines lead to it."""
    for _ in range(4):  # BINPRM: the kernel follows no more either
        with open(path, "rb") as file:
            first = file.readline(256)
        if not first.startswith(b"#!"):
            return path
        words = first[2:].decode(errors="replace").split()
        if words and Path(words[0]).name == "env":
            words = [w for w in words[1:] if not w.startswith("-") and "=" not in w]
        if not words:
            break
        path = _program(words[0], environ)
    raise BadInputError(f"command {path}: its #! lines lead to no program")
