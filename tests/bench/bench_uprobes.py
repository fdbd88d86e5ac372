"""What probes on user functions cost: to attach and detach many, and per call; as root.

    .venv/bin/python tests/bench/bench_uprobes.py [--json] [--functions 8723]

Probes go to private copies of real libraries, so that no other process of the host pays, and no
other process's memory makes attaching slower than it is for libraries nobody has mapped.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from kernel.tracing import LIBRARY, RUN_ID

from datacrumbs.probes.elf import find_binary, read_functions
from datacrumbs.tracer import arguments, layout, usdt
from datacrumbs.tracer.libbpf import OBJECT_PATH, Object
from datacrumbs.tracer.placement import Code
from datacrumbs.tracer.rings import EventRing
from datacrumbs.tracer.user_functions import Attacher, Mechanism, Probe, attach_client, prepare

HERE = Path(__file__).parent
MACHINE = os.uname().machine
LIBRARIES = ("libhdf5_openmpi.so.103", "libmpi.so.40", "libopen-pal.so.40", "libcrypto.so.3")
FUNCTIONS = {"read": "read", "write": "write", "open": "open", "pread": "pread64", "fread": "fread"}
CALLS, RING_BYTES = 20_000, 64 << 20


@contextmanager
def tracer(mechanism: Mechanism) -> Iterator[tuple[Object, EventRing]]:
    """Loaded programs that trace root's processes, and their ring."""
    bpf = Object(OBJECT_PATH, log=print)
    config = bpf.memory(".rodata.config", layout.Config)
    config.uid, config.run_id = 0, RUN_ID.encode()
    config.ns_inum = Path("/proc/self/ns/pid").stat().st_ino
    for function in config.functions:
        function.select = layout.JOINED
    bpf.set_entries("rings", 1)
    prepare(bpf, mechanism)
    usdt.prepare(bpf, [], mechanism)
    arguments.reserve(bpf, {})
    bpf.load()
    (fd,) = bpf.add_rings("rings", 1, RING_BYTES)
    ring = EventRing(fd, RING_BYTES)
    os.close(fd)
    try:
        yield bpf, ring
    finally:
        bpf.detach()


def copies(work: Path) -> list[Path]:
    """Copies of the libraries; those that are not installed are named and left out."""
    found = []
    for name in LIBRARIES:
        try:
            source = find_binary(name, MACHINE)
        except Exception as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        found.append(Path(shutil.copy(source, work / name)))
    return found


def probes_of(path: Path, *, placed: bool = True) -> tuple[list[Probe], float]:
    """A probe for each function of a library, and how long it took to say where, in ms."""
    offsets = [f.offset for f in read_functions(path, re.compile(".*"), MACHINE).functions]
    fd = os.open(path, os.O_RDONLY)
    start = time.perf_counter()
    code = Code(fd)
    sound = [offset for offset in offsets if offset in code.starts]
    places = code.places((o, False) for o in sound) if placed else dict.fromkeys(sound, 0)
    ms = (time.perf_counter() - start) * 1e3
    os.close(fd)
    return [Probe(1 + i % 65000, hex(o), places[o] or o) for i, o in enumerate(sound)], ms


def many(work: Path, wanted: int) -> dict[str, dict[str, float]]:
    """Attach and detach ``wanted`` functions, best of 5, by each mechanism for many."""
    chosen: list[tuple[Path, list[Probe]]] = []
    left, placing_ms = wanted, 0.0
    for path in copies(work):
        probes, ms = probes_of(path)
        chosen.append((path, probes[:left]))
        placing_ms += ms
        left -= len(probes[:left])
    table = {}
    for mechanism in (Mechanism.SESSION, Mechanism.MULTI):
        rounds = []
        with tracer(mechanism) as (bpf, _):
            for _ in range(5):
                start = time.perf_counter()
                failed = sum(
                    len(list(Attacher(bpf, path, mechanism).attach(probes)))
                    for path, probes in chosen
                    if probes
                )
                middle = time.perf_counter()
                bpf.detach()
                rounds.append((middle - start, time.perf_counter() - middle))
        table[mechanism.value] = {
            "functions": wanted - left,
            "failed": failed,
            "attach_ms": min(r[0] for r in rounds) * 1e3,
            "detach_ms": min(r[1] for r in rounds) * 1e3,
        }
    return table | {"placing": {"ms": placing_ms}}


