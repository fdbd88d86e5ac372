"""What is installed is complete: data files, configuration, man pages, completion, packaging."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
import yaml

import datacrumbs
from datacrumbs.config import SystemConfig, load_system_config

ROOT = Path(__file__).resolve().parents[2]
PREFIX = Path(sys.prefix)
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SYSTEM_YAML = PREFIX / "etc/datacrumbs/system.yaml"


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


manpages = _load(ROOT / "docs" / "manpages.py")


def _commands() -> list[str]:
    return list(manpages.scripts())


def test_the_version_is_one() -> None:
    assert datacrumbs.__version__ == PYPROJECT["project"]["version"]


def _keys(struct: Any, prefix: str = "") -> list[str]:
    names = []
    for field in msgspec.inspect.type_info(struct).fields:  # type: ignore[attr-defined]
        names.append(prefix + field.encode_name)
        if isinstance(field.type, msgspec.inspect.StructType):
            names += _keys(field.type.cls, f"{prefix}{field.encode_name}.")
    return names


def _flat(plain: dict[str, Any], prefix: str = "") -> list[str]:
    names = []
    for key, value in plain.items():
        names.append(prefix + key)
        if isinstance(value, dict):
            names += _flat(value, f"{prefix}{key}.")
    return names


def test_the_installed_system_yaml_has_every_key_and_the_defaults() -> None:
    plain = yaml.safe_load(SYSTEM_YAML.read_text())
    assert _flat(plain) == _keys(SystemConfig)
    assert load_system_config(ROOT / "etc/system.yaml") == SystemConfig()
    assert SYSTEM_YAML.read_bytes() == (ROOT / "etc/system.yaml").read_bytes()


def test_every_key_of_the_installed_system_yaml_is_explained() -> None:
    above = ""
    for line in SYSTEM_YAML.read_text().splitlines():
        key = re.match(r"( *)([a-z_]+):(.*)", line)
        if key:
            assert above.lstrip().startswith("#") or not key[3], f"{key[2]}: no comment above"
        above = line


def test_the_ranges_that_system_yaml_states_are_the_real_ones() -> None:
    text = SYSTEM_YAML.read_text()
    fields = {
        f"{section.encode_name}.{field.encode_name}": field.type
        for section in msgspec.inspect.type_info(SystemConfig).fields  # type: ignore[attr-defined]
        if isinstance(section.type, msgspec.inspect.StructType)
        for field in section.type.fields
    }
    stated = 0
    for name, kind in fields.items():
        if not isinstance(kind, msgspec.inspect.IntType) or kind.le is None:
            continue
        comment = re.search(rf"((?: +#.*\n)+) +{name.partition('.')[2]}:", text)
        assert comment and f"({kind.ge} to {kind.le})" in comment[1].replace("\n  # ", " "), name
        stated += 1
    assert stated >= 6


def test_the_package_is_the_installed_one_and_has_its_data() -> None:
    package = Path(datacrumbs.__file__).parent
    assert package.is_relative_to(PREFIX), "tests run against the checkout, not the installation"
    assert (package / "tracer" / "datacrumbs.bpf.o").is_file()
    assert (package / "py.typed").is_file()
    assert not list(package.rglob("*.c")), "sources in the package"


def test_all_modules_are_installed() -> None:
    package = Path(datacrumbs.__file__).parent
    there = {str(p.relative_to(package)) for p in package.rglob("*.py")}
    wanted = {str(p.relative_to(ROOT / "datacrumbs")) for p in (ROOT / "datacrumbs").rglob("*.py")}
    assert there == wanted


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        ("systemd", "lib/systemd/system"),
        ("examples", "share/datacrumbs/examples"),
        ("scheduler", "share/datacrumbs/scheduler"),
    ],
)
def test_units_hooks_and_examples_are_installed(source: str, destination: str) -> None:
    files = [p for p in (ROOT / source).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    files = [p for p in files if p.name != "meson.build"]
    assert files
    for file in files:
        installed = PREFIX / destination / file.relative_to(ROOT / source)
        assert installed.read_bytes() == file.read_bytes()
        assert os.access(installed, os.X_OK) == os.access(file, os.X_OK)


def test_the_plugin_for_slurm_is_built() -> None:
    """Slurm's header is among the Makefile's packages."""
    plugin = PREFIX / "lib/datacrumbs/spank_datacrumbs.so"
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", plugin], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    assert {"plugin_name", "slurm_spank_init", "slurm_spank_task_init"} <= set(symbols.split())


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    units = sorted((PREFIX / "lib/systemd/system").glob("datacrumbs*"))
    assert len(units) >= 3
    for unit in units:
        # where systemd looks for commands is not where this environment has them
        text = unit.read_text().replace("ExecStart=", f"ExecStart={PREFIX}/bin/")
        (tmp_path / unit.name).write_text(text)
    names = [unit.name.replace("@.", "@run.") for unit in units]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *names],
        cwd=tmp_path,
        env=os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_bpf_object_has_types_and_no_debug_sections() -> None:
    path = Path(datacrumbs.__file__).parent / "tracer" / "datacrumbs.bpf.o"
    sections = subprocess.run(
        ["readelf", "-WS", path], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    assert " .BTF " in sections and " .BTF.ext " in sections
    assert ".debug_" not in sections


@pytest.mark.parametrize("name", _commands())
def test_commands_know_their_version_and_show_examples(name: str) -> None:
    command = PREFIX / "bin" / name
    version = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout == f"{name} {datacrumbs.__version__}\n"
    shown = subprocess.run([command, "--help"], capture_output=True, text=True, check=True)
    assert "Examples:" in shown.stdout and f"  {name} " in shown.stdout


@pytest.mark.parametrize("name", _commands())
def test_man_pages_are_installed_and_well_formed(name: str) -> None:
    page = PREFIX / "share/man/man1" / f"{name}.1"
    checked = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-rLL=100n", page],
        capture_output=True,
        text=True,
        check=True,
    )
    assert checked.stderr == ""
    text = re.sub(r"\x1b\[[0-9;]*m|.\x08", "", checked.stdout)
    for heading in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXAMPLES", "EXIT STATUS"):
        assert re.search(rf"^{heading}$\n +\S", text, re.MULTILINE), heading
    assert re.search(rf"^EXAMPLES\n( .*\n)*? +(sudo )?{name} ", text, re.MULTILINE)
    shown = subprocess.run(
        [PREFIX / "bin" / name, "--help"], capture_output=True, text=True, check=True
    )
    options = set(re.findall(r"^ +(?:-\w, )?(--[a-z-]+)", shown.stdout, re.MULTILINE))
    assert options and all(option in text for option in options)


def _names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=]", requirement)[0].lower() for requirement in requirements}


def test_building_needs_no_package_that_it_does_not_name() -> None:
    """The build imports all commands, in an environment with the build's requirements only."""
    runtime_only = _names(PYPROJECT["project"]["dependencies"]) - _names(
        PYPROJECT["build-system"]["requires"]
    )
    absent = [
        module
        for module, distributions in packages_distributions().items()
        if runtime_only & {name.lower() for name in distributions}
    ]
    assert {"pyarrow", "duckdb"} <= set(absent)
    targets = PYPROJECT["project"]["scripts"].values()
    modules = ", ".join(target.partition(":")[0] for target in targets)
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import {modules}"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_roff_special_characters_are_printed_as_they_are() -> None:
    roff = manpages.escape(".starts with a dot\n'and a quote\\n and --long-option")
    page = f".TH X 1\n.PP\n.nf\n{roff}\n.fi\n"
    shown = subprocess.run(
        ["groff", "-man", "-Tascii", "-ww"], input=page, capture_output=True, text=True, check=True
    )
    assert ".starts with a dot" in shown.stdout
    assert "'and a quote\\n and --long-option" in shown.stdout


