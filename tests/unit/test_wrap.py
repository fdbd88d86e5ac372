"""datacrumbs_wrap: it becomes the program and changes nothing but what gets the program traced."""

from __future__ import annotations

import errno
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from datacrumbs.client.wrap import find_program, is_tracing, obstacle, preloading
from datacrumbs.config import SystemConfig, load_system_config
from datacrumbs.errors import UserError

WRAP = Path(sys.prefix, "bin", "datacrumbs_wrap")
LIBRARY = load_system_config().client_library_path()
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
NOBODY: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": [], "cwd": "/"}


def _wrap(
    *arguments: str | bytes | Path, run_id: str | None = "r1", **settings: Any
) -> subprocess.CompletedProcess[str]:
    environ = settings.pop("env", {"PATH": PATH})
    joined = {} if run_id is None else {"DATACRUMBS_RUN_ID": run_id}
    settings = {"stdin": subprocess.DEVNULL, "encoding": "utf-8", **settings}
    return subprocess.run(
        [WRAP, *arguments],
        env={**environ, **joined},
        capture_output=True,
        errors="surrogateescape",
        check=False,
        **settings,
    )


def _compile(path: Path, source: str, *flags: str) -> Path:
    code = path.with_suffix(".c")
    code.write_text(source)
    subprocess.run(["gcc", "-o", path, code, *flags], check=True)
    return path


EMPTY = "int main(void) { return 0; }\n"


# it becomes the program


def test_process_id_and_exit_code_are_the_programs() -> None:
    with subprocess.Popen(
        [WRAP, "sh", "-c", "echo $$; exit 43"],
        env={"PATH": PATH, "DATACRUMBS_RUN_ID": "r1"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout and process.stdout.read() == f"{process.pid}\n"
    assert process.returncode == 43


def test_a_signal_kills_the_program_as_it_would() -> None:
    assert _wrap("sh", "-c", "kill -USR1 $$").returncode == -signal.SIGUSR1


def _signals(*command: str | Path) -> tuple[int, int]:
    """The signals that are ignored and blocked in what ``command`` runs, as bit masks."""
    shown = subprocess.run(
        [*command, "grep", "-E", "^Sig(Blk|Ign):", "/proc/self/status"],
        env={"PATH": PATH, "DATACRUMBS_RUN_ID": "r1"},
        capture_output=True,
        text=True,
        check=True,
    )
    blocked, ignored = (int(line.split()[1], 16) for line in shown.stdout.splitlines())
    return ignored, blocked


def test_signal_dispositions_are_not_pythons() -> None:
    assert _signals(WRAP) == _signals("env")


def test_a_signal_that_the_caller_ignores_stays_ignored() -> None:
    ignoring = ["sh", "-c", "trap '' HUP USR1; exec \"$@\"", "sh"]
    assert _signals(*ignoring, WRAP) == _signals(*ignoring, "env")
    assert _signals(*ignoring, WRAP)[0] & 1 << (signal.SIGUSR1 - 1)


def test_standard_input_is_the_programs_to_the_last_byte() -> None:
    data = "line\n" * 23_456
    assert _wrap("cat", stdin=None, input=data).stdout == data


def test_open_descriptors_are_handed_on(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w+") as file:
        number = file.fileno()
        result = _wrap("bash", "-c", f"echo hi >&{number}", pass_fds=[number])
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "file").read_text() == "hi\n"
    listed = _wrap("ls", "/proc/self/fd").stdout.split()
    assert listed == ["0", "1", "2", "3"]  # 3: ls itself reads the directory


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--run-id", "other", "--version", "-q"],
        ["--", "-x", "--"],
        ["", " ", "a b", "*", "$HOME", "~", "\n", "\\"],
        ["--debug=1", "-", "é", "\udcff\udc80"],
    ],
)
def test_arguments_pass_untouched(arguments: list[str]) -> None:
    raw = [os.fsencode(argument) for argument in arguments]
    result = _wrap("printf", "%s\\0", *raw)
    assert result.returncode == 0
    assert os.fsencode(result.stdout) == b"".join(argument + b"\0" for argument in raw)


