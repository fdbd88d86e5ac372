"""What Flux's prolog and epilog cost a job that does not ask for tracing.

With Flux on PATH, in an instance of it; else with a `flux` that replays recorded answers, which
costs a shell where the real one costs a question to the broker. Next to a hook that is /bin/true.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from flux_jobs.conftest import SCHEDULER
from flux_jobs.replay import Replay

TIMES = 200


def took_ms(program: str, environ: dict[str, str], *arguments: str) -> float:
    """How long ``program`` runs; it must succeed."""
    begin = time.perf_counter()
    pid = os.posix_spawn(program, [program, *arguments], environ, file_actions=QUIET)
    if os.waitpid(pid, 0)[1] != 0:
        raise SystemExit(f"{program} failed")
    return (time.perf_counter() - begin) * 1e3


QUIET = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]


def measure(environ: dict[str, str]) -> dict[str, float]:
    """Medians in milliseconds, interleaved, by what was measured."""
    direct = f"{environ['FLUX_EXEC_PATH']}/flux-job"
    question = ("info", environ["FLUX_JOB_ID"], "jobspec")
    times: dict[str, list[float]] = {}
    for _ in range(TIMES):
        for name, program, arguments in (
            ("true", "/bin/true", ()),
            ("question", direct, question),
            ("prolog", str(SCHEDULER / "prolog.d/50-datacrumbs"), ()),
            ("epilog", str(SCHEDULER / "epilog.d/50-datacrumbs"), ()),
        ):
            times.setdefault(name, []).append(took_ms(program, environ, *arguments))
    return {name: statistics.median(values) for name, values in times.items()}


def replayed() -> dict[str, float]:
    """With recorded answers."""
    with tempfile.TemporaryDirectory() as directory:
        replay = Replay(Path(directory))
        return measure({"PATH": "/usr/bin:/bin", **replay.job("no metadata")})


def real() -> dict[str, float]:
    """In an instance of Flux, for a job that has run in it."""
    job = 'FLUX_JOB_ID=$(flux submit true) && flux job wait-event "$FLUX_JOB_ID" clean >/dev/null'
    again = f'{job} && export FLUX_JOB_ID && exec "$0" "$1" --json --inside'
    command = ["flux", "start", "sh", "-c", again, sys.executable, __file__]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[str, float] = json.loads(said.splitlines()[-1])
    return {name.removesuffix("_ms"): value for name, value in found.items()}


def main() -> None:
    """Parse options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    is_real = options.inside or shutil.which("flux") is not None
    if options.inside:
        found = measure({k: v for k, v in os.environ.items() if k.startswith(("FLUX_", "PATH"))})
    else:
        found = real() if is_real else replayed()
    if options.json:
        print(json.dumps({f"{name}_ms": value for name, value in found.items()}))
        return
    print("Flux, a job without metadata" + ("" if is_real else " (recorded answers)"))
    print(f"/bin/true as a hook: {found['true']:.1f} ms; flux job info: {found['question']:.1f} ms")
    print(f"prolog {found['prolog']:.1f} ms, epilog {found['epilog']:.1f} ms")


if __name__ == "__main__":
    main()
