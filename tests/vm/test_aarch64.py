"""The daemon on stock arm64 kernels: exact counts, and moved probes see what unmoved ones do."""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from kernel.tracing import Trace, TracedRun, make_site, user_layer
from unit.assembled import code_of, compile_aarch64, offsets
from vm import aarch64
from vm.conftest import missed, until_alive
from vm.kernels import ARM, get_kernel
from vm.machine import run_in

from datacrumbs.probes import model

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

HERE = Path(__file__).parent
TIMEOUT_S = 300.0
KERNELS = {"6.1": "uprobe", "7": "uprobe.session"}
LIBC = "lib/aarch64-linux-gnu/libc.so.6"

PLACED, UNPLACED, ALL = "placed", "unplaced", "all"
"""Sites: the daemon moves probes; it does not; it has probes in all of the C library, too."""

CALLS, BYTES, SECOND = 23, 4097, 7
RESULTS = {
    "compares": [abs(a - SECOND) for a in range(CALLS)],
    "tests_bit": [a % 2 * 5 for a in range(CALLS)],
    "finds_page": [a + SECOND for a in range(CALLS)],
    "adds": [a + 3 for a in range(CALLS)],
    "jumps": [abs(a - SECOND) for a in range(CALLS)],
    "recurs": [2 * a for a in range(CALLS)],
    "saves": [abs(a - SECOND) for a in range(CALLS)],
    "signs": [a + 3 for a in range(CALLS)],
}
"""What the program's calls return, without those that its functions make of each other."""

