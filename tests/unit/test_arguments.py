"""Arguments: from rules and type information to what is captured, checked against compilers."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datacrumbs.config import SystemConfig
from datacrumbs.errors import BadInputError
from datacrumbs.probes import debugfile, model
from datacrumbs.probes.btf import kernel_types
from datacrumbs.probes.build import Built, build
from datacrumbs.probes.capture import parse_capture_config
from datacrumbs.probes.dwarf import user_parameters
from datacrumbs.probes.elf import read_functions
from datacrumbs.probes.kernel_arguments import numbers_only
from datacrumbs.probes.model import Argument, ArgumentType
from datacrumbs.probes.parameters import Parameter

MACHINE = platform.machine()
INT, UINT, STRING, BYTES = ArgumentType

SOURCE = r"""
#include <stddef.h>
typedef unsigned short port_t;
enum kind { SMALL = -1, LARGE };
struct pair { long a, b; };
struct big { long a[4]; };
namespace lead { struct file { int fd; int send(const char *text, bool wait); }; }
extern "C" {
int plain(int fd, const char *path, char *buffer, size_t size, signed char tag) {
    return fd + (int)size + tag + path[0] + buffer[0]; }
int mixed(double ratio, port_t port, float half, enum kind kind, const port_t *where) {
    return (int)(ratio * port + half) + kind + *where; }
int many(long a, long b, long c, long d, long e, long f, long g) { return a+b+c+d+e+f+g; }
int packed(long a, struct pair pair, long b) { return a + pair.a + b; }
struct big made(long a) { struct big made = {{a}}; return made; }
int variadic(const char *format, ...) { return format[0]; }
int nothing(void) { return 0; }
}
int lead::file::send(const char *text, bool wait) { return fd + text[0] + wait; }
"""


def _compile(directory: Path, *options: str) -> Path:
    source = directory / "lead.cc"
    source.write_text(SOURCE)
    library = directory / "liblead.so"
    command = ["g++", "-shared", "-fPIC", "-O1", "-w", "-Wl,--build-id", *options]
    subprocess.run([*command, "-o", library, source], check=True)
    return library


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _compile(tmp_path_factory.mktemp("arguments"), "-g")


def _parameters(path: Path, name: str) -> list[Parameter] | str:
    found = read_functions(path, re.compile(name), MACHINE)
    (function,) = found.functions
    return user_parameters(path, found.build_id, MACHINE)(function)


def _shapes(parameters: list[Parameter] | str) -> list[tuple[object, ...]]:
    assert not isinstance(parameters, str), parameters
    return [(p.name, p.register, p.type, p.size) for p in parameters]


def test_parameters_are_those_of_the_source(library: Path) -> None:
    assert _shapes(_parameters(library, "plain")) == [
        ("fd", 0, INT, 4),
        ("path", 1, STRING, 0),
        ("buffer", 2, UINT, 8),
        ("size", 3, UINT, 8),
        ("tag", 4, INT, 1),
    ]
    assert _parameters(library, "nothing") == []


def test_floating_point_parameters_take_no_integer_register(library: Path) -> None:
    assert _shapes(_parameters(library, "mixed")) == [
        ("ratio", None, None, 0),
        ("port", 0, UINT, 2),
        ("half", None, None, 0),
        ("kind", 1, INT, 4),
        ("where", 2, UINT, 8),
    ]


def test_what_cannot_be_told_is_not_guessed(library: Path) -> None:
    packed = _parameters(library, "packed")
    assert [p[1] for p in _shapes(packed)] == [0, None, None]
    made = _parameters(library, "made")
    assert [p[1] for p in _shapes(made)] == [None]
    assert not isinstance(made, str) and "returns a structure" in made[0].why
    assert [p[0] for p in _shapes(_parameters(library, "variadic"))] == ["format"]


def test_methods_have_this(library: Path) -> None:
    assert _shapes(_parameters(library, ".*send.*")) == [
        ("this", 0, UINT, 8),
        ("text", 1, STRING, 0),
        ("wait", 2, UINT, 1),
    ]


@pytest.mark.parametrize("options", [["-gdwarf-4"], ["-gdwarf-5", "-gz"], ["-g", "-fno-plt"]])
def test_forms_of_debug_info(options: list[str], tmp_path: Path) -> None:
    made = _compile(tmp_path, *options)
    assert [p[0] for p in _shapes(_parameters(made, "many"))] == list("abcdefg")


def test_debug_info_of_a_stripped_file(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debugfile, "DEBUG_DIR", tmp_path / "none")
    stripped, debug = tmp_path / "stripped.so", tmp_path / "lead.debug"
    subprocess.run(["objcopy", "--only-keep-debug", library, debug], check=True)
    subprocess.run(["strip", "-o", stripped, library], check=True)
    assert _parameters(stripped, "plain") == "the file has no debug info that tells its parameters"
    subprocess.run(["objcopy", f"--add-gnu-debuglink={debug}", stripped], check=True)
    assert _shapes(_parameters(stripped, "plain")) == _shapes(_parameters(library, "plain"))


def test_debian_debug_files_work(tmp_path: Path) -> None:
    """The C library's: a debug file that shares its strings with others (dwz)."""
    from datacrumbs.probes.elf import find_binary

    libc = find_binary("libc.so.6", MACHINE)
    if _parameters(libc, "fsync") == "the file has no debug info that tells its parameters":
        assert not list(Path("/usr/lib/debug/.build-id").glob("*/*"))
    else:
        assert _shapes(_parameters(libc, "fsync")) == [("fd", 0, INT, 4)]


