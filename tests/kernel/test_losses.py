"""What the kernel cannot hand over is counted, by number."""

from __future__ import annotations

import os
import re
import signal

from kernel.tracing import RUN_ID, TracedRun


def test_events_that_find_the_ring_full_are_lost_by_number(traced_run: TracedRun) -> None:
    """The recorder stands still meanwhile; what the ring, one for all CPUs, holds is kept."""
    config = traced_run.root / "system.yaml"
    ring = "ring: {total_bytes: 1048576, cpus_per_ring: 1024}"
    config.write_text(re.sub("ring: {.*}", ring, config.read_text()))
    with traced_run.daemon():
        recorder = int((traced_run.root / f"run/datacrumbs-{RUN_ID}.ready").read_text())
        os.kill(recorder, signal.SIGSTOP)
        try:
            traced_run.run(
                *("dd", "if=/dev/zero", "of=/dev/null", "bs=1", "count=100001", "status=none")
            )
        finally:
            os.kill(recorder, signal.SIGCONT)
    info = traced_run.info()
    counts, lost_by = info["counts"], info["lost_by"]
    assert counts["lost"] == lost_by["ring"] > 180_000
    assert counts["events"] > 10_000
    # reads and writes, and what dd does at its start and end
    assert 0 <= counts["events"] + counts["lost"] - 2 * 100_001 < 1000
