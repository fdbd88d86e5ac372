"""User functions: exact counts, right nesting, and programs that behave as if nobody looked."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from kernel.tracing import LIBRARY, RUN_ID, UNFINISHED, Trace, TracedRun

from datacrumbs.probes import elf, model
from datacrumbs.tracer import layout, usdt
from datacrumbs.tracer.libbpf import OBJECT_PATH, Object
from datacrumbs.tracer.rings import EventRing
from datacrumbs.tracer.user_functions import Attacher, Mechanism, Probe, attach_client, prepare

NESTED = """
SELECT count(*) FROM calls a JOIN calls b ON a.tid = b.tid AND a.ts < b.ts
WHERE b.ts < a.ts + a.dur AND b.ts + b.dur > a.ts + a.dur
"""
"""Pairs of calls of one thread that overlap without one containing the other."""


def user_layer(binary: Path, regex: str, name: str = "app") -> model.UserLayer:
    """The functions of ``binary`` that ``regex`` matches."""
    found = elf.read_functions(binary.resolve(), re.compile(regex), platform.machine())
    return model.UserLayer(
        name=name,
        binary=str(found.path),
        functions=found.functions,
        build_id=found.build_id,
        digest=found.digest,
    )


def traced(run: TracedRun, program: Path, regex: str, *, lost: int = 0) -> Trace:
    """The trace of ``program``, whose output must be what it is untraced."""
    plain = run.run(program, wrap=False)
    with run.daemon(user_layer(program, regex)):
        assert run.run(program) == plain
    return run.trace(lost=lost)


def counts(trace: Trace) -> list[tuple[str, int, int]]:
    """(function, calls that returned, calls that did not)."""
    return trace.sql(
        f"SELECT name, sum(flags & {UNFINISHED} = 0)::INT, sum(flags & {UNFINISHED})::INT "
        "FROM calls GROUP BY name ORDER BY name"
    )


def test_a_function_that_calls_itself_10_000_times(traced_run: TracedRun) -> None:
    program = traced_run.compile(
        """
        #include <stdio.h>
        __attribute__((noinline)) long leaf(long n) { asm volatile(""); return n + 1; }
        __attribute__((noinline)) long down(long n) {
            long r = n > 1 ? down(n - 1) : leaf(n);
            asm volatile("");
            return r + 1;
        }
        int main(void) {
            for (int i = 0; i < 3; i++) printf("%ld\\n", down(10000));
            printf("%ld\\n", down(40));
            return leaf(0) - 1;
        }
        """
    )
    trace = traced(traced_run, program, "down|leaf", lost=3 * (10_000 - 64 + 1))
    assert counts(trace) == [("down", 3 * 64 + 40, 0), ("leaf", 2, 0)]
    assert trace.sql(NESTED) == [(0,)]
    depth = "SELECT count(*) FROM calls a, calls b WHERE a.ret = 42 AND b.ts <= a.ts AND "
    assert trace.sql(depth + "b.ts + b.dur >= a.ts + a.dur AND b.name = 'down'")[0][0] > 0


def test_longjmp(traced_run: TracedRun) -> None:
    program = traced_run.compile(
        """
        #include <setjmp.h>
        #include <stdio.h>
        static jmp_buf back;
        __attribute__((noinline)) void leaps(int n) {
            if (n % 2) longjmp(back, 1);
            asm volatile("");
        }
        __attribute__((noinline)) void between(int n) { leaps(n); asm volatile(""); }
        __attribute__((noinline)) int plain(int n) { asm volatile(""); return n; }
        __attribute__((noinline)) int tries(int n) {
            volatile int done = 0;
            if (!setjmp(back)) { between(n); done = 1; }
            plain(n);
            return done;
        }
        int main(void) {
            int sum = 0;
            for (int i = 0; i < 46; i++) sum += tries(i);
            printf("%d\\n", sum);
        }
        """
    )
    trace = traced(traced_run, program, "leaps|between|plain|tries")
    expected = [("between", 23, 23), ("leaps", 23, 23), ("plain", 46, 0), ("tries", 46, 0)]
    assert counts(trace) == expected
    assert trace.sql(NESTED) == [(0,)]


def test_tail_calls(traced_run: TracedRun) -> None:
    program = traced_run.compile(
        """
        #include <stdio.h>
        __attribute__((noinline)) long third(long n) { asm volatile(""); return n + 1; }
        __attribute__((noinline)) long second(long n) { asm volatile(""); return third(n + 1); }
        __attribute__((noinline)) long first(long n) { asm volatile(""); return second(n + 1); }
        int main(void) {
            long sum = 0;
            for (int i = 0; i < 23; i++) sum += first(i);
            printf("%ld\\n", sum);
        }
        """,
        "-O2",
    )
    listing = subprocess.run(["objdump", "-d", program], capture_output=True, text=True, check=True)
    assert re.search(r"jmp .*<third>", listing.stdout), "the compiler made no tail call"
    trace = traced(traced_run, program, "first|second|third")
    assert counts(trace) == [("first", 23, 0), ("second", 23, 0), ("third", 23, 0)]
    assert trace.sql(NESTED) == [(0,)]
    rows = trace.sql("SELECT name, min(ret), max(ret) FROM calls GROUP BY name ORDER BY name")
    assert rows == [(name, 3, 25) for name in ("first", "second", "third")]


SIGNALS = """
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
__attribute__((noinline)) void inner(void) { asm volatile(""); }
__attribute__((noinline)) void handler(int n) { inner(); asm volatile(""); }
__attribute__((noinline)) void outer(void) { raise(SIGUSR1); asm volatile(""); }
static void *work(void *stack) {
    if (stack) {
        stack_t alternate = {.ss_sp = stack, .ss_size = 1 << 16};
        sigaltstack(&alternate, 0);
    }
    for (int i = 0; i < 23; i++) outer();
    return 0;
}
int main(void) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
    sigaction(SIGUSR1, &action, 0);
    /* mappings come from high addresses down: one above the thread's stack, one below */
    void *above = mmap(0, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < 3; i++) {
        pthread_t thread;
        void *stack = i == 0 ? 0 : i == 1 ? above : malloc(1 << 16);
        pthread_create(&thread, 0, work, stack);
        pthread_join(thread, 0);
        puts(i == 2 && (void *)&thread < stack ? "?" : "done");
    }
}
"""


def test_signal_handlers_on_any_stack(traced_run: TracedRun) -> None:
    program = traced_run.compile(SIGNALS)
    # on the stack above the thread's own, no return can be probed: handler and inner are lost
    trace = traced(traced_run, program, "outer|handler|inner", lost=23 * 2)
    assert counts(trace) == [("handler", 46, 0), ("inner", 46, 0), ("outer", 69, 0)]
    assert trace.sql(NESTED) == [(0,)]


TWO_ROUTINES = """
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>
#define ROOM (1 << 18)
static ucontext_t home, routine[2];
__attribute__((noinline)) void yield(int from) {
    swapcontext(&routine[from], &routine[!from]);
    asm volatile("");
}
__attribute__((noinline)) int step(int from, int n) {
    yield(from);
    asm volatile("");
    return n;
}
static void body(int from) {
    int sum = 0;
    for (int i = 0; i < 23; i++) sum += step(from, i);
    printf("%d %d\\n", from, sum);
}
__attribute__((noinline)) void run(void *first, void *second) {
    for (int i = 0; i < 2; i++) {
        getcontext(&routine[i]);
        routine[i].uc_stack.ss_size = ROOM;
        routine[i].uc_stack.ss_sp = i ? second : first;
        routine[i].uc_link = i ? &home : &routine[1];
        makecontext(&routine[i], (void (*)(void))body, 1, i);
    }
    swapcontext(&home, &routine[0]);
    asm volatile("");
}
static void *mapped(size_t size) {
    return mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}
