"""``datacrumbs_deploy``: units, hooks and plugins to where they are looked for, and away again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from datacrumbs.cli.app import command
from datacrumbs.errors import UserError

if TYPE_CHECKING:
    from datacrumbs.config import SystemConfig
    from datacrumbs.deploy import Manifest, Part, Places, Step

PARTS = ("services", "scheduler-hooks", "flux-plugin")
SCHEDULERS = ("slurm", "flux")
NODE_TIMEOUT_S = 120.0

DIRECTORY = click.Path(path_type=Path, file_okay=False)


@command(
    "datacrumbs_deploy",
    epilog="""\b
Examples:
  datacrumbs_deploy --dry-run all
  sudo /opt/datacrumbs/bin/datacrumbs_deploy services
  sudo /opt/datacrumbs/bin/datacrumbs_deploy scheduler-hooks --node-list "node[1-64]"
  sudo /opt/datacrumbs/bin/datacrumbs_deploy all --remove
""",
)
@click.argument("what", type=click.Choice([*PARTS, "all"]))
@click.option("--remove", is_flag=True, help="Remove what was installed.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option(
    "--scheduler",
    type=click.Choice(SCHEDULERS),
    help="Whose hooks. Default: of all whose configuration directory is there.",
)
@click.option(
    "--slurm-dir",
    type=DIRECTORY,
    default=Path("/etc/slurm"),
    show_default=True,
    help="Where slurm.conf is.",
)
@click.option(
    "--flux-dir",
    type=DIRECTORY,
    default=Path("/etc/flux"),
    show_default=True,
    help="Flux's <sysconfdir>/flux.",
)
@click.option(
    "--root",
    type=DIRECTORY,
    default=Path("/"),
    help="Put everything below this directory: for images and packages.",
)
@click.option(
    "--node-list", metavar="NODES", help='Do it on these nodes, over ssh: "node[1-4],node7".'
)
@click.option("--ssh-options", default="", metavar="TEXT", help="More options for ssh.")
def main(
    *,
    what: str,
    remove: bool,
    dry_run: bool,
    scheduler: str | None,
    slurm_dir: Path,
    flux_dir: Path,
    root: Path,
    node_list: str | None,
    ssh_options: str,
) -> None:
    """Install units, scheduler hooks and Flux's plugin where they are looked for.

    \b
    services         systemd's units, to /etc/systemd/system
    scheduler-hooks  prolog and epilog, to <slurm-dir> and <flux-dir>/system
    flux-plugin      the options of flux run, and what tasks load, to <flux-dir>
    all              these three, as far as the schedulers are there

    The paths of this environment and its system.yaml are written into them: deploy again after
    a change of these. Nothing is enabled, and no configuration file is edited: what is missing
    in slurm.conf or in Flux's configuration is shown. A file that somebody else has put there
    or changed is neither replaced nor removed. What was installed stands in
    /etc/datacrumbs/deployed.json.

    The exit code is 1 when a file or a node was refused.
    """
    from datacrumbs.config import load_system_config
    from datacrumbs.deploy import Part, Places, untrusted

    if node_list is not None:
        words = [what, f"--slurm-dir={slurm_dir}", f"--flux-dir={flux_dir}", f"--root={root}"]
        words += [f"--scheduler={scheduler}"] if scheduler else []
        words += ["--remove"] * remove + ["--dry-run"] * dry_run
        sys.exit(_on_nodes(words, node_list, ssh_options))
    places = Places(root.absolute(), slurm_dir.absolute(), flux_dir.absolute())
    _check(list(untrusted(places)), dry_run=dry_run, root=places.root)
    config = load_system_config()
    parts = [Part(part) for part in (PARTS if what == "all" else [what])]
    chosen = _schedulers(scheduler, places)
    if not remove and what == "scheduler-hooks" and not chosen:
        raise UserError(
            f"no scheduler here: neither {slurm_dir} nor {flux_dir} exists",
            hint="name it: --scheduler slurm or --scheduler flux",
        )
    if what == "all" and "flux" not in chosen and not remove:
        parts.remove(Part.FLUX_PLUGIN)
    steps = _carry_out(parts, places, config, chosen, remove=remove, dry_run=dry_run)
    if Part.SERVICES in parts and not dry_run and places.root == Path("/"):
        _reload_systemd()
    if not remove:
        _advise(parts, places, config, chosen)
    sys.exit(any(step.action == "refused" for step in steps))


def _check(problems: list[str], *, dry_run: bool, root: Path) -> None:
    if dry_run:
        for problem in problems:
            click.echo(f"to be mended first: {problem}", err=True)
        return
    if root == Path("/") and os.geteuid() != 0:
        raise UserError("needs root", hint="use sudo; --dry-run and --root DIR do not need it")
    if problems:
        raise UserError("; ".join(problems), hint="root must own the environment that it runs")


def _schedulers(named: str | None, places: Places) -> list[str]:
    if named:
        return [named]
    there = {"slurm": places.slurm, "flux": places.flux}
    return [name for name in SCHEDULERS if places.below(there[name]).is_dir()]


def _carry_out(
    parts: list[Part],
    places: Places,
    config: SystemConfig,
    chosen: list[str],
    *,
    remove: bool,
    dry_run: bool,
) -> list[Step]:
    from datacrumbs import deploy

    manifest = deploy.Manifest.load(places)
    steps: list[Step] = []
    for part in parts:
        try:
            done = _one(part, places, config, chosen, manifest, remove=remove, dry_run=dry_run)
        except OSError as error:
            raise UserError(f"{error.filename or part}: {error.strerror}") from error
        for step in done:
            line = f"{step.action:<10} {step.path}" + (f"    {step.why}" if step.why else "")
            click.echo(line, err=step.action is deploy.Action.REFUSED)
        steps += done
    return steps


def _one(
    part: Part,
    places: Places,
    config: SystemConfig,
    chosen: list[str],
    manifest: Manifest,
    *,
    remove: bool,
    dry_run: bool,
) -> list[Step]:
    from datacrumbs import deploy

    if remove:
        return (deploy.plan_remove if dry_run else deploy.remove)(part, places, manifest)
    files = deploy.files_of(part, places, config, slurm="slurm" in chosen, flux="flux" in chosen)
    if dry_run:
        return deploy.plan_install(files, places, manifest)
    return deploy.install(part, files, places, manifest)


def _reload_systemd() -> None:
    if shutil.which("systemctl") and Path("/run/systemd/system").is_dir():
        done = subprocess.run(["systemctl", "daemon-reload"], check=False)
        if done.returncode != 0:
            raise UserError("systemctl daemon-reload failed", hint="run it again by hand")


def _advise(parts: list[Part], places: Places, config: SystemConfig, chosen: list[str]) -> None:
    lines = list(_advice(parts, places, config, chosen))
    if lines:
        click.echo("\nStill to be done, by you:")
        for line in lines:
            click.echo(f"  {line}")


def _advice(
    parts: list[Part], places: Places, config: SystemConfig, chosen: list[str]
) -> Iterator[str]:
    from datacrumbs import deploy_advice
    from datacrumbs.deploy import Part

    if Part.SERVICES in parts:
        yield "on the login node: systemctl enable --now datacrumbs_sign_probes.socket"
    if Part.HOOKS in parts and "slurm" in chosen:
        yield from deploy_advice.slurm(places, config)
    if Part.HOOKS in parts and "flux" in chosen:
        yield from deploy_advice.flux(places)


def _on_nodes(words: list[str], node_list: str, ssh_options: str) -> int:
    """Run this command with ``words`` on the nodes; the exit code."""
    from datacrumbs.jobs import nodes

    remote = nodes.Remote(
        command=str(Path(sys.prefix, "bin/datacrumbs_deploy")),
        ssh_options=ssh_options,
        timeout_s=NODE_TIMEOUT_S,
    )
    names = nodes.node_names(node_list)
    results = nodes.everywhere(names, remote.line(*words), remote, nodes.State.DONE)
    width = max(len(node.node) for node in results)
    for node in results:
        click.echo(f"{node.node:<{width}}  {node.state:<11}  {node.message}".rstrip())
    return int(any(node.state not in nodes.GOOD for node in results))
