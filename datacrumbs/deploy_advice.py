"""What an admin has to change in the configuration of Slurm or Flux: read, compared, told."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datacrumbs.config import SystemConfig
from datacrumbs.deploy import Places


def slurm(places: Places, config: SystemConfig) -> Iterator[str]:
    """What ``slurm.conf`` and ``plugstack.conf`` lack, a line each; nothing when all is there."""
    conf = places.slurm / "slurm.conf"
    found = _slurm_settings(places.below(conf))
    for name in ("prolog", "epilog"):
        wanted, is_set = f"{places.slurm}/{name}.d/*", found.get(name, [])
        if wanted in is_set:
            continue
        line = f"{conf}: {name.capitalize()}={wanted}"
        if is_set:
            line += f"    (now {is_set[-1]}: this line besides it, or call 50-datacrumbs from it)"
        yield line
    flags = ",".join(found.get("prologflags", [])).lower().split(",")
    if not {"alloc", "contain", "x11"} & set(flags):
        yield f"{conf}: PrologFlags=Alloc,DeferBatch    (the prolog runs before the first task)"
    yield from _tasks(places, config, found)


def _tasks(places: Places, config: SystemConfig, found: dict[str, list[str]]) -> Iterator[str]:
    """How tasks get the client library: by the SPANK plugin, else by a task prolog."""
    plugin = Path(sys.prefix, "lib/datacrumbs/spank_datacrumbs.so")
    script = places.slurm / "datacrumbs_task_prolog.sh"
    stack = places.slurm / "plugstack.conf"
    if str(script) in found.get("taskprolog", []):
        return
    if not plugin.exists():
        yield f"{places.slurm}/slurm.conf: TaskProlog={script}"
    elif str(plugin) not in _text(places.below(stack)):
        yield (
            f"{stack}: optional {plugin} run_dir={config.run_dir} "
            f"library={config.client_library_path()}"
        )


def _slurm_settings(path: Path) -> dict[str, list[str]]:
    """Values by lower-case name; some names may stand on several lines."""
    found: dict[str, list[str]] = {}
    for line in _text(path).splitlines():
        match = re.match(r"\s*(\w+)\s*=\s*(\S.*)", line.partition("#")[0])
        if match:
            found.setdefault(match[1].lower(), []).append(match[2].strip())
    return found


def flux(places: Places) -> Iterator[str]:
    """What Flux's configuration lacks, a line each; nothing when all is there."""
    directory = places.flux / "system/conf.d"
    found: dict[str, Any] = {}
    yield from _read_all(places.below(directory), found, _merge)
    manager = found.get("job-manager", {})
    if found.get("access", {}).get("allow-root-owner") is not True:
        yield f"{directory}: [access] allow-root-owner = true"
    loaded = [plugin.get("load") for plugin in manager.get("plugins", [])]
    if "perilog.so" not in loaded:
        yield f'{directory}: [job-manager] plugins = [{{ load = "perilog.so" }}]'
    for name in ("prolog", "epilog"):
        table = manager.get(name, {})
        if name == "epilog" and not table and "housekeeping" in manager:
            yield from _housekeeping(places)
            continue
        if table.get("per-rank") is not True:
            yield f"{directory}: [job-manager.{name}] per-rank = true"
        if "command" in table:
            script = places.flux / f"system/{name}.d/50-datacrumbs"
            yield f"{directory}: job-manager.{name}.command is set: let it call {script}"
    yield from _imp(places)


def _housekeeping(places: Places) -> Iterator[str]:
    """A site may have this in the epilog's place: it runs when the job has gone."""
    script = places.flux / "system/housekeeping.d/50-datacrumbs"
    if not places.below(script).exists():
        yield f"ln -s ../epilog.d/50-datacrumbs {script}    (there is no job-manager.epilog)"


def _imp(places: Places) -> Iterator[str]:
    """What lets prologs run as root, in a multi-user instance; without an IMP, nothing.

    Unlike Flux itself, the IMP takes each table from one file only, the last that has it.
    """
    directory = places.flux / "imp/conf.d"
    found: dict[str, Any] = {}
    yield from _read_all(places.below(directory), found, dict.update)
    run = found.get("run", {})
    for name in ("prolog", "epilog") if found else ():
        if name not in run:
            where = "the file that has [run.*]" if run else "a file of its own"
            yield f"{directory}: [run.{name}] as in scheduler/flux/conf/imp.toml, in {where}"


def _read_all(
    directory: Path, into: dict[str, Any], add: Callable[[dict[str, Any], dict[str, Any]], None]
) -> Iterator[str]:
    """Read a directory of TOML as Flux does, in the order of names; what cannot be read."""
    for path in sorted(directory.glob("*.toml")):
        try:
            add(into, tomllib.loads(_text(path)))
        except tomllib.TOMLDecodeError as error:
            yield f"{path}: cannot be read: {error}"


def _merge(into: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
