"""datacrumbs_probe_configurator: what it builds, reports and refuses (nothing is signed here)."""

from __future__ import annotations

import json
import os
import platform
import pwd
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datacrumbs.cli.probe_configurator import main
from datacrumbs.config import Limits, SystemConfig
from datacrumbs.errors import BadInputError
from datacrumbs.probes.build import Built, build, near_hint
from datacrumbs.probes.capture import parse_capture_config
from datacrumbs.probes.model import (
    SOURCE_MAX,
    CustomLayer,
    KernelLayer,
    SyscallLayer,
    UsdtLayer,
    UserLayer,
    decode,
    encode,
)
from datacrumbs.probes.status import refusals, remember
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


def _built(tmp_path: Path, text: str, system: SystemConfig | None = None) -> Built:
    path = tmp_path / "c.yaml"
    return build(parse_capture_config(text.encode(), source=str(path)), system or SystemConfig())


def test_kernel_functions_come_by_symbol_and_by_header(tmp_path: Path) -> None:
    header = tmp_path / "pagemap.h"
    header.write_text(
        "struct folio *filemap_alloc_nothing(void);\n"
        "int filemap_fault(struct vm_fault *vmf);\nvoid schedule(void);\n"
        "static inline void *inlined(void) { return filemap_fdatawait(); }\n"
    )
    built = _built(
        tmp_path,
        "capture_probes:\n"
        "  - {name: vfs, probe: kprobe, type: ksym, regex: vfs_(read|write), max_per_s: 5}\n"
        f"  - {{name: pages, probe: kprobe, type: header, file: {header}, min_duration: 2us}}\n",
    )
    vfs, pages = built.probes.layers
    assert isinstance(vfs, KernelLayer) and isinstance(pages, KernelLayer)
    assert [f.name for f in vfs.functions] == ["vfs_read", "vfs_write"]
    assert (vfs.max_per_s, vfs.min_duration_ns) == (5, 0)
    assert [f.name for f in pages.functions] == ["filemap_fault"]
    assert (pages.max_per_s, pages.min_duration_ns) == (0, 2000)
    inline = "not a function of this kernel (inline, or not built in)"
    assert built.layers[1].skipped == [
        ("filemap_alloc_nothing", inline),
        ("inlined", inline),
        ("schedule", "this site does not allow it (policy.kernel_functions)"),
    ]


def test_tracepoints_come_by_name_with_or_without_their_group(tmp_path: Path) -> None:
    built = _built(
        tmp_path,
        "capture_probes:\n"
        "  - {name: fs, probe: kprobe, type: tracepoint, regex: 'ext4_sync_file|jbd2:.*commit'}\n"
        "  - {name: x, probe: kprobe, type: tracepoint, regex: 'sched_switch|block_rq'}\n",
    )
    fs, block = built.probes.layers
    assert [f.name for f in fs.functions] == [  # type: ignore[union-attr]
        "ext4:ext4_sync_file",
        "jbd2:jbd2_end_commit",
        "jbd2:jbd2_start_commit",
    ]
    assert [f.name for f in block.functions] == ["block:block_rq"]  # type: ignore[union-attr]
    assert built.layers[1].skipped == [
        ("sched:sched_switch", "this site does not allow it (policy.kernel_functions)")
    ]


def test_usdt_points_become_calls_by_pairs(tmp_path: Path) -> None:
    entry = "probe: usdt, binary_path: /usr/bin/python3, provider: python"
    pair = "pairs: {function__entry: function__return}"
    built = _built(
        tmp_path,
        f"capture_probes:\n  - {{name: calls, {entry}, {pair}}}\n"
        f"  - {{name: gc, {entry}, regex: gc.*, mode: profile}}\n"
        f"  - {{name: rest, {entry}, {pair}, regex: .*}}\n",
    )
    calls, gc, rest = built.probes.layers
    assert isinstance(calls, UsdtLayer) and isinstance(gc, UsdtLayer)
    assert [(p.name, p.returns) for p in calls.functions] == [
        ("function__entry", "function__return")
    ]
    assert [(p.name, p.returns) for p in gc.functions] == [("gc__done", None), ("gc__start", None)]
    assert "function__return" not in [p.name for p in rest.functions]  # type: ignore[union-attr]
    assert ("function__entry", "already in layer calls") in built.layers[2].skipped
    assert calls.binary == str(Path("/usr/bin/python3").resolve())
    assert calls.build_id or calls.digest


