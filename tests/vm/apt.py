"""apt with lists, cache and sources of its own: Debian's packages, of any architecture.

The system's own lists and configuration stay as they are.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

APT_SOURCES = Path("/etc/apt")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class Apt:
    """Packages of a suite from the mirror that this system uses, as if none were installed.

    What it keeps goes to ``directory``, which must not exist and be absolute.
    """

    def __init__(self, directory: Path, suite: str, architecture: str) -> None:
        for name in ("state/lists/partial", "cache/archives/partial", "etc"):
            (directory / name).mkdir(parents=True)
        (directory / "state/status").touch()
        self._archives = directory / "cache/archives"
        mirror, key = _mirror()
        (directory / "etc/sources.list").write_text(
            f"deb [signed-by={key} arch={architecture}] {mirror} {suite} main\n"
        )
        settings = {
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
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
        self._options = [f"-o{key}={value}" for key, value in settings.items()]
        self.run("apt-get", "-qq", "update")

    def run(self, command: str, *arguments: str, cwd: Path | None = None) -> str:
        """What one of apt's commands says."""
        return run(command, *self._options, *arguments, cwd=cwd)

    def unpack(self, packages: list[str], tree: Path) -> None:
        """The files of these packages, without what they depend on."""
        self.run("apt-get", "-qq", "download", *packages, cwd=self._archives)
        self._unpack_all(tree)

    def unpack_with_dependencies(self, packages: list[str], tree: Path) -> None:
        """The files of these packages and of all that they depend on."""
        options = ("-qq", "--no-install-recommends", "--download-only", "-y")
        self.run("apt-get", "install", *options, *packages)
        self._unpack_all(tree)

    def _unpack_all(self, tree: Path) -> None:
        for path in self._archives.glob("*.deb"):
            run("dpkg-deb", "-x", path, tree)
            path.unlink()


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


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """What a command says. Raises `RuntimeError` with its complaint when it fails."""
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, cwd=cwd
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout
