"""``datacrumbs_probe_configurator``: a capture config into a signed probe file."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import msgspec

from datacrumbs.cli.app import command
from datacrumbs.cli.progress import progress
from datacrumbs.config import SystemConfig, load_system_config
from datacrumbs.errors import BadInputError
from datacrumbs.printable import printable
from datacrumbs.probes import model
from datacrumbs.probes.build import Built, LayerSummary, build
from datacrumbs.probes.capture import CaptureConfig, load_capture_config
from datacrumbs.probes.software import Found, find_objects, parse_origin
from datacrumbs.probes.sources import name_of
from datacrumbs.probes.status import Entry, known, reset

SHOWN_PER_REASON = 5

EPILOG = """\b
Examples:
  datacrumbs_probe_configurator io.yaml probes.json.gz
  datacrumbs_probe_configurator io.yaml --dry-run
  datacrumbs_probe_configurator io.yaml probes.json.gz --format json | jq .layers
  datacrumbs_probe_configurator --list-objects "command ./myapp"
  datacrumbs_probe_configurator --list-objects "process 4711"
  datacrumbs_probe_configurator --show-skipped
"""


@command("datacrumbs_probe_configurator", epilog=EPILOG)
@click.argument("config", type=click.Path(path_type=Path), required=False)
@click.argument("out", type=click.Path(path_type=Path), required=False)
@click.option(
    "--config",
    "system",
    type=click.Path(path_type=Path),
    metavar="SYSTEM.yaml",
    help="System configuration to use instead of the installed one.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be probed: sign, write nothing.")
@click.option(
    "--list-objects",
    "origin",
    metavar="FROM",
    help="List the programs and libraries that `from: FROM` of a capture config means, and end: "
    "modules, spack [SPEC], ldconfig, process PID or command PROGRAM.",
)
@click.option(
    "--show-skipped",
    is_flag=True,
    help="List the functions known not to attach on this host, which are left out, and end.",
)
@click.option(
    "--reset-skipped", is_flag=True, help="Forget them, so that they are tried again (root only)."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How to report what is probed and what was skipped.",
)
def main(
    config: Path | None,
    out: Path | None,
    system: Path | None,
    *,
    dry_run: bool,
    origin: str | None,
    show_skipped: bool,
    reset_skipped: bool,
    form: str,
) -> None:
    """Find the functions that the capture config CONFIG names, and have them signed into OUT.

    OUT (probes.json.gz) says exactly which functions the tracer may observe, for you alone,
    until it expires. An existing OUT is replaced. Functions that cannot be probed are
    skipped, by name and reason.
    """
    modes = [origin is not None, show_skipped, reset_skipped]
    if sum(modes) > 1 or (any(modes) and config is not None):
        raise BadInputError(
            "--list-objects, --show-skipped and --reset-skipped go alone, without CONFIG"
        )
    site = load_system_config(system)
    if origin is not None:
        with progress("Looking for programs and libraries", None):
            found = find_objects(parse_origin(origin), platform.machine())
        click.echo(_objects(found, form))
    elif reset_skipped:
        click.echo(f"forgotten: {reset(Path(site.state_dir))}")
    elif show_skipped:
        click.echo(_refusals(known(Path(site.state_dir), os.getuid()), form))
    else:
        _configure(config, out, site, dry_run=dry_run, form=form)


def _configure(
    config: Path | None, out: Path | None, site: SystemConfig, *, dry_run: bool, form: str
) -> None:
    if config is None:
        raise BadInputError("CONFIG is missing: what to capture", hint="see --help")
    if out is None and not dry_run:
        raise BadInputError("OUT is missing: where to write the probe file", hint="or --dry-run")
    if out is not None:
        _check_writable(out)
    capture = load_capture_config(config)
    with progress("Finding functions", _entries(capture)) as advance:
        built = build(capture, site, progress=advance)
    written = out if out is not None and not dry_run else None
    if written is not None:
        with progress("Waiting for the signature", None):
            _sign(built, written, site)
    report = _as_json if form == "json" else _as_text
    click.echo(report(built, written))


def _entries(capture: CaptureConfig) -> int | None:
    """What progress is of; of one entry it is not known how far it is."""
    return len(capture.probes) if len(capture.probes) > 1 else None


def _objects(found: Found, form: str) -> str:
    if form == "json":
        objects = [{"name": item.name, "path": str(item.path)} for item in found.objects]
        skipped = [{"name": name, "reason": reason} for name, reason in found.skipped]
        return json.dumps({"objects": objects, "skipped": skipped}, indent=2)
    width = max(len(item.name) for item in found.objects)
    lines = [f"{item.name:<{width}} {item.path}" for item in found.objects]
    return _text([*lines, *(f"skipped: {name}: {reason}" for name, reason in found.skipped)])


def _text(lines: Iterable[str]) -> str:
    """``lines`` for a terminal: files and what they name may be anybody's."""
    return "\n".join(map(printable, lines))