PLACES = dict.fromkeys(RESULTS, 4) | dict.fromkeys(("saves", "signs"), 0)
INSIDE = {"compares": 3 * CALLS, "adds": 2 * CALLS, "recurs": CALLS * (CALLS + 1) // 2}
"""Where functions call each other: all calls. `recurs` calls itself."""

KEPT_OF = ("compares", "recurs")
MARKED = [
    {"memory": 33, "register": -1000 - n, "stack": n, "indexed": -n, "constant": 77, "int": -9}
    for n in range(CALLS)
]
"""Arguments of the USDT point, by where they are."""

SYSTEM_CALLS = ["openat", "write", "fsync", "close"]
KERNEL_FUNCTIONS = ["vfs_write", "vfs_fsync_range"]


@dataclass(frozen=True, slots=True)
class Guest:
    """A kernel, the runs that it made by site, and the program that ran."""

    kernel: str
    runs: dict[str, TracedRun]
    program: Path

    def traces(self) -> Iterator[tuple[str, Trace]]:
        """Of all sites; nothing is lost but programs that the kernel did not run."""
        for site, run in self.runs.items():
            yield site, run.trace(lost=missed(self.kernel, run))

    def said(self, site: str) -> dict[str, tuple[int, int]]:
        """By function: where its breakpoint was, and the sum of what its calls returned."""
        lines = (self.runs[site].root / "said").read_text().splitlines()
        return {name: (int(at), int(total)) for name, at, total in map(str.split, lines)}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """datacrumbs for aarch64, to be copied."""
    target = tmp_path_factory.mktemp("aarch64") / "installed"
    aarch64.install(target)
    return target


@pytest.fixture(scope="module", params=KERNELS)
def guest(request: pytest.FixtureRequest, built: Path) -> Iterator[Guest]:
    """A kernel, after the program ran on each of its sites."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to share files with virtual machines: run the tests as root")
    with contextlib.ExitStack() as kept:
        yield until_alive(functools.partial(_run, request.param, built), kept)


def _run(kernel: str, built: Path, shared: Path) -> Guest:
    installed, program = shared / "installed", shared / "program"
    shutil.copytree(built, installed)
    compile_aarch64(program, (HERE / "placed.c").read_text(), "-O2")
    script = shutil.copy(HERE / "guest_aarch64.py", shared)
    root = aarch64.root_file_system()
    names = (PLACED, UNPLACED, ALL) if KERNELS[kernel] != "uprobe" else (PLACED, UNPLACED)
    runs = {name: _site(shared / name, installed, program, root) for name in names}
    path = f"PYTHONPATH=/{aarch64.WHEELS_AT}:{installed / 'python'}"
    command = ["env", path, "python3", script, installed, program, *(r.root for r in runs.values())]
    run_in(
        get_kernel(kernel, ARM),
        [*map(str, command)],
        shared=shared,
        timeout_s=TIMEOUT_S,
        root=root,
    )
    return Guest(kernel, runs, program)


def _site(site: Path, installed: Path, program: Path, root: Path) -> TracedRun:
    site.mkdir()
    run = make_site(site, pwd.getpwnam("nobody"))
    with open(site / "system.yaml", "a") as file:
        file.write(f"client_library: {installed}/lib/datacrumbs/libdatacrumbs_client.so\n")
    libc_names = ".*" if site.name == ALL else "write|fsync"
    libc = user_layer("libc", root / LIBC, libc_names, machine=aarch64.MACHINE)
    run.sign(
        *_layers_of(program),
        msgspec.structs.replace(libc, binary=f"/{LIBC}"),
        model.SyscallLayer(name="syscall", functions=SYSTEM_CALLS),
        model.KernelLayer(
            name="kernel", functions=[model.KernelFunction(name=n) for n in KERNEL_FUNCTIONS]
        ),
        machine=aarch64.MACHINE,
    )
    return run


def _layers_of(program: Path) -> tuple[model.UserLayer, model.UsdtLayer]:
    app = user_layer("app", program, "|".join(RESULTS), machine=aarch64.MACHINE)
    kept = numbers("a", "b")
    functions = [
        msgspec.structs.replace(f, arguments=kept) if f.name in KEPT_OF else f
        for f in app.functions
    ]
    mark = model.UsdtPoint(provider="placed", name="mark", arguments=numbers(*MARKED[0]))
    points = model.UsdtLayer(
        name="usdt",
        binary=str(program),
        functions=[mark],
        build_id=app.build_id,
        digest=app.digest,
    )
    return msgspec.structs.replace(app, functions=functions), points


def numbers(*names: str) -> list[model.Argument]:
    """The first arguments, all signed numbers."""
    kind = model.ArgumentType.INT
    return [model.Argument(name=name, index=i, type=kind) for i, name in enumerate(names)]


def test_probes_are_where_placement_puts_them(guest: Guest) -> None:
    starts, code = offsets(guest.program, aarch64.MACHINE), code_of(guest.program)
    places = code.places((starts[name], name in KEPT_OF) for name in RESULTS)
    assert {name: places[starts[name]] - starts[name] for name in RESULTS} == PLACES
    for site in guest.runs:
        found = {name: at for name, (at, _) in guest.said(site).items()}
        assert found == (PLACES if site != UNPLACED else dict.fromkeys(RESULTS, 0)), site


def test_the_program_comes_to_its_results(guest: Guest) -> None:
    expected = {name: sum(results) for name, results in RESULTS.items()}
    for site in guest.runs:
        assert {name: total for name, (_, total) in guest.said(site).items()} == expected, site


def test_every_call_is_there_once_with_its_result(guest: Guest) -> None:
    for site, trace in guest.traces():
        for name, results in RESULTS.items():
            rows = trace.calls("ret, flags & 1", f"name = '{name}'")
            assert len(rows) == INSIDE.get(name, CALLS), (site, name)
            assert {flags for _, flags in rows} == {0}, (site, name)
            if name not in INSIDE:
                assert [ret for ret, _ in rows] == results, (site, name)
            else:
                assert {ret for ret, _ in rows} == set(results), (site, name)


def test_moved_probes_see_the_arguments(guest: Guest) -> None:
    for site, trace in guest.traces():
        rows = trace.sql(
            "SELECT c.name, a.name, a.value, count(*) FROM arguments a JOIN calls c "
            "USING (ts, tid) WHERE c.name IN ('compares', 'recurs') GROUP BY ALL"
        )
        found = {(function, name, value): count for function, name, value, count in rows}
        compared = {("compares", "a", a): 3 for a in range(CALLS)}
        recurring = {("recurs", "a", a): CALLS - a for a in range(CALLS)}
        seconds = {("compares", "b", SECOND): 3 * CALLS, ("recurs", "b", SECOND): INSIDE["recurs"]}
        assert found == compared | recurring | seconds, site


def test_arguments_of_a_usdt_point(guest: Guest) -> None:
    for site, trace in guest.traces():
        rows = trace.sql(
            "SELECT c.ts, a.name, a.value FROM arguments a JOIN calls c USING (ts, tid) "
            "WHERE c.name = 'placed:mark' ORDER BY c.ts"
        )
        found: dict[int, dict[str, int]] = {}
        for ts, name, value in rows:
            found.setdefault(ts, {})[name] = value
        assert list(found.values()) == MARKED, site


def test_every_layer_sees_the_writes(guest: Guest) -> None:
    for site, trace in guest.traces():
        calls = trace.calls(
            "name, size, ret, pos", f"path = '/dev/shm/{site}' AND name LIKE '%write'"
        )
        for name in ("write", "vfs_write"):
            found = [row[1:] for row in calls if row[0] == name]
            assert found == [(BYTES, BYTES, n * BYTES) for n in range(CALLS)], (site, name)
        libc = "name = 'write' AND fd = -1 AND ret = ?"
        assert len(trace.calls("ret", libc, BYTES)) == CALLS, site
        assert len(trace.calls("ret", "name = 'fsync'")) == 2, site


def test_the_mechanisms_are_the_best_the_kernel_has(guest: Guest) -> None:
    for site, run in guest.runs.items():
        info = run.info()
        found = {m["layer"]: (m["mechanism"], m["functions"]) for m in info["mechanisms"]}
        assert found["app"] == (KERNELS[guest.kernel], len(RESULTS)), site
        assert found["libc"][0] == KERNELS[guest.kernel], site
        assert found["libc"][1] > (2000 if site == ALL else 1), site
        assert [row for row in info["skipped"] if row["layer"] != "libc"] == [], site
