"""``datacrumbs_sign_probes``: the signing service's program."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
import msgspec

from datacrumbs.cli import app
from datacrumbs.config import SystemConfig, load_system_config
from datacrumbs.errors import UserError


@app.command("datacrumbs_sign_probes")
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="System configuration instead of the installed one.",
)
@click.option(
    "--socket",
    "socket_path",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Listen here instead of at the configuration's signing.socket.",
)
@click.option("--show-keys", is_flag=True, help="Print the key ids this host trusts, and stop.")
def main(*, config_file: Path | None, socket_path: Path | None, show_keys: bool) -> None:
    """Sign probe lists for the users of this host, until SIGTERM.

    Root only. It listens on a Unix socket, learns from the kernel who asks, applies the
    policy of the system configuration, and writes one line per decision to standard error.
    The first start creates the private key; a key is never overwritten.

    \b
    Examples:
      systemctl enable --now datacrumbs_sign_probes.socket
      datacrumbs_sign_probes --show-keys
    """
    if os.geteuid() != 0:
        raise UserError(
            "only root can sign", hint="systemctl start datacrumbs_sign_probes.socket, as root"
        )
    config = _with_socket(load_system_config(config_file), socket_path)
    if show_keys:
        _show_keys(config)
        return
    from datacrumbs.signing.service import serve

    serve(config)


def _with_socket(config: SystemConfig, path: Path | None) -> SystemConfig:
    if path is None:
        return config
    signing = msgspec.structs.replace(config.signing, socket=str(path.absolute()))
    return msgspec.structs.replace(config, signing=signing)


def _show_keys(config: SystemConfig) -> None:
    """One line per public key: id, file, and whether this host signs with it."""
    from datacrumbs.signing.keys import key_id, load_private_key, load_public_keys

    private, public_dir = Path(config.keys.private), Path(config.keys.public_dir)
    own = key_id(load_private_key(private).public_key()) if private.exists() else None
    for keyid in load_public_keys(public_dir):
        use = f"  signs here ({private})" if keyid == own else ""
        sys.stdout.write(f"{keyid}  {public_dir}{use}\n")
