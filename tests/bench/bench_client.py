"""What the client library costs a process at its start.

Two numbers: the constructor alone (called a million times in one process, over an
environment of a job's size), and starting an empty C program with the library preloaded
against without (which adds what the loader does to map it).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from datacrumbs.config import SystemConfig

SOURCE = Path(__file__).resolve().parents[2] / "datacrumbs" / "client" / "client.c"
VARIABLES = 120
"""Environment variables of a job; ours is the last one, which is the slowest place."""
STARTS = 2000

LOOP = """
#include <stdio.h>
#include <time.h>
#include CLIENT
static long long now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}
int main(int argc, char **argv, char **envp)
{
    enum { CALLS = 1000000 };
    long long begin = now_ns();
    for (int i = 0; i < CALLS; i++)
        datacrumbs_constructor(argc, argv, envp);
    printf("%.1f\\n", (double)(now_ns() - begin) / CALLS);
    return 0;
}
"""


def environment() -> dict[str, str]:
    """A job's environment, with a run id at its end."""
    others = {f"SLURM_VARIABLE_{i}": "x" * 40 for i in range(VARIABLES)}
    return {**others, "SLURM_JOB_ID": "4242"}


def constructor_ns(directory: Path) -> float:
    """Nanoseconds of one call of the constructor."""
    source, program = directory / "loop.c", directory / "loop"
    source.write_text(LOOP)
    subprocess.run(["gcc", "-O2", f'-DCLIENT="{SOURCE}"', "-o", program, source], check=True)
    output = subprocess.run([program], env=environment(), stdout=subprocess.PIPE, check=True)
    return float(output.stdout)


def start_us(directory: Path) -> tuple[float, float]:
    """Median microseconds to start and reap an empty program, without and with the library."""
    source, program = directory / "empty.c", directory / "empty"
    source.write_text("int main(void) { return 0; }\n")
    subprocess.run(["gcc", "-O2", "-o", program, source], check=True)
    plain = environment()
    preloaded = {**plain, "LD_PRELOAD": str(SystemConfig().client_library_path())}
    without: list[float] = []
    within: list[float] = []
    for _ in range(STARTS):  # interleaved, so that the machine's moods hit both
        without.append(_one_start_us(program, plain))
        within.append(_one_start_us(program, preloaded))
    return statistics.median(without), statistics.median(within)


def _one_start_us(program: Path, environ: dict[str, str]) -> float:
    begin = time.perf_counter_ns()
    os.waitpid(os.posix_spawn(program, [str(program)], environ), 0)
    return (time.perf_counter_ns() - begin) / 1000


def measure() -> dict[str, float]:
    """All numbers, by name with unit."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        constructor = constructor_ns(directory)
        without, within = start_us(directory)
    return {
        "constructor_ns": constructor,
        "start_us": round(without, 1),
        "start_preloaded_us": round(within, 1),
        "start_added_us": round(within - without, 1),
    }


if __name__ == "__main__":
    json.dump(measure(), sys.stdout, indent=2)
    print()
