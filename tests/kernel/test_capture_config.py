"""From a capture config to events: what discovery finds is what is traced."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from kernel.tracing import PYTHON, TracedRun

from datacrumbs.config import SystemConfig
from datacrumbs.probes import model
from datacrumbs.probes.build import build
from datacrumbs.probes.capture import parse_capture_config

pytestmark = pytest.mark.root

EXAMPLES = Path(__file__).parents[2] / "examples"


def _probes(text: str) -> model.ProbeList:
    system = SystemConfig(state_dir="/nonexistent/state")
    return build(parse_capture_config(text.encode(), source="c.yaml"), system).probes


LIBRARY = """
static __attribute__((noinline, used)) int hidden(int n, const char *name) {
    __asm__ volatile("" : : "r"(*name) : "memory");
    return n * 3;
}
int lead_work(int n, const char *name) { return hidden(n, name) + 1; }
"""
PROGRAM = """
int lead_work(int n, const char *name);
int main(void) {
    int sum = 0;
    for (int i = 0; i < 23; i++) sum += lead_work(i, "checkpoint");
    return sum == 0;
}
"""


def test_a_stripped_library_of_a_program_by_its_debug_file(traced_run: TracedRun) -> None:
    work = traced_run.work
    library = traced_run.compile(
        LIBRARY, "-shared", "-fPIC", "-g", "-Wl,--build-id", name="liblead"
    )
    debug = work / "liblead.debug"
    subprocess.run(["objcopy", "--only-keep-debug", library, debug], check=True)
    subprocess.run(["strip", library], check=True)
    subprocess.run(["objcopy", f"--add-gnu-debuglink={debug}", library], check=True)
    program = traced_run.compile(PROGRAM, "-Wl,--no-as-needed", str(library))
    probes = _probes(
        f"""
        capture_probes:
          - name: lead
            probe: uprobe
            from: command {program}
            file: liblead.*
            regex: hidden|lead_.*
            include_offsets: true
            arguments: [{{name: n}}, {{function: hidden, name: name, as: what}}]
        """
    )
    with traced_run.daemon(*probes.layers):
        traced_run.run(program)
    trace = traced_run.trace()
    count = (
        "SELECT f.name, count(*) FROM events JOIN functions f USING (func) GROUP BY 1 ORDER BY 1"
    )
    assert trace.sql(count) == [("hidden", 23), ("lead_work", 23)]
    captured = trace.sql(
        "SELECT f.name, a.name, count(*), sum(value)::INT, max(text) FROM arguments a "
        "JOIN functions f USING (func) GROUP BY 1, 2 ORDER BY 1, 2"
    )
    assert captured == [
        ("hidden", "n", 23, 253, None),
        ("hidden", "what", 23, None, "checkpoint"),
        ("lead_work", "n", 23, 253, None),
    ]


SCRIPT = """
import sys
def checkpoint(n): return n + 1
def other(): return 0
sys.setprofile(lambda *_: None)  # CPython 3.11 passes its points only then
for i in range(23): checkpoint(i)
for i in range(4): other()
sys.setprofile(None)
"""


def test_the_python_example_shows_python_functions_by_name(traced_run: TracedRun) -> None:
    example = (EXAMPLES / "python-usdt.yaml").read_text()
    # all of them, however short
    probes = _probes(example.replace("    min_duration: 20us\n", ""))
    with traced_run.daemon(*probes.layers, include=probes.include, exclude=probes.exclude):
        traced_run.run(*PYTHON, "-c", SCRIPT)
    trace = traced_run.trace()
    calls = trace.sql(
        "SELECT a.text, count(*) FROM arguments a JOIN functions f USING (func) "
        "WHERE f.name LIKE '%function__entry' AND a.name = 'function' "
        "AND a.text IN ('checkpoint', 'other') GROUP BY 1 ORDER BY 1"
    )
    assert calls == [("checkpoint", 23), ("other", 4)]
