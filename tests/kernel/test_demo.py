"""The demo: it works, also beside what a killed one left, and leaves nothing behind."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

DEMO = Path(sys.prefix, "share/datacrumbs/examples/demo.sh")
WORK = Path("/var/tmp/datacrumbs-demo")
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.prefix, 'bin')}:{os.environ['PATH']}"}


def test_after_one_that_was_killed_while_tracing() -> None:
    killed = subprocess.Popen(
        ["bash", DEMO], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not list(WORK.glob("run/*.ready")):
        assert time.monotonic() < deadline and killed.poll() is None
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert WORK.exists()

    done = subprocess.run(
        ["bash", DEMO],
        env=ENVIRONMENT,
        umask=0o077,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert " write " in done.stdout and "/home/big " in done.stdout
    assert not WORK.exists()
    assert "datacrumbs-demo" not in [entry.pw_name for entry in pwd.getpwall()]