def test_libraries_found_for_the_user_are_a_layer_each(tmp_path: Path) -> None:
    text = (
        "capture_probes: [{name: c, probe: uprobe, from: command /usr/bin/python3, "
        "file: 'lib(c|m|z)[.]so.*', regex: 'cos|sin|fsync|crc32|adler32'}]"
    )
    built = _built(tmp_path, text)
    layers = {layer.name: [f.name for f in layer.functions] for layer in built.probes.layers}  # type: ignore[union-attr]
    assert layers == {"c.c": ["fsync"], "c.z": ["adler32", "crc32"]}
    sole = _built(tmp_path, text.replace("(c|m|z)", "c"))
    assert [layer.name for layer in sole.probes.layers] == ["c"]


def test_a_custom_program_is_in_the_probe_file(tmp_path: Path) -> None:
    (tmp_path / "mine.bpf.c").write_text("int x;\n\tint y;\n")
    text = "capture_probes: [{name: a, probe: custom, file: FILE, functions: [reads, writes]}]"
    built = _built(tmp_path, text.replace("FILE", "mine.bpf.c"))
    (layer,) = built.probes.layers
    assert isinstance(layer, CustomLayer)
    assert (layer.functions, layer.source) == (["reads", "writes"], "int x;\n\tint y;\n")
    for content, message in {
        b"": "empty",
        b"\xff": "not a text in UTF-8",
        b"int x;\r\n": "bad.c:1: a character that cannot be printed",
        b"a\n\x1b[2J": "bad.c:2: a character that cannot be printed",
        b"a" * (SOURCE_MAX + 1): "longer than 262144 characters",
    }.items():
        (tmp_path / "bad.c").write_bytes(content)
        with pytest.raises(BadInputError, match=re.escape(message)):
            _built(tmp_path, text.replace("FILE", "bad.c"))


