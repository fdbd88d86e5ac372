"""Putting units, hooks and plugins where systemd and schedulers look for them, and back.

What is put there is written down with its digest, in ``/etc/datacrumbs/deployed.json``: only a
file that is as it was put there is ever replaced or removed. Configuration files of Slurm and
Flux are read, never written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from datacrumbs.config import SystemConfig
from datacrumbs.errors import UserError

DEFAULT_PREFIX = "/opt/datacrumbs"
DEFAULT_RUN_DIR = "/run/datacrumbs"
"""What the sources of hooks and units say, and an installation changes."""

MANIFEST = Path("/etc/datacrumbs/deployed.json")
UNIT_DIR = Path("/etc/systemd/system")
LIMIT_SPARE_S = 5

_SAFE_PATH = re.compile(r"/[A-Za-z0-9/._+@-]*")


class Part(StrEnum):
    """What can be deployed by itself."""

    SERVICES = "services"
    HOOKS = "scheduler-hooks"
    FLUX_PLUGIN = "flux-plugin"


class Action(StrEnum):
    """What is done with one file."""

    INSTALL = "install"
    REPLACE = "replace"
    UNCHANGED = "unchanged"
    REMOVE = "remove"
    ABSENT = "absent"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Places:
    """Where things go. Everything is below ``root``, which is / but for packaging and tests."""

    root: Path = Path("/")
    slurm: Path = Path("/etc/slurm")
    flux: Path = Path("/etc/flux")

    def below(self, path: Path) -> Path:
        """``path``, which is absolute, below the root."""
        return self.root / path.relative_to("/")


@dataclass(frozen=True, slots=True)
class File:
    """One file to be: its absolute path (without root), content and mode."""

    path: Path
    content: bytes = field(repr=False)
    mode: int

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done with the file ``path``, and why not."""

    action: Action
    path: Path
    why: str = ""


@dataclass(slots=True)
class Manifest:
    """What was put where: path -> part, and the digests that it has had."""

    path: Path
    files: dict[str, dict[str, Any]]
    directories: list[str]

    @classmethod
    def load(cls, places: Places) -> Manifest:
        """The manifest below ``places``, empty when there is none. Raises `UserError`."""
        path = places.below(MANIFEST)
        try:
            plain = json.loads(path.read_bytes())
            return cls(path, dict(plain["files"]), list(plain["directories"]))
        except FileNotFoundError:
            return cls(path, {}, [])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: {error!r}: cannot tell what was deployed",
                hint="restore it from a backup, or remove it and the files by hand",
            ) from error

    def owns(self, path: Path, digest: str) -> bool:
        """Whether a file with that content is one that was put there."""
        entry = self.files.get(str(path))
        return entry is not None and digest in entry["sha256"]

    def save(self) -> None:
        """Write it, or remove it when no file is left."""
        if not self.files:
            self.path.unlink(missing_ok=True)
            return
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        plain = {"files": self.files, "directories": self.directories}
        _write(self.path, json.dumps(plain, indent=2, sort_keys=True).encode() + b"\n", 0o644)


def files_of(
    part: Part, places: Places, config: SystemConfig, *, slurm: bool, flux: bool
) -> list[File]:
    """The files of a part, with the paths of this environment and configuration in them."""
    share = Path(sys.prefix, "share/datacrumbs/scheduler")
    units = Path(sys.prefix, "lib/systemd/system")
    pairs: list[tuple[Path, Path]] = []
    if part is Part.SERVICES:
        pairs = [(path, UNIT_DIR / path.name) for path in sorted(units.glob("datacrumbs*"))]
    elif part is Part.FLUX_PLUGIN:
        for name in ("cli/plugins/datacrumbs.py", "shell/lua.d/datacrumbs.lua"):
            pairs.append((share / "flux" / name, places.flux / name))
    else:
        for hook in ("prolog.d/50-datacrumbs", "epilog.d/50-datacrumbs"):
            pairs += [(share / "slurm" / hook, places.slurm / hook)] if slurm else []
            pairs += [(share / "flux" / hook, places.flux / "system" / hook)] if flux else []
        if slurm:
            task_prolog = places.slurm / "datacrumbs_task_prolog.sh"
            pairs.append((share / "slurm/task_prolog.sh", task_prolog))
    return [_rendered(source, path, config) for source, path in pairs]


