"""Stock Debian kernels for virtual machines, fetched once from the mirror this system uses.

They go to ``$DATACRUMBS_KERNELS`` or ``$XDG_CACHE_HOME/datacrumbs/kernels`` (by default below
``~/.cache``), about 130 MB each.
"""

from __future__ import annotations

import contextlib
import fcntl
import lzma
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vm.apt import Apt, run

SUITES = {"6.1": "bookworm", "6.12": "trixie", "7": "sid"}
"""A kernel's series and the Debian release that has it."""

MODULES = ("virtio_pci", "virtio_console", "virtiofs", "overlay", "virtio_net", "af_packet")
GUEST_INIT = Path(__file__).with_name("guest-init")
NATIVE, ARM = "amd64", "arm64"
"""Debian's names of architectures: of the machine that tests run on, and of the other one."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel ready to boot: ``modules`` is its directory below ``/lib/modules``."""

    name: str
    architecture: str
    image: Path
    initrd: Path
    modules: Path


def cache_directory() -> Path:
    """Where kernels are kept between runs."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("DATACRUMBS_KERNELS") or cache / "datacrumbs/kernels")


def get_kernel(series: str, architecture: str = NATIVE) -> Kernel:
    """The kernel of a series in `SUITES`, fetched if it is not here yet."""
    name = series if architecture == NATIVE else f"{series}-{architecture}"
    directory = cache_directory()
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / name).exists():
            _fetch(directory / name, SUITES[series], architecture)
        return _ready(directory / name, architecture)


def _fetch(target: Path, suite: str, architecture: str) -> None:
    """Unpack the kernel's packages to ``target``, which appears whole."""
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        apt = Apt(work / "apt", suite, architecture)
        packages = _packages(apt, suite, architecture)
        packages += [] if architecture == NATIVE else ["busybox-static"]
        apt.unpack(packages, work / "tree")
        (work / "tree").rename(target)
    finally:
        shutil.rmtree(work)


def _packages(apt: Apt, suite: str, architecture: str) -> list[str]:
    """The packages with the files of the suite's cloud kernel."""
    meta = f"linux-image-cloud-{architecture}"
    said = apt.run("apt-cache", "-t", suite, "depends", f"{meta}/{suite}").split()
    image = next(word for word in said if re.fullmatch(r"linux-image-\d\S+", word))
    # later releases' image packages only depend on a -binary- and a -modules- package
    names = [image.replace("linux-image", kind) for kind in ("linux-binary", "linux-modules")]
    known = apt.run("apt-cache", "pkgnames").split()
    return [image, *(name for name in names if name in known)]


def _ready(tree: Path, architecture: str) -> Kernel:
    modules = next(p for at in ("lib", "usr/lib") for p in tree.glob(f"{at}/modules/*"))
    image = next(p for at in ("boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz") for p in tree.glob(at))
    initrd = tree.with_name(f"{tree.name}.cpio")
    busybox = Path("/bin/busybox")
    if architecture != NATIVE:
        busybox = next(p for at in ("bin", "usr/bin") for p in tree.glob(f"{at}/busybox"))
    if not initrd.exists() or initrd.stat().st_mtime < GUEST_INIT.stat().st_mtime:
        with _module_root(modules) as root:
            run("depmod", "-b", root, modules.name)
            _make_initrd(initrd, root, modules.name, busybox)
    return Kernel(tree.name, architecture, image, initrd, modules)


@contextlib.contextmanager
def _module_root(modules: Path) -> Iterator[Path]:
    """A directory that has ``lib/modules`` where modprobe expects it."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "lib").mkdir()
        (root / "lib/modules").symlink_to(modules.parent)
        yield root


def _make_initrd(target: Path, root: Path, release: str, busybox: Path) -> None:
    """busybox, the modules that reach the host's files, and `GUEST_INIT`."""
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        for directory in ("bin", "mod", "proc", "sys", "dev", "lower", "rw", "newroot"):
            (tree / directory).mkdir()
        shutil.copy(busybox, tree / "bin/busybox")
        shutil.copy(GUEST_INIT, tree / "init")
        (tree / "init").chmod(0o755)
        for number, path in enumerate(_module_files(root, release)):
            (tree / f"mod/{100 + number}.ko").write_bytes(_unpacked(path))
        pack(tree, target)


def _module_files(root: Path, release: str) -> list[Path]:
    """The modules with what they need, in the order to load them."""
    found: dict[Path, None] = {}
    for module in MODULES:
        command = ["modprobe", "-d", root, "-S", release, "-D", module]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        words = (line.split() for line in said.splitlines())
        found |= {Path(line[1]): None for line in words if line[0] == "insmod"}
    return list(found)


def _unpacked(path: Path) -> bytes:
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".zst":
        command = ["zstd", "-qdc", path]
        return subprocess.run(command, check=True, capture_output=True).stdout
    return path.read_bytes()


def pack(tree: Path, target: Path) -> None:
    """Write the files below ``tree`` as a cpio archive, which appears whole."""
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    temporary = target.with_suffix(".new")
    with open(temporary, "wb") as file:
        subprocess.run(
            ["cpio", "-o", "-H", "newc", "--quiet"],
            input=names.encode(),
            stdout=file,
            cwd=tree,
            check=True,
        )
    temporary.rename(target)