def test_its_own_options_end_at_the_command() -> None:
    result = _wrap(
        "--run-id", "mine", "-q", "--", "sh", "-c", "echo $DATACRUMBS_RUN_ID $0", "--", "x"
    )
    assert result.stdout == "mine --\n"
    unknown = _wrap("--run", "mine", "true")
    assert unknown.returncode in (0, 2) and "Traceback" not in unknown.stderr
    assert _wrap("--runid", "mine", "true").returncode == 2


def test_the_environment_is_the_same_but_for_the_preload() -> None:
    environ = {"PATH": PATH, "A": "1", "EMPTY": "", "RAW": "\udcff"}
    result = _wrap("env", env=environ)
    assert set(result.stdout.splitlines()) == {
        *(f"{name}={value}" for name, value in environ.items()),
        "DATACRUMBS_RUN_ID=r1",
        f"LD_PRELOAD={LIBRARY}",
        "ASAN_OPTIONS=verify_asan_link_order=0",
    }


def test_a_locale_of_the_users_stays() -> None:
    for environ in ({"LC_CTYPE": "C"}, {"LC_ALL": "C"}, {"LANG": "C"}, {"LC_CTYPE": "C.UTF-8"}):
        shown = _wrap("env", env={"PATH": PATH, **environ}).stdout.splitlines()
        assert [line for line in shown if line.startswith(("LC_", "LANG"))] == [
            f"{name}={value}" for name, value in environ.items()
        ]


