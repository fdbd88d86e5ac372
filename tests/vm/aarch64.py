"""An arm64 guest's root file system, and datacrumbs built for it.

The root file system is made once and kept where those of the cluster's nodes are: packages
unpacked, none configured, and what the daemon imports, as wheels.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cluster.image import CACHE
from vm.apt import Apt, run
from vm.kernels import ARM

MACHINE = "aarch64"
SUITE = "bookworm"
PYTHON = "3.11"
"""Of `SUITE`."""

PACKAGES = ["base-files", "busybox-static", "python3", "libbpf1", "libseccomp2"]
WHEELS = [
    "capstone",
    "click",
    "cryptography",
    "msgspec",
    "numpy",
    "pyarrow",
    "pyelftools",
    "pyyaml",
]
WHEELS_NEED = ["libgcc-s1", "libstdc++6"]
WHEELS_AT = Path("opt/wheels")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux2014_aarch64")
ACCOUNTS = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"

CHECKOUT = Path(__file__).parents[2]
CROSS_FILE = Path(__file__).with_name("aarch64.ini")
BIN = Path(sys.executable).parent


def root_file_system() -> Path:
    """Of the guest, made if it is not there yet."""
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    path = CACHE / f"{MACHINE}-{recipe}"
    CACHE.mkdir(mode=0o755, parents=True, exist_ok=True)
    with open(CACHE / f"{MACHINE}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _make(path)
    return path


def _make(path: Path) -> None:
    """Make ``path``, which appears whole."""
    work = Path(tempfile.mkdtemp(prefix=f".{MACHINE}.", dir=CACHE))
    work.chmod(0o755)
    try:
        tree = work / "tree"
        Apt(work / "apt", SUITE, ARM).unpack_with_dependencies([*PACKAGES, *WHEELS_NEED], tree)
        (tree / "bin/sh").symlink_to("busybox")
        (tree / "etc/passwd").write_text(ACCOUNTS)
        (tree / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
        platforms = [f"--platform={platform}" for platform in PLATFORMS]
        options = [*platforms, "--python-version", PYTHON, "--only-binary", ":all:"]
        target = ["--target", tree / WHEELS_AT]
        run(sys.executable, "-m", "pip", "install", "--quiet", *options, *target, *WHEELS)
        tree.rename(path)
    finally:
        shutil.rmtree(work)


def install(target: Path) -> None:
    """Build this checkout for aarch64 and install it: the package is then in ``target/python``."""
    with tempfile.TemporaryDirectory(prefix="datacrumbs-build-") as build:
        at = f"-Dpython.platlibdir={target / 'python'}"
        options = ["--cross-file", CROSS_FILE, "--prefix", target, at, "-Dwerror=true"]
        environment = {"PATH": f"{BIN}:/usr/bin:/bin:/usr/sbin:/sbin"}
        for command in (["setup", build, CHECKOUT, *options], ["install", "-C", build]):
            subprocess.run(
                [BIN / "meson", *command], env=environment, check=True, capture_output=True
            )
