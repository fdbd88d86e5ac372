"""USDT points: exact counts, arguments, semaphores, calls between two points."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from kernel.tracing import PYTHON, UNFINISHED, TracedRun

from datacrumbs.probes import model
from datacrumbs.probes.elf_identity import elf_identity

PROGRAM = """
#define _SDT_HAS_SEMAPHORES 1
#include <sys/sdt.h>
#include <stdio.h>
unsigned short app_guarded_semaphore __attribute__((section(".probes")));
struct pair { long left; int right; };
__attribute__((noinline)) static long work(long n, struct pair *pair, const char *name) {
    char small = -n;
    asm volatile("" : : "r"(*name)); /* it is in memory */
    DTRACE_PROBE5(app, values, n, small, pair->right, name, 4711);
    if (app_guarded_semaphore) DTRACE_PROBE1(app, guarded, n);
    return n;
}
static inline __attribute__((always_inline)) void twice(int n) { DTRACE_PROBE1(app, copied, n); }
__attribute__((noinline)) static void down(int n) {
    DTRACE_PROBE1(app, begin, n);
    if (n > 1) down(n - 1);
    if (n == 3) return; /* does not say that it ends */
    DTRACE_PROBE1(app, end, n);
}
int main(void) {
    struct pair pair = {1, -7};
    for (int i = 0; i < 23; i++) {
        work(i, &pair, "name");
        twice(i);
        twice(-i);
    }
    down(600);
    printf("%d\\n", app_guarded_semaphore);
}
"""


def usdt_layer(binary: Path, *points: model.UsdtPoint) -> model.UsdtLayer:
    fd = os.open(binary, os.O_RDONLY)
    build_id, digest = elf_identity(fd)
    os.close(fd)
    return model.UsdtLayer(
        name="app", binary=str(binary), functions=list(points), build_id=build_id, digest=digest
    )


def argument(index: int, name: str, kind: str = "int", size: int = 8) -> model.Argument:
    return model.Argument(index=index, name=name, type=model.ArgumentType(kind), bytes=size)


def test_points_of_a_c_program(traced_run: TracedRun) -> None:
    # the headers' own definition of the semaphores wants one for each point
    source = "".join(
        f'unsigned short app_{name}_semaphore __attribute__((section(".probes")));\n'
        for name in ("values", "copied", "begin", "end")
    )
    program = traced_run.compile(source + PROGRAM)
    values = [
        argument(0, "n"),
        argument(1, "small", "int", 1),
        argument(2, "right", "int", 4),
        argument(3, "name", "string", 16),
        argument(4, "constant"),
        argument(5, "none"),
    ]
    layer = usdt_layer(
        program,
        model.UsdtPoint(provider="app", name="values", arguments=values),
        model.UsdtPoint(provider="app", name="guarded", arguments=[argument(0, "n")]),
        model.UsdtPoint(provider="app", name="copied", arguments=[argument(0, "n", "int", 4)]),
        model.UsdtPoint(provider="app", name="begin", returns="end"),
        model.UsdtPoint(provider="app", name="missing"),
        model.UsdtPoint(provider="app", name="values", returns="missing"),
    )
    assert traced_run.run(program, wrap=False) == "0\n"
    with traced_run.daemon(layer):
        assert traced_run.run(program) == "1\n"
    assert traced_run.run(program, wrap=False) == "0\n"
    trace = traced_run.trace(lost=600 - 512)
    count = (
        f"SELECT name, kind, sum(flags & {UNFINISHED} = 0)::INT, sum(flags & {UNFINISHED})::INT "
        "FROM events JOIN functions USING (func) GROUP BY ALL ORDER BY name"
    )
    assert trace.sql(count) == [
        ("app:begin", "usdt", 512 - 1, 1),
        ("app:copied", "usdt", 46, 0),
        ("app:guarded", "usdt", 23, 0),
        ("app:values", "usdt", 23, 0),
    ]
    rows = trace.sql(
        "SELECT e.ts, list((a.name, a.value, a.text) ORDER BY a.name) FROM events e JOIN functions "
        "n USING (func) JOIN arguments a ON (a.ts, a.tid, a.func) = (e.ts, e.tid, e.func) "
        "WHERE n.name = 'app:values' GROUP BY ALL ORDER BY e.ts"
    )
    assert len(rows) == 23
    for i, (_, found) in enumerate(rows):
        assert {name: (value, text) for name, value, text in found} == {
            "n": (i, None),
            "small": (-i, None),
            "right": (-7, None),
            "name": (None, "name"),
            "constant": (4711, None),
            "none": (0, None),
        }
    copied = trace.sql(
        "SELECT sum(value)::INT, max(value) FROM arguments JOIN functions f USING (func) "
        "WHERE f.name = 'app:copied'"
    )
    assert copied == [(0, 22)]
    skipped = {row["name"]: row["reason"] for row in traced_run.info()["skipped"]}
    assert skipped["app:missing"] == "app:missing is not in it"
    assert skipped["app:values"] == "app:missing is not in it"
    assert traced_run.info()["mechanisms"] == [
        {"layer": "app", "kind": "usdt", "mechanism": "uprobe.multi", "functions": 4}
    ]


# CPython 3.11 passes its points of functions only while it is being profiled
SCRIPT = """
import gc, sys
gc.disable()
sys.setprofile(lambda *arguments: None)
def leaf(n): return n + 1
def down(n): return leaf(n) if n <= 1 else down(n - 1) + 1
def fails(): raise ValueError
def rows():
    for i in range(7): yield leaf(i)