def _refusals(entries: list[Entry], form: str) -> str:
    if form == "json":
        return json.dumps([msgspec.to_builtins(entry) for entry in entries], indent=2)
    if not entries:
        return "none is known"
    return _text(
        f"{time.strftime('%Y-%m-%d', time.localtime(entry.time))} {entry.kernel} "
        f"{entry.target[:16] or 'kernel'} {entry.name}"
        f"{f' at {entry.offset:#x}' if entry.offset >= 0 else ''}: {entry.reason}"
        for entry in entries
    )


def _sign(built: Built, out: Path, site: SystemConfig) -> None:
    from datacrumbs.probes.file import write_probe_file
    from datacrumbs.signing.client import request_signature

    payload = model.encode(built.probes)
    limit = site.limits.probe_file_bytes
    if len(payload) > limit:
        raise BadInputError(
            f"{out}: {built.probes.probe_count()} functions take {len(payload)} bytes, more than "
            f"the {limit} that limits.probe_file_bytes of the system configuration allows",
            hint="make a regex narrower",
        )
    write_probe_file(out, request_signature(payload, site.signing))


def _check_writable(out: Path) -> None:
    """Find out before the service is asked whether OUT can be put in its place."""
    parent = out.resolve().parent  # where a link leads is where the file is written
    if out.is_dir():
        raise BadInputError(f"{out}: is a directory", hint=f"name a file: {out / 'probes.json.gz'}")
    if out.exists() and not out.is_file():
        raise BadInputError(f"{out}: not a regular file", hint="name a file to write")
    if not parent.is_dir():
        raise BadInputError(f"{out}: there is no directory {parent}", hint=f"mkdir -p {parent}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise BadInputError(f"{out}: cannot write to directory {parent}", hint="choose another")


def _as_json(built: Built, written: Path | None) -> str:
    layers: list[dict[str, Any]] = [
        {
            "name": summary.name,
            "probe": summary.probe,
            "source": summary.source,
            "functions": summary.functions,
            "names": [name_of(function) for function in layer.functions],
            "skipped": [{"name": name, "reason": reason} for name, reason in summary.skipped],
            "notes": summary.notes,
        }
        for layer, summary in zip(built.probes.layers, built.layers, strict=True)
    ]
    facts = msgspec.to_builtins(built.probes)
    keys = ("user", "uid", "host", "cluster", "machine", "created", "expires")
    document = {
        "probe_file": str(written) if written else None,
        **{key: facts[key] for key in keys},
        "functions": built.probes.probe_count(),
        "include": built.probes.include,
        "exclude": built.probes.exclude,
        "layers": layers,
        "notes": built.notes,
    }
    return json.dumps(document, indent=2)


def _as_text(built: Built, written: Path | None) -> str:
    probes = built.probes
    lines = [_layer_line(layer) for layer in built.layers]
    lines.append(f"{'total':<20} {probes.probe_count():>7}")
    for layer in built.layers:
        lines += _skipped_lines(layer)
    lines += _note_lines(built)
    expires = time.strftime("%Y-%m-%d %H:%M", time.localtime(probes.expires))
    whom = f"for {probes.user} (uid {probes.uid}), {probes.machine}"
    place = f", cluster {probes.cluster}" if probes.cluster else ""
    what = f"{written}: signed" if written else "dry run: nothing signed, nothing written"
    return _text([*lines, f"{what}; {whom}{place}, until {expires}"])


def _note_lines(built: Built) -> list[str]:
    """Each note once, with all layers that it is about."""
    about: dict[str, list[str]] = {}
    for layer in built.layers:
        for note in layer.notes:
            about.setdefault(note, []).append(layer.name)
    lines = [f"note: {', '.join(names)}: {note}" for note, names in about.items()]
    return lines + [f"note: {note}" for note in built.notes]


def _layer_line(layer: LayerSummary) -> str:
    return f"{layer.name:<20} {layer.functions:>7} {layer.source}"


def _skipped_lines(layer: LayerSummary) -> list[str]:
    if not layer.skipped:
        return []
    lines = [f"skipped in {layer.name}: {len(layer.skipped)}"]
    for reason, names in layer.reasons():
        rest = len(names) - SHOWN_PER_REASON
        more = f" and {rest} more" if rest > 0 else ""
        shown = ", ".join(names[:SHOWN_PER_REASON])
        lines += [f"  {len(names)}: {reason}", f"    {shown}{more}"]
    return lines
