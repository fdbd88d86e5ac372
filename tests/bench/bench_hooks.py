"""What the hooks of a scheduler cost a job, on a node of a real cluster with systemd; as root.

Runs them as slurmd does, on one node of three in namespaces: without metadata, next to a hook
that is /bin/true, and with it, until the daemon is ready and until the trace is closed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cluster.bed import PYTHON, UIDS, Bed, bed

CHEAP, TRACED = 100, 7

IN_NODE = """
import json, os, sys, time
hooks = {name: f"/etc/slurm/{name}.d/50-datacrumbs" for name in ("prolog", "epilog")}
cheap, traced, uid, comment = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
def took_ms(program, job, text=""):
    about = {"SLURM_JOB_ID": str(job), "SLURM_JOB_UID": uid, "SLURM_JOB_COMMENT": text}
    begin = time.perf_counter()
    pid = os.posix_spawn(program, [program], about)
    assert os.waitpid(pid, 0)[1] == 0
    return (time.perf_counter() - begin) * 1e3
times = {name: [] for name in ("true", "prolog", "epilog", "traced_prolog", "traced_epilog")}
for job in range(cheap):
    times["true"].append(took_ms("/bin/true", job))
    times["prolog"].append(took_ms(hooks["prolog"], job, "nightly"))
    times["epilog"].append(took_ms(hooks["epilog"], job, "nightly"))
for job in range(1000, 1000 + traced):
    times["traced_prolog"].append(took_ms(hooks["prolog"], job, comment))
    assert os.path.exists(f"/run/datacrumbs/datacrumbs-{job}.ready")
    time.sleep(1)
    times["traced_epilog"].append(took_ms(hooks["epilog"], job))
print(json.dumps(times))
"""


def measure(cluster: Bed) -> dict[str, float]:
    """Medians, in milliseconds, by what was measured."""
    path = cluster.sign()
    comment = json.dumps({"datacrumbs": {"enable": "yes", "probe_file": str(path)}})
    said = cluster.out(
        "n1", PYTHON, "-I", "-c", IN_NODE, str(CHEAP), str(TRACED), str(UIDS["alice"]), comment
    )
    return {name: statistics.median(times) for name, times in json.loads(said).items()}


def main() -> None:
    """Parse options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--suite", default="trixie", help="of Debian: bookworm has Slurm 22.05")
    options = parser.parse_args()
    with bed(options.suite) as cluster:
        found = measure(cluster)
    if options.json:
        print(json.dumps({f"{name}_ms": value for name, value in found.items()}))
        return
    print(f"/bin/true as a hook: {found['true']:.1f} ms")
    print(f"job without metadata: prolog {found['prolog']:.1f}, epilog {found['epilog']:.1f} ms")
    print(f"traced job: prolog until ready {found['traced_prolog']:.0f} ms,", end=" ")
    print(f"epilog until the trace is closed {found['traced_epilog']:.0f} ms")


if __name__ == "__main__":
    main()
