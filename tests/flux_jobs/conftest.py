"""Flux for the tests: its Python bindings over stub libraries, and the real one where it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from flux_jobs import stubs

SCHEDULER = Path(sys.prefix, "share/datacrumbs/scheduler/flux")
"""What is installed of scheduler/flux."""

NO_FLUX = "Flux is not on PATH"

SUBMIT = """
import importlib, logging, sys
import flux, flux.debugged
# an interface of debuggers, which the wheel of the bindings was built without
flux.debugged.get_mpir_being_debugged = lambda: 0
name = sys.argv.pop(1)
module = importlib.import_module(f"flux.cli.{name}")
command = getattr(module, {"bulksubmit": "BulkSubmitCmd"}.get(name, name.capitalize() + "Cmd"))
main = lambda: command(f"flux {name}", description="test").run_command()
flux.util.CLIMain(logging.getLogger(f"flux-{name}"))(main)
"""
"""What the commands `flux run`, `flux batch` and so on are."""

Flux = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def stubbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which the bindings load over stub libraries."""
    if stubs.bindings() is None:
        pytest.skip("Flux's Python bindings are not installed: there are none for this machine")
    return stubs.build(tmp_path_factory.mktemp("stubs"))


@pytest.fixture(scope="session", params=["bindings", "real"])
def flux(request: pytest.FixtureRequest) -> Flux:
    """Run ``flux ARGUMENTS...`` with our CLI plugin; `plugins` names another directory of them."""
    if request.param == "bindings":
        extra, command = request.getfixturevalue("stubbed"), [sys.executable, "-P", "-c", SUBMIT]
    else:
        extra, command = {}, [real_flux()]

    def run(
        *arguments: str | Path, plugins: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        searched = {"FLUX_CLI_PLUGINPATH_OVERRIDE": str(plugins or SCHEDULER / "cli/plugins")}
        return subprocess.run(
            [*command, *map(str, arguments)],
            env=os.environ | extra | searched,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
        )

    return run


def real_flux() -> str:
    """The path of ``flux``; without one the test is skipped."""
    found = shutil.which("flux")
    if found is None:
        pytest.skip(NO_FLUX)
    return found