@pytest.mark.parametrize("name", _commands())
def test_bash_completes_options(name: str) -> None:
    script = PREFIX / "share/bash-completion/completions" / name
    asked = f"""
        source {script}
        COMP_WORDS=({name} --ver) COMP_CWORD=1
        _{name}_completion {name}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    path = f"{PREFIX / 'bin'}:{os.environ['PATH']}"
    shown = subprocess.run(
        ["bash", "-c", asked], env={"PATH": path}, capture_output=True, text=True, check=True
    )
    assert "--version" in shown.stdout.splitlines()
    assert shown.stderr == ""


@pytest.mark.parametrize("name", _commands())
def test_zsh_and_fish_have_completions(name: str) -> None:
    zsh = (PREFIX / "share/zsh/site-functions" / f"_{name}").read_text()
    assert zsh.startswith(f"#compdef {name}\n") and f"_{name.upper()}_COMPLETE=zsh_complete" in zsh
    fish = (PREFIX / "share/fish/vendor_completions.d" / f"{name}.fish").read_text()
    assert f"--command {name}" in fish and f"_{name.upper()}_COMPLETE=fish_complete" in fish


def _skipping(tmp_path: Path, reason: str, *options: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_one.py").write_text(
        f"import pytest\ndef test_one():\n    pytest.skip({reason!r})\n"
    )
    (tmp_path / "test_two.py").write_text(
        f"import pytest\npytest.skip({reason!r}, allow_module_level=True)\n"
    )
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, tmp_path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_skips_lets_no_skip_hide(tmp_path: Path) -> None:
    refused = _skipping(
        tmp_path, "no such machine", "--no-skips", "--continue-on-collection-errors"
    )
    assert refused.returncode == 1
    assert "1 failed, 1 error" in refused.stdout
    assert _skipping(tmp_path, "no such machine").returncode in (0, 5)
    assert _skipping(tmp_path, "needs Flux", "--no-skips").returncode in (0, 5)


def test_the_demo_installs_nothing_that_only_developing_needs(tmp_path: Path) -> None:
    def steps(target: str) -> str:
        command = ["make", "-n", "-C", str(ROOT), target, f"VENV={tmp_path / 'venv'}"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert "qemu-system-x86" in steps("test") and ".development" in steps("test")
    assert "libbpf1" in steps("demo")
    assert "qemu-system-x86" not in steps("demo") and ".development" not in steps("demo")