def test_the_jobs_python_path_is_the_programs_not_ours(tmp_path: Path) -> None:
    for name in ("click", "yaml", "msgspec"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('for another Python')\n")
    result = _wrap("sh", "-c", "echo $PYTHONPATH", env={"PATH": PATH, "PYTHONPATH": str(tmp_path)})
    assert (result.stdout, result.stderr) == (f"{tmp_path}\n", "")


# the run


def test_the_run_id_of_the_option_reaches_the_program() -> None:
    result = _wrap("--run-id", "mine", "sh", "-c", "echo $DATACRUMBS_RUN_ID", run_id="other")
    assert result.stdout == "mine\n"


@pytest.mark.parametrize("variable", ["DATACRUMBS_RUN_ID", "FLUX_JOB_ID", "SLURM_JOB_ID"])
def test_a_schedulers_job_id_is_the_run_id(variable: str) -> None:
    result = _wrap("-v", "true", run_id=None, env={"PATH": PATH, variable: "f77"})
    assert result.returncode == 0
    assert "run f77" in result.stderr


def test_flux_ids_in_its_own_spelling_are_taken() -> None:
    result = _wrap("-v", "true", run_id=None, env={"PATH": PATH, "FLUX_JOB_ID": "\u0192Ab9"})
    assert (result.returncode, "run fAb9" in result.stderr) == (0, True)


def test_no_run_id_is_one_clear_line() -> None:
    result = _wrap("true", run_id=None)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    for word in ("--run-id", "DATACRUMBS_RUN_ID", "FLUX_JOB_ID", "SLURM_JOB_ID"):
        assert word in line


@pytest.mark.parametrize("bad", ["../x", ".hidden", "a b", "x" * 64, ""])
def test_a_bad_run_id_is_refused(bad: str) -> None:
    result = _wrap("--run-id", bad, "true")
    assert result.returncode == 2
    assert "--run-id" in result.stderr and "Traceback" not in result.stderr


def test_it_tells_a_terminal_that_no_daemon_is_there_and_no_pipe() -> None:
    assert _wrap("true").stderr == ""
    said = "datacrumbs_wrap: no daemon is tracing run r1 on this host; running untraced\n"
    assert _wrap("--verbose", "true").stderr == said
    assert _wrap("--quiet", "--verbose", "true").stderr == ""
    master, slave = pty.openpty()
    with open(master, "rb", buffering=0) as terminal:
        subprocess.run(
            [WRAP, "true"], env={"PATH": PATH, "DATACRUMBS_RUN_ID": "r1"}, stderr=slave, check=True
        )
        assert terminal.read(4096).decode().replace("\r\n", "\n") == said
        os.close(slave)


def test_a_ready_file_says_that_a_daemon_is_there(tmp_path: Path) -> None:
    assert not is_tracing(tmp_path / "datacrumbs-r1.ready")
    (tmp_path / "datacrumbs-r1.ready").touch()
    assert is_tracing(tmp_path / "datacrumbs-r1.ready")
    assert is_tracing(tmp_path / ("x" * 300)), "what cannot be looked at is not reported"


# the preload


def test_what_is_preloaded_already_stays_first_and_is_not_repeated(tmp_path: Path) -> None:
    other = str(tmp_path / "libother.so")
    for given, wanted in (
        (None, str(LIBRARY)),
        ("", str(LIBRARY)),
        (other, f"{other}:{LIBRARY}"),
        (f"{other} {other}", f"{other} {other}:{LIBRARY}"),
        (str(LIBRARY), str(LIBRARY)),
        (f"{LIBRARY} {other}", f"{LIBRARY} {other}"),
    ):
        environ = {} if given is None else {"LD_PRELOAD": given}
        assert preloading(environ, LIBRARY)["LD_PRELOAD"] == wanted


def test_wrapped_twice_it_is_preloaded_once() -> None:
    result = _wrap(WRAP, "sh", "-c", "echo $LD_PRELOAD; echo $ASAN_OPTIONS")
    assert result.stdout == f"{LIBRARY}\nverify_asan_link_order=0\n"


def test_options_of_sanitizers_stay() -> None:
    added = preloading({"ASAN_OPTIONS": "halt_on_error=0"}, LIBRARY)
    assert added["ASAN_OPTIONS"] == "halt_on_error=0:verify_asan_link_order=0"
    own = {"ASAN_OPTIONS": "verify_asan_link_order=1"}
    assert preloading(own, LIBRARY)["ASAN_OPTIONS"] == "verify_asan_link_order=1"


def test_a_program_with_address_sanitizer_runs(tmp_path: Path) -> None:
    program = _compile(tmp_path / "sane", EMPTY, "-fsanitize=address")
    result = _wrap(program)
    assert (result.returncode, result.stderr) == (0, "")
    # and would not without what the wrapper sets, or this test says nothing
    alone = subprocess.run(
        [program], env={"LD_PRELOAD": str(LIBRARY)}, capture_output=True, text=True, check=False
    )
    assert alone.returncode != 0 and "does not come first" in alone.stderr


@pytest.mark.parametrize("name", ["with blank", "with:colon"])
def test_a_library_whose_path_cannot_be_preloaded_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot be preloaded"):
        preloading({}, tmp_path / name)


def test_a_missing_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no client library"):
        preloading({}, tmp_path / "none.so")


# no such program


@pytest.mark.parametrize("name", ["no-such-command", "/no/such/file", ""])
def test_not_found_is_127(name: str) -> None:
    result = _wrap(name)
    assert result.returncode == 127
    assert result.stderr == f"datacrumbs_wrap: error: {name}: command not found\n"


def test_not_executable_is_126(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    assert _wrap(plain).returncode == 126
    assert _wrap(plain).stderr == f"datacrumbs_wrap: error: {plain}: permission denied\n"
    directory = _wrap(tmp_path)
    assert (directory.returncode, "is a directory" in directory.stderr) == (126, True)
    assert _wrap("plain", env={"PATH": f"{tmp_path}:{PATH}"}).returncode == 126


def test_a_missing_interpreter_is_said(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    result = _wrap(script)
    assert result.returncode == 127
    assert "/no/such/interpreter" in result.stderr


def test_a_script_without_interpreter_runs_in_the_shell(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("echo $1; exit 3\n")
    script.chmod(0o755)
    result = _wrap(script, "word")
    assert (result.returncode, result.stdout, result.stderr) == (3, "word\n", "")


def test_a_file_that_is_no_program_is_126(tmp_path: Path) -> None:
    junk = tmp_path / "junk"
    junk.write_bytes(b"\x7fELF\0\0\0junk\n")
    junk.chmod(0o755)
    result = _wrap(junk)
    assert result.returncode == 126
    assert os.strerror(errno.ENOEXEC) in result.stderr


def test_path_is_searched_as_a_shell_does(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for directory, mode in ((first, 0o644), (second, 0o755)):
        directory.mkdir()
        (directory / "tool").write_text("")
        (directory / "tool").chmod(mode)
    assert find_program("tool", {"PATH": f"{first}:{second}"}) == second / "tool"
    assert find_program("sh", {}).name == "sh"


# what preloading cannot reach


def _warning(program: Path, *options: str, **settings: Any) -> str:
    result = _wrap(*options, program, **settings)
    assert result.returncode == 0, result.stderr
    return result.stderr


def test_ordinary_programs_and_scripts_give_no_warning(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/usr/bin/env -S sh -e\ntrue\n")
    script.chmod(0o755)
    assert _warning(Path("/bin/true")) == ""
    assert _warning(script) == ""


@pytest.mark.parametrize("flag", ["-static", "-static-pie"])
def test_a_static_program_gives_one_line_and_runs(tmp_path: Path, flag: str) -> None:
    program = _compile(tmp_path / "static", EMPTY, flag)
    (line,) = _warning(program).splitlines()
    assert line.startswith(f"datacrumbs_wrap: warning: {program} is statically linked")
    assert "select: job" in line
    assert _warning(program, "--quiet") == ""


def test_a_script_whose_interpreter_is_static_gives_one_line(tmp_path: Path) -> None:
    interpreter = _compile(tmp_path / "static", EMPTY, "-static")
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    inner.write_text(f"#! {interpreter} -x\n")
    outer.write_text(f"#!{inner}\n")
    for script in (inner, outer):
        script.chmod(0o755)
        (line,) = _warning(script).splitlines()
        assert f"{script}: its interpreter {interpreter} is statically linked" in line


def test_a_setuid_program_gives_one_line_to_those_it_concerns() -> None:
    program = Path("/usr/bin/su")
    if os.geteuid() == 0:
        assert obstacle(program, LIBRARY) is None, "root gains nothing from it: preload works"
        settings = NOBODY
    else:
        settings = {}
    result = _wrap(program, "--version", **settings)
    assert result.returncode == 0
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"datacrumbs_wrap: warning: {program} is setuid")


def test_a_setgid_program_gives_one_line(tmp_path: Path) -> None:
    program = _compile(tmp_path / "setgid", EMPTY)
    other = next(g for g in (*os.getgroups(), 65534) if g != os.getgid()) if os.geteuid() else 65534
    os.chown(program, -1, other)
    program.chmod(0o2755)
    (line,) = _warning(program).splitlines()
    assert "is setgid" in line
    program.chmod(0o2745)  # without group execution the bit means something else
    assert _warning(program) == ""


def test_a_program_of_another_machine_is_named(tmp_path: Path) -> None:
    program = tmp_path / "other"
    head = bytearray(Path("/bin/true").read_bytes()[:4096])
    head[18:20] = (183).to_bytes(2, "little")  # EM_AARCH64
    program.write_bytes(head)
    reason = obstacle(program, LIBRARY)
    assert reason == f"{program} is built for another machine than the client library"


@pytest.mark.parametrize("length", [4, 5, 19, 20, 40, 60, 64, 100, 1000])
def test_a_truncated_program_is_126(tmp_path: Path, length: int) -> None:
    program = tmp_path / "cut"
    program.write_bytes(Path("/bin/true").read_bytes()[:length])
    program.chmod(0o755)
    result = _wrap(program)
    assert result.returncode in (126, -signal.SIGSEGV, -signal.SIGKILL)
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("content", [b"", b"#!", b"#!\n", b"#! \n", b"\x7fELF", b"#!/no/such\n"])
def test_odd_files_are_no_obstacle_or_named_but_never_a_traceback(
    tmp_path: Path, content: bytes
) -> None:
    program = tmp_path / "odd"
    program.write_bytes(content)
    program.chmod(0o755)
    result = _wrap(program)
    assert "Traceback" not in result.stderr


def test_a_loop_of_interpreters_ends(tmp_path: Path) -> None:
    script = tmp_path / "loop"
    script.write_text(f"#!{script}\n")
    script.chmod(0o755)
    result = _wrap(script)
    assert result.returncode == 126
    assert os.strerror(errno.ELOOP) in result.stderr


# light


def test_it_imports_nothing_heavy() -> None:
    code = "import sys, datacrumbs.cli.wrap; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {"numpy", "pyarrow", "duckdb", "polars", "rich", "cryptography", "elftools"}
    assert not heavy & set(loaded)


def test_the_library_is_where_the_configuration_says() -> None:
    assert SystemConfig().client_library_path().is_file()