for i in range(23): leaf(i)
down(200)
for i in range(11):
    try: fails()
    except ValueError: pass
list(rows())
for i in range(23): gc.collect(i % 3)
"""


def test_functions_of_python(traced_run: TracedRun) -> None:
    python = Path(PYTHON[0]).resolve()
    arguments = [
        argument(0, "file", "string", 128),
        argument(1, "function", "string", 64),
        argument(2, "line", "int", 4),
    ]
    layer = usdt_layer(
        python,
        model.UsdtPoint(
            provider="python",
            name="function__entry",
            returns="function__return",
            arguments=arguments,
        ),
        model.UsdtPoint(
            provider="python",
            name="gc__start",
            returns="gc__done",
            arguments=[argument(0, "generation", size=4)],
        ),
    )
    (traced_run.work / "script.py").write_text(SCRIPT)
    with traced_run.daemon(layer):
        traced_run.run(*PYTHON, "script.py")
    trace = traced_run.trace()
    calls = trace.sql(
        "SELECT a.text, count(*), sum(e.flags)::INT FROM events e JOIN arguments a ON "
        "(a.ts, a.tid, a.func) = (e.ts, e.tid, e.func) AND a.name = 'function' "
        "JOIN arguments f ON (f.ts, f.tid, f.func) = (e.ts, e.tid, e.func) AND f.name = 'file' "
        "WHERE f.text LIKE '%script.py' GROUP BY ALL ORDER BY 1"
    )
    assert calls == [
        ("down", 200, 200 * 8),
        ("fails", 11, 11 * 8),
        ("leaf", 23 + 1 + 7, 31 * 8),
        ("rows", 8, 8 * 8),
    ]
    generations = trace.sql(
        "SELECT value, count(*) FROM arguments a JOIN events e ON (a.ts, a.tid, a.func) = "
        "(e.ts, e.tid, e.func) AND e.dur > 0 WHERE name = 'generation' GROUP BY 1 ORDER BY 1"
    )
    found = dict(generations)
    assert found[1] == 8
    assert found[0] >= 8 and found[2] >= 7  # and while it starts and ends
    nested = trace.sql(
        "SELECT count(*) FROM events a JOIN events b ON a.tid = b.tid AND a.ts < b.ts "
        "WHERE b.ts < a.ts + a.dur AND b.ts + b.dur > a.ts + a.dur"
    )
    assert nested == [(0,)]


@pytest.mark.parametrize("place", ["address", "semaphore"])
def test_a_note_that_points_elsewhere_is_refused(traced_run: TracedRun, place: str) -> None:
    """A user may write any note: a breakpoint goes where a nop lies, and nowhere else."""
    where = "0b - 1" if place == "address" else "0b"
    semaphore = "0x123456789" if place == "semaphore" else "0"
    program = traced_run.compile(
        f"""
        int main(void) {{
            asm volatile("mov $7, %%eax\\n0: nop\\n"
                ".pushsection .note.stapsdt, \\"?\\", \\"note\\"\\n.balign 4\\n"
                ".4byte 2f-1f, 4f-3f, 3\\n1: .asciz \\"stapsdt\\"\\n2: .balign 4\\n"
                "3: .8byte {where}, 0, {semaphore}\\n"
                ".asciz \\"p\\"\\n.asciz \\"n\\"\\n.asciz \\"\\"\\n"
                "4: .balign 4\\n.popsection" ::: "eax");
            return 0;
        }}
        """,
        "-no-pie",
    )
    syscalls = model.SyscallLayer(name="syscall", functions=["read"])
    layer = usdt_layer(program, model.UsdtPoint(provider="p", name="n"))
    with traced_run.daemon(layer, syscalls):
        traced_run.run(program)
    (skipped,) = traced_run.info()["skipped"]
    assert "may be exchanged" in skipped["reason"]
