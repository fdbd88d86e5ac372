"""Adding our part to the comment of a job that is submitted with sbatch or salloc.

All arguments are passed on as they are; one ``--comment`` is added behind them, which Slurm
prefers to earlier ones. To find where the options end, their list is asked of the command itself.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from datacrumbs.errors import BadInputError, UserError
from datacrumbs.jobs.metadata import merged

PROBE_FILE = "datacrumbs-probe-file"
ENABLE = "datacrumbs-enable"
HELP_TIMEOUT_S = 30

_HELP_LINE = re.compile(r"^\s+(?:-(\w)[, ]\s*)?--([\w-]+)(=|\[=)?", re.MULTILINE)
_UNDECLARED = frozenset({"container", "container-id", "export", "wrap"})
"""Options that need a value, of which the help says that they take none, or may."""


@dataclass(frozen=True, slots=True)
class Options:
    """A command's options: long name -> whether its value may be the next argument."""

    long: dict[str, bool]
    short: dict[str, bool]

    def full_name(self, given: str) -> str:
        """The long option that ``given`` stands for; getopt takes beginnings of names."""
        if given in self.long:
            return given
        fitting = [name for name in self.long if name.startswith(given)]
        return fitting[0] if len(fitting) == 1 else given


def options_of(command: str) -> Options:
    """The options that ``command --help`` lists, and ours. Raises `UserError`."""
    try:
        text = subprocess.run(
            [command, "--help"], capture_output=True, text=True, timeout=HELP_TIMEOUT_S, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{command} --help: {error}", hint="is Slurm installed here?") from error
    return options_in(text)


def options_in(help_text: str) -> Options:
    """The options of a help text of Slurm's, and ours."""
    long, short = {PROBE_FILE: True, ENABLE: False}, {}
    for letter, name, equals in _HELP_LINE.findall(help_text):
        long[name] = equals == "=" or name in _UNDECLARED
        if letter:
            short[letter] = long[name]
    return Options(long, short)


@dataclass(slots=True)
class Component:
    """The options of one job; a heterogeneous job has several, divided by ``:``."""

    arguments: list[str]
    comment: str | None = None
    wraps: bool = False


@dataclass(slots=True)
class Submission:
    """A command line, taken apart; ``rest`` is the script or program and its arguments."""

    components: list[Component]
    rest: list[str]
    probe_file: str | None = None
    enabled: bool = False

    def with_comment(self, probe_file: str, script_comment: str | None) -> list[str]:
        """The arguments, our part added to the comment of each component."""
        arguments: list[str] = []
        for number, component in enumerate(self.components):
            given = component.comment
            if given is None and number == 0:
                given = script_comment
            arguments += [":"] if number else []
            arguments += [*component.arguments, f"--comment={merged(given or '', probe_file)}"]
        return arguments + self.rest


def take_apart(arguments: Sequence[str], options: Options) -> Submission:
    """Divide a command line into options, ours taken out, and the rest."""
    submission = Submission([Component([])], [])
    left = list(arguments)
    while left:
        word = left.pop(0)
        if word == ":":
            submission.components.append(Component([]))
        elif word == "--" or not word.startswith("-") or word == "-":
            submission.rest = [word, *left]
            break
        else:
            _take_option(word, left, submission, options)
    return submission


def _take_option(word: str, left: list[str], submission: Submission, options: Options) -> None:
    """Sort in one option and, if it has one, its value, which may be the next of ``left``."""
    words = [word]
    name, value = "", None
    if word.startswith("--"):
        given, equals, text = word[2:].partition("=")
        name, value = options.full_name(given), text if equals else None
        wants = options.long.get(name, False)
    else:
        # of several letters in one word, the first that takes a value has the rest for it
        at = next((i for i, c in enumerate(word) if i and options.short.get(c)), len(word))
        wants = at == len(word) - 1
    if wants and value is None and left:
        value = left.pop(0)
        words.append(value)
    component = submission.components[-1]
    if name == PROBE_FILE:
        if not value:
            raise BadInputError(f"--{PROBE_FILE} needs a file")
        submission.probe_file = value
    elif name == ENABLE:
        submission.enabled = True
    else:
        component.arguments += words
        component.wraps = component.wraps or name == "wrap"
        component.comment = value or "" if name == "comment" else component.comment


def script_comment(text: bytes, options: Options) -> str | None:
    """The comment that a batch script's ``#SBATCH`` lines ask for; the last one counts."""
    found = None
    for line in _directives(text.decode("utf-8", errors="surrogateescape")):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # sbatch will say so itself
            continue
        if words[:1] in (["hetjob"], ["packjob"]):
            raise BadInputError(
                "a heterogeneous job by #SBATCH lines has one comment for each of its parts",
                hint="write --comment with the metadata into the script, for each part",
            )
        comment = take_apart(words, options).components[0].comment
        found = comment if comment is not None else found
    return found


def _directives(script: str) -> Iterator[str]:
    for line in script.splitlines():
        if line.startswith("#SBATCH"):
            yield line.removeprefix("#SBATCH").strip()
        elif line.strip() and not line.startswith("#"):
            return


def read_script(rest: Sequence[str]) -> bytes:
    """The batch script that sbatch would read: the file named, as sbatch finds it."""
    words = rest[1:] if rest[:1] == ["--"] else rest
    path = Path(words[0])
    if "/" not in words[0] and not path.is_file():
        path = Path(shutil.which(words[0]) or words[0])
    try:
        return path.read_bytes()
    except OSError:  # sbatch will say so itself
        return b""


def keep_standard_input(data: bytes) -> None:
    """Make ``data``, which was read from it, what a program we become reads from it."""
    fd = os.memfd_create("script")
    with open(os.dup(fd), "wb") as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    os.dup2(fd, 0)
