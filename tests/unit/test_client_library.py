"""libdatacrumbs_client.so: what it is made of, what it says at start, and where it must survive.

What it says is seen as the daemon sees it: a breakpoint on the first instruction of
``datacrumbs_start`` in a copy of the installed library, and the argument read from there.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import string
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datacrumbs.config import SystemConfig
from datacrumbs.run import RUN_ID_MAX, RUN_ID_VARIABLES, program_run_id

LIBRARY = SystemConfig().client_library_path()
BREAKPOINT = b"\xcc"
NOP = b"\x90"
PTRACE_TRACEME, PTRACE_CONT, PTRACE_GETREGS, PTRACE_SETOPTIONS = 0, 7, 12, 0x4200
PTRACE_O_TRACEEXEC, PTRACE_O_EXITKILL = 0x10, 0x100000
USER_REGS_WORDS, RDI = 27, 14
"""Of x86-64's struct user_regs_struct."""

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


@dataclass(frozen=True)
class Seen:
    """One traced program: the run ids it said, and how it went."""

    run_ids: tuple[bytes, ...]
    stdout: bytes
    stderr: bytes
    returncode: int


def _start_offset() -> int:
    """Where the code of ``datacrumbs_start`` stands in the file."""
    with open(LIBRARY, "rb") as file:
        elf: Any = ELFFile(file)
        symbol = elf.get_section_by_name(".dynsym").get_symbol_by_name("datacrumbs_start")[0]
        offset: int = next(iter(elf.address_offsets(symbol["st_value"])))
        return offset


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the installed library with a breakpoint where the daemon's uprobe sits."""
    code = bytearray(LIBRARY.read_bytes())
    offset = _start_offset()
    code[offset : offset + 1] = BREAKPOINT
    directory = tmp_path_factory.mktemp("observed")
    path = directory / LIBRARY.name
    path.write_bytes(code)
    return path


def _trace_me() -> None:
    libc.ptrace(PTRACE_TRACEME, 0, None, None)