"""
"""Coroutines that go on by turns, on the stacks that `run` is given."""

COROUTINES = (
    TWO_ROUTINES
    + """
int main(void) {
    run(malloc(ROOM), malloc(ROOM));
    run(mapped(ROOM), mapped(ROOM));
    puts("end");
}
"""
)


def test_coroutines(traced_run: TracedRun) -> None:
    program = traced_run.compile(COROUTINES)
    # their calls do not return in the order that return probes need: lost, but not broken
    trace = traced(traced_run, program, "run|step|yield", lost=2 * 2 * 2 * 23)
    assert counts(trace) == [("run", 2, 0)]


BESIDE_THE_STACK = (
    TWO_ROUTINES
    + """
static char *rooms;
static void *work(void *room) {
    run(rooms + ((int *)room)[0] * ROOM, rooms + ((int *)room)[1] * ROOM);
    return 0;
}
int main(void) {
    /* of the thread and the two coroutines: all in one mapping, in every order */
    static int room[][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    rooms = mapped(3 * ROOM);
    for (int i = 0; i < 6; i++) {
        pthread_t thread;
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setstack(&attributes, rooms + room[i][0] * ROOM, ROOM);
        pthread_create(&thread, &attributes, work, &room[i][1]);
        pthread_join(thread, 0);
    }
    puts("end");
}
"""
)


def test_coroutines_beside_their_thread_s_stack(traced_run: TracedRun) -> None:
    program = traced_run.compile(BESIDE_THE_STACK)
    trace = traced(traced_run, program, "run|step|yield", lost=6 * 2 * 2 * 23)
    assert counts(trace) == [("run", 6, 0)]


def test_threads_that_begin_while_others_map_memory_lose_no_call(traced_run: TracedRun) -> None:
    program = traced_run.compile(Path(__file__).with_name("crowd.c").read_text(), name="crowd")
    with traced_run.daemon(user_layer(program, "step")):
        made = int(traced_run.run(program, "8", "15000"))
    assert made > 8 * 15_000
    assert counts(traced_run.trace()) == [("step", made, 0)]


EXCEPTIONS = """
#include <cstdio>
#include <stdexcept>
struct Guard { ~Guard() { std::printf("guard\\n"); } };
extern "C" {
__attribute__((noinline)) int deep(int n) {
    if (n % 2) throw std::runtime_error("odd");
    asm volatile("");
    return n;
}
__attribute__((noinline)) int middle(int n) {
    Guard guard;
    int r = deep(n);
    asm volatile("");
    return r + 1;
}
__attribute__((noinline)) int catches(int n) {
    try {
        return middle(n);
    } catch (const std::exception &e) {
        std::printf("%s\\n", e.what());
        return -1;
    }
}
__attribute__((noinline)) int choose(int n) {
    switch (n % 7) {
    case 0: return catches(n);
    case 1: std::puts("one"); return 1;
    case 2: std::puts("two"); return 3;
    case 3: std::puts("three"); return 7;
    case 4: std::puts("four"); return 12;
    case 5: std::puts("five"); return 11;
    default: return 2 * n;
    }
}
}
int main(int argc, char **argv) {
    long sum = 0;
    for (int i = 0; i < 46; i++) sum += catches(i);
    for (int i = 0; i < 70; i++) sum += choose(i);
    std::printf("%ld\\n", sum);
}
"""


def cpp(run: TracedRun, source: str, *flags: str) -> Path:
    """A C++ program in the run's directory."""
    program = run.work / "program"
    program.with_suffix(".cc").write_text(source)
    command = ["g++", "-O2", *flags, "-o", program, program.with_suffix(".cc")]
    subprocess.run(command, check=True)
    return program


def test_exceptions_pass_probed_functions(traced_run: TracedRun) -> None:
    program = cpp(traced_run, EXCEPTIONS)
    trace = traced(traced_run, program, "deep|middle|catches|choose")
    assert counts(trace) == [
        ("catches", 56, 0),
        ("choose", 70, 0),
        ("deep", 28, 28),
        ("middle", 28, 28),
    ]
    assert trace.sql(NESTED) == [(0,)]
    by = {row["mechanism"]: row["functions"] for row in traced_run.info()["mechanisms"]}
    assert by == {"uprobe.multi, exits": 4}
    assert trace.sql("SELECT sum(ret) FROM calls WHERE name = 'catches' AND ret > 0")[0][0] > 0


def test_aliases_and_calls_through_the_plt(traced_run: TracedRun) -> None:
    library = traced_run.work / "liba.so"
    source = traced_run.work / "liba.c"
    source.write_text(
        """
        __attribute__((noinline)) int work(int n) { asm volatile(""); return n + 1; }
        extern int job(int) __attribute__((alias("work")));
        extern int task(int) __attribute__((alias("work"), weak));
        int both(int n) { return work(job(n)) + task(n); }
        """
    )
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    program = traced_run.compile(
        """
        #include <stdio.h>
        int work(int), job(int), task(int), both(int);
        int main(void) {
            int sum = 0;
            for (int i = 0; i < 23; i++) sum += both(i) + work(i) + job(i) + task(i);
            printf("%d\\n", sum);
        }
        """,
        *("-Wl,-z,lazy", "-Wl,--no-as-needed", f"-Wl,-rpath,{traced_run.work}", str(library)),
    )
    with traced_run.daemon(user_layer(library, "work|job|task|both")):
        traced_run.run(program)
    trace = traced_run.trace()
    assert [row[1:] for row in counts(trace)] == [(23, 0), (23 * 6, 0)]
    assert trace.sql(NESTED) == [(0,)]


FAMILIES = """
#define _GNU_SOURCE
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
__attribute__((noinline)) int leaf(int n) { asm volatile(""); return n; }
__attribute__((noinline)) int forks(void) {
    if (!fork()) { leaf(1); return 0; }
    wait(0);
    return 1;
}
__attribute__((noinline)) int vforks(void) {
    if (!vfork()) { leaf(2); execl("/bin/true", "true", (char *)0); _exit(1); }
    int status;
    wait(&status);
    return status;
}
__attribute__((noinline)) void execs(char **argv) {
    leaf(3);
    execl(argv[0], argv[0], "again", (char *)0);
}
int main(int argc, char **argv) {
    if (argc > 1) return leaf(4) - 4;
    setvbuf(stdout, 0, _IONBF, 0);
    for (int i = 0; i < 7; i++) if (!forks()) _exit(leaf(5));
    for (int i = 0; i < 11; i++) printf("%d\\n", vforks());
    puts("end");
    execs(argv);
}
"""


def test_fork_vfork_and_exec_within_functions(traced_run: TracedRun) -> None:
    program = traced_run.compile(FAMILIES)
    trace = traced(traced_run, program, "leaf|forks|vforks|execs")
    assert counts(trace) == [
        ("execs", 0, 1),  # did not return: another program took its place
        ("forks", 7, 0),  # the child's return is of a call that began in the parent
        ("leaf", 7 + 11 + 1 + 1 + 7, 0),
        ("vforks", 11, 0),
    ]
    assert trace.sql("SELECT count(DISTINCT pid) FROM calls WHERE name = 'leaf'") == [(19,)]


def test_a_thread_is_cancelled_within_a_function(traced_run: TracedRun) -> None:
    program = traced_run.compile(
        """
        #include <pthread.h>
        #include <stdio.h>
        #include <unistd.h>
        static void cleanup(void *what) { puts(what); }
        __attribute__((noinline)) void waits(void) { pause(); asm volatile(""); }
        static void *work(void *none) {
            pthread_cleanup_push(cleanup, "cleaned up");
            waits();
            pthread_cleanup_pop(0);
            return 0;
        }
        int main(void) {
            for (int i = 0; i < 3; i++) {
                void *result;
                pthread_t thread;
                pthread_create(&thread, 0, work, 0);
                usleep(20000);
                pthread_cancel(thread);
                pthread_join(thread, &result);
                puts(result == PTHREAD_CANCELED ? "cancelled" : "returned");
            }
        }
        """
    )
    trace = traced(traced_run, program, "waits")
    assert counts(trace) == [("waits", 0, 3)]


def test_a_binary_that_is_replaced_while_it_runs(traced_run: TracedRun) -> None:
    source = """
    #include <stdio.h>
    __attribute__((noinline)) int work(int n) { asm volatile(""); return n + %d; }
    int main(void) {
        char c;
        int sum = 0;
        while (fread(&c, 1, 1, stdin) == 1) {
            for (int i = 0; i < 23; i++) sum += work(i);
            printf("%%d\\n", sum);
            fflush(stdout);
        }
    }
    """
    program = traced_run.compile(source % 1)
    layer = user_layer(program, "work")
    other = traced_run.compile(source % 2, name="other")
    with traced_run.daemon(layer):
        with traced_run.start(
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as old:
            assert old.stdin and old.stdout
            old.stdin.write("x")
            old.stdin.flush()
            assert old.stdout.readline() == "276\n"
            other.rename(program)
            assert traced_run.run(program, stdin=subprocess.DEVNULL) == ""
            old.stdin.write("x")
            old.stdin.close()
            assert old.stdout.readline() == "552\n"
        assert old.returncode == 0
    assert counts(traced_run.trace()) == [("work", 46, 0)]


def test_a_layer_that_cannot_be_attached_leaves_the_others(traced_run: TracedRun) -> None:
    program = traced_run.compile(
        """
        __attribute__((noinline)) int work(int n) { asm volatile(""); return n; }
        int main(void) { for (int i = 0; i < 23; i++) work(i); return 0; }
        """
    )
    good = user_layer(program, "work")
    text = traced_run.work / "text"
    text.write_text("no ELF file\n")
    changed = traced_run.compile(
        "int work(void) { return 1; } int main(void) { return 0; }", name="b"
    )
    stale = user_layer(changed, "work", "changed")
    traced_run.compile("int work(void) { return 2; } int main(void) { return 0; }", name="b")
    nonsense = [model.UserFunction(name="nonsense", offset=good.functions[0].offset + 1)]
    bad = [
        model.UserLayer(name="gone", binary="/nonexistent/x", functions=nonsense, build_id="00"),
        model.UserLayer(name="text", binary=str(text), functions=nonsense, build_id="00"),
        stale,
        model.UserLayer(
            name="middle", binary=good.binary, functions=nonsense, build_id=good.build_id
        ),
    ]
    with traced_run.daemon(*bad, good):
        traced_run.run(program)
    assert counts(traced_run.trace()) == [("work", 23, 0)]
    skipped = {row["layer"]: row["reason"] for row in traced_run.info()["skipped"]}
    assert list(skipped) == ["gone", "text", "changed", "middle"]
    assert "No such file" in skipped["gone"]
    assert "not an ELF file" in skipped["text"]
    assert "not the file the probe file was made for" in skipped["changed"]
    assert skipped["middle"] == "no function begins there"


FALL_BACKS = """
#include <stdio.h>
__attribute__((noinline)) long down(long n) {
    long r = n > 1 ? down(n - 1) : 0;
    asm volatile("");
    return r + 1;
}
int main(void) { for (int i = 0; i < 23; i++) down(i + 60); }
"""


@pytest.mark.parametrize("mechanism", list(Mechanism))
def test_every_mechanism_gives_the_same(traced_run: TracedRun, mechanism: Mechanism) -> None:
    program = traced_run.compile(FALL_BACKS)
    (function,) = user_layer(program, "down").functions
    bpf = Object(OBJECT_PATH, log=print)
    config = bpf.memory(".rodata.config", layout.Config)
    config.uid, config.run_id = traced_run.user.pw_uid, RUN_ID.encode()
    config.functions[1].select = layout.JOINED
    config.ns_inum = Path("/proc/self/ns/pid").stat().st_ino
    bpf.set_entries("rings", 1)
    prepare(bpf, mechanism)
    usdt.prepare(bpf, [], mechanism)
    with closing(bpf):
        bpf.load()
        (fd,) = bpf.add_rings("rings", 1, 1 << 20)
        ring = EventRing(fd, 1 << 20)
        os.close(fd)
        probes = [Probe(1, "down", function.offset)]
        assert list(Attacher(bpf, program, mechanism).attach(probes)) == []
        attach_client(bpf, LIBRARY)
        for name in ("on_fork", "on_exec"):
            bpf.attach(name)
        traced_run.run(program)
        bpf.detach()
        events: list[int] = []
        ring.drain(lambda batch: events.extend(batch["ret"].tolist()))
        counters = bpf.shared(".data.counters", layout.Counters * layout.MAX_CPUS)
        lost = sum(c.lost for c in counters)
    assert len(events) == sum(min(i + 60, 64) for i in range(23))
    assert sorted(events)[-1] == 82
    assert lost == sum(max(i + 60 - 64, 0) for i in range(23))


ARGUMENTS = """
#include <stdio.h>
__attribute__((noinline))
int takes(char a, unsigned short b, long c, const char *s, void *p, unsigned long u) {
    asm volatile("" : : "r"(s), "r"(p) : "memory");
    return a + b;
}
__attribute__((noinline)) int plain(int n) { asm volatile(""); return n; }
int main(void) {
    char text[1000], data[4] = {0, 1, 'x', -1};
    puts("what is read is in memory by now");
    for (int i = 0; i < 999; i++) text[i] = 'a' + i % 26;
    text[999] = 0;
    for (int i = 0; i < 23; i++) {
        takes(-1 - i, 65535, -5000000000 - i, "h\\303\\251llo", data, -1ul);
        plain(i);
    }
    takes(1, 2, 3, text, data, 4);
    takes(1, 2, 3, (char *)16, (void *)16, 5);
    takes(1, 2, 3, "", 0, 6);
}
"""


def test_arguments(traced_run: TracedRun) -> None:
    program = traced_run.compile(ARGUMENTS)
    layer = user_layer(program, "takes|plain")
    wanted = [
        model.Argument(name="a", index=0, bytes=1),
        model.Argument(name="b", index=1, type=model.ArgumentType.UINT, bytes=2),
        model.Argument(name="c", index=2),
        model.Argument(name="s", index=3, type=model.ArgumentType.STRING, bytes=9),
        model.Argument(name="p", index=4, type=model.ArgumentType.BYTES, bytes=4),
        model.Argument(name="u", index=5, type=model.ArgumentType.UINT),
    ]
    functions = [
        msgspec.structs.replace(f, arguments=wanted if f.name == "takes" else [])
        for f in layer.functions
    ]
    with traced_run.daemon(msgspec.structs.replace(layer, functions=functions)):
        traced_run.run(program)
    trace = traced_run.trace()
    rows = trace.sql(
        "SELECT e.ts, e.flags, list((a.name, a.value, a.text) ORDER BY a.name) FROM events e "
        "JOIN functions n USING (func) JOIN arguments a ON (a.ts, a.tid, a.func) = "
        "(e.ts, e.tid, e.func) WHERE n.name = 'takes' GROUP BY ALL ORDER BY e.ts"
    )
    calls = [{name: (value, text) for name, value, text in row[2]} for row in rows]
    assert {row[1] for row in rows} == {8}
    assert len(calls) == 26
    for i in range(23):
        assert calls[i] == {
            "a": (-1 - i, None),
            "b": (65535, None),
            "c": (-5000000000 - i, None),
            "s": (None, "h\u00e9llo"),
            "p": (None, "\0\1x\\xff"),
            "u": (-1, None),  # 2**64 - 1 does not fit the column
        }
    assert calls[23]["s"] == (None, "abcdefgh")
    assert calls[24]["s"] == calls[24]["p"] == (None, None)
    assert (calls[25]["s"], calls[25]["p"]) == ((None, ""), (None, None))
    assert calls[24]["u"] == (5, None)
    assert trace.sql("SELECT count(*) FROM events WHERE flags = 0") == [(23,)]


def test_all_functions_of_the_c_library(traced_run: TracedRun) -> None:
    """Whatever can be probed is; what cannot is named; and programs notice nothing."""
    library = traced_run.work / "libc.so.6"
    shutil.copy(elf.find_binary("libc.so.6", platform.machine()), library)
    layer = user_layer(library, ".*", "libc")
    script = """
import ctypes, os, re, subprocess, sys, tempfile, threading, time
print(subprocess.run(["sort"], input=b"b\\na\\n", capture_output=True).stdout)
threads = [threading.Thread(target=time.sleep, args=(0.01,)) for _ in range(4)]
[t.start() for t in threads], [t.join() for t in threads]
with tempfile.TemporaryFile() as file:
    file.write(b"x" * 100000)
    print(file.tell(), os.fork() and os.wait()[1])
print(re.sub("a+", "b", "caat"), sum(range(1000)), time.strftime("%Y", time.gmtime(0)))
"""
    variables = {"LD_LIBRARY_PATH": str(traced_run.work)}
    plain = traced_run.python(script, wrap=False, env=variables)
    with traced_run.daemon(layer):
        assert traced_run.python(script, env=variables) == plain
    info = traced_run.info()
    attached = sum(row["functions"] for row in info["mechanisms"])
    assert attached + len(info["skipped"]) == len(layer.functions)
    assert attached > 2000
    assert len(info["skipped"]) < 10
    assert info["counts"]["events"] > 1000


def test_a_stripped_binary_and_one_on_a_noexec_mount(traced_run: TracedRun) -> None:
    program = traced_run.compile(
        """
        __attribute__((noinline)) int work(int n) { asm volatile(""); return n; }
        int main(void) { for (int i = 0; i < 23; i++) work(i); return 0; }
        """
    )
    layer = user_layer(program, "work", "stripped")
    subprocess.run(["strip", program], check=True)
    mount = traced_run.root / "noexec"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "noexec", "none", mount], check=True)
    try:
        there = mount / "program"
        shutil.copy(program, there)
        unused = msgspec.structs.replace(layer, name="noexec", binary=str(there))
        with traced_run.daemon(unused, layer):
            traced_run.run(program)
            there.unlink()
    finally:
        subprocess.run(["umount", mount], check=True)
    assert counts(traced_run.trace()) == [("work", 23, 0)]
    assert [row["functions"] for row in traced_run.info()["mechanisms"]] == [1, 1]