def test_paths_are_those_that_the_kernel_sees(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    text = (
        f"paths: {{include: [{tmp_path}/link, /scratch/], exclude: [{tmp_path}]}}\n"
        "capture_probes: [{name: a, probe: syscalls, type: set, set: io}]\n"
    )
    built = _built(tmp_path, text)
    assert built.probes.include == [f"{tmp_path}/real", "/scratch"]
    assert built.probes.exclude == [str(tmp_path)]
    assert built.notes == [f"paths: {tmp_path}/link is a link: it stands for {tmp_path}/real"]


@pytest.fixture
def refused(tmp_path: Path) -> SystemConfig:
    """A host on which fsync of the C library and vfs_read are known not to attach."""
    system = SystemConfig(state_dir=str(tmp_path / "state"))
    text = (
        "capture_probes:\n  - {name: c, probe: uprobe, file: libc.so.6, regex: fsync}\n"
        "  - {name: k, probe: kprobe, type: ksym, regex: vfs_read}\n"
    )
    probes = _built(tmp_path, text, system).probes
    reason = "Invalid argument"
    remember(
        Path(system.state_dir),
        refusals(probes, [("c", "fsync", reason), ("k", "vfs_read", reason)]),
    )
    return system


def test_what_is_known_not_to_attach_is_left_out(tmp_path: Path, refused: SystemConfig) -> None:
    text = (
        "capture_probes:\n  - {name: c, probe: uprobe, file: libc.so.6, regex: 'f(data)?sync'}\n"
        "  - {name: k, probe: kprobe, type: ksym, regex: 'vfs_(read|write)'}\n"
    )
    built = _built(tmp_path, text, refused)
    reason = "known not to attach on this host: Invalid argument"
    assert [layer.skipped for layer in built.layers] == [
        [("fsync", reason)],
        [("vfs_read", reason)],
    ]
    assert [layer.functions for layer in built.layers] == [1, 1]
    Path(refused.state_dir, "status.sqlite").write_bytes(b"no database" * 1000)
    built = _built(tmp_path, text, refused)
    assert [layer.functions for layer in built.layers] == [2, 2]
    assert built.notes[0].startswith("what is known not to attach cannot be read: ")


def test_what_is_known_can_be_seen_and_reset(
    run: Run, tmp_path: Path, refused: SystemConfig
) -> None:
    system = tmp_path / "system.yaml"
    system.write_text(f"state_dir: {refused.state_dir}\n")
    system.chmod(0o644)
    code, out, _ = run("--show-skipped", "--config", system)
    kernel, libc = out.splitlines()
    assert code == 0
    assert kernel.endswith(f" {platform.release()} kernel vfs_read: Invalid argument")
    assert re.search(r" [0-9a-f]{16} fsync at 0x[0-9a-f]+: Invalid argument$", libc)
    code, out, _ = run("--show-skipped", "--config", system, "--format", "json")
    assert [entry["name"] for entry in json.loads(out)] == ["vfs_read", "fsync"]
    assert run("--reset-skipped", "--config", system) == (0, "forgotten: 2\n", "")
    assert run("--show-skipped", "--config", system) == (0, "none is known\n", "")


def test_objects_are_listed(run: Run) -> None:
    code, out, _ = run("--list-objects", "command /bin/ls")
    assert code == 0
    assert re.search(r"^libc\.so\.6 +/\S+/libc\.so\.6$", out, re.MULTILINE)
    code, out, _ = run("--list-objects", "command /bin/ls", "--format", "json")
    assert "libc.so.6" in [item["name"] for item in json.loads(out)["objects"]]
    code, _, err = run("--list-objects", "comand /bin/ls")
    assert code == 2
    assert "did you mean 'command'?" in err


def test_one_thing_at_a_time(run: Run) -> None:
    for arguments in (
        ("--list-objects", "ldconfig", "x.yaml"),
        ("--show-skipped", "--reset-skipped"),
    ):
        code, _, err = run(*arguments)
        assert code == 2 and "go alone, without CONFIG" in err
    code, _, err = run("--dry-run")
    assert code == 2 and "CONFIG is missing" in err


def test_thousands_of_functions_take_seconds(tmp_path: Path) -> None:
    entries = "".join(
        f"  - {{name: {name}, probe: uprobe, file: {file}, regex: .*, include_offsets: true}}\n"
        for name, file in {"cpp": "libstdc++.so.6", "c": "libc.so.6"}.items()
    )
    before = time.monotonic()
    built = _built(tmp_path, "capture_probes:\n" + entries)
    assert built.probes.probe_count() > 7000
    assert time.monotonic() - before < 20


def test_notes_are_shown_once_with_all_their_layers(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    entry = "probe: uprobe, file: libstdc++.so.6, regex: _ZNSo"
    config.write_text(
        f"capture_probes: [{{name: a, {entry}5writeEPKcl}}, {{name: b, {entry}5flushEv}}]"
    )
    code, out, _ = run(config, "--dry-run")
    assert code == 0
    assert [line[:12] for line in out.splitlines() if line.startswith("note")] == ["note: a, b: "]


@pytest.mark.parametrize(
    "name",
    [
        "kernel.yaml",
        "hdf5-mpi.yaml",
        "python-usdt.yaml",
        "profile.yaml",
        "request_latency.yaml",
    ],
)
def test_the_other_examples_find_what_they_promise(run: Run, tmp_path: Path, name: str) -> None:
    program = tmp_path / "my_program"
    _fake_hdf5_program(tmp_path, program)
    config = tmp_path / name
    shutil.copy(EXAMPLES / "request_latency.c", tmp_path)
    config.write_text((EXAMPLES / name).read_text().replace("./my_program", str(program)))
    code, out, err = run(config, "--dry-run", "--format", "json")
    assert (code, err) == (0, "")
    names = {layer["name"]: layer["names"] for layer in json.loads(out)["layers"]}
    expected = {
        "kernel.yaml": {"vfs": "vfs_read", "block": "submit_bio", "device": "block:block_rq"},
        "hdf5-mpi.yaml": {"hdf5": "H5Dwrite", "mpi-io": "MPI_File_write_at_all"},
        "python-usdt.yaml": {"python": "function__entry"},
        "profile.yaml": {"libc": "fread", "syscall": "read"},
        "request_latency.yaml": {"device": "write_request"},
    }[name]
    assert all(function in names[layer] for layer, function in expected.items()), names


def _fake_hdf5_program(directory: Path, program: Path) -> None:
    """A program linked to libraries of these names: what the examples choose by."""
    for name, function in {"hdf5": "H5Dwrite", "mpi": "MPI_File_write_at_all"}.items():
        command = ["cc", "-x", "c", "-shared", "-fPIC", "-o", directory / f"lib{name}.so", "-"]
        subprocess.run(command, input=f"int {function}(void){{return 0;}}".encode(), check=True)
    linked = [f"-L{directory}", f"-Wl,--no-as-needed,-rpath,{directory}", "-lhdf5", "-lmpi"]
    command = ["cc", "-x", "c", "-o", program, "-", *linked]
    subprocess.run(command, input=b"int main(void){return 0;}", check=True)


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
            ENTRY.replace("file: libc.so.6", "from: command /bin/ls, file: libz.*"),
            "c.yaml:1: capture_probes[0].file: 'libz.*' matches none of the ",
            "there are: ld-linux",
        ),
        (
            "capture_probes: [{name: a, probe: usdt, binary_path: libc.so.6, provider: lead}]",
            "c.yaml:1: capture_probes[0].binary_path: /usr/lib/",
            "it has no USDT points",
        ),
        (
            "capture_probes: [{name: a, probe: usdt, binary_path: /usr/bin/python3, provider: py}]",
            "c.yaml:1: capture_probes[0].binary_path: /usr/bin/python3",
            "its providers: python",
        ),
        (
            "capture_probes: [{name: a, probe: usdt, binary_path: /usr/bin/python3, "
            "provider: python, regex: lines}]",
            "c.yaml:1: capture_probes[0].regex: 'lines' matches none of the ",
            "near names: line",
        ),
        (
            "capture_probes: [{name: a, probe: usdt, binary_path: /usr/bin/python3, "
            "provider: python, pairs: {line: lines}}]",
            "c.yaml:1: capture_probes[0].pairs: 'lines' is no point of this provider",
            "its points: audit, function__entry",
        ),
        (
            "capture_probes: [{name: a, probe: kprobe, type: ksym, regex: vfs_raed}]",
            "c.yaml:1: capture_probes[0].regex: 'vfs_raed' matches none of the ",
            "near names: vfs_re",
        ),
        (
            "capture_probes: [{name: a, probe: kprobe, type: ksym, regex: schedule}]",
            "c.yaml:1: capture_probes[0].regex: 'schedule': nothing is left to probe",
            "",
        ),
        (
            "capture_probes: [{name: a, probe: kprobe, type: header, file: linux/none.h}]",
            "c.yaml:1: capture_probes[0].file: linux/none.h: no such header in ",
            "use type: ksym, which needs none",
        ),
        (
            "capture_probes: [{name: a, probe: custom, file: none.bpf.c, functions: [f]}]",
            "c.yaml:1: capture_probes[0].file: ",
            "",
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
