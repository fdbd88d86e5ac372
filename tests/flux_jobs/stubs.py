"""Flux's Python bindings (``flux-python``, from PyPI) without Flux.

The bindings are a thin layer over Flux's C libraries, which are in no package registry. They load
over libraries made here that have all the symbols they want. Each function ends the process with
its name, so that nothing goes on with an answer that Flux would not have given; two answer: where
things are installed, and that there is no broker to be connected to.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

ANSWERING = {
    "flux_open_ex": """
void *flux_open_ex(const char *uri, int flags, void *error)
{
    (void)uri; (void)flags; (void)error;
    errno = ENOENT;
    return NULL;
}
""",
    "flux_conf_builtin_get": """
const char *flux_conf_builtin_get(const char *name, int flags)
{
    static char path[4096];
    (void)flags;
    snprintf(path, sizeof path, "%s/%s", getenv("STUB_FLUX_PREFIX"), name);
    return path;
}
""",
}


def bindings() -> Path | None:
    """The directory of the bindings' shared objects; None when they are not installed."""
    spec = importlib.util.find_spec("_flux")
    found = spec.submodule_search_locations if spec else None
    return Path(found[0]) if found else None


def build(directory: Path) -> dict[str, str]:
    """Make the libraries below ``directory``; the environment in which ``import flux`` works."""
    objects = sorted((bindings() or Path("/nowhere")).glob("*.so"))
    symbols = sorted({name for path in objects for name in _wanted(path)})
    source = directory / "stubs.c"
    source.write_text(_source(symbols))
    for soname in sorted({name for path in objects for name in _sonames(path)}):
        options = ["-shared", "-fPIC", "-w", f"-Wl,-soname,{soname}"]
        subprocess.run(["gcc", *options, "-o", directory / soname, source], check=True)
    prefix = directory / "prefix"
    prefix.mkdir()
    return {"LD_LIBRARY_PATH": str(directory), "STUB_FLUX_PREFIX": str(prefix)}


def _source(symbols: list[str]) -> str:
    stubs = [
        f'void {name}(void) {{ fputs("stub: {name}\\n", stderr); abort(); }}'
        for name in symbols
        if name not in ANSWERING
    ]
    headers = [f"#include <{name}.h>" for name in ("errno", "stdio", "stdlib")]
    return "\n".join([*headers, *stubs, *ANSWERING.values()]) + "\n"


def _wanted(path: Path) -> Iterator[str]:
    """Undefined symbols that are none of libc's, which have versions, nor Python's."""
    listed = _output("nm", "-D", "--undefined-only", path)
    for line in listed.splitlines():
        kind, name = line.split()[-2:]
        if kind == "U" and "@" not in name and not re.match(r"_?Py", name):
            yield name


def _sonames(path: Path) -> list[str]:
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", _output("readelf", "-d", path))
    return [name for name in needed if not name.startswith("libc.")]


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
