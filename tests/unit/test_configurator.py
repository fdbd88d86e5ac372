"""datacrumbs_probe_configurator: what it builds, reports and refuses (nothing is signed here)."""

from __future__ import annotations

import json
import os
import platform
import pwd
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datacrumbs.cli.probe_configurator import main
from datacrumbs.config import Limits, SystemConfig
from datacrumbs.errors import BadInputError
from datacrumbs.probes.build import build, near_hint
from datacrumbs.probes.capture import parse_capture_config
from datacrumbs.probes.model import SyscallLayer, UserLayer, decode, encode
from datacrumbs.probes.syscalls import SyscallSet, available, select

EXAMPLES = Path(__file__).parents[2] / "examples"

TWO_LAYERS = """\
capture_probes:
  - {name: first, probe: syscalls, type: set, set: data}
  - {name: second, probe: syscalls, type: header, file: HEADER, regex: '(sys_)?(read|openat|odd.*)'}
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command: (exit code, standard output, standard error)."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main.main([str(a) for a in arguments], prog_name="datacrumbs_probe_configurator")
        out, err = capsys.readouterr()
        code = ended.value.code
        return (code if isinstance(code, int) else 1), out, err

    return call


@pytest.fixture
def header(tmp_path: Path) -> Path:
    path = tmp_path / "calls.h"
    path.write_text("long sys_read(int);\nlong sys_openat(int);\nlong sys_odd_one(void);\n")
    return path


@pytest.fixture
def two_layers(tmp_path: Path, header: Path) -> Path:
    path = tmp_path / "two.yaml"
    path.write_text(TWO_LAYERS.replace("HEADER", str(header)))
    return path


def test_the_probe_list_says_who_what_where_and_when(two_layers: Path) -> None:
    config = parse_capture_config(two_layers.read_bytes(), source="two.yaml")
    before = int(time.time())
    probes = build(config, SystemConfig(cluster="lead")).probes
    assert (probes.uid, probes.user) == (os.getuid(), pwd.getpwuid(os.getuid()).pw_name)
    assert (probes.machine, probes.cluster) == (platform.machine(), "lead")
    assert before <= probes.created <= time.time()
    assert probes.expires - probes.created == 30 * 24 * 3600
    assert decode(encode(probes)) == probes


def test_a_function_is_probed_once_for_the_first_layer(two_layers: Path) -> None:
    built = build(parse_capture_config(two_layers.read_bytes(), source="x"), SystemConfig())
    first, second = built.probes.layers
    assert first.functions == select(SyscallSet.DATA, available(platform.machine()))
    assert second.functions == ["openat"]
    assert built.layers[1].skipped == [
        ("odd_one", "not a system call of this kernel"),
        ("read", "already in layer first"),
    ]


def test_two_functions_of_one_name_are_two(tmp_path: Path) -> None:
    for part in "ab":
        (tmp_path / f"{part}.c").write_text(
            f"static int __attribute__((noinline)) step(int *x) {{ return ++*x; }}\n"
            f"int go_{part}(int *x) {{ return step(x); }}\n"
        )
    library = tmp_path / "lib.so"
    sources = [tmp_path / "a.c", tmp_path / "b.c"]
    subprocess.run(["cc", "-shared", "-fPIC", "-O0", "-o", library, *sources], check=True)
    entry = f"probe: uprobe, type: binary, file: {library}"
    text = f"capture_probes: [{{name: a, {entry}, regex: step}}, {{name: b, {entry}, regex: .*}}]"
    built = build(parse_capture_config(text.encode(), source="x"), SystemConfig())
    a, b = built.probes.layers
    assert isinstance(a, UserLayer)
    assert isinstance(b, UserLayer)
    assert [f.name for f in a.functions] == ["step", "step"]
    assert len({f.offset for f in a.functions}) == 2
    assert {"go_a", "go_b"} <= {f.name for f in b.functions}
    assert [s for s in built.layers[1].skipped if s[0] == "step"] == [
        ("step", "already in layer a"),
        ("step", "already in layer a"),
    ]


def test_too_many_functions_are_refused(two_layers: Path) -> None:
    config = parse_capture_config(two_layers.read_bytes(), source="two.yaml")
    system = SystemConfig(limits=Limits(functions=23))
    with pytest.raises(BadInputError, match=r"two\.yaml: \d+ functions are more than the 23 "):
        build(config, system)


@pytest.mark.parametrize("name", ["io.yaml", "libc.yaml"])
def test_the_examples_find_what_they_promise(run: Run, name: str) -> None:
    code, out, err = run(EXAMPLES / name, "--dry-run", "--format", "json")
    assert (code, err) == (0, "")
    layers = {layer["name"]: layer for layer in json.loads(out)["layers"]}
    assert layers["syscall"]["functions"] > 100
    if "libc" in layers:
        assert layers["libc"]["skipped"] == []
        assert {"fread", "open", "fsync", "mkdir"} <= set(layers["libc"]["names"])


def test_the_example_of_a_program_works_for_a_program(run: Run, tmp_path: Path) -> None:
    source, program = tmp_path / "s.c", tmp_path / "simulate"
    source.write_text("int read_mesh(void){return 0;}\nint main(void){return read_mesh();}\n")
    subprocess.run(["cc", "-O0", "-o", program, source], check=True)
    config = tmp_path / "app.yaml"
    text = (EXAMPLES / "app.yaml").read_text()
    config.write_text(text.replace("/home/you/simulation/simulate", str(program)))
    code, out, _ = run(config, "--dry-run", "--format", "json")
    assert code == 0
    app, syscall = json.loads(out)["layers"]
    assert app["names"] == ["read_mesh"]
    assert {"pread64", "pwritev2", "fsync"} <= set(syscall["names"])


def test_text_names_five_per_reason_and_json_all(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        "capture_probes: [{name: libc, probe: uprobe, type: binary, file: libc.so.6, "
        "regex: mem.*|str.*|fsync}]"
    )
    code, out, _ = run(config, "--dry-run", "--format", "json")
    assert code == 0
    document: dict[str, Any] = json.loads(out)
    (layer,) = document["layers"]
    ifuncs = [s["name"] for s in layer["skipped"] if s["reason"].startswith("IFUNC")]
    assert document["functions"] == layer["functions"] == len(layer["names"])
    assert document["probe_file"] is None
    assert len(ifuncs) > 5
    code, out, _ = run(config, "--dry-run")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split()[:2] == ["libc", str(layer["functions"])]
    at = next(i for i, line in enumerate(lines) if line.startswith(f"  {len(ifuncs)}: IFUNC"))
    shown = ", ".join(sorted(ifuncs)[:5])
    assert lines[at + 1].strip() == f"{shown} and {len(ifuncs) - 5} more"
    assert lines[-1].startswith("dry run: nothing signed, nothing written; for ")


def test_a_cpp_library_comes_with_a_warning(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        "capture_probes: [{name: cpp, probe: uprobe, type: binary, file: libstdc++.so.6, "
        "regex: _ZNSo5writeEPKcl}]"
    )
    code, out, _ = run(config, "--dry-run")
    assert code == 0
    assert "note: cpp: exceptions may pass its functions" in out


ENTRY = "capture_probes: [{name: a, probe: uprobe, type: binary, file: libc.so.6, regex: 'REGEX'}]"


@pytest.mark.parametrize(
    ("text", "error", "hint"),
    [
        (
            ENTRY.replace("REGEX", "fraed"),
            "c.yaml:1: capture_probes[0].regex: 'fraed' matches none of the ",
            "near names: fread",
        ),
        (
            ENTRY.replace("REGEX", "^fread_un"),
            "c.yaml:1: capture_probes[0].regex: '^fread_un' matches none of the ",
            "it has to match whole names; put .* around it for fread_unlocked",
        ),
        (
            ENTRY.replace("REGEX", "strlen"),
            "c.yaml:1: capture_probes[0].regex: 'strlen': nothing is left to probe",
            "",
        ),
        (
            ENTRY.replace("REGEX", ".*").replace("libc.so.6", "libc.so.7"),
            "c.yaml:1: capture_probes[0].file: 'libc.so.7' is not a library",
            "did you mean 'libc.so.6'?",
        ),
        (
            ENTRY.replace("REGEX", ".*").replace("libc.so.6", "/etc/passwd"),
            "c.yaml:1: capture_probes[0].file: /etc/passwd: not an ELF file",
            "",
        ),
        (
            "capture_probes: [{name: a, probe: syscalls, type: set, set: io, regex: raed}]",
            "c.yaml:1: capture_probes[0].regex: 'raed' matches none of the ",
            "near names: read",
        ),
        (
            "capture_probes: [{name: a, probe: syscalls, type: header, file: no.h, regex: read}]",
            "c.yaml:1: capture_probes[0].file: no.h: no such header in ",
            "asm/unistd_64.h comes with",
        ),
    ],
)
def test_a_layer_without_functions_is_an_error(
    run: Run, tmp_path: Path, text: str, error: str, hint: str
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(text)
    code, out, err = run(config, "--dry-run")
    lines = err.splitlines()
    command = "datacrumbs_probe_configurator"
    assert (code, out) == (2, "")
    assert lines[0].startswith(f"{command}: error: {tmp_path}/{error}")
    assert len(lines) == (2 if hint else 1)
    assert hint in err


def test_near_names_are_near() -> None:
    names = ["read", "pread64", "readv", "write", "close"]
    assert near_hint("raed|wrote", names).startswith("near names: read")
    assert "write" in near_hint("raed|wrote", names)
    assert near_hint("zzzzz", names) == ""
    assert near_hint("rea", names) == (
        "it has to match whole names; put .* around it for pread64, read, readv"
    )


def test_without_out_only_a_dry_run_works(run: Run) -> None:
    code, _, err = run(EXAMPLES / "io.yaml")
    assert code == 2
    assert "OUT is missing" in err
    assert "--dry-run" in err


def test_out_is_checked_before_the_service_is_asked(
    run: Run, tmp_path: Path, service_that_nobody_may_ask: Path
) -> None:
    system = service_that_nobody_may_ask
    for out, message in (
        (tmp_path, "is a directory"),
        (tmp_path / "none" / "x.json.gz", f"there is no directory {tmp_path}/none"),
        (Path("/dev/null"), "not a regular file"),
    ):
        code, _, err = run(EXAMPLES / "io.yaml", out, "--config", system)
        assert code == 2
        assert err.startswith(f"datacrumbs_probe_configurator: error: {out}: {message}")


@pytest.fixture
def service_that_nobody_may_ask(tmp_path: Path) -> Path:
    """A system configuration whose signing service does not exist."""
    system = tmp_path / "system.yaml"
    system.write_text(f"signing: {{socket: {tmp_path}/sign.sock}}\n")
    system.chmod(0o644)
    return system


def test_no_service_says_how_to_start_it_and_leaves_out_alone(
    run: Run, tmp_path: Path, service_that_nobody_may_ask: Path
) -> None:
    out = tmp_path / "probes.json.gz"
    out.write_bytes(b"the old one")
    system = service_that_nobody_may_ask
    code, _, err = run(EXAMPLES / "io.yaml", out, "--config", system)
    assert code == 1
    assert f"no signing service at {tmp_path}/sign.sock" in err
    assert "hint: as root: systemctl start datacrumbs_sign_probes.socket" in err
    assert out.read_bytes() == b"the old one"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["probes.json.gz", "system.yaml"]


def test_syscall_layers_hold_no_name_twice(two_layers: Path) -> None:
    built = build(parse_capture_config(two_layers.read_bytes(), source="x"), SystemConfig())
    names = [n for x in built.probes.layers if isinstance(x, SyscallLayer) for n in x.functions]
    assert len(names) == len(set(names))
