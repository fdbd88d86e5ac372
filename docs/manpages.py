#!/usr/bin/env python3
"""Write a man page and the shell completions of every command that pyproject.toml names.

``manpages.py list`` prints the commands; ``manpages.py write DIRECTORY`` writes, for each,
``NAME.1``, ``NAME`` (bash), ``_NAME`` (zsh) and ``NAME.fish``. All of it is asked of the
click command itself, so that it cannot say anything else than ``--help``.
"""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

ROOT = Path(__file__).resolve().parent.parent
EXIT_CODES = (
    ("0", "It is done."),
    ("1", "It failed; standard error says why and what to do."),
    ("2", "The input cannot be taken: an option, a key, a value or a file."),
)
FILES = (
    (
        "<prefix>/etc/datacrumbs/system.yaml, /etc/datacrumbs/system.yaml",
        "The system configuration; the first that exists is read.",
    ),
)


def scripts() -> dict[str, str]:
    """The commands of pyproject.toml, as name -> module:object."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    named: dict[str, str] = tomllib.loads(text)["project"]["scripts"]
    return named


def load(target: str) -> click.Command:
    """The click command at ``module:object``."""
    module, _, name = target.partition(":")
    command = getattr(importlib.import_module(module), name)
    if not isinstance(command, click.Command):
        raise TypeError(f"{target}: not a click command but {type(command).__name__}")
    return command


def escape(text: str) -> str:
    """``text`` so that roff prints it as it is: backslashes, hyphens, leading dots and quotes."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^(?=[.'])", r"\\&", text, flags=re.MULTILINE)


@dataclass(frozen=True)
class Text:
    """A command's help, by where a man page has it: paragraphs in roff."""

    description: list[str]
    examples: list[str]
    exit_status: list[str]


def sorted_text(command: click.Command) -> Text:
    """The help and epilog of ``command``, told apart by how their paragraphs begin."""
    text = Text([], [], [])
    for block in re.split(r"\n[ \t]*\n", f"{command.help or ''}\n\n{command.epilog or ''}"):
        plain = block.strip("\b \n")
        if plain.startswith("Examples:\n"):
            text.examples.append(paragraph("\b\n" + plain.partition("\n")[2]))
        elif plain.startswith("The exit code is"):
            text.exit_status.append(paragraph(block))
        elif plain:
            text.description.append(paragraph(block))
    return text


def paragraph(block: str) -> str:
    r"""Help text as roff; one that starts with ``\b`` keeps its lines, as in click."""
    if block.lstrip().startswith("\b"):
        return f".PP\n.nf\n{escape(dedent(block.lstrip().lstrip(chr(8)).strip(chr(10))))}\n.fi"
    return ".PP\n" + escape(" ".join(block.split()))


def _terms(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    for term, meaning in pairs:
        yield f".TP\n.B {escape(term)}\n{escape(meaning)}"


def _options(context: click.Context) -> Iterator[tuple[str, str]]:
    for parameter in context.command.get_params(context):
        record = parameter.get_help_record(context)
        if record and record[1]:
            yield record[0], " ".join(record[1].split())


def page(name: str, command: click.Command, version: str) -> str:
    """The man page of ``command``, in roff."""
    context = click.Context(command, info_name=name, max_content_width=100)
    usage = " ".join(command.collect_usage_pieces(context))
    text = sorted_text(command)
    lines = [
        f'.TH "{escape(name.upper())}" 1 "" "datacrumbs {version}" "DataCrumbs"',
        ".SH NAME",
        f"{escape(name)} \\- {escape(command.get_short_help_str(limit=200).rstrip('.'))}",
        ".SH SYNOPSIS",
        f".B {escape(name)}\n{escape(usage)}",
        ".SH DESCRIPTION",
        *text.description,
        ".SH OPTIONS",
        *_terms(_options(context)),
        ".SH EXAMPLES",
        *text.examples,
        ".SH EXIT STATUS",
        *(text.exit_status or _terms(EXIT_CODES)),
        ".SH FILES",
        *_terms(FILES),
    ]
    return "\n".join(lines) + "\n"


def completion(name: str, command: click.Command, shell: type[ShellComplete]) -> str:
    """The script that makes ``shell`` ask ``command`` for completions."""
    variable = f"_{name.replace('-', '_').upper()}_COMPLETE"
    # of the base class: BashComplete would first run bash to see how old it is
    return ShellComplete.source(shell(command, {}, name, variable))


def write(directory: Path) -> None:
    """Write all files of all commands below ``directory``."""
    sys.path.insert(0, str(ROOT))
    version = importlib.import_module("datacrumbs").__version__
    for name, target in scripts().items():
        command = load(target)
        files = {
            f"{name}.1": page(name, command, version),
            name: completion(name, command, BashComplete),
            f"_{name}": completion(name, command, ZshComplete),
            f"{name}.fish": completion(name, command, FishComplete),
        }
        for file, text in files.items():
            (directory / file).write_text(text, encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Run ``list`` or ``write DIRECTORY``; the exit code."""
    match arguments:
        case ["list"]:
            print("\n".join(scripts()))
        case ["write", directory]:
            write(Path(directory))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