def _watch(argv: list[str | Path], environ: dict[bytes, bytes]) -> Seen:
    """Run ``argv`` and note the argument of each breakpoint it stops at."""
    with subprocess.Popen(
        argv,
        env=environ,
        preexec_fn=_trace_me,  # noqa: PLW1509 - one system call, and no threads here
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            found = tuple(_arguments(process))
        finally:
            process.kill()
        stdout, stderr = process.communicate()
        return Seen(found, stdout, stderr, process.returncode)


def _arguments(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """What is said until the process ends; sets its exit code."""
    os.waitpid(process.pid, 0)  # stopped at its exec
    libc.ptrace(PTRACE_SETOPTIONS, process.pid, None, PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL)
    number = 0
    while True:
        libc.ptrace(PTRACE_CONT, process.pid, None, number)
        _, status = os.waitpid(process.pid, 0)
        if not os.WIFSTOPPED(status):
            process.returncode = os.waitstatus_to_exitcode(status)
            return
        number = 0 if os.WSTOPSIG(status) == signal.SIGTRAP else os.WSTOPSIG(status)
        if status >> 8 == signal.SIGTRAP:  # no further bits: not an exec
            yield _argument(process.pid)


def _argument(pid: int) -> bytes:
    registers = (ctypes.c_ulong * USER_REGS_WORDS)()
    libc.ptrace(PTRACE_GETREGS, pid, None, ctypes.addressof(registers))
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(registers[RDI])
        return memory.read(RUN_ID_MAX + 2).partition(b"\0")[0]


def _environ(**variables: str | bytes | Path) -> dict[bytes, bytes]:
    return {os.fsencode(name): os.fsencode(value) for name, value in variables.items()}


def _said(library: Path, *argv: str | Path, **variables: str | bytes) -> tuple[bytes, ...]:
    """The run ids that a program said, which otherwise must go well and say nothing else."""
    seen = _watch([*argv] or ["/bin/true"], _environ(LD_PRELOAD=library, **variables))
    assert (seen.returncode, seen.stderr) == (0, b"")
    return seen.run_ids


def _compile(directory: Path, source: str, *flags: str, compiler: str = "gcc") -> Path:
    code, output = directory / "program.c", directory / "program"
    code.write_text(source)
    subprocess.run([compiler, "-O1", "-o", output, code, *flags], check=True)
    return output


# what it is made of


def _elf_facts() -> tuple[set[str], dict[str, Any], set[str]]:
    with open(LIBRARY, "rb") as file:
        elf: Any = ELFFile(file)
        segments = {s["p_type"] for s in elf.iter_segments()}
        tags = {t.entry.d_tag: t for t in elf.get_section_by_name(".dynamic").iter_tags()}
        sections = {s.name for s in elf.iter_sections()}
        return segments, tags, sections


def test_it_needs_nothing_and_changes_nothing() -> None:
    segments, tags, sections = _elf_facts()
    assert not tags.keys() & {"DT_NEEDED", "DT_TEXTREL", "DT_FINI", "DT_FINI_ARRAY", "DT_RPATH"}
    assert not tags["DT_FLAGS"].entry.d_val & 0x4, "text relocations"
    assert "PT_TLS" not in segments
    assert "PT_GNU_RELRO" in segments
    assert tags["DT_FLAGS"].entry.d_val & 0x8, "not bound at load"
    assert not sections & {".data", ".bss", ".tdata", ".tbss", ".plt", ".data.rel.ro"}
    assert ".note.gnu.build-id" in sections


def test_its_only_symbols_are_the_probed_function_and_a_weak_environ() -> None:
    with open(LIBRARY, "rb") as file:
        elf: Any = ELFFile(file)
        symbols = list(elf.get_section_by_name(".dynsym").iter_symbols())[1:]
    defined = {s.name for s in symbols if s["st_shndx"] != "SHN_UNDEF"}
    wanted = {(s.name, s["st_info"]["bind"]) for s in symbols if s["st_shndx"] == "SHN_UNDEF"}
    assert defined == {"datacrumbs_start"}
    assert wanted == {("__environ", "STB_WEAK")}


def test_the_stack_stays_unexecutable_and_shadow_stacks_stay_on() -> None:
    with open(LIBRARY, "rb") as file:
        elf: Any = ELFFile(file)
        stack = next(s for s in elf.iter_segments() if s["p_type"] == "PT_GNU_STACK")
        note = elf.get_section_by_name(".note.gnu.property").data()
    assert not stack["p_flags"] & 1
    assert note[-8] & 2, "GNU_PROPERTY_X86_FEATURE_1_SHSTK"


def test_the_probed_instruction_is_one_the_kernel_emulates() -> None:
    offset = _start_offset()
    assert LIBRARY.read_bytes()[offset : offset + 1] == NOP


# what it says


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, ()),
        ({"DATACRUMBS_RUN_ID": "a"}, (b"a",)),
        ({"SLURM_JOB_ID": "3", "FLUX_JOB_ID": "f2", "DATACRUMBS_RUN_ID": "1"}, (b"1",)),
        ({"DATACRUMBS_RUN_ID": "1", "FLUX_JOB_ID": "f2", "SLURM_JOB_ID": "3"}, (b"1",)),
        ({"SLURM_JOB_ID": "3", "FLUX_JOB_ID": "f2"}, (b"f2",)),
        ({"SLURM_JOB_ID": "3"}, (b"3",)),
        ({"DATACRUMBS_RUN_ID": "", "SLURM_JOB_ID": "3"}, (b"3",)),
        ({"DATACRUMBS_RUN_IDX": "a", "XDATACRUMBS_RUN_ID": "b", "DATACRUMBS_RUN_I": "c"}, ()),
        ({"FLUX_JOB_ID": "\u0192Ab9"}, (b"fAb9",)),
        ({"DATACRUMBS_RUN_ID": "x" * RUN_ID_MAX}, (b"x" * RUN_ID_MAX,)),
        ({"DATACRUMBS_RUN_ID": "x" * (RUN_ID_MAX + 1)}, ()),
        ({"FLUX_JOB_ID": "\u0192" + "x" * (RUN_ID_MAX - 1)}, (b"f" + b"x" * (RUN_ID_MAX - 1),)),
        ({"FLUX_JOB_ID": "\u0192" + "x" * RUN_ID_MAX}, ()),
        ({"DATACRUMBS_RUN_ID": "x" * 100_000}, ()),
    ],
)
def test_it_says_the_run_id_of_the_environment(
    observed: Path, variables: dict[str, str], said: tuple[bytes, ...]
) -> None:
    assert _said(observed, **variables) == said


