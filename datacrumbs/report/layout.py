"""How all text reports look: one page, 80 columns wide unless the terminal is wider."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from datacrumbs.printable import printable
from datacrumbs.units import human_bytes, human_count

WIDTH = 80
MAX_WIDTH = 120


def console_on(stream: TextIO) -> Console:
    """Colour only on a terminal and without ``NO_COLOR``."""
    console = Console(file=stream, highlight=False, markup=False, emoji=False, soft_wrap=False)
    console.width = min(console.width, MAX_WIDTH) if console.is_terminal else WIDTH
    return console


def cut(text: str, width: int) -> str:
    """``text``, made printable; the end of it if it is too long: paths differ at the end."""
    text = printable(text)
    if cell_len(text) <= width:
        return text
    text = text[-4 * width :]  # of a name of any length, few steps
    while cell_len(text) > width - 3:
        text = text[1:]
    return "..." + text


def tight(text: str) -> str:
    return text.replace(" ", "")


def bytes_or_dash(size_bytes: int) -> str:
    return tight(human_bytes(size_bytes)) if size_bytes else "-"


def count_or_dash(count: int) -> str:
    return human_count(count) if count else "-"


def labelled(label: str, text: str) -> Text:
    return Text(f"{label:<11}", "bold").append(text, "default")


def paragraph(label: str, text: str, *, style: str = "bold") -> Table:
    """``text`` of many lines, all right of ``label``."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=10, style=style)
    grid.add_column(overflow="fold")
    grid.add_row(label, Text(printable(text)))
    return grid


def new_table(width: int, *columns: tuple[str, int]) -> Table:
    """A table of a name (the first column takes what is left) and right-aligned numbers."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold", width=width)
    (name, _), *numbers = columns
    table.add_column(name, no_wrap=True, width=name_width(width, columns))
    for title, size in numbers:
        table.add_column(title, no_wrap=True, justify="right", width=size)
    return table


def name_width(width: int, columns: Iterable[tuple[str, int]]) -> int:
    return width - sum(size + 1 for _, size in columns)


def more(count: int, what: str) -> Iterator[Text]:
    if count > 0:
        yield Text(f" ... and {count} more {what}", "dim")
