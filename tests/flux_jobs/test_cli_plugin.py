"""The options for `flux run` and its like, in Flux's own classes, and what they refuse."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from flux_jobs.conftest import SCHEDULER, Flux
from hypothesis import given, settings
from hypothesis import strategies as st

from datacrumbs.errors import BadInputError
from datacrumbs.jobs import metadata

PLUGIN = SCHEDULER / "cli/plugins/datacrumbs.py"
ENABLE = ("--datacrumbs-enable", "--datacrumbs-probe-file=/p/io.json.gz")
VALUE = {"enable": "yes", "probe_file": "/p/io.json.gz"}

VALIDATE = """
import json, sys
from flux.cli.plugin import CLIPluginRegistry
from flux.job import JobspecV1
registry = CLIPluginRegistry("validate")
for line in sys.stdin:
    jobspec = JobspecV1.from_command(["true"])
    jobspec.jobspec["attributes"]["system"].update(json.loads(line))
    try:
        registry.validate(jobspec)
        print("taken")
    except ValueError as error:
        print(error)
"""
"""As `flux-job-validator` does it for each job that is submitted."""


def _system(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert result.returncode == 0, result.stderr
    attributes: dict[str, Any] = json.loads(result.stdout)["attributes"]["system"]
    return attributes


COMMANDS = {
    "run": ("run", "-n1"),
    "submit": ("submit", "-n1"),
    "batch": ("batch", "-n1"),
    "alloc": ("alloc", "-n1"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_options_become_the_attribute(flux: Flux, name: str) -> None:
    wrap = ["--wrap"] if name == "batch" else []
    done = flux(*COMMANDS[name], "--dry-run", *ENABLE, *wrap, "hostname")
    assert _system(done)["datacrumbs"] == VALUE
    assert "no such file here" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_without_them_the_jobspec_is_as_ever(flux: Flux, tmp_path: Path, name: str) -> None:
    wrap = ["--wrap"] if name == "batch" else []
    command = [*COMMANDS[name], "--env=-*", "--dry-run", *wrap, "hostname"]
    with_plugin, without = flux(*command), flux(*command, plugins=tmp_path)
    assert (with_plugin.returncode, with_plugin.stderr) == (0, "")
    assert with_plugin.stdout == without.stdout and "datacrumbs" not in with_plugin.stdout


def test_a_relative_path_becomes_absolute(flux: Flux, tmp_path: Path) -> None:
    (tmp_path / "io.gz").touch()
    relative = (tmp_path / "io.gz").relative_to("/")  # the command runs in /
    done = flux(
        "run", "-n1", "--dry-run", "--datacrumbs-enable", f"--datacrumbs-probe-file={relative}", "x"
    )
    assert _system(done)["datacrumbs"]["probe_file"] == str(tmp_path / "io.gz")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (ENABLE[:1], "--datacrumbs-enable needs --datacrumbs-probe-file=FILE"),
        (ENABLE[1:], "--datacrumbs-probe-file needs --datacrumbs-enable"),
        (
            (ENABLE[0], "--datacrumbs-probe-file=/a\nb"),
            '--datacrumbs-probe-file: "probe_file" holds unprintable characters: "/a\\nb"',
        ),
        (
            (ENABLE[0], "--datacrumbs-probe-file=/" + "x" * 4095),
            '--datacrumbs-probe-file: "probe_file" is longer than 4095 bytes',
        ),
    ],
)
def test_what_cannot_be_is_refused_at_once(flux: Flux, options: list[str], said: str) -> None:
    done = flux("run", "-n1", "--dry-run", *options, "true")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"flux-run: ERROR: {said}\n"


@pytest.mark.parametrize(
    ("path", "obstacle"),
    [("/dev/null", "not a regular file"), (f"/{'x' * 300}", "File name too long")],
)
def test_a_file_that_cannot_be_read_here_may_be_on_the_nodes(
    flux: Flux, path: str, obstacle: str
) -> None:
    done = flux("run", "-n1", "--dry-run", ENABLE[0], f"--datacrumbs-probe-file={path}", "true")
    assert _system(done)["datacrumbs"]["probe_file"] == path
    assert done.stderr.endswith(f": {obstacle} here; the nodes need it\n")


def test_odd_names_pass_unchanged(flux: Flux) -> None:
    name = '/tmp/p "a" ü;$(id)\'{}.json'
    done = flux(
        "run", "-n1", "--dry-run", "--datacrumbs-enable", f"--datacrumbs-probe-file={name}", "x"
    )
    assert _system(done)["datacrumbs"] == {"enable": "yes", "probe_file": name}


def test_the_example_is_a_job_that_asks(flux: Flux) -> None:
    example = Path(sys.prefix, "share/datacrumbs/examples/flux_job.sh")
    system = _system(flux("batch", "--dry-run", example))
    assert system["datacrumbs"] == {"enable": "yes", "probe_file": "/probes.json.gz"}
    subprocess.run(["sh", "-n", example], check=True)


def test_help_says_what_to_do(flux: Flux) -> None:
    done = flux("run", "--help=datacrumbs-enable")
    assert done.returncode == 0
    assert "datacrumbs_probe_configurator" in done.stdout
    assert "--datacrumbs-probe-file=probes.json.gz ./simulate" in done.stdout
    short = flux("run", "--help").stdout
    assert "--datacrumbs-enable " in short and "--datacrumbs-probe-file=FILE" in short


def test_another_plugin_may_fail_us_but_we_fail_nobody(flux: Flux, tmp_path: Path) -> None:
    """A Flux without `flux.cli.plugin.CLIPlugin`, or with one that takes no options."""
    text = PLUGIN.read_text()
    for name, changed in (
        ("nothing", text.replace("flux.cli.plugin import", "flux.cli.renamed import")),
        ("other", text.replace("self.add_option(", "self.add_option(3, ")),
    ):
        directory = tmp_path / name
        directory.mkdir()
        (directory / "datacrumbs.py").write_text(changed)
        done = flux("run", "-n1", "--dry-run", "true", plugins=directory)
        assert "datacrumbs" not in _system(done)
        said = done.stderr.splitlines()
        assert said and all("datacrumbs" in line for line in said)


# what the broker asks for each job


def _validate(stubbed: dict[str, str], *systems: dict[str, Any]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-P", "-c", VALIDATE],
        input="".join(json.dumps(system) + "\n" for system in systems),
        env=stubbed | {"FLUX_CLI_PLUGINPATH_OVERRIDE": str(PLUGIN.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


INSTEAD = (
    "; use --datacrumbs-enable --datacrumbs-probe-file=FILE, or set it to "
    '{"enable":"yes","probe_file":"/abs/path"}'
)


def test_the_broker_refuses_what_the_prolog_could_not_take(stubbed: dict[str, str]) -> None:
    refused = {
        "must be an object": "yes",
        '"enable" is missing': {"probe_file": "/p"},
        '"probe_file" is missing': {"enable": "yes"},
        'unknown key "probes"': {**VALUE, "probes": 1},
        '"enable" must be "yes"; leave system.datacrumbs out of a job not to be traced': {
            **VALUE,
            "enable": True,
        },
        '"probe_file" must be a string': {**VALUE, "probe_file": None},
        '"probe_file" must be an absolute path, not "p.gz"': {**VALUE, "probe_file": "p.gz"},
    }
    said = _validate(stubbed, *({"datacrumbs": value} for value in refused.values()))
    assert said == [f"attributes.system.datacrumbs: {text}{INSTEAD}" for text in refused]


def test_the_broker_takes_the_rest(stubbed: dict[str, str]) -> None:
    assert _validate(stubbed, {"datacrumbs": VALUE}, {}, {"other": "yes"}) == ["taken"] * 3


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plugin_under_test", PLUGIN)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Base:
    """As little of Flux's `CLIPlugin` as the constructor needs."""

    def __init__(self, prog: str, prefix: str) -> None:
        self.prog, self.prefix = prog, prefix

    def add_option(self, name: str, **settings: object) -> None:
        pass