def _rendered(source: Path, path: Path, config: SystemConfig) -> File:
    for value in (sys.prefix, config.run_dir):
        if not _SAFE_PATH.fullmatch(value):
            raise UserError(f"{value!r}: such a path cannot stand in units and scripts")
    try:
        text = source.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{source}: {error.strerror}", hint="reinstall datacrumbs") from error
    library = str(config.client_library_path())
    timeout_s = config.jobs.stop_timeout_s if "epilog" in str(path) else config.jobs.start_timeout_s
    limit_s = math.ceil(timeout_s) + LIMIT_SPARE_S
    for pattern, value in (
        (r"/opt/datacrumbs/lib/datacrumbs/libdatacrumbs_client\.so", library),
        (rf"{DEFAULT_PREFIX}(?![\w-])", sys.prefix),
        (rf"{DEFAULT_RUN_DIR}(?![\w-])", config.run_dir),
        (r"(?m)^limit_s=\d+", f"limit_s={limit_s}"),
        (r"(?m)^ExecStart=(?=datacrumbs)", f"ExecStart={sys.prefix}/bin/"),
        (r"(?m)^ListenStream=.*", f"ListenStream={config.signing.socket}"),
    ):
        text = re.sub(pattern, lambda _, value=value: value, text)  # type: ignore[misc]
    return File(path, text.encode(), 0o755 if os.access(source, os.X_OK) else 0o644)


def plan_install(files: Iterable[File], places: Places, manifest: Manifest) -> list[Step]:
    """What installing ``files`` would do; nothing is changed."""
    return [_planned(file, places, manifest) for file in files]


def _planned(file: File, places: Places, manifest: Manifest) -> Step:
    found = _digest(places.below(file.path))
    if found is None:
        return Step(Action.INSTALL, file.path)
    if found == file.digest:
        return Step(Action.UNCHANGED, file.path)
    if manifest.owns(file.path, found):
        return Step(Action.REPLACE, file.path)
    why = "changed since it was installed" if str(file.path) in manifest.files else "not ours"
    return Step(Action.REFUSED, file.path, f"{why}: move it away first")


def install(part: Part, files: list[File], places: Places, manifest: Manifest) -> list[Step]:
    """Install ``files``; all or, when one of them is somebody else's, none."""
    steps = plan_install(files, places, manifest)
    if any(step.action is Action.REFUSED for step in steps):
        return steps
    # written down first: what is there after a crash is known to be ours
    for file in files:
        known = manifest.files.setdefault(str(file.path), {"part": part, "sha256": []})
        if file.digest not in known["sha256"]:
            known["sha256"].append(file.digest)
        manifest.directories += _missing_directories(file.path, places, manifest)
    manifest.save()
    for file in files:
        path = places.below(file.path)
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _write(path, file.content, file.mode)
    return steps


def plan_remove(part: Part, places: Places, manifest: Manifest) -> list[Step]:
    """What removing a part would do; nothing is changed."""
    steps = []
    for name in sorted(n for n, entry in manifest.files.items() if entry["part"] == part):
        found = _digest(places.below(Path(name)))
        if found is None:
            steps.append(Step(Action.ABSENT, Path(name)))
        elif manifest.owns(Path(name), found):
            steps.append(Step(Action.REMOVE, Path(name)))
        else:
            why = "changed since it was installed: left where it is"
            steps.append(Step(Action.REFUSED, Path(name), why))
    return steps


def remove(part: Part, places: Places, manifest: Manifest) -> list[Step]:
    """Remove what was installed of a part and is as it was installed."""
    steps = plan_remove(part, places, manifest)
    for step in steps:
        if step.action is Action.REMOVE:
            places.below(step.path).unlink()
        if step.action is not Action.REFUSED:
            del manifest.files[str(step.path)]
    _remove_directories(places, manifest)
    manifest.save()
    return steps


def _missing_directories(path: Path, places: Places, manifest: Manifest) -> list[str]:
    missing = []
    for parent in path.parents:
        if parent in MANIFEST.parents or places.below(parent).exists():
            break
        if str(parent) not in manifest.directories:
            missing.append(str(parent))
    return missing


def _remove_directories(places: Places, manifest: Manifest) -> None:
    """Those that were made for our files, deepest first, as far as they are empty."""
    for name in sorted(manifest.directories, key=len, reverse=True):
        with contextlib.suppress(OSError):
            places.below(Path(name)).rmdir()
        if not places.below(Path(name)).exists():
            manifest.directories.remove(name)


def untrusted(places: Places) -> Iterator[str]:
    """What root would run or preload from here though somebody else can change it."""
    if places.root != Path("/"):
        return
    python = Path(sys.executable)
    seen = {python, python.resolve(), Path(sys.prefix), Path(__file__)}
    seen |= {parent for path in list(seen) for parent in path.parents}
    for path in sorted(seen):
        status = path.stat()
        shared = status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
        if status.st_uid != 0 or shared:
            mode = f"{stat.S_IMODE(status.st_mode):04o}"
            yield f"{path}: others than root can change it (uid {status.st_uid}, mode {mode})"


def _digest(path: Path) -> str | None:
    """SHA-256 of a file; None when there is none. What is no regular file has none of ours."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return "not a regular file"
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return "below something that is no directory"


def _write(path: Path, content: bytes, mode: int) -> None:
    """The whole file or none."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    try:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(content)
            os.fchmod(fd, mode)
            file.flush()
            os.fsync(fd)
        new.rename(path)
    finally:
        new.unlink(missing_ok=True)