def test_children_of_threads_and_of_posix_spawn(traced_run: TracedRun) -> None:
    program = traced_run.compile(
        """
        #include <pthread.h>
        #include <spawn.h>
        #include <stdio.h>
        #include <sys/wait.h>
        #include <unistd.h>
        __attribute__((noinline)) int leaf(int n) { asm volatile(""); return n; }
        static void *forks(void *none) {
            if (!fork()) _exit(leaf(3) - 3);
            wait(0);
            return 0;
        }
        int main(void) {
            for (int i = 0; i < 11; i++) {
                pthread_t thread;
                pthread_create(&thread, 0, forks, 0);
                pthread_join(thread, 0);
            }
            for (int i = 0; i < 23; i++) {
                pid_t child;
                char *arguments[] = {"true", 0};
                posix_spawn(&child, "/bin/true", 0, 0, arguments, arguments + 1);
                waitpid(child, 0, 0);
            }
            puts("end");
        }
        """
    )
    library = traced_run.work / "libc.so.6"
    shutil.copy(elf.find_binary("libc.so.6", platform.machine()), library)
    layers = user_layer(program, "leaf"), user_layer(library, "execve|posix_spawn", "libc")
    with traced_run.daemon(*layers):
        traced_run.run(program, env={"LD_LIBRARY_PATH": str(traced_run.work)})
    assert counts(traced_run.trace()) == [
        ("execve", 0, 23),
        ("leaf", 11, 0),
        ("posix_spawn", 23, 0),
    ]
