"""What the dynamic linker would load, worked out from the files as ld.so(8) does it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache as remember
from pathlib import Path

from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile

from datacrumbs.errors import BadInputError

MACHINES = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}
_LDCONFIG_FLAG = {"x86_64": "x86-64", "aarch64": "AArch64"}
OBJECTS_MAX = 4096


class NotForUsError(BadInputError):
    """An ELF file that this machine's 64-bit programs do not load."""


@dataclass(frozen=True, slots=True)
class Dynamic:
    """What an ELF file asks of the dynamic linker; ``$ORIGIN`` and the like are filled in."""

    soname: str
    needed: tuple[str, ...]
    rpath: tuple[str, ...]
    runpath: tuple[str, ...]


def read_dynamic(path: Path, machine: str) -> Dynamic:
    """Raises `NotForUsError` for another machine's file, `BadInputError` for none of ELF."""
    try:
        # O_NONBLOCK: opening a pipe must not wait for a writer
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if file.read(4) != b"\x7fELF":
                raise BadInputError(f"{path}: not an ELF file")
            file.seek(0)
            return _dynamic(ELFFile(file), path, machine)
    except BadInputError:
        raise
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror}") from error
    except Exception as error:  # as in elf.read_functions: whatever pyelftools runs into
        raise BadInputError(f"{path}: a damaged ELF file ({error})") from error


def _dynamic(elf: ELFFile, path: Path, machine: str) -> Dynamic:
    if elf.elfclass != 64:
        raise NotForUsError(f"a {elf.elfclass}-bit file; only 64-bit can be probed")
    if elf["e_machine"] != MACHINES.get(machine):
        raise NotForUsError(f"for {elf.get_machine_arch()}, and this is {machine}")
    values: dict[str, list[str]] = {}
    for segment in elf.iter_segments("PT_DYNAMIC"):
        assert isinstance(segment, DynamicSegment)
        for tag in segment.iter_tags():
            for name in ("needed", "soname", "rpath", "runpath"):
                if tag.entry.d_tag == f"DT_{name.upper()}":
                    values.setdefault(name, []).append(str(getattr(tag, name)))
    return Dynamic(
        soname=values.get("soname", [""])[0],
        needed=tuple(values.get("needed", [])),
        rpath=_search_path(values.get("rpath", []), path, machine),
        runpath=_search_path(values.get("runpath", []), path, machine),
    )


def _search_path(values: list[str], path: Path, machine: str) -> tuple[str, ...]:
    fillers = {"ORIGIN": str(path.parent), "LIB": f"lib/{machine}-linux-gnu", "PLATFORM": machine}

    def fill(match: re.Match[str]) -> str:
        return fillers[match[1] or match[2]]

    names = "|".join(fillers)
    entries = [entry for value in values for entry in value.split(":") if entry]
    filled = (re.sub(rf"\$(?:({names})\b|\{{({names})\}})", fill, entry) for entry in entries)
    return tuple(entry for entry in filled if entry.startswith("/"))


@remember
def cache(machine: str) -> Mapping[str, str]:
    """The dynamic linker's cache: library name -> path, first match wins as it does there."""
    program = shutil.which("ldconfig", path=os.environ.get("PATH", "") + ":/sbin:/usr/sbin")
    if program is None:
        return {}
    listing = subprocess.run([program, "-p"], capture_output=True, text=True, check=False).stdout
    found: dict[str, str] = {}
    for name, flags, path in re.findall(r"^\t(\S+) \((.*?)\) => (/.*)$", listing, re.MULTILINE):
        if _LDCONFIG_FLAG.get(machine, "") in flags:
            found.setdefault(name, path)
    return found


def needed(
    program: Path, machine: str, environ: Mapping[str, str]
) -> tuple[list[tuple[str, Path]], list[tuple[str, str]]]:
    """(name, file) of ``program`` and all it needs, breadth first; (name, reason) of the rest.

    Raises `BadInputError` if ``program`` itself is not an ELF file for ``machine``.
    """
    try:
        first = read_dynamic(program, machine)
    except NotForUsError as error:
        raise BadInputError(f"{program}: {error.message}") from error
    found = {program.name: program}
    missing: dict[str, str] = {}
    # each with the rpaths of who asked for it: RPATH is inherited, RUNPATH is not
    queue: list[tuple[Dynamic, tuple[str, ...]]] = [(first, ())]
    while queue and len(found) < OBJECTS_MAX:
        dynamic, inherited = queue.pop(0)
        rpath = () if dynamic.runpath else (*dynamic.rpath, *inherited)
        for name in dynamic.needed:
            if name in found or name in missing:
                continue
            path, child = _locate(name, dynamic, rpath, machine, environ)
            if path is None or child is None:
                missing[name] = "the dynamic linker would not find it"
            else:
                found[name] = path
                queue.append((child, rpath))
    return list(found.items()), list(missing.items())


def _locate(
    name: str, dynamic: Dynamic, rpath: tuple[str, ...], machine: str, environ: Mapping[str, str]
) -> tuple[Path | None, Dynamic | None]:
    """In the order of ld.so(8): RPATH, LD_LIBRARY_PATH, RUNPATH, the cache, the defaults."""
    if "/" in name:
        places = [name]
    else:
        path = [entry for entry in environ.get("LD_LIBRARY_PATH", "").split(":") if entry]
        defaults = [
            f"{root}/{lib}"
            for lib in (f"lib/{machine}-linux-gnu", "lib64", "lib")
            for root in ("", "/usr")
        ]
        places = [f"{directory}/{name}" for directory in (*rpath, *path, *dynamic.runpath)]
        places += [cache(machine)[name]] if name in cache(machine) else []
        places += [f"{directory}/{name}" for directory in defaults]
    for place in places:
        real = Path(os.path.realpath(place))
        try:
            return real, read_dynamic(real, machine)
        except BadInputError:
            continue  # not there, or for another machine: the linker goes on looking, too
    return None, None
