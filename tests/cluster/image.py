"""The root file systems of the cluster's nodes: made once, kept outside the checkout.

``python tests/cluster/image.py`` makes those that are missing, which takes a minute or two each.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
from pathlib import Path

RECIPE = Path(__file__).with_name("image.sh")
CACHE = Path(os.environ.get("DATACRUMBS_TEST_CACHE", "/var/cache/datacrumbs-tests"))
SUITES = {"trixie": "24.11", "bookworm": "22.05"}
"""Debian's suites, and the versions of Slurm that they have."""


def image(suite: str) -> Path:
    """The root file system of a Debian suite's nodes, made once and kept in `CACHE`."""
    recipe = hashlib.sha256(RECIPE.read_bytes()).hexdigest()[:12]
    path = CACHE / f"{suite}-{recipe}"
    CACHE.mkdir(mode=0o755, parents=True, exist_ok=True)
    with open(CACHE / f"{suite}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            subprocess.run([RECIPE, suite, path], check=True)
    return path


if __name__ == "__main__":
    for each in SUITES:
        image(each)
