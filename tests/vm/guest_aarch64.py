"""In an arm64 guest, as root: ``guest_aarch64.py INSTALLED PROGRAM SITE...``

For each site a daemon, and PROGRAM as the run's user, whose output goes to ``said`` in the site.
On the site ``unplaced`` the daemon has no disassembler.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

USER = 65534
READY_S = 180.0
DAEMON = "from datacrumbs.cli.daemon import main; main()"
UNPLACED = f"import sys; sys.modules['capstone'] = None; {DAEMON}"


def trace(installed: Path, program: Path, site: Path) -> None:
    """One daemon and its run."""
    code = UNPLACED if site.name == "unplaced" else DAEMON
    options = ["run", "--config", site / "system.yaml"]
    daemon = subprocess.Popen([sys.executable, "-P", "-c", code, site / "probes.json.gz", *options])
    deadline = time.monotonic() + READY_S
    while not (site / "run/datacrumbs-run.ready").exists():
        if daemon.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"{site.name}: the daemon is not ready: {daemon.returncode}")
        time.sleep(0.05)
    library = installed / "lib/datacrumbs/libdatacrumbs_client.so"
    with open(site / "said", "wb") as said:
        subprocess.run(
            [program, f"/dev/shm/{site.name}"],
            env={"LD_PRELOAD": str(library), "DATACRUMBS_RUN_ID": "run"},
            stdout=said,
            check=True,
            user=USER,
            group=USER,
            extra_groups=[],
        )
    daemon.terminate()
    if daemon.wait():
        sys.exit(f"{site.name}: the daemon failed: {daemon.returncode}")


if __name__ == "__main__":
    Path("/dev/shm").chmod(0o1777)
    directory, work, *sites = map(Path, sys.argv[1:])
    for each in sites:
        trace(directory, work, each)