def per_call(work: Path) -> dict[str, dict[str, float]]:
    """ns per call of a C library function: by mechanism and place, traced and not."""
    library = Path(shutil.copy(find_binary("libc.so.6", MACHINE), work / "libc.so.6"))
    found = read_functions(library, re.compile(".*"), MACHINE).functions
    offsets = {name: f.offset for f in found for name in (f.name, *f.aliases)}
    program = work / "uprobes"
    subprocess.run(["cc", "-O2", "-w", "-o", program, HERE / "uprobes.c"], check=True)
    interpreter = work / "ld.so"
    shutil.copy(next(Path("/lib64").glob("ld-linux-*.so.*")), interpreter)

    def measure(case: str, *, joins: bool) -> float:
        variables = {"DATACRUMBS_RUN_ID": RUN_ID}
        command = [interpreter, "--library-path", work]
        command += ["--preload", LIBRARY] if joins else []
        done = subprocess.run(
            [*command, program, case, str(CALLS)],
            env=variables,
            capture_output=True,
            text=True,
            check=True,
        )
        return float(done.stdout)

    table: dict[str, dict[str, float]] = {
        "no probe": {case: measure(case, joins=False) for case in FUNCTIONS}
    }
    fd = os.open(library, os.O_RDONLY)
    places = Code(fd).places((offsets[symbol], False) for symbol in FUNCTIONS.values())
    os.close(fd)
    for mechanism in Mechanism:
        for placed in (False, True):
            with tracer(mechanism) as (bpf, ring):
                attach_client(bpf, LIBRARY)
                for event in ("on_fork", "on_exec"):
                    bpf.attach(event)
                for joins in (True, False):
                    row = f"{mechanism}, {'placed' if placed else 'first'}"
                    row += ", traced" if joins else ", not traced"
                    table[row] = {}
                    for case, symbol in FUNCTIONS.items():
                        start = offsets[symbol]
                        probe = Probe(1, case, places[start] if placed else start)
                        before = bpf.attached()
                        if error := list(Attacher(bpf, library, mechanism).attach([probe])):
                            sys.exit(f"{case}: {error}")
                        table[row][case] = measure(case, joins=joins)
                        bpf.detach(before)
                        seen: list[int] = []
                        ring.drain(lambda batch, seen=seen: seen.append(len(batch)))
                        if joins and sum(seen) < CALLS * 5:
                            sys.exit(f"{row}, {case}: {sum(seen)} events")
    return table


def show(table: dict[str, dict[str, dict[str, float]]]) -> None:
    """Both tables as Markdown; the second has what each probe adds to a call."""
    for name, row in table["many"].items():
        print(f"{name}: " + ", ".join(f"{key} {value:.1f}" for key, value in row.items()))
    cases = list(FUNCTIONS)
    print(
        "\n| ns added per call | " + " | ".join(cases) + " |\n|---" * 1 + "|---" * len(cases) + "|"
    )
    base = table["per_call"]["no probe"]
    for name, row in table["per_call"].items():
        added = {c: row[c] - (0 if name == "no probe" else base[c]) for c in cases}
        print(f"| {name} | " + " | ".join(f"{added[c]:,.0f}" for c in cases) + " |")


def main() -> None:
    """Parse options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--functions", type=int, default=8723, help="how many to attach at once")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="datacrumbs-bench-", dir="/var/tmp"))
    try:
        table = {"many": many(work, options.functions), "per_call": per_call(work)}
    finally:
        shutil.rmtree(work)
    if options.json:
        print(json.dumps(table, indent=2))
    else:
        show(table)


if __name__ == "__main__":
    main()
