"""Software found for the user: what `from:` means, compared with the dynamic linker itself."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datacrumbs.errors import BadInputError
from datacrumbs.probes.software import Origin, OriginKind, find_objects, parse_origin

MACHINE = platform.machine()


def _find(text: str, environ: dict[str, str] | None = None) -> dict[str, Path]:
    found = find_objects(parse_origin(text), MACHINE, os.environ if environ is None else environ)
    return {item.name: item.path for item in found.objects}


def _loaded_by_the_linker(program: Path, environ: dict[str, str]) -> dict[str, Path]:
    """(soname, file) as `ldd` shows them, without the kernel's own."""
    shown = subprocess.run(
        ["ldd", program],
        env={"PATH": "/usr/bin:/bin", **environ},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    pairs = re.findall(r"^\t(?:(\S+) => )?(/\S+) \(", shown, re.MULTILINE)
    return {name or Path(path).name: Path(path).resolve() for name, path in pairs}


def _library(path: Path, *options: str | Path, code: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    command = ["gcc", "-x", "c", "-shared", "-fPIC", f"-Wl,-soname,{path.name}", "-o", path]
    subprocess.run(
        [*command, "-", "-x", "none", "-Wl,--no-as-needed", *options],
        input=code.encode(),
        check=True,
    )
    return path


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program with RUNPATH $ORIGIN/../lib, a library of its own RPATH, one by variable."""
    root = tmp_path_factory.mktemp("tree").resolve()
    deep = _library(root / "deep/libdeep.so.1")
    _library(root / "else/libother.so.2")
    middle = _library(
        root / "lib/libmiddle.so.3",
        deep,
        f"-Wl,--disable-new-dtags,-rpath,{root}/deep",
    )
    other = root / "else/libother.so.2"
    program = root / "bin/program"
    program.parent.mkdir()
    subprocess.run(
        [
            "gcc",
            "-x",
            "c",
            "-o",
            program,
            "-",
            "-x",
            "none",
            "-Wl,--no-as-needed",
            middle,
            other,
            "-Wl,--enable-new-dtags,-rpath,$ORIGIN/../lib",
            f"-Wl,-rpath-link,{root}/deep",
        ],
        input=b"int main(void) { return 0; }",
        check=True,
    )
    (root / "bin/script").write_text(f"#!{program}\n")
    (root / "bin/script").chmod(0o755)
    return root


def test_a_commands_objects_are_those_the_linker_loads(tree: Path) -> None:
    environ = {"LD_LIBRARY_PATH": str(tree / "else")}
    found = _find(f"command {tree}/bin/program --some option", environ)
    assert found.pop("program") == tree / "bin/program"
    assert found == _loaded_by_the_linker(tree / "bin/program", environ)
    assert found["libdeep.so.1"] == tree / "deep/libdeep.so.1"


@pytest.mark.parametrize(
    "program", ["/usr/bin/python3", "/usr/bin/gdb", "/usr/bin/curl", "/bin/ls"]
)
def test_real_programs_too(program: str) -> None:
    if not Path(program).exists():
        program = sys.executable
    found = _find(f"command {program}")
    expected = _loaded_by_the_linker(Path(program), dict(os.environ))
    assert set(expected.values()) <= set(found.values())
    assert len(found) == len(expected) + 1


def test_what_is_missing_is_named_and_nothing_is_run(tree: Path) -> None:
    found = find_objects(parse_origin(f"command {tree}/bin/program"), MACHINE, {})
    assert ("libother.so.2", "the dynamic linker would not find it") in found.skipped
    trap = tree / "bin/trap"
    trap.write_text(f"#!/bin/sh\ntouch {tree}/trapped\n")
    trap.chmod(0o755)
    assert "libc.so.6" in _find(f"command {trap}")
    assert not (tree / "trapped").exists()


def test_scripts_lead_to_what_runs_them(tree: Path) -> None:
    assert "program" in _find(f"command {tree}/bin/script")
    env = tree / "bin/by-env"
    env.write_text("#!/usr/bin/env -S PYTHONPATH=/x python3 -u\n")
    env.chmod(0o755)
    found = _find(f"command VARIABLE=1 {env}", {"PATH": "/usr/bin:/bin"})
    assert Path("/usr/bin/python3").resolve() in found.values()


def test_a_command_on_path(tree: Path) -> None:
    assert "program" in _find("command program", {"PATH": str(tree / "bin")})


def test_a_process_has_what_it_has_mapped(tree: Path) -> None:
    program, library = tree / "bin/sleeper", tree / "lib/libgone.so.1"
    _library(library, code="int gone(void) { return 1; }")
    source = b'#include <unistd.h>\nint gone(void); int main(void) { gone(); puts(""); pause(); }'
    subprocess.run(
        [
            "gcc",
            "-x",
            "c",
            "-include",
            "stdio.h",
            "-o",
            program,
            "-",
            "-x",
            "none",
            library,
            f"-Wl,-rpath,{tree}/lib",
        ],
        input=source,
        check=True,
    )
    with subprocess.Popen(["stdbuf", "-o0", program], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()  # it runs, and everything is mapped
            found = _find(f"process {process.pid}")
            assert {"sleeper", "libgone.so.1", "libc.so.6"} <= found.keys()
            library.unlink()
            left = find_objects(Origin(OriginKind.PROCESS, str(process.pid)), MACHINE)
            assert (
                f"{library} (deleted)",
                "deleted or replaced since the process has started",
            ) in (left.skipped)
            assert library not in [item.path for item in left.objects]
        finally:
            process.kill()


def test_ldconfig_lists_each_file_once() -> None:
    found = find_objects(Origin(OriginKind.LDCONFIG), MACHINE)
    paths = [item.path for item in found.objects]
    assert len(paths) == len(set(paths)) > 10
    assert "libc.so.6" in {item.name for item in found.objects}


def test_modules_are_what_the_environment_says(tree: Path) -> None:
    prefix = tree / "opt/hdf5/1.14"
    _library(prefix / "lib/libhdf5.so.310")
    (prefix / "lib/libhdf5.so").symlink_to("libhdf5.so.310")
    (prefix / "lib/libbad.so").write_text("INPUT(libhdf5.so.310)")
    _library(tree / "opt/mpi/lib/libmpi.so.40")
    module = tree / "modulefiles/hdf5"
    module.parent.mkdir()
    module.write_text(f"#%Module\nset root {prefix}\nprepend-path PATH $root/bin\n")
    environ = {
        "LOADEDMODULES": "hdf5/1.14:openmpi/4",
        "_LMFILES_": str(module),
        "PATH": f"{prefix}/bin:/usr/bin",
        "LD_LIBRARY_PATH": f"{tree}/opt/mpi/lib:{tree}/none",
    }
    assert _find("modules", environ) == {
        "libmpi.so.40": tree / "opt/mpi/lib/libmpi.so.40",
        "libhdf5.so.310": prefix / "lib/libhdf5.so.310",
    }
    with pytest.raises(BadInputError, match="no environment module is loaded"):
        _find("modules", {})


SPACK = """\
#!/bin/sh
[ "$1 $2" = "find --format" ] || exit 3
case "$4" in
  hdf5) echo PREFIX ;;
  --loaded) echo PREFIX ;;
  *) echo "==> Error: No package matches the query: $4" >&2; exit 1 ;;