ids = st.text(alphabet=string.ascii_letters + string.digits + "_-", min_size=0, max_size=RUN_ID_MAX)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    variables=st.dictionaries(
        st.sampled_from((*RUN_ID_VARIABLES, "FLUX", "SLURM_JOB_IDS", "A")), ids
    ),
    seed=st.integers(min_value=0, max_value=1000),
)
def test_it_and_python_find_the_same_run_id(
    observed: Path, variables: dict[str, str], seed: int
) -> None:
    shuffled = list(variables.items())
    random.Random(seed).shuffle(shuffled)
    found = program_run_id(variables)
    expected = (found[0].encode(),) if found else ()
    assert _said(observed, **dict(shuffled)) == expected


def test_it_says_it_once_per_exec(observed: Path) -> None:
    seen = _watch(
        ["/bin/sh", "-c", "exec /bin/echo hello"],
        _environ(LD_PRELOAD=observed, DATACRUMBS_RUN_ID="r"),
    )
    assert seen == Seen((b"r", b"r"), b"hello\n", b"", 0)


def _interpreter(program: str | Path) -> str:
    with open(program, "rb") as file:
        segments: Any = ELFFile(file).iter_segments("PT_INTERP")
        name: str = next(segments).get_interp_name()
        return name


def test_an_empty_environment(observed: Path) -> None:
    seen = _watch([_interpreter("/bin/true"), "--preload", observed, "/bin/true"], {})
    assert seen == Seen((), b"", b"", 0)


# where it must survive


HELLO = """
#include <stdio.h>
int main(void) { puts("hello"); return 0; }
"""


@pytest.mark.parametrize("sanitizer", ["address", "undefined", "thread", "leak"])
def test_programs_with_sanitizers(observed: Path, tmp_path: Path, sanitizer: str) -> None:
    program = _compile(tmp_path, HELLO, f"-fsanitize={sanitizer}")
    # what datacrumbs_wrap sets, see datacrumbs.client.wrap.preloading
    variables = _environ(
        LD_PRELOAD=observed,
        DATACRUMBS_RUN_ID="r",
        ASAN_OPTIONS="verify_asan_link_order=0:detect_leaks=0",
        LSAN_OPTIONS="detect_leaks=0",  # the leak checker cannot work below ptrace
    )
    # TSan may start the program anew without address randomization: the id is said twice then
    seen = _watch([program], variables)
    assert (seen.returncode, seen.stdout, seen.stderr) == (0, b"hello\n", b"")
    assert b"r" in seen.run_ids


@pytest.mark.parametrize("sanitizer", ["address", "leak"])
def test_leak_checkers_still_find_leaks_only(tmp_path: Path, sanitizer: str) -> None:
    source = "#include <stdlib.h>\nvoid *volatile p;\n"
    source += "int main(int c, char **v) { (void)v; p = malloc(c); p = 0; return 0; }\n"
    program = _compile(tmp_path, source, f"-fsanitize={sanitizer}")
    environ = {
        "LD_PRELOAD": str(LIBRARY),
        "DATACRUMBS_RUN_ID": "r",
        "ASAN_OPTIONS": "verify_asan_link_order=0",
    }
    result = subprocess.run([program], env=environ, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "1 byte(s) leaked in 1 allocation(s)" in result.stderr


def test_a_program_that_takes_all_static_tls(observed: Path, tmp_path: Path) -> None:
    source = """
        #include <stdio.h>
        static __thread char large[4 << 20] = "hello";
        int main(void) { puts(large); large[sizeof large - 1] = 1; return 0; }
    """
    greedy = tmp_path / "greedy.c"
    greedy.write_text("__thread char tls[1200] = {1}; char *get(void) { return tls; }\n")
    library = tmp_path / "libgreedy.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-ftls-model=initial-exec", "-o", library, greedy], check=True
    )
    program = _compile(tmp_path, source, "-Wl,--no-as-needed", str(library))
    seen = _watch([program], _environ(LD_PRELOAD=observed, DATACRUMBS_RUN_ID="r"))
    assert seen == Seen((b"r",), b"hello\n", b"", 0)


