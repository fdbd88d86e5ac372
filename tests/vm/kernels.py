"""Stock Debian kernels for virtual machines, fetched once from the mirror this system uses.

They go to ``$DATACRUMBS_KERNELS`` or ``$XDG_CACHE_HOME/datacrumbs/kernels`` (by default below
``~/.cache``), about 130 MB each. The system's own apt lists and configuration stay as they are.
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

SUITES = {"6.1": "bookworm", "6.12": "trixie", "7": "sid"}
"""A kernel's series and the Debian release that has it."""

MODULES = ("virtio_pci", "virtio_console", "virtiofs", "overlay", "virtio_net", "af_packet")
GUEST_INIT = Path(__file__).with_name("guest-init")
APT_SOURCES = Path("/etc/apt")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel ready to boot: ``modules`` is its directory below ``/lib/modules``."""

    name: str
    image: Path
    initrd: Path
    modules: Path


def cache_directory() -> Path:
    """Where kernels are kept between runs."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("DATACRUMBS_KERNELS") or cache / "datacrumbs/kernels")


def get_kernel(name: str) -> Kernel:
    """The kernel of a series in `SUITES`, fetched if it is not here yet."""
    directory = cache_directory()
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / name).exists():
            _fetch(directory, name)
        return _ready(directory, name)


def _fetch(directory: Path, name: str) -> None:
    """Unpack the kernel's packages to ``directory/name``, which appears whole."""
    work = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=directory))
    try:
        apt = _private_apt(work / "apt", SUITES[name])
        for package in _packages(apt, SUITES[name]):
            _run(*apt("apt-get"), "-qq", "download", package, cwd=work)
        for package_file in work.glob("*.deb"):
            _run("dpkg-deb", "-x", package_file, work / "tree")
            package_file.unlink()
        (work / "tree").rename(directory / name)
    finally:
        shutil.rmtree(work)


class _Apt:
    """apt with lists, cache and sources of its own."""

    def __init__(self, options: list[str]) -> None:
        self._options = options

    def __call__(self, command: str) -> list[str]:
        return [command, *self._options]


def _private_apt(directory: Path, suite: str) -> _Apt:
    for name in ("state/lists/partial", "cache/archives/partial", "etc"):
        (directory / name).mkdir(parents=True)
    (directory / "state/status").touch()
    mirror, key = _mirror()
    (directory / "etc/sources.list").write_text(f"deb [signed-by={key}] {mirror} {suite} main\n")
    settings = {
        "Dir::State": directory / "state",
        "Dir::State::status": directory / "state/status",
        "Dir::Cache": directory / "cache",
        "Dir::Etc::sourcelist": directory / "etc/sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::Etc::preferencesparts": "-",
        "Dir::Etc::preferences": "-",
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",
    }
    apt = _Apt([f"-o{key}={value}" for key, value in settings.items()])
    _run(*apt("apt-get"), "-qq", "update")
    return apt


def _mirror() -> tuple[str, str]:
    """The address and the keyring of the first Debian source that this system has."""
    for path in sorted(APT_SOURCES.glob("sources.list.d/*.sources")):
        for paragraph in path.read_text().split("\n\n"):
            lines = (line.partition(":") for line in paragraph.splitlines() if line[:1] != "#")
            fields = {name.strip().lower(): value.strip() for name, _, value in lines}
            if "deb" in fields.get("types", "").split() and "main" in fields.get("components", ""):
                return fields["uris"].split()[0], fields.get("signed-by") or KEYRING
    for path in [APT_SOURCES / "sources.list", *APT_SOURCES.glob("sources.list.d/*.list")]:
        for line in path.read_text().splitlines() if path.exists() else []:
            words = [word for word in line.split() if not word.startswith(("[", "signed-by"))]
            if words[:1] == ["deb"] and "main" in words:
                return words[1], KEYRING
    raise RuntimeError(f"no Debian source in {APT_SOURCES}")


def _packages(apt: _Apt, suite: str) -> list[str]:
    """The packages with the files of the suite's cloud kernel."""
    meta = "linux-image-cloud-amd64"
    said = _run(*apt("apt-cache"), "-t", suite, "depends", f"{meta}/{suite}").split()
    image = next(word for word in said if re.fullmatch(r"linux-image-\d\S+", word))
    # later releases' image packages only depend on a -binary- and a -modules- package
    names = [image.replace("linux-image", kind) for kind in ("linux-binary", "linux-modules")]
    known = _run(*apt("apt-cache"), "pkgnames").split()
    return [image, *(name for name in names if name in known)]


def _ready(directory: Path, name: str) -> Kernel:
    tree = directory / name
    modules = next(p for at in ("lib", "usr/lib") for p in tree.glob(f"{at}/modules/*"))
    image = next(p for at in ("boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz") for p in tree.glob(at))
    initrd = directory / f"{name}.cpio"
    if not initrd.exists() or initrd.stat().st_mtime < GUEST_INIT.stat().st_mtime:
        with _module_root(modules) as root:
            _run("depmod", "-b", root, modules.name)
            _make_initrd(initrd, root, modules.name)
    return Kernel(name, image, initrd, modules)


@contextlib.contextmanager
def _module_root(modules: Path) -> Iterator[Path]:
    """A directory that has ``lib/modules`` where modprobe expects it."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "lib").mkdir()
        (root / "lib/modules").symlink_to(modules.parent)
        yield root


def _make_initrd(target: Path, root: Path, release: str) -> None:
    """busybox, the modules that reach the host's files, and `GUEST_INIT`."""
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        for directory in ("bin", "mod", "proc", "sys", "dev", "lower", "rw", "newroot"):
            (tree / directory).mkdir()
        shutil.copy("/bin/busybox", tree / "bin/busybox")
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


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, cwd=cwd
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout
