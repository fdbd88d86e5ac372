"""What an admin has to change in the configuration of Slurm or Flux: read, compared, told."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
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
    for path in sorted(places.below(directory).glob("*.toml")):
        try:
            _merge(found, tomllib.loads(_text(path)))
        except tomllib.TOMLDecodeError as error:
            yield f"{path}: cannot be read: {error}"
    manager = found.get("job-manager", {})
    if found.get("access", {}).get("allow-root-owner") is not True:
        yield f"{directory}: [access] allow-root-owner = true"
    loaded = [plugin.get("load") for plugin in manager.get("plugins", [])]
    if "perilog.so" not in loaded:
        yield f'{directory}: [job-manager] plugins = [{{ load = "perilog.so" }}]'
    for name in ("prolog", "epilog"):
        table = manager.get(name, {})
        if table.get("per-rank") is not True:
            yield f"{directory}: [job-manager.{name}] per-rank = true"
        if "command" in table:
            script = places.flux / f"system/{name}.d/50-datacrumbs"
            yield f"{directory}: job-manager.{name}.command is set: let it call {script}"


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
