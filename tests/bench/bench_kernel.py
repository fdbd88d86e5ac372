"""What tracing kernel functions costs: on stock kernels in virtual machines, and here; as root.

Emulated machines are slow, and slow in other places than real ones: only ratios between rows of
one kernel say something. ``--here`` measures tracepoints on this kernel, at full speed.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from kernel.tracing import TracedRun, site_for
from vm.conftest import NONE, OFFERS
from vm.kernels import get_kernel
from vm.machine import run_in

from datacrumbs.probes import model

HERE = Path(__file__).parent
TIMEOUT_S = 600.0
POINT = "ext4:ext4_da_write_begin"


def build(work: Path) -> tuple[Path, Path]:
    """The load, and the object with empty programs."""
    load, empty = work / "load", work / "empty.o"
    subprocess.run(["cc", "-O2", "-o", load, HERE / "load.c"], check=True)
    flags = ["-target", "bpf", "-O2", "-g", "-idirafter", "/usr/include/x86_64-linux-gnu"]
    subprocess.run(["clang", *flags, "-c", HERE / "empty_kernel.bpf.c", "-o", empty], check=True)
    return load, empty


def measure(kernel: str) -> dict[str, dict[str, Any]]:
    """One kernel's numbers: ``ns`` per call, ``ms`` to attach and detach, ``empty`` programs'."""
    with tempfile.TemporaryDirectory(prefix="datacrumbs-bench-", dir="/var/tmp") as name:
        work = Path(name)
        work.chmod(0o755)
        kinds = [kind for kind in OFFERS[kernel] if kind != NONE]
        command = [sys.executable, "-P", str(HERE / "guest_kernel.py")]
        command += [*map(str, build(work)), *kinds]
        said = run_in(get_kernel(kernel), command, shared=work, timeout_s=TIMEOUT_S)
    line = next(line for line in said.splitlines() if line.startswith("JSON"))
    return dict(json.loads(line.removeprefix("JSON")))


def here() -> dict[str, float]:
    """ns per pread() and pwrite() of one byte of a file, untraced and with a tracepoint in it."""
    with site_for(pwd.getpwnam("nobody")) as run:
        load = run.work / "load"
        subprocess.run(["cc", "-O2", "-o", load, HERE / "load.c"], check=True)
        found = {"untraced": _both_ns(run, load, joined=False)}
        layer = model.KernelLayer(name="kernel", functions=[model.KernelFunction(name=POINT)])
        with run.daemon(layer):
            found["one tracepoint"] = _both_ns(run, load, joined=True)
            found["one tracepoint, not joined"] = _both_ns(run, load, joined=False)
    return found


def _both_ns(run: TracedRun, load: Path, *, joined: bool) -> float:
    return float(run.run(load, "1", "30", wrap=joined))


def show(title: str, times: dict[str, float], unit: str) -> None:
    """Rows with what each adds to the first."""
    print(title)
    base = next(iter(times.values()))
    for name, value in times.items():
        print(f"  {name:<28}{value:12,.0f} {unit}{value - base:+12,.0f}")


def main() -> None:
    """Parse options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=f"of {', '.join(OFFERS)}")
    parser.add_argument("--here", action="store_true", help="tracepoints on this kernel")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root")
    if options.here:
        show("this kernel: pread() and pwrite() of one byte", here(), "ns")
    for kernel in options.kernels or ([] if options.here else OFFERS):
        found = measure(kernel)
        show(f"kernel {kernel}, emulated: read() of one byte, tracing vfs_read", found["ns"], "ns")
        for kind, numbers in found["empty"].items():
            said = ", ".join(f"{name} {value:,.1f}" for name, value in numbers.items())
            print(f"  empty {kind:<22}{said}")
        for name, value in found["ms"].items():
            print(f"  {name:<28}{value:12,.1f}{'' if name == 'functions' else ' ms'}")


if __name__ == "__main__":
    main()