def test_a_program_with_a_variable_of_its_own_called_environ(
    observed: Path, tmp_path: Path
) -> None:
    source = "int environ[64] = {1, 2, 3, 4};\nint main(void) { return environ[0] - 1; }\n"
    program = _compile(tmp_path, source, "-rdynamic")
    assert _said(observed, program, DATACRUMBS_RUN_ID="r") == (b"r",)


def test_a_program_with_a_function_of_its_own_called_datacrumbs_start(
    observed: Path, tmp_path: Path
) -> None:
    source = """
        #include <stdlib.h>
        void datacrumbs_start(const char *run_id) { (void)run_id; abort(); }
        int main(void) { return 0; }
    """
    program = _compile(tmp_path, source, "-rdynamic")
    assert _said(observed, program, DATACRUMBS_RUN_ID="r") == (b"r",)


@pytest.mark.parametrize("ours_first", [True, False])
def test_other_preloads(observed: Path, tmp_path: Path, *, ours_first: bool) -> None:
    source = tmp_path / "other.c"
    source.write_text(
        "#include <stdlib.h>\n#include <unistd.h>\n"
        "pid_t getppid(void) { return 7; }\n"
        '__attribute__((constructor)) static void on(void) { setenv("OTHER", "on", 1); }\n'
    )
    other = tmp_path / "libother.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", other, source], check=True)
    program = _compile(
        tmp_path,
        "#include <stdio.h>\n#include <stdlib.h>\n#include <unistd.h>\n"
        'int main(void) { printf("%d %s\\n", (int)getppid(), getenv("OTHER")); return 0; }\n',
    )
    both = (observed, other) if ours_first else (other, observed)
    seen = _watch(
        [program],
        _environ(LD_PRELOAD=":".join(map(str, both)), DATACRUMBS_RUN_ID="r", OTHER="off"),
    )
    assert seen == Seen((b"r",), b"7 on\n", b"", 0)


def test_a_program_of_another_libc(observed: Path, tmp_path: Path) -> None:
    program = _compile(tmp_path, HELLO, compiler="musl-gcc")
    assert "musl" in _interpreter(program)
    for variables, said in (({"SLURM_JOB_ID": "12"}, (b"12",)), ({}, ())):
        seen = _watch([program], _environ(LD_PRELOAD=observed, **variables))
        assert seen == Seen(said, b"hello\n", b"", 0)


def test_a_setuid_program_runs_without_it() -> None:
    """The loader drops the preload in silence. As root, nobody has to ask for it."""
    as_nobody: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}
    program = "/usr/bin/su"
    assert Path(program).stat().st_mode & 0o4000
    result = subprocess.run(
        [program, "--version"],
        env={"LD_PRELOAD": str(LIBRARY), "DATACRUMBS_RUN_ID": "r"},
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        **(as_nobody if os.geteuid() == 0 else {}),
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("su ")


def test_a_static_program_runs_without_it(observed: Path, tmp_path: Path) -> None:
    program = _compile(tmp_path, HELLO, "-static")
    seen = _watch([program], _environ(LD_PRELOAD=observed, DATACRUMBS_RUN_ID="r"))
    assert seen == Seen((), b"hello\n", b"", 0)


def test_it_can_be_loaded_into_a_running_program() -> None:
    before = Path("/proc/self/maps").read_text().count(LIBRARY.name)
    assert ctypes.CDLL(str(LIBRARY)).datacrumbs_start(b"no daemon") is not None
    assert Path("/proc/self/maps").read_text().count(LIBRARY.name) > before
