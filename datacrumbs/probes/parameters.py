"""A parameter of a function, as type information tells it."""

from __future__ import annotations

from dataclasses import dataclass

from datacrumbs.probes.model import ArgumentType


@dataclass(frozen=True, slots=True)
class Parameter:
    """``register`` counts integer argument registers from 0; None: it is in none, and ``why``.

    ``size`` is of a number in bytes; a string or what else a pointer leads to has 0.
    ``pointer`` says that the value itself is an address.
    """

    name: str
    register: int | None
    type: ArgumentType | None
    size: int
    why: str = ""
    pointer: bool = False