PLUGIN_OBJECT = _module().make_plugin(Base)("validate")

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
PATHS = st.text() | st.text().map("/{}".format) | JSON
VALUES = JSON | st.fixed_dictionaries(
    {}, optional={"enable": st.just("yes") | JSON, "probe_file": PATHS, "composite": JSON}
)


def _jobspec(value: object) -> SimpleNamespace:
    return SimpleNamespace(jobspec={"attributes": {"system": {"datacrumbs": value}}})


def _refusal(jobspec: object) -> str | None:
    try:
        PLUGIN_OBJECT.validate(jobspec)
    except ValueError as error:
        assert type(error) is ValueError
        return str(error)
    return None


@given(VALUES)
@settings(max_examples=500)
def test_it_refuses_exactly_what_the_prolog_refuses(value: object) -> None:
    """Two texts, because the plugin stands alone; one rule."""
    refusal = _refusal(_jobspec(value))
    try:
        metadata.parse_value(value)
        assert refusal is None
    except BadInputError:
        assert refusal and refusal.isprintable()


@given(JSON | st.fixed_dictionaries({"attributes": JSON | st.fixed_dictionaries({"system": JSON})}))
@settings(max_examples=500)
def test_jobspecs_of_any_shape_raise_nothing_else(shape: object) -> None:
    refusal = _refusal(SimpleNamespace(jobspec=shape))
    assert refusal is None or "datacrumbs" in refusal


@pytest.mark.parametrize(
    "jobspec", [None, 3, object(), SimpleNamespace(), SimpleNamespace(jobspec=3)]
)
def test_no_jobspec_at_all(jobspec: object) -> None:
    assert _refusal(jobspec) is None


def test_deep_and_large_values_are_refused_in_one_line() -> None:
    deep: Any = "x"
    for _ in range(3000):
        deep = [deep]
    for value in (deep, {"x" * 100_000: 1}, {"enable": deep, "probe_file": "/p"}):
        refusal = _refusal(
            SimpleNamespace(jobspec={"attributes": {"system": {"datacrumbs": value}}})
        )
        assert refusal and len(refusal) < 400


def test_the_file_needs_nothing_but_flux_and_the_standard_library() -> None:
    code = f"""
import runpy, sys, types
flux, cli, plugin = (types.ModuleType(n) for n in ("flux", "flux.cli", "flux.cli.plugin"))
class CLIPlugin: pass
plugin.CLIPlugin = CLIPlugin
sys.modules.update({{"flux": flux, "flux.cli": cli, "flux.cli.plugin": plugin}})
before = set(sys.modules)
found = runpy.run_path({str(PLUGIN)!r})
foreign = [n for n in set(sys.modules) - before if n.split(".")[0] not in sys.stdlib_module_names]
assert not foreign, foreign
classes = [v for k, v in found.items() if not k.startswith("_") and isinstance(v, type)]
assert sum(issubclass(c, CLIPlugin) for c in classes) == 1, classes
assert CLIPlugin not in classes
"""
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)
