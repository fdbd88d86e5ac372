"""A disk that fills up while a trace is written, and has room again: a small tmpfs.

The scenario runs in a mount namespace of its own, which takes the mount with it when it ends;
an ordinary user gets one together with a user namespace.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from trace_samples import numbers, sample

from datacrumbs.trace.reader import open_trace
from datacrumbs.trace.writer import TraceWriter

SEGMENT = 4096


def _on_small_disk(tmp_path: Path, scenario: str) -> dict[str, Any]:
    """Run the function of this file named ``scenario`` on a tmpfs of 2 MiB."""
    namespaces = ["--mount"] if os.geteuid() == 0 else ["--mount", "--map-root-user"]
    disk = tmp_path / "disk"
    disk.mkdir()
    script = 'mount -t tmpfs -o size=2m none "$1" && exec "$2" "$3" "$4" "$1"'
    command = ["unshare", *namespaces, "sh", "-c", script, "sh", disk, sys.executable, __file__]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*command, scenario], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list(disk.iterdir()) == []  # mounted nowhere but there
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def _fill(disk: Path) -> None:
    """Take the last byte of ``disk``, as somebody else's data would."""
    with open(disk / "ballast", "ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue


def pause(disk: Path) -> dict[str, Any]:
    """Events of a full disk are lost and counted; before and after it they are kept."""
    run = disk / "run"
    run.mkdir()
    writer = TraceWriter(run, segment_events=SEGMENT)
    writer.write_events(sample(1000))
    writer.flush()
    _fill(disk)
    for first in range(1000, 31_000, 1000):
        writer.write_events(sample(1000, first=first))
        writer.flush()
    full = {"files": sorted(os.listdir(run)), "readable": len(numbers(run))}
    problem = writer.problem
    (disk / "ballast").unlink()
    for first in range(31_000, 41_000, 1000):
        writer.write_events(sample(1000, first=first))
        writer.flush()
    resumed = len(numbers(run))
    writer.close()
    kept = sorted(numbers(run))
    return {
        "full": full,
        "problem": problem,
        "resumed": resumed,
        "lost": writer.events_lost,
        "events": writer.events,
        "kept": kept,
        "files": sorted(os.listdir(run)),
        "count": open_trace(run).hosts[0].count(),
    }


def stays_full(disk: Path) -> dict[str, Any]:
    """The disk is full when the run ends: what was readable stays so, and nothing raises."""
    run = disk / "run"
    run.mkdir()
    writer = TraceWriter(run, segment_events=SEGMENT)
    writer.write_events(sample(1000))
    random = np.random.default_rng(3).integers(0, 1 << 31, 50_000).tolist()
    peers = dict.fromkeys(("ts", "tid", "file", "fd", "offset"), random)
    writer.write_rows("peers", {name: values[:50] for name, values in peers.items()})
    writer.flush()
    _fill(disk)
    writer.write_events(sample(6000, first=1000))
    writer.write_rows("peers", peers)
    writer.close()
    (host,) = open_trace(run).hosts
    return {
        "lost": writer.events_lost,
        "events": writer.events,
        "kept": sorted(numbers(run)),
        "peers": len(host.table("peers")),
        "rows_lost": writer.rows_lost,
        "files": sorted(os.listdir(run)),
    }


def fills_by_itself(disk: Path) -> dict[str, Any]:
    """The trace itself fills the disk: compressed segments up to the end, then counted."""
    run = disk / "run"
    run.mkdir()
    writer = TraceWriter(run, segment_events=SEGMENT)
    random = np.random.default_rng(3)
    for first in range(0, 400_000, 1000):
        events = sample(1000, first=first)
        events["size"] = random.integers(0, 1 << 40, 1000)
        writer.write_events(events)
        writer.flush()
    writer.close()
    kept = numbers(run)
    return {
        "lost": writer.events_lost,
        "kept": len(kept),
        "distinct": len(set(kept)),
        "events": writer.events,
        "hidden": [name for name in os.listdir(run) if name.startswith(".")],
        "bytes": sum(entry.stat().st_size for entry in run.iterdir()),
    }


def test_recording_pauses_and_resumes(tmp_path: Path) -> None:
    facts = _on_small_disk(tmp_path, "pause")
    assert facts["full"] == {"files": ["events-000001.arrows"], "readable": 1000}
    assert "No space left" in facts["problem"]
    # nothing but the segments that filled up while the disk was full is gone: 7 of them
    assert facts["lost"] == 7 * SEGMENT - 1000
    assert facts["kept"] == [*range(1000), *range(7 * SEGMENT, 41_000)]
    assert facts["resumed"] == facts["events"] == facts["count"] == len(facts["kept"])
    # closed, and numbered without gaps
    assert facts["files"] == [f"events-{n:06d}.parquet" for n in range(1, len(facts["files"]) + 1)]


def test_a_disk_that_stays_full(tmp_path: Path) -> None:
    facts = _on_small_disk(tmp_path, "stays_full")
    assert facts["kept"] == list(range(1000))
    assert facts["events"] == 1000
    assert facts["lost"] == 6000
    assert (facts["peers"], facts["rows_lost"]) == (50, 50_000)
    assert facts["files"] == ["events-000001.arrows", "peers-000001.arrows"]


def test_a_trace_that_fills_its_disk(tmp_path: Path) -> None:
    facts = _on_small_disk(tmp_path, "fills_by_itself")
    assert facts["kept"] == facts["distinct"] == facts["events"] == 400_000 - facts["lost"]
    assert facts["lost"] > 0
    assert facts["kept"] > 100_000
    assert facts["hidden"] == []
    assert facts["bytes"] > 1_800_000


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](Path(sys.argv[2]))))