# --- the kernel's types


def test_kernel_parameters_are_those_of_this_kernel() -> None:
    vfs_read = kernel_types().parameters("vfs_read")
    assert [p.name for p in vfs_read] == ["file", "buf", "count", "pos"]
    assert [(p.register, p.type, p.size, p.pointer) for p in vfs_read] == [
        (0, UINT, 8, True),
        (1, UINT, 8, True),
        (2, UINT, 8, False),
        (3, UINT, 8, True),
    ]
    (flags,) = [p for p in kernel_types().parameters("vfs_fsync_range") if p.name == "datasync"]
    assert (flags.type, flags.size) == (INT, 4)
    with pytest.raises(BadInputError, match="this kernel's types"):
        kernel_types().parameters("no_such_function_ever")


def test_bpftool_agrees_about_kernel_parameters() -> None:
    shown = subprocess.run(
        ["bpftool", "btf", "dump", "file", "/sys/kernel/btf/vmlinux"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    functions = dict(re.findall(r"^\[\d+\] FUNC '(ext4_\w+|vfs_\w+)' type_id=(\d+)", shown, re.M))
    prototypes = dict(re.findall(r"^\[(\d+)\] FUNC_PROTO [^\n]*\n((?:\t[^\n]*\n)*)", shown, re.M))
    assert len(functions) > 100
    for name, number in list(functions.items())[::17]:
        names = re.findall(r"^\t'([^']*)' type_id=", prototypes[number], re.M)
        assert [p.name for p in kernel_types().parameters(name)] == names, name


# --- rules


def _build(entry: str) -> Built:
    text = f"capture_probes: [{{name: a, {entry}}}]"
    return build(parse_capture_config(text.encode(), source="c.yaml"), SystemConfig())


def _of(entry: str) -> list[Argument]:
    (layer,) = _build(entry).probes.layers
    (function,) = layer.functions
    assert isinstance(function, model.UserFunction | model.KernelFunction | model.UsdtPoint)
    return function.arguments


def _entry(library: Path, regex: str, rules: str) -> str:
    return f"probe: uprobe, file: {library}, regex: '{regex}', arguments: [{rules}]"


@pytest.mark.parametrize(
    ("rule", "argument"),
    [
        ("{name: fd}", Argument(name="fd", index=0, type=INT, bytes=4)),
        ("{name: path}", Argument(name="path", index=1, type=STRING, bytes=64)),
        ("{index: 1, bytes: 200}", Argument(name="path", index=1, type=STRING, bytes=200)),
        ("{name: size, as: asked}", Argument(name="asked", index=3, type=UINT, bytes=8)),
        (
            "{name: buffer, type: bytes, bytes: 16}",
            Argument(name="buffer", index=2, type=BYTES, bytes=16),
        ),
        ("{index: 2, as: address}", Argument(name="address", index=2, type=UINT, bytes=8)),
    ],
)
def test_a_rule_takes_what_it_does_not_say_from_the_types(
    library: Path, rule: str, argument: Argument
) -> None:
    assert _of(_entry(library, "plain", rule)) == [argument]


def test_an_index_counts_parameters_and_the_probe_file_registers(library: Path) -> None:
    assert _of(_entry(library, "mixed", "{index: 3}")) == [
        Argument(name="kind", index=1, type=INT, bytes=4)
    ]


@pytest.mark.parametrize(
    ("regex", "rule", "message"),
    [
        ("plain", "{name: fdd}", "plain: has no parameter 'fdd'; its parameters: fd, path, buffer"),
        ("plain", "{index: 5}", "plain: has 5 parameters, and the first is 0"),
        ("mixed", "{name: ratio}", "mixed: a floating-point number"),
        ("many", "{name: g}", "many: parameter 6 is passed on the stack"),
        ("packed", "{name: b}", "packed: it is, or comes after, a structure passed by value"),
        ("plain", "{name: buffer, type: bytes}", "plain: give bytes"),
        ("plain", "{name: path, type: int, bytes: 3}", None),
        ("plain", "{name: fd}, {name: path, as: fd}", "plain: it has an argument 'fd' already"),
        (
            "many",
            "{name: a}, {name: b}, {name: c}, {name: d}, {name: e}, {name: f},"
            " {index: 0, as: again}",
            "many: it has 6 arguments already, which is the most",
        ),
    ],
)
def test_a_rule_that_gives_nothing_is_an_error(
    library: Path, regex: str, rule: str, message: str | None
) -> None:
    with pytest.raises(BadInputError) as caught:
        _build(_entry(library, regex, rule))
    assert re.match(r"c\.yaml:1: capture_probes\[0\]\.arguments\[\d\]", caught.value.message)
    assert message is None or message in caught.value.message


def test_functions_that_have_no_such_parameter_are_told_of(library: Path) -> None:
    built = _build(_entry(library, "plain|many|mixed", "{name: fd}, {function: many, name: a}"))
    assert (
        built.layers[0]
        .notes[-1]
        .startswith("arguments[0]: not captured for 2 of 3 functions, such as ")
    )
    (layer,) = built.probes.layers
    captured = {f.name: [a.name for a in f.arguments] for f in layer.functions}  # type: ignore[union-attr]
    assert captured == {"plain": ["fd"], "many": ["a"], "mixed": []}
    with pytest.raises(BadInputError, match="'none' matches none of the entry's functions"):
        _build(_entry(library, "plain", "{function: none, name: fd}"))


def test_without_types_a_rule_says_everything(library: Path, tmp_path: Path) -> None:
    stripped = tmp_path / "s.so"
    subprocess.run(["strip", "-o", stripped, library], check=True)
    assert _of(_entry(stripped, "plain", "{index: 3, type: uint, bytes: 8, as: size}")) == [
        Argument(name="size", index=3, type=UINT, bytes=8)
    ]
    assert _of(_entry(stripped, "plain", "{index: 1, type: string}")) == [
        Argument(name="arg1", index=1, type=STRING, bytes=64)
    ]
    for rule, message in {
        "{name: fd}": "plain: the file has no debug info",
        "{index: 3}": "plain: give type and bytes: the file has no debug info",
        "{index: 3, type: uint}": "plain: give bytes",
        "{index: 6, type: uint, bytes: 8}": "plain: parameter 6 is passed on the stack",
    }.items():
        with pytest.raises(BadInputError, match=re.escape(message)):
            _build(_entry(stripped, "plain", rule))


def test_kernel_arguments_come_from_btf() -> None:
    entry = "probe: kprobe, type: ksym, regex: vfs_read, arguments: [{name: count, as: asked}]"
    assert _of(entry) == [Argument(name="asked", index=2, type=UINT, bytes=8)]


def test_a_daemon_drops_what_is_no_number_on_its_own_kernel() -> None:
    count = Argument(name="count", index=2, type=UINT, bytes=8)
    file = Argument(name="file", index=0, type=UINT, bytes=8)
    layers = [
        model.SyscallLayer(name="s", functions=["read"]),
        model.KernelLayer(
            name="k",
            functions=[
                model.KernelFunction(name="vfs_read", arguments=[count]),
                model.KernelFunction(name="vfs_write", arguments=[count, file]),
                model.KernelFunction(name="vfs_of_another_kernel", arguments=[count]),
            ],
        ),
    ]
    built = _build("probe: syscalls, type: set, set: io").probes
    probes, lost = numbers_only(msgspec.structs.replace(built, layers=layers))
    kernel = probes.layers[1]
    assert isinstance(kernel, model.KernelLayer)
    assert [(f.name, f.arguments) for f in kernel.functions] == [
        ("vfs_read", [count]),
        ("vfs_write", []),
        ("vfs_of_another_kernel", []),
    ]
    assert [entry[:2] for entry in lost] == [("k", "vfs_write"), ("k", "vfs_of_another_kernel")]
    assert "'file' is not a number" in lost[0][2] and "types (BTF) do not have it" in lost[1][2]
    assert numbers_only(built) == (built, [])


def test_usdt_arguments_come_from_the_note() -> None:
    entry = (
        "probe: usdt, binary_path: /usr/bin/python3, provider: python, regex: function__entry, "
        "arguments: [{index: 0, type: string, bytes: 128, as: file}, {index: 2, as: line}]"
    )
    assert _of(entry) == [
        Argument(name="file", index=0, type=STRING, bytes=128),
        Argument(name="line", index=2, type=INT, bytes=4),
    ]


@settings(max_examples=40)
@given(data=st.data())
def test_damaged_debug_info_is_a_reason_not_a_crash(
    data: st.DataObject, library: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    headers = subprocess.run(
        ["readelf", "-SW", library], capture_output=True, text=True, check=True
    ).stdout
    spans = re.findall(r"\.debug_(?:info|abbrev)\s+PROGBITS\s+\w+ (\w+) (\w+)", headers)
    assert len(spans) == 2
    image = bytearray(library.read_bytes())
    for _ in range(data.draw(st.integers(1, 20))):
        start, size = (int(part, 16) for part in data.draw(st.sampled_from(spans)))
        image[start + data.draw(st.integers(0, size - 1))] = data.draw(st.integers(0, 255))
    damaged = tmp_path_factory.getbasetemp() / "damaged.so"
    damaged.write_bytes(image)
    found = _parameters(damaged, "plain")
    assert "\n" not in found if isinstance(found, str) else len(found) < 100