esac
"""


def test_spack_names_prefixes(tree: Path) -> None:
    """`spack` here answers as the real one does: it is in no package registry."""
    prefix = tree / "spack/hdf5-abc"
    library = _library(prefix / "lib/libhdf5.so.200")
    program = tree / "spackbin/spack"
    program.parent.mkdir()
    program.write_text(SPACK.replace("PREFIX", str(prefix)))
    program.chmod(0o755)
    environ = {"PATH": f"{program.parent}:/usr/bin:/bin"}
    assert _find("spack hdf5", environ) == {"libhdf5.so.200": library}
    assert _find("spack", environ) == {"libhdf5.so.200": library}
    with pytest.raises(
        BadInputError, match="spack netcdf: no installed package: ==> Error: No pac"
    ):
        _find("spack netcdf", environ)
    with pytest.raises(BadInputError, match="there is no spack on PATH"):
        _find("spack", {"PATH": "/usr/bin"})
    view = tree / "environment"
    _library(view / ".spack-env/view/lib/libview.so.1")
    assert list(_find("spack", {"SPACK_ENV": str(view), "PATH": ""})) == ["libview.so.1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "''"),
        ("process", "'process': say which"),
        ("process abc", "'process abc': 'abc' is not a process id"),
        ("process 99999999", "process 99999999: there is no such process on this host"),
        ("ldconfig x", "'ldconfig x': ldconfig takes nothing after it"),
        ("command", "'command': say which"),
        ("command 'a", '"\'a": No closing quotation'),
        ("command A=1", "'A=1': names no program"),
        ("command /no/such", "command /no/such: no such program, or it may not be executed"),
        ("command /etc/passwd", "command /etc/passwd: no such program"),
    ],
)
def test_mistakes_are_one_line(text: str, message: str) -> None:
    with pytest.raises(BadInputError) as caught:
        _find(text)
    assert caught.value.message.startswith(message)


def test_files_of_other_machines_are_skipped_by_name(tree: Path) -> None:
    library = _library(tree / "arm/libarm.so.1")
    image = bytearray(library.read_bytes())
    image[18:20] = (0x28).to_bytes(2, "little")
    library.write_bytes(image)
    environ = {"LOADEDMODULES": "x", "LD_LIBRARY_PATH": f"{library.parent}:{tree}/lib"}
    found = find_objects(Origin(OriginKind.MODULES), MACHINE, environ)
    assert found.skipped == [(str(library), f"for ARM, and this is {MACHINE}")]
    assert "libmiddle.so.3" in {item.name for item in found.objects}


@given(st.text(max_size=30) | st.sampled_from(["process 1", "command a b", "spack x@1", "modules"]))
def test_any_text_is_an_origin_or_one_line(text: str) -> None:
    try:
        origin = parse_origin(text)
    except BadInputError as error:
        assert "\n" not in error.message
    else:
        assert parse_origin(str(origin)) == origin
